//! Every port of a Server and a Peer, and every kind of caller: who hears what. What an admitted caller may ask is the
//! matter of the access matrix (`server/src/api/tests/matrix.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::BytesMut;
use p2p_common::wire::link::LinkMessage;
use p2p_common::wire::tunnel::{Control, LENGTH_BYTES};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, NodeId, NodeKind, UnixMs};
use p2p_proto::convert::{decode_link, encode_link};
use p2p_runtime::ca::ClusterCa;
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::PeerIdentity;
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{
    Cluster, Heard, Lifetime, PATIENCE, Process, Shown, binaries, ca_of, knock, knock_tls, run, wait_for,
};
use p2p_tests::http;
use uuid::Uuid;

const SERVICE: &str = "web.example";
const HOUR: Duration = Duration::from_secs(3_600);
/// A protocol nobody here speaks, from its first byte on.
const GARBAGE: &[u8] = b"\x00\x01\x02garbage\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n";
/// The preface of HTTP/2 and empty SETTINGS.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A TLS alert is as much as a port says to whom it does not let in.
const ALERT_BYTES: usize = 7;

/// What a caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gets {
    /// The end of its connection, and an alert perhaps.
    Nothing,
    /// HTTP/2 inside TLS.
    Http2,
    /// A HELLO of a tunnel or a link.
    Hello,
    /// A refusal in words, inside TLS.
    Refusal,
    /// An answer in HTTP/1 with this status.
    Http(u16),
}

/// What was heard, in the same words.
fn gets(heard: Heard) -> anyhow::Result<Gets> {
    let (Heard::Said(bytes) | Heard::Closed(bytes)) = heard else { anyhow::bail!("nobody listens") };
    if let Some(rest) = bytes.strip_prefix(b"HTTP/1.1 ") {
        let status = rest.split(|byte| *byte == b' ').next().and_then(|text| std::str::from_utf8(text).ok());
        return Ok(Gets::Http(status.context("no status")?.parse()?));
    }
    if bytes.len() <= ALERT_BYTES {
        return Ok(Gets::Nothing);
    }
    // A frame of SETTINGS.
    if bytes[3] == 4 && bytes[0] == 0 {
        return Ok(Gets::Http2);
    }
    if let Some(frame) = bytes.get(LENGTH_BYTES..) {
        let length = u32::from_be_bytes(bytes[..LENGTH_BYTES].try_into()?) as usize;
        match frame.get(..length).and_then(|frame| Control::decode(frame).ok()) {
            Some(Control::Hello(_)) => return Ok(Gets::Hello),
            Some(Control::Refuse { .. }) => return Ok(Gets::Refusal),
            _ => {}
        }
    }
    match decode_link(&mut BytesMut::from(&bytes[..])) {
        Ok(Some(LinkMessage::Hello(_))) => Ok(Gets::Hello),
        Ok(Some(LinkMessage::Refused { .. })) => Ok(Gets::Refusal),
        other => anyhow::bail!("heard {:?}, {other:?}", bytes.escape_ascii().to_string()),
    }
}

/// One knock and what is agreed.
struct Row<'a> {
    what: String,
    knock: Box<dyn Fn() -> anyhow::Result<Heard> + Send + Sync + 'a>,
    agreed: Gets,
}

#[derive(Default)]
struct Rows<'a>(Vec<Row<'a>>);

impl<'a> Rows<'a> {
    fn plain(&mut self, what: &str, addr: SocketAddr, bytes: &'a [u8], agreed: Gets) {
        let knock = Box::new(move || knock(addr, None, bytes, 16));
        self.0.push(Row { what: what.to_owned(), knock, agreed });
    }

    fn tls(
        &mut self,
        what: String,
        addr: SocketAddr,
        alpn: &'a [&'a str],
        shown: Option<&'a Shown>,
        bytes: &'a [u8],
        agreed: Gets,
    ) {
        let knock = Box::new(move || knock_tls(addr, alpn, shown, bytes, 9));
        self.0.push(Row { what, knock, agreed });
    }

    /// All at once, or silent ports would take their time one after the other.
    fn check(self) -> anyhow::Result<()> {
        let found: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                self.0.iter().map(|row| scope.spawn(|| (row.knock)().and_then(gets))).collect();
            asked.into_iter().map(|thread| thread.join().expect("a knock does not panic")).collect()
        });
        let mut wrong = Vec::new();
        for (row, found) in self.0.iter().zip(found) {
            match found {
                Ok(found) if found == row.agreed => {}
                found => wrong.push(format!("{}: {:?} is agreed, found {found:?}", row.what, row.agreed)),
            }
        }
        ensure!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), self.0.len(), wrong.join("\n"));
        println!("{} rows", self.0.len());
        Ok(())
    }
}

/// Whoever may come to a port, by certificate.
struct Callers {
    cluster_id: ClusterId,
    epoch: Epoch,
    /// By name: who, and the Id in the certificate.
    shown: BTreeMap<&'static str, (Shown, NodeId)>,
}

impl Callers {
    fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let (server, peer) = (&cluster.servers[0], &cluster.peers[1]);
        let identity_of = |data: &std::path::Path| {
            let pem = std::fs::read(data.join("cert.pem"))?;
            let certificate = p2p_runtime::identity::TrustBundle::from_pem(&pem)?.certificates()[0].clone();
            anyhow::Ok(PeerIdentity::of_certificate(&certificate)?)
        };
        let (server_identity, peer_identity) = (identity_of(server.data())?, identity_of(peer.data())?);
        let (cluster_id, peer_id) = (peer_identity.cluster_id, peer_identity.node_id);
        let ca = ca_of(server.data(), cluster_id)?;
        let now = unix_now();
        let (present, past) = ((now, HOUR), (UnixMs(now.0 - 30 * 86_400_000), HOUR));
        let peer_key = peer.data().join("key.pem");
        let stranger = NodeId::new(NodeKind::Peer, Uuid::from_u128(77));
        let same_name = ClusterCa::create(cluster_id, now)?;
        let elsewhere = ClusterCa::create(ClusterId::new(Uuid::from_u128(7)), now)?;
        let shown = BTreeMap::from([
            ("nobody", (Shown::self_made()?, peer_id)),
            ("wrong CA", (Shown::signed(&same_name, peer_id, None, present)?, peer_id)),
            ("other cluster", (Shown::signed(&elsewhere, peer_id, None, present)?, peer_id)),
            ("expired stranger", (Shown::signed(&ca, stranger, None, past)?, stranger)),
            ("expired peer", (Shown::signed(&ca, peer_id, Some(&peer_key), past)?, peer_id)),
            ("stranger", (Shown::signed(&ca, stranger, None, present)?, stranger)),
            ("other key", (Shown::signed(&ca, peer_id, None, present)?, peer_id)),
            ("peer", (Shown::of(peer.data())?, peer_id)),
            ("server", (Shown::of(server.data())?, server_identity.node_id)),
        ]);
        let status: serde_json::Value = server.cli(&["status", "--json"])?.json()?;
        let epoch = Epoch(status["epoch"].as_u64().context("the status has no epoch")?);
        Ok(Callers { cluster_id, epoch, shown })
    }

    fn hello(&self, from: NodeId) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: Some(self.cluster_id),
            from,
            to: None,
            epoch: self.epoch,
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::now_v7()),
            features: 0,
        }
    }

    fn tunnel_hello(&self, from: NodeId) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        Control::Hello(self.hello(from)).encode(&mut bytes);
        bytes.to_vec()
    }

    fn link_hello(&self, from: NodeId) -> anyhow::Result<Vec<u8>> {
        let mut bytes = BytesMut::new();
        encode_link(&LinkMessage::Hello(self.hello(from)), &mut bytes)?;
        Ok(bytes.to_vec())
    }
}

/// A Server, a Peer with a service, and one with a port bound to it.
fn cluster(backend: &Backend) -> anyhow::Result<(Cluster, SocketAddr)> {
    let mut cluster = Cluster::start(1)?;
    cluster.add_peer(&[(SERVICE, backend.addr())])?;
    let mut bound = None;
    cluster.add_peer_with(|peer| {
        bound = Some(peer.bind(SERVICE)?);
        Ok(())
    })?;
    Ok((cluster, bound.context("a port was bound")?))
}

#[test]
fn each_port_hears_whom_it_is_for() {
    use Gets::{Hello, Http, Http2, Nothing, Refusal};
    let backend = Backend::start("b1").unwrap();
    let (mut cluster, bound) = cluster(&backend).unwrap();
    let tried = (|| {
        let callers = Callers::of(&cluster)?;
        let (api, ops, registry) =
            (cluster.servers[0].listen(), cluster.servers[0].ops(), cluster.servers[0].registry());
        let (peer, metrics) = (cluster.peers[0].listen(), cluster.peers[0].metrics());
        wait_for("the service", PATIENCE, || {
            ensure!(http::get(cluster.peers[1].listen(), SERVICE, "/")?.status == 200);
            Ok(())
        })?;
        let page = format!("GET / HTTP/1.1\r\nHost: {SERVICE}\r\n\r\n");
        let unknown = "GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n";
        let hellos: BTreeMap<_, _> = callers
            .shown
            .iter()
            .map(|(name, (_, id))| Ok((*name, (callers.tunnel_hello(*id), callers.link_hello(*id)?))))
            .collect::<anyhow::Result<_>>()?;
        let pages = [
            ("registry", registry, "/discovery/nodes"),
            ("operations", ops, "/healthz"),
            ("metrics of a Peer", metrics, "/healthz"),
        ];
        let requests = pages.map(|(_, _, path)| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let mut rows = Rows::default();

        for (what, bytes) in [("garbage", GARBAGE), ("HTTP", page.as_bytes()), ("HTTP/2", HTTP2)] {
            rows.plain(&format!("API port, plain {what}"), api, bytes, Nothing);
        }
        for alpn in [&[] as &[&str], &["http/1.1"], &["p2p-tunnel/1"], &["p2p-link/1"], &["p2p-node/2"]] {
            for name in ["", "peer", "server"] {
                let shown = callers.shown.get(name).map(|(shown, _)| shown);
                rows.tls(format!("API port, {alpn:?} as {name:?}"), api, alpn, shown, HTTP2, Nothing);
            }
        }
        for (name, (shown, _)) in &callers.shown {
            let agreed = match *name {
                "nobody" | "wrong CA" | "other cluster" => Nothing,
                // Who may do what with it is decided behind.
                _ => Http2,
            };
            rows.tls(format!("node face as {name}"), api, &["p2p-node/1"], Some(shown), HTTP2, agreed);
            rows.tls(format!("public face as {name}"), api, &["h2"], Some(shown), HTTP2, Http2);
        }
        rows.tls("node face without a certificate".into(), api, &["p2p-node/1"], None, HTTP2, Nothing);
        rows.tls("both faces without one".into(), api, &["h2", "p2p-node/1"], None, HTTP2, Nothing);
        rows.tls("public face without one".into(), api, &["h2"], None, HTTP2, Http2);

        for ((what, addr, _), request) in pages.iter().zip(&requests) {
            rows.plain(&format!("{what}, its page"), *addr, request.as_bytes(), Http(200));
            rows.plain(&format!("{what}, unknown page"), *addr, unknown.as_bytes(), Http(404));
            rows.plain(&format!("{what}, garbage"), *addr, GARBAGE, Http(400));
            for alpn in [&[] as &[&str], &["h2"], &["p2p-node/1"]] {
                let shown = callers.shown.get("server").map(|(shown, _)| shown);
                rows.tls(format!("{what}, TLS {alpn:?}"), *addr, alpn, shown, HTTP2, Nothing);
            }
        }

        rows.plain("Peer's port, garbage", peer, GARBAGE, Nothing);
        rows.plain("Peer's port, a service", peer, page.as_bytes(), Http(200));
        rows.plain("Peer's port, an unknown service", peer, unknown.as_bytes(), Http(404));
        for alpn in [&[] as &[&str], &["http/1.1"], &["h2"], &["p2p-node/1"], &["p2p-tunnel/2"]] {
            let shown = callers.shown.get("peer").map(|(shown, _)| shown);
            rows.tls(format!("Peer's port, TLS {alpn:?}"), peer, alpn, shown, HTTP2, Nothing);
        }
        for (name, (shown, _)) in &callers.shown {
            let (tunnel, link) = &hellos[name];
            let (tunnels, links) = match *name {
                "peer" => (Hello, Hello),
                // Signed by the CA, for an Id that no Server has told of, or with another key than told.
                "stranger" | "other key" => (Refusal, Hello),
                _ => (Nothing, Nothing),
            };
            rows.tls(format!("tunnel as {name}"), peer, &["p2p-tunnel/1"], Some(shown), tunnel, tunnels);
            rows.tls(format!("link as {name}"), peer, &["p2p-link/1"], Some(shown), link, links);
        }
        let (tunnel, link) = &hellos["peer"];
        rows.tls("tunnel without a certificate".into(), peer, &["p2p-tunnel/1"], None, tunnel, Nothing);
        rows.tls("link without a certificate".into(), peer, &["p2p-link/1"], None, link, Nothing);
        rows.plain("bound port", bound, page.as_bytes(), Http(200));
        rows.check()?;

        // The agent's socket is its owner's.
        use std::os::unix::fs::PermissionsExt;
        let socket = std::fs::metadata(cluster.peers[0].data().join("agent.sock"))?;
        ensure!(socket.permissions().mode() & 0o777 == 0o600, "{:o}", socket.permissions().mode());
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

/// An address of this host that others could call it by.
fn other_address() -> Option<IpAddr> {
    // Nothing is sent: the system says from where it would be.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[test]
fn clients_from_elsewhere_are_not_served_unless_told() {
    let Some(address) = other_address() else {
        return println!("skipped: this host has no address besides loopback");
    };
    let backend = Backend::start("b1").unwrap();
    let (mut cluster, _) = cluster(&backend).unwrap();
    let tried = (|| {
        let callers = Callers::of(&cluster)?;
        // The ports of loopback are not there for others.
        for (what, port) in [
            ("operations", cluster.servers[0].ops()),
            ("registry", cluster.servers[0].registry()),
            ("metrics", cluster.peers[0].metrics()),
        ] {
            let heard = knock((address, port.port()).into(), None, GARBAGE, 1)?;
            ensure!(heard == Heard::NotOpen, "{what}: {heard:?}");
        }
        // Its own: one that listens for everybody dials nobody on loopback.
        let own = "own.example";
        let page = format!("GET / HTTP/1.1\r\nHost: {own}\r\n\r\n");
        let token = cluster.token("peer", 1)?;
        let introducer = cluster.servers[0].listen().to_string();
        let dir = cluster.dir().to_path_buf();
        let peer = cluster.new_peer()?;
        let (port, metrics) = (peer.listen().port(), peer.metrics().to_string());
        let bound = p2p_tests::cluster::PortLease::take()?;
        let bound_port = bound.addr().port();
        let mut command =
            peer.command(&["run", "--name", "p3", "--servers", &introducer, "--token", &token])?;
        command.args(["--listen", &format!("0.0.0.0:{port}"), "--metrics", &metrics]);
        command.args(["--bind", &format!("0.0.0.0:{bound_port}={own}")]);
        command.args(["--service", &format!("{own}={}", backend.addr())]);
        let mut process = Process::spawn("p3", command, &dir.join("p3.log"), Lifetime::Bound)?;
        let (here, elsewhere) = (IpAddr::from(Ipv4Addr::LOCALHOST), address);
        process.wait_for("serving", PATIENCE, || {
            let heard = gets(knock((here, port).into(), None, page.as_bytes(), 16)?)?;
            ensure!(heard == Gets::Http(200), "{heard:?}");
            Ok(())
        })?;
        let socks: &[u8] = b"\x05\x01\x00";
        for (what, port, bytes) in [
            ("HTTP", port, page.as_bytes()),
            ("HTTP/2", port, HTTP2),
            ("SOCKS", port, socks),
            ("bound port", bound_port, page.as_bytes()),
        ] {
            let heard = knock((elsewhere, port).into(), None, bytes, 16)?;
            ensure!(heard == Heard::Closed(Vec::new()), "{what} from elsewhere: {heard:?}");
            let heard = knock((here, port).into(), None, bytes, 2)?;
            ensure!(matches!(&heard, Heard::Said(said) if said.len() >= 2), "{what} from here: {heard:?}");
        }
        // TLS for a service is a client's, whatever it shows; another Peer may come from anywhere.
        let (shown, id) = &callers.shown["peer"];
        let heard = knock_tls((elsewhere, port).into(), &["h2"], Some(shown), HTTP2, 9)?;
        ensure!(matches!(heard, Heard::Closed(_)), "TLS from elsewhere: {heard:?}");
        let hello = callers.tunnel_hello(*id);
        let heard = gets(knock_tls((elsewhere, port).into(), &["p2p-tunnel/1"], Some(shown), &hello, 9)?)?;
        ensure!(heard == Gets::Hello, "a tunnel from elsewhere: {heard:?}");
        process.terminate(PATIENCE)?;
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

/// Local addresses that sockets in the network namespace of a process listen on, by port.
fn listening(pid: u32) -> anyhow::Result<BTreeMap<u16, Vec<IpAddr>>> {
    let mut found: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for (file, bytes) in [("tcp", 4), ("tcp6", 16)] {
        let Ok(table) = std::fs::read_to_string(format!("/proc/{pid}/net/{file}")) else { continue };
        for line in table.lines().skip(1) {
            let mut cells = line.split_whitespace().skip(1);
            let (Some(local), Some(_), Some(state)) = (cells.next(), cells.next(), cells.next()) else {
                continue;
            };
            // TCP_LISTEN.
            if state != "0A" {
                continue;
            }
            let (ip, port) = local.split_once(':').context("an address")?;
            // Words of 32 bits, each as the processor stores it.
            let mut octets = Vec::new();
            for word in 0..bytes / 4 {
                let word = u32::from_str_radix(&ip[word * 8..word * 8 + 8], 16)?;
                octets.extend(word.to_ne_bytes());
            }
            let ip = match <[u8; 16]>::try_from(octets.as_slice()) {
                Ok(octets) => IpAddr::from(octets),
                Err(_) => IpAddr::from(<[u8; 4]>::try_from(octets.as_slice())?),
            };
            found.entry(u16::from_str_radix(port, 16)?).or_default().push(ip);
        }
    }
    Ok(found)
}

#[test]
fn what_asks_for_no_credentials_listens_on_loopback_unless_told() {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut tool = Command::new("unshare");
    tool.args(["-n", "ip", "link", "set", "lo", "up"]);
    if !is_root || !run(tool, PATIENCE).is_ok_and(|done| done.status.success()) {
        return println!("skipped: a network namespace of its own needs root, unshare and ip");
    }
    let dir = tempfile::tempdir().unwrap();
    let binaries = binaries().unwrap();
    let mut mesh_key = Command::new(&binaries.peer);
    mesh_key.arg("mesh-key");
    let mesh_key = run(mesh_key, PATIENCE).unwrap().success().unwrap();
    let programs = [
        (
            "s1",
            &binaries.server,
            &["run", "--bootstrap"][..],
            [(7400, false), (7171, true), (7480, true)].as_slice(),
        ),
        ("p1", &binaries.peer, &["run"], &[(6443, false), (9090, true)]),
    ];
    for (name, program, args, agreed) in programs {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(program).args(args);
        command.args(["--name", name, "--data"]).arg(dir.path().join(name));
        command.env("PEER_MESH_KEY", mesh_key.trim());
        let log = dir.path().join(format!("{name}.log"));
        let mut process = Process::spawn(name, command, &log, Lifetime::Bound).unwrap();
        let pid = process.pid();
        let found = process.wait_for("listening", PATIENCE, || {
            // At first it still is in the namespace of the test.
            let found = listening(pid)?;
            let ports: BTreeSet<u16> = found.keys().copied().collect();
            ensure!(ports == agreed.iter().map(|(port, _)| *port).collect(), "it listens on {ports:?}");
            Ok(found)
        });
        let found = found.unwrap();
        for (port, loopback) in agreed {
            let all = found[port].iter().all(IpAddr::is_loopback);
            assert_eq!(all, *loopback, "{name} listens on {port} at {:?}", found[port]);
        }
        process.kill().unwrap();
    }
}
