//! A gRPC service of tonic's with what exists anyway: health (one answer, and a stream of answers) and
//! reflection (streams both ways); and a client that comes in by any connection.

use std::future::Future;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic_health::ServingStatus;
use tower::service_fn;

use super::Service;

/// The service whose health changes.
pub const CHANGING: &str = "changing";

/// Serves; [`CHANGING`] is serving for the first `healthy`.
pub fn start(healthy: Duration) -> anyhow::Result<Service> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(Service::start(async move |listener| {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status(CHANGING, ServingStatus::Serving).await;
        let serve = Server::builder()
            .add_service(health)
            .add_service(reflection)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let change = async {
            tokio::time::sleep(healthy).await;
            reporter.set_service_status(CHANGING, ServingStatus::NotServing).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Clients see on their side how it ended.
            _ = serve => {}
            () = change => {}
        }
    })?)
}

/// A client of `authority` over what `connect` opens.
///
/// # Errors
/// When that fails.
pub async fn channel<C, F, S>(authority: &str, connect: C) -> anyhow::Result<Channel>
where
    C: Fn() -> F + Send + Sync + Clone + 'static,
    F: Future<Output = anyhow::Result<S>> + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connector = service_fn(move |_: Uri| {
        let connect = connect.clone();
        async move { connect().await.map(TokioIo::new).map_err(|error| std::io::Error::other(error.to_string())) }
    });
    Ok(Endpoint::from_shared(format!("http://{authority}"))?.connect_with_connector(connector).await?)
}
