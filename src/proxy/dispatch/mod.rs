//! From an accepted request to a leg on a backend: placement, the EDF queue, legs, retries, hedging,
//! and the end of a request. [`context::Proxy`] is what all requests share.

pub(crate) mod answer;
pub(crate) mod attempts;
pub(crate) mod blame;
pub(crate) mod colocated;
pub(crate) mod concurrent_legs;
pub(crate) mod context;
pub(crate) mod cors;
pub(crate) mod disaggregated;
pub(crate) mod discovery;
pub(crate) mod dispatcher;
pub(crate) mod headers;
pub(crate) mod hedge;
pub(crate) mod inbound;
pub(crate) mod leg;
pub(crate) mod legs;
pub(crate) mod model_list;
pub(crate) mod named_prefill;
pub(crate) mod place;
pub(crate) mod prefilling;
pub(crate) mod queue;
pub(crate) mod reservation;
pub(crate) mod serving;
pub(crate) mod settle;
pub(crate) mod shapes;
pub(crate) mod sidecar;
pub(crate) mod signals;
pub(crate) mod watch;
