//! Which Servers this one reaches now, and since when each runs: what the small-cluster rules go by (SPEC C4, C5).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::Now;
use p2p_common::member::RaftId;
use p2p_runtime::clock::ClockBase;

use crate::ca::CaHere;

/// The remotes that are connected and have been heard of, by raft id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Each of them; whoever is not in here is not reached.
    pub of: BTreeMap<RaftId, Reached>,
}

/// One remote that is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// When its process started, on this process's clock: the moment of receipt less the uptime it told, the earliest of
    /// all tellings of one run, since a message on its way only makes it look younger.
    pub started: Now,
    /// Connected since.
    pub since: Now,
    /// The last round trip; none before the first.
    pub rtt: Option<Duration>,
    /// How far its wall clock is ahead of ours in ms, give or take half a round trip; none before the first probe.
    pub clock_ahead_ms: Option<i64>,
    /// What its wall clock shows; none before the first probe.
    pub clock: Option<ClockBase>,
    /// What it has of the CAs; empty before the first probe.
    pub cas: Arc<[CaHere]>,
    /// It says that it is about to stop.
    pub stopping: bool,
}
