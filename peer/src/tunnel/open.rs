//! The open connections below tunnels, by the key at the other end, so that those of a revoked key can be closed at once
//! (SPEC I7).
//!
//! Closing is the socket's: whoever reads or writes it, forward or pool, sees the connection end, also one that is stuck
//! behind a slow client and would not look for a long time. The data path takes no lock and asks nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use p2p_common::KeyHash;
use p2p_runtime::tls::TunnelStream;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Every open connection below a tunnel. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenTunnels {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: BTreeMap<KeyHash, BTreeMap<u64, RawFd>>,
}

/// Keeps a connection in the table.
#[derive(Debug)]
struct Entered {
    tunnels: OpenTunnels,
    key_hash: KeyHash,
    number: u64,
}

/// The encrypted connection below a tunnel, whoever dialled it.
#[derive(Debug)]
pub(crate) struct PeerStream {
    // Dropped first: the table never has a descriptor that is closed, and may be somebody else's by now.
    _entered: Entered,
    stream: TunnelStream<TcpStream>,
}

impl OpenTunnels {
    /// Adds a connection whose other end showed `key_hash`.
    pub(crate) fn enter(&self, key_hash: KeyHash, stream: TunnelStream<TcpStream>) -> PeerStream {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.open.entry(key_hash).or_default().insert(number, stream.get_ref().as_raw_fd());
        drop(table);
        PeerStream { _entered: Entered { tunnels: self.clone(), key_hash, number }, stream }
    }

    /// Closes all connections of a key; how many. Whoever makes sure that no more come publishes that first.
    pub(crate) fn close(&self, key_hash: &KeyHash) -> usize {
        let table = self.table();
        let Some(open) = table.open.get(key_hash) else { return 0 };
        for fd in open.values() {
            // SAFETY: the descriptor is open: its entry leaves the table, for which it waits while we hold the lock,
            // before the stream that owns it is dropped.
            let socket = unsafe { BorrowedFd::borrow_raw(*fd) };
            // One that refuses is closed already.
            let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
        }
        open.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.tunnels.table();
        if let Some(open) = table.open.get_mut(&self.key_hash) {
            open.remove(&self.number);
            if open.is_empty() {
                table.open.remove(&self.key_hash);
            }
        }
    }
}

impl PeerStream {
    /// The connection below.
    pub(crate) fn get_ref(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
