//! The hop with hyper: its server towards the client, its client towards the backend, bodies streamed.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};

use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::service::service_fn;
use hyper::{Request, client, server};
use hyper_util::rt::TokioIo;

use crate::script::{End, SERVICE};

/// Carries all requests of one client connection over one backend connection; `keep_names` as they are
/// spelled, else in lower case.
pub async fn carry(client: End, backend: End, keep_names: bool) -> anyhow::Result<()> {
    let (sender, connection) = client::conn::http1::Builder::new()
        .preserve_header_case(keep_names)
        .handshake::<_, Incoming>(TokioIo::new(backend))
        .await?;
    let connection = tokio::spawn(connection);
    let sender = Arc::new(Mutex::new(sender));
    let forward = service_fn(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            if request.headers().get(HOST).is_none_or(|host| host != SERVICE) {
                return Err("another service".into());
            }
            poll_fn(|cx| lock(&sender).poll_ready(cx)).await?;
            let answer = lock(&sender).send_request(request);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer.await?)
        }
    });
    server::conn::http1::Builder::new()
        .preserve_header_case(keep_names)
        .serve_connection(TokioIo::new(client), forward)
        .await?;
    connection.await??;
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("the bench ends with the first panic")
}
