//! Settings of the cluster: listed, set, brought back to their defaults.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use p2p_common::setting::SettingName;
use p2p_proto::v1;
use p2p_runtime::exit::Exit;
use serde::Serialize;

use super::ClientArgs;
use super::client::{Client, random_uuid, refused, until_known};
use super::show::{print_columns, print_json};

#[derive(Debug, Subcommand)]
pub(super) enum SettingsVerb {
    /// List every setting with its value and what it may hold
    List(ListArgs),
    /// Set one for the whole cluster
    Set(SetArgs),
    /// Bring the default of one back
    Unset(UnsetArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Answer from the asked Server's own state, without asking the leader
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Change it only while its revision is this one, as `settings list` shows it (0: never set)
    #[arg(long, value_name = "N")]
    expected: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// Which setting
    #[arg(value_parser = known_name())]
    name: SettingName,
    /// What it holds from now on
    value: String,
}

#[derive(Debug, Args)]
pub(super) struct UnsetArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// Which setting
    #[arg(value_parser = known_name())]
    name: SettingName,
}

/// Known names only; the command line then knows which one a mistyped one was meant to be.
fn known_name() -> impl TypedValueParser<Value = SettingName> {
    PossibleValuesParser::new(SettingName::ALL.map(SettingName::as_str))
        .try_map(|name| name.parse::<SettingName>())
}

pub(super) async fn run(verb: SettingsVerb) -> Result<(), Exit> {
    match verb {
        SettingsVerb::List(args) => list(&args).await,
        SettingsVerb::Set(args) => change(&args.change, args.name, Some(args.value)).await,
        SettingsVerb::Unset(args) => change(&args.change, args.name, None).await,
    }
}

#[derive(Serialize)]
struct SettingsJson {
    revision: u64,
    stale: bool,
    settings: Vec<SettingJson>,
}

#[derive(Serialize)]
struct SettingJson {
    name: String,
    value: String,
    revision: u64,
    default_value: String,
    help: String,
}

async fn list(args: &ListArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let request = v1::ListSettingsRequest { stale: args.stale };
    let reply = client.cluster().list_settings(request).await.map_err(refused)?.into_inner();
    let settings = reply.settings.into_iter().map(|s| SettingJson {
        name: s.name,
        value: s.value,
        revision: s.revision,
        default_value: s.default_value,
        help: s.help,
    });
    let settings: Vec<_> = settings.collect();
    if args.client.json {
        return print_json(&SettingsJson { revision: reply.revision, stale: reply.stale, settings });
    }
    let rows: Vec<_> = settings
        .into_iter()
        .map(|s| {
            let value = if s.value.is_empty() { "-".to_owned() } else { s.value };
            let set = if s.revision == 0 { "default".to_owned() } else { s.revision.to_string() };
            [s.name, value, set, s.help]
        })
        .collect();
    print_columns(["SETTING", "VALUE", "REVISION", "MEANING"], &rows)?;
    if reply.stale {
        println!("stale: as this Server knows them, without asking the leader");
    }
    Ok(())
}

async fn change(args: &ChangeArgs, name: SettingName, value: Option<String>) -> Result<(), Exit> {
    if let Some(value) = &value {
        name.check(value).map_err(|refused| Exit::usage(refused.to_string()))?;
    }
    let client = Client::reach(&args.client).await?;
    let request = v1::ChangeSettingRequest {
        request_id: random_uuid()?.to_string(),
        name: name.to_string(),
        value: value.clone(),
        expected: args.expected,
    };
    let reply = until_known(async || client.operator().change_setting(request.clone()).await).await?;
    if args.client.json {
        return print_json(&serde_json::json!({ "name": name.as_str(), "revision": reply.revision }));
    }
    let value = value.unwrap_or_else(|| name.default_value().to_owned());
    println!("{name} is '{value}' now (revision {})", reply.revision);
    Ok(())
}
