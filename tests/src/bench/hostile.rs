//! Attacks of one kind at a time, and what honest clients feel of them.
//!
//! Attackers come from another loopback address than honest clients, hold or flood connections for a bounded time, and
//! have one thread of the lowest priority: what is measured is what the attacked process makes of them, not who gets
//! the processor. They know what anybody can know: addresses and the cluster's CA.

mod attacks;
mod frames;
mod honest;
mod scene;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_runtime::tls::{Connector, Dialed};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

pub use honest::{Felt, Honest};
pub use scene::{Outcome, Scene};

/// Where attackers come from.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// How long an attacker waits for a connection or a handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The API port of a Server.
    Api,
    /// The operations port of a Server.
    Ops,
    /// The port of a Peer.
    Peer,
}

/// A way to do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// 600 handshakes, each a byte a second.
    SlowTls,
    /// Connections as fast as they can be made, 2,000 of them open and silent.
    ConnectionFlood,
    /// Random bytes behind the beginning of a handshake.
    TlsGarbage,
    /// Calls whose bodies come a byte a second.
    SlowBody,
    /// Header blocks in CONTINUATION frames without end.
    HeaderBomb,
    /// HTTP/1 heads without end.
    HeadBomb,
    /// Calls with one wrong token after the other.
    TokenGuessing,
    /// Messages that announce 2 GiB.
    OversizedMessage,
    /// Calls whose messages go on and on, in frames of a byte.
    EndlessMessage,
    /// PING frames without end.
    PingFlood,
    /// Streams that are opened and reset at once (CVE-2023-44487).
    ResetFlood,
    /// SETTINGS frames without end.
    SettingsFlood,
    /// 600 slow handshakes with a Peer.
    PeerSlowTls,
    /// A connection flood on the port of a Peer.
    PeerConnectionFlood,
}

impl Attack {
    /// All of them.
    pub const ALL: [Attack; 14] = [
        Attack::SlowTls,
        Attack::ConnectionFlood,
        Attack::TlsGarbage,
        Attack::SlowBody,
        Attack::HeaderBomb,
        Attack::HeadBomb,
        Attack::TokenGuessing,
        Attack::OversizedMessage,
        Attack::EndlessMessage,
        Attack::PingFlood,
        Attack::ResetFlood,
        Attack::SettingsFlood,
        Attack::PeerSlowTls,
        Attack::PeerConnectionFlood,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Attack::SlowTls => "slow TLS handshakes",
            Attack::ConnectionFlood => "connection flood",
            Attack::TlsGarbage => "TLS garbage",
            Attack::SlowBody => "slow HTTP/2 bodies",
            Attack::HeaderBomb => "HTTP/2 header bomb",
            Attack::HeadBomb => "HTTP/1 header bomb",
            Attack::TokenGuessing => "token guessing",
            Attack::OversizedMessage => "oversized messages",
            Attack::EndlessMessage => "endless messages",
            Attack::PingFlood => "HTTP/2 ping flood",
            Attack::ResetFlood => "HTTP/2 reset flood",
            Attack::SettingsFlood => "HTTP/2 settings flood",
            Attack::PeerSlowTls => "slow TLS handshakes, Peer",
            Attack::PeerConnectionFlood => "connection flood, Peer",
        }
    }

    /// Whom it hits.
    pub const fn door(self) -> Door {
        match self {
            Attack::PeerSlowTls | Attack::PeerConnectionFlood => Door::Peer,
            Attack::HeadBomb => Door::Ops,
            _ => Door::Api,
        }
    }
}

/// What attackers know.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where the attacked port is.
    pub addr: SocketAddr,
    /// To anybody's face of a Server.
    pub connector: Connector,
}

/// An attack at work, on threads of its own.
#[derive(Debug)]
pub struct Strike {
    thread: std::thread::JoinHandle<()>,
    tally: Arc<Tally>,
}

/// What attackers have done.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    acts: AtomicU64,
}

impl Strike {
    /// Begins; ends by itself after `length`.
    pub fn begin(attack: Attack, target: Target, length: Duration) -> Self {
        let tally = Arc::new(Tally::default());
        let counted = Arc::clone(&tally);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .on_thread_start(yield_to_others)
                .enable_all()
                .build()
                .expect("a thread can be started");
            let foe = Foe { target, tally: counted, until: Instant::now() + length };
            // Attackers look at the time themselves; one that hangs is not waited for.
            runtime.block_on(async { timeout(length + PATIENCE, attacks::run(attack, foe)).await.ok() });
            runtime.shutdown_background();
        });
        Strike { thread, tally }
    }

    /// Waits for the end: how many connections were made, and how often the harm was done.
    ///
    /// # Errors
    /// When an attacker panicked.
    pub fn wait(self) -> anyhow::Result<(u64, u64)> {
        self.thread.join().map_err(|_| anyhow::anyhow!("an attacker panicked"))?;
        let Tally { connections, acts } = &*self.tally;
        Ok((connections.load(Ordering::Relaxed), acts.load(Ordering::Relaxed)))
    }
}

/// Lowest priority for this thread.
fn yield_to_others() {
    // SAFETY: a system call on numbers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// One attacker.
#[derive(Debug, Clone)]
struct Foe {
    target: Target,
    tally: Arc<Tally>,
    until: Instant,
}

impl Foe {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn act(&self) {
        self.tally.acts.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection; none when it cannot be had now.
    async fn connect(&self) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().ok()?;
        socket.bind(SocketAddr::new(SOURCE, 0)).ok()?;
        let stream = timeout(PATIENCE, socket.connect(self.target.addr)).await.ok()?.ok()?;
        self.tally.connections.fetch_add(1, Ordering::Relaxed);
        Some(stream)
    }

    /// A connection to anybody's face, after its handshake.
    async fn shake_hands(&self) -> Option<Dialed<TcpStream>> {
        let stream = self.connect().await?;
        let to = HostPort::from(self.target.addr);
        self.target.connector.connect(&to, stream, PATIENCE).await.ok()
    }

    /// Runs `count` attackers side by side, each beginning anew until the time is over.
    async fn crowd<F>(&self, count: usize, attack: impl Fn(Foe) -> F)
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let attack = &attack;
        let tasks = (0..count).map(|_| async move {
            while !self.is_over() {
                let left = self.until.saturating_duration_since(Instant::now());
                let one = tokio::spawn(timeout(left, attack(self.clone())));
                if !matches!(one.await, Ok(Ok(Some(())))) {
                    // Refused or cut off, as it should be; the next one follows, but not as a busy loop.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        futures_util::future::join_all(tasks).await;
    }
}

/// Reads until the other side ends it.
async fn drain(mut stream: impl AsyncRead + Unpin) {
    let mut bytes = vec![0; 16 * 1024];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}
