//! Tunnel streams against each other and against rustls, over pipes of any size.

use super::*;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::RootCertStore;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::tls::provider;

const NAME: &str = "node.invalid";

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.send_tls13_tickets = 0;
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    (client.alpn_protocols, server.alpn_protocols) = (vec![b"t".to_vec()], vec![b"t".to_vec()]);
    (Arc::new(client), Arc::new(server))
}

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

/// Two tunnel streams over a pipe that holds `pipe` bytes.
async fn pair(pipe: usize) -> (TunnelStream<DuplexStream>, TunnelStream<DuplexStream>) {
    let (client, server) = configs();
    let (near, mut far) = duplex(pipe);
    let (client, server) = tokio::join!(connect(near, client, name()), async {
        let mut first = [0; 7];
        far.read_exact(&mut first).await.unwrap();
        accept(far, server, &first).await
    });
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!((client.alpn.as_deref(), server.alpn.as_deref()), (Some(&b"t"[..]), Some(&b"t"[..])));
    assert_eq!(client.chain.len(), 1);
    (client.stream, server.stream)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|nth| (nth * 31) as u8).collect()
}

/// Sends `data` in pieces both ways at once and closes; both sides must get all of it and then the end.
async fn exchange<A, B>(near: A, far: B, data: Vec<u8>, piece: usize)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    async fn side<S: AsyncRead + AsyncWrite>(stream: S, data: &[u8], piece: usize) {
        let (mut read, mut write) = tokio::io::split(stream);
        let send = async {
            for piece in data.chunks(piece) {
                let (front, back) = piece.split_at(piece.len() / 3);
                let mut pieces = &mut [IoSlice::new(front), IoSlice::new(&[]), IoSlice::new(back)][..];
                while pieces.iter().any(|piece| !piece.is_empty()) {
                    let sent = write.write_vectored(pieces).await.unwrap();
                    IoSlice::advance_slices(&mut pieces, sent);
                }
            }
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let receive = async { read.read_to_end(&mut got).await.unwrap() };
        tokio::join!(send, receive);
        assert!(got == data, "{} bytes came of {}", got.len(), data.len());
    }
    let both = async { tokio::join!(side(near, &data, piece), side(far, &data, piece)) };
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("nothing moves any more");
}

#[tokio::test]
async fn carries_both_ways_in_pieces_of_any_size() {
    for (pipe, piece) in
        [(100, 1_000), (4096, 16_384), (100_000, 16_385), (1 << 20, 65_536), (1 << 20, 200_000), (300, 1)]
    {
        let (near, far) = pair(pipe).await;
        let data = bytes(if piece == 1 { 2_000 } else { 400_000 });
        exchange(near, far, data, piece).await;
    }
}

#[tokio::test]
async fn speaks_with_rustls_on_either_side() {
    for pipe in [1_000, 1 << 20] {
        let (client, server) = configs();
        let (near, far) = duplex(pipe);
        let rustls = TlsAcceptor::from(server);
        let (client, server) = tokio::join!(connect(near, client, name()), rustls.accept(far));
        exchange(client.unwrap().stream, server.unwrap(), bytes(300_000), 50_000).await;

        let (client, server) = configs();
        let (near, far) = duplex(pipe);
        let rustls = TlsConnector::from(client);
        let (client, server) = tokio::join!(rustls.connect(name(), near), accept(far, server, &[]));
        exchange(client.unwrap(), server.unwrap().stream, bytes(300_000), 50_000).await;
    }
}

#[tokio::test]
async fn keys_change_when_it_is_time_and_when_the_other_side_asks() {
    let (mut near, mut far) = pair(1_000).await;
    (near.rekey_records, far.rekey_records) = (3, 2);
    exchange(near, far, bytes(500_000), 10_000).await;

    let (client, server) = configs();
    let (near, far) = duplex(1 << 20);
    let rustls = TlsAcceptor::from(server);
    let (client, server) = tokio::join!(connect(near, client, name()), rustls.accept(far));
    let (mut ours, mut theirs) = (client.unwrap().stream, server.unwrap());
    ours.rekey_records = 2;
    for round in 0..5 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(b"question").await.unwrap();
        theirs.flush().await.unwrap();
        let mut got = [0; 8];
        ours.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"question", "round {round}");
        ours.write_all(b"response").await.unwrap();
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"response", "round {round}");
    }
    // Asked for in return.
    let (mut near, mut far) = pair(1_000).await;
    near.seal_message(Content::Handshake, &KEY_UPDATE_REQUESTED).unwrap();
    near.send = Keys::new(near.rekey.next_send().unwrap()).unwrap();
    near.write_all(b"a").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'a');
    assert!(far.owes_update);
    far.write_all(b"b").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'b');
    assert!(!far.owes_update && far.send.used() == 1 && near.receive.used() == 1);
}

#[tokio::test]
async fn holds_memory_only_while_bytes_are_on_their_way() {
    let (mut near, mut far) = pair(1 << 20).await;
    for _ in 0..2 {
        near.write_all(&bytes(100_000)).await.unwrap();
        let mut got = vec![0; 100_000];
        far.read_exact(&mut got).await.unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(1), far.read_u8()).await;
        assert!(nothing.is_err());
        assert!(!far.incoming.holds_memory() && !far.outgoing.holds_memory());
        assert!(!near.incoming.holds_memory() && !near.outgoing.holds_memory());
    }
}

#[tokio::test]
async fn an_end_without_close_notify_and_a_forged_record_are_errors() {
    let (near, mut far) = pair(1 << 20).await;
    drop(near);
    assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[23, 3, 3, 0, 17, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
    ] {
        let (mut near, mut far) = pair(1 << 20).await;
        near.io.write_all(garbage).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    for message in [&b"\x04\0\0\0"[..], b"\x18\0\0\x01\x02", b"\x18\0\0", b""] {
        let (mut near, mut far) = pair(1 << 20).await;
        near.seal_message(Content::Handshake, message).unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{message:?}");
    }
}

#[tokio::test]
async fn a_stream_that_was_shut_down_still_reads_and_no_longer_writes() {
    let (mut near, mut far) = pair(1 << 20).await;
    near.shutdown().await.unwrap();
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    far.write_all(b"still").await.unwrap();
    far.shutdown().await.unwrap();
    near.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"still");
}

#[tokio::test]
async fn a_failed_handshake_tells_the_other_side_why() {
    let ((_, server), (client, _)) = (configs(), configs());
    let (near, far) = duplex(1 << 20);
    let (client, server) = tokio::join!(connect(near, client, name()), accept(far, server, &[]));
    let (ours, theirs) = (client.err().unwrap().to_string(), server.err().unwrap().to_string());
    assert!(ours.contains("invalid peer certificate"), "{ours}");
    assert!(theirs.contains("received fatal alert"), "{theirs}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn pieces_of_any_sizes_arrive_in_order(sizes in prop::collection::vec(0_usize..70_000, 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut near, mut far) = pair(8_000).await;
            let data = bytes(sizes.iter().sum());
            let send = async {
                let mut rest = &data[..];
                let mut pieces: Vec<IoSlice<'_>> = Vec::new();
                for size in &sizes {
                    let (piece, behind) = rest.split_at(*size);
                    pieces.push(IoSlice::new(piece));
                    rest = behind;
                }
                let mut pieces = &mut pieces[..];
                while pieces.iter().any(|piece| !piece.is_empty()) {
                    let sent = near.write_vectored(pieces).await.unwrap();
                    IoSlice::advance_slices(&mut pieces, sent);
                }
                near.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            tokio::join!(send, async { far.read_to_end(&mut got).await.unwrap() });
            assert!(got == data);
        });
    }
}

#[tokio::test]
async fn hostile_bytes_in_a_handshake_are_errors() {
    // What an honest client says first, cut and changed in every byte.
    let (client, server) = configs();
    let (near, mut far) = duplex(1 << 20);
    let mut hello = vec![0; 4096];
    let read = tokio::select! {
        _ = connect(near, client, name()) => unreachable!("nobody answers"),
        read = far.read(&mut hello) => read.unwrap(),
    };
    hello.truncate(read);
    for at in 0..hello.len() {
        let mut changed = hello.clone();
        changed[at] ^= 0x41;
        for sent in [&hello[..at], &changed, &[&hello[..], &changed].concat(), &changed[at..]] {
            let (mut near, far) = duplex(1 << 20);
            near.write_all(sent).await.unwrap();
            near.shutdown().await.unwrap();
            let accepted = accept(far, Arc::clone(&server), &[]).await;
            assert!(accepted.is_err(), "byte {at}");
        }
    }
}
