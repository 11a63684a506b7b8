//! What a Peer says itself on an HTTP/2 connection that it does not carry (SPEC F9).
//!
//! The first request is answered like one of HTTP/1 ([`ErrorReply`]), then GOAWAY says that no other was looked
//! at, so that a client may send those again elsewhere. A call of gRPC is answered with a status of gRPC. Fields
//! are written without compression.

use std::fmt::Write;

use super::{
    DATA, FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, GOAWAY, H2cErrorCode, H2cStream, HEADERS, SETTINGS,
};
use crate::reply::{ErrorReply, Status};

/// SETTINGS that leave everything as it is: what a client may wait for before it sends a request.
pub const H2C_SETTINGS: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];

/// The longest explanation in GOAWAY.
const DEBUG_MAX_BYTES: usize = 512;

/// An answer to the first request of a connection, which it ends.
#[derive(Clone, Copy)]
pub struct H2cReply<'a> {
    /// What is said; `keep_alive` and `to_head` mean nothing here.
    pub error: ErrorReply<'a>,
    /// Where.
    pub stream: H2cStream,
    /// Whether the client has got [`H2C_SETTINGS`] already; they are the first that a server says.
    pub has_settings: bool,
}

impl H2cReply<'_> {
    /// The frames.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = self.error.body();
        let proxy_id = self.error.proxy_id.to_string();
        let mut block = Vec::with_capacity(256);
        let body = if self.stream.is_grpc {
            // A response without a body, whose fields are its trailers.
            field(&mut block, ":status", "200");
            field(&mut block, "content-type", "application/grpc");
            field(&mut block, "grpc-status", grpc_status(self.error.status));
            field(&mut block, "grpc-message", &grpc_message(&text));
            &[][..]
        } else {
            field(&mut block, ":status", &self.error.status.code().to_string());
            field(&mut block, "content-type", "text/plain; charset=utf-8");
            field(&mut block, "cache-control", "no-store");
            field(&mut block, "x-content-type-options", "nosniff");
            // A client that takes less than the text gets what it takes: the status has said what matters.
            let most = if self.stream.is_head { 0 } else { self.stream.window_bytes as usize };
            &text.as_bytes()[..text.len().min(most)]
        };
        field(&mut block, "x-p2p-proxy-id", &proxy_id);
        let mut bytes = greeting(self.has_settings);
        frame(&mut bytes, SETTINGS, FLAG_ACK, 0, &[]);
        let last = if body.is_empty() { FLAG_END_STREAM } else { 0 };
        frame(&mut bytes, HEADERS, FLAG_END_HEADERS | last, self.stream.id, &block);
        if !body.is_empty() {
            frame(&mut bytes, DATA, FLAG_END_STREAM, self.stream.id, body);
        }
        goaway(&mut bytes, self.stream.id, H2cErrorCode::NoError, "");
        bytes
    }
}

/// What gRPC makes of a status of HTTP ("HTTP to gRPC Status Code Mapping" of its documentation).
const fn grpc_status(status: Status) -> &'static str {
    match status {
        Status::BadRequest => "13",
        Status::Forbidden => "7",
        Status::NotFound => "12",
        Status::BadGateway | Status::Unavailable | Status::GatewayTimeout => "14",
        Status::HeadTooLarge | Status::NotImplemented | Status::VersionNotSupported => "2",
    }
}

/// Text as a message of gRPC: one line, percent-encoded.
fn grpc_message(text: &str) -> String {
    let mut message = String::with_capacity(text.len() + 16);
    for byte in text.trim_end().bytes() {
        match byte {
            b'\n' => message.push_str("; "),
            b' '..=b'~' if byte != b'%' => message.push(char::from(byte)),
            _ => write!(message, "%{byte:02X}").expect("writing to a string does not fail"),
        }
    }
    message
}

/// A field as a literal without indexing (RFC 7541 section 6.2.2).
fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        match text.len().checked_sub(0x7f) {
            None => block.push(text.len() as u8),
            Some(mut rest) => {
                block.push(0x7f);
                while rest >= 0x80 {
                    block.push(0x80 | (rest & 0x7f) as u8);
                    rest >>= 7;
                }
                block.push(rest as u8);
            }
        }
        block.extend_from_slice(text.as_bytes());
    }
}

/// The end of a connection on which no request was answered.
pub fn h2c_goaway(code: H2cErrorCode, why: &str, has_settings: bool) -> Vec<u8> {
    let mut bytes = greeting(has_settings);
    goaway(&mut bytes, 0, code, why);
    bytes
}

fn greeting(has_settings: bool) -> Vec<u8> {
    if has_settings { Vec::new() } else { H2C_SETTINGS.to_vec() }
}

fn goaway(bytes: &mut Vec<u8>, last_stream: u32, code: H2cErrorCode, why: &str) {
    let why = &why.as_bytes()[..why.len().min(DEBUG_MAX_BYTES)];
    let payload = [&last_stream.to_be_bytes()[..], &code.number().to_be_bytes(), why].concat();
    frame(bytes, GOAWAY, 0, 0, &payload);
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("what is said here is short").to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}
