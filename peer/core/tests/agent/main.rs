//! The agent in whole worlds: fake Servers, virtual time, through the public interface only.

mod chaos;
mod revoked;
mod scenario;
mod world;
