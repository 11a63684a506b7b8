//! Stable error codes as gRPC statuses, and back: the one map for every service and client.
//!
//! A refusal carries the number of its [`ErrorCode`] as metadata ([`CODE_KEY`]), so that a node gets the very code
//! back, and the nearest gRPC code for everyone else. UNAVAILABLE means: nothing happened, try again.

use p2p_common::ErrorCode;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::convert::ConvertError;

/// The metadata key of a refusal's stable code.
pub const CODE_KEY: &str = "p2p-code";

/// A refusal with its stable code, for people in `message`.
pub fn refuse(code: ErrorCode, message: impl Into<String>) -> Status {
    with_code(grpc_code(code), code, message)
}

/// A refusal of credentials: UNAUTHENTICATED whatever the reason, which the stable code tells.
pub fn refuse_credentials(code: ErrorCode, message: impl Into<String>) -> Status {
    with_code(Code::Unauthenticated, code, message)
}

/// The refusal of a message that makes no sense.
pub fn malformed(error: &ConvertError) -> Status {
    refuse(ErrorCode::BadRequest, error.to_string())
}

/// The stable code of a received status; `None` when no node of ours gave it: a broken connection, a proxy, an
/// unknown method.
pub fn code_of(status: &Status) -> Option<ErrorCode> {
    let number = status.metadata().get(CODE_KEY)?.to_str().ok()?.parse().ok()?;
    Some(ErrorCode::from_number(number))
}

fn with_code(grpc: Code, code: ErrorCode, message: impl Into<String>) -> Status {
    let mut status = Status::new(grpc, message);
    status.metadata_mut().insert(CODE_KEY, MetadataValue::from(code.number()));
    status
}

fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::BadRequest => Code::InvalidArgument,
        ErrorCode::Unauthenticated
        | ErrorCode::TokenUnknown
        | ErrorCode::TokenExpired
        | ErrorCode::Revoked
        | ErrorCode::CertificateExpired => Code::Unauthenticated,
        ErrorCode::Forbidden
        | ErrorCode::NotGranted
        | ErrorCode::TokenUsedUp
        | ErrorCode::TokenRole
        | ErrorCode::TokenBound => Code::PermissionDenied,
        ErrorCode::Unavailable
        | ErrorCode::NotLeader
        | ErrorCode::Draining
        | ErrorCode::OwnerOffline
        | ErrorCode::ServiceDown
        | ErrorCode::BackendRefused => Code::Unavailable,
        // In gRPC's words it may be returned even if the operation has completed.
        ErrorCode::OutcomeUnknown | ErrorCode::BackendTimeout => Code::DeadlineExceeded,
        ErrorCode::Exhausted => Code::ResourceExhausted,
        ErrorCode::NotFound | ErrorCode::ServiceUnknown => Code::NotFound,
        ErrorCode::VersionMismatch
        | ErrorCode::WrongCluster
        | ErrorCode::WrongEpoch
        | ErrorCode::WrongRecipient
        | ErrorCode::SplitHistory
        | ErrorCode::QuorumLost
        | ErrorCode::RemovedMember => Code::FailedPrecondition,
        ErrorCode::IdTaken => Code::AlreadyExists,
        ErrorCode::Replaced | ErrorCode::AlreadyRuns | ErrorCode::Conflict => Code::Aborted,
        ErrorCode::Internal => Code::Internal,
        // The enum grows; the test below asks for a row of its own.
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_row_and_comes_back() {
        for code in ErrorCode::ALL {
            let status = refuse(*code, "why");
            assert!(!matches!(status.code(), Code::Ok | Code::Unknown), "{code}");
            assert_eq!(code_of(&status), Some(*code));
            assert_eq!(code_of(&refuse_credentials(*code, "why")), Some(*code));
        }
        assert_eq!(refuse_credentials(ErrorCode::IdTaken, "").code(), Code::Unauthenticated);
    }

    #[test]
    fn what_is_not_ours_has_no_code() {
        assert_eq!(code_of(&Status::unavailable("the connection broke")), None);
        let mut status = Status::unavailable("");
        status.metadata_mut().insert(CODE_KEY, "many".parse().unwrap());
        assert_eq!(code_of(&status), None);
    }
}
