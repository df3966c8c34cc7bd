//! Health of a backend: whether it may receive new work, and how much. Written by requests
//! (outcomes), the prober and the control loop. There are two levels: a backend that is *not
//! usable* receives nothing; a *suspect* receives work only if no other backend is usable, so that
//! suspicion alone never causes a 503. A refused connection takes effect at once, without a probe,
//! and a returning backend receives a growing share of load (slow start).

use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

use super::outlier::{Ejections, OutlierParams, Window};

/// Slow start: first share of the peers' load for a returning backend, which may be cold or fail
/// again.
const SHARE_FIRST: f64 = 0.1;
/// First back-off after a load refusal without `Retry-After`: a few decode steps.
const BACK_OFF_FIRST: Seconds = Seconds(0.25);
/// Longest such back-off; each one is twice the previous.
const BACK_OFF_MAX: Seconds = Seconds(5.0);
/// Longest back-off that an engine may request; it may have capacity long before.
pub const BACK_OFF_REQUESTED_MAX: Seconds = Seconds(60.0);

/// Thresholds of ejection and return.
#[derive(Clone, Copy, Debug)]
pub struct HealthParams {
    /// Consecutive failed probes after which the backend is down or suspect.
    pub failures_to_eject: u32,
    /// Duration of slow start after a return; 0: full load at once.
    pub slow_return: Seconds,
    /// Outlier ejection by failed requests.
    pub outlier: OutlierParams,
}

/// The health of one backend.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    /// Reasons for suspicion, as bits.
    suspicion: AtomicU8,
    /// Consecutive failed probes.
    probes_failed: AtomicU32,
    window: Window,
    ejections: Ejections,
    /// End of the current load back-off, and the number of consecutive ones.
    busy_until: AtomicU64,
    busy_times: AtomicU32,
    /// When its last token or answer arrived, as far as recorded.
    received_at: AtomicU64,
    params: HealthParams,
    /// When it last became usable again; `NEVER`: it was never unusable.
    returned: AtomicU64,
    /// Whether its GPU is unusable, whatever the engine answers.
    hardware_fault: AtomicBool,
    /// Whether a misfit makes it unusable.
    unfit: AtomicBool,
    /// Why it is unusable or suspect, as a sentence.
    reason: ArcSwapOption<String>,
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// All its streams are silent.
const SILENT: u8 = 1;
/// Ejected as an outlier.
const EJECTED: u8 = 2;
/// Its probes are not answered in time.
const OVERDUE: u8 = 4;

impl Health {
    /// Health of a backend that has not been contacted.
    pub fn new(params: HealthParams) -> Health {
        Health {
            state: AtomicU8::new(UNKNOWN),
            suspicion: AtomicU8::new(0),
            probes_failed: AtomicU32::new(0),
            window: Window::default(),
            ejections: Ejections::default(),
            busy_until: AtomicU64::new(Moment::START.0),
            busy_times: AtomicU32::new(0),
            received_at: AtomicU64::new(Moment::START.0),
            params,
            returned: AtomicU64::new(Moment::NEVER.0),
            hardware_fault: AtomicBool::new(false),
            unfit: AtomicBool::new(false),
            reason: ArcSwapOption::empty(),
        }
    }

    /// Whether it may receive new work. A backend that has not been contacted may: its first
    /// request shows whether it serves.
    pub fn is_usable(&self) -> bool {
        self.state.load(Relaxed) != DOWN
            && !self.hardware_fault.load(Relaxed)
            && !self.unfit.load(Relaxed)
    }

    /// Whether it is a suspect: it receives work only if no other backend is usable.
    pub fn is_suspect(&self, now: Moment) -> bool {
        self.suspicion.load(Relaxed) != 0 || self.is_busy(now)
    }

    /// Whether it is usable, not ejected, and answers probes; it may be silent or in a back-off.
    pub fn is_healthy(&self) -> bool {
        self.is_usable() && !self.is_ejected() && !self.is_overdue()
    }

    /// Whether its last probe or request was answered, regardless of other problems.
    pub fn is_up(&self) -> bool {
        self.state.load(Relaxed) == UP && !self.is_overdue()
    }

    /// Whether a leg should stop waiting for it: down, probes unanswered, or a GPU fault.
    pub fn is_dead(&self) -> bool {
        self.state.load(Relaxed) == DOWN || self.is_overdue() || self.hardware_fault.load(Relaxed)
    }

    /// Whether all its streams are silent.
    pub fn is_silent(&self) -> bool {
        self.suspicion.load(Relaxed) & SILENT != 0
    }

    /// Whether it is ejected as an outlier.
    pub fn is_ejected(&self) -> bool {
        self.suspicion.load(Relaxed) & EJECTED != 0
    }

    /// Whether its probes are unanswered.
    pub fn is_overdue(&self) -> bool {
        self.suspicion.load(Relaxed) & OVERDUE != 0
    }

    /// Whether it is in the back-off after a load refusal.
    pub fn is_busy(&self, now: Moment) -> bool {
        now < Moment(self.busy_until.load(Relaxed))
    }

    /// Share of its peers' mean load that it may have: 1, or less during slow start.
    pub fn share(&self, now: Moment) -> f64 {
        let returned = Moment(self.returned.load(Relaxed));
        if returned == Moment::NEVER {
            return 1.0;
        }
        let grown = (now - returned) / self.params.slow_return.max(Seconds(f64::MIN_POSITIVE));
        grown.clamp(SHARE_FIRST, 1.0)
    }

    /// The state in logs and the admin API.
    pub fn as_str(&self, now: Moment) -> &'static str {
        let state = self.state.load(Relaxed);
        match (state, self.suspicion.load(Relaxed)) {
            (DOWN, _) => "down",
            _ if self.hardware_fault.load(Relaxed) => "hardware_fault",
            _ if self.unfit.load(Relaxed) => "unfit",
            (_, suspicion) if suspicion & OVERDUE != 0 => "down",
            (_, suspicion) if suspicion & EJECTED != 0 => "ejected",
            (_, suspicion) if suspicion & SILENT != 0 => "silent",
            _ if self.is_busy(now) => "busy",
            (UNKNOWN, _) => "unknown",
            _ => "up",
        }
    }

    /// Why it is unusable or suspect; `None` while it is neither.
    pub fn reason(&self, now: Moment) -> Option<String> {
        let out = !self.is_usable() || self.is_suspect(now);
        self.reason.load().as_ref().filter(|_| out).map(|reason| reason.to_string())
    }

    /// Stores why it is unusable or suspect.
    pub fn set_reason(&self, reason: String) {
        self.reason.store(Some(Arc::new(reason)));
    }

    /// Records an answered request. Returns whether the backend returned by it.
    pub fn succeeded(&self, now: Moment) -> bool {
        self.window.record(&self.params.outlier, now, false);
        self.received_at.store(now.0, Relaxed);
        if self.busy_times.load(Relaxed) > 0 {
            self.busy_times.store(0, Relaxed);
        }
        self.answers(now, SILENT | OVERDUE)
    }

    /// Records an answered probe. Returns whether the backend returned by it or was contacted for
    /// the first time. A silent backend stays suspect: engines with a hung step still answer
    /// probes.
    pub fn probed(&self, now: Moment) -> bool {
        let ends = self.is_ejected() && self.ejections.is_over(now);
        let known = self.state.load(Relaxed) != UNKNOWN;
        if ends {
            self.window.clear();
        }
        self.answers(now, if ends { OVERDUE | EJECTED } else { OVERDUE }) || !known
    }

    /// Marks it as up and clears the suspicions in `cleared`.
    fn answers(&self, now: Moment, cleared: u8) -> bool {
        if self.probes_failed.load(Relaxed) > 0 {
            self.probes_failed.store(0, Relaxed);
        }
        let was_down = self.state.load(Relaxed) != UP && self.state.swap(UP, Relaxed) == DOWN;
        let before = match self.suspicion.load(Relaxed) & cleared {
            0 => 0,
            _ => self.suspicion.fetch_and(!cleared, Relaxed) & cleared,
        };
        let away = was_down || before & (OVERDUE | EJECTED) != 0;
        if away {
            self.returned.store(now.0, Relaxed);
        }
        away || before != 0
    }

    /// Records a probe without an answer in time (hung or busy engine). Returns whether the backend
    /// became a suspect.
    pub fn missed_probe(&self) -> bool {
        self.counts_probe() && self.suspicion.fetch_or(OVERDUE, Relaxed) & OVERDUE == 0
    }

    /// Records a probe whose answer reports a failure. Returns whether the backend went down.
    pub fn failed_probe(&self) -> bool {
        self.counts_probe() && self.state.swap(DOWN, Relaxed) != DOWN
    }

    fn counts_probe(&self) -> bool {
        let failed = self.probes_failed.fetch_add(1, Relaxed) + 1;
        failed >= self.params.failures_to_eject.max(1)
    }

    /// Records a failed request that the engine caused. Returns whether its failure share makes it
    /// an outlier; the caller checks the panic threshold of its pools and ejects it.
    pub fn failed(&self, now: Moment) -> bool {
        self.window.record(&self.params.outlier, now, true);
        !self.is_ejected() && self.window.is_outlier(&self.params.outlier, now)
    }

    /// Requests and failures in the window.
    pub fn recent(&self, now: Moment) -> (u64, u64) {
        self.window.counts(&self.params.outlier, now)
    }

    /// Ejects it. Returns for how long; `None` if it is already ejected.
    pub fn eject(&self, now: Moment) -> Option<Seconds> {
        let new = self.suspicion.fetch_or(EJECTED, Relaxed) & EJECTED == 0;
        new.then(|| self.ejections.eject(&self.params.outlier, now))
    }

    /// Marks a backend that joins a running fleet: down until it answers, then slow start.
    pub fn joins(&self) {
        self.state.store(DOWN, Relaxed);
        self.set_reason("has joined and not answered yet".to_owned());
    }

    /// Records a refused connection. Returns whether the backend went down.
    pub fn refused(&self) -> bool {
        self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// Records a load refusal. `requested`: the engine's `Retry-After`. Returns the back-off.
    pub fn back_off(&self, now: Moment, requested: Option<Seconds>) -> Seconds {
        let span = match requested.filter(|requested| *requested > Seconds::ZERO) {
            Some(requested) => requested.min(BACK_OFF_REQUESTED_MAX),
            None => {
                // Concurrent requests are refused together; their refusals count once.
                let again = !self.is_busy(now);
                let times = match again {
                    true => self.busy_times.fetch_add(1, Relaxed),
                    false => self.busy_times.load(Relaxed).saturating_sub(1),
                };
                (BACK_OFF_FIRST * 2_f64.powi(times.min(16) as i32)).min(BACK_OFF_MAX)
            }
        };
        self.busy_until.fetch_max((now + span).0, Relaxed);
        span
    }

    /// Sets whether its GPU is unusable. Returns whether that changed.
    pub fn set_hardware_fault(&self, fault: bool) -> bool {
        self.hardware_fault.swap(fault, Relaxed) != fault
    }

    /// Sets whether a misfit makes it unusable. Returns whether that changed.
    pub fn set_unfit(&self, unfit: bool) -> bool {
        self.unfit.swap(unfit, Relaxed) != unfit
    }

    /// Records bytes of one of its streams at `moment`.
    pub fn received(&self, moment: Moment) {
        self.received_at.fetch_max(moment.0, Relaxed);
    }

    /// When its last bytes arrived.
    pub fn received_at(&self) -> Moment {
        Moment(self.received_at.load(Relaxed))
    }

    /// Records that all its streams are silent. Returns whether it became a suspect.
    pub fn mark_silent(&self) -> bool {
        self.suspicion.fetch_or(SILENT, Relaxed) & SILENT == 0
    }

    /// Records that a silent backend's streams send again. Returns whether that changed. Slow start
    /// does not apply, because the backend was never unusable.
    pub fn clear_silent(&self) -> bool {
        self.is_silent() && self.suspicion.fetch_and(!SILENT, Relaxed) & SILENT != 0
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
