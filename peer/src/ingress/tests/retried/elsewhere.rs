//! Another owner: asked when the first refuses for reasons of its own, with the same bytes, and never when bytes
//! may have reached a backend (SPEC F7, F8).

use super::*;

/// An ingress and two played owners of web.example. The first FORWARD that arrives is refused with `code`, each
/// further one accepted and answered with how the whole request looked.
async fn two_owners(code: ErrorCode, head_and_body: usize) -> (World, Vec<Node>, Node, Seen) {
    let world = World::new();
    let ingress = world.node(9, &[], Bounds::default());
    let (seen, forwards) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let (mut owners, mut entries) = (Vec::new(), Vec::new());
    for n in 1..=2 {
        let owner = world.node(n, &["web.example=127.0.0.1:1".to_owned()], Bounds::default());
        let (noted, forwards) = (seen.clone(), Arc::clone(&forwards));
        let addr = play(
            &owner,
            |_| 1,
            move |_, mut tunnel| {
                let (seen, forwards) = (noted.clone(), Arc::clone(&forwards));
                async move {
                    // How much leaves with FORWARD depends on how the client's bytes came.
                    while let Some(mut asked) = asked(&mut tunnel, head_and_body.min(1)).await {
                        seen.note(n as usize, &asked);
                        if forwards.fetch_add(1, Ordering::Relaxed) == 0 {
                            refuse(&mut tunnel, &asked, code).await;
                            continue;
                        }
                        accept(&mut tunnel, &asked, b"").await.unwrap();
                        let have = asked.first.len();
                        asked.first.resize(head_and_body, 0);
                        read_exact(&mut tunnel, &mut asked.first[have..]).await;
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {head_and_body}\r\n\r\n");
                        send(&mut tunnel, &[head.as_bytes(), &asked.first].concat()).await;
                        if end(&mut tunnel).await.is_err() {
                            return;
                        }
                    }
                }
            },
        )
        .await;
        entries.push(owner.entry_at(addr));
        owners.push(owner);
    }
    ingress.learn_entries(entries, 1);
    (world, owners, ingress, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_goes_to_another_owner_byte_for_byte() {
    for (body_bytes, code) in [
        (0, ErrorCode::BackendRefused),
        (10, ErrorCode::BackendTimeout),
        (60_000, ErrorCode::Exhausted),
        // With its head exactly what is kept, and much more than that.
        (65_536 - 4 - post(&[0; 65_000]).len() + 65_000, ErrorCode::Draining),
        (65_536, ErrorCode::ServiceUnknown),
        (1_000_000, ErrorCode::BackendRefused),
    ] {
        let request = post(&pattern(body_bytes, 11));
        let (_world, _owners, ingress, seen) = two_owners(code, request.len()).await;
        let client = TcpStream::connect(ingress.listen).await.unwrap();
        let (read, mut write) = client.into_split();
        let sent = request.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write
        });
        let (head, echoed) = within(read_message(&mut BufReader::new(read))).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(echoed == request, "{body_bytes} bytes arrive as they were sent");
        drop(writing.await.unwrap());
        let asked = seen.0.lock().unwrap().iter().map(|(owner, _)| *owner).collect::<Vec<_>>();
        assert!(asked == [1, 2] || asked == [2, 1], "{asked:?}");
        assert!(seen.is_one_forward());
    }
}

/// Peers that hang take bytes and say nothing: the first requests that go to one wait in vain, and warn the others.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_silent_goes_last() {
    let world = World::new();
    let ingress = world.node(9, &[], Bounds::default());
    let (mut owners, mut entries) = (Vec::new(), Vec::new());
    for n in 1..=2 {
        let owner = world.node(n, &["web.example=127.0.0.1:1".to_owned()], Bounds::default());
        let addr = play(
            &owner,
            |_| 1,
            move |_, mut tunnel| async move {
                while let Some(asked) = asked(&mut tunnel, REQUEST.len()).await {
                    if n == 1 {
                        // Until the ingress closes the tunnel.
                        return drop(poll_recv(&mut tunnel).await);
                    }
                    accept(&mut tunnel, &asked, ANSWER).await.unwrap();
                    if end(&mut tunnel).await.is_err() {
                        return;
                    }
                }
            },
        )
        .await;
        entries.push(owner.entry_at(addr));
        owners.push(owner);
    }
    ingress.learn_entries(entries, 1);

    // One in two goes to the silent one.
    let mut first = Vec::new();
    for _ in 0..16 {
        let mut client = Client::to(&ingress).await;
        client.send(REQUEST).await;
        first.push(client);
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    for _ in 0..30 {
        let (status, body, took) = once(&ingress, REQUEST).await;
        assert_eq!(status, 200, "{body}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_clients_go_to_another_owner_as_well() {
    let request = pattern(50, 3);
    let (_world, _owners, ingress, seen) = two_owners(ErrorCode::BackendRefused, 0).await;
    let mut client = Client::to(&ingress).await;
    client
        .send(&[b"CONNECT web.example:80 HTTP/1.1\r\nHost: web.example:80\r\n\r\n", &request[..]].concat())
        .await;
    assert_eq!(client.response().await.0, 200);
    assert_eq!(client.response().await.0, 200);
    assert_eq!(seen.len(), 2);
    assert!(seen.is_one_forward());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_reach_it_is_not_sent_on() {
    for (code, status) in
        [(ErrorCode::Forbidden, 403), (ErrorCode::NotGranted, 403), (ErrorCode::AlreadyRuns, 502)]
    {
        let (_world, _owners, ingress, seen) = two_owners(code, post(b"x").len()).await;
        let mut client = Client::to(&ingress).await;
        client.send(&post(b"x")).await;
        let (got, body) = client.response().await;
        assert_eq!(got, status, "{body}");
        assert_eq!(seen.len(), 1);
        // Taken whole, so the connection goes on.
        client.send(&post(b"x")).await;
        assert_eq!(client.response().await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_owners_refuse_the_client_is_told_of_the_last() {
    let world = World::new();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let owners = [1, 2, 3].map(|n| world.node(n, &service("web.example", dead), Bounds::default()));
    let ingress = world.node(9, &[], Bounds::default());
    for owner in &owners {
        owner.learn(&[&ingress], 1);
    }
    ingress.learn(&owners.each_ref(), 1);
    let mut client = Client::to(&ingress).await;
    for _ in 0..2 {
        client.send(&post(b"some body")).await;
        let (status, body) = client.response().await;
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("the backend refused its owner's connection"), "{body}");
        assert!(body.contains("proxy_id: "), "{body}");
    }
    let all = || [&owners[0], &owners[1], &owners[2], &ingress].map(|node| node.forwards.counts());
    eventually("asked twice each", || all() == [(0, 2); 4]).await;
    // TLS and raw clients get a clean close, and no byte.
    let mut client = Client::to(&ingress).await;
    client.send(b"CONNECT web.example:80 HTTP/1.1\r\nHost: web.example:80\r\n\r\n").await;
    assert_eq!(client.response().await.0, 502);
    assert!(client.at_end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_backend_that_refuses_leaves_the_request_to_others() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let world = World::new();
    let other = world.node(1, &service("web.example", echo_backend("other").await), Bounds::default());
    let ingress = world.node(2, &service("web.example", dead), Bounds::default());
    other.learn(&[&ingress], 1);
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("web.example", "/").await.0, 502);
    ingress.learn(&[&other], 1);
    client.send(&post(b"body")).await;
    assert_eq!(client.response().await, (200, "other POST / HTTP/1.1 body".into()));
    drop(client);
    nothing_left(&ingress, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_in_the_middle_carries_on() {
    let world = World::new();
    let echoes = backend(|stream| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.write_all(b" bye").await.unwrap();
        write.shutdown().await.unwrap();
    })
    .await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (web, raw) = (service("web.example", echo_backend("c").await), service("raw.example", echoes));
    let services = [web, raw, service("dead.example", dead)].concat();
    for transit in [true, false] {
        let far = world.node(3, &services, Bounds::default());
        let bounds = Bounds { transit, remote_peers: vec![far.listen], ..Bounds::default() };
        let middle = world.node(1, &[], bounds);
        let bounds = Bounds { remote_peers: vec![middle.listen], ..Bounds::default() };
        let ingress = world.node(2, &[], bounds);
        crate::fixture::linked::link(&[&far, &middle, &ingress]);
        let mut client = Client::to(&ingress).await;
        if !transit {
            assert_eq!(client.get("web.example", "/").await.0, 404);
            continue;
        }
        client.send(&post(b"body")).await;
        assert_eq!(client.response().await, (200, "c POST / HTTP/1.1 body".into()));
        let (status, body) = client.get("dead.example", "/").await;
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("the backend refused its owner's connection"), "{body}");
        drop(client);
        // Bytes as they are, half-close included, and more of them than fit into any buffer.
        let mut client = Client::to(&ingress).await;
        client.send(b"CONNECT raw.example:80 HTTP/1.1\r\nHost: raw.example:80\r\n\r\n").await;
        assert_eq!(client.response().await.0, 200);
        let data = pattern(3_000_000, 5);
        let (mut read, mut write) = tokio::io::split(client.0);
        let sent = data.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
            write
        });
        let mut all = Vec::new();
        within(read.read_to_end(&mut all)).await.unwrap();
        assert!(all == [&data[..], b" bye"].concat());
        drop(writing.await.unwrap());
        nothing_left(&ingress, &middle).await;
        nothing_left(&middle, &far).await;
        // It is the owner of one forward and the ingress of another, and both have the same bytes.
        let records = middle.records.all();
        let of = |role: &str, key: &str| {
            let raw = records.iter().find(|row| row["role"] == role && row["service"] == "raw.example");
            raw.unwrap_or_else(|| panic!("{records:?}"))[key].clone()
        };
        assert_eq!(of("owner", "bytes_in"), data.len().to_string());
        assert_eq!(of("owner", "bytes_out"), of("ingress", "bytes_out"));
        assert_eq!(
            (of("owner", "peer_id"), of("ingress", "peer_id")),
            (ingress.id.to_string(), far.id.to_string())
        );
        assert_eq!((middle.pool.tunnels(), ingress.pool.tunnels().0), ((1, 1), 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_clients_that_are_refused_get_a_clean_close() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_world, owner, ingress) = crate::fixture::pair(&service("web.example", dead));
    let mut client = Client::to(&ingress).await;
    // More than is read before the verdict: unread bytes must not turn the close into a reset.
    client.send(&[client_hello(), vec![7; 200_000]].concat()).await;
    let mut said = Vec::new();
    within(client.0.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"");
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_stops_costs_no_request() {
    let world = World::new();
    let addr = echo_backend("b").await;
    let owners = [1, 2].map(|n| world.node(n, &service("web.example", addr), Bounds::default()));
    let ingress = world.node(9, &[], Bounds::default());
    for owner in &owners {
        owner.learn(&[&ingress], 1);
    }
    ingress.learn(&owners.each_ref(), 1);
    let (done, is_done) = watch::channel(false);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (listen, is_done) = (ingress.listen, is_done.clone());
            tokio::spawn(async move {
                let mut asked = 0;
                while !*is_done.borrow() {
                    let mut client = Client(BufReader::new(TcpStream::connect(listen).await.unwrap()));
                    client.send(b"POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody").await;
                    let (status, body) = client.response().await;
                    assert_eq!(status, 200, "{body}");
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    eventually("asked", || owners.iter().all(|owner| owner.forwards.counts().1 > 100)).await;
    owners[0].stop.cancel();
    // The news takes a while.
    tokio::time::sleep(Duration::from_millis(100)).await;
    ingress.learn(&[&owners[1]], 2);
    tokio::time::sleep(Duration::from_millis(900)).await;
    done.send_replace(true);
    for client in clients {
        assert!(within(client).await.unwrap() > 0);
    }
    let failed = ingress.records.all().iter().filter(|row| row["end"] != "done").count();
    assert_eq!(failed, 0);
}
