//! May new work go to a backend, and how much of it? Written by requests (outcomes), the prober and
//! the control loop. Two levels: a backend that is *not usable* gets nothing; a *suspect* gets work
//! only if no other backend can be used, so that suspicion alone never answers 503. It must never
//! wait for a probe to believe a refused connection, nor give a backend that comes back all of the
//! traffic at once.

use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

use super::outlier::{Ejections, OutlierParams, Window};

/// What a backend that has just come back gets of its peers' load at first: it may be cold, or fail
/// again.
const SHARE_FIRST: f64 = 0.1;
/// The first back-off after a refusal for load that names no time: some decode steps.
const BACK_OFF_FIRST: Seconds = Seconds(0.25);
/// The longest of those, each twice the one before.
const BACK_OFF_MAX: Seconds = Seconds(5.0);
/// The longest back-off that an engine may ask for: it may be free long before.
pub const BACK_OFF_ASKED_MAX: Seconds = Seconds(60.0);

/// When a backend goes, and how it comes back.
#[derive(Clone, Copy, Debug)]
pub struct HealthParams {
    /// Failed probes in a row that take it out.
    pub failures_to_eject: u32,
    /// How long its share of the load grows after it came back; 0: it has all at once.
    pub slow_return: Seconds,
    /// When it is ejected for failed requests.
    pub outlier: OutlierParams,
}

/// One backend's.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    /// Why it is suspected: bits.
    suspicion: AtomicU8,
    /// Failed probes in a row.
    probes_failed: AtomicU32,
    window: Window,
    ejections: Ejections,
    /// It refused for load until then, and how often in a row.
    busy_until: AtomicU64,
    busy_times: AtomicU32,
    /// When it sent a token or an answer last, as far as was noticed.
    heard_at: AtomicU64,
    params: HealthParams,
    /// When it came back; never: it was never away.
    returned: AtomicU64,
    /// Its GPU cannot be used, whatever its engine answers.
    hardware_fault: AtomicBool,
    /// Its engine is not what the settings say, and of no use as it is.
    unfit: AtomicBool,
    /// Why it is out, for people.
    reason: ArcSwapOption<String>,
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// All its streams are silent.
const SILENT: u8 = 1;
/// It failed what others served.
const EJECTED: u8 = 2;
/// Its probes are not answered in time.
const OVERDUE: u8 = 4;

impl Health {
    /// Of a backend that was never heard of.
    pub fn new(params: HealthParams) -> Health {
        Health {
            state: AtomicU8::new(UNKNOWN),
            suspicion: AtomicU8::new(0),
            probes_failed: AtomicU32::new(0),
            window: Window::default(),
            ejections: Ejections::default(),
            busy_until: AtomicU64::new(Moment::START.0),
            busy_times: AtomicU32::new(0),
            heard_at: AtomicU64::new(Moment::START.0),
            params,
            returned: AtomicU64::new(Moment::NEVER.0),
            hardware_fault: AtomicBool::new(false),
            unfit: AtomicBool::new(false),
            reason: ArcSwapOption::empty(),
        }
    }

    /// May new work go there at all? A backend that was never heard of may: the first request finds
    /// out.
    pub fn is_usable(&self) -> bool {
        self.state.load(Relaxed) != DOWN
            && !self.hardware_fault.load(Relaxed)
            && !self.unfit.load(Relaxed)
    }

    /// Does it get work only if no other backend can be used?
    pub fn is_last(&self, now: Moment) -> bool {
        self.suspicion.load(Relaxed) != 0 || self.is_busy(now)
    }

    /// Is it usable and no suspect? Engines that are slow or busy are well.
    pub fn is_well(&self) -> bool {
        self.is_usable() && !self.is_ejected() && !self.is_overdue()
    }

    /// Did it answer last, whatever else is wrong with it?
    pub fn is_up(&self) -> bool {
        self.state.load(Relaxed) == UP && !self.is_overdue()
    }

    /// Is it of no use to a leg that waits for it: gone, hung, or on a GPU that is?
    pub fn is_dead(&self) -> bool {
        self.state.load(Relaxed) == DOWN || self.is_overdue() || self.hardware_fault.load(Relaxed)
    }

    /// Do its streams say nothing?
    pub fn is_silent(&self) -> bool {
        self.suspicion.load(Relaxed) & SILENT != 0
    }

    /// Is it out for failing what others serve?
    pub fn is_ejected(&self) -> bool {
        self.suspicion.load(Relaxed) & EJECTED != 0
    }

    /// Are its probes not answered?
    pub fn is_overdue(&self) -> bool {
        self.suspicion.load(Relaxed) & OVERDUE != 0
    }

    /// Has it refused for load, and is that not over?
    pub fn is_busy(&self, now: Moment) -> bool {
        now < Moment(self.busy_until.load(Relaxed))
    }

    /// What it may have of its peers' mean load: 1, or less while it is coming back.
    pub fn share(&self, now: Moment) -> f64 {
        let returned = Moment(self.returned.load(Relaxed));
        if returned == Moment::NEVER {
            return 1.0;
        }
        let grown = (now - returned) / self.params.slow_return.max(Seconds(f64::MIN_POSITIVE));
        grown.clamp(SHARE_FIRST, 1.0)
    }

    /// The word for logs and the admin API.
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

    /// Why it went out last, as long as it is.
    pub fn reason(&self, now: Moment) -> Option<String> {
        let out = !self.is_usable() || self.is_last(now);
        self.reason.load().as_ref().filter(|_| out).map(|reason| reason.to_string())
    }

    /// Remember why it is out.
    pub fn set_reason(&self, reason: String) {
        self.reason.store(Some(Arc::new(reason)));
    }

    /// An answer came. True if that brings the backend back.
    pub fn succeeded(&self, now: Moment) -> bool {
        self.window.record(&self.params.outlier, now, false);
        self.heard_at.store(now.0, Relaxed);
        if self.busy_times.load(Relaxed) > 0 {
            self.busy_times.store(0, Relaxed);
        }
        self.answers(now, SILENT | OVERDUE)
    }

    /// A probe was answered. True if that brings the backend back, or is the first word of it. A
    /// silent one stays a suspect: engines whose step hangs still answer probes.
    pub fn probed(&self, now: Moment) -> bool {
        let ends = self.is_ejected() && self.ejections.is_over(now);
        let known = self.state.load(Relaxed) != UNKNOWN;
        if ends {
            self.window.clear();
        }
        self.answers(now, if ends { OVERDUE | EJECTED } else { OVERDUE }) || !known
    }

    /// It is there: `cleared` are the suspicions that are over.
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

    /// A probe was not answered in time: the engine may be hung, or busy. True if it is a suspect now.
    pub fn missed_probe(&self) -> bool {
        self.counts_probe() && self.suspicion.fetch_or(OVERDUE, Relaxed) & OVERDUE == 0
    }

    /// The engine itself says that it is not well. True if that takes it out.
    pub fn failed_probe(&self) -> bool {
        self.counts_probe() && self.state.swap(DOWN, Relaxed) != DOWN
    }

    fn counts_probe(&self) -> bool {
        let failed = self.probes_failed.fetch_add(1, Relaxed) + 1;
        failed >= self.params.failures_to_eject.max(1)
    }

    /// A request failed, and the engine is to blame. True if it is an outlier by its own figures;
    /// whether it is ejected is for whoever knows its pools.
    pub fn failed(&self, now: Moment) -> bool {
        self.window.record(&self.params.outlier, now, true);
        !self.is_ejected() && self.window.is_outlier(&self.params.outlier, now)
    }

    /// Requests and failures of the last seconds.
    pub fn recent(&self, now: Moment) -> (u64, u64) {
        self.window.counts(&self.params.outlier, now)
    }

    /// No new work for a while. `None` if it is ejected already.
    pub fn eject(&self, now: Moment) -> Option<Seconds> {
        let new = self.suspicion.fetch_or(EJECTED, Relaxed) & EJECTED == 0;
        new.then(|| self.ejections.eject(&self.params.outlier, now))
    }

    /// No connection: nothing listens there. True if that takes the backend out.
    pub fn refused(&self) -> bool {
        self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// It refuses for load, and asks to be left alone for so long. Returns how long it is.
    pub fn back_off(&self, now: Moment, asked: Option<Seconds>) -> Seconds {
        let span = match asked.filter(|asked| *asked > Seconds::ZERO) {
            Some(asked) => asked.min(BACK_OFF_ASKED_MAX),
            None => {
                // Those that were sent together are refused together.
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

    /// Its GPU can or cannot be used. True if that is new.
    pub fn set_hardware_fault(&self, fault: bool) -> bool {
        self.hardware_fault.swap(fault, Relaxed) != fault
    }

    /// Its engine is or is not of use. True if that is new.
    pub fn set_unfit(&self, unfit: bool) -> bool {
        self.unfit.swap(unfit, Relaxed) != unfit
    }

    /// One of its streams got bytes at `moment`.
    pub fn heard(&self, moment: Moment) {
        self.heard_at.fetch_max(moment.0, Relaxed);
    }

    /// When it was heard of last.
    pub fn heard_at(&self) -> Moment {
        Moment(self.heard_at.load(Relaxed))
    }

    /// Its streams have gone silent. True if that makes it a suspect.
    pub fn fell_silent(&self) -> bool {
        self.suspicion.fetch_or(SILENT, Relaxed) & SILENT == 0
    }

    /// A silent backend's streams speak again. True if that is new. It was not away: its share of the
    /// load stays.
    pub fn spoke(&self) -> bool {
        self.is_silent() && self.suspicion.fetch_and(!SILENT, Relaxed) & SILENT != 0
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
