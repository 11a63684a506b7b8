//! How long a group takes no writes after its leader was struck.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{Access, Client, Group};
use crate::cluster::Signal;

/// Between two attempts at each survivor: what the figure is exact to.
const EVERY: Duration = Duration::from_millis(5);
/// An attempt that takes longer is none of interest any more.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Nobody takes this long.
const GIVE_UP: Duration = Duration::from_secs(20);

/// What happens to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL: its connections break.
    Killed,
    /// SIGSTOP: it falls silent, its connections stay.
    Frozen,
}

/// Strikes the leader and waits for the first acknowledged write that began after that, at any survivor; then
/// brings the member back. In ms.
///
/// Every survivor is asked anew each few ms, each time as if by a new client: what a client that waited too long
/// between two attempts would add is not counted, for either group.
///
/// # Errors
/// When no write gets through, or the group does not come back.
pub fn failover_ms<G: Group>(group: &mut G, runtime: &Runtime, blow: Blow) -> anyhow::Result<f64> {
    let leader = group.leader()?;
    let mut survivors = Vec::new();
    for place in (0..3).filter(|place| *place != leader) {
        let access = group.access(place)?;
        survivors.push(runtime.block_on(access.connect())?);
    }
    let process = group.process(leader)?;
    match blow {
        Blow::Killed => process.kill()?,
        Blow::Frozen => process.signal(Signal::Stop)?,
    }
    let took = runtime.block_on(first_write(survivors));
    match blow {
        Blow::Killed => group.restart(leader)?,
        Blow::Frozen => group.process(leader)?.signal(Signal::Continue)?,
    }
    group.wait_healthy()?;
    Ok(took?.as_secs_f64() * 1e3)
}

async fn first_write<C: Client>(survivors: Vec<C>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let (done, mut first) = mpsc::channel(1);
    let asking = async {
        loop {
            for client in &survivors {
                let (mut client, done) = (client.clone(), done.clone());
                tokio::spawn(async move {
                    let written = tokio::time::timeout(ATTEMPT, client.write("after the blow")).await;
                    if matches!(written, Ok(Ok(()))) {
                        // A later one finds the place taken.
                        let _ = done.try_send(began.elapsed());
                    }
                });
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = asking => bail!("nobody asks any more"),
        took = first.recv() => took.context("nobody answers any more"),
        () = tokio::time::sleep(GIVE_UP) => bail!("no write got through in {GIVE_UP:?}"),
    }
}
