//! Simulations, real clusters and benches around the whole system, and the lint of the repository itself.
