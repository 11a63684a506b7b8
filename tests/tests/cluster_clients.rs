//! Real clients of real services, through two Peers: nothing about them knows that there are any.
//!
//! Each test says what it needs to be installed; what is missing is skipped with a word, as `make test` wants
//! only Rust and a C compiler.

use std::fs::{read, write};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::backend::{Backend, pattern};
use p2p_tests::clients::bulk::Source;
use p2p_tests::clients::postgres::Postgres;
use p2p_tests::clients::redis::Redis;
use p2p_tests::clients::ssh::Sshd;
use p2p_tests::clients::tls::TlsFront;
use p2p_tests::clients::websocket::Websockets;
use p2p_tests::clients::{
    Meeting, Pair, between, between_met, grpc, http2, installed, kubernetes, shell, typed,
};
use p2p_tests::cluster::{PATIENCE, Watch, run};
use p2p_tests::http;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

/// Longer than any time-out that watches over requests: what lives on after it lives on for ever.
const SILENCE: Duration = Duration::from_secs(12);
const MIB: usize = 1 << 20;

fn dir() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("p2pcore-clients-").tempdir()?)
}

/// Bytes without a pattern that a framing mistake could hide in.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rand::fill(&mut bytes[..]);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256_of_pattern(count: usize) -> String {
    sha256(&(0..count).map(pattern).collect::<Vec<_>>())
}

#[test]
fn curl_over_http_1() -> anyhow::Result<()> {
    if !installed(&["curl"]) {
        return Ok(());
    }
    let (dir, one, two) = (dir()?, Backend::start("b1")?, Backend::start("b2")?);
    let sent = noise(MIB);
    write(dir.path().join("sent"), &sent)?;
    between(&[("one.example", one.addr()), ("two.example", two.addr())], &[], |pair| {
        let curl = |line: &str| {
            let script = format!("cd $DIR; curl -sS --max-time 30 --http1.1 {line}");
            typed(&script, &[("DIR", &dir.path().display()), ("URL", &format!("http://{}", pair.addr()))])
        };
        assert_eq!(curl("-H 'Host: one.example' $URL/")?, "hello from b1 to one.example\n");
        let echo: Value =
            serde_json::from_str(&curl("-H 'Host: one.example' --data-binary @sent $URL/echo")?)?;
        assert_eq!((&echo["method"], &echo["body_sha256"]), (&"POST".into(), &sha256(&sent).into()));
        let head = curl("--head -H 'Host: one.example' $URL/bytes/1234")?.to_lowercase();
        assert!(head.starts_with("http/1.1 200") && head.contains("content-length: 1234\r\n"), "{head}");
        let part = curl("-o part -w '%{http_code}' -r 70000-90000 -H 'Host: one.example' $URL/bytes/100000")?;
        let wanted: Vec<u8> = (70_000..=90_000).map(pattern).collect();
        assert_eq!((part.as_str(), read(dir.path().join("part"))?), ("206", wanted));
        // One connection, kept alive, and each request goes where its Host says.
        let before = (one.connections(), two.connections());
        let both = curl(
            "-w '%{num_connects} ' -H 'Host: one.example' $URL/ \
             --next -sS --http1.1 -w '%{num_connects} ' -H 'Host: two.example' $URL/",
        )?;
        assert_eq!(both, "hello from b1 to one.example\n1 hello from b2 to two.example\n0 ");
        assert_eq!((one.connections(), two.connections()), (before.0 + 1, before.1 + 1));
        assert_eq!(one.refused() + two.refused(), 0);
        let nobody = curl("-o /dev/null -w '%{http_code}' -H 'Host: nobody.example' $URL/")?;
        assert_eq!(nobody, "404");
        Ok(())
    })
}

#[test]
fn curl_over_http_2() -> anyhow::Result<()> {
    if !installed(&["curl"]) {
        return Ok(());
    }
    let (dir, backend) = (dir()?, http2::start()?);
    let sent = noise(MIB);
    write(dir.path().join("sent"), &sent)?;
    between(&[("h2.example", backend.addr())], &[], |pair| {
        let curl = |line: &str| {
            let script = format!(
                "cd $DIR; curl -sS --max-time 30 --http2-prior-knowledge --connect-to ::127.0.0.1:$PORT {line}"
            );
            typed(&script, &[("DIR", &dir.path().display()), ("PORT", &pair.port())])
        };
        let echo: Value = serde_json::from_str(&curl("http://h2.example/asked")?)?;
        assert_eq!(
            (&echo["version"], &echo["authority"], &echo["path"]),
            (&"HTTP/2.0".into(), &"h2.example".into(), &"/asked".into())
        );
        let echo: Value = serde_json::from_str(&curl("--data-binary @sent http://h2.example/")?)?;
        assert_eq!(echo["body_sha256"], *sha256(&sent));
        let got = curl("http://h2.example/bytes/1000000 | sha256sum")?;
        assert_eq!(got.split(' ').next(), Some(sha256_of_pattern(1_000_000).as_str()));
        // Ten streams of one connection at once; curl 7.88 fails at its second one, with Peers or without.
        if installed(&["h2load"]) {
            let load =
                "h2load -n 200 -c 1 -m 10 -H ':authority: h2.example' http://127.0.0.1:$PORT/bytes/100000";
            let load = typed(load, &[("PORT", &pair.port())])?;
            assert!(load.contains("200 succeeded, 0 failed") && load.contains("2xx, 0 3xx"), "{load}");
        }
        Ok(())
    })
}

#[test]
fn curl_over_tls_by_sni() -> anyhow::Result<()> {
    if !installed(&["curl"]) {
        return Ok(());
    }
    let (dir, backend) = (dir()?, http2::start()?);
    let front = TlsFront::start("secure.example", &["h2", "http/1.1"], backend.addr())?;
    let ca = dir.path().join("ca.pem");
    write(&ca, front.ca_pem())?;
    between(&[("secure.example", front.addr())], &[], |pair| {
        let curl = |line: &str| {
            let script = format!("curl -sS --max-time 30 --cacert $CA {line}");
            typed(&script, &[("CA", &ca.display()), ("PORT", &pair.port())])
        };
        for (option, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
            let connect_to = "--connect-to ::127.0.0.1:$PORT https://secure.example/a";
            let echo: Value = serde_json::from_str(&curl(&format!("{option} {connect_to}"))?)?;
            assert_eq!((&echo["version"], &echo["path"]), (&version.into(), &"/a".into()));
        }
        let resolve = "--resolve secure.example:$PORT:127.0.0.1 https://secure.example:$PORT/bytes/1000000";
        let got = curl(&format!("{resolve} | sha256sum"))?;
        assert_eq!(got.split(' ').next(), Some(sha256_of_pattern(1_000_000).as_str()));
        // Nobody's name: closed before any certificate, so no other one can be taken for it.
        let nobody = curl("--connect-to ::127.0.0.1:$PORT https://nobody.example/").unwrap_err().to_string();
        assert!(nobody.contains("exit status: 35"), "{nobody}");
        Ok(())
    })
}

#[test]
fn kubectl_by_tls_server_name() -> anyhow::Result<()> {
    if !installed(&["kubectl"]) {
        return Ok(());
    }
    let (dir, api) = (dir()?, kubernetes::start(SILENCE)?);
    let front = TlsFront::start("cluster.example", &["h2", "http/1.1"], api.addr())?;
    write(dir.path().join("ca.pem"), front.ca_pem())?;
    between(&[("cluster.example", front.addr())], &[], |pair| {
        let kubectl = |line: &str| {
            let script = format!(
                "cd $DIR; HOME=$DIR KUBECONFIG=$DIR/none exec kubectl --server https://127.0.0.1:$PORT \
                 --tls-server-name cluster.example --certificate-authority ca.pem --token none {line}"
            );
            shell(&script, &[("DIR", &dir.path().display()), ("PORT", &pair.port())])
        };
        let nodes = run(kubectl("get nodes"), PATIENCE)?.success()?;
        assert!(nodes.contains("NAME") && nodes.contains("node-1"), "{nodes}");
        let begun = Instant::now();
        let watch = Watch::start(kubectl("get nodes --watch"))?;
        let (at, line) = loop {
            let (at, line) = watch.line(PATIENCE)?;
            if line.contains("node-2") {
                break (at, line);
            }
        };
        assert!(line.contains("Ready") && at - begun >= SILENCE, "{line} after {:?}", at - begun);
        Ok(())
    })
}

#[test]
fn redis_on_a_bound_port() -> anyhow::Result<()> {
    if !installed(&["redis-server", "redis-cli"]) {
        return Ok(());
    }
    let dir = dir()?;
    let redis = Redis::start(dir.path())?;
    let value = noise(MIB);
    write(dir.path().join("value"), &value)?;
    between(&[("example-redis", redis.addr())], &["example-redis"], |pair| {
        let port = pair.bound("example-redis")?;
        let given: [(&str, &dyn std::fmt::Display); 2] = [("PORT", &port), ("DIR", &dir.path().display())];
        assert_eq!(typed("redis-cli -p $PORT ping", &given)?, "PONG\n");
        assert_eq!(typed("redis-cli -p $PORT -x set value < $DIR/value", &given)?, "OK\n");
        typed("redis-cli -p $PORT --raw get value > $DIR/got", &given)?;
        // It ends what it prints with a line feed.
        assert!(read(dir.path().join("got"))?.strip_suffix(b"\n") == Some(&value), "another value came back");
        let subscribed = Watch::start(shell("exec redis-cli -p $PORT subscribe news", &given))?;
        let wait = |wanted: &str| -> anyhow::Result<()> {
            while subscribed.line(PATIENCE)?.1 != wanted {}
            Ok(())
        };
        wait("subscribe")?;
        std::thread::sleep(SILENCE);
        assert_eq!(typed("redis-cli -p $PORT publish news hello", &given)?, "1\n");
        wait("message")?;
        wait("hello")
    })
}

#[test]
fn psql_on_a_bound_port() -> anyhow::Result<()> {
    if !installed(&["initdb", "postgres", "psql"]) {
        return Ok(());
    }
    let (dir, postgres) = (dir()?, Postgres::start()?);
    // 10 MB in lines of their own, as COPY takes them.
    let rows: String = (0..100_000).map(|row| format!("{row}\t{:x}{:096}\n", row * 7919, row)).collect();
    write(dir.path().join("rows"), &rows)?;
    between(&[("db.example", postgres.addr())], &["db.example"], |pair| {
        let psql = |line: &str| {
            let script = format!("cd $DIR; psql -qAtX -h 127.0.0.1 -p $PORT -U postgres {line}");
            typed(&script, &[("DIR", &dir.path().display()), ("PORT", &pair.bound("db.example")?)])
        };
        assert_eq!(psql("-c 'select 6 * 7'")?, "42\n");
        psql("-c 'create table t (id int primary key, text text)'")?;
        psql("-c '\\copy t from rows'")?;
        assert_eq!(psql("-c 'select count(*), max(id) from t'")?, "100000|99999\n");
        psql("-c '\\copy (select * from t order by id) to got'")?;
        ensure!(read(dir.path().join("got"))? == rows.as_bytes(), "other rows came back");
        Ok(())
    })
}

#[test]
fn ssh_on_a_bound_port() -> anyhow::Result<()> {
    if !installed(&["sshd", "ssh", "ssh-keygen"]) {
        return Ok(());
    }
    let dir = dir()?;
    let Some(sshd) = Sshd::start(dir.path())? else { return Ok(()) };
    let sent = noise(50_000_000);
    write(dir.path().join("sent"), &sent)?;
    between(&[("ssh.example", sshd.addr())], &["ssh.example"], |pair| {
        let ssh = sshd.client(pair.bound("ssh.example")?);
        let at = |script: &str| {
            let script = script.replace("SSH", &ssh);
            typed(&script, &[("DIR", &dir.path().display())])
        };
        assert_eq!(at("SSH 'echo out; echo err >&2; exit 3' || echo $?")?, "out\n3\n");
        // Up, the hash taken there; and down, taken here.
        let hash = format!("{}  -\n", sha256(&sent));
        assert_eq!(at("SSH sha256sum < $DIR/sent")?, hash);
        assert_eq!(at("SSH cat $DIR/sent | sha256sum")?, hash);
        // Each side ends its input by itself.
        assert_eq!(at("SSH cat < $DIR/sent | sha256sum")?, hash);
        Ok(())
    })
}

#[test]
fn websockets() -> anyhow::Result<()> {
    let dir = dir()?;
    let Some(websockets) = Websockets::start(dir.path())? else { return Ok(()) };
    between(&[("chat.example", websockets.addr())], &[], |pair| {
        let tried = run(websockets.client("chat.example", pair.port()), PATIENCE)?.success()?;
        assert_eq!(tried, "tried\n");
        Ok(())
    })
}

#[test]
fn grpc_with_prior_knowledge() -> anyhow::Result<()> {
    let backend = grpc::start(SILENCE)?;
    between(&[("grpc.example", backend.addr())], &[], |pair| {
        let addr = pair.addr();
        calls(async move || {
            let connect = move || async move { Ok(TcpStream::connect(addr).await?) };
            grpc::channel("grpc.example", connect).await
        })
    })
}

#[test]
fn grpc_over_tls_by_sni() -> anyhow::Result<()> {
    let backend = grpc::start(Duration::from_secs(1))?;
    let front = std::sync::Arc::new(TlsFront::start("grpc.example", &["h2"], backend.addr())?);
    between(&[("grpc.example", front.addr())], &[], |pair| {
        let addr = pair.addr();
        calls(async move || {
            let connect = move || {
                let front = std::sync::Arc::clone(&front);
                async move { front.connect(addr, "h2").await }
            };
            grpc::channel("grpc.example", connect).await
        })
    })
}

/// One answer, a stream of answers, and questions and answers in turns, on one connection.
fn calls(connect: impl AsyncFnOnce() -> anyhow::Result<Channel>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let calls = async {
        let channel = connect().await?;
        let mut health = HealthClient::new(channel.clone());
        let asked = HealthCheckRequest { service: String::new() };
        assert_eq!(health.check(asked).await?.into_inner().status(), ServingStatus::Serving);
        let changing = HealthCheckRequest { service: grpc::CHANGING.into() };
        let mut watched = health.watch(changing).await?.into_inner();

        let (questions, stream) = tokio::sync::mpsc::channel(1);
        let questions_stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let mut reflection = ServerReflectionClient::new(channel);
        let mut answers = reflection.server_reflection_info(questions_stream).await?.into_inner();
        for turn in 0..200 {
            let list = MessageRequest::ListServices(String::new());
            let question = ServerReflectionRequest { host: turn.to_string(), message_request: Some(list) };
            questions.send(question).await.context("the stream of questions ended")?;
            let answer = answers.message().await?.context("the stream of answers ended")?;
            assert_eq!(answer.valid_host, turn.to_string());
        }
        drop(questions);
        assert!(answers.message().await?.is_none());

        while watched.message().await?.context("the watch ended")?.status() != ServingStatus::NotServing {}
        anyhow::Ok(())
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, calls).await? })
}

#[test]
fn over_a_link_that_the_ingress_dials() -> anyhow::Result<()> {
    over_a_link(Meeting::IngressDials)
}

/// The hard direction: no tunnel to the owner can be dialled, all are asked for.
#[test]
fn over_a_link_that_the_owner_dials() -> anyhow::Result<()> {
    over_a_link(Meeting::OwnerDials)
}

fn over_a_link(meeting: Meeting) -> anyhow::Result<()> {
    let (backend, source) = (Backend::start("b")?, Source::start(64 << 20)?);
    let services = [("web.example", backend.addr()), ("big.example", source.addr())];
    between_met(meeting, &services, &[], |pair| {
        let addr = pair.addr();
        // More at once than there are tunnels ready; then one after the other, on what there is.
        let clients: Vec<_> = (0..40)
            .map(|_| {
                std::thread::spawn(move || {
                    (0..10).try_for_each(|_| {
                        let answer = http::get(addr, "web.example", "/bytes/70000")?;
                        ensure!(answer.status == 200, "{}", answer.text());
                        ensure!(answer.body.len() == 70_000);
                        Ok(())
                    })
                })
            })
            .collect();
        for client in clients {
            client.join().expect("asking does not panic")?;
        }
        if installed(&["curl"]) {
            let downloaded = source.download("big.example", pair.port())?;
            ensure!(downloaded.got_sha256 == downloaded.sent_sha256);
        }
        Ok(())
    })
}

#[test]
fn a_big_download_arrives_whole() -> anyhow::Result<()> {
    if !installed(&["curl"]) {
        return Ok(());
    }
    const BYTES: u64 = 256 << 20;
    let source = Source::start(BYTES)?;
    let mut pair = Pair::start(&[("big.example", source.addr())], &[])?;
    let downloaded = source.download("big.example", pair.port());
    let downloaded = pair.cluster.explain(downloaded)?;
    assert_eq!(downloaded.bytes, BYTES);
    assert_eq!(downloaded.got_sha256, downloaded.sent_sha256);
    pair.cluster.stop(Duration::from_secs(15))
}
