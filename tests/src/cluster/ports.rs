//! Loopback ports that nobody else takes, also not a test that runs at the same time.
//!
//! A port is leased by a lock on a file named after it, held as long as the lease lives, so that a process
//! killed and started again finds its port free. All lie below the range from which Linux draws the ports of
//! outgoing connections.

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, bail};

const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

/// One TCP and UDP port of 127.0.0.1, ours until dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    /// The lock ends with the descriptor.
    _lock: File,
}

impl PortLease {
    /// Leases a port that is free for TCP and UDP now.
    ///
    /// # Errors
    /// When no port of the range is free, or the lock files cannot be written.
    pub fn take() -> anyhow::Result<Self> {
        // Each process starts elsewhere, so that processes seldom try the same port.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = std::process::id().wrapping_mul(97) % u32::from(COUNT);
        let dir = lock_dir()?;
        for _ in 0..COUNT {
            let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let offset = u16::try_from((start + step) % u32::from(COUNT)).expect("COUNT is a u16");
            let port = FIRST + offset;
            let path = dir.join(port.to_string());
            let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) if is_free(port) => return Ok(PortLease { port, _lock: lock }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).context("locking a port"),
            }
        }
        bail!("none of the ports {FIRST} to {} is free", FIRST + (COUNT - 1))
    }

    /// The port's number.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port on 127.0.0.1.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

fn lock_dir() -> anyhow::Result<PathBuf> {
    // Per user: another user's lock files could not be opened for writing.
    // SAFETY: getuid has no preconditions and cannot fail.
    let user = unsafe { libc::getuid() };
    let dir = std::env::temp_dir().join(format!("p2p-test-ports-{user}"));
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

fn is_free(port: u16) -> bool {
    let addr = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_leased_once() {
        let leases: Vec<_> = (0..50).map(|_| PortLease::take().unwrap()).collect();
        let mut ports: Vec<_> = leases.iter().map(PortLease::port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), leases.len());
        assert!(leases.iter().all(|lease| TcpListener::bind(lease.addr()).is_ok()));
    }
}
