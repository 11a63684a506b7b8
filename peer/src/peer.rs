//! [`Peer`]: everything a Peer is, composed, started and stopped in order. The library's face.
//!
//! Start: data directory, identity, ports (so that what is taken is told before anything happens), enrolment,
//! then the tasks. Stop: the port closes, what is in flight gets its grace, sessions end properly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_common::{Incarnation, NodeId, NodeKind};
use p2p_peer_core::{Agent, AgentConfig, Health, Identity, LinkSettings, Moment, NetSources};
use p2p_runtime::admin::{self, Readiness};
use p2p_runtime::clock::{Clock, unix_now};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, NodeIdentity};
use p2p_runtime::tcp;
use p2p_runtime::tls::{Credentials, ServerTls};
use slog::{Logger, info};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent_task::{AgentTask, MAILBOX, interface_addrs};
use crate::config::PeerConfig;
use crate::enrol::{self, Means, Membership};
use crate::forward::owner::{Owner, Refusals};
use crate::forward::splice::Buffers;
use crate::forward::{Forwarder, Forwards, Recents};
use crate::health::{self, ServicesTask};
use crate::ingress::{BoundPorts, Connections, Ingress, IngressLimits, listen_all};
use crate::local_api::{self, LocalApi};
use crate::mesh_task::Links;
use crate::metrics::Metrics;
use crate::published::{Myself, Views};
use crate::renewal::RenewalTask;
use crate::revoked;
use crate::servers::Servers;
use crate::trust::TrustTask;
use crate::tunnel::{DialBudgets, DirectDialer, OpenTunnels, Pool, PoolLimits};

/// What is in flight when the Peer stops has this long to end.
const GRACE: Duration = Duration::from_secs(5);
/// Files for everything but connections: sessions, log, API, libraries.
const FILES_RESERVED: u64 = 256;
/// More connections than this are another Peer's, whatever the system allows.
const CONNECTIONS_MAX: u64 = 65_536;

/// A running Peer.
#[derive(Debug)]
pub struct Peer {
    id: NodeId,
    stop: CancellationToken,
    failed: Arc<OnceLock<Exit>>,
    tasks: TaskTracker,
}

/// The ports a Peer listens on, taken before anything else happens.
struct Ports {
    ingress: TcpListener,
    metrics: TcpListener,
    bound: Vec<(TcpListener, ServiceName)>,
}

impl Peer {
    /// Starts a Peer; enrols it first if need be. `None` when `stop` was cancelled before it was enrolled.
    ///
    /// # Errors
    /// When the data directory or a port cannot be had, or the cluster refuses the Peer for good.
    pub async fn start(
        config: PeerConfig,
        stop: CancellationToken,
        log: Logger,
    ) -> Result<Option<Peer>, Exit> {
        let failed = |e: &(dyn std::error::Error + 'static)| Exit::failed(chain(e));
        let clock = Clock::start();
        let data = DataDir::open(&config.data).map_err(|e| failed(&e))?;
        let name = config.name.as_deref();
        let mut identity =
            NodeIdentity::load_or_create(&data, NodeKind::Peer, config.id, name).map_err(|e| failed(&e))?;
        let ports = Ports {
            ingress: tcp::listen(config.listen, "--listen").map_err(|e| failed(&e))?,
            metrics: tcp::listen(config.metrics, "--metrics").map_err(|e| failed(&e))?,
            bound: listen_all(&config.binds).map_err(|e| failed(&e))?,
        };
        let means = Means {
            token: config.token.as_ref(),
            servers: &config.servers,
            mesh_key: config.mesh_key.as_ref(),
        };
        let membership = enrol::membership(&mut identity, &data, &means, &stop, &log);
        let Some(membership) = Box::pin(membership).await? else { return Ok(None) };
        Peer::compose(config, (identity, membership), data, ports, clock, stop, log).map(Some)
    }

    /// The Id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Waits until everything has stopped, after the token given to [`Peer::start`] was cancelled or this Peer gave up.
    ///
    /// # Errors
    /// When it gave up: its key was revoked.
    pub async fn stopped(self) -> Result<(), Exit> {
        self.stop.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
        match self.failed.get() {
            Some(exit) => Err(exit.clone()),
            None => Ok(()),
        }
    }

    fn compose(
        config: PeerConfig,
        (identity, Membership { enrolment, epoch, servers: known }): (NodeIdentity, Membership),
        data: DataDir,
        ports: Ports,
        clock: Clock,
        stop: CancellationToken,
        log: Logger,
    ) -> Result<Peer, Exit> {
        let failed = |e: &(dyn std::error::Error + 'static)| Exit::failed(chain(e));
        let credentials = Credentials::new(&identity, &enrolment).map_err(|e| failed(&e))?;
        credentials.set_log(log.clone());
        let renews = known.is_some();
        let known = known.unwrap_or_default();
        let servers = Servers::new(known.clone(), &credentials, log.clone());
        let (id, cluster_id) = (identity.id(), enrolment.cluster_id);
        let incarnation = Incarnation::new(Uuid::now_v7());
        let listen = ports.ingress.local_addr().map_err(|e| failed(&e))?;
        let files = tcp::raise_open_files(&log);
        let limits = limits(files);
        info!(log, "limits"; "open_files" => files, "connections" => limits.connections);

        // It ends by itself, too.
        let stop = stop.child_token();
        let at = Moment { now: clock.now(), unix: unix_now() };
        let mut agent = Agent::new(
            AgentConfig {
                identity: Identity { id, incarnation, cluster_id, epoch },
                name: identity.name().to_owned(),
                zone: config.zone.clone(),
                servers: config.servers.clone(),
                services: config.services.clone(),
                net: NetSources {
                    interfaces: interface_addrs().map_err(|e| failed(&e))?,
                    listen: Some(listen),
                    advertised: config.advertise.clone(),
                    ..NetSources::default()
                },
                mesh: config.mesh,
                remote_peers: config.remote_peers.clone(),
                transit: config.transit,
                link: LinkSettings {
                    heartbeat: config.heartbeat.every,
                    offline_after: config.heartbeat.silence,
                    redial: config.reconnect_interval,
                    redials_max: config.max_reconnect,
                },
                on_servers_lost: config.on_servers_lost,
                heartbeat: config.heartbeat,
                print_tables: config.print_tables,
                seed: rand::random(),
            },
            at,
        );
        agent.remember_servers(known, at);
        agent.remember_revoked(revoked::load(data.view(), cluster_id), at);
        let (revoked_tx, revoked) = watch::channel(Arc::new(agent.revoked().clone()));
        let failed_for_good = Arc::new(OnceLock::new());
        let views = Arc::new(Views::new(Arc::clone(agent.tables())));
        let myself = Arc::new(Myself::new(id, cluster_id, incarnation, epoch));
        let metrics = Metrics::default();
        let buffers = Buffers::default();
        let dialer = DirectDialer {
            credentials: Arc::clone(&credentials),
            myself: Arc::clone(&myself),
            open: OpenTunnels::default(),
            budget: DialBudgets::default(),
        };
        let pool_limits = PoolLimits { per_remote: config.tunnels_per_remote, ..PoolLimits::default() };
        let pool = Pool::new(dialer, Arc::clone(&views), pool_limits, metrics.tunnels.clone(), log.clone());
        let (mailbox, inputs) = mpsc::channel(MAILBOX);
        let links = Links {
            credentials: Arc::clone(&credentials),
            myself: Arc::clone(&myself),
            mailbox: mailbox.clone(),
            log: log.clone(),
        };
        let forwards =
            Forwards::new(limits.connections, metrics.forwards.clone(), config.access_log, log.clone());
        let forwarder = Forwarder {
            views: Arc::clone(&views),
            pool: pool.clone(),
            forwards: Arc::clone(&forwards),
            silent: Arc::default(),
            buffers: buffers.clone(),
            log: log.clone(),
        };
        let owner = Owner {
            forwarder: forwarder.clone(),
            recents: Recents::default(),
            refusals: Refusals::default(),
        };
        let ingress = Arc::new(Ingress {
            owner: owner.clone(),
            forwarder,
            pool: pool.clone(),
            links: links.clone(),
            tls: ServerTls::peer(Arc::clone(&credentials)),
            myself: Arc::clone(&myself),
            buffers,
            clients_allow: config.clients_allow,
            proxy_protocol_from: config.proxy_protocol_from,
            connections: Connections::new(limits),
            metrics: metrics.ingress.clone(),
            log: log.clone(),
        });
        let (ask_services, requests) = mpsc::channel(health::REQUESTS);
        let services = ServicesTask {
            health: Health::new(
                config.services.clone(),
                config.visibility.clone(),
                rand::random(),
                clock.now(),
            ),
            requests,
            mailbox: mailbox.clone(),
            forwards: Arc::clone(&forwards),
            clock,
            log: log.clone(),
        };
        let local = local_api::listen(data.path()).map_err(|e| {
            Exit::failed(format!("cannot listen on {}/agent.sock: {e}", data.path().display()))
        })?;
        let starting = Readiness::NotReady(vec![agent.state().to_string()]);
        let (ready, is_ready) = watch::channel(starting);
        let router = admin::router(&config.telemetry_path, Arc::new(metrics.registry()), is_ready);
        let api = LocalApi {
            id: id.to_string(),
            name: identity.name().to_owned(),
            zone: config.zone,
            cluster_id: cluster_id.to_string(),
            clock,
            views: Arc::clone(&views),
            pool: pool.clone(),
            bound: BoundPorts::new(Arc::clone(&ingress), ports.bound, stop.clone())
                .map_err(|e| failed(&e))?,
            mailbox: mailbox.clone(),
            services: ask_services,
            credentials: Arc::clone(&credentials),
        };
        info!(log, "peer started"; "node_id" => id, "name" => identity.name(), "listen" => %listen, "metrics" => %config.metrics,
            "cluster_id" => %cluster_id, "services" => config.services.len(),
            "visibility" => %config.visibility,
            "version" => env!("CARGO_PKG_VERSION"));
        let data = Arc::new(data);
        let stored = Arc::new(Mutex::new(identity));
        let renewal = RenewalTask {
            data: Arc::clone(&data),
            identity: Arc::clone(&stored),
            credentials: Arc::clone(&credentials),
            myself: Arc::clone(&myself),
            servers: Arc::clone(&servers),
            configured: config.servers,
            token: config.token,
            agent: mailbox.clone(),
            stop: stop.clone(),
            log: log.clone(),
        };
        let trust_task = TrustTask {
            data: Arc::clone(&data),
            identity: stored,
            credentials: Arc::clone(&credentials),
            servers: Arc::clone(&servers),
            stop: stop.clone(),
            log: log.clone(),
        };
        let agent = AgentTask {
            agent,
            inputs,
            mailbox,
            views,
            ready,
            pool: pool.clone(),
            forwards,
            owner,
            links,
            myself,
            credentials,
            servers: Arc::clone(&servers),
            revoked: revoked_tx,
            failed: Arc::clone(&failed_for_good),
            data: Arc::clone(&data),
            clock,
            metrics,
            log: log.clone(),
            sessions: HashMap::new(),
            linked: HashMap::new(),
            link_errors: HashMap::new(),
            attempts: TaskTracker::new(),
            stop: stop.clone(),
        };
        let tasks = TaskTracker::new();
        tasks.spawn(agent.run());
        if renews {
            tasks.spawn(servers.keep(Arc::clone(&data), cluster_id, stop.clone()));
            tasks.spawn(revoked::keep(data, cluster_id, revoked, stop.clone(), log.clone()));
            tasks.spawn(renewal.run());
            tasks.spawn(trust_task.run());
        }
        tasks.spawn(services.run(stop.clone()));
        tasks.spawn(pool.run(stop.clone()));
        tasks.spawn(ingress.run(ports.ingress, stop.clone(), GRACE));
        tasks.spawn(admin::serve(
            ports.metrics,
            router,
            admin::connections_within(files),
            stop.clone(),
            log.clone(),
        ));
        tasks.spawn(api.serve(local, stop.clone(), log));
        Ok(Peer { id, stop, failed: failed_for_good, tasks })
    }
}

/// What `files` open files allow: a forward takes two, as ingress and as owner alike.
fn limits(files: u64) -> IngressLimits {
    let reserved = FILES_RESERVED + admin::connections_within(files) as u64;
    let connections = (files.saturating_sub(reserved) / 2).clamp(64, CONNECTIONS_MAX);
    IngressLimits {
        connections: connections as usize,
        // One other Peer may open all its 1,024 tunnels at once: half of the newcomers are lent to one source.
        newcomers: (connections / 4).min(2_048) as usize,
        newcomers_per_source: 64,
    }
}

#[cfg(test)]
mod tests;
