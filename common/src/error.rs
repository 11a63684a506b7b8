//! Stable error codes that cross the wire. One place maps them to gRPC, one to HTTP.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal;)*) => {
        /// Why something was refused or failed; stable across versions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),*];

            /// The number on the wire.
            pub const fn number(self) -> u32 {
                match self { $(ErrorCode::$variant => $number,)* }
            }

            /// The name in logs, metrics and error texts.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $text,)* }
            }

            /// The code of a number from the wire; unknown numbers are [`ErrorCode::Internal`].
            pub fn from_number(number: u32) -> ErrorCode {
                match number { $($number => ErrorCode::$variant,)* _ => ErrorCode::Internal }
            }
        }
    };
}

codes! {
    /// A bug or an unknown code of a newer version.
    Internal = 1, "internal";
    /// The request makes no sense.
    BadRequest = 2, "bad_request";
    /// No credentials, or ones that are not known.
    Unauthenticated = 3, "unauthenticated";
    /// Known, but not allowed.
    Forbidden = 4, "forbidden";
    /// No quorum, no leader, starting or stopping: try again.
    Unavailable = 5, "unavailable";
    /// A bound is reached.
    Exhausted = 6, "exhausted";
    /// There is no such thing.
    NotFound = 7, "not_found";
    /// Whether it happened is not known: ask, or repeat with the same request id.
    OutcomeUnknown = 8, "outcome_unknown";
    /// This Server does not lead.
    NotLeader = 9, "not_leader";
    /// Somebody changed it meanwhile: read again, then decide.
    Conflict = 10, "conflict";
    /// A change of the servers would leave too few that can vote, or nobody that can lead.
    QuorumLost = 11, "quorum_lost";
    /// The two nodes share no wire version.
    VersionMismatch = 20, "version_mismatch";
    /// The other node belongs to another cluster.
    WrongCluster = 21, "wrong_cluster";
    /// The other node lives in another epoch.
    WrongEpoch = 22, "wrong_epoch";
    /// The message is for another Id.
    WrongRecipient = 23, "wrong_recipient";
    /// The Server was taken out of table C.
    RemovedMember = 24, "removed_member";
    /// A newer session or run of the same Id has taken over.
    Replaced = 25, "replaced";
    /// The other node lives in the same epoch, begun by another recovery: two histories of one cluster.
    SplitHistory = 26, "split_history";
    /// No such token.
    TokenUnknown = 30, "token_unknown";
    /// The token's time is over.
    TokenExpired = 31, "token_expired";
    /// The token has no uses left.
    TokenUsedUp = 32, "token_used_up";
    /// The token is for another role.
    TokenRole = 33, "token_role";
    /// The token is for another Id.
    TokenBound = 34, "token_bound";
    /// The Id is bound to another key.
    IdTaken = 35, "id_taken";
    /// The key opens nothing any more.
    Revoked = 36, "revoked";
    /// The certificate's time is over: it must be renewed first.
    CertificateExpired = 37, "certificate_expired";
    /// The identity's grants do not let it.
    NotGranted = 38, "not_granted";
    /// No such service.
    ServiceUnknown = 40, "service_unknown";
    /// The service's backend did not take the connection.
    BackendRefused = 41, "backend_refused";
    /// The service's backend did not answer in time.
    BackendTimeout = 42, "backend_timeout";
    /// The owner of the service is not connected.
    OwnerOffline = 43, "owner_offline";
    /// The node is stopping.
    Draining = 44, "draining";
    /// The owner has taken this forward up already: it came twice, on two ways.
    AlreadyRuns = 45, "already_runs";
    /// The owner of the service says that it does not run now, or takes no more work.
    ServiceDown = 46, "service_down";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_unique_and_come_back() {
        let numbers: BTreeSet<u32> = ErrorCode::ALL.iter().map(|c| c.number()).collect();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), *code);
        }
        assert_eq!(ErrorCode::from_number(u32::MAX), ErrorCode::Internal);
    }
}
