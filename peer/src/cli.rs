//! The command line of `p2p-peer`: what may be typed, and what happens then.
//!
//! `run` is a Peer; every other verb asks the Peer of a data directory through the socket it keeps there.

mod bind;
mod service;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use p2p_common::NodeId;
use p2p_runtime::config;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::launch::launch;
use p2p_runtime::mesh_key::MeshKey;
use p2p_runtime::shutdown::Shutdown;
use slog::Logger;

use crate::config::{PeerConfig, RawConfig, VARIABLES};

/// The agent beside a workload: registers its services, learns of all others and carries requests to them by
/// name, over the best encrypted path.
#[derive(Debug, Parser)]
#[command(name = "p2p-peer", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  p2p-peer run --data /var/lib/p1 --servers HOST1:7400 --token T --service web.example=127.0.0.1:8080
  curl -H 'Host: web.example' http://127.0.0.1:6443/                through any other Peer
  p2p-peer tables --data /var/lib/p1                                what it knows
  p2p-peer why --data /var/lib/p1 C<uuid>                           why a link is as it is
  p2p-peer bind add --data /var/lib/p1 6379=redis.example           then: redis-cli -p 6379
  p2p-peer service drain --data /var/lib/p1 web.example --wait      before its backend is stopped

Without any Server, with one key on every host and the address of one Peer on the others:
  export PEER_MESH_KEY=$(p2p-peer mesh-key)
  p2p-peer run --data /var/lib/a --service web.example=127.0.0.1:8080
  p2p-peer run --data /var/lib/b --remote-peer HOST-OF-A:6443

Exit codes: 0 done, 1 failed, 2 wrong command line or configuration, 3 an operator must act, 4 not available now.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a Peer: enrol with a token at the first start, come back without one
    Run(Box<RunArgs>),
    /// Show this Peer's own state and its Servers
    Status(ClientArgs),
    /// List the other Peers: met through Servers or linked, whether they are there, and whether a tunnel is open
    Peers(ClientArgs),
    /// List the services that can be reached by name
    Services(ClientArgs),
    /// Print the route table and the services of each Peer
    Tables(ClientArgs),
    /// List the links to Servers and Peers, with their path
    Links(ClientArgs),
    /// Say why the link to one node is as it is
    Why(WhyArgs),
    /// Print a new mesh key, by which Peers without Servers know each other; give it to each as PEER_MESH_KEY
    MeshKey(MeshKeyArgs),
    /// Bind ports of this host to one service each, for protocols that name none (Redis, PostgreSQL, SSH)
    #[command(subcommand)]
    Bind(BindVerb),
    /// Add, remove and drain the services of this Peer while it runs
    #[command(subcommand)]
    Service(ServiceVerb),
}

#[derive(Debug, Subcommand)]
enum ServiceVerb {
    /// Offer a service until the Peer stops; `services` in its configuration offers one at each start
    Add(ServiceAddArgs),
    /// Offer a service no longer; what it carries goes on
    Remove(ServiceArgs),
    /// Let a service take no new forwards; what it carries goes on
    Drain(ServiceDrainArgs),
    /// Let a drained service take forwards again
    Resume(ServiceArgs),
    /// List the services of this Peer, with the state of their backends
    List(ClientArgs),
}

#[derive(Debug, Args)]
struct ServiceAddArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// web.example=127.0.0.1:8080, and then perhaps check=tcp, check=http:/PATH, visibility=linked|cluster|private|ids:...
    #[arg(value_name = "NAME=HOST:PORT", required = true)]
    words: Vec<String>,
}

#[derive(Debug, Args)]
struct ServiceArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The service
    name: String,
}

#[derive(Debug, Args)]
struct ServiceDrainArgs {
    #[command(flatten)]
    of: ServiceArgs,
    /// Wait until it carries nothing any more
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Subcommand)]
enum BindVerb {
    /// Bind a port until the Peer stops; `bind` in its configuration binds one at each start
    Add(BindAddArgs),
    /// Close a port; what is carried goes on
    Remove(BindRemoveArgs),
    /// List the bound ports
    List(ClientArgs),
}

#[derive(Debug, Args)]
struct BindAddArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Where to listen, and for which service: 127.0.0.1:6379=redis.example; a bare port is one of 127.0.0.1
    #[arg(value_name = "ADDR=NAME")]
    bind: String,
}

#[derive(Debug, Args)]
struct BindRemoveArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Where it listens: IP:PORT, or a port of 127.0.0.1
    #[arg(value_name = "ADDR")]
    address: String,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// TOML file with the same keys as the flags below, `-` written as `_`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: RawConfig,
}

#[derive(Debug, Args)]
struct MeshKeyArgs {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Which Peer to ask, and how to print.
#[derive(Debug, Clone, Args)]
struct ClientArgs {
    /// Data directory of a Peer that runs on this host
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct WhyArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Id of a Peer (C...) or a Server (S...)
    id: NodeId,
}

/// Parses the command line and does what it says. `serve` runs a Peer until it is told to stop.
pub fn main<F>(serve: F) -> ExitCode
where
    F: AsyncFnOnce(PeerConfig, Logger, Shutdown) -> Result<(), Exit>,
{
    let done = match Cli::parse().verb {
        Verb::Run(args) => run(*args, serve),
        Verb::MeshKey(args) => mesh_key(&args),
        verb => ask(verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report("p2p-peer"),
    }
}

fn run<F>(args: RunArgs, serve: F) -> Result<(), Exit>
where
    F: AsyncFnOnce(PeerConfig, Logger, Shutdown) -> Result<(), Exit>,
{
    let loaded = config::load(args.config.as_deref(), &VARIABLES, &config::environment(), &args.flags)
        .map_err(|e| Exit::usage(chain(&e)))?;
    let config = loaded.raw.validate().map_err(|e| Exit::usage(chain(&e)))?;
    let log = (config.log_level, config.log_format);
    launch(log, loaded.ignored, async |log, shutdown| serve(config, log, shutdown).await)
}

/// Nothing but the key, so that `$(p2p-peer mesh-key)` is it.
fn mesh_key(args: &MeshKeyArgs) -> Result<(), Exit> {
    let key = MeshKey::generate().map_err(|e| Exit::failed(chain(&e)))?;
    let text = key.to_text();
    if args.json {
        show::print_json(&serde_json::json!({ "mesh_key": *text }))
    } else {
        show::print(&format!("{}\n", *text))
    }
}

fn ask(verb: Verb) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::failed(format!("cannot start: {e}")))?;
    runtime.block_on(async {
        match verb {
            Verb::Run(_) | Verb::MeshKey(_) => Err(Exit::failed("this is no look-up")),
            Verb::Status(args) => show::status(&args).await,
            Verb::Peers(args) => show::peers(&args).await,
            Verb::Services(args) => show::services(&args).await,
            Verb::Tables(args) => show::tables(&args).await,
            Verb::Links(args) => show::links(&args).await,
            Verb::Why(args) => show::why(&args.client, args.id).await,
            Verb::Service(ServiceVerb::Add(args)) => service::add(&args.client, args.words.join(" ")).await,
            Verb::Service(ServiceVerb::Remove(args)) => service::remove(&args.client, args.name).await,
            Verb::Service(ServiceVerb::Drain(args)) => {
                service::drain(&args.of.client, args.of.name, args.wait).await
            }
            Verb::Service(ServiceVerb::Resume(args)) => service::resume(&args.client, args.name).await,
            Verb::Service(ServiceVerb::List(args)) => service::list(&args).await,
            Verb::Bind(BindVerb::Add(args)) => bind::add(&args.client, args.bind).await,
            Verb::Bind(BindVerb::Remove(args)) => bind::remove(&args.client, args.address).await,
            Verb::Bind(BindVerb::List(args)) => bind::list(&args).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_lines_parse() {
        for line in [
            "p2p-peer run --data d --servers 127.0.0.1:7402 --token T --listen 127.0.0.1:6451 --metrics 127.0.0.1:9051 --service web.example=127.0.0.1:8080",
            "p2p-peer run --data d --servers h:1,h:2 --service a=h:1 --service b=h:2 --name p --zone z --advertise h:6443",
            "p2p-peer run --config peer.toml",
            "p2p-peer run --data d --remote-peer a:6443,b:6443 --transit --mesh-key-file key --service a.example:80",
            "p2p-peer run --data d --telemetry-path /m --reconnect-interval-seconds 5 --max-reconnect 0 --heartbeat-interval-seconds 3 --connection-timeout-seconds 30",
            "p2p-peer mesh-key",
            "p2p-peer mesh-key --json",
            "p2p-peer tables --data d",
            "p2p-peer links --data d --json",
            "p2p-peer why --data d C6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "p2p-peer run --data d --bind 6379=redis --bind [::1]:22=ssh --proxy-protocol-from 10.0.0.0/8",
            "p2p-peer bind add --data d 127.0.0.1:6379=redis.example",
            "p2p-peer bind remove --data d 6379",
            "p2p-peer bind list --data d --json",
            "p2p-peer service add --data d web=127.0.0.1:80 check=http:/up visibility=private",
            "p2p-peer service remove --data d web",
            "p2p-peer service drain --data d web --wait",
            "p2p-peer service resume --data d web --json",
            "p2p-peer service list --data d",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "p2p-peer",
            "p2p-peer tables",
            "p2p-peer bind add 6379=x",
            "p2p-peer service add --data d",
            "p2p-peer service drain --data d",
            "p2p-peer run --dta d",
            "p2p-peer why --data d X",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
