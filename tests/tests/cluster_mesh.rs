//! Peers that an operator linked: the walk of the seed's `peer-communication`, 3.2, and what a mesh meets in the world.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{
    Cluster, Lifetime, PATIENCE, PeerProcess, PortLease, Signal, TcpProxy, USAGE, binaries, expect_refusal,
    run, wait_for,
};
use p2p_tests::http;

const A: &str = "test-cluster-a.example.com";
const B: &str = "test-cluster-b.example.com";
const C: &str = "test-cluster-c.example.com";

/// Peers without a Server.
struct Mesh {
    cluster: Cluster,
    key: String,
}

fn mesh_key() -> anyhow::Result<String> {
    let mut command = Command::new(&binaries()?.peer);
    command.arg("mesh-key");
    Ok(run(command, PATIENCE)?.success()?.trim_end().to_owned())
}

impl Mesh {
    fn new() -> anyhow::Result<Self> {
        Ok(Mesh { cluster: Cluster::empty(Lifetime::Bound)?, key: mesh_key()? })
    }

    /// Adds a Peer with one service, told as the seed tells it; not started.
    fn add(
        &mut self,
        service: &str,
        backend: &Backend,
        remote: Option<SocketAddr>,
    ) -> anyhow::Result<&mut PeerProcess> {
        let key = self.key.clone();
        let peer = self.cluster.new_peer()?;
        peer.set_variable("PEER_MESH_KEY", &key);
        peer.set_variable("SERVICE_ADDR", &format!("{service}:{}", backend.addr()));
        peer.set_variable("LOG_LEVEL", "debug");
        if let Some(remote) = remote {
            peer.set_variable("REMOTE_PEER_ADDR", &remote.to_string());
        }
        Ok(peer)
    }

    /// A, and B and C that are linked to it, all running and known to A.
    fn three(backends: &[Backend; 3], transit: bool) -> anyhow::Result<Self> {
        let mut mesh = Mesh::new()?;
        let a = mesh.add(A, &backends[0], None)?;
        if transit {
            a.set_variable("P2P_PEER_TRANSIT", "true");
        }
        a.start()?;
        let remote = a.listen();
        mesh.add(B, &backends[1], Some(remote))?.start()?;
        mesh.add(C, &backends[2], Some(remote))?.start()?;
        let started = mesh.wait_services(0, &[A, B, C]);
        mesh.cluster.explain(started)?;
        Ok(mesh)
    }

    fn listen(&self, nth: usize) -> SocketAddr {
        self.cluster.peers[nth].listen()
    }

    /// Waits until Peer `nth` shows exactly these services in both tables.
    fn wait_services(&self, nth: usize, expected: &[&str]) -> anyhow::Result<()> {
        wait_for(&format!("services {expected:?}"), PATIENCE, || services(&self.cluster.peers[nth], expected))
    }
}

/// Checks that both tables of `peer` show exactly these services, all of them usable.
fn services(peer: &PeerProcess, expected: &[&str]) -> anyhow::Result<()> {
    let tables = peer.tables()?;
    let mut names: Vec<&str> = tables.routes.iter().map(|route| route.name.as_str()).collect();
    names.sort_unstable();
    ensure!(names == expected, "its routes are {names:?}");
    ensure!(tables.routes.iter().all(|route| route.connected), "{:?}", tables.routes);
    let remote = tables.routes.iter().filter(|route| route.source != "local").count();
    let listed: usize = tables.peer_services.iter().map(|peer| peer.services.len()).sum();
    ensure!(listed == remote, "the tables do not agree: {tables:?}");
    Ok(())
}

fn backends() -> [Backend; 3] {
    ["a", "b", "c"].map(|name| Backend::start(name).expect("a backend"))
}

/// Asks the Peer at `at` for `/echo` of `service`; what answered.
fn ask(at: SocketAddr, service: &str) -> anyhow::Result<(u16, String)> {
    let answer = http::get(at, service, "/")?;
    Ok((answer.status, answer.text()))
}

fn expect_from(at: SocketAddr, service: &str, backend: &Backend) -> anyhow::Result<()> {
    let before = backend.requests();
    let (status, text) = ask(at, service)?;
    ensure!(status == 200, "{status}: {text}");
    ensure!(backend.requests() == before + 1, "another backend answered: {text}");
    Ok(())
}

/// The FORWARD lines in a log, in the seed's form.
fn forwards(peer: &mut PeerProcess, service: &str) -> anyhow::Result<usize> {
    let log = peer.process_mut()?.log();
    let tail = format!(":{service}:80");
    let commands = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("FORWARD:")?;
        let (proxy_id, rest) = rest.split_at_checked(8)?;
        let hex = proxy_id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (hex && rest.starts_with(&tail)).then_some(())
    });
    Ok(commands.count())
}

#[test]
fn the_walk_of_the_seed() {
    let backends = backends();
    let mut mesh = Mesh::three(&backends, false).unwrap();
    let walked = walk(&mut mesh, &backends);
    mesh.cluster.explain(walked).unwrap();
    mesh.cluster.stop(Duration::from_secs(15)).unwrap();
}

fn walk(mesh: &mut Mesh, backends: &[Backend; 3]) -> anyhow::Result<()> {
    let [a, b, c] = [0, 1, 2].map(|nth| mesh.listen(nth));
    // 2.1: A sees all; B and C see A and not each other.
    mesh.wait_services(1, &[A, B])?;
    mesh.wait_services(2, &[A, C])?;

    // 3.2: A is asked for its own: straight to the backend.
    expect_from(a, A, &backends[0])?;
    ensure!(forwards(&mut mesh.cluster.peers[0], A)? == 0);
    // B is asked for A's: FORWARD to A.
    expect_from(b, A, &backends[0])?;
    ensure!(forwards(&mut mesh.cluster.peers[1], A)? == 1);
    // A is asked for C's: FORWARD to C, which dialled.
    expect_from(a, C, &backends[2])?;
    ensure!(forwards(&mut mesh.cluster.peers[0], C)? == 1);
    // B does not see C.
    let (status, text) = ask(b, C)?;
    ensure!(status == 404, "{status}: {text}");
    // Any port and case; many at once.
    expect_from(a, &format!("{}:80", C.to_uppercase()), &backends[2])?;
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..64).map(|nth| scope.spawn(move || ask(if nth % 2 == 0 { a } else { c }, C))).collect();
        for asked in asked {
            let (status, text) = asked.join().expect("asking does not panic")?;
            ensure!(status == 200, "{status}: {text}");
        }
        anyhow::Ok(())
    })?;

    // C is silent for 30 s: its services leave both tables of A; B, which never saw them, notices nothing.
    let c = &mut mesh.cluster.peers[2];
    c.process_mut()?.signal(Signal::Stop)?;
    let stopped = Instant::now();
    std::thread::sleep(Duration::from_secs(25));
    let early = services(&mesh.cluster.peers[0], &[A, B]);
    ensure!(early.is_err(), "it left after {:?}", stopped.elapsed());
    mesh.wait_services(0, &[A, B])?;
    let left = stopped.elapsed();
    // It was heard last up to 3 s before it stopped.
    ensure!((26..34).contains(&left.as_secs()), "it left after {left:?}");
    let printed = mesh.cluster.peers[0].cli(&["tables"])?.success()?;
    ensure!(!printed.contains(C) && printed.contains("{total_peers=1}"), "{printed}");
    ensure!(ask(a, C)?.0 == 404);
    expect_from(b, A, &backends[0])?;
    // It comes back, and all is synced again.
    std::thread::sleep(Duration::from_secs(31).saturating_sub(stopped.elapsed()));
    mesh.cluster.peers[2].process_mut()?.signal(Signal::Continue)?;
    mesh.wait_services(0, &[A, B, C])?;
    mesh.wait_services(2, &[A, C])?;
    expect_from(a, C, &backends[2])?;

    // A starts anew: both return by themselves.
    let process = mesh.cluster.peers[0].process_mut()?;
    ensure!(process.terminate(PATIENCE)?.success());
    wait_for("B without A", PATIENCE, || {
        let gone = services(&mesh.cluster.peers[1], &[A, B]);
        ensure!(gone.is_err(), "it still shows A as connected");
        Ok(())
    })?;
    mesh.cluster.peers[0].start()?;
    mesh.wait_services(0, &[A, B, C])?;
    expect_from(a, C, &backends[2])?;
    wait_for("B to reach A", PATIENCE, || expect_from(b, A, &backends[0]))
}

#[test]
fn with_transit_linked_peers_reach_each_other() {
    let backends = backends();
    let mut mesh = Mesh::three(&backends, true).unwrap();
    let tried = (|| {
        mesh.wait_services(1, &[A, B, C])?;
        mesh.wait_services(2, &[A, B, C])?;
        expect_from(mesh.listen(1), C, &backends[2])?;
        expect_from(mesh.listen(2), B, &backends[1])?;
        expect_from(mesh.listen(0), C, &backends[2])?;
        // What A can no longer reach it no longer shows.
        mesh.cluster.peers[2].process_mut()?.signal(Signal::Terminate)?;
        wait_for("B without C", PATIENCE, || {
            let status = ask(mesh.listen(1), C)?.0;
            ensure!(status == 404 || status == 503, "{status}");
            Ok(())
        })?;
        expect_from(mesh.listen(1), A, &backends[0])
    })();
    mesh.cluster.explain(tried).unwrap();
}

/// A behind a load balancer, C where nobody can dial it.
#[test]
fn through_a_load_balancer_from_behind_a_nat() {
    let backends = backends();
    let mut mesh = Mesh::new().unwrap();
    let tried = (|| {
        let a = mesh.add(A, &backends[0], None)?;
        a.start()?;
        let proxy = TcpProxy::start(a.listen())?;
        let dead = PortLease::take()?;
        let c = mesh.add(C, &backends[2], Some(proxy.addr()))?;
        c.set("--advertise", &dead.addr().to_string());
        c.start()?;
        mesh.wait_services(0, &[A, C])?;
        mesh.wait_services(1, &[A, C])?;
        let [a, c] = [0, 1].map(|nth| mesh.listen(nth));
        for _ in 0..3 {
            expect_from(a, C, &backends[2])?;
            expect_from(c, A, &backends[0])?;
        }
        // The link, and every tunnel, went through it: there is no other way to A but this, and none to C at all.
        ensure!(proxy.connections() >= 3, "{} connections", proxy.connections());

        // It loses everything: both find back, forwards included.
        proxy.cut();
        wait_for("A -> C again", PATIENCE, || expect_from(a, C, &backends[2]))?;
        wait_for("C -> A again", PATIENCE, || expect_from(c, A, &backends[0]))?;
        let status = mesh.cluster.peers[1].status()?;
        ensure!(status.mesh_links.len() == 1 && status.mesh_links[0].connected, "{:?}", status.mesh_links);
        Ok(())
    })();
    mesh.cluster.explain(tried).unwrap();
}

/// Linked Peers of a Server cluster see each other's services, and nobody else does.
#[test]
fn beside_servers() {
    let backends = backends();
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let near = cluster.add_peer(&[(B, backends[1].addr())])?.listen();
        let linked = format!("{C}={}", backends[2].addr());
        let both = format!("{A}={} visibility=cluster", backends[0].addr());
        cluster.add_peer_with(|peer| {
            peer.set_variable("REMOTE_PEER_ADDR", &near.to_string());
            // Whom it is known by is settled by the Servers.
            peer.set_variable("PEER_MESH_KEY", &mesh_key()?);
            peer.set("--service", &linked);
            peer.set("--service", &both);
            Ok(())
        })?;
        let far = cluster.add_peer(&[])?.listen();
        let [near, linked] = [near, cluster.peers[1].listen()];
        wait_for("the link", PATIENCE, || services(&cluster.peers[0], &[A, B, C]))?;
        wait_for("both ways", PATIENCE, || services(&cluster.peers[1], &[A, B, C]))?;
        wait_for("the rest", PATIENCE, || services(&cluster.peers[2], &[A, B]))?;
        expect_from(near, C, &backends[2])?;
        expect_from(linked, B, &backends[1])?;
        expect_from(far, A, &backends[0])?;
        ensure!(ask(far, C)?.0 == 404);
        let told = cluster.servers[0].cli(&["peers", "--json"])?.success()?;
        ensure!(told.contains(A) && !told.contains(C), "{told}");
        let log = cluster.peers[1].process_mut()?.log();
        ensure!(log.contains("mesh key is not used"), "{log}");

        // Without the Server linked Peers go on; they met without it.
        cluster.servers[0].kill()?;
        wait_for("the end of the grace", PATIENCE, || {
            let state = cluster.peers[2].status()?.state;
            ensure!(state.starts_with("stopped"), "{state}");
            Ok(())
        })?;
        expect_from(near, C, &backends[2])?;
        expect_from(linked, B, &backends[1])?;
        let (status, text) = ask(far, A)?;
        ensure!(status == 503, "{status}: {text}");
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn strangers_are_refused_and_told_why() {
    let backends = backends();
    let mut mesh = Mesh::new().unwrap();
    let tried = (|| {
        let a = mesh.add(A, &backends[0], None)?;
        a.start()?;
        a.wait_working(0, PATIENCE)?;
        let remote = a.listen();
        let other = mesh_key()?;
        let stranger = mesh.add(B, &backends[1], Some(remote))?;
        stranger.set_variable("PEER_MESH_KEY", &other);
        stranger.start()?;
        wait_for("the reason", PATIENCE, || {
            let link =
                mesh.cluster.peers[1].status()?.mesh_links.into_iter().next().context("no link is shown")?;
            ensure!(!link.connected && link.reason.contains("another cluster or mesh"), "{link:?}");
            Ok(())
        })?;
        // It goes on trying, and says so once.
        let log = wait_for("the next attempt", PATIENCE, || {
            let log = mesh.cluster.peers[1].process_mut()?.log();
            ensure!(log.contains("mesh link failed again"), "not yet");
            Ok(log)
        })?;
        let warned = log.lines().filter(|line| line.contains("WARN mesh link failed")).count();
        ensure!(warned == 1, "{warned} warnings\n{log}");
        services(&mesh.cluster.peers[0], &[A])?;

        // Its own address in the list is left out.
        let own = mesh.add(C, &backends[2], None)?;
        let addr = own.listen();
        own.set_variable("REMOTE_PEER_ADDR", &format!("{addr},{remote}"));
        own.start()?;
        mesh.wait_services(0, &[A, C])?;
        let links = mesh.cluster.peers[2].status()?.mesh_links;
        let of_itself =
            links.iter().find(|link| link.configured == addr.to_string()).context("it is shown")?;
        ensure!(!of_itself.connected && of_itself.reason.contains("itself"), "{links:?}");
        anyhow::Ok(())
    })();
    mesh.cluster.explain(tried).unwrap();

    // Nothing to be known by, and what is no key.
    let mut cluster = Cluster::empty(Lifetime::Bound).unwrap();
    let peer = cluster.new_peer().unwrap();
    expect_refusal(peer.run_command().unwrap(), USAGE, &["p2p-peer mesh-key", "PEER_MESH_KEY", "--servers"])
        .unwrap();
    peer.set_variable("PEER_MESH_KEY", &mesh.key[..mesh.key.len() - 1]);
    expect_refusal(peer.run_command().unwrap(), USAGE, &["mesh_key", "copy it again"]).unwrap();
}
