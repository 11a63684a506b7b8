//! The first words between Servers: a [`Hello`] each way, checked by both sides (SPEC T6, C11).
//!
//! ```text
//! dialler ──hello──► receiver: cluster, version, identity, epoch, recovery, seat in table C
//!         ◄──hello, uptime── taken            ◄──code, words, its hello── refused
//! ```
//!
//! A refusal carries the refuser's own hello, so that whoever lives in an epoch that is over learns it from the one
//! that it dials: the new history may not know it any more and will never dial it.

use p2p_common::member::{Member, RaftId};
use p2p_common::wire::{Expected, Hello, HelloError};
use p2p_common::{ErrorCode, NodeId};
use p2p_proto::status::{code_of, malformed, refuse};
use p2p_proto::{convert, v1};
use p2p_runtime::grpc::CallerInfo;
use p2p_runtime::identity::PeerIdentity;
use prost::Message as _;
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::{Alarms, Myself, Remotes};
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
    hello.check(&expected).map_err(|error| refusal(myself, hello.from, &error))?;
    Ok(hello)
}

/// Checks the first message of a Server that opens a raft stream or sends raft a message: all of [`check_hello`], and
/// that it holds its seat in table C.
///
/// # Errors
/// A refusal with the mismatch's own code; what it proves about this Server raises an alarm.
pub(crate) fn check_server(
    remotes: &Remotes,
    view: &View,
    hello: Option<v1::Hello>,
    caller: &CallerInfo,
) -> Result<Member, Status> {
    let myself = remotes.myself();
    let hello = convert::hello_from(hello).map_err(|e| malformed(&e))?;
    let identity = identity_of(caller)?;
    let holder = holder(remotes, view, hello.raft_id);
    let checked = hello
        .check(&myself.expects(identity.node_id))
        .and_then(|_| check_holder(hello.from, hello.raft_id, holder.as_ref(), view));
    if let Err(refused) = checked {
        // A stranger with a certificate must not be able to stop this Server.
        if view.has_member(identity.node_id, identity.key_hash) {
            remotes.alarms().hello_refused(identity.node_id, &refused);
        }
        return Err(refusal(myself, hello.from, &refused));
    }
    let (id, raft_id) = (hello.from, hello.raft_id);
    holder.filter(|member| member.key_hash == identity.key_hash).ok_or_else(|| {
        refuse(ErrorCode::Forbidden, format!("{id} with raft id {raft_id} has another key in table C"))
    })
}

/// Whether a Server whose hello was checked before is still one of the cluster.
///
/// # Errors
/// The refusal of one that is not.
pub(crate) fn check_seat(remotes: &Remotes, view: &View, member: &Member) -> Result<(), Status> {
    let holder = holder(remotes, view, member.raft_id);
    check_holder(member.id, member.raft_id, holder.as_ref(), view)
        .map_err(|refused| refusal(remotes.myself(), member.id, &refused))
}

/// Who has this raft id: by table C, or by having left it and not the raft group, which it still has to hear.
fn holder(remotes: &Remotes, view: &View, raft_id: RaftId) -> Option<Member> {
    view.state.member_by_raft_id(raft_id).cloned().or_else(|| remotes.leaving(view, raft_id))
}

/// Checks a Server's place in the cluster: raft ids are never given out again, so whoever says one that was given out
/// and is nobody's was removed. A higher one may only mean that this Server lags behind.
fn check_holder(
    from: NodeId,
    raft_id: RaftId,
    holder: Option<&Member>,
    view: &View,
) -> Result<(), HelloError> {
    match holder {
        Some(member) if member.id == from => Ok(()),
        None if (1..view.state.next_raft_id).contains(&raft_id) => Err(HelloError::Removed { from, raft_id }),
        _ => Err(HelloError::NotMember { from, raft_id }),
    }
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

fn refusal(myself: &Myself, to: NodeId, error: &HelloError) -> Status {
    let mut status = refuse(error.code(), error.to_string());
    let ours = convert::hello_to(&myself.hello(Some(to))).encode_to_vec();
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
