//! Two linked Peers: one asks, the other brings.

use super::*;

use std::sync::atomic::AtomicU32;

use crate::fixture::{Bounds, Node, World, linked};
use crate::tunnel::{Lease, PoolError};

/// A Peer that is linked, and the one that dialled it and cannot be dialled.
fn linked_pair() -> (World, Node, Node) {
    let world = World::new();
    let asker = world.node(1, &[], Bounds::default());
    let bringer = world.node(2, &[], Bounds { remote_peers: vec![asker.listen], ..Bounds::default() });
    linked::link(&[&bringer, &asker]);
    (world, asker, bringer)
}

/// Carries what `asker` wants to `bringer`, as their agents do over the link; counts it.
async fn deliver(asker: &Node, bringer: &Node, wanted: &AtomicU32) {
    loop {
        asker.pool.changed().await;
        for (id, changes) in asker.pool.take_changes() {
            assert_eq!(id, bringer.id);
            wanted.fetch_add(changes.wanted, Ordering::Relaxed);
            bringer.pool.offer(asker.id, changes.wanted, &bringer.owner, &bringer.stop);
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn settled(what: &str, mut look: impl FnMut() -> bool) {
    let until = soon();
    while !look() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn as_many_are_expected_as_were_asked_for_and_not_for_ever() {
    let mut asked = Asked::default();
    let now = Instant::now();
    for _ in 0..TUNNELS_ASKED_MAX {
        assert!(asked.push(now));
    }
    assert!(!asked.push(now));
    assert!(asked.pop(now));
    assert!(asked.push(now));
    let later = now + ANSWER_TIMEOUT;
    assert!(!asked.pop(later));
    assert_eq!(asked.take_unanswered(later), u64::from(TUNNELS_ASKED_MAX));
    assert_eq!(asked.take_unanswered(later), 0);
    assert!(asked.push(later));
    // What has not come after a while is not counted on, and still taken.
    assert_eq!((asked.expected(later), asked.expected(later + ASK_AGAIN)), (1, 0));
    assert!(asked.pop(later + ASK_AGAIN));
}

#[tokio::test]
async fn tunnels_are_brought_and_used_again() {
    let (_world, asker, bringer) = linked_pair();
    let wanted = AtomicU32::new(0);
    let tried = async {
        let first = asker.pool.take(bringer.id, soon()).await.unwrap();
        first.give_back();
        let again = asker.pool.take(bringer.id, soon()).await.unwrap();
        assert_eq!(wanted.load(Ordering::Relaxed), 1);
        again.give_back();
        // What lies idle is not fresh.
        let fresh = asker.pool.take_fresh(bringer.id, soon()).await.unwrap();
        assert_eq!(wanted.load(Ordering::Relaxed), 2);
        assert_eq!(asker.pool.tunnels(), (2, 0));
        assert_eq!((asker.tunnel_metrics.asked.get(), asker.tunnel_metrics.matched.get()), (2, 2));
        assert_eq!(bringer.tunnel_metrics.dialled.get(), 2);
        settled("counted as served", || bringer.pool.tunnels() == (0, 2)).await;
        drop(fresh);
        settled("one closed", || bringer.pool.tunnels() == (0, 1)).await;
        assert_eq!(asker.pool.tunnels(), (1, 0));
    };
    tokio::select! {
        () = tried => {}
        () = deliver(&asker, &bringer, &wanted) => {}
    }
}

#[tokio::test]
async fn many_at_once_get_one_each() {
    let (_world, asker, bringer) = linked_pair();
    let wanted = AtomicU32::new(0);
    const COUNT: usize = 3 * TUNNELS_ASKED_MAX as usize;
    let tried = async {
        let takes = (0..COUNT).map(|_| asker.pool.take(bringer.id, soon()));
        let leases: Vec<Result<Lease, PoolError>> = futures_util::future::join_all(takes).await;
        for lease in &leases {
            assert!(lease.is_ok(), "{lease:?}");
        }
        let wanted = wanted.load(Ordering::Relaxed) as usize;
        // What takes long is asked for again.
        assert!((COUNT..2 * COUNT).contains(&wanted), "{wanted} were asked for");
        assert!((COUNT..=wanted).contains(&(asker.pool.tunnels().0 as usize)), "{:?}", asker.pool.tunnels());
    };
    tokio::select! {
        () = tried => {}
        () = deliver(&asker, &bringer, &wanted) => {}
    }
}

#[tokio::test]
async fn a_peer_that_is_to_be_ready_brings_some_ahead() {
    let (_world, asker, bringer) = linked_pair();
    let wanted = AtomicU32::new(0);
    let tried = async {
        asker.pool.warm(bringer.id);
        asker.pool.warm(bringer.id);
        settled("two are ready", || asker.pool.tunnels() == (2, 0)).await;
        // One in use: another comes after it.
        let _lease = asker.pool.take(bringer.id, soon()).await.unwrap();
        settled("two are ready again", || asker.pool.tunnels() == (3, 0)).await;
        assert_eq!(wanted.load(Ordering::Relaxed), 3);
    };
    tokio::select! {
        () = tried => {}
        () = deliver(&asker, &bringer, &wanted) => {}
    }
}

#[tokio::test]
async fn what_nobody_asked_for_is_not_taken() {
    let (_world, asker, bringer) = linked_pair();
    bringer.pool.offer(asker.id, 5, &bringer.owner, &bringer.stop);
    settled("all five were dialled and closed", || {
        let closed: u32 =
            bringer.pool.take_changes().iter().map(|(_, changes)| changes.closed_accepted).sum();
        closed == 5 || bringer.pool.tunnels() == (0, 0)
    })
    .await;
    settled("none was taken", || asker.pool.tunnels() == (0, 0)).await;
    settled("all five were counted", || asker.tunnel_metrics.unexpected.get() == 5).await;
    assert_eq!(asker.tunnel_metrics.matched.get(), 0);
}

#[tokio::test]
async fn who_gets_no_answer_gives_up_in_time() {
    let (_world, asker, bringer) = linked_pair();
    let deadline = Instant::now() + Duration::from_millis(100);
    let taken = asker.pool.take(bringer.id, deadline).await;
    assert!(matches!(taken, Err(PoolError::TimedOut(id)) if id == bringer.id), "{taken:?}");
    let changes = asker.pool.take_changes();
    assert_eq!(changes.iter().map(|(_, changes)| changes.wanted).sum::<u32>(), 1);
}

/// The ask can be faster than the news of who asks: then the bringer waits for the news.
#[tokio::test]
async fn an_ask_that_overtakes_the_news_is_answered() {
    let world = World::new();
    let asker = world.node(1, &[], Bounds::default());
    let bringer = world.node(2, &[], Bounds { remote_peers: vec![asker.listen], ..Bounds::default() });
    bringer.pool.offer(asker.id, 1, &bringer.owner, &bringer.stop);
    tokio::time::sleep(Duration::from_millis(50)).await;
    linked::link(&[&bringer, &asker]);
    let lease = asker.pool.take(bringer.id, soon()).await;
    assert!(lease.is_ok(), "{lease:?}");
}
