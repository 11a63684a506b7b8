//! Kill rounds: Servers are killed and frozen at random under writes, and nothing that was acknowledged is ever
//! lost.
//!
//! In most rounds a Server dies by SIGKILL, sometimes several at once, so that no quorum is left; the round waits
//! until writes are acknowledged again and starts them again; sometimes the next round begins before they are
//! back. In the others a Server is frozen by SIGSTOP, mostly the Master, and goes on after the rest have elected
//! another; sometimes one more dies meanwhile, or the frozen one does. Two kinds of clients are told things:
//!
//! - Writers create short-lived tokens at random Servers. Now and then they rest, and what all Servers list is
//!   compared with what was told: an acknowledged write is there, a failed one is not, an unknown one is there
//!   or not, on all Servers alike, and none of this ever changes (SPEC C7, C9). The member table must come out as
//!   it was.
//! - [Clients of the register](crate::history) read and write one setting; all that they are told together must
//!   be linearizable.
//!
//! SIGKILL proves nothing about what a disk keeps when the power fails: the page cache survives it.

pub(crate) mod ledger;
mod summary;
pub(crate) mod writer;

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::bench::median;
use crate::cluster::report::Member;
use crate::cluster::{Access, Cluster, PATIENCE, Signal, Start, wait_for};
use crate::history::{Clients, Load, Outcome, Reads};
use ledger::{Fate, Ledger, Listing, Write};
pub use summary::{Summary, report};
use writer::{CALL_TIMEOUT, Writers, list};

/// In so many rounds nobody is killed at first, but one is frozen.
const FROZEN: (u32, u32) = (1, 5);
/// The frozen one is the Master on purpose in so many of these, else anyone.
const MASTER_FROZEN: (u32, u32) = (2, 3);
/// In so many, another one dies meanwhile; in as many others, the frozen one.
const DIES_MEANWHILE: (u32, u32) = (1, 4);
/// In so many rounds the next one begins while the killed Servers are still starting.
const NOT_AWAITED: (u32, u32) = (1, 5);
/// A Server stays dead or frozen up to this long after the others have gone on.
const DEAD: Duration = Duration::from_millis(200);
/// Between two looks at what was written.
const LOOK: Duration = Duration::from_millis(2);
/// A write under way in the cluster for a Server that died has come out by then.
const SETTLE: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many Servers; all of them vote.
    pub servers: usize,
    /// How many are killed, at least.
    pub kills: usize,
    /// What was written is compared after each so many rounds; within the life of a token.
    pub check_every: usize,
    /// How many create tokens at a time.
    pub writers: usize,
    /// How many read and write the register at a time.
    pub clients: usize,
    /// Says who dies, and who writes where.
    pub seed: u64,
}

/// Plays `plan` on a cluster of its own; `say` hears of progress.
///
/// # Errors
/// When a promise is broken, a Server ends by itself, or the cluster does not come back; with the last lines of
/// the Servers' logs.
pub fn play(plan: &Plan, say: impl FnMut(&str)) -> anyhow::Result<Summary> {
    let mut cluster = Cluster::start(plan.servers)?;
    let played = Rounds::begin(&mut cluster, plan, say).and_then(Rounds::play);
    let played = played.with_context(|| format!("seed {}", plan.seed));
    cluster.explain(played)
}

/// How many of `servers` die in one round: mostly one; sometimes as many as can be spared, or one more.
fn victims(servers: usize, rng: &mut StdRng) -> usize {
    let spare = (servers - 1) / 2;
    match rng.random_range(0..10) {
        0 => spare + 1,
        1..4 => spare,
        _ => 1,
    }
}

struct Rounds<'a, S> {
    cluster: &'a mut Cluster,
    plan: &'a Plan,
    say: S,
    rng: StdRng,
    servers: Vec<Access>,
    writers: Writers,
    clients: Clients,
    ledger: Ledger,
    summary: Summary,
    members: Vec<Member>,
    /// So many operations of the history were looked at for gaps.
    operations: usize,
    /// When the last write was acknowledged, or could be again.
    last_acknowledged: Instant,
    /// There was no quorum for a while since the last acknowledged write.
    without_quorum: bool,
    /// How long writes took since the last check, in ms.
    writes_ms: Vec<f64>,
}

impl<'a, S: FnMut(&str)> Rounds<'a, S> {
    fn begin(cluster: &'a mut Cluster, plan: &'a Plan, say: S) -> anyhow::Result<Self> {
        let token = cluster.servers[0].token("operator", 1, "6h")?;
        let servers = cluster.servers.iter().map(|server| Access::of(server, &token));
        let servers = servers.collect::<anyhow::Result<Vec<_>>>()?;
        let members = table(cluster.servers[0].members()?.members);
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let writers = Writers::start(&servers, plan.writers, &mut rng)?;
        let load = Load {
            clients: plan.clients,
            rest: Duration::from_millis(20),
            patience: Duration::from_secs(1),
            reads: Reads::Linearizable,
        };
        let clients = Clients::start(&servers, load, &mut rng)?;
        Ok(Rounds {
            cluster,
            plan,
            say,
            rng,
            servers,
            writers,
            clients,
            ledger: Ledger::default(),
            summary: Summary { servers: plan.servers, ..Summary::default() },
            members,
            operations: 0,
            last_acknowledged: Instant::now(),
            without_quorum: false,
            writes_ms: Vec::new(),
        })
    }

    fn play(mut self) -> anyhow::Result<Summary> {
        let began = Instant::now();
        self.wait_acknowledged(began)?;
        for round in 1.. {
            self.round().with_context(|| format!("round {round}"))?;
            let is_last = self.summary.kills >= self.plan.kills;
            if is_last || round % self.plan.check_every == 0 {
                self.check().with_context(|| format!("after round {round}"))?;
                let counts = self.ledger.counts();
                let Summary { kills, freezes, operations, .. } = self.summary;
                (self.say)(&format!(
                    "{} servers, round {round}: {kills} kills, {freezes} freezes in {} s; {} tokens acknowledged, {} \
                     failed, {} unknown, all as told; {operations} operations linearizable",
                    self.plan.servers,
                    began.elapsed().as_secs(),
                    counts.acknowledged,
                    counts.failed,
                    counts.unknown
                ));
            }
            if is_last {
                break;
            }
        }
        self.check_after_restart()?;
        let counts = self.ledger.counts().clone();
        let mut reasons = counts.reasons;
        for (reason, count) in self.clients.reasons() {
            *reasons.entry(reason).or_default() += count;
        }
        let operations = self.clients.recorder().operations(0);
        let outcomes =
            |wanted: fn(Outcome) -> bool| operations.iter().filter(|op| wanted(op.outcome)).count();
        Ok(Summary {
            acknowledged: counts.acknowledged,
            failed: counts.failed,
            unknown: counts.unknown,
            unknown_there: counts.unknown_there,
            unseen: counts.unseen,
            looks: counts.looks,
            operations_written: outcomes(|outcome| matches!(outcome, Outcome::Written { .. })),
            operations_unknown: outcomes(|outcome| outcome == Outcome::Unknown),
            reasons,
            seconds: began.elapsed().as_secs_f64(),
            ..self.summary
        })
    }

    fn round(&mut self) -> anyhow::Result<()> {
        if self.rng.random_ratio(FROZEN.0, FROZEN.1) {
            return self.freeze();
        }
        let count = victims(self.plan.servers, &mut self.rng);
        let victims = (0..self.plan.servers).choose_multiple(&mut self.rng, count);
        // Only where all are ready a death costs one election and nothing else.
        let all_ready = self.ready().is_ok();
        let master = self.master().ok();
        let killed = Instant::now();
        if all_ready && victims.len() == 1 && master == Some(victims[0]) {
            let others = self.others(&victims);
            let Rounds { cluster, clients, .. } = self;
            let outage = clients.outage(&others, PATIENCE, || kill(cluster, victims[0]))?;
            self.summary.kills += 1;
            self.summary.failovers_ms.push(ms(outage));
        } else {
            self.without_quorum |= !all_ready || victims.len() > (self.plan.servers - 1) / 2;
            for victim in &victims {
                kill(self.cluster, *victim)?;
                self.summary.kills += 1;
            }
        }
        if !self.without_quorum {
            self.wait_acknowledged(killed)?;
        }
        std::thread::sleep(DEAD.mul_f64(self.rng.random()));
        self.start_again(&victims)
    }

    /// Freezes one Server for longer than the others need to go on.
    fn freeze(&mut self) -> anyhow::Result<()> {
        for server in &mut self.cluster.servers {
            server.wait_ready(PATIENCE)?;
        }
        let anyone = self.rng.random_range(0..self.plan.servers);
        let is_master_meant = self.rng.random_ratio(MASTER_FROZEN.0, MASTER_FROZEN.1);
        let master = self.master()?;
        let frozen = if is_master_meant { master } else { anyone };
        let others = self.others(&[frozen]);
        let Rounds { cluster, clients, .. } = self;
        let outage = clients
            .outage(&others, PATIENCE, || cluster.servers[frozen].process_mut()?.signal(Signal::Stop))?;
        self.summary.freezes += 1;
        if frozen == master {
            self.summary.failovers_frozen_ms.push(ms(outage));
        }
        std::thread::sleep(DEAD.mul_f64(self.rng.random()));
        let mut victims = Vec::new();
        let dice = self.rng.random_range(0..DIES_MEANWHILE.1);
        if dice < DIES_MEANWHILE.0 {
            // Of three, only the frozen one can make up a quorum with the last.
            self.without_quorum |= self.plan.servers == 3;
            victims.extend(others.iter().copied().choose(&mut self.rng));
        } else if dice < 2 * DIES_MEANWHILE.0 {
            victims.push(frozen);
        }
        for victim in &victims {
            kill(self.cluster, *victim)?;
            self.summary.kills += 1;
        }
        if !victims.contains(&frozen) {
            self.cluster.servers[frozen].process_mut()?.signal(Signal::Continue)?;
        }
        self.start_again(&victims)
    }

    /// Starts `victims` again; mostly they are waited for.
    fn start_again(&mut self, victims: &[usize]) -> anyhow::Result<()> {
        let restarted = Instant::now();
        for victim in victims {
            self.cluster.servers[*victim].start(Start::Again)?;
        }
        if self.rng.random_ratio(NOT_AWAITED.0, NOT_AWAITED.1) {
            std::thread::sleep(DEAD.mul_f64(self.rng.random()));
            return Ok(());
        }
        for victim in victims {
            self.cluster.servers[*victim].wait_ready(PATIENCE)?;
            self.summary.restarts_ms.push(ms(restarted.elapsed()));
        }
        self.wait_acknowledged(restarted)?;
        Ok(())
    }

    fn others(&self, those: &[usize]) -> Vec<usize> {
        (0..self.plan.servers).filter(|server| !those.contains(server)).collect()
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        self.cluster.servers.iter_mut().try_for_each(|server| server.wait_ready(Duration::ZERO))
    }

    /// The place of the Master that the first Server names.
    fn master(&self) -> anyhow::Result<usize> {
        let name = self.writers.ask(self.servers[0].master(CALL_TIMEOUT))?;
        let place = self.servers.iter().position(|server| server.name() == name);
        place.with_context(|| format!("{name} is none of ours"))
    }

    /// Takes over what was written, until a write that began after `since` is acknowledged.
    fn wait_acknowledged(&mut self, since: Instant) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.take_over(since) {
            if Instant::now() > deadline {
                bail!("no write was acknowledged for {PATIENCE:?}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Enters what was written; whether a write that began after `since` was acknowledged.
    fn take_over(&mut self, since: Instant) -> bool {
        let mut acknowledged = Vec::new();
        for write in self.writers.take() {
            if write.fate == Fate::Acknowledged {
                let Write { began, ended, .. } = write;
                acknowledged.push((ended, began));
                self.writes_ms.push(ms(ended - began));
            }
            self.ledger.add(write);
        }
        let recorder = self.clients.recorder();
        let operations = recorder.operations(self.operations);
        self.operations += operations.len();
        let written = operations.iter().filter(|op| matches!(op.outcome, Outcome::Written { .. }));
        let began = recorder.began();
        acknowledged.extend(written.map(|op| (began + op.returned, began + op.invoked)));
        acknowledged.sort_unstable();
        let mut found = false;
        for (ended, began) in acknowledged {
            let gap = ms(ended.saturating_duration_since(self.last_acknowledged));
            let longest = match self.without_quorum {
                true => &mut self.summary.longest_gap_without_quorum_ms,
                false => &mut self.summary.longest_gap_ms,
            };
            *longest = longest.max(gap);
            self.without_quorum &= began <= since;
            self.last_acknowledged = self.last_acknowledged.max(ended);
            found |= began > since;
        }
        found
    }

    /// Waits until all Servers are back, has all clients rest, and compares.
    fn check(&mut self) -> anyhow::Result<()> {
        for server in &mut self.cluster.servers {
            server.wait_ready(PATIENCE)?;
        }
        let resting = (self.writers.pause(), self.clients.pause());
        std::thread::sleep(SETTLE);
        self.take_over(Instant::now());
        self.summary.writes_ms.extend(median(&std::mem::take(&mut self.writes_ms)));
        self.compare()?;
        drop(resting);
        // The pause was ours.
        (self.last_acknowledged, self.without_quorum) = (Instant::now(), false);
        Ok(())
    }

    /// Kills all at once, starts them again, and compares once more: what is there is on the disks.
    fn check_after_restart(&mut self) -> anyhow::Result<()> {
        let resting = (self.writers.pause(), self.clients.pause());
        std::thread::sleep(SETTLE);
        self.take_over(Instant::now());
        for server in 0..self.plan.servers {
            kill(self.cluster, server)?;
            self.summary.kills += 1;
        }
        for server in &mut self.cluster.servers {
            server.start(Start::Again)?;
        }
        for server in &mut self.cluster.servers {
            server.wait_ready(PATIENCE)?;
        }
        let compared = self.compare().context("after all were killed and started again");
        drop(resting);
        compared?;
        // A last answer of each client, which must fit to all before.
        let restarted = Instant::now();
        self.without_quorum = true;
        self.wait_acknowledged(restarted)?;
        let _resting = self.clients.pause();
        self.summary.operations = self.clients.check()?;
        Ok(())
    }

    fn compare(&mut self) -> anyhow::Result<()> {
        let asked = Instant::now();
        let mut listings: Vec<Listing> = Vec::new();
        for access in &self.servers {
            // A leader that has just won may not answer reads yet.
            listings.push(wait_for("the list of tokens", PATIENCE, || self.writers.ask(list(access)))?);
        }
        if let Err(wrong) = self.ledger.check(&listings, asked) {
            bail!("{} broken promises:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
        }
        self.summary.operations = self.clients.check()?;
        for server in &self.cluster.servers {
            let members = table(server.members()?.members);
            ensure!(
                members == self.members,
                "{} lists {members:?} instead of {:?}",
                server.name(),
                self.members
            );
        }
        Ok(())
    }
}

fn kill(cluster: &mut Cluster, victim: usize) -> anyhow::Result<()> {
    let process = cluster.servers[victim].process_mut()?;
    if process.exited()?.is_some() {
        bail!("it ended by itself\n{}", process.log_tail());
    }
    cluster.servers[victim].kill()
}

/// The members as they are replicated: who sees whom connected, and who leads, is no part of it.
fn table(mut members: Vec<Member>) -> Vec<Member> {
    for member in &mut members {
        (member.connected, member.master) = (true, String::new());
    }
    members
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
