//! The care for the raft group: table C says who is a member, the group follows, one change at a time; and what
//! operators ask of it: who is where, another leader, a member taken out.
//!
//! ```text
//! operator ──► any Server ──► the leader: marked as leaving ──► no vote ──► out of table C ──► out of the group
//!                                             └── tend: autopilot ──► raft ──┘                      ▲
//!                                                        └──────────────────────────────────────────┘
//! ```
//!
//! Whoever is taken out loses its vote while all still speak with it: a voter nobody speaks with any more would count
//! for a quorum it cannot help to reach. The mark is the leader's own and passes with time: when the leader changes,
//! whoever asked asks again, or the member gets its vote back.
//!
//! Which change is due is `p2p-server-core`'s autopilot; whether it is safe now, the raft core's. What is refused is
//! asked for again. Source: SPEC C4, C8, C10.

mod ask;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::member::{MemberRole, RaftId};
use p2p_common::{ErrorCode, NodeId, Now, RequestId};
use p2p_runtime::clock::Clock;
use p2p_server_core::{Autopilot, GroupChange, MemberHealth, RemovalRefused, check_removal};
use p2p_server_raft::{MemberProgress, MembershipChange, RaftConfig};
use slog::{Logger, debug, info};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::raft::{ProposeError, Proposer, View};
use crate::transport::Remotes;

/// How often the group is looked at while nothing happens: a learner catches up without an event here.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a member stays marked as leaving: its vote is gone after a moment, or cannot be taken now.
const LEAVING_FOR: Duration = Duration::from_secs(5);
/// Between two looks at whether it has lost its vote.
const LEAVING_LOOK: Duration = Duration::from_millis(20);
/// The only vote moves to a Server heard within so many ticks: once begun, nothing is decided without it.
const HEIR_SILENT_TICKS: u64 = 4;
/// Until another one leads: an election, should the hand-over get lost.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// The group as this Server cares for it. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Group {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    proposer: Proposer,
    remotes: Remotes,
    limits: RaftConfig,
    clock: Clock,
    /// Who shall lose its vote, and until when. Looked at while this Server leads.
    leaving: watch::Sender<BTreeMap<RaftId, Now>>,
    /// This Server was asked to leave, and has.
    left: CancellationToken,
    log: Logger,
}

impl Group {
    /// The group behind `proposer`. [`Group::tend`] must run.
    pub fn new(proposer: Proposer, remotes: Remotes, limits: RaftConfig, clock: Clock, log: Logger) -> Self {
        let (leaving, left) = (watch::Sender::default(), CancellationToken::new());
        Group { shared: Arc::new(Shared { proposer, remotes, limits, clock, leaving, left, log }) }
    }

    /// Resolves when this Server was asked to leave its cluster, and has left.
    pub async fn left(&self) {
        self.shared.left.cancelled().await;
    }

    /// Keeps the group as table C and the number of voters ask, until `stop`.
    pub async fn tend(self, stop: CancellationToken) {
        let Shared { proposer, clock, leaving, log, .. } = &*self.shared;
        let (mut view, mut leaving) = (proposer.watch_view(), leaving.subscribe());
        let (mut pilot, mut said) = (Autopilot::new(), String::new());
        loop {
            let now = view.borrow_and_update().clone();
            leaving.mark_unchanged();
            if !now.membership.is_joint() {
                pilot.handle_voters(&now.membership.voters, clock.now());
            }
            if !now.leads() {
                pilot.handle_not_leading();
            } else if !now.membership.is_joint() {
                let words =
                    self.step(&mut pilot, &now).await.map_or_else(|e| e.to_string(), |()| String::new());
                if !words.is_empty() && words != said {
                    debug!(log, "member change not made yet"; "reason" => &words);
                }
                said = words;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                _ = leaving.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn step(&self, pilot: &mut Autopilot, view: &View) -> Result<(), ProposeError> {
        let Shared { clock, log, .. } = &*self.shared;
        let members = self.health(view).await?;
        let replace_after = view.state.voter_replace_after();
        match pilot.next_change(view.raft_id, &members, replace_after, clock.now()) {
            None => Ok(()),
            Some(change) => {
                info!(log, "changing the group"; "change" => ?change);
                self.carry_out(change).await
            }
        }
    }

    /// Asks raft for a change.
    ///
    /// # Errors
    /// When this Server does not lead, or the change is not safe now.
    pub async fn carry_out(&self, change: GroupChange) -> Result<(), ProposeError> {
        let proposer = &self.shared.proposer;
        let change = match change {
            GroupChange::HandOver(to) => return proposer.transfer(to).await,
            GroupChange::AddLearner(id) => MembershipChange::AddLearner(id),
            GroupChange::SetVoters(voters) => {
                self.check_heir(&voters).await?;
                MembershipChange::SetVoters(voters)
            }
            GroupChange::Remove { id, voters } => MembershipChange::Remove { id, voters },
        };
        proposer.change_members(change).await
    }

    /// Silence of half a second is enough for most; whoever is to decide alone must be there now.
    async fn check_heir(&self, voters: &BTreeSet<RaftId>) -> Result<(), ProposeError> {
        let Shared { proposer, .. } = &*self.shared;
        let me = proposer.view().raft_id;
        let Some(heir) = voters.first().filter(|heir| voters.len() == 1 && **heir != me) else {
            return Ok(());
        };
        let progress = proposer.progress().await?;
        let seen = progress.iter().find(|member| member.raft_id == *heir);
        let there =
            seen.and_then(|member| member.silent_ticks).is_some_and(|ticks| ticks <= HEIR_SILENT_TICKS);
        if there { Ok(()) } else { Err(refused("the one to vote alone was not heard just now")) }
    }

    /// How all members are, as this Server, leading, sees them.
    ///
    /// # Errors
    /// When raft is too busy or ending.
    pub async fn health(&self, view: &View) -> Result<Vec<MemberHealth>, ProposeError> {
        let Shared { proposer, remotes, limits, clock, leaving, .. } = &*self.shared;
        let progress = proposer.progress().await?;
        let reach = Arc::clone(&remotes.reach().borrow());
        let now = clock.now();
        let leaving: BTreeSet<RaftId> =
            leaving.borrow().iter().filter(|(_, until)| **until > now).map(|(id, _)| *id).collect();
        let registered: BTreeSet<RaftId> = view.state.members.values().map(|member| member.raft_id).collect();
        let known = registered.union(&view.membership.all()).copied().collect::<Vec<_>>();
        let of = |raft_id: RaftId| {
            let me = raft_id == view.raft_id;
            let seen = progress.iter().find(|p| p.raft_id == raft_id);
            let heard =
                |p: &MemberProgress| p.silent_ticks.is_some_and(|ticks| ticks <= limits.election_ticks);
            let caught_up = |p: &MemberProgress| {
                p.behind <= limits.caught_up_entries && !p.receives_snapshot && p.matched > 0
            };
            let reached = reach.of.get(&raft_id);
            MemberHealth {
                raft_id,
                role: view.role_of(raft_id),
                registered: registered.contains(&raft_id),
                leaving: leaving.contains(&raft_id),
                caught_up: me || seen.is_some_and(caught_up),
                // A process that died is known to be gone long before its silence says so.
                reachable: me || (reached.is_some() && seen.is_some_and(heard)),
                started: if me { Some(clock.started()) } else { reached.map(|reached| reached.started) },
            }
        };
        Ok(known.into_iter().map(of).collect())
    }

    /// How many entries each other member lacks; empty at who does not lead.
    ///
    /// # Errors
    /// When raft is too busy or ending.
    pub async fn behind_here(&self) -> Result<BTreeMap<RaftId, u64>, ProposeError> {
        let progress = self.shared.proposer.progress().await?;
        Ok(progress.into_iter().map(|member| (member.raft_id, member.behind)).collect())
    }

    /// Hands the leadership of this Server to `to`, or to a voter that is up to date. Returns who leads then.
    ///
    /// # Errors
    /// When it does not lead, `to` cannot, or nobody has taken over in time.
    pub async fn transfer_here(&self, to: Option<RaftId>) -> Result<RaftId, ProposeError> {
        let Shared { proposer, log, .. } = &*self.shared;
        let view = proposer.view();
        if !view.leads() {
            return Err(ProposeError::NotLeader);
        }
        let members = self.health(&view).await?;
        let fit =
            |member: &&MemberHealth| member.reachable && member.caught_up && member.raft_id != view.raft_id;
        let to = match to {
            Some(to) if to == view.raft_id => return Ok(to),
            Some(to) if view.role_of(to) != MemberRole::Voter => {
                return Err(refused("it has no vote, and only a voter leads: see `p2p-server members`"));
            }
            Some(to) if !members.iter().filter(fit).any(|member| member.raft_id == to) => {
                return Err(refused("it is not running, not connected, or lacks too much of the log"));
            }
            Some(to) => to,
            None => {
                let voters = members.iter().filter(fit).filter(|member| member.role == MemberRole::Voter);
                let best = voters.map(|member| member.raft_id).min();
                best.ok_or_else(|| refused("no other voter is running and up to date"))?
            }
        };
        info!(log, "handing the leadership over"; "to" => to);
        proposer.transfer(to).await?;
        let mut views = proposer.watch_view();
        let moved = views.wait_for(|view| view.status.leader.is_some_and(|leader| leader != view.raft_id));
        match timeout_at(Instant::now() + TRANSFER_TIMEOUT, moved).await {
            Ok(Ok(view)) => Ok(view.status.leader.unwrap_or(to)),
            Ok(Err(_)) => Err(ProposeError::Stopping),
            Err(_) => Err(refused("it did not take over in time: it leads on here; try again")),
        }
    }

    /// Takes a member out of table C, after its vote; this Server must lead. A repeat under the same `request_id`
    /// gets the first one's answer.
    ///
    /// # Errors
    /// When this Server does not lead (any more, also because it is the one to leave), or the removal is refused.
    pub async fn remove_here(&self, request_id: RequestId, id: NodeId) -> Result<(), ProposeError> {
        let Shared { proposer, log, .. } = &*self.shared;
        let until = Instant::now() + LEAVING_FOR;
        loop {
            let view = proposer.view();
            if !view.leads() {
                return Err(ProposeError::NotLeader);
            }
            // Unknown: removed before, perhaps by this very request.
            let Some(raft_id) = view.state.members.get(&id).map(|member| member.raft_id) else { break };
            check_removal(view.raft_id, &self.health(&view).await?, raft_id)
                .map_err(|why| removal_refused(&why, &view))?;
            if !view.membership.is_voter(raft_id) {
                break;
            }
            if Instant::now() >= until {
                return Err(refused("its vote could not be taken in time: it stays; try again"));
            }
            self.mark_leaving(raft_id);
            tokio::time::sleep(LEAVING_LOOK).await;
        }
        info!(log, "removing a member"; "id" => id);
        let command = Command { request_id, body: CommandBody::RemoveMember(id) };
        match proposer.propose(command).await? {
            (_, Outcome::Refused { code, message }) => Err(ProposeError::Leader { code, message }),
            _ => Ok(()),
        }
    }

    fn mark_leaving(&self, raft_id: RaftId) {
        let now = self.shared.clock.now();
        self.shared.leaving.send_if_modified(|leaving| {
            leaving.retain(|_, until| *until > now);
            leaving.insert(raft_id, now + LEAVING_FOR).is_none()
        });
    }
}

fn refused(reason: &str) -> ProposeError {
    ProposeError::Leader { code: ErrorCode::QuorumLost, message: reason.to_owned() }
}

fn removal_refused(why: &RemovalRefused, view: &View) -> ProposeError {
    let code = match why {
        RemovalRefused::NotAMember(_) => ErrorCode::NotFound,
        RemovalRefused::Last | RemovalRefused::QuorumLost { .. } => ErrorCode::QuorumLost,
    };
    let unfit = match why {
        RemovalRefused::QuorumLost { unfit, .. } => unfit.as_slice(),
        _ => &[],
    };
    let name = |id: &RaftId| view.state.member_by_raft_id(*id).map(|member| member.name.as_str());
    let names: Vec<_> = unfit.iter().filter_map(name).collect();
    let message = match names.as_slice() {
        [] => why.to_string(),
        names => format!("{why}; not so: {}. Start them, or remove them first", names.join(", ")),
    };
    ProposeError::Leader { code, message }
}
