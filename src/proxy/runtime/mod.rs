//! Shared by every room: the clock, timer coalescing, memory budgets and permits. Imports no other
//! room.

pub(crate) mod budget;
pub(crate) mod clock;
pub(crate) mod connections;
pub(crate) mod lanes;
pub(crate) mod thread_buffer;
pub(crate) mod timer_coalescing;
pub(crate) mod vital;
