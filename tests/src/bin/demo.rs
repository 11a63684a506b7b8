//! `make demo`: the whole system in a minute, on this machine, with nothing prepared.
//!
//! Three Servers and two Peers as real processes on free loopback ports, a real HTTP service behind one Peer,
//! fetched by name through the other; then the Master is killed and the page fetched again. Every step is
//! checked: the exit status is 0 only if all was as it should be. `DEMO_KEEP=1` leaves everything running
//! and prints what to try. Ctrl-C cleans up.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::backend;
use p2p_tests::cluster::report::Master;
use p2p_tests::cluster::{
    Cluster, Lifetime, Output, PATIENCE, PortLease, Process, Start, Watch, binaries, interrupt_on_signal,
    wait_for,
};
use p2p_tests::http;
use tokio::net::TcpListener;

/// The service of the demo.
const SERVICE: &str = "web.example";

/// A process that has not stopped by then hangs.
const STOP_WITHIN: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => play(),
        // The demo starts itself once more, so that the service is a process of its own like the others.
        ["backend", addr, name] => serve_backend(addr, name),
        _ => Err(anyhow::anyhow!("usage: demo (no arguments; DEMO_KEEP=1 leaves it running)")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> anyhow::Result<()> {
    interrupt_on_signal()?;
    let keep = std::env::var("DEMO_KEEP").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let lifetime = if keep { Lifetime::Detachable } else { Lifetime::Bound };
    println!(
        "p2pcore: workloads reach each other by name, wherever they are. All of this happens on this machine,"
    );
    println!("on free loopback ports and in one temporary directory, which is removed at the end.");
    step("building p2p-server and p2p-peer");
    binaries()?;

    let start = Instant::now();
    let mut cluster = Cluster::empty(lifetime)?;
    let shown = show(&mut cluster, lifetime);
    let backend = cluster.explain(shown)?;
    if keep {
        leave(cluster, backend)
    } else {
        step("cleaning up");
        let stopped = cluster.stop(STOP_WITHIN);
        cluster.explain(stopped)?;
        let dir = cluster.dir().to_path_buf();
        drop((backend, cluster));
        ensure!(!dir.exists(), "{} is still there", dir.display());
        say(&format!("all stopped in order, {} removed", dir.display()));
        println!("\nEverything was as it should be; {:.1} s after the build.", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Everything between the build and the clean-up; returns the running backend.
fn show(cluster: &mut Cluster, lifetime: Lifetime) -> anyhow::Result<Process> {
    step("three Servers: the first bootstraps a cluster, the others join through it with a token");
    cluster.add_servers(3)?;
    say("They keep one table of themselves by raft, any two of three suffice, and they agree on a Master:");
    let asked = &cluster.servers[1];
    print_output(asked.cli(&["members"])?)?;
    print_output(asked.cli(&["master"])?)?;

    step("a web service, the Peer p1 beside it, and the Peer p2 somewhere else");
    let port = PortLease::take()?;
    let backend = start_backend(port.addr(), cluster.dir(), lifetime)?;
    cluster.add_peer(&[(SERVICE, port.addr())])?;
    cluster.add_peer(&[])?;
    let client = cluster.peers[1].listen();
    wait_for("the page through p2", PATIENCE, || fetch(client))?;
    say(&format!(
        "p1 offers it as {SERVICE}; the Servers told p2, which knows no address of it but its name:"
    ));
    print_output(cluster.servers[1].cli(&["peers"])?)?;
    print_output(cluster.peers[1].cli(&["tables"])?)?;

    step("fetching the page by its name through p2");
    print_page(client)?;
    let asking = &cluster.peers[1];
    wait_for("the bytes of the page counted", PATIENCE, || {
        let counted = asking.links()?.links.iter().any(|link| link.id.starts_with('C') && link.bytes_in > 0);
        ensure!(counted, "no link has carried a byte");
        Ok(())
    })?;
    say("It went from p2 to p1 over a direct, encrypted link; no Server carried a byte of it:");
    print_output(cluster.peers[1].cli(&["links"])?)?;

    step("killing the Master");
    replace_master(cluster)?;

    step("fetching the page again: the Peers and their link never noticed");
    print_page(client)?;
    Ok(backend)
}

/// SIGKILLs the Master and waits until a survivor names the next one.
fn replace_master(cluster: &mut Cluster) -> anyhow::Result<()> {
    let old = cluster.master()?;
    let survivor = (old + 1) % cluster.servers.len();
    let watch = Watch::start(cluster.servers[survivor].command(&["master", "--watch", "--json"])?)?;
    let (_, before) = watch.next::<Master>(PATIENCE)?;
    let name = cluster.servers[old].name().to_string();
    ensure!(before.name == name, "two Servers name two Masters: {} and {name}", before.name);

    let pid = cluster.servers[old].process_mut()?.pid();
    let killed = Instant::now();
    cluster.servers[old].kill()?;
    say(&format!("kill -9 {pid}: {name}, Master of term {}, is gone", before.term));
    let after = loop {
        let (at, master) = watch.next::<Master>(PATIENCE)?;
        if master.id != before.id && !master.provisional {
            ensure!(master.term > before.term, "the term did not rise: {} to {}", before.term, master.term);
            let took = at.saturating_duration_since(killed);
            say(&format!("{} is Master of term {} after {} ms", master.name, master.term, took.as_millis()));
            break master;
        }
    };
    ensure!(after.cluster_id == before.cluster_id, "it is Master of another cluster");
    cluster.wait_agreed(PATIENCE)?;
    print_output(cluster.servers[survivor].cli(&["master"])?)?;
    wait_for("the dead Server shown as not connected", PATIENCE, || {
        let members = cluster.servers[survivor].members()?.members;
        let dead = members.iter().find(|member| member.name == name).context("it left the table")?;
        ensure!(!dead.connected, "{name} is shown as connected");
        Ok(())
    })?;
    print_output(cluster.servers[survivor].cli(&["members"])?)
}

fn fetch(through: SocketAddr) -> anyhow::Result<String> {
    let answer = http::get(through, SERVICE, "/")?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text().trim());
    let expected = format!("hello from demo to {SERVICE}");
    ensure!(answer.text().trim() == expected, "the page is not the backend's: {:?}", answer.text());
    Ok(answer.text())
}

fn print_page(through: SocketAddr) -> anyhow::Result<()> {
    let start = Instant::now();
    let page = fetch(through)?;
    let took_ms = start.elapsed().as_secs_f64() * 1000.0;
    say(&format!("$ curl -H 'Host: {SERVICE}' http://{through}/"));
    print!("{}", indent(&page));
    say(&format!("answered in {took_ms:.1} ms"));
    Ok(())
}

fn print_output(output: Output) -> anyhow::Result<()> {
    let line = output.line.clone();
    let text = output.success()?;
    ensure!(!text.trim().is_empty(), "`{line}` printed nothing");
    say(&format!("$ {line}"));
    print!("{}", indent(&text));
    Ok(())
}

/// Lets everything live on and says how to go on.
fn leave(cluster: Cluster, backend: Process) -> anyhow::Result<()> {
    step("left running, since DEMO_KEEP is set");
    let dir = cluster.dir().to_path_buf();
    let bin = binaries()?.server.parent().context("a binary lies in a directory")?.display();
    let dead = cluster.servers.iter().find(|server| !server.is_started());
    let alive = cluster.servers.iter().find(|server| server.is_started()).context("a Server survived")?;
    let client = &cluster.peers[1];
    println!("  export PATH={bin}:$PATH");
    println!("  curl -H 'Host: {SERVICE}' http://{}/", client.listen());
    println!("  p2p-server members --data {}", alive.data().display());
    println!("  p2p-server master --watch --data {}", alive.data().display());
    println!("  p2p-peer tables --data {}", client.data().display());
    println!("  p2p-peer links --data {}", client.data().display());
    if let Some(dead) = dead {
        let command = dead.run_command(&Start::Again)?;
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        println!("  p2p-server {}   # the killed one comes back", args.join(" "));
    }
    let mut left = cluster.leave();
    left.push(("backend".into(), backend.leave()));
    let names: Vec<_> = left.iter().map(|(name, pid)| format!("{name} {pid}")).collect();
    let pids: Vec<_> = left.iter().map(|(_, pid)| pid.to_string()).collect();
    println!("\nRunning: {}. To end it:", names.join(", "));
    println!("  kill {}; rm -r {}", pids.join(" "), dir.display());
    Ok(())
}

fn start_backend(addr: SocketAddr, dir: &Path, lifetime: Lifetime) -> anyhow::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["backend", &addr.to_string(), "demo"]);
    let mut process = Process::spawn("backend", command, &dir.join("backend.log"), lifetime)?;
    process.wait_for("serving", PATIENCE, || http::get(addr, SERVICE, "/"))?;
    say(&format!("a web service on {addr}"));
    Ok(process)
}

fn serve_backend(addr: &str, name: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("listening on {addr}"))?;
        match backend::serve(listener, name.into(), Arc::default()).await {}
    })
}

fn step(title: &str) {
    println!("\n== {title}");
}

fn say(text: &str) {
    println!("  {text}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
