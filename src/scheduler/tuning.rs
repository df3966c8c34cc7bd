//! The constants of the scheduler's decisions. Settings override those marked with a setting; the
//! others are fixed.
//!
//! Each constant states its unit, its source, the range that was tried and the effect of that range
//! on attainment, in points (0.01). Effects are measured in the simulator on the columns of
//! `docs/evaluation.md`. Model parameters that an engine reports (chunk, KV memory, most streams)
//! and constants of the cost regressions (`cost`) are not listed: they describe engines and change
//! no decision by themselves.

use tidegate_types::{Seconds, Tokens};

// Placement.

/// Prefill backlog bound of an engine: predicted prefill work in flight beyond which the next
/// request waits in the EDF queue.
/// - Unit: seconds of prefill work. Setting: `queue.room_seconds`.
/// - Source: time between the end of a prefill and the arrival of the next one at the engine.
/// - Range: 0.05 to 0.15 s. Effect: −1 point on azure code ×2 at 0.15 s, as the EDF order weakens in
///   bursts.
pub const PREFILL_BACKLOG_MAX: Seconds = Seconds(0.05);

/// Short prompt: with fewer uncached tokens a request is not split, and it joins a step beyond the
/// backlog bound while the outstanding tokens fit into one chunk.
/// - Unit: tokens. Setting: `placement.whole_below_tokens`.
/// - Source: a hand-off takes 3 ms, about as long as 64 tokens of prefill; 32 such prompts fill a
///   chunk of 2,048 tokens.
/// - Range: not varied; the traces have few prompts below 64 tokens.
pub const SHORT_PROMPT: Tokens = Tokens(64);

/// A request waits for a busy engine that holds its prefix if the prefill elsewhere is more than
/// this many times the work. A backend whose prefix cache saves that much also runs the request whole
/// although it prefills only or stalls its streams.
/// - Unit: factor. Range: 1.3 to 10 on agent sessions (6 seeds, 0.06 and 0.1 sessions a second).
/// - Effect: attainment .879 and .542 without the rule, .883 and .779 at 1.3, .904 and .773 at 2,
///   .913 and .793 at 4, .897 and .766 at 10. No effect without prefix hits.
pub const HOLDER_SAVES: f64 = 4.0;

/// Price of the TPOT slack of running streams: of a stall that a prefill causes them, of the slack
/// that a new stream removes from its engine (a new stream has none), and of the prefill work ahead
/// of that stream.
/// - Unit: seconds of the request's own completion time per second. At least 1.
/// - Range: 1 to 50. Effect: −0.10 points in the mean at 1; without packing −0.34, −0.8 at most.
pub const SLACK_PRICE: f64 = 3.0;

/// New streams are packed while the step stays within this share of the TPOT target less the fixed
/// cost of a step. Beyond it no slack remains, and errors of the fitted step cost make every stream
/// of the engine miss its TPOT.
/// - Unit: share. Range: 0.5 to 1. Effect: none on the columns; at TPOT 20 ms −0.9 points at 1.
pub const PACKING_SHARE: f64 = 0.7;

/// Share of a decode engine that is not assigned: of the TPOT target above the fixed cost of a step,
/// for prefills in flight, and of the KV memory, for streams that grow. The planner counts the same
/// capacity.
/// - Unit: share. Range: 0 to 0.3. Effect: at most 1 point; .05 instead of .1 for the step: none.
pub const HEADROOM: f64 = 0.1;

// EDF queue.

/// Share of the placed prefill work that the late class receives while feasible requests wait.
/// - Unit: share. Setting: `queue.late_class_share`.
/// - Effect: each 0.01 costs the feasible class about 0.5 points under sustained overload.
pub const LATE_CLASS_SHARE: f64 = 0.02;

/// Order of the late class: shortest job first with aging. A late request is served as if it had
/// arrived this many seconds later for each second of its prefill work.
/// - Unit: seconds of arrival time per second of prefill work.
/// - Source: late requests have missed their target; the order that shortens their mean wait serves
///   short ones, in particular those whose prefix is cached, before long ones.
/// - Range: 0 (first come, first served), 10, 30, 100, 1000 (shortest job first). Effect on attainment:
///   agents at 0.1 sessions a second +14 points from 0 to 10, otherwise at most 0.3. TTFT p99 of code
///   ×2: 5.7 s at 0, 3.5 s at 10; of regime 60 s ×1.2: 11.7, 11.2, at 1000 6.2 s. Refusals at the queue
///   deadline (bursts 120 s ×1.3): 96 at 0, 80 at 10, 108 at 30, 218 at 1000, so that 10 is chosen.
pub const LATE_WORK_WEIGHT: f64 = 10.0;

/// Trunk reservation: a late request leaves one prefill engine idle until it has waited for this
/// share of its queue deadline.
/// - Unit: share. Setting: `queue.trunk_reservation_share`.
/// - Effect: −0.19 points in the mean without it, −0.6 at most.
pub const TRUNK_RESERVATION_SHARE: f64 = 0.5;

/// Requests behind the first waiting one that are tried when it does not fit: a shorter one may.
/// - Unit: requests. Source: cost of a poll.
pub const LOOK_AHEAD: usize = 32;

/// Pools of up to this many backends are examined completely; in larger pools this many are
/// sampled, and further ones are examined only while none has capacity.
/// - Unit: backends. Source: cost of a placement.
pub const SAMPLE: usize = 64;

// Planner.

/// Time constant of the demand average.
/// - Unit: seconds. Setting: `planner.demand_window_seconds`.
/// - Source: a few hundred requests of a busy group. Range: 5 to 60 s. Effect: at most 1 point.
pub const DEMAND_WINDOW: Seconds = Seconds(10.0);

/// Share of a decode engine's idle time that prefills beside streams are expected to use.
/// - Unit: share.
pub const SPILL_SHARE: f64 = 0.3;

/// Time constant of the regret against other splits.
/// - Unit: seconds. Range: 2 to 50 min. Effect: at most 0.2 points.
pub const REGRET_MEMORY: Seconds = Seconds(600.0);

/// Price of a flip: this share of the streams that uninterrupted prefill chunks would make late on
/// the flipped engine, at least of one. Placement sends no prompts to streams without slack, so that
/// fewer are lost.
/// - Unit: requests lost per stream. Range: 0.17 to 1. Effect: at most 0.5 points.
pub const SWITCH_PRICE: f64 = 0.5;

/// Duration of an engine's own role switch once it is idle (`DrainThenCall`).
/// - Unit: seconds. Setting: `planner.switch_seconds`.
/// - Source: SGLang rebuilds queues and pools, and captures decode graphs the first time.
pub const SWITCH: Seconds = Seconds(5.0);

/// One engine in this many of a group may be away for a role switch at once, and always at least
/// one.
/// - Unit: engines.
pub const AWAY_SHARE: usize = 4;

/// Engines whose ratios of decode to prefill time differ by less than this factor are equal: fitted
/// costs differ by a few percent.
/// - Unit: factor. Effect of comparative advantage on four H100 and four A100: regime 60 s ×0.8 .84 →
///   .91.
pub const ALIKE: f64 = 1.25;

/// Reference request: prompt tokens for comparisons between engines, and the KV of a stream before
/// one was observed.
/// - Unit: tokens.
pub const REFERENCE_TOKENS: Tokens = Tokens(1000);

/// Streams in the decode step that is compared between engines.
/// - Unit: streams.
pub const REFERENCE_STREAMS: u32 = 16;

// Proxy: retries, pauses and priors around the decisions.

/// Expected output tokens before the first answer.
/// - Unit: tokens. Observations replace it within a few requests of a class.
pub const OUTPUT_PRIOR: Tokens = Tokens(256);

/// Most attempts to place one request after other requests have reserved the same capacity.
/// - Unit: attempts.
pub const RACES_MAX: u32 = 4;

/// Longest time between two passes over waiting requests without an event. Every change of capacity
/// is followed by a pass; this bounds the cost of a lost wake-up.
/// - Unit: seconds.
pub const LONGEST_PAUSE: Seconds = Seconds(0.25);

/// Duty cycle of the planning loop: pause after a step as a multiple of its duration, at most
/// [`PAUSE_MAX`].
/// - Unit: factor. Source: 50 limits planning and stream checks to 2 % of a core each.
pub const PAUSE_FACTOR: f64 = 50.0;

/// Longest pause of the planning loop.
/// - Unit: seconds.
pub const PAUSE_MAX: Seconds = Seconds(0.02);
