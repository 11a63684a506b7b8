//! Which CAs are trusted, and which of them signs (SPEC I6).

use p2p_common::ErrorCode;
use p2p_common::cluster_state::{CA_CERTIFICATE_MAX_BYTES, ClusterState, TRUSTED_CAS_MAX};
use p2p_common::command::Outcome;

use super::{Applying, refuse};

/// Replaces the bundle. One certificate at least stays, so that nobody loses all it trusts at once.
pub(super) fn change(
    state: &mut ClusterState,
    bundle: &[Vec<u8>],
    signer: usize,
    expected: u64,
) -> Applying<Outcome> {
    let bad = |message: &str| refuse(ErrorCode::BadRequest, message);
    if bundle.is_empty() || bundle.len() > TRUSTED_CAS_MAX || signer >= bundle.len() {
        return bad("a trust bundle has one or two CAs, and one of them signs");
    }
    if bundle.iter().any(|der| der.is_empty() || der.len() > CA_CERTIFICATE_MAX_BYTES) {
        return bad("a CA certificate is empty or too long");
    }
    if bundle.len() > 1 && bundle[0] == bundle[1] {
        return bad("the two CAs are the same");
    }
    if expected != state.trust_version {
        let version = state.trust_version;
        let message =
            format!("the trusted CAs have been changed: their version is {version} now; look again");
        return refuse(ErrorCode::Conflict, message);
    }
    if !bundle.iter().any(|der| state.trust_bundle.contains(der)) {
        return bad("none of these CAs is trusted now: nobody would know this cluster any more");
    }
    state.trust_bundle = bundle.to_vec();
    state.signer = signer;
    state.trust_version += 1;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::{ClusterId, Epoch};
    use uuid::Uuid;

    #[test]
    fn trust_moves_by_steps_and_never_all_at_once() {
        let (a, b, c) = (vec![1], vec![2], vec![3]);
        let mut state = ClusterState::new(ClusterId::new(Uuid::nil()), Epoch(1), vec![a.clone()]);
        let mut change = |bundle: &[&Vec<u8>], signer, expected| {
            let bundle: Vec<Vec<u8>> = bundle.iter().map(|der| (*der).clone()).collect();
            super::change(&mut state, &bundle, signer, expected).map_err(|(code, _)| code)
        };
        let (bad, done) = (Err(ErrorCode::BadRequest), Ok(Outcome::Done));
        assert_eq!(change(&[], 0, 0), bad);
        assert_eq!(change(&[&b], 0, 0), bad, "all at once");
        assert_eq!(change(&[&a, &b, &c], 0, 0), bad);
        assert_eq!(change(&[&a, &a], 0, 0), bad);
        assert_eq!(change(&[&a, &b], 2, 0), bad);
        assert_eq!(change(&[&a, &vec![0; CA_CERTIFICATE_MAX_BYTES + 1]], 0, 0), bad);
        assert_eq!(change(&[&a, &b], 0, 1), Err(ErrorCode::Conflict));
        assert_eq!(change(&[&a, &b], 0, 0), done);
        assert_eq!(change(&[&a, &b], 1, 1), done);
        assert_eq!(change(&[&b], 0, 2), done);
        assert_eq!((state.trust_bundle, state.signer, state.trust_version), (vec![b], 0, 3));
    }
}
