//! The way into an existing cluster, through any one of its Servers.
//!
//! 1. Enroll, on the public face: the token's CA fingerprint says whom to believe, the token's secret says that
//!    we may. It binds our Id to our key and gives a certificate.
//! 2. Join, on the node face: puts us into table C and gives a raft id and the other Servers. Whoever asks has no
//!    log, so the raft id is always a new one, and no epoch, so any history takes it in; a lower one than it has
//!    lived in is not taken by us.
//!
//! Who does not answer, or has no quorum, is asked again for as long as it takes; a refusal for good ends it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::member::Member;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, ErrorCode, NodeKind};
use p2p_proto::status::code_of;
use p2p_proto::{convert, v1};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::identity::{CaFingerprint, Enrolment, NodeIdentity, Token, TrustBundle};
use p2p_runtime::tls::{ConnectError, Connector, Credentials, Expect};
use slog::{info, warn};

use super::{Applicant, Joining};
use crate::store::{Origin, Store};

/// Between two rounds over all introducers; doubled up to the second.
const REST: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// With --bootstrap as well: if no introducer answers for so long, there is no cluster yet.
const BOOTSTRAP_AFTER: Duration = Duration::from_secs(10);
/// For one answer; an introducer without a quorum answers that after 5 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How joining came out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// The store is begun.
    Yes,
    /// Nobody has answered, and this Server may found the cluster.
    NobodyThere,
}

/// What one introducer said instead of yes.
enum Refused {
    /// Another try, or another introducer, may help.
    ForNow(String),
    /// It would say so for ever; the start ends like this.
    ForGood(Ending, String),
}

/// The exit that a reason makes.
type Ending = fn(&dyn std::fmt::Display) -> Exit;

const FAILED: Ending = |why| Exit::failed(why);
const USAGE: Ending = |why| Exit::usage(why);
const NEEDS_OPERATOR: Ending = |why| Exit::needs_operator(why);

/// Enrols if need be, joins, and begins the store.
pub(super) async fn join(
    applicant: &Applicant<'_>,
    identity: &mut NodeIdentity,
    store: &mut Store,
    joining: Option<Joining>,
) -> Result<Joined, Exit> {
    let mut introducers = applicant.config.join.clone();
    let known = joining.iter().flat_map(|joining| &joining.introducers);
    introducers.extend(known.filter(|known| !applicant.config.join.contains(known)).cloned());
    if introducers.is_empty() {
        return Err(Exit::usage(format!(
            "{} is enrolled but has not joined yet: start it again with --join HOST:PORT and its token",
            applicant.config.data.display()
        )));
    }
    let give_up = applicant.config.bootstrap && identity.enrolment().is_none();
    let give_up = give_up.then(|| tokio::time::Instant::now() + BOOTSTRAP_AFTER);
    let mut members = Vec::new();
    if identity.enrolment().is_none() {
        let token = applicant.config.token.as_ref();
        let token = token.ok_or_else(|| Exit::usage("joining needs --token"))?;
        let enrolment = persist(applicant, "enrolment", &introducers, give_up, async |introducer| {
            enrol(applicant, identity, token, introducer).await
        });
        let Some((enrolment, epoch, known)) = enrolment.await? else { return Ok(Joined::NobodyThere) };
        members = known;
        // Before the enrolment: an enrolled node knows its epoch.
        identity.keep_epoch(applicant.dir, epoch).map_err(|e| Exit::failed(chain(&e)))?;
        identity.enrol(applicant.dir, enrolment).map_err(|e| Exit::failed(chain(&e)))?;
        info!(applicant.log, "enrolled"; "id" => identity.id());
    }
    let enrolment = identity.enrolment().expect("it was just enrolled");
    let credentials = Credentials::new(identity, enrolment)
        .map_err(|e| Exit::failed(format!("the certificate cannot be used: {e}")))?;
    // Whatever clocks say: those that the introducer vouched for are known by their keys.
    let known: BTreeSet<_> = members.iter().map(|member: &Member| (member.id, member.key_hash)).collect();
    credentials.set_pins(move |id, key_hash| known.contains(&(id, key_hash)));
    let connector = Connector::node(credentials, Expect::Kind(NodeKind::Server));
    let joining = match joining {
        Some(joining) => joining,
        None => {
            let joining = Joining::new()?;
            joining.store(applicant.dir)?;
            joining
        }
    };
    let origin = persist(applicant, "join", &introducers, None, async |introducer| {
        let hello = hello(applicant, identity, Some(enrolment.cluster_id));
        let request = v1::JoinRequest {
            hello: Some(convert::hello_to(&hello)),
            name: identity.name().to_owned(),
            addresses: applicant.addresses.iter().map(ToString::to_string).collect(),
            zone: applicant.config.zone.clone(),
            request_id: joining.request_id.to_string(),
        };
        ask_to_join(&connector, introducer, request, identity.epoch()).await
    });
    let origin = origin.await?.expect("joining has no end but an answer");
    store.begin(&origin, None).map_err(Exit::needs_operator)?;
    info!(applicant.log, "joined"; "raft_id" => origin.raft_id);
    Ok(Joined::Yes)
}

/// Asks all introducers in turn until one says yes, one refuses for good and none says yes in that round, or
/// `give_up` is reached without any answer (`None`).
async fn persist<T>(
    applicant: &Applicant<'_>,
    what: &'static str,
    introducers: &[HostPort],
    give_up: Option<tokio::time::Instant>,
    ask: impl AsyncFn(&HostPort) -> Result<T, Refused>,
) -> Result<Option<T>, Exit> {
    let (mut rest, rest_max) = REST;
    let mut said = String::new();
    loop {
        let mut for_good = None;
        for introducer in introducers {
            match ask(introducer).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(Refused::ForGood(ending, why)) => {
                    for_good = Some(ending(&format!("{introducer} refuses the {what}: {why}")))
                }
                Err(Refused::ForNow(why)) => {
                    // Said once per reason, not once per try.
                    if why != said {
                        warn!(applicant.log, "introducer does not help yet"; "introducer" => %introducer,
                            "for" => what, "reason" => &why);
                        said = why;
                    }
                }
            }
        }
        if let Some(exit) = for_good {
            return Err(exit);
        }
        if give_up.is_some_and(|at| tokio::time::Instant::now() >= at) {
            return Ok(None);
        }
        tokio::time::sleep(rest.mul_f64(rand::random_range(0.75..1.25))).await;
        rest = (rest * 2).min(rest_max);
    }
}

async fn enrol(
    applicant: &Applicant<'_>,
    identity: &NodeIdentity,
    token: &Token,
    introducer: &HostPort,
) -> Result<(Enrolment, Epoch, Vec<Member>), Refused> {
    let for_good = |e: &dyn std::fmt::Display| Refused::ForGood(FAILED, e.to_string());
    let connector = Connector::enrol(token).map_err(|e| for_good(&e))?;
    let connection = connect(&connector, introducer, &ChannelParams::default()).await.map_err(unreached)?;
    let mut request = tonic::Request::new(v1::EnrollRequest {
        hello: Some(convert::hello_to(&hello(applicant, identity, None))),
        token_id: token.id().0,
        token_secret: token.secret().to_vec().into(),
        name: identity.name().to_owned(),
        csr: identity.key().certificate_request(identity.id()).map_err(|e| for_good(&e))?.into(),
        addresses: applicant.addresses.iter().map(ToString::to_string).collect(),
    });
    request.set_timeout(CALL_TIMEOUT);
    let reply = v1::enroll_client::EnrollClient::new(connection.channel).enroll(request).await;
    let reply = reply.map_err(|status| refused(&status))?.into_inner();
    let trust = TrustBundle::from_der(reply.trust_bundle.iter().map(|der| der.to_vec()));
    let trust = trust.map_err(|e| for_good(&e))?;
    let ours = |ca: &[u8]| CaFingerprint::of(ca) == token.ca_fingerprint();
    if !trust.certificates().iter().any(|ca| ours(ca)) {
        return Err(for_good(&"the trust bundle lacks the CA that the token names"));
    }
    let cluster_id = convert::parse(&reply.cluster_id, "cluster_id").map_err(|e| for_good(&e))?;
    let enrolment = Enrolment { cluster_id, certificate: reply.certificate.to_vec().into(), trust };
    let (_, members) = convert::member_table_from(reply.members).map_err(|e| for_good(&e))?;
    Ok((enrolment, Epoch(reply.epoch), members))
}

async fn ask_to_join(
    connector: &Connector,
    introducer: &HostPort,
    request: v1::JoinRequest,
    lived_in: Epoch,
) -> Result<Origin, Refused> {
    let connection = connect(connector, introducer, &ChannelParams::default()).await.map_err(unreached)?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(CALL_TIMEOUT);
    let reply = v1::peering_client::PeeringClient::new(connection.channel).join(request).await;
    let reply = reply.map_err(|status| refused(&status))?.into_inner();
    let malformed = |e: convert::ConvertError| Refused::ForGood(FAILED, e.to_string());
    let (_, members) = convert::member_table_from(reply.members).map_err(malformed)?;
    let recovery_id = convert::recovery_id(&reply.recovery_id).map_err(malformed)?;
    if reply.raft_id == 0 {
        return Err(Refused::ForGood(FAILED, "it gave no raft id".to_owned()));
    }
    let epoch = Epoch(reply.epoch);
    if epoch < lived_in {
        return Err(Refused::ForNow(format!(
            "it lives in epoch {epoch}, which is over: this server knows {lived_in}"
        )));
    }
    Ok(Origin { members, ..Origin::new(reply.raft_id, epoch, recovery_id) })
}

fn hello(applicant: &Applicant<'_>, identity: &NodeIdentity, cluster_id: Option<ClusterId>) -> Hello {
    Hello {
        versions: VERSIONS,
        cluster_id,
        from: identity.id(),
        to: None,
        epoch: Epoch(0),
        recovery_id: None,
        raft_id: 0,
        incarnation: applicant.incarnation,
        features: 0,
    }
}

fn unreached(error: ConnectError) -> Refused {
    // It dies, or something between us closes: no verdict on who we are.
    if let ConnectError::Handshake(broken) = &error
        && matches!(
            broken.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        )
    {
        return Refused::ForNow(chain(&error));
    }
    match error.code() {
        ErrorCode::Unavailable => Refused::ForNow(chain(&error)),
        ErrorCode::WrongCluster => {
            let hint = "give --join of the token's cluster, or a token of theirs";
            Refused::ForGood(USAGE, format!("{}; {hint}", chain(&error)))
        }
        _ => Refused::ForGood(FAILED, chain(&error)),
    }
}

fn refused(status: &tonic::Status) -> Refused {
    let message = status.message().to_owned();
    match code_of(status) {
        // A broken connection.
        None => Refused::ForNow(message),
        Some(
            ErrorCode::Unavailable
            | ErrorCode::NotLeader
            | ErrorCode::OutcomeUnknown
            | ErrorCode::Exhausted
            | ErrorCode::Draining,
        ) => Refused::ForNow(message),
        Some(
            ErrorCode::TokenUnknown
            | ErrorCode::TokenExpired
            | ErrorCode::TokenUsedUp
            | ErrorCode::TokenRole
            | ErrorCode::TokenBound,
        ) => {
            let hint = "`p2p-server token create --role server` on any Server prints a new token";
            Refused::ForGood(NEEDS_OPERATOR, format!("{message}; {hint}"))
        }
        Some(ErrorCode::IdTaken) => {
            let hint = "start with the data directory that has its key, or give another --id";
            Refused::ForGood(NEEDS_OPERATOR, format!("{message}; {hint}"))
        }
        Some(_) => Refused::ForGood(FAILED, message),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_introducer_that_dies_in_the_handshake_is_asked_again() {
        let unreached = |kind| unreached(ConnectError::Handshake(io::Error::from(kind)));
        for kind in [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof] {
            assert!(matches!(unreached(kind), Refused::ForNow(_)), "{kind:?}");
        }
        assert!(matches!(unreached(ErrorKind::InvalidData), Refused::ForGood(..)));
    }
}
