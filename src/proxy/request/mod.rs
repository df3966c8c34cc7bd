//! The stages of a request, and its answer. Begin with [`handle`].

pub(crate) mod byte_relay;
pub(crate) mod direct;
pub(crate) mod estimate;
pub(crate) mod handle;
pub(crate) mod intake;
pub(crate) mod models;
pub(crate) mod relay;
pub(crate) mod respond;
pub(crate) mod tunnel;
pub(crate) mod waiting;
