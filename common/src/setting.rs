//! Settings of a cluster: few, known by name, typed, replicated (SPEC C3).
//!
//! A setting that nobody changed has its default and no revision. The state machine refuses values that
//! [`SettingName::check`] does, so whoever reads one finds it sound.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Every setting there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SettingName {
    /// What people call this cluster: free text.
    Description,
    /// For how long a voter may be unreachable before a learner takes its place (SPEC C4).
    VoterReplaceAfter,
    /// For how long a Peer's certificate holds (SPEC I5).
    PeerCertificateLifetime,
    /// For how long a Server's certificate holds (SPEC I5).
    ServerCertificateLifetime,
    /// For how long an expired certificate may still be renewed with its key (SPEC I5).
    CertificateRenewalGrace,
}

impl SettingName {
    /// All of them, by name.
    pub const ALL: [SettingName; 5] = [
        SettingName::CertificateRenewalGrace,
        SettingName::Description,
        SettingName::PeerCertificateLifetime,
        SettingName::ServerCertificateLifetime,
        SettingName::VoterReplaceAfter,
    ];
    /// A description has at most this many bytes.
    pub const DESCRIPTION_MAX_BYTES: usize = 1_024;
    /// A voter that is slow to restart keeps its vote ...
    pub const VOTER_REPLACE_AFTER_MIN: Duration = Duration::from_secs(5);
    /// ... and one that is away for a day is not waited for.
    pub const VOTER_REPLACE_AFTER_MAX: Duration = Duration::from_secs(86_400);
    /// Shorter lifetimes of certificates are for drills; this is the shortest that can be renewed in time.
    pub const CERTIFICATES_MIN: Duration = Duration::from_secs(5);
    /// Whoever was away for longer than a year enrols anew.
    pub const CERTIFICATES_MAX: Duration = Duration::from_secs(366 * 86_400);

    /// The name as it is typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            SettingName::Description => "description",
            SettingName::VoterReplaceAfter => "voter_replace_after",
            SettingName::PeerCertificateLifetime => "peer_certificate_lifetime",
            SettingName::ServerCertificateLifetime => "server_certificate_lifetime",
            SettingName::CertificateRenewalGrace => "certificate_renewal_grace",
        }
    }

    /// Its value while nobody has changed it.
    pub const fn default_value(self) -> &'static str {
        match self {
            SettingName::Description => "",
            SettingName::VoterReplaceAfter => "60s",
            SettingName::PeerCertificateLifetime => "168h",
            SettingName::ServerCertificateLifetime | SettingName::CertificateRenewalGrace => "2160h",
        }
    }

    /// What it may hold, for people.
    pub const fn help(self) -> &'static str {
        match self {
            SettingName::Description => "what people call this cluster: text of at most 1024 bytes",
            SettingName::VoterReplaceAfter => {
                "a voter unreachable for so long is replaced by a learner: 5s to 24h"
            }
            SettingName::PeerCertificateLifetime => {
                "certificates of peers hold for so long, and are renewed half way: 5s to 8784h"
            }
            SettingName::ServerCertificateLifetime => {
                "certificates of servers hold for so long, and are renewed half way: 5s to 8784h"
            }
            SettingName::CertificateRenewalGrace => {
                "a certificate that expired so long ago can still be renewed with its key: 5s to 8784h"
            }
        }
    }

    /// Whether it may hold `value`.
    ///
    /// # Errors
    /// When it may not; the error says what it may hold.
    pub fn check(self, value: &str) -> Result<(), BadSetting> {
        let bad = |reason: &'static str| BadSetting::Value { name: self, reason };
        match self {
            SettingName::Description => {
                if value.len() > Self::DESCRIPTION_MAX_BYTES {
                    return Err(bad("it is longer than 1024 bytes"));
                }
                if value.chars().any(char::is_control) {
                    return Err(bad("control characters are not allowed"));
                }
            }
            SettingName::VoterReplaceAfter => {
                let (min, max) = (Self::VOTER_REPLACE_AFTER_MIN, Self::VOTER_REPLACE_AFTER_MAX);
                if !(min..=max).contains(&duration(value).map_err(bad)?) {
                    return Err(bad("expected 5s to 24h"));
                }
            }
            SettingName::PeerCertificateLifetime
            | SettingName::ServerCertificateLifetime
            | SettingName::CertificateRenewalGrace => {
                let (min, max) = (Self::CERTIFICATES_MIN, Self::CERTIFICATES_MAX);
                if !(min..=max).contains(&duration(value).map_err(bad)?) {
                    return Err(bad("expected 5s to 8784h"));
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for SettingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SettingName {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        let named = Self::ALL.into_iter().find(|name| name.as_str() == text);
        named.ok_or_else(|| BadSetting::Unknown { text: text.chars().take(64).collect() })
    }
}

/// Why something is no setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// There is none of this name.
    #[error("there is no setting '{text}': the settings are {}", SettingName::ALL.map(SettingName::as_str).join(", "))]
    Unknown {
        /// The name, cut to 64 characters.
        text: String,
    },
    /// It cannot hold this value.
    #[error("{name} cannot be that: {reason}")]
    Value {
        /// Which setting.
        name: SettingName,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A setting somebody changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// What it holds.
    pub value: String,
    /// The number of its last change, counted over all settings.
    pub revision: u64,
}

fn duration(value: &str) -> Result<Duration, &'static str> {
    parse_duration(value).ok_or("expected a whole number and its unit, s, m or h, like 90s")
}

/// The duration of a text like `90s`, `5m`, `24h`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let unit_secs = match text.bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3_600,
        _ => return None,
    };
    let number = &text[..text.len() - 1];
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = plain.then(|| number.parse().ok())??;
    Some(Duration::from_secs(count.checked_mul(unit_secs)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_defaults_are_sound() {
        for name in SettingName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
            assert_eq!(name.check(name.default_value()), Ok(()));
        }
        let refused = "voter_replace".parse::<SettingName>().unwrap_err().to_string();
        assert!(SettingName::ALL.iter().all(|name| refused.contains(name.as_str())), "{refused}");
        let refused = "x".repeat(9_999).parse::<SettingName>().unwrap_err().to_string();
        assert!(refused.len() < 300);
    }

    #[test]
    fn values_are_checked() {
        for (name, value, sound) in [
            (SettingName::VoterReplaceAfter, "5s", true),
            (SettingName::VoterReplaceAfter, "2m", true),
            (SettingName::VoterReplaceAfter, "24h", true),
            (SettingName::VoterReplaceAfter, "86400s", true),
            (SettingName::VoterReplaceAfter, "4s", false),
            (SettingName::VoterReplaceAfter, "86401s", false),
            (SettingName::VoterReplaceAfter, "", false),
            (SettingName::VoterReplaceAfter, "s", false),
            (SettingName::VoterReplaceAfter, "60", false),
            (SettingName::VoterReplaceAfter, "+60s", false),
            (SettingName::VoterReplaceAfter, "1.5m", false),
            (SettingName::VoterReplaceAfter, "60ü", false),
            (SettingName::VoterReplaceAfter, "18446744073709551615h", false),
            (SettingName::PeerCertificateLifetime, "5s", true),
            (SettingName::PeerCertificateLifetime, "4s", false),
            (SettingName::ServerCertificateLifetime, "8784h", true),
            (SettingName::CertificateRenewalGrace, "8785h", false),
            (SettingName::Description, "", true),
            (SettingName::Description, "the lab in Zürich", true),
            (SettingName::Description, "two\nlines", false),
        ] {
            assert_eq!(name.check(value).is_ok(), sound, "{name} = {value:?}");
        }
        let longest = "x".repeat(SettingName::DESCRIPTION_MAX_BYTES);
        assert!(SettingName::Description.check(&longest).is_ok());
        assert!(SettingName::Description.check(&format!("{longest}x")).is_err());
    }
}
