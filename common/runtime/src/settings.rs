//! Checks of settings that both binaries have: from the text a person wrote to a value, or the setting's name and
//! what is wrong with it. The layers the texts come from are [`crate::config`]'s.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use p2p_common::addr::HostPort;
use p2p_common::command::TokenRole;
use p2p_common::member::Member;
use p2p_common::{NodeId, NodeKind};

use crate::identity::Token;

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct BadSetting {
    /// Which one.
    pub setting: &'static str,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// Refuses `setting` for `reason`.
pub fn bad(setting: &'static str, reason: impl ToString) -> BadSetting {
    BadSetting { setting, reason: reason.to_string() }
}

/// The Id of a node of `kind`.
///
/// # Errors
/// When the text is none, or names the other kind.
pub fn own_id(kind: NodeKind, text: &str) -> Result<NodeId, BadSetting> {
    let id: NodeId = text.parse().map_err(|e| bad("id", e))?;
    if id.kind() != kind {
        let (other, own, letter) = (word(id.kind()), word(kind), kind.letter());
        return Err(bad(
            "id",
            format!("{id} is the Id of a {other}; the Id of a {own} begins with {letter}"),
        ));
    }
    Ok(id)
}

/// A name or a zone as people give it; nothing given is empty.
///
/// # Errors
/// When it is longer than 128 bytes or has control characters.
pub fn name(setting: &'static str, text: Option<&str>) -> Result<(), BadSetting> {
    let text = text.unwrap_or_default();
    if text.len() > Member::NAME_MAX_BYTES || text.chars().any(char::is_control) {
        let max = Member::NAME_MAX_BYTES;
        return Err(bad(setting, format!("at most {max} bytes without control characters")));
    }
    Ok(())
}

/// The join token for a node of `kind`, given as text or in a file.
///
/// # Errors
/// When both are given, the file cannot be read, or it is no such token.
pub fn join_token(
    kind: NodeKind,
    text: Option<&str>,
    file: Option<&Path>,
) -> Result<Option<Token>, BadSetting> {
    let Some(token) = secret::<Token>(("token", "token_file"), text, file)? else { return Ok(None) };
    let wanted = match kind {
        NodeKind::Server => TokenRole::Server,
        NodeKind::Peer => TokenRole::Peer,
    };
    if token.role() != wanted {
        let (role, wanted, node) = (token.role().as_str(), wanted.as_str(), word(kind));
        let reason = format!(
            "this token is for role {role}; a {node} enrols with one of `p2p-server token create --role {wanted}`"
        );
        return Err(bad("token", reason));
    }
    Ok(Some(token))
}

/// Where to listen; `:PORT` is every interface.
///
/// # Errors
/// When the text is neither IP:PORT nor :PORT.
pub fn socket(
    setting: &'static str,
    text: Option<&str>,
    default: (Ipv4Addr, u16),
) -> Result<SocketAddr, BadSetting> {
    let default = SocketAddr::new(IpAddr::V4(default.0), default.1);
    let Some(text) = text else { return Ok(default) };
    let every = text.strip_prefix(':').map(|port| format!("{}:{port}", Ipv4Addr::UNSPECIFIED));
    every.as_deref().unwrap_or(text).parse().map_err(|_| {
        bad(
            setting,
            format!(
                "'{text}' is not an address to listen on: expected IP:PORT or :PORT, for example {default}"
            ),
        )
    })
}

/// A secret given as text or in a file, which ends with its line; `settings` are the names of the two.
///
/// # Errors
/// When both are given, the file cannot be read, or the text is not what it should be.
pub fn secret<T>(
    settings: (&'static str, &'static str),
    text: Option<&str>,
    file: Option<&Path>,
) -> Result<Option<T>, BadSetting>
where
    T: FromStr<Err: Display>,
{
    match (text, file) {
        (Some(_), Some(_)) => {
            Err(bad(settings.0, format!("give either {} or {}, not both", settings.0, settings.1)))
        }
        (None, None) => Ok(None),
        (Some(text), None) => text.trim().parse().map(Some).map_err(|e| bad(settings.0, e)),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| bad(settings.1, format!("cannot read {}: {e}", path.display())))?;
            text.trim().parse().map(Some).map_err(|e| bad(settings.1, e))
        }
    }
}

/// Addresses of others; each text may hold several, separated by commas.
///
/// # Errors
/// When one is not HOST:PORT.
pub fn host_ports(setting: &'static str, texts: &[String]) -> Result<Vec<HostPort>, BadSetting> {
    let words = texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|e| bad(setting, e))).collect()
}

/// What people call a node of `kind`.
fn word(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Server => "Server",
        NodeKind::Peer => "Peer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_names_the_setting_and_the_way_out() {
        let server = "S6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        assert!(own_id(NodeKind::Server, server).is_ok());
        assert!(own_id(NodeKind::Peer, server).unwrap_err().reason.contains("begins with C"));
        assert!(name("zone", Some("a\nb")).is_err());
        assert!(name("zone", Some(&"x".repeat(129))).is_err());
        let refused = socket("ops", Some("localhost"), (Ipv4Addr::LOCALHOST, 7480)).unwrap_err();
        let every = socket("ops", Some(":6443"), (Ipv4Addr::LOCALHOST, 7480)).unwrap();
        assert_eq!(every.to_string(), "0.0.0.0:6443");
        assert!(socket("ops", Some("::6443"), (Ipv4Addr::LOCALHOST, 7480)).is_err());
        assert!(refused.to_string().starts_with("ops: ") && refused.reason.contains("127.0.0.1:7480"));
        assert_eq!(host_ports("join", &["a:1, b:2".to_owned(), "c:3,".to_owned()]).unwrap().len(), 3);
        assert_eq!(host_ports("join", &["::1".to_owned()]).unwrap_err().setting, "join");
    }

    #[test]
    fn a_token_comes_from_one_place() {
        let missing = Path::new("/nonexistent/token");
        let refused = |text, file| join_token(NodeKind::Peer, text, file).unwrap_err().setting;
        assert_eq!(join_token(NodeKind::Peer, None, None), Ok(None));
        assert_eq!(refused(Some("x"), Some(missing)), "token");
        assert_eq!(refused(Some("x"), None), "token");
        assert_eq!(refused(None, Some(missing)), "token_file");
    }
}
