//! Clients of the register: each reads and writes the cluster's description at random Servers, one operation
//! after the other, and all that it is told goes into one history.
//!
//! A write without an answer is sent again, to any Server, under the same request id: all sendings are one
//! operation, which the cluster must do once at most (SPEC C7). A client that gives up leaves it unknown.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_common::ErrorCode;
use p2p_common::setting::SettingName;
use p2p_proto::status::code_of;
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::operator_client::OperatorClient;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::time::timeout;
use tonic::Status;

use super::{Call, Outcome, Recorder, Versioned, check};
use crate::cluster::{Access, BearerChannel};

/// A write of unknown outcome is sent so many times at most.
const SENDINGS: usize = 4;
/// It is given up instead of sent again in one of so many cases.
const GIVEN_UP: (u32, u32) = (1, 4);
/// Between two writes that look for the end of an outage.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// A probe's answer may take this long; whatever it says after that counts as unknown.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// Nobody writes this: a text that no client wrote.
const FOREIGN: u64 = u64::MAX;

/// How reads are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// As they are by default.
    Linearizable,
    /// As stale ones, recorded as if they were not: what the checker must notice.
    Stale,
}

/// What the clients do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many there are.
    pub clients: usize,
    /// What each does between two operations.
    pub rest: Duration,
    /// How long it waits for an answer.
    pub patience: Duration,
    /// How it reads.
    pub reads: Reads,
}

/// Clients at work, until dropped.
#[derive(Debug)]
pub struct Clients {
    runtime: Runtime,
    world: Arc<World>,
}

/// What all clients share.
#[derive(Debug)]
struct World {
    /// Servers may be added.
    servers: Mutex<Vec<Access>>,
    load: Load,
    recorder: Recorder,
    next_value: AtomicU64,
    next_client: AtomicU64,
    /// Held for reading during each operation.
    gate: Arc<RwLock<()>>,
    /// Why operations did not come to their end, and how often.
    reasons: Mutex<BTreeMap<String, usize>>,
}

impl Clients {
    /// Starts them; the register must not have been written before. In the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no threads can be started.
    pub fn start(servers: &[Access], load: Load, rng: &mut StdRng) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let world = Arc::new(World {
            servers: Mutex::new(servers.to_vec()),
            load,
            recorder: Recorder::default(),
            next_value: AtomicU64::new(1),
            next_client: AtomicU64::new(load.clients as u64),
            gate: Arc::default(),
            reasons: Mutex::default(),
        });
        for number in 0..load.clients {
            let client = Client {
                number,
                world: Arc::clone(&world),
                channels: BTreeMap::new(),
                seen: 0,
                rng: StdRng::from_rng(rng),
            };
            runtime.spawn(client.go_on());
        }
        Ok(Clients { runtime, world })
    }

    /// Has them ask one more Server from now on.
    pub fn add_server(&self, access: Access) {
        self.world.servers.lock().unwrap_or_else(PoisonError::into_inner).push(access);
    }

    /// Waits for the operations under way and lets no other begin until the guard is dropped.
    pub fn pause(&self) -> OwnedRwLockWriteGuard<()> {
        self.runtime.block_on(Arc::clone(&self.world.gate).write_owned())
    }

    /// What they were told so far.
    pub fn recorder(&self) -> &Recorder {
        &self.world.recorder
    }

    /// Why operations did not come to their end, and how often.
    pub fn reasons(&self) -> BTreeMap<String, usize> {
        self.world.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks all that ended so far; returns how many operations that were. While clients are at work, what they
    /// are waiting for may already show: [`Self::pause`] them first.
    ///
    /// # Errors
    /// When it is not linearizable.
    pub fn check(&self) -> anyhow::Result<usize> {
        let operations = self.world.recorder.operations(0);
        check(&operations, Versioned::default())?;
        Ok(operations.len())
    }

    /// Connects to `servers`, runs `fault`, and writes there each few milliseconds from then on; returns how long
    /// after the fault had begun the first write that began after it was acknowledged.
    ///
    /// # Errors
    /// When the fault fails, or no write is acknowledged within `within`.
    pub fn outage(
        &self,
        servers: &[usize],
        within: Duration,
        fault: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        ensure!(!servers.is_empty(), "nobody is left to be asked");
        let mut channels = Vec::new();
        for server in servers {
            let access = self.world.access(*server);
            channels.push((*server, self.runtime.block_on(access.channel(PROBE_PATIENCE))?));
        }
        let began = Instant::now();
        fault()?;
        let (tell, mut told) = channel(1);
        self.runtime.block_on(async {
            let probes = async {
                for (server, channel) in channels.iter().cycle() {
                    tokio::spawn(Arc::clone(&self.world).probe(*server, channel.clone(), tell.clone()));
                    tokio::time::sleep(PROBE_EVERY).await;
                }
            };
            tokio::select! {
                () = probes => {}
                _ = told.recv() => {}
                () = tokio::time::sleep(within) => anyhow::bail!("no write was acknowledged for {within:?}"),
            }
            Ok(began.elapsed())
        })
    }
}

impl World {
    /// How to reach a Server, by its place.
    fn access(&self, server: usize) -> Access {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)[server].clone()
    }

    /// Any Server.
    fn choose(&self, rng: &mut StdRng) -> usize {
        rng.random_range(0..self.servers.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    /// One write at one Server, by a client of its own.
    async fn probe(self: Arc<Self>, server: usize, channel: BearerChannel, acknowledged: Sender<()>) {
        let _turn = Arc::clone(&self.gate).read_owned().await;
        let client = usize::try_from(self.next_client.fetch_add(1, Ordering::Relaxed)).expect("64 bits");
        let call = Call::Write { value: self.next_value.fetch_add(1, Ordering::Relaxed) };
        let operation = self.recorder.invoke(client, server, call);
        let answer = timeout(PROBE_PATIENCE, send(channel, call, &uuid::Uuid::new_v4().to_string())).await;
        match self.judge(answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))) {
            Ok(outcome) => {
                operation.answered(outcome);
                // One is enough.
                let _ = acknowledged.try_send(());
            }
            Err(Failure::Nothing) => operation.answered(Outcome::Failed),
            Err(Failure::Unknown) => {}
        }
    }

    /// What an answer promises.
    fn judge(&self, answer: Result<Outcome, Status>) -> Result<Outcome, Failure> {
        let status = match answer {
            Ok(outcome) => return Ok(outcome),
            Err(status) => status,
        };
        let (failure, reason) = match code_of(&status) {
            Some(ErrorCode::Conflict) => return Ok(Outcome::Conflict),
            Some(code @ (ErrorCode::OutcomeUnknown | ErrorCode::Internal)) => {
                (Failure::Unknown, code.to_string())
            }
            Some(code) => (Failure::Nothing, code.to_string()),
            // The connection broke, or nobody answered in time.
            None => (Failure::Unknown, format!("no answer ({:?})", status.code())),
        };
        *self.reasons.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
        Err(failure)
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Nothing happened.
    Nothing,
    /// It may have happened.
    Unknown,
}

struct Client {
    number: usize,
    world: Arc<World>,
    channels: BTreeMap<usize, BearerChannel>,
    /// The revision it was told of last.
    seen: u64,
    rng: StdRng,
}

impl Client {
    async fn go_on(mut self) {
        let rest = self.world.load.rest;
        loop {
            let turn = Arc::clone(&self.world.gate).read_owned().await;
            self.operate().await;
            drop(turn);
            tokio::time::sleep(rest).await;
        }
    }

    async fn operate(&mut self) {
        let world = Arc::clone(&self.world);
        let value = || world.next_value.fetch_add(1, Ordering::Relaxed);
        let call = match self.rng.random_range(0..10) {
            0..4 => Call::Read,
            4..7 => Call::Write { value: value() },
            _ => Call::WriteIf { value: value(), expected: self.seen },
        };
        let request_id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid().to_string();
        let mut server = world.choose(&mut self.rng);
        let mut operation = world.recorder.invoke(self.number, server, call);
        let mut is_unknown = false;
        for _ in 0..SENDINGS {
            match self.ask(server, call, &request_id).await {
                Ok(outcome) => {
                    match outcome {
                        Outcome::Read(Versioned { revision, .. }) | Outcome::Written { revision } => {
                            self.seen = revision;
                        }
                        Outcome::Conflict | Outcome::Failed | Outcome::Unknown => {}
                    }
                    return operation.answered(outcome);
                }
                Err(failure) => is_unknown |= failure == Failure::Unknown,
            }
            // A new question does as well as the old one.
            if call == Call::Read || !is_unknown || self.rng.random_ratio(GIVEN_UP.0, GIVEN_UP.1) {
                break;
            }
            server = world.choose(&mut self.rng);
            operation.ask_again_at(server);
        }
        if !is_unknown {
            operation.answered(Outcome::Failed);
        }
    }

    async fn ask(&mut self, server: usize, call: Call, request_id: &str) -> Result<Outcome, Failure> {
        let world = Arc::clone(&self.world);
        let patience = world.load.patience;
        let channel = match self.channels.get(&server) {
            Some(channel) => channel.clone(),
            None => match timeout(patience, world.access(server).channel(patience)).await {
                Ok(Ok(channel)) => self.channels.entry(server).or_insert(channel).clone(),
                // Nothing was sent.
                Ok(Err(_)) | Err(_) => return Err(Failure::Nothing),
            },
        };
        let asked = async {
            match call {
                Call::Read => read(channel, world.load.reads).await,
                Call::Write { .. } | Call::WriteIf { .. } => send(channel, call, request_id).await,
            }
        };
        let answer = timeout(patience, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        if answer.as_ref().is_err_and(|status| code_of(status).is_none()) {
            self.channels.remove(&server);
        }
        world.judge(answer)
    }
}

async fn read(channel: BearerChannel, reads: Reads) -> Result<Outcome, Status> {
    let request = v1::ListSettingsRequest { stale: reads == Reads::Stale };
    let reply = ClusterClient::new(channel).list_settings(request).await?.into_inner();
    let name = SettingName::Description.to_string();
    let setting = reply.settings.into_iter().find(|setting| setting.name == name);
    let setting = setting.context("it is listed").map_err(|error| Status::data_loss(error.to_string()))?;
    let value = match setting.revision {
        0 => None,
        _ => Some(u64::from_str_radix(&setting.value, 16).unwrap_or(FOREIGN)),
    };
    Ok(Outcome::Read(Versioned { value, revision: setting.revision }))
}

/// Sends a write.
async fn send(channel: BearerChannel, call: Call, request_id: &str) -> Result<Outcome, Status> {
    let request = v1::ChangeSettingRequest {
        request_id: request_id.into(),
        name: SettingName::Description.to_string(),
        value: call.value().map(|value| format!("{value:x}")),
        expected: match call {
            Call::WriteIf { expected, .. } => Some(expected),
            Call::Write { .. } | Call::Read => None,
        },
    };
    let reply = OperatorClient::new(channel).change_setting(request).await?.into_inner();
    Ok(Outcome::Written { revision: reply.revision })
}
