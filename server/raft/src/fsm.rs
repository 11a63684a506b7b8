//! The replicated state machine: commands in, outcomes out, the same on every Server.
//!
//! Nothing here reads a clock or draws a random number; whatever needs one was put into the command by its
//! proposer. A command applies once: the outcomes of the last [`REQUESTS_REMEMBERED`] requests are part of the
//! state, refusals too, so that a repeat gives the answer the first one gave. Source: SPEC I2, I3, C3, C7.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p2p_common::ErrorCode;
use p2p_common::addr::HostPort;
use p2p_common::cluster_state::{ClusterState, IDENTITIES_MAX, REQUESTS_REMEMBERED, TOKENS_MAX};
use p2p_common::command::{Command, CommandBody, IdentityRecord, Outcome, TokenId, TokenRecord, TokenRole};
use p2p_common::member::{MEMBERS_MAX, Member};
use p2p_common::setting::{Setting, SettingName};
use p2p_common::{KeyHash, NodeId, NodeKind, RequestId, UnixMs};

/// The state and what is derived from it. Readers take [`Fsm::state`], which is never changed in place while
/// anyone else holds it. What a command costs does not grow with the state.
#[derive(Debug, Clone)]
pub struct Fsm {
    state: Arc<ClusterState>,
    /// The number of a request in `state.applied_requests`.
    remembered: BTreeMap<RequestId, u64>,
    /// Tokens by their end.
    expiries: Expiries,
}

type Applying<T> = Result<T, (ErrorCode, String)>;

fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Applying<T> {
    Err((code, message.into()))
}

impl Fsm {
    /// Goes on from `state`: a founder's, a stored or a received one.
    pub fn new(state: ClusterState) -> Self {
        let remembered = state.applied_requests.numbered().map(|(number, (id, _))| (*id, number)).collect();
        let expiries = state.tokens.values().map(|token| (token.expires_at, token.id)).collect();
        Fsm { state: Arc::new(state), remembered, expiries }
    }

    /// The state after the last command.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Applies `command`, or finds what became of it when it was applied before. A refused command changes
    /// nothing but the memory of requests.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        if let Some(outcome) = self.outcome_of(command.request_id) {
            return outcome.clone();
        }
        let state = Arc::make_mut(&mut self.state);
        let outcome = apply_body(state, &mut self.expiries, &command.body)
            .unwrap_or_else(|(code, message)| Outcome::Refused { code, message });
        self.remember(command.request_id, outcome.clone());
        outcome
    }

    /// What became of a request, while it is remembered.
    pub fn outcome_of(&self, request_id: RequestId) -> Option<&Outcome> {
        let number = self.remembered.get(&request_id)?;
        self.state.applied_requests.get(*number).map(|(_, outcome)| outcome)
    }

    fn remember(&mut self, request_id: RequestId, outcome: Outcome) {
        let requests = &mut Arc::make_mut(&mut self.state).applied_requests;
        let number = requests.push_back((request_id, outcome));
        self.remembered.insert(request_id, number);
        while requests.len() > REQUESTS_REMEMBERED {
            if let Some((oldest, _)) = requests.pop_front() {
                self.remembered.remove(&oldest);
            }
        }
    }
}

type Expiries = BTreeSet<(UnixMs, TokenId)>;

fn apply_body(state: &mut ClusterState, expiries: &mut Expiries, body: &CommandBody) -> Applying<Outcome> {
    match body {
        CommandBody::CreateToken(record) => create_token(state, expiries, record),
        CommandBody::RevokeToken(id) => revoke_token(state, expiries, *id),
        CommandBody::Enrol { token_id, secret_hash, id, name, key_hash, now } => {
            let shown =
                Enrolment { token_id: *token_id, secret_hash, id: *id, key_hash: *key_hash, now: *now };
            enrol(state, &shown, name)
        }
        CommandBody::UpsertMember { id, name, addresses, zone, key_hash, new_log } => {
            let record =
                MemberRecord { id: *id, name, addresses, zone, key_hash: *key_hash, new_log: *new_log };
            upsert_member(state, &record)
        }
        CommandBody::RemoveMember(id) => remove_member(state, *id),
        CommandBody::ChangeSetting { name, value, expected } => {
            change_setting(state, *name, value.as_deref(), *expected)
        }
    }
}

fn create_token(
    state: &mut ClusterState,
    expiries: &mut Expiries,
    record: &TokenRecord,
) -> Applying<Outcome> {
    if state.tokens.contains_key(&record.id) {
        return refuse(ErrorCode::BadRequest, format!("token {} exists already: create another", record.id));
    }
    // Tokens that open nothing any more make room.
    while let Some((_, id)) = expiries.first().copied().filter(|(end, _)| *end <= record.created_at) {
        expiries.pop_first();
        state.tokens.remove(&id);
    }
    if state.tokens.len() >= TOKENS_MAX {
        return refuse(
            ErrorCode::Exhausted,
            format!("there are {TOKENS_MAX} tokens: revoke those not needed"),
        );
    }
    state.tokens.insert(record.id, record.clone());
    expiries.insert((record.expires_at, record.id));
    Ok(Outcome::Done)
}

fn revoke_token(state: &mut ClusterState, expiries: &mut Expiries, id: TokenId) -> Applying<Outcome> {
    match state.tokens.remove(&id) {
        Some(token) => {
            expiries.remove(&(token.expires_at, id));
            Ok(Outcome::Done)
        }
        None => refuse(ErrorCode::TokenUnknown, format!("there is no token {id}")),
    }
}

/// What a node shows to be enrolled.
struct Enrolment<'a> {
    token_id: TokenId,
    secret_hash: &'a [u8; 32],
    id: NodeId,
    key_hash: KeyHash,
    now: UnixMs,
}

fn enrol(state: &mut ClusterState, shown: &Enrolment<'_>, name: &str) -> Applying<Outcome> {
    check_text("name", name)?;
    let identity = state.identities.get(&shown.id);
    let bound_here = identity.is_some_and(|identity| identity.key_hash == shown.key_hash);
    let identities = state.identities.len();
    // An unknown token and a wrong secret answer alike: the difference would help guessing.
    let token = state.tokens.get(&shown.token_id).filter(|token| token.secret_hash == *shown.secret_hash);
    let Some(token) = token else {
        return refuse(ErrorCode::TokenUnknown, "no such token: was it mistyped or revoked?");
    };
    let wanted = match shown.id.kind() {
        NodeKind::Server => TokenRole::Server,
        NodeKind::Peer => TokenRole::Peer,
    };
    if token.role != wanted {
        let message = format!("the token is for role {}, not {}", token.role.as_str(), wanted.as_str());
        return refuse(ErrorCode::TokenRole, message);
    }
    if token.bound_id.is_some_and(|bound| bound != shown.id) {
        return refuse(ErrorCode::TokenBound, format!("the token is for another Id than {}", shown.id));
    }
    let used_before = token.used_by.contains(&(shown.id, shown.key_hash));
    if used_before && bound_here {
        // The reply got lost: no use is spent, and time does not count.
        return Ok(Outcome::Done);
    }
    if shown.now > token.expires_at {
        return refuse(ErrorCode::TokenExpired, "the token has expired: create another");
    }
    if identity.is_some() && !bound_here {
        let message = format!(
            "{} is bound to another key: start the node with the data directory that holds its key, or under another Id",
            shown.id
        );
        return refuse(ErrorCode::IdTaken, message);
    }
    if !used_before && token.uses_left == 0 {
        return refuse(ErrorCode::TokenUsedUp, "the token has no uses left: create another");
    }
    if identity.is_none() && identities >= IDENTITIES_MAX {
        return refuse(ErrorCode::Exhausted, format!("there are {IDENTITIES_MAX} identities already"));
    }
    if !used_before && let Some(token) = state.tokens.get_mut(&shown.token_id) {
        token.uses_left -= 1;
        token.used_by.insert((shown.id, shown.key_hash));
    }
    if !bound_here {
        let record = IdentityRecord {
            id: shown.id,
            name: name.to_owned(),
            key_hash: shown.key_hash,
            enrolled_at: shown.now,
        };
        state.identities.insert(shown.id, record);
    }
    Ok(Outcome::Done)
}

/// A Server's record as it was proposed; the raft id is given here.
struct MemberRecord<'a> {
    id: NodeId,
    name: &'a str,
    addresses: &'a [HostPort],
    zone: &'a str,
    key_hash: KeyHash,
    new_log: bool,
}

fn upsert_member(state: &mut ClusterState, record: &MemberRecord<'_>) -> Applying<Outcome> {
    if record.id.kind() != NodeKind::Server {
        return refuse(ErrorCode::BadRequest, format!("{} is not the Id of a server", record.id));
    }
    check_text("name", record.name)?;
    check_text("zone", record.zone)?;
    if record.addresses.is_empty() || record.addresses.len() > Member::ADDRESSES_MAX {
        let message = format!("a server has 1 to {} addresses", Member::ADDRESSES_MAX);
        return refuse(ErrorCode::BadRequest, message);
    }
    match state.identities.get(&record.id) {
        None => return refuse(ErrorCode::Forbidden, format!("{} is not enrolled", record.id)),
        Some(identity) if identity.key_hash != record.key_hash => {
            return refuse(ErrorCode::IdTaken, format!("{} is bound to another key", record.id));
        }
        Some(_) => {}
    }
    let former = state.members.get(&record.id);
    if former.is_none() && state.members.len() >= MEMBERS_MAX {
        return refuse(ErrorCode::Exhausted, format!("there are {MEMBERS_MAX} servers already"));
    }
    let member = Member {
        id: record.id,
        name: record.name.to_owned(),
        addresses: record.addresses.to_vec(),
        zone: record.zone.to_owned(),
        // A raft id speaks for what its log has acknowledged: without the log it is used up.
        raft_id: former.filter(|_| !record.new_log).map_or(state.next_raft_id, |member| member.raft_id),
        key_hash: record.key_hash,
    };
    let raft_id = member.raft_id;
    if former != Some(&member) {
        state.next_raft_id = state.next_raft_id.max(raft_id + 1);
        state.members.insert(record.id, member);
        state.members_version += 1;
    }
    Ok(Outcome::MemberAdded { raft_id })
}

fn remove_member(state: &mut ClusterState, id: NodeId) -> Applying<Outcome> {
    if state.members.remove(&id).is_none() {
        return refuse(ErrorCode::NotFound, format!("{id} is not a server of this cluster"));
    }
    state.members_version += 1;
    Ok(Outcome::Done)
}

fn change_setting(
    state: &mut ClusterState,
    name: SettingName,
    value: Option<&str>,
    expected: Option<u64>,
) -> Applying<Outcome> {
    if let Err(bad) = value.map_or(Ok(()), |value| name.check(value)) {
        return refuse(ErrorCode::BadRequest, bad.to_string());
    }
    let current = state.settings.get(&name).map_or(0, |setting| setting.revision);
    if expected.is_some_and(|expected| expected != current) {
        let message = format!("{name} has been changed: its revision is {current} now; read it again");
        return refuse(ErrorCode::Conflict, message);
    }
    state.settings_revision += 1;
    let revision = state.settings_revision;
    match value {
        Some(value) => state.settings.insert(name, Setting { value: value.to_owned(), revision }),
        None => state.settings.remove(&name),
    };
    Ok(Outcome::SettingChanged { revision })
}

fn check_text(what: &str, text: &str) -> Applying<()> {
    if text.len() > Member::NAME_MAX_BYTES {
        return refuse(
            ErrorCode::BadRequest,
            format!("the {what} is longer than {} bytes", Member::NAME_MAX_BYTES),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::shared::SharedSet;
    use p2p_common::{ClusterId, Epoch};
    use std::time::Duration;
    use uuid::Uuid;

    const SECRET: [u8; 32] = [7; 32];
    const TOKEN: TokenId = TokenId(1);

    fn server(n: u128) -> NodeId {
        NodeId::new(NodeKind::Server, Uuid::from_u128(n))
    }

    fn key(n: u8) -> KeyHash {
        KeyHash([n; 32])
    }

    fn fresh() -> Fsm {
        Fsm::new(ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), vec![vec![1]]))
    }

    fn run(fsm: &mut Fsm, request: u128, body: CommandBody) -> Outcome {
        fsm.apply(&Command { request_id: RequestId::new(Uuid::from_u128(request)), body })
    }

    fn token(uses_left: u32) -> CommandBody {
        CommandBody::CreateToken(TokenRecord {
            id: TOKEN,
            role: TokenRole::Server,
            secret_hash: SECRET,
            created_at: UnixMs(1),
            expires_at: UnixMs(100),
            uses_left,
            bound_id: None,
            used_by: SharedSet::new(),
        })
    }

    fn enrol(id: NodeId, key_hash: KeyHash, now: u64) -> CommandBody {
        CommandBody::Enrol {
            token_id: TOKEN,
            secret_hash: SECRET,
            id,
            name: "s1".to_owned(),
            key_hash,
            now: UnixMs(now),
        }
    }

    fn member(id: NodeId, key_hash: KeyHash, port: u16) -> CommandBody {
        CommandBody::UpsertMember {
            id,
            name: "s1".to_owned(),
            addresses: vec![format!("127.0.0.1:{port}").parse().unwrap()],
            zone: "z".to_owned(),
            key_hash,
            new_log: false,
        }
    }

    fn code(outcome: &Outcome) -> Option<ErrorCode> {
        match outcome {
            Outcome::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    #[test]
    fn a_request_applies_once() {
        let mut fsm = fresh();
        assert_eq!(run(&mut fsm, 1, token(1)), Outcome::Done);
        let once = fsm.state().clone();
        assert_eq!(run(&mut fsm, 1, token(1)), Outcome::Done);
        assert_eq!(*fsm.state(), once);
        // The same under another request id is another request.
        assert_eq!(code(&run(&mut fsm, 2, token(1))), Some(ErrorCode::BadRequest));
        assert_eq!(code(&run(&mut fsm, 2, token(1))), Some(ErrorCode::BadRequest));
    }

    #[test]
    fn requests_are_forgotten_oldest_first_also_after_a_restart() {
        let mut fsm = fresh();
        let revoke = || CommandBody::RevokeToken(TokenId(9));
        for request in 0..REQUESTS_REMEMBERED as u128 + 5 {
            run(&mut fsm, request, revoke());
        }
        let id = |n: u128| RequestId::new(Uuid::from_u128(n));
        let mut again = Fsm::new(ClusterState::clone(fsm.state()));
        for request in [REQUESTS_REMEMBERED as u128 + 5, REQUESTS_REMEMBERED as u128 + 6] {
            assert_eq!(run(&mut fsm, request, revoke()), run(&mut again, request, revoke()));
        }
        for fsm in [fsm, again] {
            assert_eq!(fsm.state().applied_requests.len(), REQUESTS_REMEMBERED);
            assert_eq!(fsm.outcome_of(id(6)), None);
            assert!(fsm.outcome_of(id(7)).is_some());
            assert!(fsm.outcome_of(id(REQUESTS_REMEMBERED as u128 + 6)).is_some());
        }
    }

    #[test]
    fn enrolment_spends_one_use_per_node_and_repeats_cost_nothing() {
        let mut fsm = fresh();
        run(&mut fsm, 1, token(2));
        assert_eq!(run(&mut fsm, 2, enrol(server(1), key(1), 50)), Outcome::Done);
        assert_eq!(
            run(&mut fsm, 3, enrol(server(1), key(1), 500)),
            Outcome::Done,
            "a repeat, even when late"
        );
        assert_eq!(fsm.state().tokens[&TOKEN].uses_left, 1);
        assert_eq!(code(&run(&mut fsm, 4, enrol(server(1), key(2), 50))), Some(ErrorCode::IdTaken));
        assert_eq!(fsm.state().tokens[&TOKEN].uses_left, 1, "a refusal spends nothing");
        assert_eq!(run(&mut fsm, 5, enrol(server(2), key(2), 100)), Outcome::Done);
        assert_eq!(code(&run(&mut fsm, 6, enrol(server(3), key(3), 50))), Some(ErrorCode::TokenUsedUp));
        assert_eq!(fsm.state().identities.len(), 2);
        assert_eq!(fsm.state().members_version, 0, "an identity is no member");
    }

    #[test]
    fn enrolment_is_refused_with_the_reason() {
        let mut fsm = fresh();
        run(&mut fsm, 1, token(5));
        assert_eq!(code(&run(&mut fsm, 2, enrol(server(1), key(1), 101))), Some(ErrorCode::TokenExpired));
        let peer = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
        assert_eq!(code(&run(&mut fsm, 3, enrol(peer, key(1), 1))), Some(ErrorCode::TokenRole));
        let mut wrong = enrol(server(1), key(1), 1);
        if let CommandBody::Enrol { secret_hash, .. } = &mut wrong {
            *secret_hash = [0; 32];
        }
        assert_eq!(code(&run(&mut fsm, 4, wrong)), Some(ErrorCode::TokenUnknown));
        assert_eq!(run(&mut fsm, 5, CommandBody::RevokeToken(TOKEN)), Outcome::Done);
        assert_eq!(code(&run(&mut fsm, 6, enrol(server(1), key(1), 1))), Some(ErrorCode::TokenUnknown));
        assert!(fsm.state().identities.is_empty());
    }

    #[test]
    fn expired_tokens_make_room_for_new_ones() {
        let mut fsm = fresh();
        assert_eq!(run(&mut fsm, 1, token(1)), Outcome::Done);
        let CommandBody::CreateToken(first) = token(1) else { panic!("token() creates") };
        for (request, created_at, left) in [(2, 99, 2), (3, 100, 2)] {
            let record = TokenRecord {
                id: TokenId(request as u64),
                created_at: UnixMs(created_at),
                expires_at: UnixMs(200),
                ..first.clone()
            };
            assert_eq!(run(&mut fsm, request, CommandBody::CreateToken(record)), Outcome::Done);
            assert_eq!(fsm.state().tokens.len(), left, "at {created_at}");
        }
        assert!(!fsm.state().tokens.contains_key(&TOKEN));
    }

    #[test]
    fn a_bound_token_enrols_nobody_else() {
        let mut fsm = fresh();
        let mut body = token(5);
        if let CommandBody::CreateToken(record) = &mut body {
            record.bound_id = Some(server(1));
        }
        run(&mut fsm, 1, body);
        assert_eq!(code(&run(&mut fsm, 2, enrol(server(2), key(2), 1))), Some(ErrorCode::TokenBound));
        assert_eq!(run(&mut fsm, 3, enrol(server(1), key(1), 1)), Outcome::Done);
    }

    #[test]
    fn only_real_changes_raise_the_version_and_raft_ids_never_come_back() {
        let mut fsm = fresh();
        run(&mut fsm, 1, token(5));
        run(&mut fsm, 2, enrol(server(1), key(1), 1));
        assert_eq!(code(&run(&mut fsm, 3, member(server(2), key(2), 1))), Some(ErrorCode::Forbidden));
        assert_eq!(code(&run(&mut fsm, 4, member(server(1), key(9), 1))), Some(ErrorCode::IdTaken));
        assert_eq!(run(&mut fsm, 5, member(server(1), key(1), 1)), Outcome::MemberAdded { raft_id: 1 });
        assert_eq!(run(&mut fsm, 6, member(server(1), key(1), 1)), Outcome::MemberAdded { raft_id: 1 });
        assert_eq!(fsm.state().members_version, 1);
        assert_eq!(run(&mut fsm, 7, member(server(1), key(1), 2)), Outcome::MemberAdded { raft_id: 1 });
        assert_eq!(fsm.state().members_version, 2);
        assert_eq!(run(&mut fsm, 8, CommandBody::RemoveMember(server(1))), Outcome::Done);
        assert_eq!(code(&run(&mut fsm, 9, CommandBody::RemoveMember(server(1)))), Some(ErrorCode::NotFound));
        assert_eq!(fsm.state().members_version, 3);
        assert_eq!(run(&mut fsm, 10, member(server(1), key(1), 1)), Outcome::MemberAdded { raft_id: 2 });
        assert_eq!(fsm.state().member_by_raft_id(2).map(|m| m.id), Some(server(1)));
    }

    #[test]
    fn a_member_without_its_log_gets_a_raft_id_nobody_had() {
        let mut fsm = fresh();
        run(&mut fsm, 1, token(5));
        for n in [1, 2] {
            run(&mut fsm, 10 + n, enrol(server(n), key(n as u8), 1));
            let joined = run(&mut fsm, 20 + n, member(server(n), key(n as u8), 1));
            assert_eq!(joined, Outcome::MemberAdded { raft_id: n as u64 });
        }
        let without_log = |id, key_hash, port| match member(id, key_hash, port) {
            CommandBody::UpsertMember { id, name, addresses, zone, key_hash, .. } => {
                CommandBody::UpsertMember { id, name, addresses, zone, key_hash, new_log: true }
            }
            other => other,
        };
        let back = without_log(server(1), key(1), 1);
        assert_eq!(run(&mut fsm, 30, back.clone()), Outcome::MemberAdded { raft_id: 3 });
        assert_eq!(run(&mut fsm, 30, back.clone()), Outcome::MemberAdded { raft_id: 3 }, "a repeat");
        assert_eq!(fsm.state().members.len(), 2);
        assert_eq!(fsm.state().member_by_raft_id(1), None);
        assert_eq!(fsm.state().members_version, 3);
        assert_eq!(run(&mut fsm, 31, back), Outcome::MemberAdded { raft_id: 4 }, "lost once more");
        run(&mut fsm, 32, enrol(server(3), key(3), 1));
        let first = run(&mut fsm, 33, without_log(server(3), key(3), 1));
        assert_eq!(first, Outcome::MemberAdded { raft_id: 5 });
        assert_eq!(run(&mut fsm, 34, member(server(1), key(1), 2)), Outcome::MemberAdded { raft_id: 4 });
    }

    #[test]
    fn settings_are_set_compared_and_unset() {
        let name = SettingName::Description;
        let change = |value: Option<&str>, expected| CommandBody::ChangeSetting {
            name,
            value: value.map(str::to_owned),
            expected,
        };
        let mut fsm = fresh();
        assert_eq!(fsm.state().setting(name), "");
        let changed = |revision| Outcome::SettingChanged { revision };
        assert_eq!(run(&mut fsm, 1, change(Some("a"), Some(0))), changed(1));
        assert_eq!(run(&mut fsm, 1, change(Some("a"), Some(0))), changed(1), "a repeat");
        assert_eq!(code(&run(&mut fsm, 2, change(Some("b"), Some(0)))), Some(ErrorCode::Conflict));
        assert_eq!(fsm.state().setting(name), "a");
        assert_eq!(run(&mut fsm, 3, change(Some("b"), Some(1))), changed(2));
        assert_eq!(run(&mut fsm, 4, change(Some("c"), None)), changed(3));
        let Outcome::Refused { message, .. } = run(&mut fsm, 5, change(Some("d"), Some(2))) else {
            panic!("an old revision is refused")
        };
        assert!(message.contains("revision is 3 now"), "{message}");
        let kept = Setting { value: "c".to_owned(), revision: 3 };
        assert_eq!(fsm.state().settings.get(&name), Some(&kept));
        assert_eq!(run(&mut fsm, 6, change(None, Some(3))), changed(4));
        assert_eq!((fsm.state().setting(name), fsm.state().settings.len()), ("", 0));
        assert_eq!(run(&mut fsm, 7, change(Some("e"), Some(0))), changed(5));
        assert_eq!(code(&run(&mut fsm, 8, change(Some("a\nb"), None))), Some(ErrorCode::BadRequest));
        assert_eq!(fsm.state().settings_revision, 5);
    }

    #[test]
    fn how_long_a_voter_is_waited_for_is_a_setting() {
        let mut fsm = fresh();
        assert_eq!(fsm.state().voter_replace_after(), Duration::from_secs(60));
        let change = |value: &str| CommandBody::ChangeSetting {
            name: SettingName::VoterReplaceAfter,
            value: Some(value.to_owned()),
            expected: None,
        };
        assert_eq!(code(&run(&mut fsm, 1, change("1s"))), Some(ErrorCode::BadRequest));
        assert_eq!(run(&mut fsm, 2, change("5m")), Outcome::SettingChanged { revision: 1 });
        assert_eq!(fsm.state().voter_replace_after(), Duration::from_secs(300));
    }

    /// A state as large as it gets, or almost none.
    fn of_size(identities: usize, tokens: usize) -> ClusterState {
        let mut state = ClusterState::clone(fresh().state());
        let CommandBody::CreateToken(record) = token(IDENTITIES_MAX as u32) else {
            panic!("token() creates")
        };
        for n in 2..tokens as u64 + 1 {
            let record = TokenRecord { id: TokenId(n), expires_at: UnixMs(200 + n), ..record.clone() };
            state.tokens.insert(record.id, record);
        }
        state.tokens.insert(TOKEN, TokenRecord { expires_at: UnixMs(100_000), ..record });
        for n in 0..identities as u128 {
            let (id, key_hash) = (server(1_000_000 + n), key(1));
            let record = IdentityRecord { id, name: format!("s{n}"), key_hash, enrolled_at: UnixMs(1) };
            state.identities.insert(id, record);
            state.tokens.get_mut(&TOKEN).unwrap().used_by.insert((id, key_hash));
        }
        state
    }

    #[test]
    fn a_write_costs_the_same_however_large_the_state_is() {
        for (identities, tokens) in [(10, 10), (IDENTITIES_MAX - 2_000, TOKENS_MAX - 1)] {
            let mut fsm = Fsm::new(of_size(identities, tokens));
            let CommandBody::CreateToken(record) = token(1) else { panic!("token() creates") };
            let created = TokenRecord { id: TokenId(u64::MAX), expires_at: UnixMs(101_000), ..record };
            let before = Arc::clone(fsm.state());
            assert_eq!(run(&mut fsm, 1, CommandBody::CreateToken(created)), Outcome::Done);
            let after = Arc::clone(fsm.state());
            assert!(after.identities.ptr_eq(&before.identities) && after.members.ptr_eq(&before.members));
            assert_eq!(run(&mut fsm, 2, CommandBody::RevokeToken(TokenId(u64::MAX))), Outcome::Done);

            // Each is published: somebody holds the state before.
            let mut published = Vec::new();
            for n in 10..1_010 {
                assert_eq!(run(&mut fsm, n, enrol(server(n), key(1), 50)), Outcome::Done);
                published.push(Arc::clone(fsm.state()));
            }
            assert_eq!(published[0].identities.len(), identities + 1);
            assert_eq!(published[0].tokens[&TOKEN].used_by.len(), identities + 1);
        }
    }

    #[test]
    fn readers_keep_the_state_they_took() {
        let mut fsm = fresh();
        let before = fsm.state().clone();
        run(&mut fsm, 1, token(1));
        assert!(before.tokens.is_empty());
        assert_eq!(fsm.state().tokens.len(), 1);
    }
}
