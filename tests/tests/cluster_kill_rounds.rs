//! A few of the rounds that `make kill-rounds` plays many of.

use p2p_tests::kill_rounds::{Plan, play};

fn play_a_few(servers: usize, kills: usize) {
    let plan = Plan { servers, kills, check_every: 4, writers: 3, clients: 4, seed: rand::random() };
    println!("seed {}", plan.seed);
    let summary = play(&plan, |line| println!("{line}")).unwrap();
    println!("{}", summary.lines());
    assert!(summary.acknowledged > 0 && summary.operations_written > 0);
}

#[test]
fn nothing_acknowledged_is_lost_while_servers_of_three_are_killed() {
    play_a_few(3, 8);
}

#[test]
fn nothing_acknowledged_is_lost_while_servers_of_five_are_killed() {
    play_a_few(5, 10);
}
