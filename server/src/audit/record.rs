//! One line of the audit log.

use std::time::{Duration, UNIX_EPOCH};

use p2p_common::UnixMs;
use serde::{Deserialize, Serialize};

/// Longer texts are cut: names of things are shorter.
const TEXT_CHARS_MAX: usize = 256;

/// What was asked, by whom, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditRecord {
    /// When it was answered, by this Server's clock (RFC 3339).
    pub time: String,
    /// What the caller showed: `token ID`, `local` (the operator token in this Server's data directory), the Id of a
    /// node, `nobody`, or `unreadable` for what is no token.
    pub caller: String,
    /// Address and port it came from.
    pub remote: String,
    /// The call.
    pub method: String,
    /// What it was about; empty when it names nothing, or did not come that far.
    pub target: String,
    /// `ok`, the stable code of the refusal, or `abandoned` when the caller was gone before it was answered.
    pub outcome: String,
    /// So many calls of strangers before this one have no line.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl AuditRecord {
    /// The wall time as a record shows it.
    pub fn time_of(now: UnixMs) -> String {
        let at = UNIX_EPOCH.checked_add(Duration::from_millis(now.0)).unwrap_or(UNIX_EPOCH);
        humantime::format_rfc3339_millis(at).to_string()
    }

    /// The line, its end included.
    pub fn to_line(&self) -> Vec<u8> {
        let cut = |text: &str| -> String {
            text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
        };
        let record = AuditRecord { method: cut(&self.method), target: cut(&self.target), ..self.clone() };
        let mut line = serde_json::to_vec(&record).expect("a record is texts and a number");
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_whatever_its_target_says() {
        let record = AuditRecord {
            time: AuditRecord::time_of(UnixMs(1_700_000_000_123)),
            target: format!("a\n\"b\"\u{1b}{}", "é".repeat(1_000)),
            ..AuditRecord::default()
        };
        let line = record.to_line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let again: AuditRecord = serde_json::from_slice(&line).unwrap();
        assert_eq!(again.time, "2023-11-14T22:13:20.123Z");
        assert!(again.target.starts_with("a?\"b\"?é") && again.target.chars().count() == TEXT_CHARS_MAX);
        assert_eq!(AuditRecord::time_of(UnixMs(0)), "1970-01-01T00:00:00.000Z");
    }
}
