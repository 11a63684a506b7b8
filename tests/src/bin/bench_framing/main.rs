//! `make bench-framing`: what it costs to frame both directions of HTTP/1, with our framing and with hyper.
//!
//! A hop takes requests from a kept-alive client connection, reads the Host, and carries them to a kept-alive
//! backend connection and the responses back, knowing where each message ends. Both connections are in memory
//! and next to free, and all is on one thread, so that the figures are those of the hop alone; no TCP, TLS or
//! tunnel is in them. `--rounds N` and `--scale F` (times the requests) change the length.

mod allocations;
mod own;
mod script;
mod with_hyper;

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use p2p_tests::bench::{Better, Case, Figures, Report, Row, own_cpu_seconds};

use self::script::{Exchange, ends};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Who carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Own,
    Hyper,
    HyperKeepingNames,
}

const OWN: &str = "own framing";
const HYPER: &str = "hyper";
const HYPER_KEEPING_NAMES: &str = "hyper, field names as spelled";

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Contestant::Own => OWN,
            Contestant::Hyper => HYPER,
            Contestant::HyperKeepingNames => HYPER_KEEPING_NAMES,
        }
    }
}

/// What is asked and answered, again and again.
#[derive(Debug)]
struct Load {
    exchange: Arc<Exchange>,
    /// Requests in a round.
    requests: usize,
    cost: Case,
    allocations: Case,
    /// Where the bytes are what counts.
    rate: Option<Case>,
}

const fn cost(name: &'static str) -> Case {
    Case { name, unit: "CPU-us/request", better: Better::Lower }
}

const fn allocated(name: &'static str) -> Case {
    Case { name, unit: "allocations/request", better: Better::Lower }
}

const fn rate(name: &'static str) -> Case {
    Case { name, unit: "MB/CPU-s", better: Better::Higher }
}

fn loads(scale: f64) -> Vec<Load> {
    let requests = |count: f64| (count * scale).max(10.0) as usize;
    vec![
        Load {
            exchange: Arc::new(Exchange::by_length(0, 128)),
            requests: requests(200_000.0),
            cost: cost("GET, 128 B back"),
            allocations: allocated("GET, 128 B back, allocations"),
            rate: None,
        },
        Load {
            exchange: Arc::new(Exchange::by_length(4096, 128)),
            requests: requests(100_000.0),
            cost: cost("POST of 4 KiB, 128 B back"),
            allocations: allocated("POST of 4 KiB, 128 B back, allocations"),
            rate: None,
        },
        Load {
            exchange: Arc::new(Exchange::in_chunks(64 * 1024, 4096)),
            requests: requests(20_000.0),
            cost: cost("GET, 64 KiB back in 4 KiB chunks"),
            allocations: allocated("GET, 64 KiB back in 4 KiB chunks, allocations"),
            rate: Some(rate("GET, 64 KiB back in 4 KiB chunks, bytes")),
        },
        Load {
            exchange: Arc::new(Exchange::by_length(0, 1 << 20)),
            requests: requests(2_000.0),
            cost: cost("GET, 1 MiB back"),
            allocations: allocated("GET, 1 MiB back, allocations"),
            rate: Some(rate("GET, 1 MiB back, bytes")),
        },
    ]
}

fn main() -> anyhow::Result<()> {
    let (rounds, scale) = arguments()?;
    let loads = loads(scale);
    let mut contestants = vec![Contestant::Own, Contestant::Hyper, Contestant::HyperKeepingNames];
    let mut figures = Figures::default();
    for load in &loads {
        for contestant in &contestants {
            check(*contestant, &load.exchange).with_context(|| contestant.name())?;
            // Fills caches.
            run(*contestant, &load.exchange, load.requests / 10)?;
            let allocated = allocations_per_request(*contestant, &load.exchange)?;
            figures.add(contestant.name(), &load.allocations, allocated);
        }
    }
    for round in 0..rounds {
        // Each round starts with another one, so that none always follows the same neighbour.
        contestants.rotate_left(usize::from(round > 0));
        for load in &loads {
            for contestant in &contestants {
                let before = own_cpu_seconds();
                run(*contestant, &load.exchange, load.requests)?;
                let used = own_cpu_seconds() - before;
                let requests = load.requests as f64;
                figures.add(contestant.name(), &load.cost, used * 1e6 / requests);
                if let Some(rate) = &load.rate {
                    let bytes = load.exchange.response.len() as f64;
                    figures.add(contestant.name(), rate, requests * bytes / 1e6 / used);
                }
            }
        }
        println!("round {} of {rounds}", round + 1);
    }
    let mut report = Report::new("framing");
    for load in &loads {
        for case in [Some(&load.cost), load.rate.as_ref(), Some(&load.allocations)].into_iter().flatten() {
            for rival in [HYPER, HYPER_KEEPING_NAMES] {
                report.add(Row::compare(case, figures.of(OWN, case), rival, figures.of(rival, case)));
            }
        }
    }
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

/// Carries `requests` exchanges; gives the first request and response as they arrived.
fn run(
    contestant: Contestant,
    exchange: &Arc<Exchange>,
    requests: usize,
) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let (client, backend) = ends(exchange, requests);
    let observer = client.observer();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        match contestant {
            Contestant::Own => own::carry(client, backend).await,
            Contestant::Hyper => with_hyper::carry(client, backend, false).await,
            Contestant::HyperKeepingNames => with_hyper::carry(client, backend, true).await,
        }
    })?;
    ensure!(observer.is_done(), "the hop ended before the client");
    Ok(observer.seen())
}

/// Whether what arrives is what was sent: byte for byte with ours, up to the spelling of the heads and the
/// size of the chunks with hyper.
fn check(contestant: Contestant, exchange: &Arc<Exchange>) -> anyhow::Result<()> {
    let (request, response) = run(contestant, exchange, 3)?;
    let same = |arrived: &[u8], sent: &[u8]| match contestant {
        Contestant::Own => arrived == sent,
        Contestant::Hyper | Contestant::HyperKeepingNames => {
            script::data_bytes(arrived) == script::data_bytes(sent)
        }
    };
    ensure!(same(&request, &exchange.request), "the request changed on its way");
    ensure!(same(&response, &exchange.response), "the response changed on its way");
    Ok(())
}

/// Without what a connection costs once.
fn allocations_per_request(contestant: Contestant, exchange: &Arc<Exchange>) -> anyhow::Result<f64> {
    const FEW: usize = 100;
    const MORE: usize = 200;
    let count = |requests| {
        let (result, allocations) = allocations::count(|| run(contestant, exchange, requests));
        result.map(|_| allocations as f64)
    };
    Ok((count(FEW + MORE)? - count(FEW)?) / MORE as f64)
}

fn arguments() -> anyhow::Result<(usize, f64)> {
    let (mut rounds, mut scale) = (7, 1.0);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} wants a value"))?;
        match arg.as_str() {
            "--rounds" => rounds = value.parse().context("--rounds wants a number")?,
            "--scale" => scale = value.parse().context("--scale wants a number")?,
            _ => bail!("usage: bench_framing [--rounds N] [--scale F]"),
        }
    }
    ensure!(rounds > 0 && scale > 0.0, "--rounds and --scale want more than 0");
    Ok((rounds, scale))
}
