//! Who listens on a port: for the error of the process that wanted it too.

use std::fmt;
use std::fs;

/// A process that listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHolder {
    /// Its pid.
    pub pid: u32,
    /// What it is called.
    pub command: String,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

impl PortHolder {
    /// Looks for the listener on a TCP port in `/proc` (proc(5)). `None` when there is none, it belongs to
    /// another user, or the system has no `/proc`.
    pub(super) fn find(port: u16) -> Option<PortHolder> {
        let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(table).ok())
            .flat_map(|table| listening_inodes(&table, port))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if inodes.is_empty() {
            return None;
        }
        let processes = fs::read_dir("/proc").ok()?.flatten();
        processes.into_iter().find_map(|process| {
            let pid: u32 = process.file_name().to_str()?.parse().ok()?;
            let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
            let holds = |link: std::path::PathBuf| inodes.iter().any(|inode| link.as_os_str() == &**inode);
            files.find(|file| fs::read_link(file.path()).is_ok_and(holds))?;
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Some(PortHolder { pid, command: command.trim().to_owned() })
        })
    }
}

/// The inodes of sockets that listen on `port`, out of a table of `/proc/net`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
            let state = fields.nth(1)?;
            let inode = fields.nth(5)?.parse().ok()?;
            let listens = state == LISTEN && u16::from_str_radix(local_port, 16).ok()? == port;
            listens.then_some(inode)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CE9 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1CE9 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 20 4 30 10 -1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
   junk";
        assert_eq!(listening_inodes(table, 7401), [4711]);
        assert_eq!(listening_inodes(table, 80), [4713]);
        assert!(listening_inodes(table, 81).is_empty());
        assert!(listening_inodes("", 80).is_empty());
    }
}
