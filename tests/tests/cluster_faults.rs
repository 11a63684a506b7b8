//! What a client sees, and how soon, when something on its way fails: `docs/faults.md` as a test.
//!
//! Times are measured from the fault to what the client sees. Their bounds leave room for a machine that is
//! busy; what is told in milliseconds in the table stays below [`SOON`] here.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::clients::tls::TlsFront;
use p2p_tests::clients::{Meeting, Pair, Service, between, between_met};
use p2p_tests::cluster::{PATIENCE, PortLease, Process, Signal, wait_for};
use p2p_tests::http::{self, Connection, Request, Response};
use tokio::io::AsyncReadExt;

const NAME: &str = "web.example";
/// What takes milliseconds on a machine that has nothing else to do.
const SOON: Duration = Duration::from_secs(3);
/// An owner has 8 s for its ACCEPT.
const ACCEPT: Duration = Duration::from_secs(8);

/// An answer, or what came instead, and when.
type Seen = (anyhow::Result<Response>, Instant);

fn get(addr: SocketAddr, target: &str) -> anyhow::Result<(Response, Duration)> {
    let begun = Instant::now();
    let response = http::get(addr, NAME, target)?;
    Ok((response, begun.elapsed()))
}

/// Asks in the background; returns when the answer must be on its way.
fn ask(addr: SocketAddr, target: &'static str) -> JoinHandle<Seen> {
    let asked = std::thread::spawn(move || (http::get(addr, NAME, target), Instant::now()));
    std::thread::sleep(Duration::from_millis(500));
    asked
}

/// The answer was broken off by a reset, soon after `fault`: nobody can take what came for the whole.
fn expect_reset(what: &str, asked: JoinHandle<Seen>, fault: Instant) -> anyhow::Result<()> {
    let (seen, at) = asked.join().expect("asking does not panic");
    let error = seen.err().with_context(|| format!("{what}: the answer looks whole"))?;
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    ensure!(kind == Some(ErrorKind::ConnectionReset), "{what}: {error:#}");
    ensure!(at >= fault && at - fault < SOON, "{what}: seen {:?} after the fault", at - fault);
    Ok(())
}

/// A frozen process still gets its signal when it is next scheduled, which may be after our next line.
fn freeze(process: &mut Process) -> anyhow::Result<()> {
    process.signal(Signal::Stop)?;
    let stat = format!("/proc/{}/stat", process.pid());
    wait_for("the process to stop", PATIENCE, || {
        let stat = std::fs::read_to_string(&stat)?;
        ensure!(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')), "{stat}");
        Ok(())
    })
}

#[test]
fn a_backend_that_is_not_there() -> anyhow::Result<()> {
    let backend = Backend::start("b")?;
    let nobody = PortLease::take()?;
    let client = TlsFront::start("secure.example", &["h2"], nobody.addr())?;
    let services =
        [(NAME, backend.addr()), ("secure.example", nobody.addr()), ("raw.example", nobody.addr())];
    between(&services, &["raw.example"], |pair| {
        let mut kept = Connection::open(pair.addr())?;
        ensure!(kept.ask(&Request::get(NAME, "/"))?.status == 200);
        drop(backend);
        let (answer, took) = get(pair.addr(), "/")?;
        ensure!(answer.status == 502 && answer.text().contains("proxy_id: "), "{}", answer.text());
        ensure!(took < SOON, "after {took:?}");
        // A kept-alive client is told the same, and may go on.
        for _ in 0..2 {
            ensure!(kept.ask(&Request::get(NAME, "/"))?.status == 502);
        }
        // Neither a TLS client nor one of a bound port can be told; its connection is closed, not reset.
        let begun = Instant::now();
        let mut raw = Connection::open((Ipv4Addr::LOCALHOST, pair.bound("raw.example")?).into())?;
        raw.send(b"a question of a protocol nobody here knows\n")?;
        ensure!(raw.is_closed()? && begun.elapsed() < SOON, "after {:?}", begun.elapsed());
        let begun = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let error = runtime.block_on(client.connect(pair.addr(), "h2")).err().context("somebody is there")?;
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        ensure!(kind == Some(ErrorKind::UnexpectedEof), "{error:#}");
        ensure!(begun.elapsed() < SOON, "after {:?}", begun.elapsed());
        Ok(())
    })
}

#[test]
fn a_backend_that_dies_in_an_answer() -> anyhow::Result<()> {
    let backend = Backend::start("b")?;
    between(&[(NAME, backend.addr())], &[], |pair| {
        let fault = Instant::now();
        expect_reset("reset by the backend", ask(pair.addr(), "/reset/100000"), fault)?;
        let chunked = ask(pair.addr(), "/drip/10000/10");
        let sized = ask(pair.addr(), "/bytes/4000000000");
        let fault = Instant::now();
        drop(backend);
        expect_reset("chunked", chunked, fault)?;
        expect_reset("with a length", sized, fault)
    })
}

#[test]
fn a_slow_backend_is_waited_for() -> anyhow::Result<()> {
    let backend = Backend::start("b")?;
    between(&[(NAME, backend.addr())], &[], |pair| {
        let (answer, took) = get(pair.addr(), "/slow/20000")?;
        ensure!(answer.status == 200 && took >= Duration::from_secs(20), "{} after {took:?}", answer.status);
        Ok(())
    })
}

#[test]
fn an_owner_that_dies() -> anyhow::Result<()> {
    let (first, second) = (Backend::start("first")?, Backend::start("second")?);
    between(&[(NAME, first.addr())], &[], |pair| {
        let asked = ask(pair.addr(), "/drip/10000/10");
        let fault = Instant::now();
        pair.owner().kill()?;
        // Its connection to the owner breaks first; then the Servers tell that the service is gone.
        let (answer, took) = get(pair.addr(), "/")?;
        ensure!(matches!(answer.status, 502 | 503 | 404) && took < SOON, "{} after {took:?}", answer.text());
        expect_reset("owner killed", asked, fault)?;
        wait_for("no connection to the backend", SOON, || {
            ensure!(first.open_connections() == 0, "{} are open", first.open_connections());
            Ok(())
        })?;

        pair.owner().start()?;
        pair.owner().wait_working(1, PATIENCE)?;
        pair.wait_service(NAME)?;
        ensure!(get(pair.addr(), "/")?.0.status == 200);
        // Of two owners the other one serves, from the first request on.
        pair.cluster.add_peer(&[(NAME, second.addr())])?;
        wait_for("an answer of the second owner", PATIENCE, || {
            ensure!(get(pair.addr(), "/")?.0.text().contains("second"));
            Ok(())
        })?;
        pair.owner().kill()?;
        for _ in 0..20 {
            let (answer, took) = get(pair.addr(), "/")?;
            ensure!(answer.text().contains("second") && took < SOON, "{} after {took:?}", answer.text());
        }
        Ok(())
    })
}

#[test]
fn a_linked_owner_that_dies() -> anyhow::Result<()> {
    for meeting in [Meeting::IngressDials, Meeting::OwnerDials] {
        let backend = Backend::start("b")?;
        between_met(meeting, &[(NAME, backend.addr())], &[], |pair| {
            ensure!(get(pair.addr(), "/")?.0.status == 200);
            let asked = ask(pair.addr(), "/drip/10000/10");
            let fault = Instant::now();
            pair.owner().kill()?;
            let (answer, took) = get(pair.addr(), "/")?;
            ensure!(matches!(answer.status, 502 | 503) && took < SOON, "{} after {took:?}", answer.text());
            expect_reset("owner killed", asked, fault)?;
            // For 30 s the service stays known, without anybody who has it.
            let (answer, took) = get(pair.addr(), "/")?;
            ensure!(answer.status == 503 && took < SOON, "{} after {took:?}", answer.text());
            pair.owner().start()?;
            let back = Instant::now();
            wait_for("the service", PATIENCE, || {
                ensure!(get(pair.addr(), "/")?.0.status == 200);
                Ok(())
            })?;
            eprintln!("{meeting:?}: back after {:?}", back.elapsed());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_linked_owner_that_stops_and_goes_on() -> anyhow::Result<()> {
    for meeting in [Meeting::IngressDials, Meeting::OwnerDials] {
        let backend = Backend::start("b")?;
        between_met(meeting, &[(NAME, backend.addr())], &[], stop_and_go_on)?;
    }
    Ok(())
}

#[test]
fn an_owner_that_stops_and_goes_on() -> anyhow::Result<()> {
    let backend = Backend::start("b")?;
    between(&[(NAME, backend.addr())], &[], stop_and_go_on)
}

fn stop_and_go_on(pair: &mut Pair) -> anyhow::Result<()> {
    ensure!(get(pair.addr(), "/")?.0.status == 200);
    let asked = ask(pair.addr(), "/drip/300/10");
    freeze(pair.owner().process_mut()?)?;
    let (answer, took) = get(pair.addr(), "/")?;
    ensure!(answer.status == 504 && took < ACCEPT + SOON, "{} after {took:?}", answer.text());
    pair.owner().process_mut()?.signal(Signal::Continue)?;
    let (answer, took) = get(pair.addr(), "/")?;
    ensure!(answer.status == 200 && took < SOON, "{} after {took:?}", answer.text());
    // What was under way goes on as if nothing had been.
    let (seen, _) = asked.join().expect("asking does not panic");
    ensure!(seen?.body.len() == 300);
    Ok(())
}

#[test]
fn an_owner_that_stops_while_another_has_the_service() -> anyhow::Result<()> {
    let (first, second) = (Backend::start("first")?, Backend::start("second")?);
    between(&[(NAME, first.addr())], &[], |pair| {
        pair.cluster.add_peer(&[(NAME, second.addr())])?;
        wait_for("answers of both owners", PATIENCE, || {
            let texts: Vec<String> =
                (0..8).map(|_| Ok(get(pair.addr(), "/")?.0.text())).collect::<anyhow::Result<_>>()?;
            ensure!(["first", "second"].iter().all(|name| texts.iter().any(|text| text.contains(name))));
            Ok(())
        })?;
        freeze(pair.owner().process_mut()?)?;
        // A request that reached the stopped one is not repeated elsewhere: it may have been acted on. It warns
        // all others, which are answered by the other one at once.
        let mut slow = 0;
        for _ in 0..20 {
            let (answer, took) = get(pair.addr(), "/")?;
            match answer.status {
                200 => ensure!(answer.text().contains("second"), "{}", answer.text()),
                504 => ensure!(took < ACCEPT + SOON, "504 after {took:?}"),
                _ => anyhow::bail!("{}", answer.text()),
            }
            slow += usize::from(answer.status != 200 || took >= SOON);
        }
        ensure!(slow <= 1, "{slow} requests waited for the stopped one");
        pair.owner().process_mut()?.signal(Signal::Continue)
    })
}

#[test]
fn a_slow_client_costs_no_memory() -> anyhow::Result<()> {
    let backend = Backend::start("b")?;
    between(&[(NAME, backend.addr())], &[], |pair| {
        ensure!(get(pair.addr(), "/bytes/10000000")?.0.status == 200);
        let before = memory_mib(pair)?;
        let mut slow = Connection::open(pair.addr())?;
        slow.send(&Request::get(NAME, "/bytes/1000000000").to_bytes())?;
        for _ in 0..32 {
            // 1 KB/s.
            slow.read_exact(256)?;
            std::thread::sleep(Duration::from_millis(250));
        }
        let after = memory_mib(pair)?;
        ensure!(after[0] <= before[0] + 8 && after[1] <= before[1] + 8, "{before:?}, then {after:?} MiB");
        ensure!(backend.open_connections() == 1);
        drop(slow);
        wait_for("no connection to the backend", SOON, || {
            ensure!(backend.open_connections() == 0);
            Ok(())
        })
    })
}

fn memory_mib(pair: &mut Pair) -> anyhow::Result<[u64; 2]> {
    Ok([pair.owner().process_mut()?.memory_mib()?, pair.ingress().process_mut()?.memory_mib()?])
}

#[test]
fn a_client_that_leaves() -> anyhow::Result<()> {
    let (service, ends) = listener()?;
    let backend = Backend::start("b")?;
    between(&[(NAME, service.addr()), ("drip.example", backend.addr())], &[], |pair| {
        // While it waits for an answer, and in the middle of what it sends: the backend sees what it would see
        // without us, the end of what is sent, or a break where there should have been more.
        for (headers, end) in [("", End::Closed), ("Content-Length: 1000\r\n", End::Reset)] {
            let mut client = Connection::open(pair.addr())?;
            client.send(format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{headers}\r\n").as_bytes())?;
            std::thread::sleep(Duration::from_millis(300));
            let fault = Instant::now();
            drop(client);
            let (seen, at) = ends.recv_timeout(PATIENCE)?;
            ensure!(seen == end && at - fault < SOON, "{headers:?}: {seen:?} after {:?}", at - fault);
        }
        // In the middle of what it receives.
        for way in ["client gone", "ingress killed"] {
            let mut client = Connection::open(pair.addr())?;
            client.send(&Request::get("drip.example", "/drip/100000/10").to_bytes())?;
            client.read_exact(100)?;
            ensure!(backend.open_connections() == 1);
            if way == "client gone" {
                drop(client)
            } else {
                pair.ingress().kill()?
            }
            wait_for(way, SOON, || {
                ensure!(backend.open_connections() == 0);
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// A backend that answers nothing and tells how each connection ended.
fn listener() -> anyhow::Result<(Service, Receiver<(End, Instant)>)> {
    let (told, ends) = sync_channel(16);
    let service = Service::each(move |mut stream| {
        let told = told.clone();
        async move {
            let mut bytes = [0; 4096];
            let end = loop {
                match stream.read(&mut bytes).await {
                    Ok(0) => break End::Closed,
                    Ok(_) => {}
                    Err(_) => break End::Reset,
                }
            };
            // The test may be over.
            let _ = told.try_send((end, Instant::now()));
        }
    })?;
    Ok((service, ends))
}
