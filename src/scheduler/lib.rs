//! The scheduler: the route and the start of each request, and the role of each engine.
//!
//! # Concepts
//! 1. **Fleet** ([`placement::Fleet`], [`placement::Load`]): per engine its role, prefill backlog,
//!    streams, KV and the smallest TPOT slack of its streams, reservations included.
//! 2. **Cost model** ([`cost`], fitted by [`learn`]): duration of a prefill, a decode step and a
//!    hand-off.
//! 3. **Slack**: how long a stream can pause before its mean TPOT misses the target. A new stream
//!    has none. A prefill beside streams stalls them.
//! 4. **Route** ([`placement::RouteDecision`]): the whole request on one engine, a prefill with a hand-off,
//!    or a wait.
//! 5. **Room**: whether an engine can take a prefill (backlog bound) or a stream (memory and step
//!    time less [`tuning::HEADROOM`]).
//! 6. **Rank**: predicted completion in seconds plus [`tuning::SLACK_PRICE`] per second of slack taken
//!    from others. A route that keeps the TTFT deadline precedes one that does not.
//! 7. **EDF queue** ([`placement::EdfQueue`]): requests without a route, by TTFT deadline, with one
//!    late class for those that can no longer meet it.
//! 8. **Split and regret** ([`planner`]): a split is a number of prefill engines. A fluid model
//!    counts the requests that each split loses; the regret against a split is what the advised
//!    split lost more.
//!
//! # Phases of a decision
//! A request ([`dispatch::try_place`], [`placement::place`]):
//! 1. Candidates: usable backends of the pool: the prefix holders, [`tuning::SAMPLE`] others, and
//!    further ones while none has room.
//! 2. Room: candidates without it are dropped. Nothing left: the request waits in the EDF queue.
//! 3. Rank: the best route in time; else a decode engine whose streams have slack (spill); else the
//!    best late route, unless it would take the last idle prefill engine (trunk reservation). The
//!    request waits instead for a busy holder of its prefix that saves most of the prefill.
//! 4. Reservation by compare-and-swap; after a lost race the decision is repeated.
//!
//! After the prefill, [`placement::place_decode`] chooses the decode engine by room and rank. Slack
//! in the rank packs new streams onto one engine, so that the others can take prefills.
//!
//! A plan ([`planner::plan`], every 2 to 20 ms, each group by itself): pins and launch flags, one
//! engine for each role, then demand: losses and regret of every split; the group switches to the
//! split whose regret exceeds its switching cost by most (ski rental); engines with the
//! comparative advantage flip first, then those with the fewest streams.
//!
//! # Properties
//! - A dead backend receives nothing, and a draining one no first leg; a suspect receives work only
//!   if no other is left.
//! - No prefill starts without room for its stream, and no stream without memory for its answer,
//!   except a prefilled request at its hand-off deadline: it takes the least loaded decode backend.
//! - Every queued request leaves exactly once: placed, refused, expired or cancelled.
//! - A plan leaves no role empty where two engines are free to take either, and breaks no pin.
//! - The same inputs give the same decisions: recordings replay.
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
