//! Who a node is: role, [`NodeId`] and [`Incarnation`], and the ids of a cluster and its recoveries.
//!
//! An Id is `S` (Server) or `C` (Peer) followed by a lower-case hyphenated UUID; any other form is refused
//! (SPEC I1). An address is never an identity.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// What kind of node an Id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKind {
    /// A member of the server cluster; Ids start with `S`.
    Server,
    /// An agent beside a workload; Ids start with `C`.
    Peer,
}

impl NodeKind {
    /// The first letter of an Id of this kind.
    pub const fn letter(self) -> char {
        match self {
            NodeKind::Server => 'S',
            NodeKind::Peer => 'C',
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeKind::Server => "server",
            NodeKind::Peer => "peer",
        })
    }
}

/// The Id of a node: its kind and a UUID. Printed as `S` or `C` and the hyphenated lower-case UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    kind: NodeKind,
    uuid: Uuid,
}

impl NodeId {
    /// The length of the printed form in bytes.
    pub const TEXT_BYTES: usize = 37;

    /// Names a node of `kind` by `uuid`; the caller brings the randomness.
    pub const fn new(kind: NodeKind, uuid: Uuid) -> Self {
        NodeId { kind, uuid }
    }

    /// Whether a Server or a Peer is named.
    pub const fn kind(&self) -> NodeKind {
        self.kind
    }

    /// The UUID behind the letter.
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.letter(), self.uuid.as_hyphenated())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl slog::Value for NodeId {
    fn serialize(
        &self,
        _record: &slog::Record<'_>,
        key: slog::Key,
        serializer: &mut dyn slog::Serializer,
    ) -> slog::Result {
        serializer.emit_arguments(key, &format_args!("{self}"))
    }
}

/// Why a text is not an Id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an Id: expected S (server) or C (peer) and a lower-case hyphenated UUID")]
pub struct BadId {
    /// The refused text, cut to 64 characters.
    pub text: String,
}

impl BadId {
    fn new(text: &str) -> Self {
        BadId { text: text.chars().take(64).collect() }
    }
}

impl FromStr for NodeId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::new(text);
        let kind = match text.as_bytes().first() {
            Some(b'S') => NodeKind::Server,
            Some(b'C') => NodeKind::Peer,
            _ => return Err(bad()),
        };
        let rest = &text[1..];
        // Uuid::parse_str also takes braces, URNs, upper case and bare hex; only one form is an Id.
        let uuid = Uuid::try_parse(rest).map_err(|_| bad())?;
        let mut canonical = [0u8; uuid::fmt::Hyphenated::LENGTH];
        if uuid.as_hyphenated().encode_lower(&mut canonical) != rest {
            return Err(bad());
        }
        Ok(NodeId { kind, uuid })
    }
}

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID; the caller brings the randomness.
            pub const fn new(uuid: Uuid) -> Self {
                $name(uuid)
            }

            /// The UUID inside.
            pub const fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.as_hyphenated())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                Uuid::try_parse(text).map($name).map_err(|_| BadId::new(text))
            }
        }
    };
}

uuid_newtype! {
    /// Names a cluster; minted once at bootstrap. Nodes of different clusters refuse each other (SPEC T6).
    ClusterId
}

uuid_newtype! {
    /// Names one forced recovery: two of the same epoch are two histories, which refuse each other (SPEC C11).
    RecoveryId
}

uuid_newtype! {
    /// One run of a node's process. A UUIDv7, so that a later run of the same node compares greater as long
    /// as its clock moves forward.
    Incarnation
}

uuid_newtype! {
    /// Names one write by its client, so that a repeated request applies once (SPEC C7).
    RequestId
}

/// Raised by a forced recovery; orders claims of different histories of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// SHA-256 over a public key (SubjectPublicKeyInfo, DER): the pin an identity is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, KeyHashError> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(KeyHashError);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16).unwrap_or_default() as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Ok(KeyHash(hash))
    }
}

/// A text that is no hash of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the hash of a key: 64 hex digits")]
pub struct KeyHashError;

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "C6ba7b810-9dad-11d1-80b4-00c04fd430c8";

    #[test]
    fn prints_what_it_parsed() {
        let id: NodeId = TEXT.parse().unwrap();
        assert_eq!(id.kind(), NodeKind::Peer);
        assert_eq!(id.to_string(), TEXT);
        assert_eq!(TEXT.len(), NodeId::TEXT_BYTES);
    }

    #[test]
    fn a_hash_of_a_key_prints_what_it_parsed() {
        let hash = KeyHash([0xa7; 32]);
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for bad in ["", "a7", &"g".repeat(64), &"a".repeat(65), &"é".repeat(32)] {
            assert_eq!(bad.parse::<KeyHash>(), Err(KeyHashError), "{bad}");
        }
    }

    #[test]
    fn refuses_every_other_form() {
        let uuid = &TEXT[1..];
        for text in [
            "",
            "C",
            uuid,
            &format!("c{uuid}"),
            &format!("X{uuid}"),
            &format!("C{}", uuid.to_uppercase()),
            &format!("C{}", uuid.replace('-', "")),
            &format!("C{{{uuid}}}"),
            &format!("Curn:uuid:{uuid}"),
            &format!(" {TEXT}"),
            &format!("{TEXT} "),
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text:?} was taken for an Id");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_id_or_an_error(text in "\\PC{0,48}") {
            if let Ok(id) = text.parse::<NodeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn any_uuid_round_trips(bits in any::<u128>(), server in any::<bool>()) {
            let kind = if server { NodeKind::Server } else { NodeKind::Peer };
            let id = NodeId::new(kind, Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        }
    }
}
