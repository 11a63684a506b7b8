//! Partitions: the network between Servers fails in every way it can, under clients whose history must be
//! linearizable, and no two Servers ever call different ones Master of one term.
//!
//! Each round draws one [`Fault`], lets it last, ends it, and waits until a write is acknowledged again. Faults
//! leave a quorum connected or not. In the end all must agree again, and what all clients were told is checked.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::Lab;
use super::sightings::Sightings;
use crate::bench::{Better, Case, Report, Row, median};
use crate::cluster::{Access, Cluster, PATIENCE, Signal};
use crate::history::{Clients, Load, Reads};

/// A fault lasts so long: elections happen, and what was cut off has time to err. A network that only got worse
/// lasts no longer.
const LASTS: (Duration, Duration) = (Duration::from_millis(800), Duration::from_millis(2_500));
/// Packets lost at a Server, each way, in percent.
const LOSS_PERCENT: f64 = 15.0;
/// What a delayed packet waits, in ms, and by how much that varies.
const DELAY_MS: (f64, f64) = (40.0, 30.0);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many Servers.
    pub servers: usize,
    /// How many faults.
    pub rounds: usize,
    /// How many clients at a time.
    pub clients: usize,
    /// Says which faults, and who asks what where.
    pub seed: u64,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The Master and all others lose each other.
    MasterAlone,
    /// Two halves, drawn; the Master may be in the smaller one.
    Halves,
    /// Nobody hears the Master.
    MasterMute,
    /// The Master hears nobody.
    MasterDeaf,
    /// One does not hear another.
    OneWay,
    /// All but one lose each other: everything would have to go through it.
    Star,
    /// Nobody hears anybody.
    Dust,
    /// The Master is frozen.
    MasterFrozen,
    /// Somebody is frozen.
    Frozen,
    /// Packets of somebody are lost.
    Loss,
    /// Packets to somebody come late.
    Delay,
}

const FAULTS: &[Fault] = &[
    Fault::MasterAlone,
    Fault::Halves,
    Fault::MasterMute,
    Fault::MasterDeaf,
    Fault::OneWay,
    Fault::Star,
    Fault::Dust,
    Fault::MasterFrozen,
    Fault::Frozen,
    Fault::Loss,
    Fault::Delay,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::MasterAlone => "the Master alone",
            Fault::Halves => "two halves",
            Fault::MasterMute => "nobody hears the Master",
            Fault::MasterDeaf => "the Master hears nobody",
            Fault::OneWay => "one does not hear another",
            Fault::Star => "all but one lose each other",
            Fault::Dust => "nobody hears anybody",
            Fault::MasterFrozen => "the Master is frozen",
            Fault::Frozen => "somebody is frozen",
            Fault::Loss => "packets are lost",
            Fault::Delay => "packets come late",
        })
    }
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Faults played.
    pub rounds: usize,
    /// Operations whose history is linearizable.
    pub operations: usize,
    /// From the beginning of each fault to the first acknowledged write that began after it, in ms, where a quorum
    /// stayed together. What natlab takes to do it, some tenths of a second, is part of it, here and below.
    pub outages_ms: Vec<f64>,
    /// From the beginning of the end of each fault to the first acknowledged write that began after it, in ms.
    pub recoveries_ms: Vec<f64>,
    /// All in all.
    pub seconds: f64,
}

impl Summary {
    /// One line for people.
    pub fn line(&self) -> String {
        let longest = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
        format!(
            "{} faults in {:.0} s: {} operations, linearizable, one Master a term; writes again {:.0} ms (longest \
             {:.0}) after a fault that left a quorum, {:.0} ms (longest {:.0}) after its end",
            self.rounds,
            self.seconds,
            self.operations,
            median(&self.outages_ms).unwrap_or(0.0),
            longest(&self.outages_ms),
            median(&self.recoveries_ms).unwrap_or(0.0),
            longest(&self.recoveries_ms),
        )
    }

    /// Adds the figures to those that `target/bench/partitions.json` will have.
    pub fn report(&self, servers: usize, report: &mut Report) {
        let names: [&'static str; 4] = match servers {
            3 => [
                "3 Servers: faults",
                "3 Servers: operations, linearizable",
                "3 Servers: outage by a fault that leaves a quorum",
                "3 Servers: end of a fault until a write is acknowledged",
            ],
            _ => [
                "5 Servers: faults",
                "5 Servers: operations, linearizable",
                "5 Servers: outage by a fault that leaves a quorum",
                "5 Servers: end of a fault until a write is acknowledged",
            ],
        };
        let mut add = |name, unit, better, figures: &[f64]| {
            report.add(Row::compare(&Case { name, unit, better }, figures, "none", &[]));
        };
        add(names[0], "faults", Better::Higher, &[self.rounds as f64]);
        add(names[1], "operations", Better::Higher, &[self.operations as f64]);
        add(names[2], "ms", Better::Lower, &self.outages_ms);
        add(names[3], "ms", Better::Lower, &self.recoveries_ms);
    }
}

/// Plays `plan` on a lab of its own; `say` hears of progress.
///
/// # Errors
/// When a promise is broken, or the cluster does not come back; with the last lines of the Servers' logs.
pub fn play(plan: &Plan, mut say: impl FnMut(&str) + Send) -> anyhow::Result<Summary> {
    let lab = Lab::up(plan.servers)?;
    let dir = tempfile::Builder::new().prefix("p2pcore-lab-").tempdir().context("making a directory")?;
    lab.outside(|| {
        let mut cluster = lab.cluster(plan.servers, dir.path())?;
        let played = Rounds::begin(&lab, &mut cluster, plan, &mut say).and_then(Rounds::play);
        cluster.explain(played)
    })?
}

struct Rounds<'a> {
    lab: &'a Lab,
    cluster: &'a mut Cluster,
    plan: &'a Plan,
    say: &'a mut (dyn FnMut(&str) + Send),
    rng: StdRng,
    clients: Clients,
    sightings: Sightings,
    servers: Vec<Access>,
}

impl<'a> Rounds<'a> {
    fn begin(
        lab: &'a Lab,
        cluster: &'a mut Cluster,
        plan: &'a Plan,
        say: &'a mut (dyn FnMut(&str) + Send),
    ) -> anyhow::Result<Self> {
        let token = cluster.servers[0].token("operator", 1, "6h")?;
        let servers = cluster.servers.iter().map(|server| Access::of(server, &token));
        let servers = servers.collect::<anyhow::Result<Vec<_>>>()?;
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let load = Load {
            clients: plan.clients,
            rest: Duration::from_millis(5),
            patience: Duration::from_secs(6),
            reads: Reads::Linearizable,
        };
        let clients = Clients::start(&servers, load, &mut rng)?;
        let sightings = Sightings::start(&servers)?;
        Ok(Rounds { lab, cluster, plan, say, rng, clients, sightings, servers })
    }

    fn play(mut self) -> anyhow::Result<Summary> {
        let began = Instant::now();
        let mut summary = Summary::default();
        let mut faults: Vec<Fault> = Vec::new();
        for round in 1..=self.plan.rounds {
            if faults.is_empty() {
                faults = FAULTS.to_vec();
                faults.shuffle(&mut self.rng);
            }
            let fault = faults.pop().expect("it was filled just above");
            self.round(fault, &mut summary).with_context(|| format!("round {round}, {fault}"))?;
            summary.rounds += 1;
        }
        self.cluster.wait_agreed(PATIENCE)?;
        let resting = self.clients.pause();
        summary.operations = self.clients.check().with_context(|| format!("seed {}", self.plan.seed))?;
        self.sightings.check().with_context(|| format!("seed {}", self.plan.seed))?;
        drop(resting);
        summary.seconds = began.elapsed().as_secs_f64();
        Ok(summary)
    }

    fn round(&mut self, fault: Fault, summary: &mut Summary) -> anyhow::Result<()> {
        let count = self.plan.servers;
        let all: Vec<usize> = (0..count).collect();
        let drawn = *all.choose(&mut self.rng).expect("there are Servers");
        let master = self.master().unwrap_or(drawn);
        let mut order = all.clone();
        order.shuffle(&mut self.rng);
        let (smaller, larger) = order.split_at(count / 2);
        let others = |one: usize| all.iter().copied().filter(|other| *other != one).collect::<Vec<_>>();
        let lab = self.lab;
        // Those who are left with a quorum, if anybody is.
        let (quorum, played): (Vec<usize>, anyhow::Result<Option<Duration>>) = match fault {
            Fault::MasterAlone => {
                let rest = others(master);
                (rest.clone(), self.outage(&rest, || cut(lab, &[master], &rest)))
            }
            Fault::Halves => (larger.to_vec(), self.outage(larger, || cut(lab, smaller, larger))),
            Fault::MasterMute => {
                let rest = others(master);
                (rest.clone(), self.outage(&rest, || cut_one_way(lab, &[master], &rest)))
            }
            Fault::MasterDeaf => {
                let rest = others(master);
                (rest.clone(), self.outage(&rest, || cut_one_way(lab, &rest, &[master])))
            }
            Fault::OneWay => {
                (larger.to_vec(), self.outage(larger, || cut_one_way(lab, &order[..1], &order[1..2])))
            }
            Fault::Star => {
                let rim = others(drawn);
                (Vec::new(), self.outage(&[], || cut_all(lab, &rim)))
            }
            Fault::Dust => (Vec::new(), self.outage(&[], || cut_all(lab, &all))),
            Fault::MasterFrozen | Fault::Frozen => {
                let victim = if fault == Fault::MasterFrozen { master } else { drawn };
                let rest = others(victim);
                let process = self.cluster.servers[victim].process_mut()?;
                let freeze = || process.signal(Signal::Stop);
                let outage = self.clients.outage(&rest, PATIENCE, freeze).map(Some);
                (rest, outage)
            }
            Fault::Loss => (all.clone(), self.outage(&all, || lab.loss(&name(drawn), LOSS_PERCENT))),
            Fault::Delay => {
                let delay = || lab.delay(&name(drawn), DELAY_MS.0, DELAY_MS.1);
                (all.clone(), self.outage(&all, delay))
            }
        };
        let outage = played?;
        summary.outages_ms.extend(outage.map(ms));
        std::thread::sleep(self.rng.random_range(LASTS.0..LASTS.1));
        for server in &mut self.cluster.servers {
            server.process_mut()?.signal(Signal::Continue)?;
        }
        let end = || match fault {
            Fault::Loss => lab.loss(&name(drawn), 0.0),
            Fault::Delay => lab.delay(&name(drawn), 0.0, 0.0),
            _ => lab.heal(),
        };
        let recovery = self.clients.outage(&all, PATIENCE, end)?;
        summary.recoveries_ms.push(ms(recovery));
        let outage = match outage {
            Some(outage) => format!("writes after {:.0} ms", ms(outage)),
            None if quorum.is_empty() => "no quorum".to_owned(),
            None => "nobody was asked".to_owned(),
        };
        (self.say)(&format!("{fault}: {outage}, after its end {:.0} ms", ms(recovery)));
        Ok(())
    }

    /// Does `fault`; how long writes at `quorum` waited, if there is one.
    fn outage(
        &self,
        quorum: &[usize],
        fault: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Duration>> {
        if quorum.is_empty() {
            return fault().map(|()| None);
        }
        self.clients.outage(quorum, PATIENCE, fault).map(Some)
    }

    /// Where the Master is that the first Server names, if it names one.
    fn master(&self) -> Option<usize> {
        let named = self.sightings.since(0, self.sightings.now());
        named.last().and_then(|named| self.servers.iter().position(|server| server.name() == named))
    }
}

fn cut(lab: &Lab, some: &[usize], others: &[usize]) -> anyhow::Result<()> {
    lab.partition(&names(some), &names(others))
}

fn cut_one_way(lab: &Lab, from: &[usize], to: &[usize]) -> anyhow::Result<()> {
    lab.partition_one_way(&names(from), &names(to))
}

/// Each of `places` from each other.
fn cut_all(lab: &Lab, places: &[usize]) -> anyhow::Result<()> {
    (1..places.len()).try_for_each(|place| cut(lab, &places[..place], &places[place..=place]))
}

fn names(places: &[usize]) -> Vec<String> {
    places.iter().map(|place| name(*place)).collect()
}

/// Servers stand at the nodes of their names.
fn name(place: usize) -> String {
    format!("s{}", place + 1)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
