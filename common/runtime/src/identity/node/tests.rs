//! Identities that are made, enrolled, renewed and found again.

use super::*;
use crate::ca::{CertificateGrant, ClusterCa};
use crate::clock::unix_now;
use std::fs;

fn cluster() -> ClusterCa {
    ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), unix_now()).unwrap()
}

fn enrolment(ca: &ClusterCa, identity: &NodeIdentity) -> Enrolment {
    let request = identity.key().certificate_request(identity.id()).unwrap();
    let grant = CertificateGrant::new(identity.id(), unix_now());
    Enrolment {
        cluster_id: ca.cluster_id(),
        certificate: ca.sign(&request, &grant).unwrap().certificate,
        trust: ca.trust(),
    }
}

#[test]
fn the_epoch_is_kept_and_never_lowered() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let mut identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
    assert_eq!(identity.epoch(), Epoch(0));
    identity.keep_epoch(&dir, Epoch(3)).unwrap();
    identity.keep_epoch(&dir, Epoch(2)).unwrap();
    assert_eq!(NodeIdentity::load(dir.view()).unwrap().unwrap().epoch(), Epoch(3));
}

#[test]
fn is_the_same_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let first = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, Some("web")).unwrap();
    let again = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
    assert_eq!((first.id(), first.name()), (again.id(), "web"));
    assert_eq!(first.key().key_hash(), again.key().key_hash());
    let renamed = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, Some("shop")).unwrap();
    assert_eq!(renamed.name(), "shop");
    assert_eq!(NodeIdentity::load(dir.view()).unwrap().unwrap().name(), "shop");
}

#[test]
fn takes_the_id_it_is_given_and_no_other_later() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let id = NodeId::new(NodeKind::Server, Uuid::from_u128(5));
    let wrong = NodeIdentity::load_or_create(&dir, NodeKind::Peer, Some(id), None);
    assert!(matches!(wrong, Err(IdentityError::OtherKind { .. })));
    let identity = NodeIdentity::load_or_create(&dir, NodeKind::Server, Some(id), None).unwrap();
    assert_eq!(identity.id(), id);
    let other = NodeId::new(NodeKind::Server, Uuid::from_u128(6));
    let refused = NodeIdentity::load_or_create(&dir, NodeKind::Server, Some(other), None).unwrap_err();
    assert!(refused.to_string().contains(&id.to_string()), "{refused}");
    let refused = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap_err();
    assert!(matches!(refused, IdentityError::OtherKind { .. }), "{refused}");
}

#[test]
fn enrolment_survives_and_must_be_ours() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let ca = cluster();
    let mut identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
    let ours = enrolment(&ca, &identity);

    let other_tmp = tempfile::tempdir().unwrap();
    let other_dir = DataDir::open(other_tmp.path()).unwrap();
    let mut other = NodeIdentity::load_or_create(&other_dir, NodeKind::Peer, None, None).unwrap();
    assert!(matches!(other.enrol(&other_dir, ours.clone()), Err(IdentityError::NotOurs { .. })));
    assert!(other.enrolment().is_none());

    identity.enrol(&dir, ours.clone()).unwrap();
    let again = NodeIdentity::load(dir.view()).unwrap().unwrap();
    assert_eq!(again.enrolment(), Some(&ours));
}

#[test]
fn a_crash_in_the_middle_of_enrolment_leaves_it_to_do() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
    dir.write(TRUST_FILE, cluster().trust().to_pem().as_bytes(), FileMode::Public).unwrap();
    let again = NodeIdentity::load(dir.view()).unwrap().unwrap();
    assert_eq!(again.id(), identity.id());
    assert!(again.enrolment().is_none());
}

#[test]
fn damage_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let mut identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
    let ca = cluster();
    let ours = enrolment(&ca, &identity);
    identity.enrol(&dir, ours).unwrap();
    for file in [NODE_FILE, KEY_FILE, CERTIFICATE_FILE, TRUST_FILE] {
        let path = dir.view().join(file);
        let good = fs::read(&path).unwrap();
        for bad in [&b""[..], b"\xff\xfe", &good[..good.len() / 2]] {
            fs::write(&path, bad).unwrap();
            let refused = NodeIdentity::load(dir.view()).unwrap_err();
            assert!(refused.to_string().contains(file), "{file}: {refused}");
        }
        fs::write(&path, good).unwrap();
    }
    NodeIdentity::load(dir.view()).unwrap();
}

#[test]
fn refuses_names_nobody_can_print() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    for name in ["", "a\nb", &"x".repeat(Member::NAME_MAX_BYTES + 1)] {
        let refused = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, Some(name));
        assert!(matches!(refused, Err(IdentityError::Name { .. })), "{name:?}");
    }
}

#[test]
fn an_older_bundle_never_replaces_a_newer_one() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(tmp.path()).unwrap();
    let mut identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
    let (old, new) = (cluster(), cluster());
    let at = |epoch, version| TrustPosition { epoch: Epoch(epoch), version };
    assert!(!identity.follow_trust(&dir, new.trust(), at(1, 1)).unwrap(), "not enrolled");
    identity.enrol(&dir, enrolment(&old, &identity)).unwrap();
    assert!(identity.follow_trust(&dir, new.trust(), at(1, 2)).unwrap());
    assert!(!identity.follow_trust(&dir, old.trust(), at(1, 1)).unwrap());
    assert!(!identity.follow_trust(&dir, old.trust(), at(1, 2)).unwrap());
    let mut identity = NodeIdentity::load(dir.view()).unwrap().unwrap();
    assert_eq!((identity.trusted_as_of(), &identity.enrolment().unwrap().trust), (at(1, 2), &new.trust()));
    // A certificate from a Server that lags behind comes with a bundle that is not taken.
    let renewed = enrolment(&old, &identity);
    let kept = identity.renew(&dir, renewed.clone(), at(1, 1)).unwrap();
    assert_eq!((&kept.certificate, &kept.trust), (&renewed.certificate, &new.trust()));
    assert!(identity.follow_trust(&dir, old.trust(), at(2, 0)).unwrap(), "of a later epoch");
    assert_eq!(identity.trusted_as_of(), at(2, 0));
}
