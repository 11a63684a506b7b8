//! Grants in a Peer's certificate: for those who meet the Peer where no Server says what it may do (SPEC I8).
//!
//! A private extension that is not critical, left out when the grants are everybody's:
//!
//! ```text
//! SEQUENCE { may_offer UTF8String, may_reach UTF8String, may_advertise UTF8String }   comma-separated patterns
//! ```
//!
//! What Servers say goes before it: a certificate lives as long as it was signed for, and grants change at once. An
//! extension that cannot be read lets nothing through: it was put there to narrow.

use p2p_common::grants::{Grants, NamePatterns};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Its number: one random arc below 2.25, where nobody needs to ask for one (ITU-T X.667).
pub(crate) const GRANTS_OID: &[u64] = &[2, 25, 6_364_219_715_553_724_733];

const SEQUENCE: u8 = 0x30;
const UTF8_STRING: u8 = 0x0C;

/// What a certificate (DER) says that its Peer may do; everybody's grants when it says nothing. Verifies nothing.
pub fn grants_of_certificate(der: &[u8]) -> Grants {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Grants::none() };
    let oid = x509_parser::asn1_rs::Oid::from(GRANTS_OID).expect("a constant, which a test reads back");
    match certificate.get_extension_unique(&oid) {
        Ok(None) => Grants::default(),
        Ok(Some(extension)) => decode(extension.value).unwrap_or_else(Grants::none),
        Err(_) => Grants::none(),
    }
}

/// The content of the extension; none for everybody's grants.
pub(crate) fn encode(grants: &Grants) -> Option<Vec<u8>> {
    if *grants == Grants::default() {
        return None;
    }
    let lists = [&grants.may_offer, &grants.may_reach, &grants.may_advertise];
    let texts: Vec<u8> =
        lists.into_iter().flat_map(|patterns| value(UTF8_STRING, patterns.to_string().as_bytes())).collect();
    Some(value(SEQUENCE, &texts))
}

fn decode(content: &[u8]) -> Option<Grants> {
    let (texts, rest) = split(SEQUENCE, content)?;
    let (may_offer, texts) = patterns(texts)?;
    let (may_reach, texts) = patterns(texts)?;
    let (may_advertise, texts) = patterns(texts)?;
    let grants = Grants { may_offer, may_reach, may_advertise };
    (rest.is_empty() && texts.is_empty() && grants.bytes() <= Grants::BYTES_MAX).then_some(grants)
}

fn patterns(from: &[u8]) -> Option<(NamePatterns, &[u8])> {
    let (text, rest) = split(UTF8_STRING, from)?;
    Some((std::str::from_utf8(text).ok()?.parse().ok()?, rest))
}

/// One value in DER: tag, length, content.
fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = content.len().to_be_bytes();
            let length: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | u8::try_from(length.len()).expect("a usize has at most 8 bytes"));
            out.extend(length);
        }
    }
    out.extend_from_slice(content);
    out
}

/// The content of the value of kind `tag` that `from` begins with, and what follows.
fn split(tag: u8, from: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, rest) = from.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *found != tag {
        return None;
    }
    let (length, rest) = match *first {
        short @ 0..=0x7F => (usize::from(short), rest),
        // Two bytes of length are more than there may be.
        long @ 0x81..=0x82 => {
            let (length, rest) = rest.split_at_checked(usize::from(long & 0x7F))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, CustomExtension, KeyPair};

    fn certificate(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        let custom = |content: &Vec<u8>| CustomExtension::from_oid_content(GRANTS_OID, content.clone());
        params.custom_extensions = extensions.iter().map(custom).collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn narrow() -> Grants {
        let long = vec!["x".repeat(250); 15].join(",");
        Grants {
            may_offer: "team-a-*,db.example".parse().unwrap(),
            may_reach: NamePatterns::none(),
            may_advertise: long.parse().unwrap(),
        }
    }

    #[test]
    fn grants_come_back_and_those_of_everybody_take_no_room() {
        assert_eq!(encode(&Grants::default()), None);
        assert_eq!(grants_of_certificate(&certificate(&[])), Grants::default());
        for grants in [narrow(), Grants::none()] {
            let content = encode(&grants).unwrap();
            assert_eq!(grants_of_certificate(&certificate(&[content])), grants);
        }
    }

    #[test]
    fn what_cannot_be_read_lets_nothing_through() {
        let good = encode(&narrow()).unwrap();
        assert_eq!(grants_of_certificate(b"junk"), Grants::none());
        assert_eq!(grants_of_certificate(&certificate(&[good.clone(), good.clone()])), Grants::none());
        for end in 0..good.len() {
            assert_eq!(decode(&good[..end]), None, "{end}");
        }
        let over = Grants { may_offer: vec!["x".repeat(255); 17].join(",").parse().unwrap(), ..narrow() };
        assert_eq!(decode(&encode(&over).unwrap()), None);
        assert_eq!(decode(&[good, vec![0]].concat()), None, "bytes behind it");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&content);
            let _ = grants_of_certificate(&content);
        }

        #[test]
        fn a_flipped_byte_is_read_without_harm(at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut content = encode(&narrow()).unwrap();
            let at = at.index(content.len());
            content[at] ^= flip;
            let _ = decode(&content);
        }
    }
}
