//! The scheduler: the route and the start of each request, and the role of each engine.
//!
//! # Concepts
//! 1. **Fleet** ([`placement::FleetLoads`], [`placement::BackendLoad`]): per engine its role, prefill backlog,
//!    streams, KV and the smallest TPOT slack of its streams, reservations included.
//! 2. **Cost model** ([`cost`], fitted by [`learn`]): duration of a prefill, a decode step and a
//!    hand-off.
//! 3. **Slack**: the longest pause of a stream after which its mean TPOT still meets the target. A
//!    new stream has none. A prefill beside streams stalls them.
//! 4. **Route** ([`placement::RouteDecision`]): colocated on one engine, disaggregated (a prefill with
//!    a hand-off), or none yet: the request is queued.
//! 5. **Capacity**: whether an engine can take a prefill (backlog bound) or a stream (KV memory and
//!    step time less [`tuning::HEADROOM`]).
//! 6. **Score**: predicted completion in seconds plus [`tuning::SLACK_PRICE`] per second of slack taken
//!    from other streams. The lowest score wins among the routes that keep the TTFT deadline, or
//!    among all if none does.
//! 7. **EDF queue** ([`placement::EdfQueue`]): requests without a route, by TTFT deadline, with one
//!    late class for those that can no longer meet it.
//! 8. **Split and regret** ([`planner`]): a split is a number of prefill engines. A fluid model
//!    counts the requests that each split loses. The regret against a split is the loss of the
//!    advised split minus the loss of that split. The advised split is the split in force, except
//!    while flips are off or engines still switch.
//!
//! # Phases of a decision
//! A request ([`dispatch::try_place`], [`placement::place`]):
//! 1. Candidates: usable backends of the pool: the prefix holders, [`tuning::SAMPLE`] others, and
//!    further ones while none has capacity.
//! 2. Capacity: candidates without it are dropped. If none is left, the request enters the EDF queue.
//! 3. Score: the best route in time, to a decode engine too if the prefill delays no stream beyond its
//!    TPOT target; else a decode engine whose streams have slack for the delay (spill); else the best
//!    late route, unless it would take the last idle one of several prefill engines (trunk
//!    reservation). The request waits instead for a busy holder of its prefix that saves most of the
//!    prefill.
//! 4. Reservation by compare-and-swap; a lost race repeats the decision.
//!
//! After the prefill, [`placement::place_decode`] chooses the decode engine by capacity and score.
//! Slack in the score packs new streams onto one engine (bin packing), so that the others can take
//! prefills.
//!
//! A plan ([`planner::plan`], every 2 to 20 ms, each group by itself): pins and launch flags; at least
//! one engine for each role; then demand. The group switches to the split whose regret exceeds its
//! switching cost by most (ski rental). Engines with a comparative advantage in the new role flip
//! first, then those with the fewest streams.
//!
//! # Properties
//! - A dead backend receives nothing, and a draining one no first leg. A suspect receives work only
//!   if no other backend is left.
//! - No prefill starts without decode capacity for its stream, and no stream without memory for its
//!   answer. Exception: a prefilled request at its hand-off deadline takes the least loaded decode
//!   backend.
//! - Every queued request leaves exactly once: placed, refused, expired or cancelled.
//! - A plan leaves no role empty where two engines are free to take either, and breaks no pin.
//! - Equal inputs give equal decisions: recordings replay.
//!
//! Every rule is listed with its evidence in `docs/evaluation.md#rules`.
//!
//! # Modules
//! - [`cost`]: cost models of prefill, decode and hand-off, fitted online; the prefix index
//! - [`inflight`]: the in-flight charges of each backend, settled when dropped
//! - [`learn`]: the online regressions of all backends, from observations of requests
//! - [`placement`]: the route of a request and the EDF queue
//! - [`dispatch`]: placement, reservation and queueing of requests, on the accounts of [`inflight`]
//! - [`gateways`]: the sums of the loads of several gateways
//! - [`planner`]: the role of each backend, with a reason for every change
//! - [`tuning`]: every constant of the decisions
//!
//! Pure: time, events and seeds are arguments. [`placement`] and [`planner`] import [`cost`] and
//! not each other (`tests/behaviour/architecture.rs`). The proxy and the simulator run the same
//! code: it is generic over [`SharedU64`], an atomic in the proxy and a plain
//! cell ([`LocalU64`]) in virtual time.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cost;
pub mod dispatch;
pub mod gateways;
pub mod inflight;
pub mod learn;
pub mod placement;
pub mod planner;
mod shared_u64;
pub mod tuning;

pub use shared_u64::{LocalU64, SharedU64};
