//! One raft snapshot to one Server: in chunks, with a hash, over a connection of its own, so that it delays no
//! heartbeat.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::member::Member;
use p2p_proto::{convert, v1};
use p2p_runtime::grpc::{self, ChannelParams};
use p2p_runtime::tls::{Connector, Expect};
use p2p_server_raft::Message;
use prost::Message as _;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Myself;
use crate::raft::wire;

/// A message of this size passes every limit on the way, and memory per snapshot stays small.
const CHUNK_BYTES: usize = 256 * 1024;
/// More than the replicated state can become within its own bounds.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
/// For the whole: 64 MiB at 10 Mbit/s take 54 s.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Sends `message`, which holds a snapshot; done when the receiver has taken it. Says how many bytes it was.
pub(super) async fn send(myself: &Myself, member: &Member, message: Message) -> Result<usize, String> {
    match tokio::time::timeout(TIMEOUT, send_now(myself, member, message)).await {
        Ok(sent) => sent,
        Err(_) => Err(format!("it took more than {} s", TIMEOUT.as_secs())),
    }
}

async fn send_now(myself: &Myself, member: &Member, message: Message) -> Result<usize, String> {
    let encoded = tokio::task::spawn_blocking(move || wire::message_to(message).encode_to_vec());
    let bytes = bytes::Bytes::from(encoded.await.map_err(|e| e.to_string())?);
    let hash = Sha256::digest(&bytes);
    let expect = Expect::Node { id: member.id, key_hash: Some(member.key_hash) };
    let connector = Connector::node(Arc::clone(&myself.credentials), expect);
    let mut last = "it has no address".to_owned();
    for address in &member.addresses {
        let connection = match grpc::connect(&connector, address, &ChannelParams::default()).await {
            Ok(connection) => connection,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let (tx, rx) = mpsc::channel(2);
        let mut client = v1::raft_client::RaftClient::new(connection.channel);
        let hello = convert::hello_to(&myself.hello(Some(member.id)));
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
        return taken.map(|_| bytes.len()).map_err(|status| status.message().to_owned());
    }
    Err(last)
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
