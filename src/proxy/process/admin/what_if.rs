//! `POST /v1/what-if`: the arrivals of the last hour, simulated with another fleet, other targets or
//! other policies. The simulator is a function that the program passes in, so that the proxy does
//! not depend on it. One simulation runs at a time, on a blocking thread.

use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, TryLockError};
use tidegate_scheduler::cost::{DecodeModel, PrefillModel, TransferModel};
use tidegate_types::{Role, Seconds, Slo, Tokens};

use crate::dispatch::context::Proxy;

/// Most arrivals that are simulated: the latest ones.
const ARRIVALS_MAX: usize = 20_000;
/// Largest simulated fleet, in engines.
const ENGINES_MAX: usize = 64;
/// Most combinations of fleet size and policy.
const CELLS_MAX: usize = 12;
/// Mean share of real prefix hits from which the engines count as caching prefixes.
const CACHES: f64 = 0.5;
/// Arrivals below which a simulation has no meaning.
const ARRIVALS_MIN: usize = 10;

/// Body of the request. Absent members default to the running fleet's values.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhatIfQuery {
    /// Fleet sizes in engines.
    #[serde(default)]
    pub engines: Vec<usize>,
    /// Policies by their names in `tidegate simulate`.
    #[serde(default)]
    pub policies: Vec<String>,
    /// TTFT target.
    pub ttft_seconds: Option<f64>,
    /// TPOT target.
    pub tpot_seconds: Option<f64>,
    /// Factor on the arrival rate; default 1.
    pub rate: Option<f64>,
}

/// One request of the trace.
#[derive(Clone, Debug)]
pub struct TraceArrival {
    /// Time since the first arrival.
    pub at: Seconds,
    /// Prompt length.
    pub prompt: Tokens,
    /// Output length.
    pub output: Tokens,
    /// Hash of each 512-token block of the prompt.
    pub blocks: Box<[u64]>,
}

/// Input of a simulation.
#[derive(Clone, Debug)]
pub struct WhatIfScenario {
    /// Trace, ordered by arrival.
    pub arrivals: Vec<TraceArrival>,
    /// Fleet sizes, in engines.
    pub engines: Vec<usize>,
    /// Names of the policies.
    pub policies: Vec<String>,
    /// TTFT and TPOT targets.
    pub slo: Slo,
    /// Factor on the arrival rate.
    pub rate: f64,
    /// Costs of a mean engine, as learned.
    pub prefill: PrefillModel,
    /// Decode cost of a mean engine.
    pub decode: DecodeModel,
    /// Cost of a hand-off.
    pub transfer: TransferModel,
    /// Prompt tokens per engine step.
    pub chunk: Tokens,
    /// KV capacity of an engine.
    pub kv_capacity: Tokens,
    /// Most streams of an engine.
    pub streams_max: u32,
    /// Whether the engines reuse the KV of shared prefixes, by their share of real prefix hits.
    pub prefix_caching: bool,
}

/// Result of one combination. Shares are 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct WhatIfOutcome {
    /// Fleet size, in engines.
    pub engines: usize,
    /// Name of the policy.
    pub policy: String,
    /// Prefill engines of a fixed split.
    pub split: Option<usize>,
    /// Share of requests that meet all targets.
    pub attainment: f64,
    /// Share of requests that meet the TTFT target.
    pub ttft_attainment: f64,
    /// Share of requests that meet the TPOT target.
    pub tpot_attainment: f64,
    /// Median TTFT.
    pub ttft_p50_seconds: f64,
    /// 99th percentile of the TTFT.
    pub ttft_p99_seconds: f64,
    /// Median TPOT.
    pub tpot_p50_seconds: f64,
    /// 99th percentile of the TPOT.
    pub tpot_p99_seconds: f64,
    /// 99th percentile of the gaps between tokens of all requests (ITL).
    pub itl_p99_seconds: f64,
    /// Largest gap between two tokens of one request.
    pub itl_max_seconds: f64,
    /// Role changes.
    pub flips: u64,
}

/// Results, and the combinations that the time limit left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WhatIfOutcomes {
    /// One result per simulated combination.
    pub outcomes: Vec<WhatIfOutcome>,
    /// Combinations left out because of the time limit.
    pub left_out: usize,
}

/// Runs a simulation; the error is a sentence for the operator.
pub type Simulator = Arc<dyn Fn(&WhatIfScenario) -> Result<WhatIfOutcomes, String> + Send + Sync>;

/// Answer to `POST /v1/what-if`.
#[derive(Serialize)]
pub struct AnswerView {
    arrivals: usize,
    /// Time from the first to the last arrival.
    trace_seconds: f64,
    ttft_seconds: f64,
    tpot_seconds: f64,
    rate: f64,
    #[serde(flatten)]
    results: WhatIfOutcomes,
}

/// Why a simulation is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum WhatIfRefusal {
    /// The question is invalid, or there are too few arrivals.
    Invalid(String),
    /// Another simulation runs.
    Busy,
    /// The program has no simulator.
    Absent,
}

/// The simulator and the permit for one simulation.
#[derive(Default)]
pub struct WhatIf {
    simulator: Option<Simulator>,
    running: Mutex<()>,
}

impl WhatIf {
    /// Answers with `simulator`, if the program has one.
    pub fn new(simulator: Option<Simulator>) -> WhatIf {
        WhatIf { simulator, running: Mutex::default() }
    }

    /// Simulates. Takes seconds: call on a blocking thread.
    ///
    /// # Errors
    /// [`WhatIfRefusal`]
    pub fn answer(
        &self,
        proxy: &Proxy,
        question: WhatIfQuery,
    ) -> Result<AnswerView, WhatIfRefusal> {
        let simulator = self.simulator.as_ref().ok_or(WhatIfRefusal::Absent)?;
        let scenario = scenario(proxy, question).map_err(WhatIfRefusal::Invalid)?;
        let _one = match self.running.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(WhatIfRefusal::Busy),
        };
        let results = simulator(&scenario).map_err(WhatIfRefusal::Invalid)?;
        Ok(AnswerView {
            arrivals: scenario.arrivals.len(),
            trace_seconds: scenario.arrivals.last().map_or(0.0, |last| last.at.get()),
            ttft_seconds: scenario.slo.ttft.get(),
            tpot_seconds: scenario.slo.tpot.get(),
            rate: scenario.rate,
            results,
        })
    }
}

fn scenario(proxy: &Proxy, question: WhatIfQuery) -> Result<WhatIfScenario, String> {
    let now = fleet_costs(proxy).ok_or("no engine takes new work")?;
    let target = |requested: Option<f64>, now: Seconds| match requested {
        None => Ok(now),
        Some(seconds) if (1e-4..=3600.0).contains(&seconds) => Ok(Seconds(seconds)),
        Some(seconds) => Err(format!("a target of {seconds} s is outside 0.0001 to 3600 s")),
    };
    let slo = proxy.settings.load().placement.slo;
    let slo = Slo {
        ttft: target(question.ttft_seconds, slo.ttft)?,
        tpot: target(question.tpot_seconds, slo.tpot)?,
        itl: slo.itl,
    };
    let rate = question.rate.unwrap_or(1.0);
    if !(0.1..=10.0).contains(&rate) {
        return Err(format!("a rate of {rate} is outside 0.1 to 10"));
    }
    let engines = or(question.engines, || vec![now.engines]);
    if engines.iter().any(|engines| !(1..=ENGINES_MAX).contains(engines)) {
        return Err(format!("a fleet has 1 to {ENGINES_MAX} engines"));
    }
    let policies = or(question.policies, || vec!["tidegate".to_owned()]);
    if engines.len() * policies.len() > CELLS_MAX {
        return Err(format!("at most {CELLS_MAX} combinations of engines and policies"));
    }
    let arrivals = arrivals(proxy);
    if arrivals.len() < ARRIVALS_MIN {
        return Err(format!(
            "{} requests have ended in the last hour; a simulation needs {ARRIVALS_MIN}",
            arrivals.len()
        ));
    }
    let FleetCosts { prefill, decode, transfer, kv_capacity, streams_max, hit_share, .. } = now;
    let chunk = proxy.settings.load().placement.chunk;
    Ok(WhatIfScenario {
        arrivals,
        engines,
        policies,
        slo,
        rate,
        prefill,
        decode,
        transfer,
        chunk,
        kv_capacity,
        streams_max,
        prefix_caching: hit_share >= CACHES,
    })
}

fn or<T>(given: Vec<T>, otherwise: impl FnOnce() -> Vec<T>) -> Vec<T> {
    if given.is_empty() { otherwise() } else { given }
}

/// The latest arrivals that ended with an answer, ordered by arrival.
fn arrivals(proxy: &Proxy) -> Vec<TraceArrival> {
    let records = proxy.arrivals.collect(proxy.clock.now());
    let answered = records.requests.iter().rev().filter(|request| request.output > Tokens::ZERO);
    let mut latest: Vec<_> = answered.take(ARRIVALS_MAX).cloned().collect();
    drop(records);
    latest.sort_by_key(|request| request.at);
    let Some(first) = latest.first().map(|request| request.at) else { return Vec::new() };
    let arrival = |request: crate::telemetry::arrivals::EndedRequest| TraceArrival {
        at: request.at - first,
        prompt: request.prompt,
        output: request.output,
        blocks: request.blocks,
    };
    latest.into_iter().map(arrival).collect()
}

struct FleetCosts {
    engines: usize,
    prefill: PrefillModel,
    decode: DecodeModel,
    transfer: TransferModel,
    kv_capacity: Tokens,
    streams_max: u32,
    hit_share: f64,
}

/// Mean costs and memory of the engines that take new work; `None` without one.
fn fleet_costs(proxy: &Proxy) -> Option<FleetCosts> {
    let table = proxy.fleet.table();
    let backends = proxy.fleet.backends();
    let working: Vec<_> = backends
        .iter()
        .filter(|backend| table.entry(backend.id).role != Role::Draining)
        .map(|backend| (backend, table.entry(backend.id)))
        .collect();
    let count = working.len();
    let mean = |of: &dyn Fn(usize) -> f64| (0..count).map(of).sum::<f64>() / count as f64;
    let seconds = |of: &dyn Fn(usize) -> Seconds| Seconds(mean(&|slot| of(slot).get()));
    (count > 0).then(|| FleetCosts {
        engines: count,
        prefill: PrefillModel {
            base: seconds(&|slot| working[slot].1.prefill.base),
            per_token: seconds(&|slot| working[slot].1.prefill.per_token),
            per_attention: seconds(&|slot| working[slot].1.prefill.per_attention),
        },
        decode: DecodeModel {
            base: seconds(&|slot| working[slot].1.decode.base),
            per_stream: seconds(&|slot| working[slot].1.decode.per_stream),
            free_streams: mean(&|slot| f64::from(working[slot].1.decode.free_streams)) as u32,
            per_kv_token: seconds(&|slot| working[slot].1.decode.per_kv_token),
        },
        transfer: TransferModel {
            base: seconds(&|slot| working[slot].1.transfer.base),
            per_token: seconds(&|slot| working[slot].1.transfer.per_token),
        },
        kv_capacity: Tokens(mean(&|slot| working[slot].0.kv_capacity().as_f64()) as u64),
        streams_max: mean(&|slot| f64::from(working[slot].0.streams_max)) as u32,
        hit_share: mean(&|slot| proxy.fleet.hit_share(working[slot].0)),
    })
}
