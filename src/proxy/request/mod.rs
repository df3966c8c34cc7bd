//! The stages of a request and the body of its answer. Start reading at [`handle`].

pub(crate) mod body;
pub(crate) mod byte_relay;
pub(crate) mod direct;
pub(crate) mod estimate;
pub(crate) mod event_relay;
pub(crate) mod handle;
pub(crate) mod intake;
pub(crate) mod models;
pub(crate) mod respond;
pub(crate) mod tunnel;
pub(crate) mod usage_injection;
