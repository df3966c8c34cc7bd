//! `tidegate top`: the fleet of a running proxy, live.

use serde::Deserialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tidegate_types::Role;

use crate::operate::{Admin, BackendStatus, FleetStatus, OperateError};
use crate::screen::canvas::Canvas;
use crate::screen::{ChartSeries, EngineRow, Screen};
use crate::terminal::has_colours;

/// Show the fleet of a running proxy, live: pools, engines, queue, latencies against their targets,
/// and the last role changes.
///
/// q, Esc or Ctrl-C ends it. Without a terminal one line is written per interval.
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
    attainment: f64,
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
    let mut screen = Screen::default();
    read(&args.admin, &mut screen)?;
    let interval = Duration::from_secs_f64(args.interval);
    let live = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    let mut canvas = match live {
        true => Canvas::open(has_colours(), true).ok(),
        false => None,
    };
    let mut round = 1;
    loop {
        match &mut canvas {
            // The view ends when the terminal is closed.
            Some(canvas) => {
                if canvas.show(&screen).is_err() {
                    return Ok(());
                }
            }
            None => {
                if writeln!(std::io::stdout(), "{}", screen.line()).is_err() {
                    return Ok(());
                }
            }
        }
        if args.count.is_some_and(|count| round >= count) {
            return Ok(());
        }
        round += 1;
        match &canvas {
            Some(canvas) => {
                if canvas.wait(interval).unwrap_or(true) {
                    return Ok(());
                }
            }
            None => std::thread::sleep(interval),
        }
        read(&args.admin, &mut screen)?;
    }
}

/// Reads the admin API into the screen.
fn read(admin: &Admin, screen: &mut Screen) -> Result<(), OperateError> {
    let strange = |error: serde_json::Error| OperateError::Strange(error.to_string());
    let fleet: FleetStatus =
        serde_json::from_str(&admin.ask("GET", "/v1/fleet", "")?).map_err(strange)?;
    let targets: TargetsAnswer =
        serde_json::from_str(&admin.ask("GET", "/v1/targets", "")?).map_err(strange)?;
    let flips: Vec<FlipEntry> =
        serde_json::from_str(&admin.ask("GET", "/v1/plan/history", "")?).map_err(strange)?;
    let ready = if fleet.ready { "ready" } else { "NOT READY" };
    screen.title = format!(
        "tidegate top  {}  plan {}, {ready}, {} in flight",
        admin.address(),
        fleet.plan,
        fleet.live_requests
    );
    screen.queue.push(Some(fleet.waiting_requests as f64));
    latencies(&targets, screen);
    screen.engines =
        fleet.backends.into_iter().map(|backend| engine(backend, targets.ttft_seconds)).collect();
    let last = flips.iter().rev().take(FLIPS);
    screen.flips = last.map(|flip| format!("{}  {}", clock(flip.at), flip.reason)).collect();
    screen.footer =
        "median TTFT and TPOT and attainment of the last five minutes · q ends".to_owned();
    Ok(())
}

/// The values of the model with the most requests.
fn latencies(targets: &TargetsAnswer, screen: &mut Screen) {
    let busiest = targets.models.iter().max_by_key(|model| model.requests);
    let put = |series: &mut ChartSeries, target: Option<f64>, value: Option<f64>| {
        series.target = target;
        series.push(value);
    };
    let (ttft, tpot) = (targets.ttft_seconds, targets.tpot_seconds);
    put(&mut screen.ttft, Some(ttft), busiest.and_then(|model| model.ttft.p50));
    put(&mut screen.tpot, Some(tpot), busiest.and_then(|model| model.tpot.p50));
    put(&mut screen.attainment, None, busiest.map(|model| model.attainment));
}

fn engine(backend: BackendStatus, ttft: f64) -> EngineRow {
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let prefills = backend.role == Role::Prefill;
    let trouble = match backend.health.as_str() {
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
            true => format!("{:.0} ms", backend.prefill_seconds * 1e3),
            false => format!("{} streams", backend.streams),
        },
        kv: share(backend.kv_tokens as f64, backend.kv_capacity_tokens as f64),
        name: backend.name,
        trouble,
    }
}

/// Time of day, UTC.
fn clock(unix: f64) -> String {
    let seconds = unix.max(0.0) as u64 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
