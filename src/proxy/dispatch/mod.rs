//! From an accepted request to a leg on a backend: placement, the EDF queue, legs, retries, hedging,
//! and settlement. [`context::Proxy`] is the state shared by all requests.

pub(crate) mod answer;
pub(crate) mod attempts;
pub(crate) mod blame;
pub(crate) mod capacity_signal;
pub(crate) mod colocated;
pub(crate) mod concurrent_legs;
pub(crate) mod context;
pub(crate) mod cors;
pub(crate) mod disaggregated;
pub(crate) mod discovery;
pub(crate) mod dispatcher;
pub(crate) mod headers;
pub(crate) mod hedge;
pub(crate) mod hedge_limit;
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
pub(crate) mod settings_in_force;
pub(crate) mod settle;
pub(crate) mod shapes;
pub(crate) mod sidecar;
pub(crate) mod watch;
