//! The whole API over a real port: TLS with certificates of a real CA, a raft thread with its store, a hub.

mod audit;
mod ca;
mod documented;
mod enrolment;
mod identities;
mod look_ups;
mod matrix;
mod renewal;
mod revocations;
mod sessions;
mod settings;
mod world;
