//! A service of hyper's for HTTP/2 and HTTP/1.1 clients, which says what it understood.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use sha2::{Digest, Sha256};

use super::Service;
use crate::backend::pattern;

/// What is answered.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;
/// Will be one.
pub type Answering = Pin<Box<dyn Future<Output = Result<Answer, hyper::Error>> + Send>>;

/// Serves with `handler`, in whichever of both versions a client speaks.
pub fn serve(
    handler: impl Fn(Request<Incoming>) -> Answering + Send + Sync + 'static,
) -> std::io::Result<Service> {
    let handler = Arc::new(handler);
    Service::each(move |stream| {
        let handler = Arc::clone(&handler);
        async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = service_fn(move |request| handler(request));
            // Clients see on their side how it ended.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
}

/// `/bytes/N` gives N bytes of [`pattern`]; anything else gives JSON of what was asked.
pub fn start() -> std::io::Result<Service> {
    serve(|request| Box::pin(answer(request)))
}

/// A whole body.
pub fn full(body: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed()
}

async fn answer(request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let (head, body) = request.into_parts();
    if let Some(count) = head.uri.path().strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
        return Ok(Response::new(full((0..count).map(pattern).collect::<Vec<_>>())));
    }
    let body = body.collect().await?.to_bytes();
    let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let echo = serde_json::json!({
        "version": format!("{:?}", head.version),
        "method": head.method.as_str(),
        "authority": head.uri.authority().map(|authority| authority.as_str()),
        "path": head.uri.path(),
        "body_bytes": body.len(),
        "body_sha256": sha256,
    });
    Ok(Response::new(full(echo.to_string())))
}
