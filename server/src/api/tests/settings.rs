//! Settings, changed by operators and listed for everyone known.

use p2p_common::ErrorCode;
use p2p_proto::status::code_of;
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::operator_client::OperatorClient;
use tonic::Code;
use uuid::Uuid;

use super::world::World;

fn change(request: u128, name: &str, value: Option<&str>, expected: Option<u64>) -> v1::ChangeSettingRequest {
    v1::ChangeSettingRequest {
        request_id: Uuid::from_u128(request).to_string(),
        name: name.to_owned(),
        value: value.map(str::to_owned),
        expected,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_is_changed_by_who_saw_it_and_shown_to_all() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    let set = change(1, "description", Some("the lab"), Some(0));
    for _ in 0..2 {
        let reply = operator.change_setting(set.clone()).await.unwrap().into_inner();
        assert_eq!(reply.revision, 1, "also when repeated");
    }
    let late = operator.change_setting(change(2, "description", Some("x"), Some(0))).await.unwrap_err();
    assert_eq!((code_of(&late), late.code()), (Some(ErrorCode::Conflict), Code::Aborted));
    for stale in [false, true] {
        let reply = cluster.list_settings(v1::ListSettingsRequest { stale }).await.unwrap().into_inner();
        assert_eq!((reply.revision, reply.stale), (1, stale));
        let shown = reply.settings.iter().map(|s| (s.name.as_str(), s.value.as_str(), s.revision));
        let expected = [
            ("certificate_renewal_grace", "2160h", 0),
            ("description", "the lab", 1),
            ("peer_certificate_lifetime", "168h", 0),
            ("server_certificate_lifetime", "2160h", 0),
            ("voter_replace_after", "60s", 0),
        ];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }
    let status = cluster.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.description, "the lab");
    let unset = operator.change_setting(change(3, "description", None, Some(1))).await.unwrap();
    assert_eq!(unset.into_inner().revision, 2);
    let status = cluster.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.description, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_setting_is_refused_before_it_reaches_the_log() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    for (name, value, reason) in [
        ("voter_replace", "5m", "voter_replace_after"),
        ("voter_replace_after", "1s", "5s to 24h"),
        ("description", "two\nlines", "control characters"),
    ] {
        let refused = operator.change_setting(change(1, name, Some(value), None)).await.unwrap_err();
        assert_eq!(code_of(&refused), Some(ErrorCode::BadRequest));
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    assert_eq!(world.state().settings_revision, 0);
    // A request id stands for one request: a setting does not answer for a token.
    let revoke =
        v1::RevokeTokenRequest { request_id: Uuid::from_u128(9).to_string(), token_id: world.reader.id().0 };
    operator.revoke_token(revoke).await.unwrap();
    let refused = operator.change_setting(change(9, "description", Some("a"), None)).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::BadRequest));
}
