//! May new work go to a backend, and how much of it? Written by requests (outcomes), the prober and
//! the control loop. It must never wait for a probe to believe a failure, nor give a backend that
//! comes back all of the traffic at once.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_terms::{Moment, Seconds};

/// What a backend that has just come back gets of its peers' load at first: it may be cold, or fail
/// again.
const SHARE_FIRST: f64 = 0.1;

/// When a backend goes, and how it comes back.
#[derive(Clone, Copy, Debug)]
pub struct HealthParams {
    /// Failures in a row that take it out.
    pub failures_to_eject: u32,
    /// How long its share of the load grows after it came back; 0: it has all at once.
    pub slow_return: Seconds,
}

/// One backend's.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    failures: AtomicU32,
    params: HealthParams,
    /// When it came back; never: it was never away.
    returned: AtomicU64,
    /// Its GPU cannot be used, whatever its engine answers.
    hardware_fault: AtomicBool,
    /// Its engine is not what the settings say, and of no use as it is.
    unfit: AtomicBool,
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;
const SILENT: u8 = 3;

impl Health {
    /// Of a backend that was never heard of.
    pub fn new(params: HealthParams) -> Health {
        Health {
            state: AtomicU8::new(UNKNOWN),
            failures: AtomicU32::new(0),
            params,
            returned: AtomicU64::new(Moment::NEVER.0),
            hardware_fault: AtomicBool::new(false),
            unfit: AtomicBool::new(false),
        }
    }

    /// May new work go there? A backend that was never heard of may: the first request finds out.
    pub fn is_usable(&self) -> bool {
        matches!(self.state.load(Relaxed), UNKNOWN | UP)
            && !self.hardware_fault.load(Relaxed)
            && !self.unfit.load(Relaxed)
    }

    /// Did it answer last, whatever else is wrong with it?
    pub fn is_up(&self) -> bool {
        self.state.load(Relaxed) == UP
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
    pub fn as_str(&self) -> &'static str {
        match self.state.load(Relaxed) {
            UNKNOWN | UP if self.hardware_fault.load(Relaxed) => "hardware_fault",
            UNKNOWN | UP if self.unfit.load(Relaxed) => "unfit",
            UNKNOWN => "unknown",
            UP => "up",
            DOWN => "down",
            _ => "silent",
        }
    }

    /// An answer came. True if that brings the backend back.
    pub fn succeeded(&self, now: impl FnOnce() -> Moment) -> bool {
        self.failures.store(0, Relaxed);
        let back = matches!(self.state.swap(UP, Relaxed), DOWN | SILENT);
        self.comes_back(back, now)
    }

    /// A probe succeeded. True if that brings the backend back. A silent one stays out: engines
    /// whose step hangs still answer probes.
    pub fn probed(&self, now: Moment) -> bool {
        if self.state.load(Relaxed) == SILENT {
            return false;
        }
        if self.state.load(Relaxed) != UP {
            self.failures.store(0, Relaxed);
        }
        let before = self.state.swap(UP, Relaxed);
        // One that is heard of for the first time is as good as all the others.
        self.comes_back(before == DOWN, || now);
        before != UP
    }

    /// A leg or a probe failed. True if that takes the backend out.
    pub fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        failures >= self.params.failures_to_eject.max(1) && self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// No connection: nothing listens there. True if that takes the backend out.
    pub fn refused(&self) -> bool {
        self.failures.fetch_add(1, Relaxed);
        self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// Its GPU can or cannot be used. True if that is new.
    pub fn set_hardware_fault(&self, fault: bool) -> bool {
        self.hardware_fault.swap(fault, Relaxed) != fault
    }

    /// Its engine is or is not of use. True if that is new.
    pub fn set_unfit(&self, unfit: bool) -> bool {
        self.unfit.swap(unfit, Relaxed) != unfit
    }

    /// Its streams have gone silent. True if that takes the backend out.
    pub fn fell_silent(&self) -> bool {
        self.state.compare_exchange(UP, SILENT, Relaxed, Relaxed).is_ok()
    }

    /// A silent backend's streams speak again. True if that brings it back.
    pub fn spoke(&self, now: Moment) -> bool {
        let back = self.state.compare_exchange(SILENT, UP, Relaxed, Relaxed).is_ok();
        self.comes_back(back, || now)
    }

    fn comes_back(&self, back: bool, now: impl FnOnce() -> Moment) -> bool {
        if back {
            self.returned.store(now().0, Relaxed);
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::START;

    fn health() -> Health {
        Health::new(HealthParams { failures_to_eject: 2, slow_return: Seconds(10.0) })
    }

    #[test]
    fn a_backend_is_out_after_enough_failures_and_back_after_one_success() {
        let health = health();
        assert!(health.is_usable());
        assert!(!health.failed());
        assert!(health.is_usable());
        assert!(health.failed());
        assert!(!health.is_usable());
        assert!(!health.failed(), "it is out already");
        assert!(health.succeeded(|| NOW));
        assert!(health.is_usable());
        assert!(health.refused(), "a refused connection needs no second opinion");
    }

    #[test]
    fn silence_is_no_death() {
        let health = health();
        health.succeeded(|| NOW);
        assert!(health.fell_silent());
        assert!(!health.is_usable());
        assert!(health.spoke(NOW));
        health.refused();
        assert!(!health.fell_silent(), "a dead backend stays dead");
        assert!(!health.spoke(NOW));
    }

    #[test]
    fn who_comes_back_gets_a_growing_share() {
        let health = health();
        let at = |seconds: f64| NOW + Seconds(seconds);
        assert!(health.probed(NOW));
        assert_eq!(health.share(NOW), 1.0, "it was never away");
        health.refused();
        assert!(health.probed(at(100.0)));
        for (seconds, share) in
            [(100.0, 0.1), (101.0, 0.1), (105.0, 0.5), (110.0, 1.0), (999.0, 1.0)]
        {
            assert!((health.share(at(seconds)) - share).abs() < 1e-6, "{seconds}");
        }
        assert!(!health.probed(at(200.0)));
        assert_eq!(health.share(at(200.0)), 1.0, "a probe of one that is up changes nothing");
        let at_once =
            Health::new(HealthParams { failures_to_eject: 1, slow_return: Seconds::ZERO });
        at_once.failed();
        at_once.probed(NOW);
        assert_eq!(at_once.share(at(0.001)), 1.0);
    }

    #[test]
    fn an_unfit_engine_is_out_however_well_it_answers() {
        let health = health();
        assert!(health.set_unfit(true));
        health.probed(NOW);
        health.succeeded(|| NOW);
        assert!(!health.is_usable() && health.is_up());
        assert_eq!(health.as_str(), "unfit");
        assert!(health.set_unfit(false));
        assert!(health.is_usable());
    }
}
