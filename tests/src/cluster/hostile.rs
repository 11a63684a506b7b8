//! Clients that mean no good, each on connections of its own, until told to stop.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Between two bytes of a slow client.
const SLOWLY: Duration = Duration::from_millis(100);
/// A head this long belongs to nothing.
const OVERSIZED_BYTES: usize = 8 << 20;
/// How long anybody waits for an answer before it begins anew.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Everything at once against some ports; it ends when this is dropped.
#[derive(Debug)]
pub struct Hostile {
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    /// Connected, and silent for ever.
    half_open: Vec<TcpStream>,
}

impl Hostile {
    /// Begins: garbage of every kind, heads without end, bytes one by one, and `half_open` silent connections to
    /// each of `ports`.
    pub fn begin(ports: &[SocketAddr], half_open: usize, seed: u64) -> std::io::Result<Self> {
        let (stop, connections) = (Arc::default(), Arc::default());
        let mut hostile = Hostile { stop, connections, threads: Vec::new(), half_open: Vec::new() };
        for (place, port) in ports.iter().enumerate() {
            for _ in 0..half_open {
                hostile.half_open.push(TcpStream::connect_timeout(port, ANSWER_WITHIN)?);
            }
            for (kind, attack) in [garbage as Attack, oversized, slow].into_iter().enumerate() {
                let rng = StdRng::seed_from_u64(seed ^ ((place * 8 + kind) as u64));
                hostile.spawn(*port, attack, rng);
            }
        }
        Ok(hostile)
    }

    /// Connections made so far.
    pub fn connections(&self) -> usize {
        self.half_open.len() + self.connections.load(Ordering::Relaxed)
    }

    fn spawn(&mut self, port: SocketAddr, attack: Attack, mut rng: StdRng) {
        let (stop, connections) = (Arc::clone(&self.stop), Arc::clone(&self.connections));
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // A refused or broken connection is what it should get.
                if let Ok(stream) = TcpStream::connect_timeout(&port, ANSWER_WITHIN) {
                    connections.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.set_read_timeout(Some(ANSWER_WITHIN));
                    let _ = stream.set_write_timeout(Some(ANSWER_WITHIN));
                    let _ = attack(stream, &mut rng, &stop);
                }
                // The test is about what the others feel, not about who has more processor.
                std::thread::sleep(Duration::from_millis(20));
            }
        }));
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a hostile client panicked");
        }
    }
}

type Attack = fn(TcpStream, &mut StdRng, &AtomicBool) -> std::io::Result<()>;

/// Random bytes, after the beginning of something known.
fn garbage(mut stream: TcpStream, rng: &mut StdRng, _: &AtomicBool) -> std::io::Result<()> {
    const BEGINNINGS: [&[u8]; 7] = [
        b"",
        // A TLS record of a ClientHello, of 16 KiB, and one longer than TLS knows.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x16\x03\x03\x40\x00",
        b"\x16\x03\x01\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: ",
        b"CONNECT web.example:80 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    stream.write_all(BEGINNINGS[rng.random_range(0..BEGINNINGS.len())])?;
    let mut bytes = vec![0; rng.random_range(1..20_000)];
    rng.fill(&mut bytes[..]);
    stream.write_all(&bytes)?;
    drain(stream)
}

/// A head, or a record after record, without end.
fn oversized(mut stream: TcpStream, rng: &mut StdRng, stop: &AtomicBool) -> std::io::Result<()> {
    let (beginning, piece): (&[u8], &[u8]) = match rng.random_range(0..3) {
        0 => (b"GET / HTTP/1.1\r\nHost: web.example\r\n", b"X-More: 0123456789abcdef0123456789abcdef\r\n"),
        1 => (b"GET /", b"0123456789abcdef"),
        // Handshake records that together announce a message of 16 MiB.
        _ => (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", b"\x16\x03\x01\x00\x04aaaa"),
    };
    stream.write_all(beginning)?;
    let chunk = piece.repeat(64 * 1024 / piece.len());
    for _ in 0..OVERSIZED_BYTES / chunk.len() {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        stream.write_all(&chunk)?;
    }
    drain(stream)
}

/// One byte at a time, of a beginning that could become a request.
fn slow(mut stream: TcpStream, rng: &mut StdRng, stop: &AtomicBool) -> std::io::Result<()> {
    let text: &[u8] = match rng.random_range(0..2) {
        0 => b"GET / HTTP/1.1\r\nHost: web.example\r\nX-Slow: 0123456789abcdef0123456789abcdef0123456789abcdef",
        _ => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    };
    for byte in text {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        stream.write_all(&[*byte])?;
        std::thread::sleep(SLOWLY);
    }
    drain(stream)
}

/// Reads what it is told, for a while.
fn drain(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
