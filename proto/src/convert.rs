//! The one door between the wire and the domain.
//!
//! `to_*` functions cannot fail: domain values are valid. `*_from` functions check every field and bound and
//! name the field they refuse; nothing from the wire reaches a core unchecked (SPEC S1).

mod link;
mod node;
mod store;

pub use link::{LinkFrameError, decode_link, encode_link, link_message_from, link_message_to};
pub use node::{
    entry_from, entry_to, grants_from, grants_to, hello_from, hello_to, link_from, link_to, links_from,
    master_from, master_to, member_from, member_role_from, member_role_to, member_table_from,
    member_table_to, member_to, net_info_from, net_info_to, offer_from, offer_to, push_from, push_to,
    report_from, report_to, revocations_from, revocations_to,
};
pub use store::{
    decode_command, decode_outcome, decode_state, encode_command, encode_outcome, encode_state, recovery_id,
    token_role_from, token_role_to,
};

use std::str::FromStr;

use p2p_common::addr::HostPort;
use p2p_common::{KeyHash, NodeId, NodeKind, RequestId};

/// A field of a received message that is missing, malformed or beyond its bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConvertError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl ConvertError {
    /// Refuses `field` for `reason`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        ConvertError { field, reason: reason.into() }
    }
}

/// The text of `field` as a `T`.
///
/// # Errors
/// When it is not one.
pub fn parse<T: FromStr>(text: &str, field: &'static str) -> Result<T, ConvertError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| ConvertError::new(field, e.to_string()))
}

/// An Id of the given kind.
///
/// # Errors
/// When it is not an Id, or names the other kind.
pub fn id_of(kind: NodeKind, text: &str, field: &'static str) -> Result<NodeId, ConvertError> {
    let id: NodeId = parse(text, field)?;
    if id.kind() != kind {
        return Err(ConvertError::new(field, format!("{id} is not the Id of a {kind}")));
    }
    Ok(id)
}

/// A request id.
///
/// # Errors
/// When it is not a UUID.
pub fn request_id(text: &str) -> Result<RequestId, ConvertError> {
    parse(text, "request_id")
}

/// A SHA-256 value.
///
/// # Errors
/// When it is not 32 bytes.
pub fn sha256(bytes: &[u8], field: &'static str) -> Result<[u8; 32], ConvertError> {
    bytes.try_into().map_err(|_| ConvertError::new(field, format!("expected 32 bytes, got {}", bytes.len())))
}

/// The hash of a public key.
///
/// # Errors
/// When it is not 32 bytes.
pub fn key_hash(bytes: &[u8]) -> Result<KeyHash, ConvertError> {
    sha256(bytes, "key_hash").map(KeyHash)
}

fn addresses(texts: &[String], max: usize) -> Result<Vec<HostPort>, ConvertError> {
    bounded(texts.len(), max, "addresses")?;
    texts.iter().map(|text| parse(text, "addresses")).collect()
}

fn bounded(len: usize, max: usize, field: &'static str) -> Result<(), ConvertError> {
    if len > max {
        return Err(ConvertError::new(field, format!("{len} is more than the {max} allowed")));
    }
    Ok(())
}

/// A name people gave: any text without control characters, of bounded length.
///
/// # Errors
/// When it is too long or has control characters.
pub fn name(text: &str, field: &'static str) -> Result<String, ConvertError> {
    bounded(text.len(), p2p_common::member::Member::NAME_MAX_BYTES, field)?;
    if text.chars().any(char::is_control) {
        return Err(ConvertError::new(field, "control characters are not allowed"));
    }
    Ok(text.to_owned())
}

/// Why a key is revoked, for people.
///
/// # Errors
/// When it is too long or has control characters.
pub fn reason(text: &str) -> Result<String, ConvertError> {
    bounded(text.len(), p2p_common::command::Revocation::REASON_MAX_BYTES, "reason")?;
    if text.chars().any(char::is_control) {
        return Err(ConvertError::new("reason", "control characters are not allowed"));
    }
    Ok(text.to_owned())
}

fn required<T>(value: Option<T>, field: &'static str) -> Result<T, ConvertError> {
    value.ok_or_else(|| ConvertError::new(field, "is missing"))
}
