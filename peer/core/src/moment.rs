//! [`Moment`]: the time of an input on both clocks.

use p2p_common::{Now, UnixMs};

/// When an input happened: `now` decides, `unix` is shown to people and other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Monotonic time.
    pub now: Now,
    /// Wall time.
    pub unix: UnixMs,
}
