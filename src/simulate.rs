//! `tidegate simulate`: compares policies on a trace in a discrete-event simulation. It is
//! deterministic: the same input gives the same output bytes.

use std::io::Write;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use thiserror::Error;
use tidegate_sim::{
    Disturbance, Policy, Profile, Report, Run, SimConfig, TidegateParams, Trace, UnusableTrace,
    page, simulate,
};
use tidegate_types::{Seconds, Slo, Tokens};

use crate::replay::{ReplayError, file_names, print_table, traces};

/// Simulate policies on a trace.
#[derive(clap::Args)]
pub struct Args {
    /// A trace; several are merged by arrival time from a common start
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "agents",
        conflicts_with = "agents"
    )]
    trace: Vec<PathBuf>,
    /// Instead of a trace: 30 minutes of agent sessions, this many arriving per second; prompts grow
    /// each turn up to 20,000 to 120,000 tokens, and each has the previous one as its prefix
    #[arg(long, value_name = "SESSIONS_PER_SECOND")]
    agents: Option<f64>,
    /// Engines in the fleet
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    engines: u16,
    /// Engine profile; with two, the second half of the fleet uses the second
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "llama70b-h100x4",
        value_name = "NAME[,NAME]"
    )]
    profile: Vec<String>,
    /// tidegate, aggregated, static:K, static:best, interval:SECONDS[:RESTART], bound; rivals:
    /// conditional:K, dynamo_kv, sticky, cache_aware, llumnix[:migrate], xllm, tokenscale
    #[arg(long, value_delimiter = ',', required = true, value_name = "P[,P…]")]
    policy: Vec<Policy>,
    /// Factor on the trace's arrival rate
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "X[,X…]")]
    rate: Vec<f64>,
    /// TTFT target
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    slo_ttft: f64,
    /// TPOT target
    #[arg(long, default_value_t = 0.03, value_name = "SECONDS")]
    slo_tpot: f64,
    /// Target for the largest gap between two tokens of an answer (ITL); default: none
    #[arg(long, value_name = "SECONDS")]
    slo_itl: Option<f64>,
    /// Targets of a service class; the first one is class 1 of the trace's lines. TTFT,TPOT in seconds,
    /// or batch: without targets, served with what is left. tidegate knows the classes, other policies do
    /// not
    #[arg(long, value_name = "TTFT,TPOT|batch", conflicts_with = "report")]
    class: Vec<classes::SimulatedClass>,
    /// Factor on the trace's output lengths
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    output_scale: f64,
    /// The engines' max_num_batched_tokens; default: the profile's
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    chunk: Option<u64>,
    /// Maximum prompt length in tokens; longer prompts are truncated
    #[arg(long, default_value_t = 32_000, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    prompt_max: u64,
    /// Count the KV of the full output from the start, in memory and in step times, for comparison with
    /// the table of docs/spec/engine-model.md#whole-answers
    #[arg(long)]
    whole_answers: bool,
    /// Engines switch roles themselves, as SGLang's do: they drain, are unavailable for this long
    /// and serve no aggregated requests (tidegate only)
    #[arg(long, value_name = "SECONDS")]
    switch: Option<f64>,
    /// Gateways before the fleet, each placing its share of the requests (tidegate only)
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "switch")]
    gateways: u16,
    /// Interval at which the gateways exchange their loads, in milliseconds
    #[arg(long, default_value_t = 50, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(1..=1000))]
    exchange_ms: u64,
    /// Enable the engines' prefix cache (matched by the hash_ids of a trace)
    #[arg(long)]
    prefix_caching: bool,
    /// Deviations from the engine model: none, noise:SIGMA, stalls, slow:FACTOR (one engine),
    /// prior:FACTOR (error of the policies' cost prior), shared-link, preemption (of the sequence
    /// that started last, when KV memory is exhausted), bursts:MEAN (tokens of a stream in a step:
    /// speculative decoding); combined with +
    #[arg(long, default_value = "none", value_name = "WORD[+WORD…]")]
    disturb: Disturbance,
    /// Instead of the table: the smallest fleet, up to --engines, with which each policy reaches
    /// this attainment
    #[arg(long, value_name = "ATTAINMENT", conflicts_with = "report")]
    size: Option<f64>,
    /// File for a self-contained HTML page with the comparison and one run over time
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print one JSON object per line instead of the table
    #[arg(long)]
    json: bool,
}

/// Most agent sessions per second; about half a million requests in total.
const AGENTS_MAX: f64 = 20.0;
/// Longest target and role switch, in seconds.
const DAY: f64 = 86_400.0;
/// Length of the agent-session load.
const AGENTS_LENGTH: Seconds = Seconds(1800.0);
/// The generator's seed.
const AGENTS_SEED: u64 = 1;

/// Failure of a simulation.
#[derive(Debug, Error)]
pub enum SimulateError {
    /// A trace cannot be read.
    #[error(transparent)]
    Trace(#[from] ReplayError),
    /// The trace cannot be simulated at one of the rates.
    #[error(transparent)]
    Unusable(#[from] UnusableTrace),
    /// An argument is invalid.
    #[error("{0}")]
    Arguments(String),
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Output(#[from] std::io::Error),
    /// The report cannot be serialised as JSON.
    #[error("cannot write the report: {0}")]
    Json(#[from] serde_json::Error),
}

/// Simulate, then report: rates in the order given, and for each the policies.
pub fn run(args: Args) -> Result<(), SimulateError> {
    let config = config(&args)?;
    let trace = match args.agents {
        Some(sessions) if sessions > AGENTS_MAX => {
            let problem = format!("--agents must be at most {AGENTS_MAX}");
            return Err(SimulateError::Arguments(problem));
        }
        Some(sessions) => {
            Trace::agents(AGENTS_SEED, AGENTS_LENGTH, positive("--agents", sessions)?)
        }
        None => traces(&args.trace)?.cap_prompt(Tokens(args.prompt_max)),
    };
    let trace = trace.scale_output(positive("--output-scale", args.output_scale)?);
    let mut cells = Vec::new();
    for rate in &args.rate {
        let rate = positive("--rate", *rate)?;
        trace.check(rate)?;
        cells.extend(args.policy.iter().map(|policy| (rate, *policy)));
    }
    if let Some(attainment) = args.size {
        if !(attainment > 0.0 && attainment <= 1.0) {
            let problem = "--size must be above 0 and at most 1".to_owned();
            return Err(SimulateError::Arguments(problem));
        }
        return size::print(&trace, &cells, &config, attainment, args.json);
    }
    let runs = run_all(&trace, &cells, &config);
    if let Some(path) = &args.report {
        let page = report_page(&args, &trace, &config, &runs);
        std::fs::write(path, page)?;
    }
    match args.json {
        true => print_json(&runs),
        false => {
            print_tables(&runs, args.policy.len(), &config);
            Ok(())
        }
    }
}

/// Returns the HTML report. Its timeline shows tidegate's run at the last rate, else the last run.
fn report_page(args: &Args, trace: &Trace, config: &SimConfig, runs: &[Run]) -> String {
    let names = file_names(&args.trace);
    let tidegate = Policy::Tidegate.to_string();
    let ours = runs.iter().rev().find(|run| run.report.policy == tidegate);
    let ran = |run: &&Run| !run.outcomes.is_empty();
    let shown = ours.or(runs.iter().rev().find(ran));
    let at_rate = shown.map(|run| trace.clone().at_rate(run.report.rate));
    page(&names, config, runs, at_rate.as_ref().zip(shown))
}

fn config(args: &Args) -> Result<SimConfig, SimulateError> {
    let (profile, second) = profiles(args)?;
    let engines = usize::from(args.engines);
    for policy in &args.policy {
        if !policy.runs_on(engines) {
            let problem =
                format!("{policy} leaves {engines} engines without a prefill or a decode engine");
            return Err(SimulateError::Arguments(problem));
        }
    }
    let ttft = duration("--slo-ttft", args.slo_ttft)?;
    let tpot = duration("--slo-tpot", args.slo_tpot)?;
    let itl = args.slo_itl.map(|itl| duration("--slo-itl", itl)).transpose()?;
    let switch = args.switch.map(|switch| duration("--switch", switch)).transpose()?;
    if switch.is_some() && engines < 2 {
        return Err(SimulateError::Arguments("--switch needs at least two engines".to_owned()));
    }
    let tidegate = TidegateParams {
        switch,
        gateways: usize::from(args.gateways),
        exchange: Seconds::from_millis(args.exchange_ms as f64),
        ..TidegateParams::default()
    };
    let slo = Slo { ttft, tpot, itl };
    let classes = classes::of(args, itl)?;
    let prefix_caching = args.prefix_caching || args.agents.is_some();
    let disturbance = args.disturb;
    let config = SimConfig { prefix_caching, disturbance, ..SimConfig::default() };
    Ok(SimConfig { engines, profile, second, slo, classes, tidegate, ..config })
}

/// Returns the engine profile, and that of the second half of the fleet if two are named.
fn profiles(args: &Args) -> Result<(Profile, Option<Profile>), SimulateError> {
    let named = |name: &String| -> Result<Profile, SimulateError> {
        let known = || Profile::ALL.map(|profile| profile.name).join(", ");
        let profile = Profile::named(name).ok_or_else(|| {
            let problem = format!("unknown profile {name:?}; known profiles: {}", known());
            SimulateError::Arguments(problem)
        })?;
        let profile = args.chunk.map_or(profile, |chunk| profile.with_chunk(Tokens(chunk)));
        Ok(if args.whole_answers { profile.counting_whole_answers() } else { profile })
    };
    match args.profile.as_slice() {
        [all] => Ok((named(all)?, None)),
        [first, second] => Ok((named(first)?, Some(named(second)?))),
        _ => Err(SimulateError::Arguments("--profile takes one or two profiles".to_owned())),
    }
}

fn positive(name: &str, value: f64) -> Result<f64, SimulateError> {
    let valid = value.is_finite() && value > 0.0;
    valid
        .then_some(value)
        .ok_or_else(|| SimulateError::Arguments(format!("{name} must be above 0")))
}

/// Returns a duration above 0 and of at most one day.
fn duration(name: &str, seconds: f64) -> Result<Seconds, SimulateError> {
    match positive(name, seconds)? {
        seconds if seconds <= DAY => Ok(Seconds(seconds)),
        _ => Err(SimulateError::Arguments(format!("{name} must be at most {DAY} seconds"))),
    }
}

#[path = "simulate/classes.rs"]
mod classes;
#[path = "simulate/size.rs"]
mod size;

/// Runs all cells, one per processor at a time; results are in cell order.
fn run_all(trace: &Trace, cells: &[(f64, Policy)], config: &SimConfig) -> Vec<Run> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Run)>> = Mutex::default();
    let work = || {
        while let Some((index, (rate, policy))) = {
            let index = next.fetch_add(1, Relaxed);
            cells.get(index).map(|cell| (index, cell))
        } {
            let run = simulate(&trace.clone().at_rate(*rate), *rate, *policy, config);
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, run));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(cells.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, run)| run).collect()
}

/// Returns a rate without its zeros: 2, 0.5, 1e300.
fn shown(rate: f64) -> String {
    let text = format!("{rate:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn print_json(runs: &[Run]) -> Result<(), SimulateError> {
    let mut out = std::io::stdout().lock();
    for run in runs {
        writeln!(out, "{}", serde_json::to_string(&run.report)?)?;
    }
    Ok(())
}

/// Prints one table per rate.
fn print_tables(runs: &[Run], policies: usize, config: &SimConfig) {
    for runs in runs.chunks(policies.max(1)) {
        let mut out = std::io::stdout().lock();
        let rate = runs.first().map_or(1.0, |run| run.report.rate);
        let split = |run: &Run| (run.report.policy == "static:best").then_some(run.split).flatten();
        let best = runs.iter().find_map(split).map_or(String::new(), |prefills| {
            format!("; static:best is {prefills}P{}D", config.engines - prefills)
        });
        // A closed stdout (EPIPE) is ignored.
        writeln!(out, "rate × {}{best}", shown(rate)).ok();
        drop(out);
        let reports: Vec<Report> =
            runs.iter().map(|run| run.report.clone().with_errors(&run.outcomes)).collect();
        print_table(&reports);
        if !config.classes.is_empty() {
            classes::print(&reports);
        }
    }
}
