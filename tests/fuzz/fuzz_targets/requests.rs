//! Requests of every call: decoded, through the one door, and through the checks behind it that need nothing else.
//! A method without a row here fails at the start.
#![no_main]

use std::collections::BTreeSet;
use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use p2p_common::addr::HostPort;
use p2p_common::setting::SettingName;
use p2p_common::wire::{Expected, Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, NodeId, NodeKind};
use p2p_peer::Bind;
use p2p_proto::{convert, v1};
use p2p_server::fuzzing;
use prost::Message;
use uuid::Uuid;

/// A hello as every receiver checks it; one that fits is written and read again the same.
fn hello(hello: Option<v1::Hello>) {
    let Ok(hello) = convert::hello_from(hello) else { return };
    let expected = Expected {
        cluster_id: hello.cluster_id.unwrap_or(ClusterId::new(Uuid::from_u128(1))),
        epoch: Epoch(1),
        recovery_id: None,
        me: NodeId::new(NodeKind::Server, Uuid::from_u128(2)),
        authenticated: hello.from,
    };
    if let Ok(version) = hello.check(&expected) {
        assert!((VERSIONS.0..=VERSIONS.1).contains(&version));
    }
    let again: Hello = convert::hello_from(Some(convert::hello_to(&hello))).expect("it was read once");
    assert_eq!(again, hello);
    let _: Incarnation = again.incarnation;
}

fn id(text: &str) {
    let _ = convert::parse::<NodeId>(text, "id");
}

fn request_id(text: &str) {
    let _ = convert::request_id(text);
}

/// Grants that fit are written and read again the same.
fn grants(grants: Option<v1::Grants>) {
    let Some(Ok(grants)) = grants.map(convert::grants_from) else { return };
    assert_eq!(convert::grants_from(convert::grants_to(&grants)), Ok(grants));
}

/// One row per method: what its request is, and what is done with it before anything else is needed.
macro_rules! requests {
    ($($method:literal: $request:ident => $check:expr,)*) => {
        const METHODS: &[&str] = &[$($method),*];

        fn check(number: usize, bytes: &[u8]) {
            let checks: &[fn(&[u8])] = &[$(|bytes| {
                let check: fn(v1::$request) = $check;
                if let Ok(request) = v1::$request::decode(bytes) {
                    check(request);
                }
            }),*];
            checks[number % checks.len()](bytes);
        }
    };
}

requests! {
    "Enroll/Enroll": EnrollRequest => |r| {
        hello(r.hello);
        let _ = (convert::name(&r.name, "name"), fuzzing::server_names(&r.addresses));
    },
    "Enroll/Renew": RenewRequest => |r| {
        hello(r.hello);
        let _ = fuzzing::server_names(&r.addresses);
    },
    "Session/Attach": SessionUp => |r| match r.message {
        Some(v1::session_up::Message::Open(open)) => {
            hello(open.hello);
            let _ = convert::report_from(open.report);
        }
        Some(v1::session_up::Message::Report(report)) => {
            let Ok(report) = convert::report_from(Some(report)) else { return };
            assert_eq!(convert::report_from(Some(convert::report_to(&report))), Ok(report));
        }
        Some(v1::session_up::Message::Links(report)) => {
            let Ok(links) = convert::links_from(report.links) else { return };
            let again = links.iter().map(convert::link_to).collect();
            assert_eq!(convert::links_from(again), Ok(links));
        }
        _ => {}
    },
    "Cluster/GetMaster": GetMasterRequest => |_| {},
    "Cluster/WatchMaster": WatchMasterRequest => |_| {},
    "Cluster/ListMembers": ListMembersRequest => |_| {},
    "Cluster/ListSettings": ListSettingsRequest => |_| {},
    "Cluster/GetStatus": GetStatusRequest => |_| {},
    "Cluster/ListPeers": ListPeersRequest => |_| {},
    "Cluster/ListServices": ListServicesRequest => |_| {},
    "Operator/CreateToken": CreateTokenRequest => |r| {
        request_id(&r.request_id);
        fuzzing::token_asked_for(&r);
    },
    "Operator/ListTokens": ListTokensRequest => |_| {},
    "Operator/RevokeToken": RevokeTokenRequest => |r| request_id(&r.request_id),
    "Operator/TransferMaster": TransferMasterRequest => |r| id(&r.to),
    "Operator/RemoveMember": RemoveMemberRequest => |r| {
        request_id(&r.request_id);
        id(&r.id);
    },
    "Operator/ChangeSetting": ChangeSettingRequest => |r| {
        request_id(&r.request_id);
        if let (Ok(name), Some(value)) = (convert::parse::<SettingName>(&r.name, "name"), r.value) {
            let _ = name.check(&value);
        }
    },
    "Operator/ListIdentities": ListIdentitiesRequest => |r| {
        id(&r.after);
        id(&r.id);
    },
    "Operator/ChangeGrants": ChangeGrantsRequest => |r| {
        request_id(&r.request_id);
        id(&r.id);
        grants(r.grants);
    },
    "Operator/ResetIdentity": ResetIdentityRequest => |r| {
        request_id(&r.request_id);
        id(&r.id);
    },
    "Operator/IssueCertificate": IssueCertificateRequest => |r| {
        request_id(&r.request_id);
        id(&r.id);
        let _ = convert::name(&r.name, "name");
        grants(r.grants);
    },
    "Operator/Revoke": RevokeRequest => |r| {
        request_id(&r.request_id);
        id(&r.target);
        let _ = (convert::name(&r.target, "target"), convert::sha256(&r.key_hash, "key_hash"));
    },
    "Operator/ListRevocations": ListRevocationsRequest => |_| {},
    "Operator/GetCaStatus": GetCaStatusRequest => |_| {},
    "Operator/RotateCa": RotateCaRequest => |r| request_id(&r.request_id),
    "Operator/Backup": BackupRequest => |_| {},
    "Peering/Join": JoinRequest => |r| {
        hello(r.hello);
        request_id(&r.request_id);
        let _ = (convert::name(&r.name, "name"), fuzzing::server_addresses(&r.addresses));
        let _ = convert::name(&r.zone, "zone");
    },
    "Peering/FetchCaKey": FetchCaKeyRequest => |r| hello(r.hello),
    "Peering/Propose": ProposeRequest => |r| {
        hello(r.hello);
        let _ = convert::decode_command(&r.command);
    },
    "Peering/Transfer": TransferRequest => |r| hello(r.hello),
    "Peering/Remove": RemoveRequest => |r| {
        hello(r.hello);
        request_id(&r.request_id);
        id(&r.id);
    },
    "Peering/Emergency": EmergencyRequest => |r| {
        hello(r.hello);
        fuzzing::emergencies(r.revocations);
    },
    "Peering/Progress": ProgressRequest => |r| hello(r.hello),
    "Raft/Stream": RaftBatch => |r| hello(r.hello),
    "Raft/Send": RaftBatch => |r| hello(r.hello),
    "Raft/SendSnapshot": RaftSnapshotChunk => |r| hello(r.hello),
    "Raft/Probe": RaftProbe => |r| hello(r.hello),
    "Agent/GetStatus": AgentStatusRequest => |_| {},
    "Agent/ListPeers": AgentListPeersRequest => |_| {},
    "Agent/GetTables": AgentTablesRequest => |_| {},
    "Agent/ListLinks": AgentListLinksRequest => |_| {},
    "Agent/Why": AgentWhyRequest => |r| id(&r.id),
    "Agent/AddService": AgentAddServiceRequest => |r| {
        let _ = r.service.parse::<p2p_common::service::LocalService>();
    },
    "Agent/RemoveService": AgentServiceRequest => |r| {
        let _ = r.name.parse::<p2p_common::service::ServiceName>();
    },
    "Agent/DrainService": AgentServiceRequest => |_| {},
    "Agent/ResumeService": AgentServiceRequest => |_| {},
    "Agent/ListServices": AgentListServicesRequest => |_| {},
    "Agent/AddBind": AgentAddBindRequest => |r| {
        let _ = r.bind.parse::<Bind>();
    },
    "Agent/RemoveBind": AgentRemoveBindRequest => |r| {
        let _ = r.address.parse::<HostPort>();
    },
    "Agent/ListBinds": AgentListBindsRequest => |_| {},
}

/// Every method of the protocol has a row, and no row is left over.
fn check_rows() {
    let files = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).expect("our own descriptors");
    let services = files.file.iter().flat_map(|file| &file.service);
    let methods: BTreeSet<String> = services
        .flat_map(|service| {
            service.method.iter().map(|method| format!("{}/{}", service.name(), method.name()))
        })
        .collect();
    let rows: BTreeSet<String> = METHODS.iter().map(|method| (*method).to_owned()).collect();
    assert_eq!(rows, methods, "add a row to `requests!` for each method");
}

fuzz_target!(|data: &[u8]| {
    static ROWS: Once = Once::new();
    ROWS.call_once(check_rows);
    let Some((number, data)) = data.split_first() else { return };
    check(usize::from(*number), data);
});
