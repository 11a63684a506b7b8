//! Layered loading: flag over environment over file over default (SPEC O3).
//!
//! A binary has one raw struct: serde, every field optional, unknown ones refused (`deny_unknown_fields`),
//! skipped when `None` or empty. The flags it parsed are such a struct, the TOML file is read as one, and so is
//! the environment; [`load`] lays them over each other, key by key, tables merged and lists replaced. Defaults
//! and checks are the binary's: it makes its immutable configuration of the raw one.
//!
//! Environment variables are the prefix and the key in upper case, `__` between the levels:
//! `P2P_SERVER_RAFT__TICK_MS=50`; a binary may read some keys from variables of other names too, which count less. A value is read as the key's type asks: text, a TOML value, or a list
//! separated by commas. An empty one counts as not given. Variables with the prefix and an unknown key are
//! ignored and listed: orchestrators add such for services of that name.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A configuration of people is a few KiB; what is larger than 1 MiB is something else.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read the config file {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something in the file.
    #[error("config file {}, line {line}: {message}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong, with the nearest right key for an unknown one.
        message: String,
    },
    /// A variable.
    #[error("environment variable {name}: {message}")]
    Environment {
        /// Which one.
        name: String,
        /// What is wrong with its value.
        message: String,
    },
    /// The layers are fine each, but not together.
    #[error("the flags, environment and file do not fit together: {message}")]
    Together {
        /// What is wrong.
        message: String,
    },
}

/// Which variables are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VariableNames {
    /// What stands before the key, `P2P_SERVER_`.
    pub prefix: &'static str,
    /// Variables of other names and the keys they set; one with the prefix goes over them.
    pub others: &'static [(&'static str, &'static str)],
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// All layers over each other.
    pub raw: T,
    /// Variables with the prefix that name no key, for a warning.
    pub ignored: Vec<IgnoredVariable>,
}

/// A variable with the prefix that names no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredVariable {
    /// Its name.
    pub name: String,
    /// The variable that may have been meant.
    pub nearest: Option<String>,
}

/// The environment of the process; variables that are not Unicode are left out.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Lays `flags` over the variables of `environment` that `names` tells of over `file`.
///
/// # Errors
/// When the file cannot be read, or a layer has an unknown key or a value of the wrong type.
pub fn load<T>(
    file: Option<&Path>,
    names: &VariableNames,
    environment: &[(String, String)],
    flags: &T,
) -> Result<Loaded<T>, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let together = |e: String| ConfigError::Together { message: e };
    let mut table = match file {
        Some(path) => read_file::<T>(path)?,
        None => Table::new(),
    };
    for (name, key) in names.others {
        let value = environment.iter().find(|(other, value)| other == name && !value.is_empty());
        let Some((_, value)) = value else { continue };
        match read_variable::<T>(key, value) {
            Ok(layer) => overlay(&mut table, layer),
            Err(BadVariable::Value(message)) => {
                return Err(ConfigError::Environment { name: (*name).to_owned(), message });
            }
            Err(BadVariable::Unknown { .. }) => {
                return Err(together(format!("{name} sets {key}, which is no key")));
            }
        }
    }
    let prefix = names.prefix;
    let mut ignored = Vec::new();
    for (name, value) in environment {
        let Some(key) = name.strip_prefix(prefix).filter(|key| !key.is_empty() && !value.is_empty()) else {
            continue;
        };
        match read_variable::<T>(key, value) {
            Ok(layer) => overlay(&mut table, layer),
            Err(BadVariable::Unknown { nearest }) => {
                let nearest = nearest.map(|key| {
                    let level = name.rfind("__").map_or(prefix.len(), |at| at + 2);
                    format!("{}{}", &name[..level], key.to_uppercase())
                });
                ignored.push(IgnoredVariable { name: name.clone(), nearest });
            }
            Err(BadVariable::Value(message)) => {
                return Err(ConfigError::Environment { name: name.clone(), message });
            }
        }
    }
    overlay(&mut table, Table::try_from(flags).map_err(|e| together(e.to_string()))?);
    let raw = table.try_into().map_err(|e: toml::de::Error| together(e.message().to_owned()))?;
    Ok(Loaded { raw, ignored })
}

/// The candidate that is most like a word that is none of them, for "did you mean".
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::jaro_winkler(word, candidate);
    let best = candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    // Below this two words share little more than some letters.
    (likeness(best) >= 0.8).then_some(best)
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Result<Table, ConfigError> {
    let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text));
    if read.map_err(read_error)? as u64 > FILE_MAX_BYTES {
        return Err(read_error(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    let in_file = |e: toml::de::Error| {
        let at = e.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::File { path: path.to_owned(), line, message: explain(e.message()) }
    };
    // Read as the struct first: its errors know their line.
    toml::from_str::<T>(&text).map_err(in_file)?;
    toml::from_str(&text).map_err(in_file)
}

enum BadVariable {
    Unknown { nearest: Option<String> },
    Value(String),
}

/// The layer one variable makes: the first reading of its value that its key takes.
fn read_variable<T: DeserializeOwned>(key: &str, value: &str) -> Result<Table, BadVariable> {
    let key = key.to_lowercase();
    let literal = |text: &str| {
        let table: Table = toml::from_str(&format!("value = {text}")).ok()?;
        // More than one key: the text had line breaks and keys of its own.
        if table.len() == 1 { table.into_iter().next().map(|(_, value)| value) } else { None }
    };
    let items = || value.split(',').map(|item| Value::String(item.trim().to_owned()));
    let readings = [
        Some(Value::String(value.to_owned())),
        literal(value),
        literal(&format!("[{value}]")),
        Some(Value::Array(items().collect())),
    ];
    let mut last = String::new();
    for reading in readings.into_iter().flatten() {
        let layer = nest(&key, reading);
        match layer.clone().try_into::<T>() {
            Ok(_) => return Ok(layer),
            Err(e) => match unknown_field(e.message()) {
                Some((_, nearest)) => {
                    return Err(BadVariable::Unknown { nearest: nearest.map(str::to_owned) });
                }
                // The reading as plain text says best what was expected.
                None if last.is_empty() => last = e.message().to_owned(),
                None => {}
            },
        }
    }
    Err(BadVariable::Value(last))
}

fn nest(key: &str, value: Value) -> Table {
    let mut levels = key.split("__").collect::<Vec<_>>().into_iter().rev();
    let innermost = levels.next().unwrap_or_default();
    let table = |name: &str, value| Table::from_iter([(name.to_owned(), value)]);
    levels.fold(table(innermost, value), |inner, name| table(name, Value::Table(inner)))
}

fn overlay(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(lower)), Value::Table(upper)) => overlay(lower, upper),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

fn explain(message: &str) -> String {
    match unknown_field(message) {
        Some((unknown, Some(nearest))) => format!("unknown key `{unknown}`; did you mean `{nearest}`?"),
        Some((unknown, None)) => {
            let (_, expected) = message.split_once(", ").unwrap_or(("", message));
            format!("unknown key `{unknown}`, {expected}")
        }
        None => message.trim_end().replace('\n', "; "),
    }
}

/// The unknown field and the nearest right one, out of serde's message: `` unknown field `a`, expected one of
/// `b`, `c` ``.
fn unknown_field(message: &str) -> Option<(&str, Option<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    Some((unknown, nearest(unknown, quoted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Raw {
        listen: Option<String>,
        zone: Option<String>,
        servers: Option<Vec<String>>,
        ports: Option<Vec<u16>>,
        bootstrap: Option<bool>,
        #[serde(skip_serializing_if = "Table::is_empty")]
        labels: Table,
        raft: RawRaft,
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct RawRaft {
        tick_ms: Option<u64>,
        election_ticks: Option<u32>,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const NAMES: VariableNames = VariableNames {
        prefix: "P2P_SERVER_",
        others: &[("SERVER_ZONE", "zone"), ("SERVER_TICK", "raft__tick_ms"), ("SERVER_ADDRS", "servers")],
    };

    fn try_load(text: &str, environment: &[(&str, &str)], flags: &Raw) -> Result<Loaded<Raw>, ConfigError> {
        load(Some(file(text).path()), &NAMES, &variables(environment), flags)
    }

    #[test]
    fn flags_go_over_environment_over_file() {
        let text =
            "listen = 'file'\nzone = 'file'\nservers = ['file']\n[raft]\ntick_ms = 1\nelection_ticks = 1\n";
        let environment = [
            ("P2P_SERVER_ZONE", "env"),
            ("P2P_SERVER_SERVERS", "a:1, b:2"),
            ("P2P_SERVER_RAFT__TICK_MS", "2"),
            ("OTHER_ZONE", "other"),
        ];
        let flags = Raw {
            servers: Some(vec!["flag".into()]),
            raft: RawRaft { election_ticks: Some(3), ..RawRaft::default() },
            ..Raw::default()
        };
        let loaded = try_load(text, &environment, &flags).unwrap();
        assert!(loaded.ignored.is_empty());
        let raw = loaded.raw;
        assert_eq!(raw.listen.as_deref(), Some("file"));
        assert_eq!(raw.zone.as_deref(), Some("env"));
        assert_eq!(raw.servers, Some(vec!["flag".to_owned()]));
        assert_eq!(raw.raft, RawRaft { tick_ms: Some(2), election_ticks: Some(3) });
    }

    #[test]
    fn variables_of_other_names_go_over_the_file_and_below_those_with_the_prefix() {
        let environment = [("P2P_SERVER_ZONE", "prefixed"), ("SERVER_ZONE", "other"), ("SERVER_TICK", "7")];
        let raw =
            try_load("zone = 'file'\n[raft]\ntick_ms = 1\n", &environment, &Raw::default()).unwrap().raw;
        assert_eq!((raw.zone.as_deref(), raw.raft.tick_ms), (Some("prefixed"), Some(7)));
        let environment = [("SERVER_ZONE", "other"), ("SERVER_TICK", ""), ("SERVER_ADDRS", "a:1,b:2")];
        let flags = Raw { servers: Some(vec!["flag".into()]), ..Raw::default() };
        let raw = try_load("zone = 'file'\n", &environment, &flags).unwrap().raw;
        assert_eq!((raw.zone.as_deref(), raw.raft.tick_ms), (Some("other"), None));
        assert_eq!(raw.servers, Some(vec!["flag".to_owned()]));
        let refused = try_load("", &[("SERVER_TICK", "soon")], &Raw::default()).unwrap_err();
        assert!(refused.to_string().starts_with("environment variable SERVER_TICK: "), "{refused}");
    }

    #[test]
    fn nothing_given_is_nothing_set() {
        let loaded = load(None, &NAMES, &[], &Raw::default()).unwrap();
        assert_eq!(loaded.raw, Raw::default());
        assert_eq!(try_load("", &[("P2P_SERVER_ZONE", "")], &Raw::default()).unwrap().raw, Raw::default());
    }

    #[test]
    fn variables_are_read_as_their_key_asks() {
        let environment = [
            ("P2P_SERVER_ZONE", "7"),
            ("P2P_SERVER_BOOTSTRAP", "true"),
            ("P2P_SERVER_PORTS", "1,2"),
            ("P2P_SERVER_SERVERS", "one:1"),
            ("P2P_SERVER_LABELS", "{ a = 'b' }"),
        ];
        let raw = try_load("", &environment, &Raw::default()).unwrap().raw;
        assert_eq!(raw.zone.as_deref(), Some("7"));
        assert_eq!(raw.bootstrap, Some(true));
        assert_eq!(raw.ports, Some(vec![1, 2]));
        assert_eq!(raw.servers, Some(vec!["one:1".to_owned()]));
        assert_eq!(raw.labels["a"].as_str(), Some("b"));

        let refused = try_load("", &[("P2P_SERVER_BOOTSTRAP", "perhaps")], &Raw::default()).unwrap_err();
        assert!(refused.to_string().contains("P2P_SERVER_BOOTSTRAP"), "{refused}");
        assert!(refused.to_string().contains("expected a boolean"), "{refused}");
    }

    #[test]
    fn variables_of_an_orchestrator_are_listed_not_refused() {
        let environment = [
            ("P2P_SERVER_PORT_7400_TCP_ADDR", "10.0.0.1"),
            ("P2P_SERVER_LISTN", "x"),
            ("P2P_SERVER_RAFT__TICKS_MS", "3"),
        ];
        let loaded = try_load("", &environment, &Raw::default()).unwrap();
        let ignored: Vec<_> =
            loaded.ignored.iter().map(|i| (i.name.as_str(), i.nearest.as_deref())).collect();
        assert_eq!(ignored[1], ("P2P_SERVER_LISTN", Some("P2P_SERVER_LISTEN")));
        assert_eq!(ignored[2], ("P2P_SERVER_RAFT__TICKS_MS", Some("P2P_SERVER_RAFT__TICK_MS")));
        assert_eq!(ignored.len(), 3);
        assert_eq!(loaded.raw, Raw::default());
    }

    #[test]
    fn a_bad_file_is_told_with_line_and_nearest_key() {
        let refused = |text: &str| try_load(text, &[], &Raw::default()).unwrap_err().to_string();
        let said = refused("# comment\nlisten = 'a'\nzon = 'b'\n");
        assert!(said.contains("line 3: unknown key `zon`; did you mean `zone`?"), "{said}");
        let said = refused("[raft]\n\ntick = 5\n");
        assert!(said.contains("line 3: unknown key `tick`; did you mean `tick_ms`?"), "{said}");
        let said = refused("qqq = 1\n");
        assert!(said.contains("line 1: unknown key `qqq`, expected one of `listen`"), "{said}");
        let said = refused("zone = 'a'\nlisten = 5\n");
        assert!(said.contains("line 2: ") && said.contains("expected a string"), "{said}");
        let said = refused("zone = 'a'\nlisten = = 5\n");
        assert!(said.contains("line 2: "), "{said}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told() {
        let missing = load(Some(Path::new("/nonexistent/p2p.toml")), &NAMES, &[], &Raw::default());
        assert!(missing.unwrap_err().to_string().contains("/nonexistent/p2p.toml"));
        let large = try_load(&"#".repeat(FILE_MAX_BYTES as usize + 1), &[], &Raw::default());
        assert!(matches!(large, Err(ConfigError::Read { .. })));
    }
}
