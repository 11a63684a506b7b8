//! What a running Peer counts is what `docs/metrics.md` says: no row is missing there, and none is left over.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Type and labels of each metric, by its name as it is asked for.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of the table.
fn documented() -> Metrics {
    let page = include_str!("../../../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `p2p_peer_"));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), quoted(cells[3])))
    })
    .collect()
}

/// What is there, of the OpenMetrics text form.
fn shown(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some((of, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            name = if kind == "counter" { format!("{of}_total") } else { of.to_owned() };
            metrics.insert(name.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split('}').next().unwrap().split(',');
            let keys = labels.map(|label| label.split('=').next().unwrap()).filter(|key| *key != "le");
            metrics.get_mut(&name).unwrap().1.extend(keys.map(str::to_owned));
        }
    }
    metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let raw = RawConfig {
        data: Some(dir.path().into()),
        mesh_key: Some(p2p_runtime::mesh_key::MeshKey::generate().unwrap().to_text().to_string()),
        listen: Some(free_port().to_string()),
        metrics: Some(free_port().to_string()),
        telemetry_path: Some("/numbers".into()),
        ..RawConfig::default()
    };
    let peer = start(raw, dir).await;
    // Counts of failures show from the first one on.
    assert!(get(peer.listen, "unknown.example", "/").await.starts_with("HTTP/1.1 404"));
    let mut client = TcpStream::connect(peer.listen).await.unwrap();
    client.write_all(&[0; 16]).await.unwrap();
    let _ = within(client.read(&mut [0])).await;

    let (documented, mut text) = (documented(), String::new());
    eventually!("shown", {
        text = get(peer.metrics, "ops", "/numbers").await;
        text.contains("connections_refused_total{reason=\"unrecognised\"} 1")
    });
    let shown = shown(&text);
    let undocumented: Vec<_> =
        shown.iter().filter(|metric| documented.get(metric.0) != Some(metric.1)).collect();
    let stale: Vec<_> = documented.iter().filter(|metric| shown.get(metric.0) != Some(metric.1)).collect();
    assert!(undocumented.is_empty() && stale.is_empty(), "shown: {undocumented:#?}\ndocs: {stale:#?}");
    assert!(get(peer.metrics, "ops", "/metrics").await.starts_with("HTTP/1.1 404"));
    peer.stopped().await;
}
