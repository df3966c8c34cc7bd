//! What every room uses: the clock, timer coalescing, budgets and permits. Imports no other room.

pub(crate) mod budget;
pub(crate) mod clock;
pub(crate) mod connections;
pub(crate) mod lanes;
pub(crate) mod thread_buffer;
pub(crate) mod timer_coalescing;
pub(crate) mod vital;
