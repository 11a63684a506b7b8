//! The connection of calls to one remote: raft messages that no stream takes, one a call, and whatever else this
//! process asks of that Server. The probe's stream keeps it, and says at once when it is broken (SPEC T2).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use p2p_proto::{convert, v1};
use p2p_server_raft::MessageKind;
use slog::debug;
use tonic::transport::Channel;

use super::queue::{Queued, Waiting};
use super::remote::{Remote, Way, channel_params, losing};
use super::{handshake, probe};
use crate::raft::wire;

/// Calls that have not been answered.
const IN_FLIGHT_MAX: usize = 4;
/// A message that takes longer helps nobody: raft has sent another one.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the connection until the remote is stopped.
pub(super) async fn run(remote: Arc<Remote>, mut waiting: Waiting) {
    let mut redial = remote.redial();
    loop {
        losing(&remote, Way::Pipeline, &mut waiting, redial.due()).await;
        let dialled = Box::pin(async {
            let (connection, address) =
                remote.dial(&channel_params()).await.map_err(|failed| failed.reason)?;
            Ok((probe::open(&remote, connection.channel.clone()).await?, connection.channel, address))
        });
        let dialled: Result<_, String> = losing(&remote, Way::Pipeline, &mut waiting, dialled).await;
        let reason = match dialled {
            Ok((probe, channel, address)) => {
                remote.set_calls(Some(channel.clone()));
                let reason = tokio::select! {
                    reason = probe.run(&remote) => reason,
                    () = call_all(&remote, &channel, &mut waiting) => "stopped".to_owned(),
                    () = remote.moved(&address) => "it has other addresses now".to_owned(),
                };
                remote.set_calls(None);
                redial.broke();
                reason
            }
            Err(reason) => reason,
        };
        debug!(remote.log, "no connection for calls to server"; "reason" => reason);
    }
}

/// A call under way; dropped before its answer, its message is lost.
struct Call<'a> {
    remote: &'a Remote,
    kind: MessageKind,
    answered: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.remote.failed(Way::Pipeline, [self.kind]);
        }
    }
}

async fn call_all(remote: &Remote, channel: &Channel, waiting: &mut Waiting) {
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            queued = waiting.next(), if calls.len() < IN_FLIGHT_MAX => match queued {
                Some(queued) => calls.push(call(remote, channel.clone(), queued)),
                None => return,
            },
            Some(()) = calls.next() => {}
        }
    }
}

async fn call(remote: &Remote, channel: Channel, queued: Queued) {
    let mut call = Call { remote, kind: queued.message.kind, answered: false };
    let (shared, member) = (&remote.shared, remote.member.borrow().clone());
    let hello = convert::hello_to(&shared.myself.hello(Some(member.id)));
    let messages = vec![wire::message_to(queued.message)];
    let mut request =
        tonic::Request::new(v1::RaftBatch { hello: Some(hello), messages, ..v1::RaftBatch::default() });
    request.set_timeout(CALL_TIMEOUT);
    let mut client = v1::raft_client::RaftClient::new(channel);
    match tokio::time::timeout(CALL_TIMEOUT, client.send(request)).await {
        Ok(Ok(_)) => {
            call.answered = true;
            let way = remote.metrics.way(Way::Pipeline);
            way.sent.inc();
            way.latency.observe(queued.at.elapsed().as_secs_f64());
        }
        Ok(Err(status)) => {
            let reason = handshake::learn(&shared.myself, &member, &shared.alarms, &status);
            debug!(remote.log, "raft message not sent"; "way" => Way::Pipeline.name(), "reason" => reason);
        }
        Err(_) => {
            debug!(remote.log, "raft message not sent"; "way" => Way::Pipeline.name(), "reason" => "no answer")
        }
    }
}
