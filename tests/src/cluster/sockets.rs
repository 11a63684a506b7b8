//! The connections of a process as the kernel has them, and which of their other ends are still open.
//!
//! For questions that the processes themselves must not answer: whether everybody has closed what a frozen or hostile
//! one holds open. IPv4 alone, since clusters here live on loopback.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::Context;

/// A row of `/proc/net/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    established: bool,
    inode: u64,
}

/// The other ends of the connections that a process had at some time.
#[derive(Debug, Clone)]
pub struct OtherEnds {
    /// Local and remote address of each, seen from the other end.
    ends: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl OtherEnds {
    /// Of the connections of process `pid` that are established now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let own = established(pid)?;
        Ok(OtherEnds { ends: own.into_iter().map(|row| (row.remote, row.local)).collect() })
    }

    /// Without those that process `pid` holds itself.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn without(&self, pid: u32) -> anyhow::Result<Self> {
        let held: BTreeSet<_> = established(pid)?.into_iter().map(|row| (row.local, row.remote)).collect();
        Ok(OtherEnds { ends: self.ends.difference(&held).copied().collect() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Those at which `belongs` is true of the local address.
    #[must_use]
    pub fn at(&self, mut belongs: impl FnMut(SocketAddr) -> bool) -> Self {
        OtherEnds { ends: self.ends.iter().copied().filter(|(local, _)| belongs(*local)).collect() }
    }

    /// How many of them their processes have not closed.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn open(&self) -> anyhow::Result<usize> {
        let open = |row: &Row| row.established && self.ends.contains(&(row.local, row.remote));
        Ok(rows()?.iter().filter(|row| open(row)).count())
    }
}

/// The connections of a process.
fn established(pid: u32) -> anyhow::Result<Vec<Row>> {
    let mut inodes = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).context("listing its files")? {
        // One that was just closed is nobody's.
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(rows()?.into_iter().filter(|row| row.established && inodes.contains(&row.inode)).collect())
}

fn rows() -> anyhow::Result<Vec<Row>> {
    let table = std::fs::read_to_string("/proc/net/tcp").context("reading /proc/net/tcp")?;
    Ok(table.lines().skip(1).filter_map(row).collect())
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Row {
        local: address(fields.get(1)?)?,
        remote: address(fields.get(2)?)?,
        established: *fields.get(3)? == "01",
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// As the kernel writes it: the address in the host's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_other_end_is_open_until_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = listener.accept().unwrap().0;
        let (our_addr, their_addr) = (ours.local_addr().unwrap(), theirs.local_addr().unwrap());
        let ends = OtherEnds::of(std::process::id()).unwrap().at(|local| local == their_addr);
        assert!(ends.ends.contains(&(their_addr, our_addr)), "{ends:?}");
        let ends = OtherEnds { ends: [(their_addr, our_addr)].into() };
        assert_eq!(ends.open().unwrap(), 1);
        theirs.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(ends.open().unwrap(), 0);
    }
}
