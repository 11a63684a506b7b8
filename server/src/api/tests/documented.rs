//! What a Server counts is what `docs/metrics.md` says: no row is missing there, and none is left over.

use std::collections::{BTreeMap, BTreeSet};

use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::World;

/// Type and labels of each metric, by its name as it is asked for.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of the table.
fn documented() -> Metrics {
    let page = include_str!("../../../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `p2p_server_"));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), quoted(cells[3])))
    })
    .collect()
}

/// What `registry` shows, of its OpenMetrics text form.
fn shown(registry: &Registry) -> Metrics {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let mut metrics = Metrics::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some((of, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            name = if kind == "counter" { format!("{of}_total") } else { of.to_owned() };
            metrics.insert(name.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split('}').next().unwrap().split(',');
            let keys = labels.map(|label| label.split('=').next().unwrap().to_owned());
            // Of a histogram the bound of each bucket is no label of ours.
            metrics.get_mut(&name).unwrap().1.extend(keys.filter(|key| key != "le"));
        }
    }
    metrics
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_is_documented() {
    let world = World::start().await;
    let mut registry = Registry::with_prefix("p2p_server");
    world.transport.register(&mut registry);
    world.listen.register(&mut registry);
    world.context.metrics.register(&mut registry, world.context.proposer.watch_view());
    // Counts by label show from the first one on: a call, a command, and a connection that is nothing.
    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    cluster.get_status(v1::GetStatusRequest {}).await.unwrap();
    world.context.metrics.proposed("Enrol", "done");
    let _remote = world.transport.remote("s2");
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // It is closed after it was counted.
    let _ = stream.read(&mut [0; 64]).await;

    // A call is counted once its answer has left.
    let documented = documented();
    let mut shown = shown(&registry);
    for _ in 0..100 {
        if shown == documented {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        shown = self::shown(&registry);
    }
    let missing: Vec<_> = shown.iter().filter(|metric| documented.get(metric.0) != Some(metric.1)).collect();
    let stale: Vec<_> = documented.iter().filter(|metric| shown.get(metric.0) != Some(metric.1)).collect();
    assert!(missing.is_empty() && stale.is_empty(), "shown: {missing:#?}\ndocs: {stale:#?}");
}
