//! [`PacedBody`]: the body of a request that is one message, from a client that must not be slow on purpose.
//!
//! A message is on its way when its call begins, so whoever sends less than [`RATE_BYTES_PER_S`] holds a call, its
//! memory and a stream for nothing. Streams of messages may be silent and are watched by who reads them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use p2p_common::ErrorCode;
use p2p_proto::status::refuse;
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

/// A modem sends 20 times as much.
const RATE_BYTES_PER_S: u64 = 256;
/// How long a client may be slower.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The methods whose requests are streams.
const STREAMING: &[&str] = &[
    "/p2p.v1.Session/Attach",
    "/p2p.v1.Raft/Stream",
    "/p2p.v1.Raft/SendSnapshot",
    "/p2p.v1.Raft/Probe",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The body of a request for `method`: watched, if it is one message.
pub(super) fn paced(method: &str, body: Body) -> Body {
    if body.is_end_stream() || STREAMING.contains(&method) { body } else { Body::new(PacedBody::new(body)) }
}

struct PacedBody {
    inner: Body,
    received: u64,
    /// None while nobody waits.
    look: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    fn new(inner: Body) -> Self {
        PacedBody { inner, received: 0, look: None }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { inner, received, look } = &mut *self;
        let frame = Pin::new(inner).poll_frame(cx);
        if let Poll::Ready(frame) = frame {
            let count = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) | None => 0,
            };
            *received += count as u64;
            return Poll::Ready(frame);
        }
        let look = look.get_or_insert_with(|| Box::pin(sleep(LOOK_EVERY)));
        while look.as_mut().poll(cx).is_ready() {
            if *received < RATE_BYTES_PER_S * LOOK_EVERY.as_secs() {
                let text = "the request came too slowly: it is one message and is sent at once";
                return Poll::Ready(Some(Err(refuse(ErrorCode::BadRequest, text))));
            }
            *received = 0;
            look.as_mut().reset(Instant::now() + LOOK_EVERY);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_proto::v1;
    use prost::Message;
    use std::collections::BTreeSet;
    use tokio::sync::mpsc;

    /// A body that is sent from outside.
    struct Sent(mpsc::Receiver<Bytes>);

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    /// How long a body of 100 pieces is read, each `bytes` long and sent once a second, and how it ends.
    async fn read(method: &str, bytes: usize) -> (u64, Result<(), Status>) {
        let (tx, rx) = mpsc::channel(1);
        let mut body = paced(method, Body::new(Sent(rx)));
        let sender = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if tx.send(Bytes::from(vec![0; bytes])).await.is_err() {
                    return;
                }
            }
        });
        let start = Instant::now();
        let ended = loop {
            match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(status)) => break Err(status),
                None => break Ok(()),
            }
        };
        drop(body);
        sender.await.unwrap();
        (start.elapsed().as_secs(), ended)
    }

    #[tokio::test(start_paused = true)]
    async fn the_slow_are_ended_and_the_others_not() {
        let (seconds, ended) = read("/p2p.v1.Enroll/Enroll", 200).await;
        assert_eq!((seconds, ended.unwrap_err().code()), (10, tonic::Code::InvalidArgument));
        let (seconds, ended) = read("/p2p.v1.Enroll/Enroll", 300).await;
        assert!(ended.is_ok() && seconds == 100, "{seconds}");
        assert!(read("/p2p.v1.Raft/Stream", 1).await.1.is_ok());
    }

    #[test]
    fn what_streams_is_what_the_descriptors_say() {
        let sets = [
            v1::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let decoded = sets.map(|set| prost_types::FileDescriptorSet::decode(set).unwrap());
        let mut streaming = BTreeSet::new();
        for file in decoded.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                for method in service.method.iter().filter(|method| method.client_streaming()) {
                    streaming.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        assert_eq!(streaming, STREAMING.iter().map(|path| (*path).to_owned()).collect());
    }
}
