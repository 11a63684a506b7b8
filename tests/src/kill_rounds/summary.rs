//! What came out of kill rounds, for people and for the next run to be held against.

use std::collections::BTreeMap;

use crate::bench::{Better, Report, Row, median};

/// What came out for one size of cluster.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many Servers there were.
    pub servers: usize,
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
    /// Operations in the history, which is linearizable.
    pub operations: usize,
    /// Of these, the acknowledged writes.
    pub operations_written: usize,
    /// Of these, the ones of unknown outcome.
    pub operations_unknown: usize,
    /// Servers killed.
    pub kills: usize,
    /// Servers frozen for a while.
    pub freezes: usize,
    /// Times without an acknowledged write, in ms: the longest while a quorum ran.
    pub longest_gap_ms: f64,
    /// The longest when no quorum ran; much of it is the wait for the restart.
    pub longest_gap_without_quorum_ms: f64,
    /// From the kill of a Master to the answer to a write that began after it, in ms.
    pub failovers_ms: Vec<f64>,
    /// The same from the moment a Master froze.
    pub failovers_frozen_ms: Vec<f64>,
    /// From the start of a killed Server until it says it is ready, in ms.
    pub restarts_ms: Vec<f64>,
    /// From sending a write to its acknowledgement, in ms: medians between the checks, in their order.
    pub writes_ms: Vec<f64>,
    /// All in all, from the first fault to the last check.
    pub seconds: f64,
    /// Why writes and other operations did not come to their end, and how often.
    pub reasons: BTreeMap<String, usize>,
}

impl Summary {
    /// A few lines for people.
    pub fn lines(&self) -> String {
        let reasons: Vec<_> =
            self.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let reasons = if reasons.is_empty() { "-".into() } else { reasons.join(", ") };
        let failovers = |figures: &[f64]| {
            let longest = figures.iter().copied().fold(0.0, f64::max);
            format!(
                "median {:.0} ms, longest of {} {longest:.0} ms",
                median(figures).unwrap_or(0.0),
                figures.len()
            )
        };
        format!(
            "{} servers: {} kills and {} freezes in {:.0} s\n\
             tokens: {} acknowledged, none lost; {} failed, {} unknown of which {} there; {} looks, {} unseen\n\
             history: {} operations, linearizable; {} writes acknowledged, {} of unknown outcome\n\
             no answer because: {reasons}\n\
             failover after SIGKILL {}; after SIGSTOP {}\n\
             longest gap without an acknowledged write {:.0} ms, without a quorum {:.0} ms\n\
             restart median {:.0} ms; write median {:.1} ms at first, {:.1} ms at last",
            self.servers,
            self.kills,
            self.freezes,
            self.seconds,
            self.acknowledged,
            self.failed,
            self.unknown,
            self.unknown_there,
            self.looks,
            self.unseen,
            self.operations,
            self.operations_written,
            self.operations_unknown,
            failovers(&self.failovers_ms),
            failovers(&self.failovers_frozen_ms),
            self.longest_gap_ms,
            self.longest_gap_without_quorum_ms,
            median(&self.restarts_ms).unwrap_or(0.0),
            self.writes_ms.first().unwrap_or(&0.0),
            self.writes_ms.last().unwrap_or(&0.0),
        )
    }
}

/// The figures as `target/bench/kill-rounds.json` has them.
pub fn report(summaries: &[Summary]) -> Report {
    let mut report = Report::new("kill-rounds");
    for summary in summaries {
        let mut add = |name: &str, unit, better, figures: &[f64]| {
            let name = format!("{} servers: {name}", summary.servers);
            report.add(Row::alone(&name, unit, better, figures));
        };
        let count = |count: usize| [count as f64];
        add("killed", "kills", Better::Higher, &count(summary.kills));
        add("frozen", "freezes", Better::Higher, &count(summary.freezes));
        add("tokens acknowledged", "writes", Better::Higher, &count(summary.acknowledged));
        add("tokens of unknown outcome", "writes", Better::Lower, &count(summary.unknown));
        // Any other number ends the run without a report, and so does a history that is not linearizable.
        add("acknowledged writes lost", "writes", Better::Lower, &count(0));
        add("linearizable history", "operations", Better::Higher, &count(summary.operations));
        add("of these, acknowledged writes", "writes", Better::Higher, &count(summary.operations_written));
        add("of these, unknown outcome", "operations", Better::Lower, &count(summary.operations_unknown));
        add("failover after SIGKILL of the Master", "ms", Better::Lower, &summary.failovers_ms);
        add("failover after SIGSTOP of the Master", "ms", Better::Lower, &summary.failovers_frozen_ms);
        add("longest gap with a quorum", "ms", Better::Lower, &[summary.longest_gap_ms]);
        add("longest gap without a quorum", "ms", Better::Lower, &[summary.longest_gap_without_quorum_ms]);
        add("restart until ready", "ms", Better::Lower, &summary.restarts_ms);
        add("write, medians between checks", "ms", Better::Lower, &summary.writes_ms);
        add("whole run", "s", Better::Lower, &[summary.seconds]);
    }
    report
}
