//! The way to raft for everyone else in this process: [`Proposer`] proposes, reads and asks, here or at the leader.
//!
//! A proposal may be repeated: it carries a request id under which it applies once (SPEC C7). So whatever is
//! retriable, a lost leader or an unknown outcome, is tried again until the deadline; the caller gets what
//! became of it, or an error that says whether something may still become of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p2p_common::ErrorCode;
use p2p_common::command::{Command, Outcome};
use p2p_common::member::{MasterTitle, RaftId};
use p2p_proto::convert;
use p2p_server_raft::{
    COMMAND_BYTES_MAX, MemberProgress, MembershipChange, ProposalFailure, ReadFailure, TransferRefused,
};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::mailbox::{Mailbox, MailboxFull, Request};
use super::view::View;
use crate::transport::Remotes;

/// A proposal is given up after this: several elections fit, and a client's patience ends about here.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries; doubled up to the second.
const RETRY_REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// Why raft gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing happened.
    #[error("there is no leader: is a quorum of servers running and connected? Try again")]
    NoLeader,
    /// Nothing happened; only at the Server that was asked to lead.
    #[error("this server does not lead")]
    NotLeader,
    /// Nothing happened.
    #[error("too much is waiting for raft: try again later")]
    Busy,
    /// Nothing happened: this process is ending.
    #[error("this server is stopping")]
    Stopping,
    /// It may have happened.
    #[error("the outcome is unknown: ask what is there now, or repeat the same request")]
    OutcomeUnknown,
    /// Nothing happened, and nothing will.
    #[error("{0}")]
    Refused(String),
    /// What the leader said.
    #[error("{message}")]
    Leader {
        /// Its code.
        code: ErrorCode,
        /// Its words.
        message: String,
    },
}

impl ProposeError {
    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            ProposeError::NoLeader | ProposeError::Stopping => ErrorCode::Unavailable,
            ProposeError::NotLeader => ErrorCode::NotLeader,
            ProposeError::Busy => ErrorCode::Exhausted,
            ProposeError::OutcomeUnknown => ErrorCode::OutcomeUnknown,
            ProposeError::Refused(_) => ErrorCode::BadRequest,
            ProposeError::Leader { code, .. } => *code,
        }
    }

    /// Whether another try may get an answer; safe for what carries a request id.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self.code(),
            ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::Exhausted | ErrorCode::OutcomeUnknown
        ) && *self != ProposeError::Stopping
    }
}

impl From<MailboxFull> for ProposeError {
    fn from(_: MailboxFull) -> Self {
        ProposeError::Busy
    }
}

impl From<ProposalFailure> for ProposeError {
    fn from(failure: ProposalFailure) -> Self {
        match failure {
            ProposalFailure::NotLeader { .. } | ProposalFailure::HandingOver => ProposeError::NotLeader,
            ProposalFailure::Busy => ProposeError::Busy,
            ProposalFailure::OutcomeUnknown => ProposeError::OutcomeUnknown,
            ProposalFailure::TooLarge { .. } | ProposalFailure::Refused(_) => {
                ProposeError::Refused(failure.to_string())
            }
        }
    }
}

impl From<ReadFailure> for ProposeError {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Busy => ProposeError::Busy,
            ReadFailure::TimedOut => ProposeError::NoLeader,
        }
    }
}

/// What is known of a request after some attempts. Once an attempt may have got through, whoever lost track of it, only
/// an answer makes known what became of the request.
#[derive(Debug)]
struct Known {
    last: ProposeError,
}

impl Known {
    fn nothing() -> Self {
        Known { last: ProposeError::NoLeader }
    }

    /// Takes in how an attempt failed. Returns what to tell the caller when no other one would help.
    fn note(&mut self, error: ProposeError) -> Option<ProposeError> {
        let unknown = self.last.code() == ErrorCode::OutcomeUnknown;
        if !error.is_retriable() {
            return Some(if unknown { ProposeError::OutcomeUnknown } else { error });
        }
        if !unknown {
            self.last = error;
        }
        None
    }
}

/// Raft as the rest of the process sees it. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Proposer {
    mailbox: Mailbox,
    view: watch::Receiver<Arc<View>>,
    master: watch::Receiver<Option<MasterTitle>>,
    remotes: Remotes,
    /// Proposals and reads of this process; closed when it takes no more.
    under_way: TaskTracker,
}

impl Proposer {
    /// Speaks to the raft thread behind `mailbox`, and to the others through `remotes`.
    pub fn new(
        mailbox: Mailbox,
        view: watch::Receiver<Arc<View>>,
        master: watch::Receiver<Option<MasterTitle>>,
        remotes: Remotes,
    ) -> Self {
        Proposer { mailbox, view, master, remotes, under_way: TaskTracker::new() }
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Every view from now on, the newest only.
    pub fn watch_view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Every Master from now on, the newest only.
    pub fn watch_master(&self) -> watch::Receiver<Option<MasterTitle>> {
        self.master.clone()
    }

    /// The Master now.
    pub fn master(&self) -> Option<MasterTitle> {
        self.master.borrow().clone()
    }

    /// Takes no proposal and no read of this process from now on, and returns when those under way have come to
    /// their end: for as long, raft and its transport must live.
    pub async fn drain(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    fn begin(&self) -> Result<TaskTrackerToken, ProposeError> {
        let token = self.under_way.token();
        if self.under_way.is_closed() { Err(ProposeError::Stopping) } else { Ok(token) }
    }

    /// Runs a command through raft, whoever leads, and returns when it is applied here as well.
    ///
    /// # Errors
    /// When there is no leader, or what became of it is not known.
    pub async fn propose(&self, command: Command) -> Result<(u64, Outcome), ProposeError> {
        let _under_way = self.begin()?;
        let command = Bytes::from(convert::encode_command(&command));
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::Refused(format!("the request has {} bytes, too many", command.len())));
        }
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let (mut rest, rest_max) = RETRY_REST;
        let mut known = Known::nothing();
        loop {
            let attempt = match timeout_at(deadline, self.attempt(&command, deadline)).await {
                Ok(attempt) => attempt,
                // The one under way may have got through.
                Err(_) => return Err(ProposeError::OutcomeUnknown),
            };
            match attempt {
                Ok((index, outcome)) => {
                    self.wait_applied(index, deadline).await;
                    return Ok((index, outcome));
                }
                Err(error) => {
                    if let Some(end) = known.note(error) {
                        return Err(end);
                    }
                }
            }
            if Instant::now() + rest >= deadline {
                return Err(known.last);
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(rest_max);
        }
    }

    async fn attempt(&self, command: &Bytes, deadline: Instant) -> Result<(u64, Outcome), ProposeError> {
        let view = self.view();
        match view.status.leader {
            None => Err(ProposeError::NoLeader),
            Some(leader) if leader == view.raft_id => self.propose_here(command.clone()).await,
            Some(leader) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let mut views = self.watch_view();
                tokio::select! {
                    answer = self.remotes.propose_at(leader, command.clone(), left) => answer,
                    // It may be frozen or cut off, and would keep us waiting in vain. The next leader does the same
                    // request once, whatever became of it.
                    () = async { drop(views.wait_for(|view| view.status.leader != Some(leader)).await) } => {
                        Err(ProposeError::OutcomeUnknown)
                    }
                }
            }
        }
    }

    /// Runs an encoded command through raft if this Server leads.
    ///
    /// # Errors
    /// When it does not, or what became of it is not known.
    pub async fn propose_here(&self, command: Bytes) -> Result<(u64, Outcome), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.request(Request::Propose { command, reply })?;
        Ok(answer.await.map_err(|_| ProposeError::OutcomeUnknown)??)
    }

    /// Makes sure that the published view has everything that was acknowledged anywhere before this call (SPEC
    /// C7). Returns an index it holds.
    ///
    /// # Errors
    /// When no leader confirms it in time.
    pub async fn read_barrier(&self) -> Result<u64, ProposeError> {
        let _under_way = self.begin()?;
        let (reply, answer) = oneshot::channel();
        self.mailbox.request(Request::Read { reply })?;
        Ok(answer.await.map_err(|_| ProposeError::Stopping)??)
    }

    /// Changes the members of the group; only the leader can.
    ///
    /// # Errors
    /// When it does not lead, or the change is not safe now.
    pub async fn change_members(&self, change: MembershipChange) -> Result<(), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.request(Request::Change { change, reply })?;
        Ok(answer.await.map_err(|_| ProposeError::OutcomeUnknown)??)
    }

    /// Hands the leadership over; only the leader can. Returns when that has begun.
    ///
    /// # Errors
    /// When it does not lead or `to` has no vote.
    pub async fn transfer(&self, to: RaftId) -> Result<(), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.request(Request::Transfer { to, reply })?;
        let refused = |refused: TransferRefused| match refused {
            TransferRefused::NotLeader => ProposeError::NotLeader,
            TransferRefused::NotAVoter(_) => ProposeError::Refused(refused.to_string()),
        };
        answer.await.map_err(|_| ProposeError::Stopping)?.map_err(refused)
    }

    /// The other members as the leader sees them; empty on others.
    ///
    /// # Errors
    /// When raft is too busy or ending.
    pub async fn progress(&self) -> Result<Vec<MemberProgress>, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.request(Request::Progress { reply })?;
        answer.await.map_err(|_| ProposeError::Stopping)
    }

    /// Waits until this Server has applied `index`, at most until `deadline`.
    async fn wait_applied(&self, index: u64, deadline: Instant) {
        let mut view = self.view.clone();
        // The outcome is known either way; without it the next read here may be older.
        let _ = timeout_at(deadline, view.wait_for(|view| view.applied >= index)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(code: ErrorCode) -> ProposeError {
        ProposeError::Leader { code, message: "the leader said so".to_owned() }
    }

    #[test]
    fn what_may_have_happened_is_never_said_not_to_have() {
        let refused = || ProposeError::Refused("no".to_owned());
        for unknown in [ProposeError::OutcomeUnknown, leader(ErrorCode::OutcomeUnknown)] {
            for later in [ProposeError::NoLeader, ProposeError::NotLeader, leader(ErrorCode::NotLeader)] {
                let mut known = Known::nothing();
                assert_eq!(known.note(ProposeError::Busy), None);
                assert_eq!(known.note(unknown.clone()), None);
                assert_eq!(known.note(later), None);
                assert_eq!(known.last.code(), ErrorCode::OutcomeUnknown);
                assert_eq!(known.note(refused()), Some(ProposeError::OutcomeUnknown));
            }
        }
        let mut known = Known::nothing();
        assert_eq!(known.note(ProposeError::NotLeader), None);
        assert_eq!(known.last, ProposeError::NotLeader);
        assert_eq!(known.note(refused()), Some(refused()));
    }
}
