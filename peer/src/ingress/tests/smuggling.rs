//! What could be read as two requests, or as one for another service: told to the client, and nothing of it
//! reaches a backend. The whole list of heads is in the framing's own tests; here is one of each kind, against
//! running Peers.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::fixture::pair;

/// A backend that keeps what it is sent and answers each request with its own name.
async fn recording(name: &'static str) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let addr = backend(move |mut stream| {
        let record = Arc::clone(&record);
        async move {
            let (mut bytes, mut buffer) = (Vec::new(), [0; 65_536]);
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                record.lock().unwrap().extend_from_slice(&buffer[..count]);
                bytes.extend_from_slice(&buffer[..count]);
                // As naive as can be: whatever looks like the end of a head gets an answer.
                while let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                    bytes.drain(..at + 4);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await;
    (addr, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_case_gets_its_answer_and_no_backend_sees_what_is_refused() {
    let (a, seen_by_a) = recording("a").await;
    let (b, seen_by_b) = recording("b").await;
    let (_world, owner, ingress) = pair(&[format!("a.example={a}"), format!("b.example={b}")]);
    let admin = "GET /admin HTTP/1.1\r\nHost: b.example\r\n\r\n";
    let huge = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{}\r\n", "X: y\r\n".repeat(101));
    let get_a = "GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let get_b = "GET /2 HTTP/1.1\r\nHost: b.example\r\n\r\n";
    for (why, sent, answers, a_sees, b_sees) in [
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", "400", "", ""),
        ("one Host twice", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", "400", "", ""),
        ("no Host", "GET / HTTP/1.1\r\n\r\n", "400", "", ""),
        (
            "two lengths",
            &format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n{admin}"
            ),
            "400",
            "",
            "",
        ),
        (
            "length and chunked",
            &format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 49\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0\r\n\r\n{admin}"
            ),
            "400",
            "",
            "",
        ),
        (
            "chunked in disguise",
            &format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{admin}"
            ),
            "400",
            "",
            "",
        ),
        (
            "absolute form, another Host",
            "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "400",
            "",
            "",
        ),
        ("obs-fold", "GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n Host: b.example\r\n\r\n", "400", "", ""),
        ("bare line feed", "GET / HTTP/1.1\nHost: a.example\n\n", "400", "", ""),
        ("blank before the colon", "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", "400", "", ""),
        ("a huge field", &huge, "431", "", ""),
        ("many fields", &many, "431", "", ""),
        ("a list of Hosts", "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n", "400", "", ""),
        ("user and host", "GET / HTTP/1.1\r\nHost: a.example@b.example\r\n\r\n", "400", "", ""),
        // What is fine goes where it says, to the letter, though it comes in one piece.
        (
            "Host switched",
            &format!("{get_a}{get_b}{get_a}"),
            "200 200 200",
            &format!("{get_a}{get_a}"),
            get_b,
        ),
        (
            "a request in a body",
            &format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n{admin}{get_b}",
                admin.len()
            ),
            // The naive backend answers twice, and what it answered unasked is dropped with its connection.
            "200 200",
            &format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n{admin}", admin.len()),
            get_b,
        ),
        (
            "a good one, then a bad one",
            &format!("{get_a}GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"),
            "200 400",
            get_a,
            "",
        ),
        (
            "absolute form",
            "GET HTTP://A.example:80/x?y HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "200",
            "GET /x?y HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            "absolute form, then another service",
            &format!("GET http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n{get_b}"),
            "200 200",
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            get_b,
        ),
    ] {
        seen_by_a.lock().unwrap().clear();
        seen_by_b.lock().unwrap().clear();
        let mut client = TcpStream::connect(ingress.listen).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        let _ = client.shutdown().await;
        let mut bytes = Vec::new();
        let _ = within(client.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes);
        let said: Vec<&str> =
            text.split("HTTP/1.1 ").skip(1).map(|rest| rest.get(..3).unwrap_or_default()).collect();
        assert_eq!(said.join(" "), answers, "{why}: {text}");
        // The last forward has ended, so nothing is on its way to a backend any more.
        nothing_left(&ingress, &owner).await;
        let seen = |of: &Mutex<Vec<u8>>| String::from_utf8_lossy(&of.lock().unwrap()).into_owned();
        assert_eq!((&*seen(&seen_by_a), &*seen(&seen_by_b)), (a_sees, b_sees), "{why}");
    }
}
