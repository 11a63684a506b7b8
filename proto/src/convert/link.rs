//! Frames of a mesh link.

use bytes::{BufMut, BytesMut};
use p2p_common::wire::link::{
    FRAME_MAX_BYTES, LENGTH_BYTES, LinkMessage, REFUSED_TEXT_MAX_BYTES, ServiceList, TRANSIT_MAX,
    TUNNELS_ASKED_MAX, TransitService,
};
use p2p_common::{ErrorCode, NodeKind};
use prost::Message;

use super::node::{hello_from, hello_to, offer_from, offer_to, report_from, report_to};
use super::{ConvertError, bounded, id_of, required};
use crate::v1;
use crate::v1::link_message::Message as Wire;

/// Why bytes are not a frame of a mesh link. The link ends: what follows cannot be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkFrameError {
    /// Longer than a frame may be.
    #[error("a frame of {bytes} bytes is longer than the {FRAME_MAX_BYTES} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not a message.
    #[error("a frame is not a message of a mesh link: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A message that says something it may not.
    #[error(transparent)]
    Refused(#[from] ConvertError),
}

/// Appends `message` as a frame, length included.
///
/// # Errors
/// When it is longer than a frame may be; then nothing is appended.
pub fn encode_link(message: &LinkMessage, out: &mut BytesMut) -> Result<(), LinkFrameError> {
    let wire = link_message_to(message);
    let bytes = wire.encoded_len();
    if bytes > FRAME_MAX_BYTES {
        return Err(LinkFrameError::TooLong { bytes });
    }
    out.reserve(LENGTH_BYTES + bytes);
    out.put_u32(bytes as u32);
    wire.encode(out).expect("a BytesMut grows as needed");
    Ok(())
}

/// Takes the first frame off `buffer`; none while it is incomplete.
///
/// # Errors
/// When it is not one. `buffer` is of no use any more then.
pub fn decode_link(buffer: &mut BytesMut) -> Result<Option<LinkMessage>, LinkFrameError> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let bytes = u32::from_be_bytes(*length) as usize;
    if bytes > FRAME_MAX_BYTES {
        return Err(LinkFrameError::TooLong { bytes });
    }
    if buffer.len() < LENGTH_BYTES + bytes {
        return Ok(None);
    }
    let frame = buffer.split_to(LENGTH_BYTES + bytes).freeze().slice(LENGTH_BYTES..);
    Ok(Some(link_message_from(v1::LinkMessage::decode(frame)?)?))
}

/// The wire form of a message.
pub fn link_message_to(message: &LinkMessage) -> v1::LinkMessage {
    let message = match message {
        LinkMessage::Hello(hello) => Wire::Hello(hello_to(hello)),
        LinkMessage::Register(list) => Wire::Register(list_to(list)),
        LinkMessage::Registered { count } => Wire::Registered(v1::LinkRegistered { count: *count }),
        LinkMessage::Refused { code, text } => {
            let end = (0..=REFUSED_TEXT_MAX_BYTES.min(text.len())).rev().find(|i| text.is_char_boundary(*i));
            let message = text[..end.unwrap_or(0)].to_owned();
            Wire::Refused(v1::LinkRefused { code: code.number(), message })
        }
        LinkMessage::Sync(list) => Wire::Sync(list_to(list)),
        LinkMessage::Heartbeat => Wire::Heartbeat(v1::Heartbeat::default()),
        LinkMessage::OpenTunnels { count } => Wire::OpenTunnels(v1::LinkOpenTunnels { count: *count }),
    };
    v1::LinkMessage { message: Some(message) }
}

/// A received message.
///
/// # Errors
/// When it is empty, or a field is malformed or beyond its bound.
pub fn link_message_from(message: v1::LinkMessage) -> Result<LinkMessage, ConvertError> {
    Ok(match required(message.message, "message")? {
        Wire::Hello(hello) => LinkMessage::Hello(hello_from(Some(hello))?),
        Wire::Register(list) => LinkMessage::Register(list_from(list)?),
        Wire::Registered(v1::LinkRegistered { count }) => LinkMessage::Registered { count },
        Wire::Refused(v1::LinkRefused { code, message }) => {
            bounded(message.len(), REFUSED_TEXT_MAX_BYTES, "message")?;
            LinkMessage::Refused { code: ErrorCode::from_number(code), text: message }
        }
        Wire::Sync(list) => LinkMessage::Sync(list_from(list)?),
        Wire::Heartbeat(v1::Heartbeat { .. }) => LinkMessage::Heartbeat,
        Wire::OpenTunnels(v1::LinkOpenTunnels { count }) => {
            bounded(count as usize, TUNNELS_ASKED_MAX as usize, "count")?;
            LinkMessage::OpenTunnels { count }
        }
    })
}

fn list_to(list: &ServiceList) -> v1::ServiceList {
    let transit = list.transit.iter().map(|service| v1::TransitService {
        offer: Some(offer_to(&service.offer)),
        source: service.source.to_string(),
    });
    v1::ServiceList { report: Some(report_to(&list.report)), transit: transit.collect() }
}

fn list_from(list: v1::ServiceList) -> Result<ServiceList, ConvertError> {
    bounded(list.transit.len(), TRANSIT_MAX, "transit")?;
    let transit = list.transit.into_iter().map(|service| {
        Ok(TransitService {
            offer: offer_from(required(service.offer, "transit.offer")?)?,
            source: id_of(NodeKind::Peer, &service.source, "transit.source")?,
        })
    });
    Ok(ServiceList {
        report: report_from(list.report)?.into(),
        transit: transit.collect::<Result<_, ConvertError>>()?,
    })
}

#[cfg(test)]
mod tests;
