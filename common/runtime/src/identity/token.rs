//! [`Token`]: one word that lets a node enrol, or a person or program use a face without a certificate.
//!
//! ```text
//! p2p s 1 . base64url( cluster id 16 | CA fingerprint 32 | token id 8 | secret 32 | check 4 )
//!     │ └ version of the form            check: the first bytes of SHA-256 over all before it
//!     └ role: s server, p peer, o operator, r reader
//! ```
//!
//! The fingerprint lets its bearer recognise the cluster's CA before anything is trusted. Servers store the
//! hash of the secret alone. The secret has 256 random bits, so a plain hash is enough.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p2p_common::ClusterId;
use p2p_common::command::{TokenId, TokenRole};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::trust::CaFingerprint;

const CLUSTER_BYTES: usize = 16;
const FINGERPRINT_BYTES: usize = 32;
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
const BODY_BYTES: usize = CLUSTER_BYTES + FINGERPRINT_BYTES + ID_BYTES + SECRET_BYTES;

/// A token with its secret. Printed without it; [`Token::to_text`] gives the whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    role: TokenRole,
    cluster_id: ClusterId,
    ca_fingerprint: CaFingerprint,
    id: TokenId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// Why a text is no token. Never holds any of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It does not start like one.
    #[error("not a token: expected one word that starts with p2ps1., p2pp1., p2po1. or p2pr1.")]
    NotAToken,
    /// It is of a form this version does not know.
    #[error("the token's form is of another version of p2pcore: create one with `p2p-server token create`")]
    Version,
    /// A character that cannot be in it.
    #[error("the token has a character that no token has: copy it again, as one word")]
    Character,
    /// Too short or too long.
    #[error("the token is {found} bytes long instead of {expected}: copy it again, as a whole")]
    Length {
        /// How many bytes it decodes to.
        found: usize,
        /// How many it should.
        expected: usize,
    },
    /// The check does not fit.
    #[error("the token is damaged (its check does not fit): copy it again")]
    Check,
}

impl Token {
    /// Draws a new token of a cluster.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn mint(
        role: TokenRole,
        cluster_id: ClusterId,
        ca_fingerprint: CaFingerprint,
    ) -> Result<Self, getrandom::Error> {
        let mut id = [0u8; ID_BYTES];
        getrandom::fill(&mut id)?;
        let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
        getrandom::fill(&mut *secret)?;
        Ok(Token { role, cluster_id, ca_fingerprint, id: TokenId(u64::from_be_bytes(id)), secret })
    }

    /// What it opens.
    pub fn role(&self) -> TokenRole {
        self.role
    }

    /// Of which cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// By what its bearer knows the cluster's CA.
    pub fn ca_fingerprint(&self) -> CaFingerprint {
        self.ca_fingerprint
    }

    /// The same token for a cluster whose CA is another by now: the Servers know it by its id and secret alone.
    #[must_use]
    pub fn with_ca(self, ca_fingerprint: CaFingerprint) -> Self {
        Token { ca_fingerprint, ..self }
    }

    /// Its public half.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The secret half itself: for enrolment, inside TLS, to a Server whose CA the token names.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// SHA-256 of the secret half: what is stored, proposed and compared.
    pub fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(*self.secret).into()
    }

    /// Whether this token is the one whose secret was stored as `secret_hash`; takes the same time either way.
    pub fn matches(&self, secret_hash: &[u8; 32]) -> bool {
        use subtle::ConstantTimeEq;
        self.secret_hash().ct_eq(secret_hash).into()
    }

    /// The whole token as one word: a secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let prefix = prefix(self.role);
        let mut body = Zeroizing::new(Vec::with_capacity(BODY_BYTES + CHECK_BYTES));
        body.extend_from_slice(self.cluster_id.uuid().as_bytes());
        body.extend_from_slice(&self.ca_fingerprint.0);
        body.extend_from_slice(&self.id.0.to_be_bytes());
        body.extend_from_slice(&*self.secret);
        let check = check(prefix, &body);
        body.extend_from_slice(&check);
        let mut text = Zeroizing::new(String::with_capacity(prefix.len() + 1 + body.len().div_ceil(3) * 4));
        text.push_str(prefix);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(&*body, &mut text);
        text
    }
}

const fn prefix(role: TokenRole) -> &'static str {
    match role {
        TokenRole::Server => "p2ps1",
        TokenRole::Peer => "p2pp1",
        TokenRole::Operator => "p2po1",
        TokenRole::Reader => "p2pr1",
    }
}

fn check(prefix: &str, body: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = Sha256::new().chain_update(prefix).chain_update(body).finalize();
    let mut check = [0u8; CHECK_BYTES];
    check.copy_from_slice(&hash[..CHECK_BYTES]);
    check
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let (head, body) = text.split_once('.').ok_or(BadToken::NotAToken)?;
        let role = [TokenRole::Server, TokenRole::Peer, TokenRole::Operator, TokenRole::Reader]
            .into_iter()
            .find(|role| prefix(*role) == head);
        let role = match role {
            Some(role) => role,
            None => {
                let known = matches!(head.as_bytes(), [b'p', b'2', b'p', b's' | b'p' | b'o' | b'r', ..]);
                return Err(if known { BadToken::Version } else { BadToken::NotAToken });
            }
        };
        let body = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|e| match e {
            base64::DecodeError::InvalidByte(..) => BadToken::Character,
            // A cut text is as good as a short one: how base64 noticed says nothing to people.
            _ => BadToken::Length { found: body.len() * 3 / 4, expected: BODY_BYTES + CHECK_BYTES },
        })?);
        if body.len() != BODY_BYTES + CHECK_BYTES {
            return Err(BadToken::Length { found: body.len(), expected: BODY_BYTES + CHECK_BYTES });
        }
        let (body, given_check) = body.split_at(BODY_BYTES);
        if check(head, body) != given_check {
            return Err(BadToken::Check);
        }
        let mut fields = body;
        let cluster_id = ClusterId::new(Uuid::from_bytes(take(&mut fields)));
        let ca_fingerprint = CaFingerprint(take(&mut fields));
        let id = TokenId(u64::from_be_bytes(take(&mut fields)));
        let secret = Zeroizing::new(take(&mut fields));
        Ok(Token { role, cluster_id, ca_fingerprint, id, secret })
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> [u8; N] {
    let (field, rest) = from.split_first_chunk::<N>().expect("the length of the whole was checked");
    *from = rest;
    *field
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} token {}", self.role.as_str(), self.id)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("role", &self.role)
            .field("cluster_id", &self.cluster_id)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(role: TokenRole) -> Token {
        let cluster = ClusterId::new(Uuid::from_u128(7));
        Token::mint(role, cluster, CaFingerprint([9; 32])).unwrap()
    }

    #[test]
    fn every_role_round_trips_as_one_word() {
        for role in [TokenRole::Server, TokenRole::Peer, TokenRole::Operator, TokenRole::Reader] {
            let token = token(role);
            let text = token.to_text();
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{}", *text);
            assert_eq!(text.parse::<Token>().unwrap(), token);
            assert!(token.matches(&token.secret_hash()));
            assert!(!token.matches(&super::Token::secret_hash(&self::token(role))));
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let text = token(TokenRole::Peer).to_text();
        let parse = |text: &str| text.parse::<Token>().unwrap_err();
        assert_eq!(parse(""), BadToken::NotAToken);
        assert_eq!(parse("hello"), BadToken::NotAToken);
        assert_eq!(parse("hello.world"), BadToken::NotAToken);
        assert_eq!(parse(&text.replace("p2pp1.", "p2pp2.")), BadToken::Version);
        assert_eq!(parse(&format!("{} ", *text)), BadToken::Character);
        // A role is not changed by editing the text.
        assert_eq!(parse(&text.replace("p2pp1.", "p2ps1.")), BadToken::Check);
        let (head, last) = text.split_at(text.len() - 6);
        let flipped = if last.starts_with('A') { "B" } else { "A" };
        assert_eq!(parse(&format!("{head}{flipped}{}", &last[1..])), BadToken::Check);
    }

    #[test]
    fn every_prefix_is_an_error() {
        let text = token(TokenRole::Server).to_text();
        for end in 0..text.len() {
            assert!(text[..end].parse::<Token>().is_err(), "the first {end} bytes were taken for a token");
        }
        assert!(format!("{}AAAA", *text).parse::<Token>().is_err());
    }

    #[test]
    fn never_shows_its_secret() {
        let token = token(TokenRole::Operator);
        let text = token.to_text();
        let secret = &text[text.len() - 40..text.len() - 8];
        for shown in [format!("{token}"), format!("{token:?}"), format!("{token:#?}")] {
            assert!(!shown.contains(secret));
            assert!(shown.contains(&token.id().to_string()) || shown.contains(&token.id().0.to_string()));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in "(p2p[spor]1\\.)?[A-Za-z0-9_-]{0,140}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(&*token.to_text(), &text);
            }
        }
    }
}
