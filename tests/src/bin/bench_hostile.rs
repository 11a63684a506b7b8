//! `make bench-hostile`: what honest clients feel of attacks, each alone, and what these cost the attacked process.
//!
//! Three Servers and two Peers on this host; one Server, for two of the attacks one Peer, is attacked from another
//! loopback address by what anybody can send. Honest clients ask the attacked Server, on a kept connection and on new
//! ones, and fetch pages through the Peers, before and during each attack. `--seconds S` is the length of each attack,
//! `--calm S` of what is measured before, `--rounds N` how often all of it is done; `--only NAME,NAME` picks attacks by
//! parts of their names.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use p2p_tests::bench::hostile::{Attack, Felt, Outcome, Scene};
use p2p_tests::bench::{Better, Case, Report, Row};

/// Clients notice neither: five times what they had, or this.
const P99_MS: f64 = 50.0;
const P99_RATIO: f64 = 5.0;
const GROWTH_MIB: f64 = 64.0;

/// One of the figures.
type Feeling = fn(&Felt) -> f64;

struct Plan {
    rounds: usize,
    attack: Duration,
    calm: Duration,
    only: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let plan = arguments()?;
    let wanted = |attack: &Attack| {
        plan.only.is_empty() || plan.only.iter().any(|only| attack.name().contains(only.as_str()))
    };
    let attacks: Vec<Attack> = Attack::ALL.into_iter().filter(wanted).collect();
    ensure!(!attacks.is_empty(), "no attack has such a name");
    let mut scene = Scene::start()?;
    let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); attacks.len()];
    for round in 1..=plan.rounds {
        for (attack, outcomes) in attacks.iter().zip(&mut outcomes) {
            let outcome = scene.withstand(*attack, plan.calm, plan.attack)?;
            println!("round {round}: {}: {}", attack.name(), line(&outcome));
            outcomes.push(outcome);
        }
    }
    let mut report = Report::new("hostile");
    for (attack, outcomes) in attacks.iter().zip(&outcomes) {
        rows(*attack, outcomes, &mut report);
    }
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

fn line(outcome: &Outcome) -> String {
    let Outcome { before, during, grown_mib, busy, connections, acts } = outcome;
    format!(
        "p99 calls {:.1} -> {:.1} ms, new connections {:.1} -> {:.1} ms, forwards {:.1} -> {:.1} ms, {} of {} \
         unanswered; +{grown_mib:.0} MiB, {busy:.2} processors; {connections} connections, {acts} acts",
        before.calls_p99_ms,
        during.calls_p99_ms,
        before.connects_p99_ms,
        during.connects_p99_ms,
        before.forwards_p99_ms,
        during.forwards_p99_ms,
        during.failed,
        during.asked,
    )
}

fn rows(attack: Attack, outcomes: &[Outcome], report: &mut Report) {
    let of = |figure: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(figure).collect::<Vec<f64>>();
    let felt: [(&str, Feeling); 3] = [
        ("GetStatus", |felt| felt.calls_p99_ms),
        ("GetStatus on a new connection", |felt| felt.connects_p99_ms),
        ("page through two Peers", |felt| felt.forwards_p99_ms),
    ];
    for (what, p99) in felt {
        let (during, before) = (of(&|outcome| p99(&outcome.during)), of(&|outcome| p99(&outcome.before)));
        let case = Case { name: "", unit: "ms", better: Better::Lower };
        let row = Row::compare(&case, &during, "before the attack", &before);
        // Either of the two is good enough, so the aim of the ratio is the milder one.
        let calm = p2p_tests::bench::median(&before).unwrap_or(f64::INFINITY);
        let aim = P99_RATIO.max(P99_MS / calm);
        report.add(row.map(|row| row.named(format!("{}: {what}, p99", attack.name())).with_aim(Some(aim))));
    }
    let mut alone = |what: &str, unit: &str, aim: Option<f64>, figures: Vec<f64>| {
        let row = Row::alone(&format!("{}: {what}", attack.name()), unit, Better::Lower, &figures);
        report.add(row.map(|row| row.with_aim(aim)));
    };
    alone("honest requests unanswered", "requests", Some(0.0), of(&|outcome| outcome.during.failed as f64));
    alone("memory gained", "MiB", Some(GROWTH_MIB), of(&|outcome| outcome.grown_mib));
    alone("CPU of the attacked process", "CPU-s/s", None, of(&|outcome| outcome.busy));
}

fn arguments() -> anyhow::Result<Plan> {
    let seconds = Duration::from_secs;
    let mut plan = Plan { rounds: 3, attack: seconds(15), calm: seconds(5), only: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} wants a value"))?;
        match name.as_str() {
            "--rounds" => plan.rounds = value.parse()?,
            "--seconds" => plan.attack = Duration::from_secs_f64(value.parse()?),
            "--calm" => plan.calm = Duration::from_secs_f64(value.parse()?),
            "--only" => plan.only = value.split(',').map(str::to_owned).collect(),
            _ => bail!("unknown: {name}; there are --seconds, --calm, --rounds, --only"),
        }
    }
    ensure!(plan.rounds > 0, "--rounds must be positive");
    Ok(plan)
}
