//! The constants of the scheduler's decisions. Settings override those marked with a setting; the
//! others are fixed.
//!
//! Each constant states its unit, its source, the range that was tried and the effect of that range
//! on attainment, in points (0.01), relative to the value in force. "Not tried" means that no other
//! value was measured. Effects are measured in the simulator on the tuning cells of
//! `docs/evaluation.md` unless other cells are named. "Two draws" are means over all tuning and all
//! held-out cells of `make evaluate ARGS="cells --seeds 2"` at commit 9b4760f; `benches/constants/run`
//! repeats them. Means below 0.1 points are noise.
//!
//! Model parameters that an engine reports (chunk, KV memory, most streams) and constants of the cost
//! regressions (`cost`, `learn`) are not listed: they describe engines and their measurement.

use tidegate_types::{Seconds, Tokens};

// Placement.

/// Prefill backlog bound of an engine: predicted prefill work in flight beyond which the next
/// request is queued.
/// - Unit: seconds of prefill work. Setting: `queue.prefill_backlog_max_seconds`.
/// - Source: it covers the time between the end of a prefill and the arrival of the next prompt at
///   the engine. Requests in the engine's own queue are no longer in EDF order.
/// - Range: 0.05 to 0.15 s. Effect: −1 point on azure code ×2 at 0.15 s.
pub const PREFILL_BACKLOG_MAX: Seconds = Seconds(0.05);

/// Short prompt: with fewer uncached tokens a request is colocated, and admitted beyond the backlog
/// bound while the outstanding tokens fit into one chunk.
/// - Unit: tokens. Setting: `placement.colocate_below_tokens`.
/// - Source: a hand-off takes 3 ms, about as long as 64 tokens of prefill; 32 such prompts fill a
///   chunk of 2,048 tokens.
/// - Range: not tried; the traces have few prompts below 64 tokens.
pub const SHORT_PROMPT: Tokens = Tokens(64);

/// A request waits for a busy engine that holds its prefix if the prefill elsewhere is more than
/// this many times the work. A backend whose prefix cache saves that much also serves the colocated
/// request although its role is `prefill` or its streams stall.
/// - Unit: factor. Source: the best of the range.
/// - Range: 1.3 to 10 on agent sessions (6 seeds, 0.06 and 0.1 sessions per second).
/// - Effect: attainment .879 and .542 without the rule, .883 and .779 at 1.3, .904 and .773 at 2,
///   .913 and .793 at 4, .897 and .766 at 10. No effect without prefix cache hits.
pub const HOLDER_SAVES: f64 = 4.0;

/// Price of the TPOT slack of running streams: of a stall that a prefill causes them, of the slack
/// that a new stream removes from its engine (a new stream has none), and of the prefill work ahead
/// of that stream.
/// - Unit: seconds of the request's own completion time per second of slack. At least 1.
/// - Source: one value in place of two prices, 1 for stalls and 3 for bin packing.
/// - Range: 1 to 50. Effect: −0.10 points in the mean at 1, within 0.5 points up to 50; without bin
///   packing −0.34 in the mean, −0.8 in the worst column.
pub const SLACK_PRICE: f64 = 3.0;

/// Bin packing of new streams ends when the decode step reaches this share of the TPOT target above
/// the fixed cost of a step. Beyond it no slack is left, and an error of the fitted step cost makes
/// every stream of the engine miss its TPOT target.
/// - Unit: share. Source: a synthetic trace on 16 engines with TPOT 20 ms: .990 without it, 1.000
///   with it.
/// - Range: 0.5 to 1. Effect: none on the columns; −0.9 points at 1 with TPOT 20 ms.
pub const PACKING_SHARE: f64 = 0.7;

/// Headroom of a decode engine: the share of the TPOT target above the fixed cost of a step, and of
/// the KV memory, that is not assigned. The planner counts the same capacity.
/// - Unit: share. Source: it covers prefills in flight and the growth of streams.
/// - Range: 0 to 0.3. Effect: at most 1 point; 0.05 instead of 0.1 for the step: none.
pub const HEADROOM: f64 = 0.1;

/// Share of the TPOT target above the fixed cost of a step, and of the KV memory, up to which an engine
/// takes a stream of batch work. The rest is free for an interactive request that arrives next.
/// - Unit: share. Source: the bend of the range. The share of batch work that ends in time hardly grows
///   beyond it, the price for interactive requests does.
/// - Range: 0.1 to 0.9 on bursts 60 s ×0.8 with 25 requests/s of batch work (two draws). Effect on the
///   interactive requests, and the share of batch work that ends in time: −0.04 points and 0.06 at 0.1,
///   −0.19 and 0.19 at 0.25, −0.45 and 0.37 at 0.5, −1.41 and 0.42 at 0.75, −2.16 and 0.43 at 0.9. On
///   conversations with code completions as batch work: none (`docs/evaluation.md#classes`).
pub const BATCH_ENGINE_SHARE: f64 = 0.5;

/// Share of `queue.requests_max` from which on batch work is refused, waiting requests of every kind
/// counted. The rest of the queue is free for interactive requests.
/// - Unit: share. Source: half, so that interactive requests find as much of the queue as batch work.
/// - Range: not tried. It bounds memory; no cell of the evaluation fills a queue.
pub const BATCH_QUEUE_SHARE: f64 = 0.5;

/// Share of its TTFT target for which a request waits because of the TPOT targets of stricter classes.
/// After it, only its own target and that of `[slo]` limit an engine.
/// - Unit: share. Source: half of the target remains for prefill and hand-off.
/// - Range: not tried. Two engines, 20 requests/s beside one stream with a target just above the base of a
///   step: TTFT 3 to 6 s at the median without this bound.
pub const UNCOMMON_WAIT_SHARE: f64 = 0.5;

// EDF queue.

/// Share of the placed prefill work that the late class receives while feasible requests wait.
/// - Unit: share. Setting: `queue.late_class_share`. Source: above 0, so that the late class does not
///   starve.
/// - Range: 0 to 0.1. Effect: 0.00 points in the mean at 0, −0.08 to +0.05 by column; −0.05 on tuning
///   and −0.27 on held-out cells at 0.1 (two draws, −1.4 on the worst cell). Under sustained overload
///   each 0.01 costs the feasible class about 0.5 points.
pub const LATE_CLASS_SHARE: f64 = 0.02;

/// Order of the late class: shortest job first with aging. A late request is served as if it had
/// arrived this many seconds later for each second of its prefill work.
/// - Unit: seconds of arrival time per second of prefill work.
/// - Source: shortest job first minimises the mean wait of the late class; aging bounds the wait of
///   long requests. 10 has the fewest refusals of the range.
/// - Range: 0 (first come, first served), 10, 30, 100 and 1,000 (shortest job first). Effect from 0 to
///   10: +14 points on agent sessions at 0.1 per second, elsewhere at most 0.3; TTFT p99 5.7 s to 3.5 s
///   on code ×2, 11.7 s to 11.2 s on regime 60 s ×1.2 (6.2 s at 1,000). Refusals at the queue deadline
///   on bursts 120 s ×1.3: 96 at 0, 80 at 10, 108 at 30, 218 at 1,000.
pub const LATE_WORK_WEIGHT: f64 = 10.0;

/// Trunk reservation: a late request leaves one prefill engine idle until it has waited for this
/// share of its queue deadline.
/// - Unit: share. Setting: `queue.trunk_reservation_share`. Source: the best of the range.
/// - Range: 0, 0.25 and 0.5. Effect: −0.43 points in the mean at 0, −0.99 in the worst column; −0.06
///   and −0.33 at 0.25. A larger share was not tried: it delays the late class further.
pub const TRUNK_RESERVATION_SHARE: f64 = 0.5;

/// Most requests of a class that are tried in one poll of the queue: behind a request without
/// capacity, a shorter one may have it.
/// - Unit: requests. Source: it bounds the cost of a poll.
/// - Range: 1 to 128 (two draws). Effect at 1: +0.04 points on tuning cells, −0.03 on held-out cells,
///   −0.6 on the worst cell; at 128: 0.00. Above 1, so that no request blocks another with capacity.
pub const LOOK_AHEAD: usize = 32;

/// Pools of up to this many backends are examined completely; in larger pools this many are
/// sampled, and further ones are examined only while none has capacity.
/// - Unit: backends. Source: it bounds the cost of a placement.
/// - Range: 2 and 4 of the 8 engines of most cells (two draws). Effect on tuning and held-out cells:
///   −0.64 and −1.11 points at 2, −0.38 and −0.60 at 4. 64 of a larger pool were not measured.
pub const SAMPLE: usize = 64;

// Planner.

/// Time constant of the demand average.
/// - Unit: seconds. Setting: `planner.demand_window_seconds`.
/// - Source: a busy group receives a few hundred requests in this time.
/// - Range: 5 to 60 s. Effect: at most 1 point.
pub const DEMAND_WINDOW: Seconds = Seconds(10.0);

/// Share of a decode engine's idle time that spilled prefills are expected to use. The planner adds
/// it to the prefill capacity of a split.
/// - Unit: share. Source: not recorded; the share that is used was not measured.
/// - Range: 0 to 0.6 (two draws). Effect on tuning and held-out cells: 0.00 and −0.07 points at 0 (−0.85
///   on the worst cell), +0.03 and +0.03 at 0.6 (−0.32). With other rules removed, 0 costs 0.4 points
///   on regime 60 s ×1.62.
pub const SPILL_SHARE: f64 = 0.3;

/// Time constant of the regret against other splits.
/// - Unit: seconds. Source: differences between nearly equal splits would otherwise accumulate without
///   end.
/// - Range: 2 to 50 min and unbounded. Effect: at most 0.2 points; unbounded: 0.00 in the mean.
pub const REGRET_MEMORY: Seconds = Seconds(600.0);

/// Price of a flip: lost requests per stream that uninterrupted prefill chunks would make late on the
/// flipped engine, at least that of one stream.
/// - Unit: requests per stream. Source: not recorded; below 1 because placement sends no prompt to
///   streams without slack.
/// - Range: 0.17 to 1. Effect: at most 0.5 points.
pub const SWITCH_PRICE: f64 = 0.5;

/// Duration of an engine's own role switch once it is idle (`DrainThenCall`).
/// - Unit: seconds. Setting: `planner.switch_seconds`.
/// - Source: an estimate, not measured on a GPU: SGLang rebuilds queues and pools, and captures decode
///   graphs at the first switch to decode.
/// - Range: not tried; every figure with such engines uses 5 s (`docs/evaluation.md#outside`).
pub const SWITCH: Seconds = Seconds(5.0);

/// One engine per this many engines of a group, and at least one, may be unavailable for a role switch
/// at the same time.
/// - Unit: engines. Source: not recorded. A quarter of the capacity is unavailable at most.
/// - Range: 2 to 8 with a switch of 5 s (two draws). Effect: none on these cells; the cause
///   was not examined.
pub const AWAY_SHARE: usize = 4;

/// Engines whose ratio of decode to prefill time differs from the group's median by less than this
/// factor have no comparative advantage.
/// - Unit: factor. Source: fitted costs of equal engines differ by a few percent, H100 and A100 by a
///   factor of 2.
/// - Range: 1.1 and 1.5 (two draws; H100 and A100 mixed in some held-out cells). Effect on tuning and
///   held-out cells: 0.00 and −0.01 points at 1.1, −0.01 and −0.10 at 1.5 (−1.67 on the worst cell).
///   Without comparative advantage, four H100 and four A100 have .84 instead of .91 on regime 60 s
///   ×0.8.
pub const ALIKE: f64 = 1.25;

/// Prompt tokens of the reference request, by which engines are compared.
/// - Unit: tokens. Source: not recorded.
/// - Range: 250 and 4,000 (two draws). Effect on tuning and held-out cells: +0.05 and 0.00 points at
///   250, +0.02 and −0.03 at 4,000 (−0.5 and −0.3 on the worst cell).
pub const REFERENCE_TOKENS: Tokens = Tokens(1000);

/// Streams of the reference decode step, by which engines are compared.
/// - Unit: streams. Source: not recorded.
/// - Range: 64 (two draws). Effect on tuning and held-out cells: +0.01 and 0.00 points (−0.4 on the
///   worst cell).
pub const REFERENCE_STREAMS: u32 = 16;

// Proxy: retries, pauses and priors around the decisions.

/// Expected output tokens before the first answer.
/// - Unit: tokens. Source: not recorded. Eight answers of a class weigh as much.
/// - Range: 64 and 1,024 (two draws). Effect on tuning and held-out cells: at most 0.03 points (−0.3
///   on the worst cell).
pub const OUTPUT_PRIOR: Tokens = Tokens(256);

/// Most placements of one request in a pass while other requests win the race for the capacity; after
/// them it stays queued.
/// - Unit: placements. Source: it bounds the cost of a pass.
/// - Range: not tried; the simulator has no races.
pub const RACES_MAX: u32 = 4;

/// Longest time between two passes over the queue. Every change of capacity starts a pass; this bounds
/// the delay after a lost wake-up.
/// - Unit: seconds. Source: not recorded.
/// - Range: 1 s (two draws). Effect: 0.00 points; no wake-up is lost in the simulator.
pub const LONGEST_PAUSE: Seconds = Seconds(0.25);

/// Duty cycle of the control loop: pause after a step as a multiple of its usual duration, at most
/// [`PAUSE_MAX`].
/// - Unit: factor. Source: 50 limits planning and stream checks to 2 % of a core each.
/// - Range: not tried; the simulator plans every 2 to 5 ms.
pub const PAUSE_FACTOR: f64 = 50.0;

/// Longest pause of the control loop.
/// - Unit: seconds. Source: not recorded. Slack is at most this old when streams are checked.
/// - Range: not tried; slack is exact in the simulator.
pub const PAUSE_MAX: Seconds = Seconds(0.02);
