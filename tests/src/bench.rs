//! Side by side measurements: ours and a rival in turns, medians, a table and `target/bench/NAME.json`.
//!
//! Both are measured in every round, so that a ratio compares figures of the same minute: the ratio of a row
//! is the median of the rounds' ratios. A figure that was not measured has no row; a rival that is not to be
//! had has a row that says so.

mod consensus;
mod cpu;
mod footprint;
pub mod hostile;
mod load;
mod paced;
mod rivals;
mod tools;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

pub use consensus::{Access, Blow, Client, Etcd, Group, OurServers, Throughput, Work, failover_ms, load};
pub use cpu::{cpu_seconds, own_cpu_seconds};
pub use footprint::{Footprint, footprint};
pub use load::{Bulk, Load, Reuse, bulk, requests};
pub use paced::paced_p99_ms;
pub use rivals::{Haproxy, Nginx, Rathole, RatholeTransport, haproxy_chain, haproxy_plain};
pub use tools::{cargo_install, find_or_install, find_or_install_from};

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A rate.
    Higher,
    /// A time or a cost.
    Lower,
}

/// What is measured, in which unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// For people, with the load.
    pub name: &'static str,
    /// Of ours and theirs.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
}

/// A line of the result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    case: String,
    unit: String,
    better: Better,
    /// The median.
    ours: f64,
    rival: String,
    /// The median; none when the rival is not to be had.
    theirs: Option<f64>,
    /// Ours over theirs, the median of the rounds.
    ratio: Option<f64>,
    /// What the project wants of `ratio`, or of `ours` where there is no rival; none while only a start is
    /// recorded.
    aim: Option<f64>,
    rounds: usize,
    /// The smallest ratio of a round; of ours alone, where there is no rival.
    min: Option<f64>,
    /// The largest.
    max: Option<f64>,
}

/// A whole result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    bench: String,
    commit: String,
    cpu: String,
    rows: Vec<Row>,
}

/// Figures of all rounds, by contestant and case, in the order of the rounds.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    by_contestant: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

impl Figures {
    /// Adds one round's figure.
    pub fn add(&mut self, contestant: &'static str, case: &Case, figure: f64) {
        self.by_contestant.entry((contestant, case.name)).or_default().push(figure);
    }

    /// All figures of one contestant and case.
    pub fn of(&self, contestant: &'static str, case: &Case) -> &[f64] {
        self.by_contestant.get(&(contestant, case.name)).map_or(&[], Vec::as_slice)
    }
}

impl Row {
    /// Compares the figures of `ours` and of `rival`, which were measured in the same rounds. No row without
    /// figures of ours.
    pub fn compare(case: &Case, ours: &[f64], rival: &str, theirs: &[f64]) -> Option<Row> {
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        ratios.sort_by(f64::total_cmp);
        Some(Row {
            case: case.name.into(),
            unit: case.unit.into(),
            better: case.better,
            ours: median(ours)?,
            rival: rival.into(),
            theirs: median(theirs),
            ratio: median(&ratios),
            aim: None,
            rounds: ours.len(),
            min: ratios.first().copied(),
            max: ratios.last().copied(),
        })
    }
}

impl Row {
    /// Figures that are compared with nobody's; as smallest and largest it has its own. No row without figures.
    pub fn alone(name: &str, unit: &str, better: Better, figures: &[f64]) -> Option<Row> {
        Some(Row {
            case: name.into(),
            unit: unit.into(),
            better,
            ours: median(figures)?,
            rival: "none".into(),
            theirs: None,
            ratio: None,
            aim: None,
            rounds: figures.len(),
            min: figures.iter().copied().reduce(f64::min),
            max: figures.iter().copied().reduce(f64::max),
        })
    }

    /// Gives it a name that is made up of parts.
    #[must_use]
    pub fn named(mut self, case: String) -> Row {
        self.case = case;
        self
    }

    /// Says what the project wants of it.
    #[must_use]
    pub fn with_aim(mut self, aim: Option<f64>) -> Row {
        self.aim = aim;
        self
    }

    /// Whether the aim is reached; none without an aim or a figure to hold against it.
    pub fn is_met(&self) -> Option<bool> {
        let found = if self.theirs.is_some() { self.ratio? } else { self.ours };
        let aim = self.aim?;
        Some(match self.better {
            Better::Higher => found >= aim,
            Better::Lower => found <= aim,
        })
    }
}

impl Report {
    /// An empty result of `bench` on this machine and commit.
    pub fn new(bench: &str) -> Self {
        Report { bench: bench.into(), commit: commit(), cpu: cpu_model(), rows: Vec::new() }
    }

    /// Adds a row, if there is one.
    pub fn add(&mut self, row: Option<Row>) {
        self.rows.extend(row);
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut table = format!("{} at {} on {}\n", self.bench, self.commit, self.cpu);
        table += "| case | unit | ours | rival | theirs | ratio (min-max) | aim | rounds |\n";
        table += "| ---- | ---- | ---- | ----- | ------ | --------------- | --- | ------ |\n";
        for row in &self.rows {
            let theirs = row.theirs.map_or("-".into(), figure);
            let ratio = match (row.ratio, row.min, row.max) {
                (Some(ratio), Some(min), Some(max)) => format!("{ratio:.2} ({min:.2}-{max:.2})"),
                _ => "-".into(),
            };
            let verdict = match row.is_met() {
                Some(true) => " met",
                Some(false) => " missed",
                None => "",
            };
            let aim = row.aim.map_or("-".into(), |aim| format!("{}{verdict}", figure(aim)));
            let (case, unit, rival, rounds) = (&row.case, &row.unit, &row.rival, row.rounds);
            let ours = figure(row.ours);
            table +=
                &format!("| {case} | {unit} | {ours} | {rival} | {theirs} | {ratio} | {aim} | {rounds} |\n");
        }
        table
    }

    /// Writes `target/bench/NAME.json` and returns its path.
    pub fn write(&self) -> anyhow::Result<PathBuf> {
        let dir = crate::repository_root().join("target/bench");
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let path = dir.join(format!("{}.json", self.bench));
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// The middle figure, or the mean of the two in the middle.
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(crate::repository_root()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    match (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit} with changes"),
        (None, _) => "unknown".into(),
    }
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_string());
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(value);
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} x {}", count, model.unwrap_or_else(|| "unknown".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case { name: "c", unit: "u", better: Better::Higher };

    #[test]
    fn compares_round_by_round() {
        let row = Row::compare(&CASE, &[10.0, 30.0, 20.0], "rival", &[10.0, 10.0, 40.0]).unwrap();
        assert_eq!((row.ours, row.theirs, row.ratio), (20.0, Some(10.0), Some(1.0)));
        assert_eq!((row.min, row.max, row.rounds), (Some(0.5), Some(3.0), 3));
    }

    #[test]
    fn an_aim_is_a_bound_on_the_ratio_or_on_ours() {
        let met = |better, theirs: &[f64], aim| {
            let row = Row::compare(&Case { better, ..CASE }, &[2.0], "rival", theirs).unwrap();
            row.with_aim(aim).is_met()
        };
        assert_eq!(met(Better::Higher, &[1.0], Some(2.0)), Some(true));
        assert_eq!(met(Better::Lower, &[1.0], Some(1.9)), Some(false));
        assert_eq!(met(Better::Lower, &[], Some(2.0)), Some(true));
        assert_eq!(met(Better::Higher, &[1.0], None), None);
    }

    #[test]
    fn a_missing_rival_has_a_row_and_a_missing_figure_none() {
        let row = Row::compare(&CASE, &[1.0], "rival: not installed", &[]).unwrap();
        assert_eq!((row.theirs, row.ratio), (None, None));
        assert_eq!(Row::compare(&CASE, &[], "rival", &[1.0]), None);
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!((&json["better"], &json["theirs"]), (&"higher".into(), &serde_json::Value::Null));
    }

    #[test]
    fn the_median_of_an_even_count_is_a_mean() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }
}
