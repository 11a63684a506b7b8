//! What travels as text: whatever is taken is written back as it was meant, and read again the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use p2p_common::addr::HostPort;
use p2p_common::grants::{NamePattern, NamePatterns};
use p2p_common::service::{HealthCheck, LocalService, ServiceName, Visibility};
use p2p_common::setting::SettingName;
use p2p_common::{ClusterId, Incarnation, NodeId, RecoveryId, RequestId};
use p2p_peer::{Bind, SourceRanges};
use p2p_runtime::identity::Token;
use p2p_runtime::mesh_key::MeshKey;

/// What reads its own writing; the text as written, when it was read.
fn again<T: FromStr + Display + Debug + PartialEq>(text: &str) -> Option<String> {
    let value: T = text.parse().ok()?;
    let written = value.to_string();
    assert_eq!(written.parse::<T>().ok().as_ref(), Some(&value), "{written:?} from {text:?}");
    Some(written)
}

/// Whether `name` fits `pattern`, found the slow way: row by row of pattern against name.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let mut row: Vec<bool> = std::iter::once(true).chain(name.iter().map(|_| false)).collect();
    for byte in pattern {
        let before = row.clone();
        row[0] = before[0] && *byte == b'*';
        for (at, of_name) in name.iter().enumerate() {
            row[at + 1] = match byte {
                b'*' => before[at + 1] || row[at],
                byte => before[at] && byte.eq_ignore_ascii_case(of_name),
            };
        }
    }
    row[name.len()]
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let header = p2p_server::fuzzing::bearer(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    match choice % 18 {
        // An Id has one form only.
        0 => assert!(again::<NodeId>(text).is_none_or(|written| written == text)),
        1 => drop(again::<ClusterId>(text)),
        2 => drop(again::<Incarnation>(text)),
        3 => drop((again::<RequestId>(text), again::<RecoveryId>(text))),
        4 => drop(again::<HostPort>(text)),
        5 => drop(again::<ServiceName>(text)),
        6 => drop(LocalService::parse_list(text)),
        7 => drop(text.parse::<LocalService>()),
        8 => drop(again::<HealthCheck>(text)),
        9 => drop(again::<Visibility>(text)),
        10 => {
            if let Some((name, value)) = text.split_once('=')
                && let Ok(name) = name.parse::<SettingName>()
            {
                let _ = name.check(value);
            }
        }
        11 => {
            if let Ok(token) = text.parse::<Token>() {
                assert_eq!(&*token.to_text(), text);
            }
        }
        12 => {
            if let Ok(key) = text.parse::<MeshKey>() {
                assert_eq!(&*key.to_text(), text);
            }
        }
        13 => drop(text.parse::<Bind>()),
        14 => drop(SourceRanges::parse(text.split(','))),
        15 => drop((again::<NamePattern>(text), again::<NamePatterns>(text))),
        16 => {
            if let Some((pattern, name)) = text.split_once(' ')
                && let Ok(parsed) = pattern.parse::<NamePattern>()
                && name.len() < 200
            {
                assert_eq!(
                    parsed.matches(name),
                    fits(parsed.as_str().as_bytes(), name.as_bytes()),
                    "{text:?}"
                );
            }
        }
        _ => {
            if let Some(token) = header {
                let shown = text.trim_end().rsplit(' ').next();
                assert_eq!(shown, Some(&**token.to_text()));
            }
        }
    }
});
