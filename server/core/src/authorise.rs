//! Who may call what: the role matrix as data, and the check of bearer tokens.
//!
//! The API port serves everyone (SPEC I4); what a caller proved says which [`CallerKind`] it is: a client
//! certificate makes a Peer or a Server, a bearer token an operator or a reader, nothing makes it anonymous. Every
//! method is closed to everyone [`METHODS`] does not name.
//!
//! It does not authenticate: certificates are checked by TLS and [`check_identity`](crate::check_identity), the
//! secret half of a token is hashed by the shell.

use p2p_common::ErrorCode;
use p2p_common::UnixMs;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{TokenId, TokenRole};

/// What a caller has proved to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallerKind {
    /// Nothing.
    Anonymous,
    /// A Peer, by its certificate.
    Peer,
    /// A Server, by its certificate.
    Server,
    /// A person or program that may look, by its token.
    Reader,
    /// A person or program that may change things, by its token.
    Operator,
}

impl CallerKind {
    /// The kind in logs and error texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            CallerKind::Anonymous => "anonymous",
            CallerKind::Peer => "peer",
            CallerKind::Server => "server",
            CallerKind::Reader => "reader",
            CallerKind::Operator => "operator",
        }
    }
}

use CallerKind::{Anonymous, Operator, Peer, Reader, Server};

/// Whoever has proved anything.
const KNOWN: &[CallerKind] = &[Peer, Server, Reader, Operator];
/// Health tells nothing but "serving", and load balancers have no credentials.
const ANYONE: &[CallerKind] = &[Anonymous, Peer, Server, Reader, Operator];
/// A node enrols before it has a certificate, and again when it lost it.
const ENROLLING: &[CallerKind] = &[Anonymous, Peer, Server];

/// Every method of the API port and who may call it.
pub const METHODS: &[(&str, &[CallerKind])] = &[
    ("/p2p.v1.Enroll/Enroll", ENROLLING),
    ("/p2p.v1.Enroll/Renew", &[Peer, Server]),
    ("/p2p.v1.Session/Attach", &[Peer]),
    ("/p2p.v1.Cluster/GetMaster", KNOWN),
    ("/p2p.v1.Cluster/WatchMaster", KNOWN),
    ("/p2p.v1.Cluster/ListMembers", KNOWN),
    ("/p2p.v1.Cluster/ListSettings", KNOWN),
    ("/p2p.v1.Cluster/GetStatus", KNOWN),
    ("/p2p.v1.Cluster/ListPeers", KNOWN),
    ("/p2p.v1.Cluster/ListServices", KNOWN),
    ("/p2p.v1.Operator/CreateToken", &[Operator]),
    ("/p2p.v1.Operator/ListTokens", &[Operator]),
    ("/p2p.v1.Operator/RevokeToken", &[Operator]),
    ("/p2p.v1.Operator/ListIdentities", &[Operator]),
    ("/p2p.v1.Operator/ChangeGrants", &[Operator]),
    ("/p2p.v1.Operator/ResetIdentity", &[Operator]),
    ("/p2p.v1.Operator/IssueCertificate", &[Operator]),
    ("/p2p.v1.Operator/ChangeSetting", &[Operator]),
    ("/p2p.v1.Operator/Revoke", &[Operator]),
    ("/p2p.v1.Operator/ListRevocations", &[Operator]),
    ("/p2p.v1.Operator/GetCaStatus", &[Operator]),
    ("/p2p.v1.Operator/RotateCa", &[Operator]),
    ("/p2p.v1.Operator/Backup", &[Operator]),
    ("/p2p.v1.Operator/TransferMaster", &[Operator]),
    ("/p2p.v1.Operator/RemoveMember", &[Operator]),
    ("/p2p.v1.Peering/Join", &[Server]),
    ("/p2p.v1.Peering/FetchCaKey", &[Server]),
    ("/p2p.v1.Peering/Propose", &[Server]),
    ("/p2p.v1.Peering/Transfer", &[Server]),
    ("/p2p.v1.Peering/Remove", &[Server]),
    ("/p2p.v1.Peering/Progress", &[Server]),
    ("/p2p.v1.Peering/Emergency", &[Server]),
    ("/p2p.v1.Raft/Stream", &[Server]),
    ("/p2p.v1.Raft/Send", &[Server]),
    ("/p2p.v1.Raft/SendSnapshot", &[Server]),
    ("/p2p.v1.Raft/Probe", &[Server]),
    ("/grpc.health.v1.Health/Check", ANYONE),
    ("/grpc.health.v1.Health/Watch", ANYONE),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", KNOWN),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", KNOWN),
];

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallRefused {
    /// The caller has shown nothing.
    #[error("{method} needs credentials: a node's certificate, or an operator's or reader's token")]
    Anonymous {
        /// The path of the method.
        method: String,
    },
    /// The caller is known but may not.
    #[error("{method} is not for the role {}", .caller.as_str())]
    Forbidden {
        /// The path of the method.
        method: String,
        /// What the caller is.
        caller: CallerKind,
    },
}

impl CallRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            CallRefused::Anonymous { .. } => ErrorCode::Unauthenticated,
            CallRefused::Forbidden { .. } => ErrorCode::Forbidden,
        }
    }
}

/// Whether `caller` may call `method`, a gRPC path like `/package.Service/Method`.
///
/// # Errors
/// When it may not, also when there is no such method.
pub fn check_call(caller: CallerKind, method: &str) -> Result<(), CallRefused> {
    let row = METHODS.iter().find(|(path, _)| *path == method);
    if row.is_some_and(|(_, allowed)| allowed.contains(&caller)) {
        return Ok(());
    }
    let method = method.chars().take(METHOD_SHOWN_CHARS).collect();
    Err(match caller {
        Anonymous => CallRefused::Anonymous { method },
        caller => CallRefused::Forbidden { method, caller },
    })
}

/// How much of a method's path, which the caller chose, is repeated in an error.
const METHOD_SHOWN_CHARS: usize = 128;

/// Why a bearer token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// No such token, or not its secret: telling which would help guessing.
    #[error("no such token: was it mistyped or revoked?")]
    Unknown,
    /// Its time is over.
    #[error("the token expired at {at} (Unix ms): create another")]
    Expired {
        /// When.
        at: UnixMs,
    },
    /// It is a join token.
    #[error("the token enrols a {}: calls need one of role operator or reader", .role.as_str())]
    Role {
        /// What it is for.
        role: TokenRole,
    },
}

impl TokenRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            TokenRefused::Unknown => ErrorCode::TokenUnknown,
            TokenRefused::Expired { .. } => ErrorCode::TokenExpired,
            TokenRefused::Role { .. } => ErrorCode::TokenRole,
        }
    }
}

/// What the bearer of token `id` may act as. `secret_hash` is SHA-256 of the secret half it showed.
///
/// # Errors
/// When the token is unknown, its secret another, its time over, or it is a join token.
pub fn check_token(
    state: &ClusterState,
    id: TokenId,
    secret_hash: &[u8; 32],
    now: UnixMs,
) -> Result<CallerKind, TokenRefused> {
    let token = state.tokens.get(&id).filter(|token| same_bytes(&token.secret_hash, secret_hash));
    let token = token.ok_or(TokenRefused::Unknown)?;
    if now > token.expires_at {
        return Err(TokenRefused::Expired { at: token.expires_at });
    }
    match token.role {
        TokenRole::Operator => Ok(Operator),
        TokenRole::Reader => Ok(Reader),
        role @ (TokenRole::Server | TokenRole::Peer) => Err(TokenRefused::Role { role }),
    }
}

/// Compares in a time that does not depend on where the first difference is.
fn same_bytes(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::command::TokenRecord;
    use p2p_common::grants::Grants;
    use p2p_common::shared::SharedSet;
    use p2p_common::{ClusterId, Epoch};
    use std::collections::BTreeSet;
    use uuid::Uuid;

    const PROTOCOL: &[&str] = &[
        include_str!("../../../proto/p2p/v1/cluster.proto"),
        include_str!("../../../proto/p2p/v1/enroll.proto"),
        include_str!("../../../proto/p2p/v1/raft.proto"),
        include_str!("../../../proto/p2p/v1/session.proto"),
    ];

    fn rpcs_of_the_protocol() -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        for file in PROTOCOL {
            let mut service = String::new();
            for line in file.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("service ") {
                    service = rest.trim_end_matches([' ', '{']).to_owned();
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    let method = rest.split('(').next().unwrap_or_default();
                    paths.insert(format!("/p2p.v1.{service}/{method}"));
                }
            }
        }
        paths
    }

    #[test]
    fn every_method_of_the_protocol_has_one_row_and_no_row_is_left_over() {
        let ours = METHODS.iter().map(|(path, _)| *path).filter(|path| path.starts_with("/p2p."));
        let rows: Vec<String> = ours.map(str::to_owned).collect();
        assert_eq!(rows.len(), rows.iter().collect::<BTreeSet<_>>().len());
        assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), rpcs_of_the_protocol());
    }

    #[test]
    fn the_matrix_is_as_agreed() {
        // Per service: anonymous, peer, server, reader, operator.
        let agreed = [
            ("/p2p.v1.Enroll/Enroll", [true, true, true, false, false]),
            ("/p2p.v1.Enroll/Renew", [false, true, true, false, false]),
            ("/p2p.v1.Session/", [false, true, false, false, false]),
            ("/p2p.v1.Cluster/", [false, true, true, true, true]),
            ("/p2p.v1.Operator/", [false, false, false, false, true]),
            ("/p2p.v1.Peering/", [false, false, true, false, false]),
            ("/p2p.v1.Raft/", [false, false, true, false, false]),
            ("/grpc.health.v1.Health/", [true; 5]),
            ("/grpc.reflection.", [false, true, true, true, true]),
        ];
        for (path, _) in METHODS {
            let (_, expected) = agreed.iter().find(|(prefix, _)| path.starts_with(prefix)).unwrap();
            let allowed = ANYONE.iter().map(|caller| check_call(*caller, path).is_ok());
            assert_eq!(allowed.collect::<Vec<_>>(), expected, "{path}");
        }
    }

    #[test]
    fn what_is_not_named_is_closed() {
        for caller in ANYONE {
            for method in ["", "/", "/p2p.v1.Cluster", "/p2p.v1.Cluster/getmaster", "/p2p.v1.Agent/GetStatus"]
            {
                assert!(check_call(*caller, method).is_err(), "{caller:?} {method}");
            }
        }
        let refused = check_call(Anonymous, "/p2p.v1.Cluster/GetMaster").unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unauthenticated);
        let refused = check_call(Reader, &"x".repeat(10_000)).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Forbidden);
        assert!(refused.to_string().len() < 200);
    }

    #[test]
    fn tokens_open_their_face_only() {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), Vec::new());
        let roles = [TokenRole::Server, TokenRole::Peer, TokenRole::Operator, TokenRole::Reader];
        for (n, role) in (1..).zip(roles) {
            let id = TokenId(n);
            let (created_at, expires_at, uses_left) = (UnixMs(1), UnixMs(100), 0);
            let secret_hash = [n as u8; 32];
            let record = TokenRecord {
                id,
                role,
                secret_hash,
                created_at,
                expires_at,
                uses_left,
                bound_id: None,
                bound_name: None,
                grants: Grants::default(),
                ephemeral: false,
                used_by: SharedSet::new(),
            };
            state.tokens.insert(id, record);
        }
        let check = |n: u64, secret: u8, now| check_token(&state, TokenId(n), &[secret; 32], UnixMs(now));
        assert_eq!(check(3, 3, 100), Ok(Operator));
        assert_eq!(check(4, 4, 0), Ok(Reader));
        assert_eq!(check(3, 3, 101), Err(TokenRefused::Expired { at: UnixMs(100) }));
        assert_eq!(check(3, 4, 0), Err(TokenRefused::Unknown));
        assert_eq!(check(9, 9, 0), Err(TokenRefused::Unknown));
        assert_eq!(check(1, 1, 0), Err(TokenRefused::Role { role: TokenRole::Server }));
        assert_eq!(check(2, 2, 0), Err(TokenRefused::Role { role: TokenRole::Peer }));
    }
}
