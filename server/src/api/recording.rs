//! Calls of operators on their way into the audit log, whatever becomes of them: answered, refused, or left by a
//! caller that did not wait.

use http::HeaderValue;
use p2p_common::{ErrorCode, Now};
use p2p_proto::status::CODE_KEY;
use p2p_runtime::clock::unix_now;
use p2p_runtime::grpc::CallerInfo;
use p2p_runtime::tls::Face;
use tonic::Code;

use super::gate::token_of;
use crate::audit::{AuditLog, AuditRecord, AuditTarget};

/// What only operators may call, all of it recorded.
const RECORDED: &str = "/p2p.v1.Operator/";
/// What is left out of a record of a method.
const PACKAGE: &str = "/p2p.v1.";
/// The outcome of a call whose caller was gone before it was answered: it may have been done.
const ABANDONED: &str = "abandoned";

/// A call that is to be recorded.
#[derive(Debug)]
pub(super) struct Recording {
    audit: AuditLog,
    record: AuditRecord,
    target: AuditTarget,
    /// It was let through and has no record yet.
    under_way: bool,
}

impl Recording {
    /// Begins with a call, if it is one that is recorded. `local_operator` is the hash of the secret of the token in
    /// this Server's data directory.
    pub(super) fn begin(
        audit: &AuditLog,
        method: &str,
        info: Option<&CallerInfo>,
        bearer: Option<&HeaderValue>,
        local_operator: &[u8; 32],
    ) -> Option<Self> {
        if !method.starts_with(RECORDED) {
            return None;
        }
        let node = info.and_then(|info| match info.face {
            Face::Node(identity) => Some(identity.node_id.to_string()),
            _ => None,
        });
        let caller = node.unwrap_or_else(|| match bearer.map(token_of) {
            None => "nobody".to_owned(),
            Some(Err(_)) => "unreadable".to_owned(),
            Some(Ok(token)) if token.matches(local_operator) => "local".to_owned(),
            Some(Ok(token)) => format!("token {}", token.id()),
        });
        let record = AuditRecord {
            caller,
            remote: info.map(|info| info.remote.to_string()).unwrap_or_default(),
            method: method.strip_prefix(PACKAGE).unwrap_or(method).to_owned(),
            ..AuditRecord::default()
        };
        Some(Recording { audit: audit.clone(), record, target: AuditTarget::default(), under_way: false })
    }

    /// It goes on to its handler, which says in this what it is about.
    pub(super) fn admitted(&mut self) -> AuditTarget {
        self.under_way = true;
        self.target.clone()
    }

    /// Its credentials were refused.
    pub(super) fn refused(mut self, status: &tonic::Status, now: Now) {
        let code = p2p_proto::status::code_of(status);
        self.finish(code.map_or("refused", ErrorCode::as_str));
        self.audit.record_stranger(std::mem::take(&mut self.record), now);
    }

    /// It was answered, by the head of this response; done when that is on record.
    pub(super) async fn answered(mut self, headers: &http::HeaderMap, code: Code) {
        let stable = headers.get(CODE_KEY).and_then(|code| code.to_str().ok()?.parse().ok());
        match (code, stable) {
            (Code::Ok, _) => self.finish("ok"),
            (_, Some(stable)) => self.finish(ErrorCode::from_number(stable).as_str()),
            (code, None) => self.finish(&format!("{code:?}").to_lowercase()),
        }
        let record = std::mem::take(&mut self.record);
        self.audit.record(record).await;
    }

    fn finish(&mut self, outcome: &str) {
        self.under_way = false;
        self.record.time = AuditRecord::time_of(unix_now());
        self.record.target = self.target.text().to_owned();
        self.record.outcome = outcome.to_owned();
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.under_way {
            self.finish(ABANDONED);
            self.audit.record_later(std::mem::take(&mut self.record));
        }
    }
}
