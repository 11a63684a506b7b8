//! The first words between Servers: a [`Hello`] each way, checked by both sides (SPEC T6, C11).
//!
//! ```text
//! dialler ──hello──► receiver: cluster, version, identity, epoch, recovery, seat in table C
//!         ◄──hello, uptime── taken            ◄──code, words, its hello── refused
//! ```
//!
//! A refusal carries the refuser's own hello, so that whoever lives in an epoch that is over learns it from the one
//! that it dials: the new history may not know it any more and will never dial it.

use p2p_common::member::Member;
use p2p_common::wire::{Expected, Hello, HelloError};
use p2p_common::{ErrorCode, NodeId};
use p2p_proto::status::{code_of, malformed, refuse};
use p2p_proto::{convert, v1};
use p2p_runtime::grpc::CallerInfo;
use p2p_runtime::identity::PeerIdentity;
use prost::Message as _;
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::{Alarms, Myself};
use crate::raft::View;

/// The metadata key of the refuser's hello.
const HELLO_KEY: &str = "p2p-hello-bin";

/// The certificate behind a request.
pub(crate) fn identity_of(caller: &CallerInfo) -> Result<PeerIdentity, Status> {
    caller.face.identity().ok_or_else(|| refuse(ErrorCode::Unauthenticated, "no certificate was shown"))
}

/// Checks the first message of a node against its certificate and this Server.
///
/// # Errors
/// A refusal with the mismatch's own code.
pub(crate) fn check_hello(
    myself: &Myself,
    hello: Option<v1::Hello>,
    caller: &CallerInfo,
) -> Result<Hello, Status> {
    let hello = convert::hello_from(hello).map_err(|e| malformed(&e))?;
    let expected = myself.expects(identity_of(caller)?.node_id);
    hello.check(&expected).map_err(|error| refusal(myself, &hello, &error))?;
    Ok(hello)
}

/// Checks the first message of a Server that opens a raft stream or sends raft a message: all of [`check_hello`], and
/// that it holds its seat in table C.
///
/// # Errors
/// A refusal with the mismatch's own code; what it proves about this Server is told to `alarms`.
pub(crate) fn check_server(
    myself: &Myself,
    view: &View,
    alarms: &Alarms,
    hello: Option<v1::Hello>,
    caller: &CallerInfo,
) -> Result<Member, Status> {
    let hello = convert::hello_from(hello).map_err(|e| malformed(&e))?;
    let identity = identity_of(caller)?;
    let holder = view.state.member_by_raft_id(hello.raft_id);
    let checked = hello
        .check(&myself.expects(identity.node_id))
        .and_then(|_| hello.check_seat(holder.map(|member| member.id), view.state.next_raft_id));
    if let Err(refused) = checked {
        // A stranger with a certificate must not be able to stop this Server.
        if view.has_member(identity.node_id, identity.key_hash) {
            alarms.hello_refused(identity.node_id, &refused);
        }
        return Err(refusal(myself, &hello, &refused));
    }
    let (id, raft_id) = (hello.from, hello.raft_id);
    let member = holder.filter(|member| member.key_hash == identity.key_hash);
    let member = member.ok_or_else(|| {
        refuse(ErrorCode::Forbidden, format!("{id} with raft id {raft_id} has another key in table C"))
    })?;
    Ok(member.clone())
}

/// Checks what the dialled Server, authenticated as `member`, says of itself.
///
/// # Errors
/// The mismatch in words; what it proves about this Server is told to `alarms`.
pub(super) fn check_reply(
    myself: &Myself,
    member: &Member,
    alarms: &Alarms,
    hello: Option<v1::Hello>,
) -> Result<Hello, String> {
    let hello = convert::hello_from(hello).map_err(|e| e.to_string())?;
    if let Err(refused) = hello.check(&myself.expects(member.id)) {
        alarms.hello_refused(member.id, &refused);
        return Err(refused.to_string());
    }
    if hello.raft_id != member.raft_id {
        let (theirs, ours) = (hello.raft_id, member.raft_id);
        return Err(format!("it has raft id {theirs} now; table C still says {ours}"));
    }
    alarms.settled(member.id);
    Ok(hello)
}

/// Learns from the refusal of the dialled Server, authenticated as `member`; gives its words.
pub(super) fn learn(myself: &Myself, member: &Member, alarms: &Alarms, refused: &Status) -> String {
    if let Some(code) = code_of(refused) {
        alarms.refused(member.id, code, refused.message());
    }
    if let Some(hello) = hello_of(refused)
        && let Err(mismatch) = hello.check(&myself.expects(member.id))
    {
        alarms.hello_refused(member.id, &mismatch);
    }
    refused.message().to_owned()
}

fn refusal(myself: &Myself, theirs: &Hello, error: &HelloError) -> Status {
    let mut status = refuse(error.code(), error.to_string());
    let ours = convert::hello_to(&myself.hello(Some(theirs.from))).encode_to_vec();
    status.metadata_mut().insert_bin(HELLO_KEY, MetadataValue::from_bytes(&ours));
    status
}

fn hello_of(refused: &Status) -> Option<Hello> {
    let bytes = refused.metadata().get_bin(HELLO_KEY)?.to_bytes().ok()?;
    convert::hello_from(Some(v1::Hello::decode(bytes).ok()?)).ok()
}

impl Myself {
    /// What the hello of the node with this certificate must say.
    fn expects(&self, authenticated: NodeId) -> Expected {
        Expected {
            cluster_id: self.credentials.cluster_id(),
            epoch: self.epoch,
            recovery_id: self.recovery_id,
            me: self.id,
            authenticated,
        }
    }
}
