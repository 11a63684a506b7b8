//! [`Health`]: the own services at run time: which are offered, which of their backends are checked, which drain.
//!
//! ```text
//! add ─► up ◄──────── a check succeeds ────────┐
//!         ├─ the first check fails, or three ──┴─► down
//!         └─ drain ─► draining ─ resume ─► as its checks say
//! ```
//!
//! A service without a check is up. Checks are due every [`CHECK_EVERY`], spread so that those of one Peer do not come
//! together; at most [`CHECKS_MAX`] run at a time. It takes [`FAILURES_MAX`] failures in a row to take down what has
//! worked, so that one lost packet does not, and one to keep down what has never worked.
//!
//! Pure: [`Health::take_check`] says what to check, [`Health::handle_checked`] takes what came of it. Owner: the task
//! that runs the checks; the agent gets [`Health::services`] whole after each change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use p2p_common::Now;
use p2p_common::addr::HostPort;
use p2p_common::backoff::Jitter;
use p2p_common::service::{HealthCheck, LocalService, ServiceName, ServiceState, Visibility};

use crate::services::{OwnService, OwnServices, ServicesError};

/// Between two checks of a backend, on average: clients see a dead one for 15 s at most, and a check costs nothing.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How far a check may be off, so that the checks of many services spread.
const CHECK_SPREAD: Duration = Duration::from_millis(500);
/// Failures in a row after which a backend that worked is down.
pub const FAILURES_MAX: u32 = 3;
/// Checks that run at a time; others wait. With 2 s each, a Peer's 1,024 services are checked within 32 s even if
/// none answers.
pub const CHECKS_MAX: usize = 64;

/// The own services at run time: which are offered, which of their backends are checked, which drain.
#[derive(Debug)]
pub struct Health {
    services: OwnServices,
    visibility: Visibility,
    checks: BTreeMap<ServiceName, Check>,
    draining: BTreeSet<ServiceName>,
    running: usize,
    next: u64,
    jitter: Jitter,
}

#[derive(Debug)]
struct Check {
    token: CheckToken,
    due: Now,
    running: bool,
    /// Whether a check has succeeded, ever.
    worked: bool,
    failures: u32,
    /// Why the last one failed; empty when it did not.
    error: String,
}

/// Names the checks of one service, from when it is added until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckToken(u64);

/// A check to be run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckJob {
    /// For [`Health::handle_checked`].
    pub token: CheckToken,
    /// Of which service.
    pub name: ServiceName,
    /// Where it runs.
    pub backend: HostPort,
    /// How it is asked.
    pub check: HealthCheck,
}

/// A check that changed the state of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Which service.
    pub name: ServiceName,
    /// Whether its backend works now.
    pub up: bool,
    /// Why not; empty when it does.
    pub error: String,
}

/// A name that is no own service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this Peer has no service '{0}'; `p2p-peer service list` lists those it has")]
pub struct NotOwn(pub String);

impl Health {
    /// With the services of the configuration; those added later are seen by `visibility` unless they say more.
    pub fn new(services: OwnServices, visibility: Visibility, seed: u64, now: Now) -> Self {
        let mut health = Health {
            services: services.clone(),
            visibility,
            checks: BTreeMap::new(),
            draining: BTreeSet::new(),
            running: 0,
            next: 0,
            jitter: Jitter::new(seed),
        };
        for (name, service) in services.iter().filter(|(_, service)| service.check.is_some()) {
            debug_assert!(
                service.state == ServiceState::Up,
                "a configured service is up until it was checked"
            );
            health.start_checks(name.clone(), now);
        }
        health
    }

    /// The services with their states.
    pub fn services(&self) -> &OwnServices {
        &self.services
    }

    /// Why the last check of a service failed; empty when it did not, or when there is none.
    pub fn error(&self, name: &str) -> &str {
        self.checks.get(name).map_or("", |check| &check.error)
    }

    /// Adds a service.
    ///
    /// # Errors
    /// When it cannot be taken; then nothing has changed.
    pub fn add(&mut self, service: LocalService, now: Now) -> Result<(), ServicesError> {
        let (name, checked) = (service.name.clone(), service.check.is_some());
        self.services.add(service, &self.visibility)?;
        if checked {
            self.start_checks(name, now);
        }
        Ok(())
    }

    /// Takes a service away.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove(&mut self, name: &str) -> Result<OwnService, NotOwn> {
        let removed = self.services.remove(name).ok_or_else(|| NotOwn(name.to_owned()))?;
        self.draining.remove(name);
        if self.checks.remove(name).is_some_and(|check| check.running) {
            // Its result will name a check that is not known any more.
            self.running -= 1;
        }
        Ok(removed)
    }

    /// Lets a service take no new forwards, or take them again.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn set_draining(&mut self, name: &str, draining: bool) -> Result<(), NotOwn> {
        let Some((name, _)) = self.services.iter().find(|(own, _)| own.as_str() == name) else {
            return Err(NotOwn(name.to_owned()));
        };
        let name = name.clone();
        if draining {
            self.draining.insert(name.clone());
        } else {
            self.draining.remove(&name);
        }
        self.refresh(&name);
        Ok(())
    }

    /// When the next check may start; none while nothing is to be checked or all that may run do.
    pub fn next_due(&self) -> Option<Now> {
        if self.running >= CHECKS_MAX {
            return None;
        }
        self.checks.values().filter(|check| !check.running).map(|check| check.due).min()
    }

    /// A check that is to run now; it counts as running until [`Health::handle_checked`].
    pub fn take_check(&mut self, now: Now) -> Option<CheckJob> {
        if self.running >= CHECKS_MAX {
            return None;
        }
        let waiting = self.checks.iter_mut().filter(|(_, check)| !check.running && check.due <= now);
        let (name, check) = waiting.min_by_key(|(_, check)| check.due)?;
        let service = self.services.get(name.as_str()).expect("checks are of services");
        check.running = true;
        self.running += 1;
        Some(CheckJob {
            token: check.token,
            name: name.clone(),
            backend: service.backend.clone(),
            check: service.check.clone().expect("it is checked"),
        })
    }

    /// What came of a check; says when that changed the state of its backend.
    pub fn handle_checked(
        &mut self,
        token: CheckToken,
        outcome: Result<(), String>,
        now: Now,
    ) -> Option<Checked> {
        // Of a service that was removed meanwhile nobody wants to know.
        let (name, check) = self.checks.iter_mut().find(|(_, check)| check.token == token)?;
        let name = name.clone();
        check.running = false;
        self.running -= 1;
        check.due = Now(now.0 + CHECK_EVERY - CHECK_SPREAD / 2 + self.jitter.spread(CHECK_SPREAD));
        let before = check.is_up();
        match outcome {
            Ok(()) => {
                check.worked = true;
                check.failures = 0;
                check.error = String::new();
            }
            Err(error) => {
                check.failures = check.failures.saturating_add(1);
                check.error = error;
            }
        }
        let (up, error) = (check.is_up(), check.error.clone());
        self.refresh(&name);
        (up != before).then_some(Checked { name, up, error })
    }

    fn start_checks(&mut self, name: ServiceName, now: Now) {
        let token = CheckToken(self.next);
        self.next += 1;
        let due = Now(now.0 + self.jitter.spread(CHECK_SPREAD) / 2);
        let error = String::new();
        self.checks.insert(name, Check { token, due, running: false, worked: false, failures: 0, error });
    }

    fn refresh(&mut self, name: &ServiceName) {
        let state = if self.draining.contains(name) {
            ServiceState::Draining
        } else if self.checks.get(name).is_none_or(Check::is_up) {
            ServiceState::Up
        } else {
            ServiceState::Down
        };
        self.services.set_state(name.as_str(), state);
    }
}

impl Check {
    fn is_up(&self) -> bool {
        self.failures < if self.worked { FAILURES_MAX } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(services: &[&str]) -> Health {
        let services = services.iter().map(|text| text.parse::<LocalService>().unwrap());
        let services = OwnServices::new(services, &Visibility::Cluster).unwrap();
        Health::new(services, Visibility::Cluster, 1, Now::ZERO)
    }

    fn state(health: &Health, name: &str) -> ServiceState {
        health.services().get(name).unwrap().state
    }

    /// Runs the check that is due next with this outcome; when it was due, and what changed.
    fn check(health: &mut Health, outcome: Result<(), &str>) -> (Now, Option<bool>) {
        let due = health.next_due().unwrap();
        let job = health.take_check(due).unwrap();
        let changed = health.handle_checked(job.token, outcome.map_err(str::to_owned), due);
        (due, changed.map(|changed| changed.up))
    }

    #[test]
    fn three_failures_take_down_what_worked_and_one_what_never_did() {
        let mut health = health(&["web=h:1 check=tcp", "plain=h:2"]);
        assert_eq!(check(&mut health, Err("refused")).1, Some(false));
        assert_eq!((state(&health, "web"), health.error("web")), (ServiceState::Down, "refused"));
        assert_eq!(check(&mut health, Ok(())).1, Some(true));
        assert_eq!((state(&health, "web"), health.error("web")), (ServiceState::Up, ""));
        let changes: Vec<_> = (0..3).map(|_| check(&mut health, Err("refused")).1).collect();
        assert_eq!(changes, [None, None, Some(false)]);
        assert_eq!(check(&mut health, Err("refused")).1, None);
        assert_eq!(check(&mut health, Ok(())).1, Some(true));
        assert_eq!(check(&mut health, Err("refused")).1, None);
        assert_eq!(check(&mut health, Ok(())).1, None);
        assert_eq!(check(&mut health, Err("refused")).1, None);
        assert_eq!((state(&health, "web"), state(&health, "plain")), (ServiceState::Up, ServiceState::Up));
    }

    #[test]
    fn checks_come_every_five_seconds_or_so() {
        let mut health = health(&["web=h:1 check=http:/up"]);
        let mut last = check(&mut health, Ok(())).0;
        assert!(last <= Now(CHECK_SPREAD));
        for _ in 0..100 {
            let due = check(&mut health, Ok(())).0;
            let gap = due.since(last);
            assert!(gap >= CHECK_EVERY - CHECK_SPREAD && gap <= CHECK_EVERY + CHECK_SPREAD, "{gap:?}");
            last = due;
        }
        let due = health.next_due().unwrap();
        assert_eq!(health.take_check(last), None);
        assert!(health.take_check(due).is_some() && health.take_check(due).is_none(), "one at a time");
        assert_eq!(health.next_due(), None);
    }

    #[test]
    fn so_many_run_at_a_time() {
        let texts: Vec<String> = (0..CHECKS_MAX + 5).map(|n| format!("s{n}=h:1 check=tcp")).collect();
        let mut health = health(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let now = Now(CHECK_SPREAD);
        let jobs: Vec<_> = std::iter::from_fn(|| health.take_check(now)).collect();
        assert_eq!((jobs.len(), health.next_due()), (CHECKS_MAX, None));
        // One is done, one is removed: two may start.
        health.handle_checked(jobs[0].token, Ok(()), now);
        health.remove(jobs[1].name.as_str()).unwrap();
        assert_eq!(health.handle_checked(jobs[1].token, Ok(()), now), None);
        assert_eq!(std::iter::from_fn(|| health.take_check(now)).count(), 2);
    }

    #[test]
    fn services_come_drain_and_go() {
        let mut health = health(&["web=h:1 check=tcp"]);
        health.add("api=h:2 check=tcp".parse().unwrap(), Now::ZERO).unwrap();
        assert!(health.add("API=h:3".parse().unwrap(), Now::ZERO).is_err());
        assert!(health.set_draining("none", true).is_err() && health.remove("none").is_err());
        health.set_draining("api", true).unwrap();
        // What its checks say is kept for later.
        for _ in 0..2 {
            check(&mut health, Err("refused"));
        }
        assert_eq!(
            (state(&health, "api"), state(&health, "web")),
            (ServiceState::Draining, ServiceState::Down)
        );
        health.set_draining("api", false).unwrap();
        assert_eq!(state(&health, "api"), ServiceState::Down);
        health.set_draining("api", true).unwrap();
        health.remove("api").unwrap();
        health.add("api=h:2".parse().unwrap(), Now::ZERO).unwrap();
        assert_eq!(state(&health, "api"), ServiceState::Up);
    }
}
