//! The command line of `p2p-server`: what may be typed, and what happens then.
//!
//! `run` is a Server; `restore`, `rejoin` and `force-new-cluster` work on the data directory of one that does not run,
//! `audit` reads that of one whether it runs or not;
//! every other verb is a client of one: the Server of a data directory (`--data`), which leaves its address, CA and
//! an operator token there, or any other by address, CA file and token.

mod audit;
mod ca;
mod client;
mod identity;
mod members;
mod recovery;
mod revoke;
mod settings;
mod show;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use p2p_runtime::config;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::launch::launch;
use p2p_runtime::shutdown::Shutdown;
use slog::Logger;

pub(crate) use client::{ADDRESS_FILE, OPERATOR_TOKEN_FILE};

use crate::config::{RawConfig, ServerConfig, VARIABLES};

/// A node of the server cluster: three or more elect a Master, introduce Peers to each other and help them
/// through NATs.
#[derive(Debug, Parser)]
#[command(name = "p2p-server", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  p2p-server run --data /var/lib/s1 --name s1 --bootstrap           begin a cluster
  p2p-server token create --data /var/lib/s1 --role server          a token for the next Server
  p2p-server run --data /var/lib/s2 --join HOST1:7400 --token T     join it
  p2p-server members --data /var/lib/s1                             see who is there

Exit codes: 0 done, 1 failed, 2 wrong command line or configuration, 3 an operator must act, 4 not available now.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a Server: bootstrap a cluster, join one, or come back to it
    Run(Box<RunArgs>),
    /// List the Servers of the cluster
    Members(members::MembersArgs),
    /// Make another Server the Master
    Transfer(members::TransferArgs),
    /// Take a Server out of the cluster, also one that is dead
    Remove(members::RemoveArgs),
    /// Take the asked Server itself out of the cluster; its process stops
    Leave(ClientArgs),
    /// Show the Master, or follow its changes
    Master(MasterArgs),
    /// List the Peers online at one Server
    Peers(ClientArgs),
    /// List the services that Peers offer at one Server
    Services(ClientArgs),
    /// Show one Server's own state
    Status(ClientArgs),
    /// List and change what is set for the whole cluster
    Settings {
        #[command(subcommand)]
        verb: settings::SettingsVerb,
    },
    /// Create, list and revoke tokens
    Token {
        #[command(subcommand)]
        verb: token::TokenVerb,
    },
    /// List, change, free and make the identities of nodes
    Identity {
        #[command(subcommand)]
        verb: identity::IdentityVerb,
    },
    /// Throw a Peer or a Server out: its key opens nothing any more, anywhere
    Revoke(revoke::RevokeArgs),
    /// List the keys that were revoked
    Revocations(ClientArgs),
    /// Look at the cluster's CA and change it
    Ca {
        #[command(subcommand)]
        verb: ca::CaVerb,
    },
    /// Show what operators asked of one Server, and what was refused
    Audit(audit::AuditArgs),
    /// Write the cluster's whole state to a file
    Backup(recovery::BackupArgs),
    /// Prepare an empty directory to found a cluster from a backup
    Restore(recovery::RestoreArgs),
    /// Have a stopped Server come back without the state it has lost, or must not use
    Rejoin(recovery::RejoinArgs),
    /// Have a stopped Server go on alone, after a quorum was lost for good
    ForceNewCluster(recovery::ForceArgs),
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
struct MasterArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Print the Master now and at every change, until interrupted
    #[arg(long)]
    watch: bool,
}

/// Which Server to ask, and how to print.
#[derive(Debug, Clone, Args)]
struct ClientArgs {
    /// Data directory of a Server that runs on this host
    #[arg(long, value_name = "DIR", required_unless_present = "server")]
    data: Option<PathBuf>,
    /// Or the address of any Server, with --ca and --token
    #[arg(long, value_name = "HOST:PORT", requires = "ca", requires = "token", conflicts_with = "data")]
    server: Option<String>,
    /// The cluster's CA certificate (ca.pem of any node's data directory)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// An operator or reader token, for --server
    #[arg(long, value_name = "TOKEN", env = "P2P_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Parses the command line and does what it says. `serve` runs a Server until it is told to stop.
pub fn main<F>(serve: F) -> ExitCode
where
    F: AsyncFnOnce(ServerConfig, Logger, Shutdown) -> Result<(), Exit>,
{
    let done = match Cli::parse().verb {
        Verb::Run(args) => run(*args, serve),
        Verb::Restore(args) => recovery::restore_backup(&args),
        Verb::Rejoin(args) => recovery::rejoin(&args),
        Verb::ForceNewCluster(args) => recovery::force(&args),
        Verb::Audit(args) => audit::run(&args),
        Verb::Ca { verb: ca::CaVerb::Secret(args) } => ca::secret(&args),
        verb => ask(verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report("p2p-server"),
    }
}

fn run<F>(args: RunArgs, serve: F) -> Result<(), Exit>
where
    F: AsyncFnOnce(ServerConfig, Logger, Shutdown) -> Result<(), Exit>,
{
    let loaded = config::load(args.config.as_deref(), &VARIABLES, &config::environment(), &args.flags)
        .map_err(|e| Exit::usage(chain(&e)))?;
    let config = loaded.raw.validate().map_err(|e| Exit::usage(chain(&e)))?;
    let log = (config.log_level, config.log_format);
    launch(log, loaded.ignored, async |log, shutdown| serve(config, log, shutdown).await)
}

fn ask(verb: Verb) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::failed(format!("cannot start: {e}")))?;
    runtime.block_on(async {
        match verb {
            Verb::Run(_) | Verb::Restore(_) | Verb::Rejoin(_) | Verb::ForceNewCluster(_) | Verb::Audit(_) => {
                Err(Exit::failed("this asks no Server"))
            }
            Verb::Ca { verb } => ca::ask(verb).await,
            Verb::Members(args) => members::list(&args).await,
            Verb::Transfer(args) => members::transfer(&args).await,
            Verb::Remove(args) => members::remove(&args).await,
            Verb::Leave(args) => members::leave(&args).await,
            Verb::Master(args) if args.watch => show::watch_master(&args.client).await,
            Verb::Master(args) => show::master(&args.client).await,
            Verb::Peers(args) => show::peers(&args).await,
            Verb::Services(args) => show::services(&args).await,
            Verb::Status(args) => show::status(&args).await,
            Verb::Settings { verb } => settings::run(verb).await,
            Verb::Token { verb } => token::run(verb).await,
            Verb::Identity { verb } => identity::run(verb).await,
            Verb::Revoke(args) => revoke::revoke(args).await,
            Verb::Revocations(args) => revoke::list(&args).await,
            Verb::Backup(args) => recovery::take_backup(args).await,
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

    /// The verbs and flags of every command that the page on security names.
    #[test]
    fn the_commands_of_the_page_on_security_exist() {
        let page = include_str!("../../docs/security.md");
        let lines = page.split('`').skip(1).step_by(2).flat_map(str::lines);
        let lines = lines.filter_map(|line| line.trim_start_matches("$ ").strip_prefix("p2p-server "));
        let mut verbs = 0;
        for line in lines {
            let mut command = Cli::command();
            let typed = line.split('#').next().unwrap_or_default();
            for word in typed.split_whitespace() {
                if let Some(flag) = word.strip_prefix("--") {
                    let known = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
                    assert!(known, "{line}: there is no --{flag}");
                } else if let Some(verb) = command.find_subcommand(word).cloned() {
                    command = verb;
                }
            }
            assert!(command.get_name() != "p2p-server", "{line}: no such command");
            assert!(command.get_subcommands().next().is_none(), "{line}: what of it?");
            verbs += 1;
        }
        assert!(verbs >= 8, "{verbs} commands were found");
    }

    #[test]
    fn the_documented_lines_parse() {
        for line in [
            "p2p-server run --data d --name s1 --listen 127.0.0.1:7401 --ops 127.0.0.1:7481 --registry 127.0.0.1:7171 --bootstrap",
            "p2p-server run --data d --name s2 --listen 127.0.0.1:7402 --join 127.0.0.1:7401 --token T",
            "p2p-server members --data d --json",
            "p2p-server members --server h:1 --ca ca.pem --token t --stale",
            "p2p-server master --data d --watch",
            "p2p-server transfer --data d --to s2",
            "p2p-server remove s3 --data d",
            "p2p-server leave --data d",
            "p2p-server token create --role server --uses 2 --ttl 1h --data d",
            "p2p-server token create --role peer --data d --out /run/p2p/join.token --keep",
            "p2p-server settings list --data d --stale",
            "p2p-server settings set voter_replace_after 5m --data d --expected 0",
            "p2p-server settings unset description --data d --json",
            "p2p-server token list --data d",
            "p2p-server token revoke 00000000000000ff --data d",
            "p2p-server token create --role peer --may-offer web*,db --may-reach * --may-advertise 203.0.113.7:* --ephemeral --name pod --data d",
            "p2p-server identity list --kind peer --revoked --data d --json",
            "p2p-server identity show Cf81d4fae-7dec-4d00-a765-00a0c91e6bf6 --data d",
            "p2p-server identity reset Cf81d4fae-7dec-4d00-a765-00a0c91e6bf6 --data d",
            "p2p-server identity set Cf81d4fae-7dec-4d00-a765-00a0c91e6bf6 --may-offer= --may-reach web --data d",
            "p2p-server identity issue --out /srv/p9 --name p9 --may-reach web --data d",
            "p2p-server revoke C6ba7b810-9dad-11d1-80b4-00c04fd430c8 --data d --reason stolen",
            "p2p-server revoke s3 --data d --emergency --force --json",
            "p2p-server revocations --data d --json",
            "p2p-server audit --data d --json --last 0",
            "p2p-server ca status --data d --json",
            "p2p-server ca rotate --data d",
            "p2p-server ca rotate --data d --finish --force",
            "p2p-server ca rotate --data d --abort",
            "p2p-server ca secret --data d --ca-secret-file a --new-secret-file b",
            "p2p-server ca secret --data d --remove",
            "p2p-server run --data d --bootstrap --ca-cert ca.pem --ca-key key.pem --ca-secret-file s",
            "p2p-server backup --data d --out cluster.backup",
            "p2p-server restore --data e --from cluster.backup",
            "p2p-server restore --data e --from cluster.backup --keep-cluster-id --ca-key ca-key.pem",
            "p2p-server rejoin --discard-state --data d --join h:1",
            "p2p-server force-new-cluster --data d --yes",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "p2p-server",
            "p2p-server members",
            "p2p-server members --server h:1",
            "p2p-server run --dta d",
            "p2p-server ca rotate --data d --force",
            "p2p-server ca secret --data d",
            "p2p-server settings set voter_replace 5m --data d",
            "p2p-server identity set not-an-id --data d",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
