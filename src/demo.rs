//! `tidegate demo`: runs eight emulated engines, the proxy and a load in one process, shown live;
//! then the same load on the best fixed split. All of it runs inside this process.

mod fleet;
mod trace;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use tidegate_emulator::{EmulatorConfig, start};
use tidegate_load::{LoadConfig, Progress, Target, TargetError, run as load};
use tidegate_proxy::{Running, StartError};
use tidegate_sim::{Profile, Report, Trace, best_split};
use tidegate_types::{Seconds, Slo};

use crate::replay::{ReplayError, print_table, write_json};
use trace::Scenario;

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
    /// File for the reports, one JSON object per line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Failure of a demo.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The trace, or the report's file.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] StartError),
    /// The proxy's address.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The engines.
    #[error("the engines cannot start: {0}")]
    Engines(#[from] std::io::Error),
    /// The demo's own settings.
    #[error("the demo's settings are refused: {0}")]
    Settings(String),
    /// The proxy did not come up.
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
enum Policy {
    /// Roles follow the demand.
    Tidegate,
    /// Fixed number of prefill engines; no late binding, no use of TPOT slack.
    Static(usize),
}

impl Policy {
    fn name(self) -> String {
        match self {
            Policy::Tidegate => "tidegate".to_owned(),
            Policy::Static(prefills) => format!("static:{prefills}"),
        }
    }
}

/// Run the demo.
pub fn run(args: Args) -> Result<(), DemoError> {
    let length = Seconds(args.seconds as f64);
    let trace = trace::choose(args.scenario, args.trace.as_deref(), length)?;
    let (profile, slo) = (Profile::default(), Slo::default());
    let end = trace.end() + DRAIN;
    let best = best_split(&trace, profile, usize::from(ENGINES), end, &slo);
    let (prefills, simulated) = best.map_or((4, 0.0), |(k, report)| (k, report.attainment));
    eprintln!(
        "{} requests in {length}; {ENGINES} engines like {}; targets: TTFT {}, TPOT {} ms",
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
    let mut reports = Vec::new();
    for policy in [Policy::Tidegate, Policy::Static(prefills)] {
        reports.push(runtime.block_on(one(policy, trace.clone(), profile, slo))?);
    }
    print_table(&reports);
    match &args.json {
        Some(path) => Ok(write_json(path, &reports)?),
        None => Ok(()),
    }
}

/// Runs one policy on a fresh set of engines.
async fn one(
    policy: Policy,
    trace: Trace,
    profile: Profile,
    slo: Slo,
) -> Result<Report, DemoError> {
    let engines = start(EmulatorConfig {
        count: ENGINES,
        profile,
        model: MODEL.to_owned(),
        ..EmulatorConfig::default()
    })
    .await?;
    let (settings, data) = fleet::settings(policy, engines.addresses(), &profile, &slo)?;
    let simulator = Some(crate::what_if::simulator());
    let running = tidegate_proxy::spawn_with(&settings, simulator)?;
    ready(&running).await?;
    let progress = Arc::new(Progress::default());
    let total = trace.arrivals.len() as u64;
    let shown = view::View::new(&policy.name(), Arc::clone(&running.proxy), total);
    let config = LoadConfig {
        target: Target::parse(&format!("http://{data}"))?,
        model: MODEL.to_owned(),
        trace,
        drain: DRAIN,
    };
    let loading = load(config, Arc::clone(&progress));
    let outcomes = tokio::select! {
        outcomes = loading => outcomes,
        never = shown.follow(&progress) => match never {},
    };
    shown.end();
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
    Ok(Report::of(&policy.name(), 1.0, flips, &outcomes, &slo).with_errors(&outcomes))
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
