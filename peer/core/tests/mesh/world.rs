//! Virtual time and connections between real agents.
//!
//! A connection delivers in order, after its delay; a message that is under way when one side closes still
//! arrives there. A node may be stopped like a process by SIGSTOP: its connections stay, it hears and says
//! nothing, and what was sent to it waits. Or it may be killed, and come back as a new process. Two nodes may
//! be cut off from each other: what is sent between them is lost, and dials hang.
//!
//! A link token of a killed process may be that of its successor, as ids of connections in real processes are:
//! what was under way to the former never reaches the latter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::service::Visibility;
use p2p_common::wire::link::LinkMessage;
use p2p_common::{ClusterId, Epoch, Incarnation, KeyHash, NodeId, Now, UnixMs};
use p2p_peer_core::{
    Agent, AgentConfig, Heartbeat, Identity, LinkOpened, LinkSettings, LinkToken, Mesh, Moment, NetSources,
    OnServersLost, Output, OwnServices, PrintTables, Reach, Tables,
};

pub fn peer(n: u8) -> NodeId {
    format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

pub fn run(n: u16) -> Incarnation {
    format!("00000000-0000-7000-8000-00000000{n:04x}").parse().unwrap()
}

pub fn cluster_id() -> ClusterId {
    "00000000-0000-4000-8000-000000000001".parse().unwrap()
}

pub fn moment(ms: u64) -> Moment {
    Moment { now: Now(Duration::from_millis(ms)), unix: UnixMs(1_234_567_890_000 + ms) }
}

pub fn services(texts: &[&str]) -> OwnServices {
    OwnServices::new(texts.iter().map(|text| text.parse().unwrap()), &Visibility::Linked).unwrap()
}

/// What a node is configured with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub services: Vec<&'static str>,
    pub remote_peers: Vec<String>,
    pub transit: bool,
    pub listen: &'static str,
    pub advertised: Vec<&'static str>,
    pub link: LinkSettings,
}

impl Setup {
    pub fn new(services: &[&'static str], remote_peers: &[u8]) -> Setup {
        Setup {
            services: services.to_vec(),
            remote_peers: remote_peers.iter().map(|n| format!("192.0.2.{n}:6443")).collect(),
            transit: false,
            listen: "0.0.0.0:6443",
            advertised: Vec::new(),
            link: LinkSettings::default(),
        }
    }
}

pub fn config(n: u8, setup: &Setup, incarnation: Incarnation) -> AgentConfig {
    AgentConfig {
        identity: Identity { id: peer(n), incarnation, cluster_id: cluster_id(), epoch: Epoch(0) },
        name: format!("p{n}"),
        zone: String::new(),
        servers: Vec::new(),
        services: services(&setup.services),
        net: NetSources {
            listen: Some(setup.listen.parse().unwrap()),
            advertised: setup.advertised.iter().map(|text| text.parse().unwrap()).collect(),
            ..NetSources::default()
        },
        mesh: Mesh::Lazy,
        remote_peers: setup.remote_peers.iter().map(|text| text.parse().unwrap()).collect(),
        transit: setup.transit,
        link: setup.link,
        on_servers_lost: OnServersLost::Stop,
        heartbeat: Heartbeat::default(),
        print_tables: PrintTables::Full,
        seed: n.into(),
    }
}

pub struct Node {
    pub setup: Setup,
    pub agent: Option<Agent>,
    pub own: OwnServices,
    pub stopped: bool,
    pub tables: Arc<Tables>,
    pub printed: Vec<Vec<String>>,
    pub closed: Vec<String>,
    pub offered: Vec<(NodeId, u32)>,
    pub dials: Vec<(u64, HostPort)>,
    pub key: KeyHash,
    run: Incarnation,
    waiting: VecDeque<Event>,
}

#[derive(Debug, Clone)]
enum Event {
    Message(LinkToken, LinkMessage),
    Closed(LinkToken, String),
}

struct Connection {
    ends: [(u8, LinkToken); 2],
    /// Whether that end has not closed it.
    open: [bool; 2],
    delay_ms: u64,
    lost: bool,
}

pub struct World {
    pub now_ms: u64,
    pub nodes: BTreeMap<u8, Node>,
    connections: Vec<Connection>,
    events: BTreeMap<(u64, u64), (u8, Event)>,
    event_no: u64,
    incarnations: u16,
    /// Delay of connections that are opened from now on.
    pub delay_ms: u64,
    cut: BTreeSet<(u8, u8)>,
    /// Every message that was sent, with its time, sender and receiver.
    pub sent: Vec<(u64, u8, u8, LinkMessage)>,
}

impl World {
    pub fn new() -> World {
        World {
            now_ms: 0,
            nodes: BTreeMap::new(),
            connections: Vec::new(),
            events: BTreeMap::new(),
            event_no: 0,
            incarnations: 0,
            delay_ms: 0,
            cut: BTreeSet::new(),
            sent: Vec::new(),
        }
    }

    /// Starts node `n`, which listens at 192.0.2.`n`.
    pub fn start(&mut self, n: u8, setup: Setup) {
        self.incarnations += 1;
        let agent = Agent::new(config(n, &setup, run(self.incarnations)), self.at());
        let node = Node {
            own: services(&setup.services),
            tables: agent.tables().clone(),
            agent: Some(agent),
            stopped: false,
            printed: Vec::new(),
            closed: Vec::new(),
            offered: Vec::new(),
            dials: Vec::new(),
            key: KeyHash([n; 32]),
            run: run(self.incarnations),
            waiting: VecDeque::new(),
            setup,
        };
        self.nodes.insert(n, node);
        self.settle();
    }

    /// Node `n` dies: its connections break.
    pub fn kill(&mut self, n: u8) {
        self.node(n).agent = None;
        self.events.retain(|_, (to, _)| *to != n);
        self.node(n).waiting.clear();
        self.node(n).stopped = false;
        for at in 0..self.connections.len() {
            for end in [0, 1] {
                if self.connections[at].ends[end].0 == n && self.connections[at].open[end] {
                    self.connections[at].open[end] = false;
                    self.tell(at, 1 - end, |link| Event::Closed(link, "connection reset".into()));
                }
            }
        }
        // Nothing reaches the process that is gone.
        self.connections.retain(|connection| connection.ends.iter().all(|(of, _)| *of != n));
        self.settle();
    }

    /// Node `n` comes back as a new process with the same key, configuration and services.
    pub fn restart(&mut self, n: u8) {
        let (setup, key) = (self.nodes[&n].setup.clone(), self.nodes[&n].key);
        self.start(n, setup);
        self.node(n).key = key;
    }

    pub fn stop(&mut self, n: u8) {
        self.node(n).stopped = true;
    }

    /// Node `n` goes on, and finds what was sent to it meanwhile.
    pub fn resume(&mut self, n: u8) {
        self.node(n).stopped = false;
        for event in std::mem::take(&mut self.node(n).waiting) {
            self.deliver(n, event);
        }
        self.settle();
    }

    /// Nothing passes between the two from now on.
    pub fn cut(&mut self, a: u8, b: u8) {
        self.cut.insert((a.min(b), a.max(b)));
        for connection in &mut self.connections {
            let ends = connection.ends.map(|(n, _)| n);
            connection.lost |= ends == [a, b] || ends == [b, a];
        }
    }

    /// New connections between the two are possible again.
    pub fn mend(&mut self, a: u8, b: u8) {
        self.cut.remove(&(a.min(b), a.max(b)));
    }

    /// Every connection between the two breaks, both sides notice.
    pub fn reset(&mut self, a: u8, b: u8) {
        for at in 0..self.connections.len() {
            let ends = self.connections[at].ends.map(|(n, _)| n);
            if ends == [a, b] || ends == [b, a] {
                for end in [0, 1] {
                    if std::mem::replace(&mut self.connections[at].open[end], false) {
                        self.tell(at, end, |link| Event::Closed(link, "connection reset".into()));
                    }
                }
            }
        }
        self.settle();
    }

    pub fn set_services(&mut self, n: u8, own: OwnServices) {
        let at = self.at();
        let node = self.node(n);
        node.own = own.clone();
        if let Some(agent) = &mut node.agent {
            agent.handle_services(own, at);
        }
        self.settle();
    }

    /// Lets time pass up to `ms`.
    pub fn run_to(&mut self, ms: u64) {
        self.settle();
        let mut steps_now = 0;
        loop {
            let event = self.events.keys().next().map(|(due, _)| (*due, None));
            let ticks = self.nodes.iter().filter(|(_, node)| !node.stopped).filter_map(|(n, node)| {
                let (due, _) = node.agent.as_ref()?.poll_timeout()?;
                Some((u64::try_from(due.0.as_nanos().div_ceil(1_000_000)).unwrap(), Some(*n)))
            });
            let Some((due, node)) = event.into_iter().chain(ticks).min() else { break };
            if due > ms {
                break;
            }
            steps_now = if due <= self.now_ms { steps_now + 1 } else { 0 };
            assert!(steps_now < 10_000, "{node:?} spins at {} ms", self.now_ms);
            self.now_ms = self.now_ms.max(due);
            let at = self.at();
            match node {
                Some(n) => self.node(n).agent.as_mut().unwrap().handle_tick(at),
                None => {
                    let (n, event) = self.events.pop_first().unwrap().1;
                    self.deliver(n, event);
                }
            }
            self.settle();
        }
        self.now_ms = ms;
    }

    pub fn run_for(&mut self, ms: u64) {
        self.run_to(self.now_ms + ms);
    }

    pub fn at(&self) -> Moment {
        moment(self.now_ms)
    }

    pub fn node(&mut self, n: u8) -> &mut Node {
        self.nodes.get_mut(&n).unwrap()
    }

    pub fn agent(&mut self, n: u8) -> &mut Agent {
        self.node(n).agent.as_mut().unwrap()
    }

    pub fn tables(&self, n: u8) -> &Tables {
        &self.nodes[&n].tables
    }

    /// `name@source` of each row of the first table that may be used, marked when it may not.
    pub fn routes(&self, n: u8) -> Vec<String> {
        let source = |of: NodeId| (1..=9).find(|n| peer(*n) == of).map(|n| n.to_string());
        let row = |route: &p2p_peer_core::Route| {
            let source = route.source.peer().map_or("local".into(), |of| source(of).unwrap());
            let mark = if route.connected { "" } else { " away" };
            let state = if route.state.as_str() == "up" { "" } else { route.state.as_str() };
            format!("{}@{source}{mark}{state}", route.name)
        };
        self.tables(n).routes().map(row).collect()
    }

    /// Open connections between the two.
    pub fn connections(&self, a: u8, b: u8) -> usize {
        let between = |connection: &&Connection| {
            let ends = connection.ends.map(|(n, _)| n);
            connection.open == [true, true] && (ends == [a, b] || ends == [b, a])
        };
        self.connections.iter().filter(between).count()
    }

    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let output = self.nodes.iter_mut().filter(|(_, node)| !node.stopped).find_map(|(n, node)| {
                let output = node.agent.as_mut()?.poll_output()?;
                Some((*n, output))
            });
            let Some((n, output)) = output else { return };
            self.act(n, output);
        }
        panic!("the agents never have enough");
    }

    fn act(&mut self, n: u8, output: Output) {
        match output {
            Output::DialLink { link, address } => {
                let now_ms = self.now_ms;
                self.node(n).dials.push((now_ms, address.clone()));
                self.dial(n, link, &address);
            }
            Output::SendLink { link, message } => {
                let Some((at, end)) = self.find(n, link) else { return };
                let to = self.connections[at].ends[1 - end].0;
                self.sent.push((self.now_ms, n, to, message.clone()));
                self.tell(at, 1 - end, |link| Event::Message(link, message));
            }
            Output::CloseLink { link, reason } => {
                if let Some((at, end)) = self.find(n, link) {
                    self.connections[at].open[end] = false;
                    self.tell(at, 1 - end, |link| Event::Closed(link, "closed by the other side".into()));
                }
                self.node(n).closed.push(reason);
            }
            Output::OfferTunnels { peer, count } => self.node(n).offered.push((peer, count)),
            Output::Publish(tables) => self.node(n).tables = tables,
            Output::PrintTables(lines) => self.node(n).printed.push(lines),
            Output::State(_) | Output::DropIdleTunnels { .. } => {}
            Output::WarmPeer { peer, reach } => {
                assert!(!matches!(reach, Reach::Dial(_)), "{peer} is known by its link");
            }
            Output::DialServer(_)
            | Output::Send { .. }
            | Output::CloseSession { .. }
            | Output::Epoch(_)
            | Output::Revoked(_)
            | Output::ThrownOut(_)
            | Output::Withheld(_)
            | Output::Servers(_) => {
                panic!("there are no Servers here");
            }
        }
    }

    fn dial(&mut self, from: u8, link: LinkToken, address: &HostPort) {
        let at = self.at();
        let to: u8 = address.host().rsplit('.').next().unwrap().parse().unwrap();
        if self.cut.contains(&(from.min(to), from.max(to))) {
            return;
        }
        let there = self.nodes.get(&to).filter(|node| node.agent.is_some());
        let Some(there) = there else {
            return self.agent(from).handle_link_failed(link, "connection refused".into(), at);
        };
        if there.stopped {
            return;
        }
        let Some(accepted) = self.agent(to).accept_link(at) else {
            return self.agent(from).handle_link_failed(link, "connection closed".into(), at);
        };
        self.connections.push(Connection {
            ends: [(from, link), (to, accepted)],
            open: [true, true],
            delay_ms: self.delay_ms,
            lost: false,
        });
        let opened = |world: &World, n: u8, address: String| LinkOpened {
            peer: peer(n),
            key_hash: world.nodes[&n].key,
            incarnation: world.nodes[&n].run,
            address,
            grants: Default::default(),
        };
        let there = opened(self, to, address.to_string());
        let here = opened(self, from, format!("192.0.2.{from}:50000"));
        self.agent(to).handle_link_opened(accepted, here, at);
        self.agent(from).handle_link_opened(link, there, at);
    }

    /// The connection of a token that its owner has not closed.
    fn find(&self, n: u8, link: LinkToken) -> Option<(usize, usize)> {
        self.connections.iter().enumerate().rev().find_map(|(at, connection)| {
            let end = connection.ends.iter().position(|end| *end == (n, link))?;
            connection.open[end].then_some((at, end))
        })
    }

    /// Sends `event` to one end of a connection.
    fn tell(&mut self, at: usize, end: usize, event: impl FnOnce(LinkToken) -> Event) {
        let connection = &self.connections[at];
        if connection.lost {
            return;
        }
        let (to, link) = connection.ends[end];
        self.event_no += 1;
        self.events.insert((self.now_ms + connection.delay_ms, self.event_no), (to, event(link)));
    }

    fn deliver(&mut self, n: u8, event: Event) {
        let at = self.at();
        let node = self.node(n);
        let Some(agent) = &mut node.agent else { return };
        if node.stopped {
            node.waiting.push_back(event);
            return;
        }
        match event {
            Event::Message(link, message) => agent.handle_link_message(link, message, at),
            Event::Closed(link, reason) => {
                for connection in &mut self.connections {
                    for end in [0, 1] {
                        if connection.ends[end] == (n, link) {
                            connection.open[end] = false;
                        }
                    }
                }
                self.agent(n).handle_link_closed(link, reason, at);
            }
        }
    }
}
