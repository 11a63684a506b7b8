//! What an identity may do beyond being known: [`Grants`], in patterns of names (SPEC I8, P2).
//!
//! An operator puts them on a token, enrolment copies them to the identity, Servers push them with each Peer's entry.
//! Visibility hides; grants forbid. Whoever checks holds the name already: nothing here looks anything up.

use std::fmt;
use std::str::FromStr;

/// A name with `*` for any run of characters, dots too; case does not count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamePattern(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a name pattern: 1 to {} visible ASCII characters without commas; * stands for any run of characters",
    NamePattern::MAX_BYTES
)]
pub struct BadPattern {
    /// The refused text, cut to 300 characters.
    pub text: String,
}

impl NamePattern {
    /// The longest pattern in bytes: a service's name, or a host name with its port.
    pub const MAX_BYTES: usize = 260;

    /// The pattern as text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `name` fits. At most (bytes of the pattern) x (bytes of the name) steps.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let same = |at: usize, byte: u8| pattern.get(at).is_some_and(|p| *p == byte.to_ascii_lowercase());
        let (mut p, mut n) = (0, 0);
        // Behind the last `*` seen, and how far it reaches so far: only the last one ever needs to grow.
        let mut star: Option<(usize, usize)> = None;
        while let Some(byte) = name.get(n) {
            if pattern.get(p) == Some(&b'*') {
                p += 1;
                star = Some((p, n));
            } else if same(p, *byte) {
                (p, n) = (p + 1, n + 1);
            } else if let Some((behind, reaches)) = star {
                (p, n) = (behind, reaches + 1);
                star = Some((behind, n));
            } else {
                return false;
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for NamePattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let fits = !text.is_empty()
            && text.len() <= Self::MAX_BYTES
            && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
        if !fits {
            return Err(BadPattern { text: text.chars().take(300).collect() });
        }
        Ok(NamePattern(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Patterns of which one must fit; none lets nothing through.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NamePatterns(Vec<NamePattern>);

/// Why something is no list of patterns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPatterns {
    /// One of them is none.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// Too many.
    #[error("{found} name patterns are more than {}", NamePatterns::MAX)]
    TooMany {
        /// How many there were.
        found: usize,
    },
}

impl NamePatterns {
    /// At most this many patterns.
    pub const MAX: usize = 32;

    /// Lets every name through.
    pub fn all() -> Self {
        NamePatterns(vec![NamePattern("*".to_owned())])
    }

    /// Lets no name through.
    pub const fn none() -> Self {
        NamePatterns(Vec::new())
    }

    /// Takes texts, as the wire and the store carry them.
    ///
    /// # Errors
    /// When one is no pattern, or there are too many.
    pub fn from_texts<S: AsRef<str>>(texts: &[S]) -> Result<Self, BadPatterns> {
        if texts.len() > Self::MAX {
            return Err(BadPatterns::TooMany { found: texts.len() });
        }
        let patterns = texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>()?;
        Ok(NamePatterns(patterns))
    }

    /// Whether one of them fits `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &NamePattern> {
        self.0.iter()
    }

    /// Whether nothing fits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Comma separated, as it is typed; empty is none.
impl FromStr for NamePatterns {
    type Err = BadPatterns;

    fn from_str(text: &str) -> Result<Self, BadPatterns> {
        let texts: Vec<&str> = text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
        Self::from_texts(&texts)
    }
}

impl fmt::Display for NamePatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pattern) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{pattern}")?;
        }
        Ok(())
    }
}

/// What an identity may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Grants {
    /// Services it may offer to others.
    pub may_offer: NamePatterns,
    /// Services of others that it may reach.
    pub may_reach: NamePatterns,
    /// Public addresses, `host:port`, it may name as its own besides the one Servers see it at.
    pub may_advertise: NamePatterns,
}

impl Grants {
    /// At most so many bytes of patterns: they travel with every entry of table E, and in certificates.
    pub const BYTES_MAX: usize = 4_096;

    /// The bytes of all patterns together.
    pub fn bytes(&self) -> usize {
        let lists = [&self.may_offer, &self.may_reach, &self.may_advertise];
        lists.into_iter().flat_map(NamePatterns::iter).map(|pattern| pattern.as_str().len()).sum()
    }

    /// Lets nothing through.
    pub const fn none() -> Self {
        const NONE: NamePatterns = NamePatterns::none();
        Grants { may_offer: NONE, may_reach: NONE, may_advertise: NONE }
    }
}

impl Default for Grants {
    /// Every service; no address but the one that is seen.
    fn default() -> Self {
        let (may_offer, may_reach) = (NamePatterns::all(), NamePatterns::all());
        Grants { may_offer, may_reach, may_advertise: NamePatterns::none() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<NamePattern>().unwrap().matches(name)
    }

    #[test]
    fn a_star_is_any_run_and_case_does_not_count() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "a.b", true),
            ("web", "web", true),
            ("Web", "wEB", true),
            ("web", "webs", false),
            ("web", "we", false),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("team-a-*", "team-a-", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**x", "x", true),
            ("x**", "xy", true),
            ("*ab", "aab", true),
            ("edge.example:443", "EDGE.example:443", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_longer_than_the_product() {
        let pattern = "*a".repeat(NamePattern::MAX_BYTES / 2);
        assert!(!matches(&pattern, &format!("{}b", "a".repeat(252))));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "a b", "a,b", "a\n", "ü", &"x".repeat(NamePattern::MAX_BYTES + 1)] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
        }
        let many = vec!["a"; NamePatterns::MAX + 1];
        assert_eq!(NamePatterns::from_texts(&many), Err(BadPatterns::TooMany { found: many.len() }));
        assert!(NamePatterns::from_texts(&many[1..]).is_ok());
    }

    #[test]
    fn lists_come_back_from_their_text() {
        for (text, shown) in [("", ""), ("*", "*"), (" A.b , *.c,", "a.b,*.c")] {
            let patterns: NamePatterns = text.parse().unwrap();
            assert_eq!(patterns.to_string(), shown);
            assert_eq!(shown.parse(), Ok(patterns));
        }
        assert!(!NamePatterns::none().matches("a") && NamePatterns::all().matches("a"));
        let grants = Grants::default();
        assert!(grants.may_offer.matches("a") && grants.may_reach.matches("a"));
        assert!(!grants.may_advertise.matches("a:1"));
        assert_eq!((grants.bytes(), Grants::none().bytes()), (2, 0));
    }

    proptest::proptest! {
        /// As the definition says: split at the stars, the pieces stand in order.
        #[test]
        fn matching_is_what_the_definition_says(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
            fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
                match pattern.split_first() {
                    None => name.is_empty(),
                    Some((b'*', rest)) => (0..=name.len()).any(|skip| by_definition(rest, &name[skip..])),
                    Some((p, rest)) => {
                        name.split_first().is_some_and(|(n, name)| p == n && by_definition(rest, name))
                    }
                }
            }
            proptest::prop_assert_eq!(matches(&pattern, &name), by_definition(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
