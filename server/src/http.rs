//! What is served over plain HTTP beside the operations port.

pub mod discovery;
