//! [`ServicesTask`]: the owner of the own services: adds, removes and drains them when people ask, and checks their
//! backends (SPEC F1). What a check does is [`probe`]; what follows from it decides [`Health`].
//!
//! After each change the agent gets the services whole, and whoever asked for it is answered when the agent has
//! published them: a request that follows goes where it should.

mod probe;

use std::sync::Arc;

use p2p_common::service::{LocalService, ServiceName};
use p2p_peer_core::{CheckToken, Checked, Health, NotOwn, OwnService, OwnServices, ServicesError};
use p2p_runtime::clock::Clock;
use slog::{Logger, info, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent_task::Input;
use crate::forward::Forwards;

/// Requests of people that wait.
pub(crate) const REQUESTS: usize = 16;

/// A change somebody asks for.
#[derive(Debug)]
pub(crate) enum Change {
    /// A service more.
    Add(LocalService),
    /// One less; its forwards go on.
    Remove(String),
    /// It takes no new forwards, or takes them again.
    Drain(String, bool),
}

/// What people ask.
#[derive(Debug)]
pub(crate) enum Request {
    /// To change something; answered with the service as it is, or as it was before it was removed.
    Change(Change, oneshot::Sender<Result<Row, Refused>>),
    /// All services.
    List(oneshot::Sender<Vec<Row>>),
}

/// Why a change is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It cannot be added.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// There is no such service.
    #[error(transparent)]
    NotOwn(#[from] NotOwn),
}

/// An own service, for people.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) service: OwnService,
    /// Why its last check failed; empty when it did not.
    pub(crate) error: String,
    /// Forwards that its backend carries now.
    pub(crate) active: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct ServicesTask {
    /// What decides.
    pub(crate) health: Health,
    /// What people ask.
    pub(crate) requests: mpsc::Receiver<Request>,
    /// The agent's.
    pub(crate) mailbox: mpsc::Sender<Input>,
    /// Counts what backends carry.
    pub(crate) forwards: Arc<Forwards>,
    /// The clock.
    pub(crate) clock: Clock,
    /// Where to report.
    pub(crate) log: Logger,
}

enum Wake {
    Request(Request),
    Checked(CheckToken, Result<(), String>),
    Due,
    Stop,
}

impl ServicesTask {
    /// Runs until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut checks = JoinSet::new();
        self.forwards.set_own(names(self.health.services()));
        loop {
            while let Some(job) = self.health.take_check(self.clock.now()) {
                checks.spawn(async move {
                    let outcome = probe::check(&job.name, &job.backend, &job.check).await;
                    (job.token, outcome.map_err(|error| error.to_string()))
                });
            }
            let before = self.health.services().clone();
            let answer = match self.select(&mut checks, &stop).await {
                Wake::Stop => return,
                wake => self.apply(wake),
            };
            if before != *self.health.services() && self.publish().await.is_none() {
                return;
            }
            if let Some((answer, outcome)) = answer {
                // Who asked may have left.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn select(
        &mut self,
        checks: &mut JoinSet<(CheckToken, Result<(), String>)>,
        stop: &CancellationToken,
    ) -> Wake {
        let due = self.health.next_due().map(|at| self.clock.instant(at));
        tokio::select! {
            () = stop.cancelled() => Wake::Stop,
            Some(request) = self.requests.recv() => Wake::Request(request),
            Some(Ok((token, outcome))) = checks.join_next() => Wake::Checked(token, outcome),
            () = async { tokio::time::sleep_until(due.expect("guarded")).await }, if due.is_some() => Wake::Due,
            else => Wake::Stop,
        }
    }

    #[expect(clippy::type_complexity, reason = "who is to be answered, and what")]
    fn apply(&mut self, wake: Wake) -> Option<(oneshot::Sender<Result<Row, Refused>>, Result<Row, Refused>)> {
        match wake {
            Wake::Request(Request::Change(change, answer)) => Some((answer, self.change(change))),
            Wake::Request(Request::List(answer)) => {
                let services = self.health.services().iter();
                let rows = services.map(|(name, service)| self.row(name.as_str(), service)).collect();
                let _ = answer.send(rows);
                None
            }
            Wake::Checked(token, outcome) => {
                match self.health.handle_checked(token, outcome, self.clock.now()) {
                    Some(Checked { name, up: true, .. }) => {
                        info!(self.log, "backend up"; "service" => %name);
                    }
                    Some(Checked { name, error, .. }) => {
                        warn!(self.log, "backend down"; "service" => %name, "error" => error);
                    }
                    None => {}
                }
                None
            }
            Wake::Due | Wake::Stop => None,
        }
    }

    fn change(&mut self, change: Change) -> Result<Row, Refused> {
        let name = match change {
            Change::Add(service) => {
                let name = service.name.to_string();
                self.health.add(service, self.clock.now())?;
                info!(self.log, "service added"; "service" => &name);
                name
            }
            Change::Remove(name) => {
                let service = self.health.remove(&name)?;
                info!(self.log, "service removed"; "service" => &name);
                return Ok(self.row(&name, &service));
            }
            Change::Drain(name, draining) => {
                self.health.set_draining(&name, draining)?;
                info!(self.log, "service drain changed"; "service" => &name, "draining" => draining);
                name
            }
        };
        let service = self.health.services().get(&name).cloned().ok_or(NotOwn(name.clone()))?;
        Ok(self.row(&name, &service))
    }

    fn row(&self, name: &str, service: &OwnService) -> Row {
        Row {
            name: name.to_owned(),
            service: service.clone(),
            error: self.health.error(name).to_owned(),
            active: self.forwards.active_of(name),
        }
    }

    /// Hands the services to the agent and waits until it has published them; none when it is gone.
    async fn publish(&self) -> Option<()> {
        let services = self.health.services().clone();
        self.forwards.set_own(names(&services));
        let (done, published) = oneshot::channel();
        self.mailbox.send(Input::Services(services, done)).await.ok()?;
        published.await.ok()
    }
}

fn names(services: &OwnServices) -> impl Iterator<Item = &ServiceName> {
    services.iter().map(|(name, _)| name)
}
