//! The live view of one run: both pools, queue, TTFT and TPOT against their targets, role changes,
//! beside the run that it is compared with. Without a terminal it prints a line every few seconds.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tidegate_load::{LoadProgress, LoadSnapshot};
use tidegate_proxy::Proxy;
use tidegate_types::{Role, Slo};

use crate::screen::canvas::Canvas;
use crate::screen::{ChartSeries, EngineRow, Screen};
use crate::terminal::{has_colours, time_text};

/// Refresh interval.
const LOOK: Duration = Duration::from_millis(200);
/// Refreshes per printed line without a terminal.
const LOOKS_A_LINE: usize = 20;
/// Number of refreshes over which TTFT and TPOT are averaged.
const LOOKS_A_MEAN: usize = 10;
/// Role changes on the screen.
const FLIPS: usize = 4;

/// The values of one refresh, kept for comparison with a later run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    queue: f64,
    ttft: Option<f64>,
    tpot: Option<f64>,
    attainment: Option<f64>,
}

/// One policy's run on the screen.
pub struct DemoView {
    proxy: Arc<Proxy>,
    screen: Screen,
    canvas: Option<Canvas>,
    policy: String,
    total: u64,
    slo: Slo,
    /// The run that this one is compared with.
    beside: Vec<Look>,
    /// This run so far.
    looks: Vec<Look>,
    told: usize,
}

impl DemoView {
    /// An empty view; `beside` is the earlier run with its name.
    pub fn new(
        policy: &str,
        proxy: Arc<Proxy>,
        total: u64,
        slo: Slo,
        beside: Option<(&str, Vec<Look>)>,
        dashboard: String,
    ) -> DemoView {
        let canvas = match std::io::stderr().is_terminal() {
            true => Canvas::open(has_colours(), false).ok(),
            false => None,
        };
        if canvas.is_none() {
            eprintln!("{policy}: {dashboard}");
        }
        let (name, beside) = beside.unzip();
        let screen = Screen {
            ttft: ChartSeries::with_target(slo.ttft.get()),
            tpot: ChartSeries::with_target(slo.tpot.get()),
            beside: name.map(str::to_owned),
            footer: dashboard,
            ..Screen::default()
        };
        let (policy, beside) = (policy.to_owned(), beside.unwrap_or_default());
        DemoView { proxy, screen, canvas, policy, total, slo, beside, looks: Vec::new(), told: 0 }
    }

    /// Refreshes the screen until cancelled, or until Ctrl-C, which ends the program.
    pub async fn follow(&mut self, progress: &LoadProgress) {
        let mut snapshots: Vec<LoadSnapshot> = Vec::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = tokio::signal::ctrl_c() => {
                    self.canvas = None;
                    std::process::exit(INTERRUPTED);
                }
            }
            let now = progress.snapshot();
            let before = snapshots.get(snapshots.len().saturating_sub(LOOKS_A_MEAN));
            let before = before.copied().unwrap_or_default();
            snapshots.push(now);
            self.look(&now, &before);
            self.flips();
            let round = self.looks.len();
            match &mut self.canvas {
                // If the terminal is closed, the view ends and the run continues.
                Some(canvas) => canvas.show(&self.screen).unwrap_or_default(),
                None if round.is_multiple_of(LOOKS_A_LINE) => eprintln!("{}", self.screen.line()),
                None => {}
            }
        }
    }

    /// Ends the view and returns its values.
    pub fn into_looks(self) -> Vec<Look> {
        self.looks
    }

    fn look(&mut self, now: &LoadSnapshot, before: &LoadSnapshot) {
        let seconds = |span: Option<tidegate_types::Seconds>| span.map(|span| span.get());
        let points = self.proxy.history.points();
        let (ended, attained) = points.iter().fold((0, 0), |(ended, attained), point| {
            (ended + point.ended, attained + point.attained)
        });
        let look = Look {
            queue: self.proxy.queue.signal().waiting() as f64,
            ttft: seconds(now.ttft_since(before)),
            tpot: seconds(now.tpot_since(before)),
            attainment: (ended > 0).then(|| attained as f64 / ended as f64),
        };
        let other = self.beside.get(self.looks.len()).copied();
        self.looks.push(look);
        let screen = &mut self.screen;
        screen.title = format!(
            "{:<16} {}/{} requests ended, {} failed",
            self.policy,
            now.done + now.failed,
            self.total,
            now.failed
        );
        for (series, value, beside) in [
            (&mut screen.queue, Some(look.queue), other.map(|other| other.queue)),
            (&mut screen.ttft, look.ttft, other.and_then(|other| other.ttft)),
            (&mut screen.tpot, look.tpot, other.and_then(|other| other.tpot)),
            (&mut screen.attainment, look.attainment, other.and_then(|other| other.attainment)),
        ] {
            series.push(value);
            series.beside = beside;
        }
        screen.engines = engines(&self.proxy, &self.slo);
    }

    /// Role changes since the last refresh; printed where there is no screen.
    fn flips(&mut self) {
        let entries = self.proxy.journal.entries();
        if self.canvas.is_none() {
            for entry in entries.iter().skip(self.told) {
                eprintln!("  flip  {}", entry.reason);
            }
        }
        self.told = entries.len();
        let last = entries.iter().rev().take(FLIPS);
        self.screen.flips = last.map(|entry| entry.reason.clone()).collect();
    }
}

/// Exit code after Ctrl-C, as shells report it.
const INTERRUPTED: i32 = 130;

fn engines(proxy: &Proxy, slo: &Slo) -> Vec<EngineRow> {
    let table = proxy.fleet.table();
    let now = proxy.clock.now();
    let engine = |backend: &Arc<tidegate_proxy::fleet::Backend>| {
        let balance = backend.account.balance();
        let role = table.plan.role(backend.id);
        let backlog = balance.prefill;
        let health = backend.health.as_str(now);
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        EngineRow {
            name: backend.name.to_string(),
            role,
            load: match role {
                Role::Prefill => share(backlog.get(), slo.ttft.get()),
                _ => share(f64::from(balance.streams), f64::from(backend.streams_max)),
            },
            detail: match role {
                Role::Prefill => time_text(Some(backlog.get())),
                _ => format!("{} streams", balance.streams),
            },
            kv: share(balance.kv.as_f64(), backend.kv_capacity().as_f64()),
            problem: if health == "up" { String::new() } else { health.to_owned() },
        }
    };
    proxy.fleet.backends().iter().map(engine).collect()
}
