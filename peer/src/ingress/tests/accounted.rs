//! What is told of forwards: the access log of both Peers, and the metrics.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::fixture::{Bounds, pair, pair_with};
use crate::forward::AccessLog;

/// The records of forwards that ended.
async fn ended(node: &Node, count: usize) -> Vec<BTreeMap<String, String>> {
    eventually("logged", || node.records.all().len() >= count).await;
    let records = node.records.all();
    assert_eq!(records.len(), count, "{records:?}");
    assert!(records.iter().all(|record| record["msg"] == "forward ended"), "{records:?}");
    records
}

/// The value of a metric's line.
fn metric(node: &Node, line: &str) -> f64 {
    let mut registry = Registry::default();
    node.forward_metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {line} in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_peers_log_a_forward_alike() {
    let (_world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&ingress).await;
    let requests: [&[u8]; 2] = [
        b"POST /p HTTP/1.1\r\nHost: web.example\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n",
    ];
    for request in requests {
        client.send(request).await;
        assert_eq!(client.response().await.0, 200);
    }
    let sent = requests.concat().len();
    drop(client);
    nothing_left(&ingress, &owner).await;
    let (near, far) = (ended(&ingress, 1).await.remove(0), ended(&owner, 1).await.remove(0));
    for (key, value) in [("service", "web.example"), ("end", "done"), ("path", "direct"), ("role", "ingress")]
    {
        assert_eq!(near[key], value, "{near:?}");
    }
    assert_eq!(
        (near["peer_id"].clone(), far["peer_id"].clone()),
        (owner.id.to_string(), ingress.id.to_string())
    );
    assert_eq!(far["role"], "owner");
    assert_eq!(near["proxy_id"].len(), 8);
    for key in ["proxy_id", "service", "bytes_in", "bytes_out", "end"] {
        assert_eq!(near[key], far[key], "{key}");
    }
    assert_eq!(near["bytes_in"], sent.to_string());
    let micros = |key: &str| near[key].parse::<u64>().unwrap();
    assert!(micros("open_us") > 0 && micros("duration_us") >= micros("open_us"));
    // And count it.
    assert_eq!(metric(&ingress, "forwards_total{role=\"ingress\"}"), 1.0);
    assert_eq!(metric(&owner, "forwards_total{role=\"owner\"}"), 1.0);
    assert_eq!(metric(&ingress, "requests_total{protocol=\"http\"}"), 2.0);
    assert_eq!(metric(&ingress, "forward_answers_total{outcome=\"accepted\"}"), 1.0);
    for (node, role) in [(&ingress, "ingress"), (&owner, "owner")] {
        for time in ["open", "first_byte", "duration"] {
            let count = format!("forward_{time}_seconds_count{{role=\"{role}\"}}");
            assert_eq!(metric(node, &count), 1.0, "{count}");
        }
        let done = format!("forwards_ended_total{{role=\"{role}\",outcome=\"done\"}}");
        assert_eq!(metric(node, &done), 1.0);
        assert_eq!(metric(node, "forward_bytes_total{direction=\"in\"}"), sent as f64);
        assert!(metric(node, "forward_bytes_total{direction=\"out\"}") > 80.0);
        assert_eq!((metric(node, "forwards_active"), metric(node, "forwards_pending")), (0.0, 0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_have_their_reasons() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cuts = backend(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this").await;
    })
    .await;
    let hangs = backend(|mut stream| async move {
        while stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let services =
        [format!("dead.example={dead}"), format!("cuts.example={cuts}"), format!("hangs.example={hangs}")];
    let (_world, owner, ingress) = pair(&services);
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("dead.example", "/").await.0, 502);
    assert_eq!(client.get("unknown.example", "/").await.0, 404);
    let mut client = Client::to(&ingress).await;
    client.send(b"GET / HTTP/1.1\r\nHost: cuts.example\r\n\r\n").await;
    let _ = within(client.0.read_to_end(&mut Vec::new())).await;
    // A client that leaves in the middle of its request.
    let mut client = Client::to(&ingress).await;
    client.send(b"POST / HTTP/1.1\r\nHost: hangs.example\r\nContent-Length: 10\r\n\r\nhalf").await;
    eventually("open", || owner.forwards.counts().0 == 1).await;
    drop(client);
    nothing_left(&ingress, &owner).await;
    let ends = |records: Vec<BTreeMap<String, String>>| {
        records
            .into_iter()
            .map(|record| (record["service"].clone(), record["end"].clone()))
            .collect::<Vec<_>>()
    };
    let expected = |list: &[(&str, &str)]| {
        list.iter()
            .map(|(service, end)| (format!("{service}.example"), (*end).to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ends(ended(&ingress, 4).await),
        expected(&[
            ("dead", "backend_refused"),
            ("unknown", "service_unknown"),
            ("cuts", "service_broke"),
            ("hangs", "client_broke"),
        ])
    );
    let mut owners = ends(ended(&owner, 3).await);
    owners.sort();
    // To the owner bytes are bytes: it is the ingress that breaks off when an answer is cut short.
    assert_eq!(
        owners,
        expected(&[("cuts", "client_broke"), ("dead", "backend_refused"), ("hangs", "client_broke")])
    );
    assert_eq!(metric(&ingress, "forwards_failed_total{reason=\"backend_refused\"}"), 1.0);
    for (outcome, count) in
        [("done", 0.0), ("not_opened", 2.0), ("client_broke", 1.0), ("service_broke", 1.0)]
    {
        let line = format!("forwards_ended_total{{role=\"ingress\",outcome=\"{outcome}\"}}");
        assert_eq!(metric(&ingress, &line), count, "{line}");
    }
    assert_eq!(metric(&ingress, "forward_first_byte_seconds_count{role=\"ingress\"}"), 1.0);
    assert_eq!(metric(&ingress, "forward_answers_total{outcome=\"refused\"}"), 1.0);
    assert_eq!((metric(&ingress, "forwards_active"), metric(&ingress, "forwards_pending")), (0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_setting_says_what_is_logged() {
    let addr = echo_backend("b").await;
    for (access_log, services) in [
        (AccessLog::All, &["web.example", "none.example"][..]),
        (AccessLog::Failed, &["none.example"]),
        (AccessLog::Off, &[]),
    ] {
        let bounds = Bounds { access_log, ..Bounds::default() };
        let (_world, owner, ingress) = pair_with(&service("web.example", addr), bounds);
        for host in ["web.example", "none.example"] {
            Client::to(&ingress).await.get(host, "/").await;
            nothing_left(&ingress, &owner).await;
        }
        let logged = ended(&ingress, services.len()).await;
        assert_eq!(logged.iter().map(|record| &record["service"]).collect::<Vec<_>>(), services);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_forward_shows_before_its_end() {
    let addr = backend(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(&[b'x'; 3 << 20]).await;
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let (_world, owner, ingress) = pair(&service("raw.example", addr));
    let mut client = Client::to(&ingress).await;
    client.send(b"CONNECT raw.example:80 HTTP/1.1\r\nHost: raw.example:80\r\n\r\n").await;
    assert_eq!(client.response().await.0, 200);
    client.send(b"go").await;
    within(client.0.read_exact(&mut vec![0; 3 << 20])).await.unwrap();
    for node in [&ingress, &owner] {
        assert_eq!(metric(node, "forwards_active"), 1.0);
        assert!(metric(node, "forward_bytes_total{direction=\"out\"}") >= f64::from(1 << 20));
    }
    assert_eq!(metric(&ingress, "requests_total{protocol=\"connect\"}"), 1.0);
    drop(client);
    nothing_left(&ingress, &owner).await;
}
