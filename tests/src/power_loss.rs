//! Power loss: the disks of all Servers lose their power under writes, and nothing that was acknowledged is lost.
//!
//! Each round the disks of all three Servers at once (sometimes of two, or one) lose what was not synced, the
//! processes die, and they start again on what is left. Writers create short-lived tokens all the while; what
//! they were told is compared with what all Servers list, and the member table with what it was (SPEC C3, C9).
//! Clients of one register write as fast as they can, so that snapshots are taken and the log is cut off; all
//! that they are told must be linearizable. A kill alone could not show any of this: the page cache survives it.
//!
//! That the rounds would notice is tested by Servers whose `fdatasync` does nothing ([`Plan::unsynced`]).

mod disk;
mod unsynced;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::bench::{Better, Case, Report, Row, median};
use crate::cluster::report::Member;
use crate::cluster::{Access, Cluster, PATIENCE, Seat, Start, binaries, wait_for};
use crate::history::{Clients, Load, Reads};
use crate::kill_rounds::ledger::{Fate, Ledger, Listing};
use crate::kill_rounds::writer::{Writers, list};
use disk::Disk;
pub use disk::isolate_mounts;

const SERVERS: usize = 3;
/// In so many rounds not all lose power, but one or two.
const NOT_ALL: (u32, u32) = (1, 4);
/// Writes go on for up to this long before the power goes.
const WRITING: Duration = Duration::from_millis(400);
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
    /// How many read and write the register.
    pub clients: usize,
    /// Says whose power goes when, and who writes where.
    pub seed: u64,
    /// The Servers' `fdatasync` does nothing.
    pub unsynced: bool,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Rounds played.
    pub rounds: usize,
    /// Of these, the ones in which all lost power.
    pub rounds_all: usize,
    /// Disks that lost power.
    pub losses: usize,
    /// Writes that were acknowledged: each was there whenever anybody looked.
    pub acknowledged: usize,
    /// Writes that failed: none was ever there.
    pub failed: usize,
    /// Writes of unknown outcome.
    pub unknown: usize,
    /// Acknowledged writes whose token expired before a look; a slow machine, no defect.
    pub unseen: usize,
    /// Looks at single tokens at single Servers.
    pub looks: usize,
    /// Operations of the register, whose history is linearizable.
    pub operations: usize,
    /// From the return of the power until the last Server says it is ready, in ms.
    pub restarts_ms: Vec<f64>,
    /// From the return of the power of all until a write is acknowledged, in ms.
    pub writable_ms: Vec<f64>,
    /// From sending a write to its acknowledgement, in ms: medians between the checks.
    pub writes_ms: Vec<f64>,
    /// All in all.
    pub seconds: f64,
}

impl Summary {
    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "{} rounds ({} of them took the power of all), {} disks lost power in {:.0} s; writes: {} acknowledged, {} \
             failed, {} unknown; {} looks, {} unseen; none lost; {} operations, linearizable; ready again after {:.0} ms, writable after the loss \
             of all after {:.0} ms; a write takes {:.1} ms",
            self.rounds,
            self.rounds_all,
            self.losses,
            self.seconds,
            self.acknowledged,
            self.failed,
            self.unknown,
            self.looks,
            self.unseen,
            self.operations,
            median(&self.restarts_ms).unwrap_or(0.0),
            median(&self.writable_ms).unwrap_or(0.0),
            median(&self.writes_ms).unwrap_or(0.0),
        )
    }

    /// The figures as `target/bench/power-loss.json` has them.
    pub fn report(&self) -> Report {
        let mut report = Report::new("power-loss");
        let mut add = |name, unit, better, figures: &[f64]| {
            report.add(Row::compare(&Case { name, unit, better }, figures, "none", &[]));
        };
        add("rounds of power loss", "rounds", Better::Higher, &[self.rounds as f64]);
        add("rounds in which all three lost power", "rounds", Better::Higher, &[self.rounds_all as f64]);
        add("writes acknowledged", "writes", Better::Higher, &[self.acknowledged as f64]);
        add("writes failed", "writes", Better::Lower, &[self.failed as f64]);
        add("writes of unknown outcome", "writes", Better::Lower, &[self.unknown as f64]);
        // Any other number ends the run without a report.
        add("acknowledged writes lost", "writes", Better::Lower, &[0.0]);
        add(
            "operations of the register, linearizable",
            "operations",
            Better::Higher,
            &[self.operations as f64],
        );
        add("power back until all are ready", "ms", Better::Lower, &self.restarts_ms);
        add("power of all back until a write is acknowledged", "ms", Better::Lower, &self.writable_ms);
        add("write, medians between checks", "ms", Better::Lower, &self.writes_ms);
        add("whole run", "s", Better::Lower, &[self.seconds]);
        report
    }
}

/// What is missing here for disks that lose power; empty when all is there.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        missing.push("root".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        missing.push("loop devices".to_owned());
    }
    for (program, package) in [("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("umount", "mount")] {
        if crate::clients::find(program).is_none() {
            missing.push(format!("{program} ({package})"));
        }
    }
    missing
}

/// Plays `plan` on a cluster of its own; `say` hears of progress. This process must have its own mounts
/// ([`isolate_mounts`]).
///
/// # Errors
/// When a promise is broken, or the cluster does not come back; with the last lines of the Servers' logs.
pub fn play(plan: &Plan, say: impl FnMut(&str)) -> anyhow::Result<Summary> {
    binaries()?;
    let dir = tempfile::Builder::new().prefix("p2pcore-disks-").tempdir().context("making a directory")?;
    let disks = (1..=SERVERS).map(|number| Disk::new(dir.path(), &format!("s{number}")));
    let disks = disks.collect::<anyhow::Result<Vec<_>>>()?;
    let seats = disks.iter().map(|disk| {
        let seat = Seat::loopback(disk.dir())?;
        // SAFETY: two system calls and nothing else.
        Ok(if plan.unsynced { unsafe { seat.prepared(unsynced::leave_out_fdatasync) } } else { seat })
    });
    let mut cluster = Cluster::start_in(seats.collect::<anyhow::Result<Vec<_>>>()?)?;
    let played = Rounds::begin(&mut cluster, &disks, plan, say).and_then(Rounds::play);
    cluster.explain(played)
}

struct Rounds<'a, S> {
    cluster: &'a mut Cluster,
    disks: &'a [Disk],
    plan: &'a Plan,
    say: S,
    rng: StdRng,
    servers: Vec<Access>,
    writers: Writers,
    clients: Clients,
    ledger: Ledger,
    summary: Summary,
    members: Vec<Member>,
    /// How long writes took since the last check, in ms.
    writes_ms: Vec<f64>,
}

impl<'a, S: FnMut(&str)> Rounds<'a, S> {
    fn begin(cluster: &'a mut Cluster, disks: &'a [Disk], plan: &'a Plan, say: S) -> anyhow::Result<Self> {
        let token = cluster.servers[0].token("operator", 1, "6h")?;
        let servers = cluster.servers.iter().map(|server| Access::of(server, &token));
        let servers = servers.collect::<anyhow::Result<Vec<_>>>()?;
        let members = table(cluster.servers[0].members()?.members);
        // At stake is what is written from now on: a cluster that lost all of itself would say less.
        disks.iter().try_for_each(Disk::write_back)?;
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let writers = Writers::start(&servers, plan.writers, &mut rng)?;
        let load = Load {
            clients: plan.clients,
            rest: Duration::ZERO,
            patience: Duration::from_secs(1),
            reads: Reads::Linearizable,
        };
        let clients = Clients::start(&servers, load, &mut rng)?;
        Ok(Rounds {
            cluster,
            disks,
            plan,
            say,
            rng,
            servers,
            writers,
            clients,
            ledger: Ledger::default(),
            summary: Summary::default(),
            members,
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
                let (counts, seconds) = (self.ledger.counts(), began.elapsed().as_secs());
                (self.say)(&format!(
                    "round {round}: {} power losses in {seconds} s; {} acknowledged, {} failed, {} unknown; all as told",
                    self.summary.losses, counts.acknowledged, counts.failed, counts.unknown
                ));
            }
        }
        let counts = self.ledger.counts();
        Ok(Summary {
            acknowledged: counts.acknowledged,
            failed: counts.failed,
            unknown: counts.unknown,
            unseen: counts.unseen,
            looks: counts.looks,
            operations: self.clients.recorder().operations(0).len(),
            seconds: began.elapsed().as_secs_f64(),
            ..self.summary
        })
    }

    fn round(&mut self) -> anyhow::Result<()> {
        std::thread::sleep(WRITING.mul_f64(self.rng.random()));
        let count = match self.rng.random_ratio(NOT_ALL.0, NOT_ALL.1) {
            true => self.rng.random_range(1..SERVERS),
            false => SERVERS,
        };
        let mut victims = (0..SERVERS).choose_multiple(&mut self.rng, count);
        victims.shuffle(&mut self.rng);
        for victim in &victims {
            self.disks[*victim].lose_power()?;
        }
        for victim in &victims {
            self.cluster.servers[*victim].kill()?;
        }
        for victim in &victims {
            self.disks[*victim].return_power()?;
        }
        self.summary.rounds += 1;
        self.summary.rounds_all += usize::from(count == SERVERS);
        self.summary.losses += count;
        let returned = Instant::now();
        for victim in &victims {
            self.cluster.servers[*victim].start(Start::Again)?;
        }
        for victim in &victims {
            self.cluster.servers[*victim].wait_ready(PATIENCE)?;
        }
        self.summary.restarts_ms.push(ms(returned.elapsed()));
        let acknowledged = self.wait_acknowledged(returned)?;
        if count == SERVERS {
            self.summary.writable_ms.push(ms(acknowledged - returned));
        }
        Ok(())
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
                self.writes_ms.push(ms(write.ended - write.began));
                if write.began > since {
                    found = found.or(Some(write.ended));
                }
            }
            self.ledger.add(write);
        }
        found
    }

    /// Stops the writers, and compares what all Servers list with what was told.
    fn check(&mut self) -> anyhow::Result<()> {
        let _resting = (self.writers.pause(), self.clients.pause());
        std::thread::sleep(SETTLE);
        self.take_over(Instant::now());
        self.summary.writes_ms.extend(median(&std::mem::take(&mut self.writes_ms)));
        let asked = Instant::now();
        let mut listings: Vec<Listing> = Vec::new();
        for access in &self.servers {
            // A leader that has just won may not answer reads yet.
            listings.push(wait_for("the list of tokens", PATIENCE, || self.writers.ask(list(access)))?);
        }
        if let Err(wrong) = self.ledger.check(&listings, asked) {
            let shown = wrong[..wrong.len().min(20)].join("\n");
            bail!("seed {}: {} broken promises:\n{shown}", self.plan.seed, wrong.len());
        }
        for server in &self.cluster.servers {
            let (members, name) = (table(server.members()?.members), server.name());
            ensure!(members == self.members, "{name} lists {members:?} instead of {:?}", self.members);
        }
        self.clients.check().with_context(|| format!("seed {}", self.plan.seed))?;
        Ok(())
    }
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
