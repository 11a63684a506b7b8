//! What Master each Server names while others die, return, are cut off and stop: each file of
//! `tests/testdata/transcripts` is played. Without root each test says so and passes.

use p2p_tests::lab::available;
use p2p_tests::lab::transcript::Transcript;
use p2p_tests::repository_root;

fn play(name: &str) {
    if !available() {
        return;
    }
    let path = repository_root().join("tests/testdata/transcripts").join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).unwrap();
    match Transcript::parse(&text).and_then(|transcript| transcript.play()) {
        Ok(table) => println!("{table}"),
        Err(error) => panic!("{name}: {error:#}"),
    }
}

#[test]
fn two_and_the_learner_dies() {
    play("two-learner-dies");
}

#[test]
fn two_and_the_voter_dies() {
    play("two-voter-dies");
}

#[test]
fn two_and_the_network_between_them_fails() {
    play("two-partition");
}

#[test]
fn two_and_the_voter_stops() {
    play("two-clean-stop");
}

#[test]
fn three_and_two_die() {
    play("three-two-die");
}

#[test]
fn five_and_three_die() {
    play("five-three-die");
}
