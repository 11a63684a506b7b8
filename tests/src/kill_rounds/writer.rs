//! Writers that create tokens at random Servers, each at its own pace, and the look-ups of the checks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use p2p_common::ErrorCode;
use p2p_proto::status::code_of;
use p2p_proto::v1;
use p2p_proto::v1::operator_client::OperatorClient;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tonic::Status;

use super::ledger::{Fate, Listing, TTL, Write};
use crate::cluster::{Access, BearerChannel};

/// Above the time after which a Server itself gives up: what it says counts, not our impatience.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What a writer does between two writes, so that [`TTL`] together with all writers stays below the bound on
/// tokens.
const REST: Duration = Duration::from_millis(40);
/// After a Server that does not answer.
const REST_UNREACHED: Duration = Duration::from_millis(10);
/// The role of the written tokens: nothing else in the cluster has it.
const ROLE: v1::TokenRole = v1::TokenRole::Reader;

type Client = OperatorClient<BearerChannel>;

/// Every written token that a Server lists.
pub(crate) async fn list(access: &Access) -> anyhow::Result<Listing> {
    let mut client = OperatorClient::new(access.channel(CALL_TIMEOUT).await?);
    let reply = client.list_tokens(v1::ListTokensRequest {}).await?.into_inner();
    let written = reply.tokens.into_iter().filter(|token| token.role == i32::from(ROLE));
    Ok(Listing { server: access.name().into(), tokens: written.map(|token| token.token_id).collect() })
}

/// Writers at work, until dropped.
#[derive(Debug)]
pub(crate) struct Writers {
    runtime: Runtime,
    written: Arc<Mutex<Vec<Write>>>,
    /// Held for reading during each write.
    gate: Arc<RwLock<()>>,
}

impl Writers {
    /// Starts `count` writers.
    pub(crate) fn start(servers: &[Access], count: usize, rng: &mut StdRng) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(RwLock::new(()));
        for _ in 0..count {
            let writer = Writer {
                servers: servers.iter().map(|access| (access.clone(), None)).collect(),
                rng: rand::SeedableRng::from_rng(rng),
                written: Arc::clone(&written),
                gate: Arc::clone(&gate),
            };
            runtime.spawn(writer.write_on());
        }
        Ok(Writers { runtime, written, gate })
    }

    /// Waits for the writes under way and lets no other begin until the guard is dropped.
    pub(crate) fn pause(&self) -> OwnedRwLockWriteGuard<()> {
        self.runtime.block_on(Arc::clone(&self.gate).write_owned())
    }

    /// What was written since the last call.
    pub(crate) fn take(&self) -> Vec<Write> {
        std::mem::take(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a look-up.
    pub(crate) fn ask<T>(&self, question: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.runtime.block_on(question)
    }
}

struct Writer {
    servers: Vec<(Access, Option<Client>)>,
    rng: StdRng,
    written: Arc<Mutex<Vec<Write>>>,
    gate: Arc<RwLock<()>>,
}

impl Writer {
    async fn write_on(mut self) {
        loop {
            let turn = Arc::clone(&self.gate).read_owned().await;
            let written = self.write().await;
            let rest = if written.is_some() { REST } else { REST_UNREACHED };
            // Before the turn ends: whoever pauses us must find all that was written.
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(written);
            drop(turn);
            tokio::time::sleep(rest).await;
        }
    }

    /// One write at a random Server; `None` when none was sent.
    async fn write(&mut self) -> Option<Write> {
        let place = self.rng.random_range(0..self.servers.len());
        let (access, client) = &mut self.servers[place];
        if client.is_none() {
            *client = Some(OperatorClient::new(access.channel(CALL_TIMEOUT).await.ok()?));
        }
        let token_id = self.rng.random();
        let request = v1::CreateTokenRequest {
            request_id: uuid::Builder::from_random_bytes(self.rng.random()).into_uuid().to_string(),
            role: ROLE.into(),
            ttl_ms: u64::try_from(TTL.as_millis()).expect("a minute fits"),
            token_id,
            secret_hash: self.rng.random::<[u8; 32]>().to_vec().into(),
            ..v1::CreateTokenRequest::default()
        };
        let began = Instant::now();
        let answer = client.as_mut()?.create_token(request).await;
        let (fate, reason) = match &answer {
            Ok(_) => (Fate::Acknowledged, String::new()),
            Err(status) => fate(status),
        };
        if answer.is_err_and(|status| code_of(&status).is_none()) {
            *client = None;
        }
        Some(Write { token_id, began, ended: Instant::now(), fate, reason })
    }
}

/// What an error promises.
fn fate(status: &Status) -> (Fate, String) {
    match code_of(status) {
        Some(code @ (ErrorCode::OutcomeUnknown | ErrorCode::Internal)) => (Fate::Unknown, code.to_string()),
        Some(code) => (Fate::Failed, code.to_string()),
        // The connection broke, or nobody answered in time.
        None => (Fate::Unknown, format!("no answer ({:?})", status.code())),
    }
}
