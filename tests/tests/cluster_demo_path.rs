//! The whole path: three Servers, two Peers, a request by name; the Master dies and comes back.

use std::time::Duration;

use p2p_tests::backend::Backend;
use p2p_tests::cluster::report::Master;
use p2p_tests::cluster::{Cluster, PATIENCE, Start, Watch, wait_for};
use p2p_tests::http;

const SERVICE: &str = "web.example";

#[test]
fn a_request_by_name_survives_the_master() {
    let mut cluster = Cluster::start(3).unwrap();
    let walked = walk(&mut cluster);
    cluster.explain(walked).unwrap();
    cluster.stop(Duration::from_secs(15)).unwrap();
}

fn walk(cluster: &mut Cluster) -> anyhow::Result<()> {
    let backend = Backend::start("b1")?;
    cluster.add_peer(&[(SERVICE, backend.addr())])?;
    cluster.add_peer(&[])?;
    let client = cluster.peers[1].listen();
    let fetch = || -> anyhow::Result<()> {
        let answer = http::get(client, SERVICE, "/bytes/100000")?;
        anyhow::ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        assert_eq!(answer.body.len(), 100_000);
        Ok(())
    };
    wait_for("the page", PATIENCE, fetch)?;
    // In any case and with any port, a Host is the same name; another name is nobody's.
    assert_eq!(http::get(client, "WEB.example.:8080", "/")?.status, 200);
    assert_eq!(http::get(client, "nobody.example", "/")?.status, 404);
    look_at_tables(cluster, &backend)?;

    let old = cluster.master()?;
    let survivor = (old + 1) % 3;
    let watch = Watch::start(cluster.servers[survivor].command(&["master", "--watch", "--json"])?)?;
    let (_, before) = watch.next::<Master>(PATIENCE)?;
    assert_eq!(before.name, cluster.servers[old].name());
    cluster.servers[old].kill()?;
    // Without a Master, too: the data path needs none.
    fetch()?;
    let after = loop {
        let (_, master) = watch.next::<Master>(PATIENCE)?;
        if !master.provisional && master.id != before.id {
            break master;
        }
    };
    assert!(after.term > before.term, "{before:?}, then {after:?}");
    assert_eq!((&after.cluster_id, after.epoch), (&before.cluster_id, before.epoch));
    fetch()?;
    cluster.wait_agreed(PATIENCE)?;
    let members = cluster.servers[survivor].members()?;
    assert_eq!(members.members.iter().filter(|member| member.connected).count(), 2);

    cluster.servers[old].start(Start::Again)?;
    cluster.wait_agreed(PATIENCE)?;
    let again = cluster.servers[old].members()?;
    assert_eq!((again.version, again.members.len()), (members.version, 3));
    for peer in &mut cluster.peers {
        peer.wait_working(3, PATIENCE)?;
    }
    fetch()
}

/// Both tables in the words of the specification, at the Peer that has the service and at the other.
fn look_at_tables(cluster: &mut Cluster, backend: &Backend) -> anyhow::Result<()> {
    let (owner, backend) = (cluster.peers[0].listen(), backend.addr());
    let remote = cluster.peers[1].cli(&["tables"])?.success()?;
    let lines: Vec<_> = remote.lines().map(str::trim).collect();
    for line in [
        "services svc_map={total=1}".to_string(),
        "| peer | name | backend |".into(),
        format!("| {owner} | {SERVICE} | {backend} |"),
        "peer_services_map {total_peers=1}".into(),
        format!("| {SERVICE} | {backend} |"),
    ] {
        assert!(lines.contains(&line.as_str()), "{line:?} is not in\n{remote}");
    }
    let own = cluster.peers[0].cli(&["tables"])?.success()?;
    assert!(own.contains(&format!("| local | {SERVICE} | {backend} |")), "{own}");
    let log = cluster.peers[1].process_mut()?.log();
    assert!(log.contains("[registry] services peer_id="), "the log shows no table");
    Ok(())
}
