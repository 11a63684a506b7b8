//! `make bench-raft`: writes, linearizable reads and failover of three Servers beside three members of etcd.
//!
//! Both groups run on this host at the same time, over TLS, each member with its data on the same file system, every
//! write synced at a majority. etcd is the distribution's, tuned to the time-outs of our Servers (heartbeat 50 ms,
//! election 500 ms). One load generator drives both in turns, at the leader; it shares the processors with them.
//! `--rounds N`, `--seconds S` and `--blows N` change the length; `--only writes,reads,failover` what is measured.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use p2p_tests::bench::{
    Access as _, Better, Blow, Case, Client as _, Etcd, Figures, Group, OurServers, Report, Row, Throughput,
    Work, cpu_seconds, failover_ms, find_or_install_from, load,
};
use tokio::runtime::Runtime;

const VALUE_BYTES: usize = 256;
const OURS: &str = "p2p-server";
const THEIRS: &str = "etcd";

/// A load, its cases for rate, p50 and p99, and what the project wants of the rate.
struct Load {
    name: &'static str,
    clients: usize,
    work: Work,
    rate: Case,
    p50: Case,
    p99: Case,
    cost: Case,
    aim: f64,
}

macro_rules! loads {
    ($($name:literal, $clients:literal, $work:ident, $aim:literal;)*) => {
        [$(Load {
            name: $name,
            clients: $clients,
            work: Work::$work(VALUE_BYTES),
            rate: Case { name: $name, unit: "op/s", better: Better::Higher },
            p50: Case { name: concat!($name, ", p50"), unit: "ms", better: Better::Lower },
            p99: Case { name: concat!($name, ", p99"), unit: "ms", better: Better::Lower },
            cost: Case { name: concat!($name, ", CPU of the members"), unit: "CPU-us/op", better: Better::Lower },
            aim: $aim,
        }),*]
    };
}

const LOADS: [Load; 4] = loads! {
    "writes, 1 client", 1, Write, 0.75;
    "writes, 16 clients", 16, Write, 1.3;
    "writes, 256 clients", 256, Write, 1.1;
    "linearizable reads, 64 clients", 64, Read, 1.5;
};

const BLOWS: [(Blow, Case, f64); 2] = [
    (Blow::Killed, Case { name: "failover after SIGKILL", unit: "ms", better: Better::Lower }, 0.1),
    (Blow::Frozen, Case { name: "failover after SIGSTOP", unit: "ms", better: Better::Lower }, 0.8),
];

struct Plan {
    rounds: usize,
    seconds: f64,
    blows: usize,
    only: Vec<String>,
}

impl Plan {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

fn main() -> anyhow::Result<()> {
    let plan = arguments()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let dir = tempfile::Builder::new().prefix("p2pcore-etcd-").tempdir()?;
    println!("starting three Servers and three members of etcd");
    let mut ours = OurServers::start()?;
    let mut theirs = match find_or_install_from("etcd", "etcd-server") {
        Some(program) => Some(Etcd::start(&program, dir.path()).with_context(|| log_of(dir.path()))?),
        None => None,
    };
    let mut figures = Figures::default();
    let measured = measure(&plan, &runtime, &mut ours, theirs.as_mut(), &mut figures);
    ours.explain(measured)?;

    let rival = if theirs.is_some() { "etcd, 50/500 ms, TLS" } else { "etcd: not to be had here" };
    let mut report = Report::new("raft");
    let mut add = |case: &Case, aim: Option<f64>| {
        let row = Row::compare(case, figures.of(OURS, case), rival, figures.of(THEIRS, case));
        report.add(row.map(|row| row.with_aim(aim)));
    };
    for load in &LOADS {
        add(&load.rate, Some(load.aim));
        for case in [&load.p50, &load.p99, &load.cost] {
            add(case, None);
        }
    }
    for (_, case, aim) in &BLOWS {
        add(case, Some(*aim));
    }
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

fn measure(
    plan: &Plan,
    runtime: &Runtime,
    ours: &mut OurServers,
    mut theirs: Option<&mut Etcd>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for round in 1..=plan.rounds {
        for spec in &LOADS {
            let part = if matches!(spec.work, Work::Write(_)) { "writes" } else { "reads" };
            if !plan.wants(part) {
                continue;
            }
            let pids = ours.pids();
            let mine = one(runtime, ours, &pids, spec, plan.seconds, OURS, figures).context("our Servers")?;
            let mut line = format!("round {round}: {}: {:.0} op/s", spec.name, mine.per_s);
            if let Some(etcd) = theirs.as_deref_mut() {
                let pids = etcd.pids();
                let other = one(runtime, etcd, &pids, spec, plan.seconds, THEIRS, figures).context("etcd")?;
                line += &format!(", etcd {:.0}, ratio {:.2}", other.per_s, mine.per_s / other.per_s);
            }
            println!("{line}");
        }
    }
    for round in 1..=plan.blows {
        for (blow, case, _) in &BLOWS {
            if !plan.wants("failover") {
                continue;
            }
            let mine = failover_ms(ours, runtime, *blow).context("our Servers")?;
            figures.add(OURS, case, mine);
            let mut line = format!("blow {round}: {}: {mine:.0} ms", case.name);
            if let Some(etcd) = theirs.as_deref_mut() {
                let other = failover_ms(etcd, runtime, *blow).context("etcd")?;
                figures.add(THEIRS, case, other);
                line += &format!(", etcd {other:.0} ms");
            }
            println!("{line}");
        }
    }
    Ok(())
}

fn one<G: Group>(
    runtime: &Runtime,
    group: &mut G,
    pids: &[u32],
    spec: &Load,
    seconds: f64,
    contestant: &'static str,
    figures: &mut Figures,
) -> anyhow::Result<Throughput> {
    let leader = group.leader()?;
    let access = group.access(leader)?;
    if matches!(spec.work, Work::Read(_)) {
        let value = "v".repeat(VALUE_BYTES);
        runtime.block_on(async { access.connect().await?.write(&value).await })?;
    }
    let before = cpu_seconds(pids)?;
    let length = Duration::from_secs_f64(seconds);
    let found = runtime.block_on(load(&access, spec.clients, &spec.work, length))?;
    // The load began a tenth earlier than it was counted.
    let operations = found.per_s * seconds * 1.1;
    figures.add(contestant, &spec.rate, found.per_s);
    figures.add(contestant, &spec.p50, found.p50_ms);
    figures.add(contestant, &spec.p99, found.p99_ms);
    figures.add(contestant, &spec.cost, (cpu_seconds(pids)? - before) * 1e6 / operations);
    Ok(found)
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("e1.log")).unwrap_or_default()
}

fn arguments() -> anyhow::Result<Plan> {
    let mut plan = Plan { rounds: 7, seconds: 3.0, blows: 15, only: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} wants a value"))?;
        match name.as_str() {
            "--rounds" => plan.rounds = value.parse()?,
            "--seconds" => plan.seconds = value.parse()?,
            "--blows" => plan.blows = value.parse()?,
            "--only" => plan.only = value.split(',').map(str::to_owned).collect(),
            _ => bail!("unknown: {name}; there are --rounds, --seconds, --blows, --only"),
        }
    }
    ensure!(plan.seconds > 0.0, "--seconds must be positive");
    Ok(plan)
}
