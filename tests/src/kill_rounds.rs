//! Kill rounds: Servers are killed at random under writes, and nothing that was acknowledged is ever lost.
//!
//! Each round SIGKILLs a Server of three (sometimes two at once), waits until writes are acknowledged again, and
//! starts it again; sometimes the next round begins before it is back. Writers create short-lived tokens at
//! random Servers and note what they were told. Now and then they rest, and what all Servers list is compared
//! with what was told: an acknowledged write is there, a failed one is not, an unknown one is there or not, on
//! all Servers alike, and none of this ever changes (SPEC C7, C9). The member table must come out as it was.
//!
//! SIGKILL proves nothing about what a disk keeps when the power fails: the page cache survives it.

pub(crate) mod ledger;
pub(crate) mod writer;

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::bench::{Better, Case, Report, Row, median};
use crate::cluster::report::Member;
use crate::cluster::{Access, Cluster, PATIENCE, Start, wait_for};
use ledger::{Fate, Ledger, Listing};
use writer::{CALL_TIMEOUT, Writers, list};

/// A quorum of three dies in one of this many rounds.
const TWO_AT_ONCE: (u32, u32) = (1, 10);
/// In so many rounds the next one begins while the killed Server is still starting.
const NOT_AWAITED: (u32, u32) = (1, 5);
/// A Server stays dead up to this long after the others have gone on.
const DEAD: Duration = Duration::from_millis(200);
/// Between two looks at what was written.
const LOOK: Duration = Duration::from_millis(2);
/// A write under way in the cluster for a Server that died has come out by then.
const SETTLE: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many rounds.
    pub rounds: usize,
    /// The lists are compared after each so many rounds; within the life of a token.
    pub check_every: usize,
    /// How many write at a time.
    pub writers: usize,
    /// Says who dies, and who writes where.
    pub seed: u64,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Writes that were acknowledged: each was there whenever anybody looked.
    pub acknowledged: usize,
    /// Writes that failed: none was ever there.
    pub failed: usize,
    /// Writes of unknown outcome.
    pub unknown: usize,
    /// Of these, the ones that were there.
    pub unknown_there: usize,
    /// Acknowledged writes whose token expired before a look; a slow machine, no defect.
    pub unseen: usize,
    /// Looks at single tokens at single Servers.
    pub looks: usize,
    /// Servers killed.
    pub kills: usize,
    /// Times without an acknowledged write, in ms: the longest while one Server was dead.
    pub longest_gap_ms: f64,
    /// The longest in rounds that killed two of three; much of it is the wait for their restart.
    pub longest_gap_two_ms: f64,
    /// From the kill of a Master to the answer to a write that began after it, in ms.
    pub failovers_ms: Vec<f64>,
    /// From the start of a killed Server until it says it is ready, in ms.
    pub restarts_ms: Vec<f64>,
    /// From sending a write to its acknowledgement, in ms: medians between the checks, in their order.
    pub writes_ms: Vec<f64>,
    /// All in all, from the first kill to the last check.
    pub seconds: f64,
    /// Why writes were not acknowledged, and how often.
    pub reasons: Vec<(String, usize)>,
}

impl Summary {
    /// One line for people.
    pub fn line(&self) -> String {
        let reasons: Vec<_> =
            self.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        format!(
            "{} kills in {:.0} s; writes: {} acknowledged, {} failed, {} unknown of which {} there ({}); {} looks, {} \
             unseen; failover median {:.0} ms, longest of {} {:.0} ms; longest gap without an acknowledged write \
             {:.0} ms, with two killed {:.0} ms; restart median {:.0} ms; write median {:.1} ms at first, {:.1} ms at last",
            self.kills,
            self.seconds,
            self.acknowledged,
            self.failed,
            self.unknown,
            self.unknown_there,
            if reasons.is_empty() { "-".into() } else { reasons.join(", ") },
            self.looks,
            self.unseen,
            median(&self.failovers_ms).unwrap_or(0.0),
            self.failovers_ms.len(),
            self.failovers_ms.iter().copied().fold(0.0, f64::max),
            self.longest_gap_ms,
            self.longest_gap_two_ms,
            median(&self.restarts_ms).unwrap_or(0.0),
            self.writes_ms.first().unwrap_or(&0.0),
            self.writes_ms.last().unwrap_or(&0.0),
        )
    }

    /// The figures as `target/bench/kill-rounds.json` has them.
    pub fn report(&self) -> Report {
        let mut report = Report::new("kill-rounds");
        let mut add = |name, unit, better, figures: &[f64]| {
            report.add(Row::compare(&Case { name, unit, better }, figures, "none", &[]));
        };
        add("Servers killed", "kills", Better::Higher, &[self.kills as f64]);
        add("writes acknowledged", "writes", Better::Higher, &[self.acknowledged as f64]);
        add("writes failed", "writes", Better::Lower, &[self.failed as f64]);
        add("writes of unknown outcome", "writes", Better::Lower, &[self.unknown as f64]);
        // Any other number ends the run without a report.
        add("acknowledged writes lost", "writes", Better::Lower, &[0.0]);
        add("failover after the Master's death", "ms", Better::Lower, &self.failovers_ms);
        add("longest gap, one of three killed", "ms", Better::Lower, &[self.longest_gap_ms]);
        add("longest gap, two of three killed", "ms", Better::Lower, &[self.longest_gap_two_ms]);
        add("restart until ready", "ms", Better::Lower, &self.restarts_ms);
        add("write, medians between checks", "ms", Better::Lower, &self.writes_ms);
        add("whole run", "s", Better::Lower, &[self.seconds]);
        report
    }
}

/// Plays `plan` on a cluster of its own; `say` hears of progress.
///
/// # Errors
/// When a promise is broken, a Server ends by itself, or the cluster does not come back; with the last lines of
/// the Servers' logs.
pub fn play(plan: &Plan, say: impl FnMut(&str)) -> anyhow::Result<Summary> {
    let mut cluster = Cluster::start(3)?;
    let played = Rounds::begin(&mut cluster, plan, say).and_then(Rounds::play);
    cluster.explain(played)
}

struct Rounds<'a, S> {
    cluster: &'a mut Cluster,
    plan: &'a Plan,
    say: S,
    rng: StdRng,
    servers: Vec<Access>,
    writers: Writers,
    ledger: Ledger,
    summary: Summary,
    members: Vec<Member>,
    /// When the last write was acknowledged, or could be again.
    last_acknowledged: Instant,
    /// Two Servers were killed since the last acknowledged write.
    two_died: bool,
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
        let now = Instant::now();
        Ok(Rounds {
            cluster,
            plan,
            say,
            rng,
            servers,
            writers,
            ledger: Ledger::default(),
            summary: Summary::default(),
            members,
            last_acknowledged: now,
            two_died: false,
            writes_ms: Vec::new(),
        })
    }

    fn play(mut self) -> anyhow::Result<Summary> {
        let began = Instant::now();
        self.wait_acknowledged(began)?;
        for round in 1..=self.plan.rounds {
            self.round().with_context(|| format!("round {round}"))?;
            if round % self.plan.check_every == 0 || round == self.plan.rounds {
                self.check().with_context(|| format!("after round {round}"))?;
                let counts = self.ledger.counts();
                let (kills, seconds) = (self.summary.kills, began.elapsed().as_secs());
                (self.say)(&format!(
                    "round {round}: {kills} kills in {seconds} s; {} acknowledged, {} failed, {} unknown; all as told",
                    counts.acknowledged, counts.failed, counts.unknown
                ));
            }
        }
        self.check_after_restart()?;
        let counts = self.ledger.counts().clone();
        Ok(Summary {
            acknowledged: counts.acknowledged,
            failed: counts.failed,
            unknown: counts.unknown,
            unknown_there: counts.unknown_there,
            unseen: counts.unseen,
            looks: counts.looks,
            reasons: counts.reasons.into_iter().collect(),
            seconds: began.elapsed().as_secs_f64(),
            ..self.summary
        })
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let two = self.rng.random_ratio(TWO_AT_ONCE.0, TWO_AT_ONCE.1);
        let victims = (0..self.servers.len()).choose_multiple(&mut self.rng, if two { 2 } else { 1 });
        // Only where all are ready a death costs one election and nothing else.
        let all_ready = self.ready().is_ok();
        let master = self.master().ok();
        self.two_died |= two;
        let killed = Instant::now();
        for victim in &victims {
            let process = self.cluster.servers[*victim].process_mut()?;
            if process.exited()?.is_some() {
                bail!("it ended by itself\n{}", process.log_tail());
            }
            self.cluster.servers[*victim].kill()?;
            self.summary.kills += 1;
        }
        if !two && all_ready {
            let acknowledged = self.wait_acknowledged(killed)?;
            if master.as_deref() == Some(self.cluster.servers[victims[0]].name()) {
                self.summary.failovers_ms.push(ms(acknowledged - killed));
            }
        }
        std::thread::sleep(DEAD.mul_f64(self.rng.random()));
        let restarted = Instant::now();
        for victim in &victims {
            self.cluster.servers[*victim].start(Start::Again)?;
        }
        if self.rng.random_ratio(NOT_AWAITED.0, NOT_AWAITED.1) {
            std::thread::sleep(DEAD.mul_f64(self.rng.random()));
            return Ok(());
        }
        for victim in &victims {
            self.cluster.servers[*victim].wait_ready(PATIENCE)?;
            self.summary.restarts_ms.push(ms(restarted.elapsed()));
        }
        self.wait_acknowledged(restarted)?;
        Ok(())
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        self.cluster.servers.iter_mut().try_for_each(|server| server.wait_ready(Duration::ZERO))
    }

    fn master(&self) -> anyhow::Result<String> {
        let running = self.servers.iter().zip(&self.cluster.servers).find(|(_, server)| server.is_started());
        self.writers.ask(running.context("no Server runs")?.0.master(CALL_TIMEOUT))
    }

    /// Takes over what was written, until a write that began after `since` is acknowledged; says when it was.
    fn wait_acknowledged(&mut self, since: Instant) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.take_over(since) {
                return Ok(ended);
            }
            if Instant::now() > deadline {
                bail!("no write was acknowledged for {PATIENCE:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Enters what was written. The first acknowledgement of a write that began after `since`, if there is one.
    fn take_over(&mut self, since: Instant) -> Option<Instant> {
        let mut found = None;
        for write in self.writers.take() {
            if write.fate == Fate::Acknowledged {
                let gap = ms(write.ended.saturating_duration_since(self.last_acknowledged));
                let longest = match self.two_died {
                    true => &mut self.summary.longest_gap_two_ms,
                    false => &mut self.summary.longest_gap_ms,
                };
                *longest = longest.max(gap);
                self.two_died &= write.began <= since;
                self.writes_ms.push(ms(write.ended - write.began));
                self.last_acknowledged = self.last_acknowledged.max(write.ended);
                if write.began > since {
                    found = found.or(Some(write.ended));
                }
            }
            self.ledger.add(write);
        }
        found
    }

    /// Waits until all Servers are back, stops the writers, and compares.
    fn check(&mut self) -> anyhow::Result<()> {
        for server in &mut self.cluster.servers {
            server.wait_ready(PATIENCE)?;
        }
        let resting = self.writers.pause();
        std::thread::sleep(SETTLE);
        self.take_over(Instant::now());
        self.summary.writes_ms.extend(median(&std::mem::take(&mut self.writes_ms)));
        self.compare()?;
        drop(resting);
        // The pause was ours.
        (self.last_acknowledged, self.two_died) = (Instant::now(), false);
        Ok(())
    }

    /// Kills all at once, starts them again, and compares once more: what is there is on the disks.
    fn check_after_restart(&mut self) -> anyhow::Result<()> {
        let resting = self.writers.pause();
        std::thread::sleep(SETTLE);
        self.take_over(Instant::now());
        for server in &mut self.cluster.servers {
            server.kill()?;
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
        compared
    }

    fn compare(&mut self) -> anyhow::Result<()> {
        let asked = Instant::now();
        let mut listings: Vec<Listing> = Vec::new();
        for access in &self.servers {
            // A leader that has just won may not answer reads yet.
            listings.push(wait_for("the list of tokens", PATIENCE, || self.writers.ask(list(access)))?);
        }
        if let Err(wrong) = self.ledger.check(&listings, asked) {
            bail!(
                "seed {}: {} broken promises:\n{}",
                self.plan.seed,
                wrong.len(),
                wrong[..wrong.len().min(20)].join("\n")
            );
        }
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

/// The members as they are replicated: who sees whom connected is no part of it.
fn table(mut members: Vec<Member>) -> Vec<Member> {
    members.iter_mut().for_each(|member| member.connected = true);
    members
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
