//! Raft snapshots to one Server, one at a time: in chunks, with a hash, over a connection of its own, so that it
//! delays no heartbeat. Whatever becomes of one is reported to raft, which waits for that.

use std::sync::Arc;
use std::time::Duration;

use p2p_proto::{convert, v1};
use p2p_runtime::grpc::ChannelParams;
use p2p_server_raft::{Message, MessageKind};
use prost::Message as _;
use sha2::{Digest, Sha256};
use slog::info;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::handshake;
use super::queue::Waiting;
use super::remote::{Remote, Way};
use crate::raft::wire;

/// A message of this size passes every limit on the way, and memory per snapshot stays small.
const CHUNK_BYTES: usize = 256 * 1024;
/// More than the replicated state can become within its own bounds.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
/// For the whole: 64 MiB at 10 Mbit/s take 54 s.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Dials of one snapshot: the next address each time, and then raft tries again.
const DIALS_MAX: usize = 3;

/// Sends what waits until the remote is stopped.
pub(super) async fn run(remote: Arc<Remote>, mut waiting: Waiting) {
    while let Some(queued) = waiting.next().await {
        let mut report = Report { remote: &remote, taken: false };
        let sent = tokio::time::timeout(TIMEOUT, send(&remote, queued.message)).await;
        match sent.unwrap_or_else(|_| Err(format!("it took more than {} s", TIMEOUT.as_secs()))) {
            Ok(bytes) => {
                report.taken = true;
                let way = remote.metrics.way(Way::Snapshot);
                way.sent.inc();
                way.latency.observe(queued.at.elapsed().as_secs_f64());
                info!(remote.log, "snapshot sent"; "bytes" => bytes);
            }
            Err(reason) => info!(remote.log, "snapshot not sent"; "reason" => reason),
        }
    }
}

/// What raft is told of a snapshot, also when it is given up because the remote is stopped.
struct Report<'a> {
    remote: &'a Remote,
    taken: bool,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if self.taken {
            self.remote.shared.mailbox.snapshot_report(self.remote.raft_id, true);
        } else {
            self.remote.failed(Way::Snapshot, [MessageKind::Snapshot]);
        }
    }
}

/// Sends `message`, which holds a snapshot; done when the receiver has taken it. Says how many bytes it was.
async fn send(remote: &Remote, message: Message) -> Result<usize, String> {
    let encoded = tokio::task::spawn_blocking(move || {
        let bytes = bytes::Bytes::from(wire::message_to(message).encode_to_vec());
        (Sha256::digest(&bytes), bytes)
    });
    let (hash, bytes) = encoded.await.map_err(|e| e.to_string())?;
    let mut dials = 0;
    let connection = loop {
        dials += 1;
        match Box::pin(remote.dial(&ChannelParams::default())).await {
            Ok((connection, _)) => break connection,
            Err(failed) if dials == DIALS_MAX => return Err(failed.reason),
            Err(_) => {}
        }
    };
    let (shared, member) = (&remote.shared, remote.member.borrow().clone());
    let (tx, rx) = mpsc::channel(2);
    let mut client = v1::raft_client::RaftClient::new(connection.channel);
    let hello = convert::hello_to(&shared.myself.hello(Some(member.id)));
    let feed = async {
        let chunks = bytes.len().div_ceil(CHUNK_BYTES);
        for (number, start) in (1..).zip((0..bytes.len()).step_by(CHUNK_BYTES)) {
            let chunk = v1::RaftSnapshotChunk {
                hello: (number == 1).then(|| hello.clone()),
                data: bytes.slice(start..bytes.len().min(start + CHUNK_BYTES)),
                sha256: if number == chunks { hash.to_vec().into() } else { bytes::Bytes::new() },
            };
            if tx.send(chunk).await.is_err() {
                return;
            }
        }
        drop(tx);
    };
    let (taken, ()) = tokio::join!(client.send_snapshot(ReceiverStream::new(rx)), feed);
    let learn = |status| handshake::learn(&shared.myself, &member, &shared.alarms, &status);
    taken.map(|_| bytes.len()).map_err(learn)
}

/// Puts a snapshot together again on the receiving side.
#[derive(Debug, Default)]
pub struct Assembly {
    bytes: Vec<u8>,
    hash: Option<bytes::Bytes>,
}

impl Assembly {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// When the whole is too large, or goes on after its end.
    pub fn add(&mut self, chunk: &v1::RaftSnapshotChunk) -> Result<(), &'static str> {
        if self.hash.is_some() {
            return Err("it goes on after its hash");
        }
        if self.bytes.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
            return Err("it is larger than 64 MiB");
        }
        self.bytes.extend_from_slice(&chunk.data);
        self.hash = Some(chunk.sha256.clone()).filter(|hash| !hash.is_empty());
        Ok(())
    }

    /// The message, when it is whole.
    ///
    /// # Errors
    /// When it is not, or not what was sent.
    pub fn finish(self) -> Result<Message, String> {
        let hash = self.hash.ok_or("it has no end")?;
        if Sha256::digest(&self.bytes)[..] != hash[..] {
            return Err("its hash does not fit".to_owned());
        }
        let message = v1::RaftMessage::decode(bytes::Bytes::from(self.bytes)).map_err(|e| e.to_string())?;
        wire::message_from(message).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_server_raft::{Membership, MessageKind, Snapshot};

    fn message() -> Message {
        let membership = Membership::sole_voter(1);
        let snapshot = Snapshot { index: 5, term: 2, membership, data: vec![7; 1000].into() };
        Message {
            kind: MessageKind::Snapshot,
            from: 1,
            to: 2,
            term: 2,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            commit_term: 0,
            snapshot: Some(snapshot),
            reject: false,
            reject_hint: 0,
            context: bytes::Bytes::new(),
        }
    }

    fn chunk(data: &[u8], sha256: &[u8]) -> v1::RaftSnapshotChunk {
        v1::RaftSnapshotChunk { hello: None, data: data.to_vec().into(), sha256: sha256.to_vec().into() }
    }

    #[test]
    fn every_cut_comes_back_whole_and_no_prefix_does() {
        let bytes = wire::message_to(message()).encode_to_vec();
        let hash = Sha256::digest(&bytes);
        for cut in 0..bytes.len() {
            let mut whole = Assembly::default();
            whole.add(&chunk(&bytes[..cut], &[])).unwrap();
            whole.add(&chunk(&bytes[cut..], &hash)).unwrap();
            assert_eq!(whole.finish(), Ok(message()));
            let mut part = Assembly::default();
            part.add(&chunk(&bytes[..cut], &hash)).unwrap();
            assert!(part.finish().is_err());
        }
        let mut endless = Assembly::default();
        endless.add(&chunk(&bytes, &[])).unwrap();
        assert!(endless.finish().is_err());
    }

    #[test]
    fn what_goes_on_or_is_too_large_is_refused() {
        let mut assembly = Assembly::default();
        assembly.add(&chunk(b"a", &[0; 32])).unwrap();
        assert!(assembly.add(&chunk(b"b", &[0; 32])).is_err());
        let mut assembly = Assembly::default();
        let large = chunk(&vec![0; SNAPSHOT_BYTES_MAX], &[]);
        assembly.add(&large).unwrap();
        assert!(assembly.add(&chunk(b"b", &[])).is_err());
    }
}
