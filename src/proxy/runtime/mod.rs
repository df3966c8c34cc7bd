//! Process-wide primitives: the clock, timer coalescing, the body budget, filter permits, connection
//! limits, task liveness. Imports no other room.

pub(crate) mod budget;
pub(crate) mod clock;
pub(crate) mod connections;
pub(crate) mod file_stamp;
pub(crate) mod filter_permits;
pub(crate) mod liveness;
pub(crate) mod reloadable;
pub(crate) mod thread_buffer;
pub(crate) mod timer_coalescing;
