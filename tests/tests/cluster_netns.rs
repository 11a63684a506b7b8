//! Servers in network namespaces: what the lab itself does, and a few of the faults that `make partitions` plays
//! many of. Without root each says so and passes.

use std::net::UdpSocket;
use std::time::Duration;

use p2p_tests::lab::partitions::{Plan, play};
use p2p_tests::lab::{Lab, available};

/// Whether a datagram of a few from the first server reaches the second: a busy machine may lose or delay one.
fn passes(lab: &Lab, from: &str, to: &str) -> bool {
    let address = (lab.address(to).unwrap(), 9000);
    let receiver = lab.at(to, || UdpSocket::bind(address)).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let sender = lab.at(from, || UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    (0..4).any(|_| {
        sender.send_to(b"word", address).unwrap();
        receiver.recv_from(&mut [0; 9]).is_ok()
    })
}

#[test]
fn a_lab_cuts_and_joins_what_it_is_told() {
    if !available() {
        return;
    }
    let lab = Lab::up(3).unwrap();
    assert!(passes(&lab, "s1", "s2"));
    lab.partition(&["s1"], &["s2", "s3"]).unwrap();
    let passed = [("s1", "s2"), ("s3", "s1"), ("s2", "s3"), ("pub", "s1")].map(|(a, b)| passes(&lab, a, b));
    assert_eq!(passed, [false, false, true, true]);
    lab.heal().unwrap();
    lab.partition_one_way(&["s1"], &["s2"]).unwrap();
    assert_eq!([passes(&lab, "s1", "s2"), passes(&lab, "s2", "s1")], [false, true]);
    lab.heal().unwrap();
    assert!(passes(&lab, "s1", "s2"));
}

#[test]
fn three_servers_keep_their_promises_while_the_network_fails() {
    faults(3, 5);
}

#[test]
fn five_servers_keep_their_promises_while_the_network_fails() {
    faults(5, 4);
}

fn faults(servers: usize, rounds: usize) {
    if !available() {
        return;
    }
    let plan = Plan { servers, rounds, clients: 4, seed: rand::random() };
    println!("seed {}", plan.seed);
    let summary = play(&plan, |line| println!("{line}")).unwrap();
    println!("{}", summary.line());
    assert!(summary.operations > 0);
}
