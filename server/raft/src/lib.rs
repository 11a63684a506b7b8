//! The raft driver as inputs and outputs: log, state machine, membership; no IO, no clock.
