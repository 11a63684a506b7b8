//! What nodes say of themselves and of each other: hello, members, reports, pushes, links.

use std::sync::Arc;

use p2p_common::addr::{Candidate, CandidateKind, HostPort, NetInfo};
use p2p_common::grants::{Grants, NamePatterns};
use p2p_common::link::{LINKS_PER_REPORT_MAX, LinkRow, PathKind, REASON_MAX_BYTES};
use p2p_common::member::{MEMBERS_MAX, MasterTitle, Member, MemberRole};
use p2p_common::push::{PeerEntry, PeerPush, PeerReport, RevocationPush, RevokedKey};
use p2p_common::revision::{Delta, Piece, Push};
use p2p_common::service::{SERVICES_PER_PEER_MAX, ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::Hello;
use p2p_common::{Epoch, NodeId, NodeKind, UnixMs};

use super::{ConvertError, addresses, bounded, id_of, key_hash, name, parse, required};
use crate::v1;

fn texts(addresses: &[HostPort]) -> Vec<String> {
    addresses.iter().map(HostPort::to_string).collect()
}

/// The wire form of a hello.
pub fn hello_to(hello: &Hello) -> v1::Hello {
    v1::Hello {
        version_min: hello.versions.0,
        version_max: hello.versions.1,
        cluster_id: hello.cluster_id.map(|id| id.to_string()).unwrap_or_default(),
        from: hello.from.to_string(),
        to: hello.to.map(|id| id.to_string()).unwrap_or_default(),
        epoch: hello.epoch.0,
        features: hello.features,
        incarnation: hello.incarnation.to_string(),
        recovery_id: hello.recovery_id.map(|id| id.to_string()).unwrap_or_default(),
        raft_id: hello.raft_id,
    }
}

/// A received hello; a missing one is refused.
///
/// # Errors
/// When a field is malformed.
pub fn hello_from(hello: Option<v1::Hello>) -> Result<Hello, ConvertError> {
    let hello = required(hello, "hello")?;
    Ok(Hello {
        versions: (hello.version_min, hello.version_max),
        cluster_id: match hello.cluster_id.as_str() {
            "" => None,
            text => Some(parse(text, "cluster_id")?),
        },
        from: parse(&hello.from, "from")?,
        to: match hello.to.as_str() {
            "" => None,
            text => Some(parse(text, "to")?),
        },
        epoch: Epoch(hello.epoch),
        recovery_id: match hello.recovery_id.as_str() {
            "" => None,
            text => Some(parse(text, "recovery_id")?),
        },
        raft_id: hello.raft_id,
        incarnation: parse(&hello.incarnation, "incarnation")?,
        features: hello.features,
    })
}

/// The wire form of a Server's record.
pub fn member_to(member: &Member) -> v1::Member {
    v1::Member {
        id: member.id.to_string(),
        name: member.name.clone(),
        addresses: texts(&member.addresses),
        zone: member.zone.clone(),
        raft_id: member.raft_id,
        key_hash: member.key_hash.0.to_vec().into(),
    }
}

/// A received Server's record.
///
/// # Errors
/// When a field is malformed or beyond its bound.
pub fn member_from(member: v1::Member) -> Result<Member, ConvertError> {
    Ok(Member {
        id: id_of(NodeKind::Server, &member.id, "id")?,
        name: name(&member.name, "name")?,
        addresses: addresses(&member.addresses, Member::ADDRESSES_MAX)?,
        zone: name(&member.zone, "zone")?,
        raft_id: member.raft_id,
        key_hash: key_hash(&member.key_hash)?,
    })
}

/// The wire form of table C.
pub fn member_table_to<'a>(version: u64, members: impl IntoIterator<Item = &'a Member>) -> v1::MemberTable {
    v1::MemberTable { version, members: members.into_iter().map(member_to).collect() }
}

/// A received table C: its version and rows.
///
/// # Errors
/// When it is missing, too long, or a row is malformed.
pub fn member_table_from(table: Option<v1::MemberTable>) -> Result<(u64, Vec<Member>), ConvertError> {
    let table = required(table, "members")?;
    bounded(table.members.len(), MEMBERS_MAX, "members")?;
    Ok((table.version, table.members.into_iter().map(member_from).collect::<Result<_, _>>()?))
}

/// The wire form of a member's raft role.
pub fn member_role_to(role: MemberRole) -> v1::MemberRole {
    match role {
        MemberRole::Voter => v1::MemberRole::Voter,
        MemberRole::Learner => v1::MemberRole::Learner,
        MemberRole::Joining => v1::MemberRole::Joining,
    }
}

/// A received raft role.
///
/// # Errors
/// When it has no meaning.
pub fn member_role_from(role: i32) -> Result<MemberRole, ConvertError> {
    match v1::MemberRole::try_from(role) {
        Ok(v1::MemberRole::Voter) => Ok(MemberRole::Voter),
        Ok(v1::MemberRole::Learner) => Ok(MemberRole::Learner),
        Ok(v1::MemberRole::Joining) => Ok(MemberRole::Joining),
        _ => Err(ConvertError::new("role", format!("{role} is not a member role"))),
    }
}

/// The wire form of the Master.
pub fn master_to(master: &MasterTitle) -> v1::Master {
    v1::Master {
        id: master.id.to_string(),
        name: master.name.clone(),
        addresses: texts(&master.addresses),
        term: master.term,
        cluster_id: master.cluster_id.to_string(),
        epoch: master.epoch.0,
        since_unix_ms: master.since.0,
        provisional: master.provisional,
    }
}

/// A received Master.
///
/// # Errors
/// When a field is malformed.
pub fn master_from(master: v1::Master) -> Result<MasterTitle, ConvertError> {
    Ok(MasterTitle {
        id: id_of(NodeKind::Server, &master.id, "id")?,
        name: name(&master.name, "name")?,
        addresses: addresses(&master.addresses, Member::ADDRESSES_MAX)?,
        term: master.term,
        cluster_id: parse(&master.cluster_id, "cluster_id")?,
        epoch: Epoch(master.epoch),
        since: UnixMs(master.since_unix_ms),
        provisional: master.provisional,
    })
}

/// The wire form of table D.
pub fn net_info_to(net: &NetInfo) -> v1::NetInfo {
    let kind = |kind| match kind {
        CandidateKind::Host => v1::CandidateKind::Host,
        CandidateKind::Reflexive => v1::CandidateKind::Reflexive,
        CandidateKind::Mapped => v1::CandidateKind::Mapped,
        CandidateKind::Advertised => v1::CandidateKind::Advertised,
    };
    v1::NetInfo {
        listen: net.listen.map(|addr| addr.to_string()).unwrap_or_default(),
        candidates: net
            .candidates
            .iter()
            .map(|c| v1::Candidate { kind: kind(c.kind).into(), address: c.addr.to_string() })
            .collect(),
    }
}

/// A received table D; a missing one is empty.
///
/// # Errors
/// When an address or a kind is malformed, or there are too many candidates.
pub fn net_info_from(net: Option<v1::NetInfo>) -> Result<NetInfo, ConvertError> {
    let net = net.unwrap_or_default();
    bounded(net.candidates.len(), NetInfo::CANDIDATES_MAX, "candidates")?;
    let candidate = |c: v1::Candidate| {
        let kind = match v1::CandidateKind::try_from(c.kind) {
            Ok(v1::CandidateKind::Host) => CandidateKind::Host,
            Ok(v1::CandidateKind::Reflexive) => CandidateKind::Reflexive,
            Ok(v1::CandidateKind::Mapped) => CandidateKind::Mapped,
            Ok(v1::CandidateKind::Advertised) => CandidateKind::Advertised,
            _ => return Err(ConvertError::new("candidates", format!("{} is not a candidate kind", c.kind))),
        };
        Ok(Candidate { kind, addr: parse(&c.address, "candidates")? })
    };
    Ok(NetInfo {
        listen: match net.listen.as_str() {
            "" => None,
            text => Some(parse(text, "listen")?),
        },
        candidates: net.candidates.into_iter().map(candidate).collect::<Result<_, _>>()?,
    })
}

/// The wire form of an offered service.
pub fn offer_to(offer: &ServiceOffer) -> v1::ServiceOffer {
    use v1::visibility::Kind;
    let (kind, ids) = match &offer.visibility {
        Visibility::Linked => (Kind::Linked, Vec::new()),
        Visibility::Cluster => (Kind::Cluster, Vec::new()),
        Visibility::Private => (Kind::Private, Vec::new()),
        Visibility::Ids(ids) => (Kind::Ids, ids.iter().map(ToString::to_string).collect()),
    };
    v1::ServiceOffer {
        name: offer.name.to_string(),
        backend: offer.backend.to_string(),
        visibility: Some(v1::Visibility { kind: kind.into(), ids }),
        state: match offer.state {
            ServiceState::Up => v1::ServiceState::Up,
            ServiceState::Down => v1::ServiceState::Down,
            ServiceState::Draining => v1::ServiceState::Draining,
        }
        .into(),
    }
}

/// A received offer; without a visibility it is private.
///
/// # Errors
/// When a field is malformed or beyond its bound.
pub fn offer_from(offer: v1::ServiceOffer) -> Result<ServiceOffer, ConvertError> {
    use v1::visibility::Kind;
    let visibility = offer.visibility.unwrap_or_default();
    let visibility = match Kind::try_from(visibility.kind) {
        Ok(Kind::Linked) => Visibility::Linked,
        Ok(Kind::Cluster) => Visibility::Cluster,
        Ok(Kind::Private | Kind::Unspecified) => Visibility::Private,
        Ok(Kind::Ids) => {
            bounded(visibility.ids.len(), Visibility::IDS_MAX, "visibility.ids")?;
            let ids = visibility.ids.iter().map(|id| id_of(NodeKind::Peer, id, "visibility.ids"));
            Visibility::Ids(ids.collect::<Result<_, _>>()?)
        }
        Err(_) => {
            return Err(ConvertError::new("visibility", format!("{} is not a visibility", visibility.kind)));
        }
    };
    Ok(ServiceOffer {
        name: parse(&offer.name, "services.name")?,
        backend: parse(&offer.backend, "services.backend")?,
        visibility,
        state: match v1::ServiceState::try_from(offer.state) {
            Ok(v1::ServiceState::Up) => ServiceState::Up,
            Ok(v1::ServiceState::Down) => ServiceState::Down,
            Ok(v1::ServiceState::Draining) => ServiceState::Draining,
            Err(_) => {
                return Err(ConvertError::new("state", format!("{} is not a service's state", offer.state)));
            }
        },
    })
}

fn offers_from(offers: Vec<v1::ServiceOffer>) -> Result<Vec<ServiceOffer>, ConvertError> {
    bounded(offers.len(), SERVICES_PER_PEER_MAX, "services")?;
    offers.into_iter().map(offer_from).collect()
}

/// The wire form of a Peer's report.
pub fn report_to(report: &PeerReport) -> v1::PeerReport {
    v1::PeerReport {
        seq: report.seq,
        name: report.name.clone(),
        zone: report.zone.clone(),
        net: Some(net_info_to(&report.net)),
        services: report.services.iter().map(offer_to).collect(),
    }
}

/// A received report.
///
/// # Errors
/// When it is missing, or a field is malformed or beyond its bound.
pub fn report_from(report: Option<v1::PeerReport>) -> Result<PeerReport, ConvertError> {
    let report = required(report, "report")?;
    Ok(PeerReport {
        seq: report.seq,
        name: name(&report.name, "name")?,
        zone: name(&report.zone, "zone")?,
        net: net_info_from(report.net)?,
        services: offers_from(report.services)?,
    })
}

/// The wire form of what an identity may do.
pub fn grants_to(grants: &Grants) -> v1::Grants {
    let texts = |patterns: &NamePatterns| patterns.iter().map(ToString::to_string).collect();
    v1::Grants {
        may_offer: texts(&grants.may_offer),
        may_reach: texts(&grants.may_reach),
        may_advertise: texts(&grants.may_advertise),
    }
}

/// Received grants. Where a message has none, everybody's are meant.
///
/// # Errors
/// When a pattern is none, or there are too many, or they are too long together.
pub fn grants_from(grants: v1::Grants) -> Result<Grants, ConvertError> {
    let patterns = |texts: &[String], field| {
        NamePatterns::from_texts(texts).map_err(|e| ConvertError::new(field, e.to_string()))
    };
    let grants = Grants {
        may_offer: patterns(&grants.may_offer, "may_offer")?,
        may_reach: patterns(&grants.may_reach, "may_reach")?,
        may_advertise: patterns(&grants.may_advertise, "may_advertise")?,
    };
    bounded(grants.bytes(), Grants::BYTES_MAX, "grants")?;
    Ok(grants)
}

/// The wire form of a row of table E.
pub fn entry_to(entry: &PeerEntry) -> v1::PeerEntry {
    v1::PeerEntry {
        id: entry.id.to_string(),
        incarnation: entry.incarnation.to_string(),
        seq: entry.report.seq,
        key_hash: entry.key_hash.0.to_vec().into(),
        name: entry.report.name.clone(),
        zone: entry.report.zone.clone(),
        net: Some(net_info_to(&entry.report.net)),
        services: entry.report.services.iter().map(offer_to).collect(),
        grants: (*entry.grants != Grants::default()).then(|| grants_to(&entry.grants)),
        grants_revision: entry.grants_revision,
    }
}

/// A received row of table E.
///
/// # Errors
/// When a field is malformed or beyond its bound.
pub fn entry_from(entry: v1::PeerEntry) -> Result<PeerEntry, ConvertError> {
    Ok(PeerEntry {
        id: id_of(NodeKind::Peer, &entry.id, "id")?,
        incarnation: parse(&entry.incarnation, "incarnation")?,
        key_hash: key_hash(&entry.key_hash)?,
        grants: Arc::new(entry.grants.map_or(Ok(Grants::default()), grants_from)?),
        grants_revision: entry.grants_revision,
        report: PeerReport {
            seq: entry.seq,
            name: name(&entry.name, "name")?,
            zone: name(&entry.zone, "zone")?,
            net: net_info_from(entry.net)?,
            services: offers_from(entry.services)?,
        },
    })
}

/// The wire form of a push of table E.
pub fn push_to(push: &PeerPush) -> v1::PeerPush {
    let entries = |entries: &[(NodeId, Arc<PeerEntry>)]| entries.iter().map(|(_, e)| entry_to(e)).collect();
    match push {
        Push::Snapshot(piece) => v1::PeerPush {
            revision: piece.revision,
            previous: 0,
            snapshot: true,
            first: piece.first,
            done: piece.done,
            changed: entries(&piece.entries),
            removed: Vec::new(),
        },
        Push::Delta(delta) => v1::PeerPush {
            revision: delta.revision,
            previous: delta.previous,
            snapshot: false,
            first: false,
            done: false,
            changed: entries(&delta.changed),
            removed: delta.removed.iter().map(ToString::to_string).collect(),
        },
    }
}

/// A received push of table E. Its size is bounded by what the transport takes in one message.
///
/// # Errors
/// When an entry is malformed, or a snapshot removes something.
pub fn push_from(push: v1::PeerPush) -> Result<PeerPush, ConvertError> {
    let entry = |entry| entry_from(entry).map(|entry| (entry.id, Arc::new(entry)));
    let changed: Vec<_> = push.changed.into_iter().map(entry).collect::<Result<_, _>>()?;
    if push.snapshot {
        if !push.removed.is_empty() {
            return Err(ConvertError::new("removed", "a snapshot removes nothing"));
        }
        let (revision, first, done) = (push.revision, push.first, push.done);
        return Ok(Push::Snapshot(Piece { revision, first, done, entries: changed }));
    }
    let removed = push.removed.iter().map(|id| id_of(NodeKind::Peer, id, "removed"));
    Ok(Push::Delta(Delta {
        previous: push.previous,
        revision: push.revision,
        changed,
        removed: removed.collect::<Result<_, _>>()?,
    }))
}

/// A piece of the revocations.
pub fn revocations_to(push: &RevocationPush) -> v1::Revocations {
    let key = |key: &RevokedKey| v1::RevokedKey {
        number: key.number,
        id: key.id.to_string(),
        key_hash: key.key_hash.0.to_vec().into(),
    };
    v1::Revocations { keys: push.keys.iter().map(key).collect(), up_to: push.up_to, done: push.done }
}

/// A piece of the revocations.
///
/// # Errors
/// When a key is malformed, or there are too many.
pub fn revocations_from(push: v1::Revocations) -> Result<RevocationPush, ConvertError> {
    bounded(push.keys.len(), RevocationPush::KEYS_MAX, "keys")?;
    let key = |key: v1::RevokedKey| {
        let (number, id) = (key.number, parse(&key.id, "id")?);
        Ok(RevokedKey { number, id, key_hash: key_hash(&key.key_hash)? })
    };
    let keys: Result<Vec<_>, ConvertError> = push.keys.into_iter().map(key).collect();
    Ok(RevocationPush { keys: keys?, up_to: push.up_to, done: push.done })
}

/// The wire form of a row of table F.
pub fn link_to(link: &LinkRow) -> v1::Link {
    let path = match link.path {
        None => v1::PathKind::Unspecified,
        Some(PathKind::Direct) => v1::PathKind::Direct,
        Some(PathKind::Punched) => v1::PathKind::Punched,
        Some(PathKind::Relayed) => v1::PathKind::Relayed,
    };
    v1::Link {
        id: link.id.to_string(),
        connected: link.path.is_some(),
        path: path.into(),
        address: link.address.clone(),
        rtt_us: link.rtt_us.unwrap_or(0),
        bytes_in: link.bytes_in,
        bytes_out: link.bytes_out,
        since_unix_ms: link.since.0,
        tunnels: link.tunnels,
        reason: link.reason.clone(),
    }
}

/// A received row of table F.
///
/// # Errors
/// When a field is malformed or beyond its bound.
pub fn link_from(link: v1::Link) -> Result<LinkRow, ConvertError> {
    bounded(link.reason.len(), REASON_MAX_BYTES, "reason")?;
    bounded(link.address.len(), 300, "address")?;
    let path = match v1::PathKind::try_from(link.path) {
        _ if !link.connected => None,
        Ok(v1::PathKind::Direct) => Some(PathKind::Direct),
        Ok(v1::PathKind::Punched) => Some(PathKind::Punched),
        Ok(v1::PathKind::Relayed) => Some(PathKind::Relayed),
        _ => {
            return Err(ConvertError::new(
                "path",
                format!("{} is not a path of a connected link", link.path),
            ));
        }
    };
    Ok(LinkRow {
        id: parse(&link.id, "id")?,
        path,
        address: link.address,
        rtt_us: Some(link.rtt_us).filter(|us| *us != 0),
        bytes_in: link.bytes_in,
        bytes_out: link.bytes_out,
        since: UnixMs(link.since_unix_ms),
        tunnels: link.tunnels,
        reason: link.reason,
    })
}

/// A received table F.
///
/// # Errors
/// When it is too long or a row is malformed.
pub fn links_from(links: Vec<v1::Link>) -> Result<Vec<LinkRow>, ConvertError> {
    bounded(links.len(), LINKS_PER_REPORT_MAX, "links")?;
    links.into_iter().map(link_from).collect()
}

#[cfg(test)]
mod tests;
