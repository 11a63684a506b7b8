//! Requests at a fixed rate, whatever the answers take (an open loop): what latency is at a load that both of
//! two contestants can carry.
//!
//! Each connection has a thread and a timetable of its own. A request's time counts from when the timetable
//! wanted it sent, so that an answer that is late also charges the requests that had to wait behind it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// How long a single answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Asks `addr` for `target` of `host` `per_second` times a second over `clients` kept connections, for
/// `length`: 99 % of the answers took no longer than this, in milliseconds.
///
/// # Errors
/// When any answer is not a 200 that ends with `body_bytes` bytes of body.
pub fn paced_p99_ms(
    (addr, host, target): (SocketAddr, &str, &str),
    per_second: f64,
    clients: usize,
    length: Duration,
    body_bytes: usize,
) -> anyhow::Result<f64> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let interval = Duration::from_secs_f64(clients as f64 / per_second);
    // The connections are there before the first request is due.
    let start = Instant::now() + Duration::from_millis(100);
    let mut micros = std::thread::scope(|scope| {
        let request = &request;
        let threads: Vec<_> = (0..clients)
            .map(|nth| {
                let first = start + interval.mul_f64(nth as f64 / clients as f64);
                scope.spawn(move || client(addr, request, body_bytes, (first, interval, start + length)))
            })
            .collect();
        let mut micros = Vec::new();
        for thread in threads {
            micros.extend(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        anyhow::Ok(micros)
    })?;
    ensure!(!micros.is_empty(), "no answer in {length:?}");
    micros.sort_unstable();
    Ok(f64::from(micros[((micros.len() - 1) as f64 * 0.99) as usize]) / 1e3)
}

fn client(
    addr: SocketAddr,
    request: &[u8],
    body_bytes: usize,
    (mut due, interval, end): (Instant, Duration, Instant),
) -> anyhow::Result<Vec<u32>> {
    // By default a sleep may end 50 us late, which is as long as an answer takes.
    // SAFETY: this option takes a number and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let mut stream = TcpStream::connect(addr).with_context(|| format!("connecting to {addr}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    let mut micros = Vec::with_capacity(10_000);
    let mut buffer = vec![0; 64 * 1024];
    while due < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request).context("sending a request")?;
        let (mut have, mut whole) = (0, None);
        while whole != Some(have) {
            ensure!(whole.is_none_or(|whole| have < whole), "the answer is too long");
            let read = stream.read(&mut buffer[have..]).context("reading an answer")?;
            ensure!(read > 0, "the connection ended within an answer");
            have += read;
            let head = buffer[..have].windows(4).position(|window| window == b"\r\n\r\n");
            whole = whole.or(head.map(|index| index + 4 + body_bytes));
        }
        ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer[..have]));
        micros.push(u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX));
        due += interval;
    }
    Ok(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    #[test]
    fn keeps_the_rate_and_charges_who_is_late() {
        let backend = Backend::start("b").unwrap();
        let length = Duration::from_millis(200);
        let run = |target, rate, bytes| paced_p99_ms((backend.addr(), "a", target), rate, 4, length, bytes);
        assert!(run("/bytes/100", 200.0, 100).unwrap() > 0.0);
        let asked = backend.requests();
        assert!((30..=44).contains(&asked), "{asked} requests in 200 ms at 200 a second");
        assert!(run("/bytes/100", 200.0, 99).is_err());
        assert!(run("/nowhere", 200.0, 13).is_err());
    }
}
