//! [`LocalService`]: a service as people write it into a setting.
//!
//! ```text
//! NAME=HOST:PORT [check=tcp|http:/PATH] [visibility=linked|cluster|private|ids:C..,C..]
//! ```
//!
//! and, several in one variable separated by commas, `HOST:PORT` (which is the name as well) or
//! `NAME:HOST:PORT`. IPv6 addresses go in brackets in both. Source: SPEC F1, F3.

use std::fmt;
use std::str::FromStr;

use super::{BadServiceName, ServiceName, Visibility};
use crate::addr::{BadAddr, HostPort};
use crate::id::{NodeId, NodeKind};

/// A service of this node: its name, where it really runs, and what was said beside that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalService {
    /// Its name.
    pub name: ServiceName,
    /// Where the owner forwards to.
    pub backend: HostPort,
    /// How its backend is checked; none: not at all.
    pub check: Option<HealthCheck>,
    /// Who may learn of it; none: what this node says of all its services.
    pub visibility: Option<Visibility>,
}

/// How a backend is asked whether it works.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HealthCheck {
    /// It takes a connection.
    Tcp,
    /// It answers a GET of this path with a status below 400.
    Http {
        /// From the `/` on, as it goes into the request: visible ASCII, at most [`HealthCheck::PATH_MAX_BYTES`].
        path: String,
    },
}

impl HealthCheck {
    /// The longest path of a check.
    pub const PATH_MAX_BYTES: usize = 1_024;
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthCheck::Tcp => f.write_str("tcp"),
            HealthCheck::Http { path } => write!(f, "http:{path}"),
        }
    }
}

/// Why a text is not a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadService {
    /// There is no `=`.
    #[error("'{0}' is not a service: expected NAME=HOST:PORT, for example web.example=127.0.0.1:8080")]
    Form(String),
    /// An item of a list is neither `HOST:PORT` nor `NAME:HOST:PORT`.
    #[error(
        "'{0}' is not a service: expected HOST:PORT or NAME:HOST:PORT, for example web.example:127.0.0.1:8080"
    )]
    Item(String),
    /// The name is not one.
    #[error(transparent)]
    Name(#[from] BadServiceName),
    /// The backend is not an address.
    #[error(transparent)]
    Backend(#[from] BadAddr),
    /// A word behind the backend is not known, or stands there twice.
    #[error("'{0}' behind a service: expected check=tcp|http:/PATH or visibility=..., each once")]
    Word(String),
    /// Not a check.
    #[error("check={0}: expected tcp or http:/PATH")]
    Check(String),
    /// Not a visibility.
    #[error("visibility={0}: expected linked, cluster, private or ids:C..,C.. with Ids of Peers")]
    Visibility(String),
}

impl LocalService {
    /// A service of which nothing but name and backend is said.
    pub fn new(name: ServiceName, backend: HostPort) -> Self {
        LocalService { name, backend, check: None, visibility: None }
    }

    /// The services of a list such as `SERVICE_ADDR` has it: separated by commas, each `HOST:PORT` or
    /// `NAME:HOST:PORT`. Empty items are skipped.
    ///
    /// # Errors
    /// The first item that is not a service.
    pub fn parse_list(text: &str) -> Result<Vec<LocalService>, BadService> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Self::parse_item).collect()
    }

    fn parse_item(item: &str) -> Result<LocalService, BadService> {
        let form = || BadService::Item(cut(item));
        let (head, rest) = item.split_once(':').ok_or_else(form)?;
        if head.contains(['[', ']']) {
            return Err(form());
        }
        if !rest.contains(':') {
            return Ok(LocalService::new(head.parse()?, item.parse()?));
        }
        Ok(LocalService::new(head.parse()?, rest.parse()?))
    }
}

impl FromStr for LocalService {
    type Err = BadService;

    fn from_str(text: &str) -> Result<Self, BadService> {
        let (name, rest) = text.split_once('=').ok_or_else(|| BadService::Form(cut(text)))?;
        let mut words = rest.split_whitespace();
        let backend = words.next().ok_or_else(|| BadService::Form(cut(text)))?;
        let mut service = LocalService::new(name.trim().parse()?, backend.parse()?);
        for word in words {
            match word.split_once('=') {
                Some(("check", check)) if service.check.is_none() => service.check = Some(check.parse()?),
                Some(("visibility", who)) if service.visibility.is_none() => {
                    service.visibility = Some(who.parse()?);
                }
                _ => return Err(BadService::Word(cut(word))),
            }
        }
        Ok(service)
    }
}

impl FromStr for HealthCheck {
    type Err = BadService;

    fn from_str(text: &str) -> Result<Self, BadService> {
        let fits = |path: &str| {
            path.starts_with('/')
                && path.len() <= Self::PATH_MAX_BYTES
                && path.bytes().all(|b| b.is_ascii_graphic())
        };
        match text.split_once(':') {
            None if text == "tcp" => Ok(HealthCheck::Tcp),
            Some(("http", path)) if fits(path) => Ok(HealthCheck::Http { path: path.to_owned() }),
            _ => Err(BadService::Check(cut(text))),
        }
    }
}

impl FromStr for Visibility {
    type Err = BadService;

    fn from_str(text: &str) -> Result<Self, BadService> {
        let bad = || BadService::Visibility(cut(text));
        match text {
            "linked" => Ok(Visibility::Linked),
            "cluster" => Ok(Visibility::Cluster),
            "private" => Ok(Visibility::Private),
            _ => {
                let ids = text.strip_prefix("ids:").ok_or_else(bad)?.split(',');
                let peer = |id: &str| id.parse::<NodeId>().ok().filter(|id| id.kind() == NodeKind::Peer);
                let ids: Option<Vec<NodeId>> = ids.map(peer).take(Visibility::IDS_MAX + 1).collect();
                ids.filter(|ids| ids.len() <= Visibility::IDS_MAX).map(Visibility::Ids).ok_or_else(bad)
            }
        }
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Visibility::Linked => f.write_str("linked"),
            Visibility::Cluster => f.write_str("cluster"),
            Visibility::Private => f.write_str("private"),
            Visibility::Ids(ids) => {
                f.write_str("ids:")?;
                for (nth, id) in ids.iter().enumerate() {
                    write!(f, "{}{id}", if nth == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "C6ba7b810-9dad-11d1-80b4-00c04fd430c8";

    #[test]
    fn services_are_name_and_backend() {
        let service: LocalService = "web=[::1]:80".parse().unwrap();
        assert_eq!((service.name.as_str(), service.backend.to_string().as_str()), ("web", "[::1]:80"));
        assert_eq!((service.check, service.visibility), (None, None));
        assert!(" web = h:80 ".parse::<LocalService>().is_ok());
        for bad in ["web", "web=80", "web=", "=h:80", "web=h:80 now", "web=h:80 check"] {
            assert!(bad.parse::<LocalService>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn words_behind_a_service_say_more() {
        let service: LocalService =
            format!("web=h:80  visibility=ids:{ID},{ID} check=http:/health?a=b,c").parse().unwrap();
        assert_eq!(service.check, Some(HealthCheck::Http { path: "/health?a=b,c".into() }));
        let id: NodeId = ID.parse().unwrap();
        assert_eq!(service.visibility, Some(Visibility::Ids(vec![id, id])));
        for (word, visibility) in [
            ("linked", Visibility::Linked),
            ("cluster", Visibility::Cluster),
            ("private", Visibility::Private),
        ] {
            let service: LocalService = format!("web=h:80 check=tcp visibility={word}").parse().unwrap();
            assert_eq!((service.check, service.visibility), (Some(HealthCheck::Tcp), Some(visibility)));
        }
        let server = ID.replacen('C', "S", 1);
        let long = format!("check=http:/{}", "x".repeat(HealthCheck::PATH_MAX_BYTES));
        for bad in [
            "check=udp",
            "check=http:health",
            "check=http:/a\u{7f}",
            &long,
            "check=tcp check=tcp",
            "visibility=all",
            "visibility=ids:",
            &format!("visibility=ids:{server}"),
            &format!("visibility=ids:{}", vec![ID; Visibility::IDS_MAX + 1].join(",")),
            "visibility=linked visibility=linked",
            "weight=3",
        ] {
            assert!(format!("web=h:80 {bad}").parse::<LocalService>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lists_take_both_forms_and_every_address() {
        let list = "test-cluster-a.example.com:80, web:backend.lan:8080 ,ip:127.0.0.1:81,six:[::1]:82,";
        let services = LocalService::parse_list(list).unwrap();
        let services: Vec<String> = services.iter().map(|of| format!("{}={}", of.name, of.backend)).collect();
        assert_eq!(
            services,
            [
                "test-cluster-a.example.com=test-cluster-a.example.com:80",
                "web=backend.lan:8080",
                "ip=127.0.0.1:81",
                "six=[::1]:82"
            ]
        );
        assert_eq!(LocalService::parse_list(""), Ok(vec![]));
        for bad in
            ["web", "web:", ":80", "web:h:", "web:h:80:81", "[::1]:80", "six:::1:82", "web:h", "a b:80"]
        {
            assert!(LocalService::parse_list(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_services_or_an_error(text in "[a-z:=,\\[\\]/ 0-9]{0,40}") {
            let _ = text.parse::<LocalService>();
            let _ = LocalService::parse_list(&text);
        }

        #[test]
        fn what_is_written_is_read_again(check in "tcp|http:/[!-~]{0,20}", ids in 0usize..4) {
            let check: HealthCheck = check.parse().unwrap();
            prop_assert_eq!(check.to_string().parse(), Ok(check));
            let ids = Visibility::Ids(vec![ID.parse().unwrap(); ids + 1]);
            prop_assert_eq!(ids.to_string().parse(), Ok(ids));
        }
    }
}
