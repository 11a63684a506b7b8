//! Certificates and requests for them: whose they are is read without a panic, and what is signed says what was
//! granted and nothing of the request but its key.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use p2p_common::grants::{Grants, NamePatterns};
use p2p_common::{ClusterId, NodeId, NodeKind, UnixMs};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::identity::{NodeKey, PeerIdentity, TrustBundle, grants_of_certificate};
use uuid::Uuid;

fn ca() -> &'static ClusterCa {
    static CA: OnceLock<ClusterCa> = OnceLock::new();
    CA.get_or_init(|| {
        ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), UnixMs(1_700_000_000_000))
            .expect("there is randomness")
    })
}

fn request() -> &'static [u8] {
    static REQUEST: OnceLock<Vec<u8>> = OnceLock::new();
    REQUEST.get_or_init(|| {
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(2));
        NodeKey::generate().and_then(|key| key.certificate_request(id)).expect("there is randomness")
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 6 {
        0 => {
            let _ = PeerIdentity::of_certificate(data);
        }
        1 => {
            let two = data.len() / 2;
            let halves = [data[..two].to_vec(), data[two..].to_vec()];
            for bundle in [TrustBundle::from_der([data.to_vec()]), TrustBundle::from_der(halves)] {
                let Ok(bundle) = bundle else { continue };
                assert_eq!(TrustBundle::from_pem(bundle.to_pem().as_bytes()).ok(), Some(bundle));
            }
        }
        2 => {
            if let Ok(bundle) = TrustBundle::from_pem(data) {
                assert!((1..=TrustBundle::CERTIFICATES_MAX).contains(&bundle.certificates().len()));
            }
        }
        // What a certificate narrows stays narrow, whatever is made of it.
        3 => drop(grants_of_certificate(data)),
        4 => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let mut lists = text.splitn(3, ';').map(str::parse::<NamePatterns>);
            let (Some(Ok(may_offer)), Some(Ok(may_reach)), Some(Ok(may_advertise))) =
                (lists.next(), lists.next(), lists.next())
            else {
                return;
            };
            let grants = Grants { may_offer, may_reach, may_advertise };
            if grants.bytes() > Grants::BYTES_MAX {
                return;
            }
            let (id, request) = (NodeId::new(NodeKind::Peer, Uuid::from_u128(2)), request());
            let grant = CertificateGrant {
                grants: grants.clone(),
                ..CertificateGrant::new(id, UnixMs(1_700_000_000_000))
            };
            let signed = ca().sign(request, &grant).expect("our own request");
            assert_eq!(grants_of_certificate(&signed.certificate), grants);
        }
        _ => {
            let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(2));
            let grant = CertificateGrant::new(id, UnixMs(1_700_000_000_000));
            let Ok(signed) = ca().sign(data, &grant) else { return };
            let identity = PeerIdentity::of_certificate(&signed.certificate).expect("we signed it");
            assert_eq!((identity.node_id, identity.cluster_id), (id, ca().cluster_id()));
            assert_eq!(identity.key_hash, signed.key_hash);
        }
    }
});
