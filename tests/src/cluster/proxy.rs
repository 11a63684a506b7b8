//! [`TcpProxy`]: carries TCP connections to one address and looks at nothing, as a load balancer in front of a Peer
//! does.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Listens until dropped; then its connections end too.
#[derive(Debug)]
pub struct TcpProxy {
    addr: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl TcpProxy {
    /// In front of `target`.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (addr, open) = (listener.local_addr()?, Arc::<Mutex<Vec<TcpStream>>>::default());
        let opened = Arc::downgrade(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // The proxy is dropped.
                let Some(open) = opened.upgrade() else { return };
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else { continue };
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        std::thread::spawn(move || copy(from, to));
                    }
                }
                open.extend([client, server]);
            }
        });
        Ok(TcpProxy { addr, open })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections it took.
    pub fn connections(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len() / 2
    }

    /// Breaks all connections; new ones are carried.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.cut();
        // Wakes the thread, which then finds that nobody is left.
        self.open = Arc::default();
        let _ = TcpStream::connect(self.addr);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    // However it ends, both sides learn of it.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
