//! The agent beside a workload, and a library: services, links, forwarding by name.
