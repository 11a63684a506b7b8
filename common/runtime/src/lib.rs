//! What both binaries need from their process: logging, configuration, identity, TLS, gRPC plumbing, health.
