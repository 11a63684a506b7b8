//! A node of the server cluster: raft, tables, introductions, gRPC.
