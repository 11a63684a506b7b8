//! Knocks at the Servers that a forced recovery left behind, until they are members again.
//!
//! They are in no table any more, so nobody would dial them; but one of them may live on, and must learn that its
//! epoch is over, or may have been recovered as well, and then both must be told that there are two histories. A knock
//! is a hello on a stream that is never taken: the refusal, which carries the other side's hello, is what it is for.
//!
//! Source: SPEC C9, C11. Owner of: nothing; alarms collect what is learned.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::member::Member;
use p2p_proto::{convert, v1};
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::tls::{Connector, Expect};
use slog::debug;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Remotes, handshake};
use crate::raft::View;

/// Between two rounds over all of them: soon enough for whoever watches a Server come back.
const EVERY: Duration = Duration::from_secs(5);
/// For one of them.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Remotes {
    /// Tries to reach each of `former` that is no member, again and again, until `stop`.
    pub async fn knock(self, former: Vec<Member>, view: watch::Receiver<Arc<View>>, stop: CancellationToken) {
        while !former.is_empty() {
            for member in &former {
                let is_member = view.borrow().state.members.contains_key(&member.id);
                if is_member {
                    self.shared.alarms.settled(member.id);
                    continue;
                }
                for address in &member.addresses {
                    let knocked = tokio::select! {
                        knocked = tokio::time::timeout(TIMEOUT, self.knock_at(member, address)) => knocked,
                        () = stop.cancelled() => return,
                    };
                    let reason = knocked.unwrap_or_else(|_| "no answer".to_owned());
                    debug!(self.shared.log, "knocked at a former member"; "name" => &member.name,
                        "address" => %address, "answer" => reason);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY.mul_f64(rand::random_range(0.75..1.25))) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn knock_at(&self, member: &Member, address: &HostPort) -> String {
        let myself = &self.shared.myself;
        let expect = Expect::Node { id: member.id, key_hash: Some(member.key_hash) };
        let connector = Connector::node(Arc::clone(&myself.credentials), expect);
        let connection = match connect(&connector, address, &ChannelParams::default()).await {
            Ok(connection) => connection,
            Err(error) => return error.to_string(),
        };
        let hello = convert::hello_to(&myself.hello(Some(member.id)));
        let first = v1::RaftBatch { hello: Some(hello), ..v1::RaftBatch::default() };
        let mut client = v1::raft_client::RaftClient::new(connection.channel);
        match client.stream(tokio_stream::once(first)).await {
            Err(refused) => handshake::learn(myself, member, &self.shared.alarms, &refused),
            Ok(_) => "taken: it is a member".to_owned(),
        }
    }
}
