//! `tidegate top`: the fleet of a running proxy, live.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_types::Role;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::operate::{Admin, BackendStatus, FleetStatus, OperateError, read};
use crate::screen::canvas::Canvas;
use crate::screen::{ChartSeries, EngineRow, Screen};
use crate::terminal::{has_colours, time_text};

/// Show the fleet of a running proxy, live: pools, engines, queue, latencies against their targets,
/// and the last role changes.
///
/// q, Esc or Ctrl-C ends the view. Without a terminal one line is written per reading.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: Admin,
    /// Time between two readings
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// End after this many readings
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print one JSON object per reading: the time, and the admin API's answers on the fleet, the
    /// targets and the last role changes
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct TargetsAnswer {
    ttft_seconds: f64,
    tpot_seconds: f64,
    models: Vec<ModelTargets>,
}

#[derive(Deserialize)]
struct ModelTargets {
    requests: usize,
    /// None of batch work.
    attainment: Option<f64>,
    #[serde(default)]
    ttft_seconds: Option<f64>,
    #[serde(default)]
    tpot_seconds: Option<f64>,
    ttft: PercentilesAnswer,
    tpot: PercentilesAnswer,
}

#[derive(Deserialize)]
struct PercentilesAnswer {
    p50: Option<f64>,
}

#[derive(Deserialize)]
struct FlipEntry {
    at: f64,
    reason: String,
}

/// Role changes on the screen.
const FLIPS: usize = 4;
/// Shortest interval.
const INTERVAL_MIN: f64 = 0.1;

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (INTERVAL_MIN..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.1 to 3600 seconds".to_owned()),
    }
}

/// `tidegate top`
pub fn run(args: &Args) -> Result<(), OperateError> {
    let interval = Duration::from_secs_f64(args.interval);
    let live = !args.json && std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    let canvas = match live {
        true => Canvas::open(has_colours(), true).ok(),
        false => None,
    };
    match canvas {
        Some(canvas) => show(args, canvas, interval),
        None => write_lines(args, interval),
    }
}

/// Draws each reading until a key or the terminal ends it.
fn show(args: &Args, mut canvas: Canvas, interval: Duration) -> Result<(), OperateError> {
    let mut screen = Screen::default();
    let mut round = 1;
    loop {
        FleetReading::ask(&args.admin)?.put(args.admin.address(), &mut screen)?;
        // The view ends when the terminal is closed.
        if canvas.show(&screen).is_err() || args.count.is_some_and(|count| round >= count) {
            return Ok(());
        }
        round += 1;
        if canvas.wait(interval).unwrap_or(true) {
            return Ok(());
        }
    }
}

/// Writes a line for each reading until SIGINT or SIGTERM; a line is never cut.
fn write_lines(args: &Args, interval: Duration) -> Result<(), OperateError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(OperateError::Runtime)?;
    let mut signals = runtime.block_on(async { Signals::new() }).map_err(OperateError::Runtime)?;
    let mut screen = Screen::default();
    let mut round = 1;
    loop {
        let reading = FleetReading::ask(&args.admin)?;
        let line = match args.json {
            true => reading.json()?,
            false => {
                reading.put(args.admin.address(), &mut screen)?;
                screen.line()
            }
        };
        // A closed stdout (EPIPE) ends it.
        let written = writeln!(std::io::stdout(), "{line}");
        if written.is_err() || args.count.is_some_and(|count| round >= count) {
            return Ok(());
        }
        round += 1;
        if runtime.block_on(signals.within(interval)) {
            return Ok(());
        }
    }
}

/// SIGINT and SIGTERM. A signal during a reading is kept for the next wait.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Signals { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    /// Waits; returns whether a signal ended the wait.
    async fn within(&mut self, time: Duration) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => true,
            () = tokio::time::sleep(time) => false,
        }
    }
}

/// The admin API's answers of one reading.
struct FleetReading {
    fleet: String,
    targets: String,
    flips: String,
}

/// One reading as JSON.
#[derive(Serialize)]
struct ReadingLine<'a> {
    /// Unix time of the reading.
    at: f64,
    fleet: &'a RawValue,
    targets: &'a RawValue,
    /// The last role changes, the latest first.
    flips: Vec<&'a RawValue>,
}

impl FleetReading {
    fn ask(admin: &Admin) -> Result<FleetReading, OperateError> {
        Ok(FleetReading {
            fleet: admin.ask("GET", "/v1/fleet", "")?,
            targets: admin.ask("GET", "/v1/targets", "")?,
            flips: admin.ask("GET", "/v1/plan/history", "")?,
        })
    }

    /// One line of JSON; numbers are those of the answers.
    fn json(&self) -> Result<String, OperateError> {
        let flips: Vec<&RawValue> = serde_json::from_str(&self.flips).map_err(unreadable)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = ReadingLine {
            at: since.as_secs_f64(),
            fleet: serde_json::from_str(&self.fleet).map_err(unreadable)?,
            targets: serde_json::from_str(&self.targets).map_err(unreadable)?,
            flips: flips.into_iter().rev().take(FLIPS).collect(),
        };
        serde_json::to_string(&line).map_err(unreadable)
    }

    /// Puts the answers on the screen.
    fn put(&self, address: &str, screen: &mut Screen) -> Result<(), OperateError> {
        let fleet: FleetStatus = read(&self.fleet)?;
        let targets: TargetsAnswer = read(&self.targets)?;
        let flips: Vec<FlipEntry> = read(&self.flips)?;
        let ready = if fleet.ready { "ready" } else { "NOT READY" };
        screen.title = format!(
            "tidegate top  {address}  plan {}, {ready}, {} in flight",
            fleet.plan, fleet.live_requests
        );
        screen.queue.push(Some(fleet.waiting_requests as f64));
        latencies(&targets, screen);
        screen.engines = fleet
            .backends
            .into_iter()
            .map(|backend| engine(backend, targets.ttft_seconds))
            .collect();
        let last = flips.iter().rev().take(FLIPS);
        screen.flips = last.map(|flip| format!("{}  {}", clock(flip.at), flip.reason)).collect();
        screen.footer =
            "median TTFT and TPOT and attainment of the last five minutes · q ends".to_owned();
        Ok(())
    }
}

fn unreadable(error: serde_json::Error) -> OperateError {
    OperateError::Unreadable(error.to_string())
}

/// The values of the model and service class with the most requests, without batch work.
fn latencies(targets: &TargetsAnswer, screen: &mut Screen) {
    let judged = targets.models.iter().filter(|model| model.attainment.is_some());
    let busiest = judged.max_by_key(|model| model.requests);
    let put = |series: &mut ChartSeries, target: Option<f64>, value: Option<f64>| {
        series.target = target;
        series.push(value);
    };
    let ttft = busiest.and_then(|model| model.ttft_seconds).unwrap_or(targets.ttft_seconds);
    let tpot = busiest.and_then(|model| model.tpot_seconds).unwrap_or(targets.tpot_seconds);
    put(&mut screen.ttft, Some(ttft), busiest.and_then(|model| model.ttft.p50));
    put(&mut screen.tpot, Some(tpot), busiest.and_then(|model| model.tpot.p50));
    put(&mut screen.attainment, None, busiest.and_then(|model| model.attainment));
}

fn engine(backend: BackendStatus, ttft: f64) -> EngineRow {
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let prefills = backend.role == Role::Prefill;
    let problem = match backend.health.as_str() {
        "up" => backend.misfits.first().cloned().unwrap_or_default(),
        other => other.to_owned(),
    };
    EngineRow {
        role: backend.role,
        load: match prefills {
            true => share(backend.prefill_seconds, ttft),
            false => share(f64::from(backend.streams), f64::from(backend.streams_max)),
        },
        detail: match prefills {
            true => time_text(Some(backend.prefill_seconds)),
            false => format!("{} streams", backend.streams),
        },
        kv: share(backend.kv_tokens as f64, backend.kv_capacity_tokens as f64),
        name: backend.name,
        problem,
    }
}

/// Time of day, UTC.
fn clock(unix: f64) -> String {
    let seconds = unix.max(0.0) as u64 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
