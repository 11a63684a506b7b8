//! As much of a Kubernetes API server as `kubectl get nodes` and its watch need; TLS stands in front of it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{Service, http2};

/// Serves one node, `node-1`; a watch tells of `node-2` after `idle`, and stays open.
pub fn start(idle: Duration) -> std::io::Result<Service> {
    http2::serve(move |request| Box::pin(async move { Ok(answer(&request, idle)) }))
}

fn answer(request: &Request<Incoming>, idle: Duration) -> http2::Answer {
    let query = request.uri().query().unwrap_or_default();
    let body = match request.uri().path() {
        "/version" => json!({"major": "1", "minor": "32", "gitVersion": "v1.32.4"}),
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [{
            "name": "nodes", "singularName": "node", "namespaced": false, "kind": "Node",
            "verbs": ["get", "list", "watch"], "shortNames": ["no"],
        }]}),
        "/api/v1/nodes" if query.split('&').any(|word| word == "watch=true" || word == "watch=1") => {
            return watch(idle);
        }
        "/api/v1/nodes" => nodes("node-1"),
        _ => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "NotFound", "code": 404});
            let mut response = json_response(http2::full(status.to_string()));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    json_response(http2::full(body.to_string()))
}

/// Nothing for `idle`, then a node, then nothing for ever.
fn watch(idle: Duration) -> http2::Answer {
    let event = stream::once(async move {
        tokio::time::sleep(idle).await;
        let event = json!({"type": "ADDED", "object": nodes("node-2")});
        Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n"))))
    });
    json_response(BodyExt::boxed(StreamBody::new(event.chain(stream::pending()))))
}

/// As the printable table that kubectl asks for.
fn nodes(name: &str) -> Value {
    let column = |name: &str, format: &str| json!({"name": name, "type": "string", "format": format, "description": "", "priority": 0});
    let metadata = json!({"name": name, "resourceVersion": "1", "creationTimestamp": null});
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "1"},
        "columnDefinitions": [column("Name", "name"), column("Status", "")],
        "rows": [{
            "cells": [name, "Ready"],
            "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata},
        }],
    })
}

fn json_response(body: BoxBody<Bytes, Infallible>) -> http2::Answer {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
