//! What the fuzz targets reach of this crate's insides: checks of requests that need nothing but the request. In no
//! other build, but for the unit tests', so that it keeps compiling.

use http::HeaderValue;
use p2p_proto::v1;
use p2p_runtime::identity::Token;

use crate::api::{enroll, gate, operator, peering};

/// The token in an `authorization` header of these bytes.
pub fn bearer(header: &[u8]) -> Option<Token> {
    gate::token_of(&HeaderValue::from_bytes(header).ok()?).ok()
}

/// Whether a token is made as asked.
pub fn token_asked_for(request: &v1::CreateTokenRequest) -> bool {
    operator::record(request, p2p_common::UnixMs(0)).is_ok()
}

/// The names of a Server's certificate.
pub fn server_names(addresses: &[String]) -> Option<Vec<String>> {
    enroll::names(addresses).ok()
}

/// Whether a Server that joins may have these addresses.
pub fn server_addresses(addresses: &[String]) -> bool {
    peering::addresses(addresses).is_ok()
}

/// Whether another Server's emergency revocations make sense.
pub fn emergencies(revocations: Vec<v1::EmergencyRevocation>) -> bool {
    crate::revocation::emergencies_from(revocations).is_ok()
}
