//! A few of the rounds that `make kill-rounds` plays many of.

use p2p_tests::kill_rounds::{Plan, play};

#[test]
fn nothing_acknowledged_is_lost_while_servers_are_killed() {
    let plan = Plan { rounds: 6, check_every: 3, writers: 3, seed: rand::random() };
    println!("seed {}", plan.seed);
    let summary = play(&plan, |line| println!("{line}")).unwrap();
    println!("{}", summary.line());
    assert!(summary.acknowledged > 0);
}
