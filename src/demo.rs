//! `tidegate demo`: a load on eight emulated engines with the best fixed split, then the same load
//! with tidegate, shown live beside it. All of it runs inside this process.

mod fleet;
mod result;
mod trace;
mod view;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use tidegate_emulator::{EmulatorConfig, RunningEmulator as Engines, start};
use tidegate_load::{LoadConfig, LoadProgress, Target, TargetError, run as load};
use tidegate_proxy::{Running, StartError};
use tidegate_sim::{Profile, Report, Trace, best_split};
use tidegate_types::{Seconds, Slo};

use crate::replay::{ReplayError, is_stdout, print_table, write_json};
use trace::Scenario;
use view::{DemoView, Look};

/// Demonstrate tidegate on this machine without a GPU.
#[derive(clap::Args)]
pub struct Args {
    /// Length of the load in seconds
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(4..=30))]
    seconds: u64,
    /// The load to replay
    #[arg(long, value_enum, default_value = "shift")]
    scenario: Scenario,
    /// Trace to use instead of a scenario; its first seconds are replayed
    #[arg(long, value_name = "FILE", conflicts_with = "scenario")]
    trace: Option<PathBuf>,
    /// File for the reports, one JSON object per line; `-`: standard output, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Failure of a demo.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The trace cannot be read, or the report not written.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The proxy cannot start.
    #[error(transparent)]
    Proxy(#[from] StartError),
    /// The proxy's address is not a valid target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The engines cannot start.
    #[error("the engines cannot start: {0}")]
    Engines(#[from] std::io::Error),
    /// The generated settings are invalid.
    #[error("the demo's settings are invalid: {0}")]
    Settings(String),
    /// The engines were not discovered in time.
    #[error("the proxy did not find its engines within {0}")]
    NotReady(Seconds),
}

/// Number of engines, as in the reference table.
const ENGINES: u16 = 8;
/// The model that the emulated engines serve.
const MODEL: &str = "demo";
/// Drain time after the last arrival; keeps the two runs of the demo below 90 s.
const DRAIN: Seconds = Seconds(12.0);
/// Timeout for the proxy to discover its engines.
const READY_MAX: Seconds = Seconds(5.0);

/// Policy of the proxy in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DemoPolicy {
    /// Roles follow the demand.
    Tidegate,
    /// Fixed number of prefill engines; no late binding, no use of TPOT slack.
    Static(usize),
}

impl DemoPolicy {
    fn name(self) -> String {
        match self {
            DemoPolicy::Tidegate => "tidegate".to_owned(),
            DemoPolicy::Static(prefills) => format!("static:{prefills}"),
        }
    }
}

/// Run the demo.
pub fn run(args: Args) -> Result<(), DemoError> {
    let length = Seconds(args.seconds as f64);
    let trace = trace::choose(args.scenario, args.trace.as_deref(), length)?;
    if args.trace.is_none() {
        eprintln!("{}", args.scenario.story());
    }
    let fails = (args.scenario == Scenario::Failure).then(|| length / 3.0);
    let (profile, slo) = (Profile::default(), Slo::default());
    let end = trace.end() + DRAIN;
    let best = best_split(&trace, profile, usize::from(ENGINES), end, &slo);
    let (prefills, simulated) = best.map_or((4, 0.0), |(k, report)| (k, report.attainment));
    eprintln!(
        "{} requests in {length}; {ENGINES} engines with profile {}; targets: TTFT {}, TPOT {} ms",
        trace.arrivals.len(),
        profile.name,
        slo.ttft,
        slo.tpot.as_millis(),
    );
    eprintln!(
        "best fixed split in hindsight: {prefills} prefill, {} decode (engine model: {simulated:.3})",
        usize::from(ENGINES) - prefills
    );
    let runtime = tokio::runtime::Runtime::new()?;
    let prefix_cache = args.scenario == Scenario::Agents;
    let load = DemoLoad { trace, profile, slo, fails, prefix_cache };
    let (fixed, looks) = runtime.block_on(one(DemoPolicy::Static(prefills), &load, None))?;
    let beside = Some(("fixed split", looks));
    let (tidegate, _) = runtime.block_on(one(DemoPolicy::Tidegate, &load, beside))?;
    let reports = [tidegate, fixed];
    if !is_stdout(args.json.as_deref()) {
        print_table(&reports);
        result::print(&reports[0], &reports[1], &load);
    }
    match &args.json {
        Some(path) => Ok(write_json(path, &reports)?),
        None => Ok(()),
    }
}

/// What both policies serve.
struct DemoLoad {
    trace: Trace,
    profile: Profile,
    slo: Slo,
    /// Two engines fail after this time and return after twice this time.
    fails: Option<Seconds>,
    /// Whether the engines have a prefix cache, as vLLM does; the reference results were computed
    /// without.
    prefix_cache: bool,
}

/// Runs one policy on a fresh set of engines.
async fn one(
    policy: DemoPolicy,
    of: &DemoLoad,
    beside: Option<(&str, Vec<Look>)>,
) -> Result<(Report, Vec<Look>), DemoError> {
    let DemoLoad { trace, profile, slo, fails, prefix_cache } = of;
    let mut engines = start(EmulatorConfig {
        count: ENGINES,
        profile: *profile,
        model: MODEL.to_owned(),
        prefix_cache: *prefix_cache,
        ..EmulatorConfig::default()
    })
    .await?;
    let (settings, data) = fleet::settings(policy, engines.addresses(), profile, slo)?;
    let simulator = Some(crate::what_if::simulator());
    let running = tidegate_proxy::spawn_with(&settings, simulator)?;
    ready(&running).await?;
    let progress = Arc::new(LoadProgress::default());
    let total = trace.arrivals.len() as u64;
    let proxy = Arc::clone(&running.proxy);
    let dashboard = format!("dashboard: http://{}/", running.addresses.admin);
    let mut shown = DemoView::new(&policy.name(), proxy, total, *slo, beside, dashboard);
    let config = LoadConfig {
        target: Target::parse(&format!("http://{data}"))?,
        model: MODEL.to_owned(),
        trace: trace.clone(),
        drain: DRAIN,
    };
    let loading = load(config, Arc::clone(&progress));
    let outcomes = {
        let showing = async {
            shown.follow(&progress).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcomes = loading => outcomes,
            () = showing => Vec::new(),
            failed = fail(&mut engines, *fails) => match failed? {},
        }
    };
    let looks = shown.into_looks();
    let flips = running.proxy.journal.entries().len() as u64;
    let late: u64 = (0..usize::from(ENGINES)).map(|i| engines.stats(i).late_steps).sum();
    if late > 0 {
        eprintln!(
            "{}: {late} engine steps ended over 5 ms late: the machine is busy",
            policy.name()
        );
    }
    tokio::task::block_in_place(|| running.stop());
    engines.stop().await;
    let report = Report::of(&policy.name(), 1.0, flips, &outcomes, slo)
        .with_gaps(&progress.gaps())
        .with_errors(&outcomes);
    Ok((report, looks))
}

/// Kills two engines after `fails` and restarts them after the same time again.
async fn fail(engines: &mut Engines, fails: Option<Seconds>) -> std::io::Result<Infallible> {
    let Some(fails) = fails else { return std::future::pending().await };
    let victims = [0, usize::from(ENGINES) - 1];
    tokio::time::sleep(fails.to_duration()).await;
    for victim in victims {
        engines.kill(victim).await;
    }
    tokio::time::sleep(fails.to_duration()).await;
    for victim in victims {
        engines.revive(victim).await?;
    }
    std::future::pending().await
}

async fn ready(running: &Running) -> Result<(), DemoError> {
    let clock = running.proxy.clock;
    let deadline = clock.now() + READY_MAX;
    while clock.now() < deadline {
        let table = running.proxy.fleet.table();
        if table.models.values().any(|pool| table.backends(*pool).len() == usize::from(ENGINES)) {
            return Ok(());
        }
        drop(table);
        tokio::time::sleep(Seconds(0.02).to_duration()).await;
    }
    Err(DemoError::NotReady(READY_MAX))
}
