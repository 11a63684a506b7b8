//! The registry over plain HTTP, as far as it goes: which nodes there are.
//!
//! `GET /discovery/nodes` answers in the seed registry's shape, from table C: per Server its first address, 0 when
//! this Server is connected to it (or is it) and 1 when not, and its zone. Everything else is answered by code -404
//! in that shape. Table C knows addresses of API ports only, so these stand there. Source: SPEC R1, R3.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::sync::watch;

use crate::raft::View;
use crate::transport::Connected;

/// Ready to be registered at.
const UP: u8 = 0;
/// Not reached by the answering node.
const LOST: u8 = 1;

#[derive(Debug, Clone)]
struct Tables {
    view: watch::Receiver<Arc<View>>,
    connected: Connected,
}

#[derive(Debug, Serialize)]
struct Answer {
    code: i32,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<Node>>,
}

#[derive(Debug, Serialize)]
struct Node {
    addr: String,
    status: u8,
    zone: String,
}

/// The pages; serve them with the operations port's server, which bounds what a client can hold.
pub fn router(view: watch::Receiver<Arc<View>>, connected: Connected) -> Router {
    Router::new()
        .route("/discovery/nodes", get(nodes).fallback(nothing_here))
        .fallback(nothing_here)
        .with_state(Tables { view, connected })
}

async fn nodes(State(tables): State<Tables>) -> Response {
    let view = Arc::clone(&tables.view.borrow());
    let connected = Arc::clone(&tables.connected.borrow());
    let node = |member: &p2p_common::member::Member| {
        let here = member.raft_id == view.raft_id || connected.contains(&member.raft_id);
        Some(Node {
            addr: member.addresses.first()?.to_string(),
            status: if here { UP } else { LOST },
            zone: member.zone.clone(),
        })
    };
    let data = view.state.members.values().filter_map(node).collect();
    json(StatusCode::OK, &Answer { code: 0, message: "ok", data: Some(data) })
}

async fn nothing_here() -> Response {
    json(StatusCode::NOT_FOUND, &Answer { code: -404, message: "there is nothing here", data: None })
}

fn json(status: StatusCode, answer: &Answer) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use http::Request;
    use p2p_common::cluster_state::ClusterState;
    use p2p_common::member::Member;
    use p2p_common::{ClusterId, Epoch, KeyHash, NodeId, NodeKind};
    use p2p_server_raft::{Membership, Role, Status};
    use std::collections::BTreeSet;
    use tower::ServiceExt;
    use uuid::Uuid;

    async fn ask(method: Method, path: &str) -> (u16, String) {
        let mut state = ClusterState::new(ClusterId::new(Uuid::nil()), Epoch(0), Vec::new());
        for raft_id in 1..=3 {
            let id = NodeId::new(NodeKind::Server, Uuid::from_u128(raft_id.into()));
            let member = Member {
                id,
                name: format!("s{raft_id}"),
                addresses: vec![format!("10.0.0.{raft_id}:7400").parse().unwrap()],
                zone: "sh001".to_owned(),
                raft_id,
                key_hash: KeyHash([0; 32]),
            };
            state.members.insert(id, member);
        }
        let status = Status { role: Role::Follower, leader: Some(2), term: 1, leader_ready: false };
        let view = View {
            raft_id: 1,
            status,
            membership: Membership::default(),
            applied: 1,
            committed: 1,
            state: Arc::new(state),
        };
        let (_views, view) = watch::channel(Arc::new(view));
        let (_remotes, connected) = watch::channel(Arc::new(BTreeSet::from([2])));
        let request = Request::builder().method(method).uri(path).body(axum::body::Body::empty()).unwrap();
        let response = router(view, connected).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn lists_the_nodes_of_table_c() {
        let (status, body) = ask(Method::GET, "/discovery/nodes").await;
        let node = |n, status| format!(r#"{{"addr":"10.0.0.{n}:7400","status":{status},"zone":"sh001"}}"#);
        let (a, b, c) = (node(1, 0), node(2, 0), node(3, 1));
        assert_eq!(body, format!(r#"{{"code":0,"message":"ok","data":[{a},{b},{c}]}}"#));
        assert_eq!(status, 200);
    }

    #[tokio::test]
    async fn everything_else_is_not_there() {
        for (method, path) in
            [(Method::GET, "/"), (Method::POST, "/discovery/nodes"), (Method::POST, "/discovery/register")]
        {
            let (status, body) = ask(method, path).await;
            assert_eq!((status, body.starts_with(r#"{"code":-404,"#)), (404, true), "{body}");
        }
    }
}
