//! Every constant of the scheduler's decisions. Settings override those marked with a setting; the
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

/// Longest stall that one prefill may cause on a decode engine, whatever the slack of its streams:
/// streams handed over meanwhile have no slack yet.
/// - Unit: seconds. Source: the TTFT target of the reference fleet.
/// - Range: not varied. Effect of no prefills beside streams at all: −1.06 points in the mean, −2.2 at
///   most.
pub const STALL_MAX: Seconds = Seconds(1.0);

/// Price of a stall within the slack of the streams.
/// - Unit: seconds of the request's completion time per second of stall.
/// - Source: a second lost by other streams counts as one lost by the request.
pub const STALL_WEIGHT: f64 = 1.0;

/// Price of the TPOT slack that a new stream removes from its engine, and of the prefill work ahead
/// of it (bin packing).
/// - Unit: seconds of the stream's completion time per second. At least 1.
/// - Range: 1 to 50. Effect: at most 0.5 points; without packing −0.34 in the mean, −0.8 at most.
pub const SLACK_WEIGHT: f64 = 3.0;

/// New streams are packed while the step stays within this share of the TPOT target less the fixed
/// cost of a step. At 1 no slack remains, and any prefill chunk makes every stream of the engine
/// miss its TPOT.
/// - Unit: share. Range: 0.5 to 0.85. Effect: none on the columns; 16 engines at TTFT 5 s and TPOT
///   20 ms: +1 point against no end of packing.
pub const PACKING_SHARE: f64 = 0.7;

/// Largest time saving that a prefix cache hit counts for in the choice of a backend, so that one
/// long shared prefix does not attract all load to one backend.
/// - Unit: seconds. Source: half of the reference TTFT target. No effect without prefix hits.
pub const LOCALITY_MAX: Seconds = Seconds(0.5);

/// A request waits for a busy engine that holds its prefix if the prefill elsewhere is more than
/// this many times the work.
/// - Unit: factor. Range: 1.3 to 10 on agent sessions (6 seeds, 0.06 and 0.1 sessions a second).
/// - Effect: attainment .879 and .542 without the rule, .883 and .779 at 1.3, .904 and .773 at 2,
///   .913 and .793 at 4, .897 and .766 at 10. No effect without prefix hits.
pub const HOLDER_SAVES: f64 = 4.0;

/// Share of the TPOT target, above the fixed cost of a step, up to which new requests are admitted
/// to decode. The rest is headroom for prefills in flight.
/// - Unit: share. Range: 0.7 to 1. Effect: at most 1 point.
pub const ADMISSION_SHARE: f64 = 0.95;

/// Share of the KV memory that placement assigns; the rest is headroom for streams that grow.
/// - Unit: share. Source: lengths of answers are estimates.
pub const KV_SHARE: f64 = 0.9;

/// Share of the expected output that nine in ten answers exceed: exponential output lengths. A
/// stream is at risk if its later steps within this share cannot make up for a late start.
/// - Unit: share. Effect: mooncake ×0.5 at TTFT 5 s .993 → .999.
pub const SURE_OUTPUT_SHARE: f64 = 0.1;

/// Decode steps from the arrival of the KV to the first token: the KV arrives in the middle of
/// another step.
/// - Unit: steps. Range: 1 to 2. Effect: at 1, prompts that just fit a TTFT of 0.5 s are split and
///   late; at 2, −0.2 points on the regime traces.
pub const STEPS_TO_FIRST_TOKEN: f64 = 1.5;

// EDF queue.

/// Share of the placed prefill work that the late class receives while feasible requests wait.
/// - Unit: share. Setting: `queue.late_class_share`.
/// - Effect: each 0.01 costs the feasible class about 0.5 points under sustained overload.
pub const LATE_CLASS_SHARE: f64 = 0.02;

/// Trunk reservation: a late request leaves one prefill engine idle until it has waited for this
/// share of its queue deadline.
/// - Unit: share. Setting: `queue.trunk_reservation_share`.
/// - Effect: −0.19 points in the mean without it, −0.6 at most.
pub const TRUNK_RESERVATION_SHARE: f64 = 0.5;

/// Upper bound of the late class's credit.
/// - Unit: seconds of prefill work.
pub const LATE_CREDIT_MAX: Seconds = Seconds(10.0);

/// Requests behind the first waiting one that are tried when it does not fit: a shorter one may.
/// - Unit: requests. Source: cost of a poll.
pub const LOOK_AHEAD: usize = 32;

/// Pools of up to this many backends are examined completely; in larger pools this many are
/// sampled, and further ones are examined only while none has capacity.
/// - Unit: backends. Source: cost of a placement.
pub const SAMPLE: usize = 64;

// Planner.

/// Shortest time between two flips of one backend.
/// - Unit: seconds. Setting: `planner.dwell_seconds`. Range: 0 to 20 s. Effect: at most 0.2 points.
pub const DWELL: Seconds = Seconds(5.0);

/// Time constant of the demand average.
/// - Unit: seconds. Setting: `planner.demand_window_seconds`.
/// - Source: a few hundred requests of a busy group. Range: 5 to 60 s. Effect: at most 1 point.
pub const DEMAND_WINDOW: Seconds = Seconds(10.0);

/// Shortest time that a rate is averaged over: a burst in the first moments does not make a rate.
/// - Unit: seconds.
pub const DEMAND_MIN: Seconds = Seconds(1.0);

/// Share of a decode engine's streams within the TPOT target, and of its KV memory, that the
/// planner counts as its capacity.
/// - Unit: share. Range: 0.7 to 1. Effect: at most 1 point.
pub const FILLING: f64 = 0.9;

/// Share of a decode engine's idle time that prefills beside streams are expected to use.
/// - Unit: share.
pub const SPILL_SHARE: f64 = 0.3;

/// Time constant of the regret against other splits.
/// - Unit: seconds. Range: 2 to 50 min. Effect: at most 0.2 points.
pub const REGRET_MEMORY: Seconds = Seconds(600.0);

/// Share of the streams left on a flipped engine that count as lost, of those that uninterrupted
/// prefill chunks would make late: placement sends no prompts to streams without slack.
/// - Unit: share. Range: 0.17 to 1. Effect: at most 0.5 points.
pub const FLIP_STALL_SHARE: f64 = 0.5;

/// Least switching cost. At 0 the group would follow every fluctuation of the demand.
/// - Unit: requests.
pub const SWITCHING_COST_MIN: f64 = 0.5;

/// Deadband: a difference in losses below this share of the requests is a tie.
/// - Unit: share of requests.
pub const REGRET_DEADBAND: f64 = 0.002;

/// Part of the TTFT target that the longest mean prefill leaves for waiting.
/// - Unit: share.
pub const WAIT_SHARE_MIN: f64 = 0.2;

/// Weight of the arrived requests' mean KV beside the live streams', so that one long prompt does
/// not set the mean.
/// - Unit: streams.
pub const ARRIVED_WEIGHT: u64 = 8;

/// Loads with a smaller sum count as no demand: an idle group keeps its roles.
/// - Unit: engines.
pub const IDLE_LOAD: f64 = 1e-3;

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
