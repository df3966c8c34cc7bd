//! The live view: both pools, the queue, TTFT and TPOT, role flips and a progress bar. Without
//! a terminal it prints one line every few seconds.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::convert::Infallible;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tidegate_load::{Progress, Snapshot};
use tidegate_proxy::Proxy;
use tidegate_types::{Role, Seconds};

/// Refresh interval.
const LOOK: Duration = Duration::from_millis(200);
/// Refreshes per printed line without a terminal.
const LOOKS_A_LINE: u32 = 20;
/// Number of refreshes over which TTFT and TPOT are averaged.
const LOOKS_A_MEAN: usize = 10;

/// One policy's run on the screen.
pub struct View {
    proxy: Arc<Proxy>,
    screen: MultiProgress,
    bar: ProgressBar,
    pools: [ProgressBar; 2],
    numbers: ProgressBar,
    terminal: bool,
    policy: String,
}

impl View {
    /// An empty view.
    pub fn new(policy: &str, proxy: Arc<Proxy>, total: u64) -> View {
        let screen = MultiProgress::new();
        let line = |template: &str| {
            let line = screen.add(ProgressBar::new(total));
            if let Ok(style) = ProgressStyle::with_template(template) {
                line.set_style(style);
            }
            line
        };
        let pools = [line("{msg}"), line("{msg}")];
        let numbers = line("{msg}");
        let bar = line(&format!("{policy:<10} {{bar:40}} {{pos}}/{{len}} requests ended"));
        let terminal = std::io::stderr().is_terminal();
        View { proxy, screen, bar, pools, numbers, terminal, policy: policy.to_owned() }
    }

    /// Refreshes the screen until cancelled.
    pub async fn follow(&self, progress: &Progress) -> Infallible {
        let mut looks: Vec<Snapshot> = Vec::new();
        let (mut told, mut round) = (0, 0_u32);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = progress.snapshot();
            let before = looks.get(looks.len().saturating_sub(LOOKS_A_MEAN));
            let before = before.copied().unwrap_or_default();
            looks.push(now);
            told = self.tell_flips(told);
            self.bar.set_position(now.done + now.failed);
            self.pools[0].set_message(self.pool("prefill", Role::Prefill));
            self.pools[1].set_message(self.pool("decode", Role::Decode));
            let numbers = self.numbers(&now, &before);
            round += 1;
            if !self.terminal && round.is_multiple_of(LOOKS_A_LINE) {
                eprintln!(
                    "{:<10} {}/{} ended  {numbers}",
                    self.policy,
                    now.done + now.failed,
                    now.sent
                );
            }
            self.numbers.set_message(numbers);
        }
    }

    /// Clears the view.
    pub fn end(&self) {
        for line in self.pools.iter().chain([&self.numbers, &self.bar]) {
            line.finish_and_clear();
        }
    }

    fn tell_flips(&self, told: usize) -> usize {
        let entries = self.proxy.journal.entries();
        for entry in entries.iter().skip(told) {
            let number = |name| entry.numbers.get(name).copied().unwrap_or_default();
            let text = format!(
                "  flip  {}: {} → {}, {} ({:.0} prefill engines lose fewer requests; {:.0} streams stay behind)",
                entry.backend,
                entry.from,
                entry.to,
                entry.cause,
                number("advised_prefill_engines"),
                number("streams_left_behind"),
            );
            if self.terminal {
                // Write errors on the terminal are ignored.
                self.screen.println(text).ok();
            } else {
                eprintln!("{text}");
            }
        }
        entries.len()
    }

    fn pool(&self, name: &str, role: Role) -> String {
        let table = self.proxy.fleet.table();
        let members = self.proxy.fleet.backends.iter().filter(|b| table.plan.role(b.id) == role);
        let each = members.map(|backend| {
            let balance = backend.account.balance();
            match role {
                Role::Prefill => format!("{:>4.0}ms", balance.prefill.as_millis()),
                _ => format!("{:>3} streams", balance.streams),
            }
        });
        let each: Vec<String> = each.collect();
        format!("{name:<8} {} engines  {}", each.len(), each.join("  "))
    }

    fn numbers(&self, now: &Snapshot, before: &Snapshot) -> String {
        let millis = |span: Option<Seconds>| {
            span.map_or("    –".to_owned(), |span| format!("{:>5.0}", span.as_millis()))
        };
        format!(
            "queue {:>4}   live {:>4}   TTFT {} ms   TPOT {} ms   failed {}",
            self.proxy.queue.signal().waiting(),
            self.proxy.fleet.registry.len(),
            millis(now.ttft_since(before)),
            millis(now.tpot_since(before)),
            now.failed,
        )
    }
}
