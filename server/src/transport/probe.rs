//! How far away a Server is, in time and by the clock: a question each second over a stream of its own (SPEC T6).
//!
//! The difference of the clocks is what the answer says less the middle of the round trip; half a round trip is its
//! uncertainty. What the clocks of all say makes the cluster clock, see [`crate::cluster_clock`]; a single one that is off by
//! minutes is told to people (SPEC I5).

use std::sync::Arc;
use std::time::Duration;

use p2p_common::UnixMs;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::{CLOCK_OFF, ClockBase, unix_now};
use p2p_runtime::identity::CaFingerprint;
use slog::{info, warn};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::handshake;
use super::remote::Remote;
use crate::ca::CaHere;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// An answer that takes longer: the connection does not work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream of probes to one remote, taken there.
pub(super) struct Probe {
    questions: mpsc::Sender<v1::RaftProbe>,
    answers: Streaming<v1::RaftProbeReply>,
}

/// Opens the stream; done when the remote has taken it.
pub(super) async fn open(remote: &Remote, channel: Channel) -> Result<Probe, String> {
    let (shared, member) = (&remote.shared, remote.member.borrow().clone());
    let hello = convert::hello_to(&shared.myself.hello(Some(member.id)));
    let (questions, rx) = mpsc::channel(1);
    questions.try_send(v1::RaftProbe { hello: Some(hello) }).expect("the channel is new");
    let mut client = v1::raft_client::RaftClient::new(channel);
    let learn = |status| handshake::learn(&shared.myself, &member, &shared.alarms, &status);
    let opened = async {
        let mut answers = client.probe(ReceiverStream::new(rx)).await.map_err(learn)?.into_inner();
        let first = answers.message().await.map_err(learn)?.ok_or("the other server ended the stream")?;
        handshake::check_reply(&shared.myself, &member, &shared.alarms, first.hello)?;
        Ok(Probe { questions, answers })
    };
    timeout(ANSWER_TIMEOUT, opened).await.unwrap_or_else(|_| Err("no answer came in time".to_owned()))
}

impl Probe {
    /// Asks until the connection breaks, and says why it did.
    pub async fn run(mut self, remote: &Remote) -> String {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut warned = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // An answer nobody asked for, or the end.
                ended = self.answer(remote) => match ended {
                    Ok(_) => continue,
                    Err(reason) => return reason,
                },
            }
            let (asked, asked_unix) = (Instant::now(), unix_now());
            if self.questions.try_send(v1::RaftProbe { hello: None }).is_err() {
                return "the connection broke".to_owned();
            }
            let answer = match timeout(ANSWER_TIMEOUT, self.answer(remote)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(reason)) => return reason,
                Err(_) => return "no answer to a probe came in time".to_owned(),
            };
            let round_trip = asked.elapsed();
            let ahead_ms = ahead_ms(asked_unix, round_trip, UnixMs(answer.unix_ms));
            remote.metrics.round_trip.set(round_trip.as_secs_f64());
            remote.metrics.clock_ahead.set(ahead_ms as f64 / 1_000.0);
            let uptime = Duration::from_millis(answer.uptime_ms);
            let started = remote.started_again(uptime, remote.shared.clock.now());
            remote.shared.change_reached(remote.raft_id, |reached| {
                (reached.rtt, reached.clock_ahead_ms) = (Some(round_trip), Some(ahead_ms));
                reached.clock = Some(ClockBase::told(UnixMs(answer.unix_ms).plus(round_trip / 2)));
                reached.cas = cas_from(&answer.cas);
                reached.started = started.unwrap_or(reached.started);
            });
            let off = u128::from(ahead_ms.unsigned_abs()) > CLOCK_OFF.as_millis();
            if off && !warned {
                warn!(remote.log, "clocks differ";
                    "ahead_ms" => ahead_ms);
            } else if warned && !off {
                info!(remote.log, "clocks agree again"; "ahead_ms" => ahead_ms);
            }
            warned = off;
        }
    }

    /// The next answer, or why there is none. Cancel safe.
    async fn answer(&mut self, remote: &Remote) -> Result<v1::RaftProbeReply, String> {
        match self.answers.message().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the other server ended the stream".to_owned()),
            Err(status) => {
                let (shared, member) = (&remote.shared, remote.member.borrow().clone());
                Err(handshake::learn(&shared.myself, &member, &shared.alarms, &status))
            }
        }
    }
}

/// What the other has of the CAs; what makes no sense is left out.
fn cas_from(cas: &[v1::CaAtServer]) -> Arc<[CaHere]> {
    let read = cas.iter().take(CaHere::MAX).filter_map(|ca| {
        Some(CaHere {
            fingerprint: CaFingerprint(ca.fingerprint.as_ref().try_into().ok()?),
            has_key: ca.has_key,
            is_own: ca.is_own,
            sessions: ca.sessions,
        })
    });
    read.collect()
}

/// How far a clock that showed `theirs` in the middle of the round trip is ahead of ours.
fn ahead_ms(asked: UnixMs, round_trip: Duration, theirs: UnixMs) -> i64 {
    let middle = i128::from(asked.plus(round_trip / 2).0);
    let ahead = i128::from(theirs.0) - middle;
    ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_round_trip_is_compared() {
        let asked = UnixMs(1_000_000);
        let trip = Duration::from_millis(40);
        for (theirs, ahead) in [(1_000_020, 0), (1_005_020, 5_000), (400_020, -600_000), (0, -1_000_020)] {
            assert_eq!(ahead_ms(asked, trip, UnixMs(theirs)), ahead);
        }
        // Whatever a hostile one says.
        assert_eq!(ahead_ms(UnixMs(0), Duration::ZERO, UnixMs(u64::MAX)), i64::MAX);
        assert_eq!(ahead_ms(UnixMs(u64::MAX), Duration::MAX, UnixMs(0)), i64::MIN);
    }
}
