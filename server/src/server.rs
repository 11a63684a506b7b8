//! A Server from its start to its end: composes the rooms, waits, and takes them down in order.
//!
//! ```text
//! ports ─► admission ─► raft thread ─► transport, API, upkeep ─► ready … stop: hand over ─► API ─► raft
//! ```
//!
//! Ports are bound first: a port in use is found before anything is founded or joined.

mod ports;
mod stop;
mod upkeep;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2p_common::Incarnation;
use p2p_common::addr::HostPort;
use p2p_common::command::TokenRole;
use p2p_proto::v1;
use p2p_runtime::admin::{self, Readiness};
use p2p_runtime::clock::Clock;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::grpc::{Acceptor, ListenMetrics, NodeConnections};
use p2p_runtime::identity::{DataDir, FileMode, Token};
use p2p_runtime::shutdown::Shutdown;
use p2p_runtime::tcp;
use p2p_runtime::tls::ServerTls;
use p2p_server_core::HubConfig;
use p2p_server_raft::RaftConfig;
use prometheus_client::registry::Registry;
use slog::{Logger, info, o, warn};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ports::{PortLimits, Ports, advertised, bind, local};
use crate::admission::{Admitted, Applicant, admit};
use crate::api::{self, ApiContext, PeeringApi, RaftApi};
use crate::audit::{AUDIT_FILE, AuditLog};
use crate::ca::{CaStore, CaTask, Follower};
use crate::cli::{ADDRESS_FILE, OPERATOR_TOKEN_FILE};
use crate::cluster_clock::ClockTask;
use crate::config::ServerConfig;
use crate::ephemeral_task::EphemeralTask;
use crate::group::Group;
use crate::http::discovery;
use crate::hub_task::{HubParams, spawn_hub};
use crate::master_task::MasterTask;
use crate::metrics::Metrics;
use crate::raft::{DriverEnd, DriverParams, Mailbox, Proposer, spawn_driver};
use crate::recovery::advice;
use crate::renewal::RenewalTask;
use crate::revocation::{EmergencyStore, EmergencyTask, Enforcer, Revoker};
use crate::standing::Standing;
use crate::transport::{BATCH_BYTES_MAX, MustStop, Myself, Remotes, RemotesParams, TransportMetrics};

/// What is under way when a stop begins has so long: a few round trips, or the election of the next leader.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// A stop that takes longer leaves the rest to the kernel.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Between the first refusal of a Server that left and the answer to its leave: a round trip.
const LEAVE_HEARD: Duration = Duration::from_millis(500);

/// Runs a Server until it is told to stop.
///
/// # Errors
/// When it cannot start, or can go on only with an operator's help.
pub async fn run(config: ServerConfig, log: Logger, shutdown: Shutdown) -> Result<(), Exit> {
    let limits = PortLimits::within(tcp::raise_open_files(&log));
    let clock = Clock::start();
    let dir = DataDir::open(&config.data).map_err(|e| Exit::failed(chain(&e)))?;
    let ports = bind(&config)?;
    let listen = ports.api.local_addr().map_err(Exit::failed)?;
    let addresses = advertised(&config, listen)?;
    let incarnation = Incarnation::new(uuid::Uuid::now_v7());
    let applicant = Applicant { dir: &dir, config: &config, addresses: &addresses, incarnation, log: &log };
    let admitted = tokio::select! {
        admitted = Box::pin(admit(applicant)) => admitted?,
        () = shutdown.requested() => return Ok(()),
    };
    let log = log.new(o!("server" => admitted.identity.name().to_owned()));
    Box::pin(serve(
        Parts { config, dir, clock, ports, limits, listen, addresses, incarnation, admitted, log },
        shutdown,
    ))
    .await
}

/// Everything a Server is made of.
struct Parts {
    config: ServerConfig,
    dir: DataDir,
    /// Its start counts as the Server's.
    clock: Clock,
    ports: Ports,
    limits: PortLimits,
    listen: SocketAddr,
    addresses: Vec<HostPort>,
    incarnation: Incarnation,
    admitted: Admitted,
    log: Logger,
}

async fn serve(parts: Parts, shutdown: Shutdown) -> Result<(), Exit> {
    let Parts { config, dir, clock, ports, limits, listen, addresses, incarnation, admitted, log } = parts;
    let Admitted { identity, credentials, ca_files, cas, store, stored, state, is_new } = admitted;
    // Its lock is held until this function ends: until nobody writes there any more.
    let dir = Arc::new(dir);
    let stop = CancellationToken::new();
    let name = identity.name().to_owned();
    let (mailbox, transport_metrics) = (Mailbox::new(), TransportMetrics::default());
    let myself = Myself {
        id: identity.id(),
        raft_id: stored.origin.raft_id,
        epoch: state.epoch,
        recovery_id: state.recovery_id,
        incarnation,
        credentials: Arc::clone(&credentials),
    };
    let remotes = Remotes::new(RemotesParams {
        myself: myself.clone(),
        clock,
        mailbox: mailbox.clone(),
        metrics: transport_metrics.clone(),
        stop: stop.clone(),
        log: log.new(o!("room" => "transport")),
    });
    let raft_config = RaftConfig::new(stored.origin.raft_id, rand::random());
    let former = stored.origin.former.clone();
    let driver = spawn_driver(DriverParams {
        config: raft_config.clone(),
        store,
        stored,
        state,
        mailbox: mailbox.clone(),
        outbox: remotes.clone(),
        logger: log.new(o!("room" => "raft")),
    })
    .map_err(|refused| Exit::needs_operator(format!("{refused}. {}", advice(&config.data))))?;
    let emergencies = EmergencyStore::load(Arc::clone(&dir)).map_err(Exit::failed)?;
    let standing = Standing::new(driver.view.clone(), emergencies.watch());
    // Every key the replicated state binds is known here, without a copy of it.
    let pinning = standing.clone();
    credentials.set_pins(move |id, key_hash| pinning.is_bound(id, key_hash));
    credentials.set_log(log.new(o!("room" => "trust")));
    let (title_tx, title) = watch::channel(None);
    let proposer = Proposer::new(mailbox.clone(), driver.view.clone(), title, remotes.clone());
    let group =
        Group::new(proposer.clone(), remotes.clone(), raft_config, clock, log.new(o!("room" => "group")));

    let operator = leave_access(&dir, &identity, listen)?;
    let cas = CaStore::new(Arc::clone(&dir), ca_files, cas, Arc::clone(&credentials));
    let (ready_tx, ready) = watch::channel(Readiness::NotReady(vec!["starting".to_owned()]));
    let mut registry = Registry::with_prefix("p2p_server");
    transport_metrics.register(&mut registry);
    let listen_metrics = ListenMetrics::default();
    listen_metrics.register(&mut registry);

    let tasks = TaskTracker::new();
    tasks.spawn(remotes.clone().follow(standing.clone()));
    tasks.spawn(remotes.clone().knock(former, driver.view.clone(), stop.clone()));
    tasks.spawn(group.clone().tend(stop.clone()));
    let master = MasterTask {
        view: driver.view.clone(),
        reach: remotes.reach(),
        title: title_tx,
        clock,
        stop: stop.clone(),
        log: log.new(o!("room" => "master")),
    };
    tasks.spawn(master.run());
    let record = upkeep::Record {
        id: identity.id(),
        name: identity.name().to_owned(),
        addresses: addresses.clone(),
        zone: config.zone.clone(),
    };
    tasks.spawn(upkeep::keep_record(record, proposer.clone(), stop.clone(), log.clone()));
    tasks.spawn(upkeep::tell_readiness(
        proposer.clone(),
        remotes.alarms().watch(),
        ready_tx.clone(),
        stop.clone(),
    ));
    let metrics = Metrics::default();
    metrics.register(&mut registry, driver.view.clone());
    let cluster_clock = ClockTask {
        clock: credentials.clock().clone(),
        view: driver.view.clone(),
        reach: remotes.reach(),
        ahead: metrics.clock_behind.clone(),
        stop: stop.clone(),
        log: log.clone(),
    };
    tasks.spawn(cluster_clock.run());
    let hub = spawn_hub(HubParams {
        config: HubConfig::new(incarnation),
        standing: standing.clone(),
        clock,
        metrics: metrics.clone(),
        stop: stop.clone(),
        log: log.new(o!("room" => "hub")),
    });
    let ephemeral = EphemeralTask {
        hub: hub.clone(),
        proposer: proposer.clone(),
        clock,
        cluster_clock: credentials.clock().clone(),
        stop: stop.clone(),
        log: log.new(o!("room" => "ephemeral")),
    };
    tasks.spawn(ephemeral.run());
    let (audit, audit_writer) = AuditLog::open(dir.path(), clock.now(), log.new(o!("room" => "audit")))
        .map_err(|e| Exit::failed(format!("cannot open {} in {}: {e}", AUDIT_FILE, dir.path().display())))?;
    tasks.spawn(audit_writer.run(stop.clone()));
    let revoker =
        Revoker { standing: standing.clone(), store: emergencies.clone(), remotes: remotes.clone() };
    let context = ApiContext {
        myself: myself.clone(),
        name: identity.name().to_owned(),
        proposer: proposer.clone(),
        reach: remotes.reach(),
        group: group.clone(),
        revoker: revoker.clone(),
        hub,
        cas: cas.clone(),
        local_operator: operator.secret_hash(),
        clock,
        metrics,
        audit,
        stop: stop.clone(),
        log: log.new(o!("room" => "api")),
    };
    let peering =
        PeeringApi::new(myself.clone(), proposer.clone(), group.clone(), revoker, cas.clone(), log.clone());
    let raft = RaftApi::new(
        remotes.clone(),
        driver.view.clone(),
        mailbox.clone(),
        transport_metrics,
        log.new(o!("room" => "transport")),
    )
    .telling_of(cas.clone());
    let routes = tonic::service::Routes::new(v1::peering_server::PeeringServer::new(peering))
        .add_service(v1::raft_server::RaftServer::new(raft).max_decoding_message_size(BATCH_BYTES_MAX));
    let nodes = NodeConnections::default();
    let own_key = credentials.key_hash();
    let acceptor = Acceptor {
        tls: ServerTls::api(credentials),
        limits: limits.api,
        metrics: listen_metrics,
        nodes: nodes.clone(),
        stop: stop.clone(),
        log: log.new(o!("room" => "api")),
    };
    let api = api::router(context, routes)
        .serve_with_incoming_shutdown(acceptor.incoming(ports.api), stop.clone().cancelled_owned());
    tasks.spawn(async move { drop(api.await) });
    tasks.spawn(admin::serve(
        ports.ops,
        admin::router(admin::METRICS_PATH, Arc::new(registry), ready),
        limits.http,
        stop.clone(),
        log.new(o!("room" => "ops")),
    ));
    tasks.spawn(admin::serve(
        ports.registry,
        discovery::router(driver.view.clone(), remotes.connected()),
        limits.http,
        stop.clone(),
        log.new(o!("room" => "registry")),
    ));
    let enforcer = Enforcer {
        standing,
        nodes,
        own_key,
        alarms: remotes.alarms().clone(),
        stop: stop.clone(),
        log: log.new(o!("room" => "revocation")),
    };
    tasks.spawn(enforcer.run());
    let emergency = EmergencyTask {
        store: emergencies,
        proposer: proposer.clone(),
        remotes: remotes.clone(),
        stop: stop.clone(),
        log: log.new(o!("room" => "revocation")),
    };
    tasks.spawn(emergency.run());
    let mut alarms = remotes.alarms().watch();
    let identity = Arc::new(Mutex::new(identity));
    let ca_task = CaTask {
        store: cas.clone(),
        follower: Follower { identity: Arc::clone(&identity) },
        proposer: proposer.clone(),
        reach: remotes.reach(),
        remotes: remotes.clone(),
        clock,
        stop: stop.clone(),
        log: log.new(o!("room" => "ca")),
    };
    tasks.spawn(ca_task.run());
    let renewal = RenewalTask {
        dir: Arc::clone(&dir),
        identity,
        credentials: myself.credentials,
        addresses,
        ca: cas.watch_keys(),
        proposer: proposer.clone(),
        remotes: remotes.clone(),
        clock,
        stop: stop.clone(),
        log: log.new(o!("room" => "renewal")),
    };
    tasks.spawn(renewal.run());
    tasks.close();
    info!(log, "serving"; "api" => %listen, "ops" => %config.ops, "registry" => %config.registry);
    if is_new {
        print_join_commands(&config, listen);
    }

    let mut end = driver.end;
    let ending = tokio::select! {
        ended = &mut end => Ending::Raft(ended),
        Ok(alarm) = alarms.wait_for(|alarm| alarm.must_stop.is_some()) => {
            // From here on no vote and no write: raft ends before anything else.
            mailbox.stop();
            let why = alarm.must_stop.as_ref();
            let words = |why: &MustStop| {
                let way_back = why.way_back(&config.data.display().to_string());
                format!("{why}. This server neither votes nor writes any more. {way_back}")
            };
            Ending::MustStop(why.map(words).unwrap_or_default())
        }
        () = shutdown.requested() => Ending::Asked,
        () = group.left() => Ending::Left,
    };
    let ending = match ending {
        // One that leaves may hear it from others before it hears that its own request is done.
        Ending::MustStop(_) if tokio::time::timeout(LEAVE_HEARD, group.left()).await.is_ok() => Ending::Left,
        ending => ending,
    };
    match ending {
        Ending::Raft(ended) => {
            stop.cancel();
            let _ = tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await;
            return Err(raft_ended(ended, &config));
        }
        Ending::MustStop(why) => {
            let _ = tokio::time::timeout(STOP_TIMEOUT, end).await;
            stop.cancel();
            let _ = tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await;
            return Err(Exit::needs_operator(why));
        }
        Ending::Asked => {
            ready_tx.send_replace(Readiness::NotReady(vec!["stopping".to_owned()]));
            stop::HandOver { group, proposer: proposer.clone(), remotes, log: log.clone() }.run().await;
        }
        Ending::Left => {
            ready_tx.send_replace(Readiness::NotReady(vec!["this server has left its cluster".to_owned()]));
            println!(
                "{} has left its cluster. Its data directory is of no more use: to join again, start with an empty one",
                name
            );
        }
    }
    // Whoever waits for an answer gets it while raft can still give one.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, proposer.drain()).await;
    stop.cancel();
    if tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        warn!(log, "stopped with work under way"; "tasks" => tasks.len());
    }
    mailbox.stop();
    let _ = tokio::time::timeout(STOP_TIMEOUT, end).await;
    info!(log, "stopped");
    Ok(())
}

/// Why a Server ends.
enum Ending {
    /// It was told to.
    Asked,
    /// It was taken out of its cluster by its own operator.
    Left,
    /// Others have proved, in these words, that it must not go on.
    MustStop(String),
    /// Raft has ended by itself.
    Raft(Result<DriverEnd, oneshot::error::RecvError>),
}

fn raft_ended(ended: Result<DriverEnd, oneshot::error::RecvError>, config: &ServerConfig) -> Exit {
    match ended {
        Ok(DriverEnd::Panicked(why)) => Exit::failed(format!("a bug stopped raft: {why}")),
        Ok(end @ DriverEnd::LogLost(_)) => Exit::needs_operator(format!("{end}. {}", advice(&config.data))),
        Ok(end) => Exit::needs_operator(end),
        Err(_) => Exit::failed("the raft thread is gone"),
    }
}

/// Leaves what the command line on this host needs: the address, and an operator token for this run alone.
fn leave_access(
    dir: &DataDir,
    identity: &p2p_runtime::identity::NodeIdentity,
    listen: SocketAddr,
) -> Result<Token, Exit> {
    let enrolment = identity.enrolment().expect("whoever is admitted is enrolled");
    let [ca, ..] = enrolment.trust.certificates() else { return Err(Exit::failed("ca.pem is empty")) };
    let fingerprint = p2p_runtime::identity::CaFingerprint::of(ca);
    let token = Token::mint(TokenRole::Operator, enrolment.cluster_id, fingerprint)
        .map_err(|e| Exit::failed(format!("the system gives no random numbers: {e}")))?;
    let failed = |e: p2p_runtime::identity::DataDirError| Exit::failed(chain(&e));
    dir.write(OPERATOR_TOKEN_FILE, token.to_text().as_bytes(), FileMode::Private).map_err(failed)?;
    let address = format!("{}\n", local(listen));
    dir.write(ADDRESS_FILE, address.as_bytes(), FileMode::Public).map_err(failed)?;
    Ok(token)
}

/// What to type next, on standard output.
fn print_join_commands(config: &ServerConfig, listen: SocketAddr) {
    let data = config.data.display();
    let address = config.advertise.first().map_or_else(|| local(listen).to_string(), ToString::to_string);
    println!(
        "This server is up. Add another one:\n  \
         p2p-server run --data DIR --join {address} --token \"$(p2p-server token create --data {data} --role server)\"\n\
         Add a peer that offers a service:\n  \
         p2p-peer run --data DIR --servers {address} --token \"$(p2p-server token create --data {data} --role peer)\" \
         --service NAME=HOST:PORT"
    );
}
