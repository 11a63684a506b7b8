//! What each attacker does, again and again.

use std::time::Duration;

use p2p_common::ClusterId;
use p2p_common::command::TokenRole;
use p2p_runtime::identity::{CaFingerprint, Token};
use p2p_runtime::tls::{ClientTlsStream, Dialed};
use rand::RngCore;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, call, frame, large_header,
};
use super::{Attack, Foe, drain};

/// Between two bytes of who is slow.
const SLOWLY: Duration = Duration::from_secs(1);
/// The beginning of a ClientHello, as a record.
const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
/// What anybody may call.
const ENROL: &str = "/p2p.v1.Enroll/Enroll";
const STATUS: &str = "/p2p.v1.Cluster/GetStatus";
/// The prefix of a gRPC message: not compressed, and how long it is.
const GIGABYTES: [u8; 5] = [0, 0x7f, 0xff, 0xff, 0xff];
const ENROLMENT: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// Attacks until the time is over.
pub(super) async fn run(attack: Attack, foe: Foe) {
    match attack {
        Attack::SlowTls | Attack::PeerSlowTls => foe.crowd(600, slow_tls).await,
        Attack::ConnectionFlood | Attack::PeerConnectionFlood => foe.crowd(2_000, silence).await,
        Attack::TlsGarbage => foe.crowd(64, garbage).await,
        Attack::SlowBody => foe.crowd(64, |foe| flood(foe, slow_bodies)).await,
        Attack::HeaderBomb => foe.crowd(16, |foe| flood(foe, header_bomb)).await,
        Attack::HeadBomb => foe.crowd(64, head_bomb).await,
        Attack::TokenGuessing => foe.crowd(16, |foe| flood(foe, guess)).await,
        Attack::OversizedMessage => foe.crowd(16, |foe| flood(foe, oversized)).await,
        Attack::EndlessMessage => foe.crowd(16, |foe| flood(foe, endless)).await,
        Attack::PingFlood => foe.crowd(16, |foe| flood(foe, pings)).await,
        Attack::ResetFlood => foe.crowd(16, |foe| flood(foe, resets)).await,
        Attack::SettingsFlood => foe.crowd(16, |foe| flood(foe, settings)).await,
    }
}

async fn slow_tls(foe: Foe) -> Option<()> {
    let mut stream = foe.connect().await?;
    for byte in HELLO.iter().chain(&[0xaa; 500]) {
        stream.write_all(&[*byte]).await.ok()?;
        foe.act();
        sleep(SLOWLY).await;
    }
    Some(())
}

async fn silence(foe: Foe) -> Option<()> {
    let stream = foe.connect().await?;
    foe.act();
    drain(stream).await;
    Some(())
}

async fn garbage(foe: Foe) -> Option<()> {
    let mut stream = foe.connect().await?;
    let mut bytes = HELLO.to_vec();
    bytes.resize(16 * 1024, 0);
    rand::rng().fill_bytes(&mut bytes[HELLO.len()..]);
    stream.write_all(&bytes).await.ok()?;
    foe.act();
    drain(stream).await;
    Some(())
}

async fn head_bomb(foe: Foe) -> Option<()> {
    let mut stream = foe.connect().await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").await.ok()?;
    let headers = b"X-More: 0123456789abcdef0123456789abcdef\r\n".repeat(400);
    loop {
        stream.write_all(&headers).await.ok()?;
        foe.act();
    }
}

/// The sending half of a connection to anybody's face.
struct Line {
    foe: Foe,
    write: WriteHalf<ClientTlsStream<TcpStream>>,
    /// What its certificate says of the cluster.
    cluster: ClusterId,
}

impl Line {
    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.write.write_all(bytes).await.ok()?;
        // The TLS library keeps what the socket does not take.
        self.write.flush().await.ok()?;
        self.foe.act();
        Some(())
    }
}

/// Begins HTTP/2 and lets `attack` write; what comes back is read, or the other side could not go on.
async fn flood<F>(foe: Foe, attack: impl FnOnce(Line) -> F) -> Option<()>
where
    F: Future<Output = Option<()>>,
{
    let Dialed { identity, stream } = foe.shake_hands().await?;
    let (read, mut write) = tokio::io::split(stream);
    write.write_all(PREFACE).await.ok()?;
    tokio::select! {
        () = drain(read) => None,
        done = attack(Line { foe, write, cluster: identity.cluster_id }) => done,
    }
}

/// The numbers of a client's streams.
fn streams() -> impl Iterator<Item = u32> {
    (1..1 << 30).step_by(2)
}

async fn slow_bodies(mut line: Line) -> Option<()> {
    let opened: Vec<u32> = streams().take(32).collect();
    for stream in &opened {
        line.send(&frame(HEADERS, END_HEADERS, *stream, &call(ENROL, None))).await?;
        line.send(&frame(DATA, 0, *stream, &ENROLMENT)).await?;
    }
    loop {
        for stream in &opened {
            line.send(&frame(DATA, 0, *stream, b"a")).await?;
        }
        sleep(SLOWLY).await;
    }
}

async fn header_bomb(mut line: Line) -> Option<()> {
    line.send(&frame(HEADERS, 0, 1, &call(ENROL, None))).await?;
    for number in 0.. {
        line.send(&frame(CONTINUATION, 0, 1, &large_header(number))).await?;
    }
    Some(())
}

async fn guess(mut line: Line) -> Option<()> {
    for stream in streams() {
        let token = Token::mint(TokenRole::Operator, line.cluster, CaFingerprint::of(b"any")).ok()?;
        line.send(&frame(HEADERS, END_HEADERS, stream, &call(STATUS, Some(&token.to_text())))).await?;
        line.send(&frame(DATA, 1, stream, &[0; 5])).await?;
    }
    Some(())
}

async fn oversized(mut line: Line) -> Option<()> {
    for stream in streams() {
        line.send(&frame(HEADERS, END_HEADERS, stream, &call(ENROL, None))).await?;
        line.send(&frame(DATA, 0, stream, &GIGABYTES)).await?;
        line.send(&frame(DATA, 0, stream, &[0; 16_000])).await?;
    }
    Some(())
}

async fn endless(mut line: Line) -> Option<()> {
    line.send(&frame(HEADERS, END_HEADERS, 1, &call(ENROL, None))).await?;
    line.send(&frame(DATA, 0, 1, &ENROLMENT)).await?;
    let bytes = frame(DATA, 0, 1, b"a").repeat(256);
    loop {
        line.send(&bytes).await?;
    }
}

async fn pings(mut line: Line) -> Option<()> {
    let bytes = frame(PING, 0, 0, &[7; 8]).repeat(256);
    loop {
        line.send(&bytes).await?;
    }
}

async fn resets(mut line: Line) -> Option<()> {
    let block = call(STATUS, None);
    for stream in streams() {
        let open = frame(HEADERS, END_HEADERS, stream, &block);
        line.send(&[open, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()).await?;
    }
    Some(())
}

async fn settings(mut line: Line) -> Option<()> {
    let bytes = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(256);
    loop {
        line.send(&bytes).await?;
    }
}
