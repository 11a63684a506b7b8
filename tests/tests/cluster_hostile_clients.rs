//! Attacks of every kind on a Server and a Peer, one after the other: honest clients are served all the while, and
//! what an attack costs is bounded. `make bench-hostile` measures the same for longer.

use std::time::Duration;

use p2p_tests::bench::hostile::{Attack, Scene};

/// Of each attack.
const ATTACK: Duration = Duration::from_secs(3);
/// Before each.
const CALM: Duration = Duration::from_millis(500);
/// What the honest wait at most. Mostly the weather of a loaded machine, and binaries that are not optimised.
const PROMPT_MS: f64 = 3_000.0;
/// What a process may gain by one attack: buffers of some hundreds of connections.
const GROWTH_MIB: f64 = 96.0;

#[test]
fn honest_clients_are_served_during_every_attack() {
    let mut scene = Scene::start().unwrap();
    for attack in Attack::ALL {
        let outcome = scene.withstand(attack, CALM, ATTACK).unwrap();
        println!("{}: {outcome:?}", attack.name());
        let during = outcome.during;
        assert_eq!(during.failed, 0, "{}: {outcome:?}", attack.name());
        for p99 in [during.calls_p99_ms, during.connects_p99_ms, during.forwards_p99_ms] {
            assert!(p99 < PROMPT_MS, "{}: {outcome:?}", attack.name());
        }
        assert!(outcome.grown_mib < GROWTH_MIB, "{}: {outcome:?}", attack.name());
        assert!(outcome.connections > 0 && outcome.acts > 0, "{} did nothing: {outcome:?}", attack.name());
    }
}
