//! One GPU's readings, and what follows from them for the backend that runs on it. Hot or throttled
//! is a notice; what makes requests fail takes the backend out before they do.

use tidegate_types::{Moment, Seconds};

/// One look at one GPU. What the driver does not tell is `None`, never 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// The driver does not reach it any more.
    pub lost: bool,
    /// Share of time in which a kernel ran, 0 to 1.
    pub utilisation: Option<f64>,
    /// Bytes in use.
    pub memory_used: Option<u64>,
    /// Bytes it has.
    pub memory_total: Option<u64>,
    /// Watts it draws.
    pub power: Option<f64>,
    /// Watts it may draw.
    pub power_limit: Option<f64>,
    /// Clock of its processors, MHz.
    pub clock: Option<u32>,
    /// Clock of its memory, MHz.
    pub memory_clock: Option<u32>,
    /// °C.
    pub temperature: Option<u32>,
    /// Why it runs slower than it could.
    pub slowed: Slowed,
    /// Memory errors corrected since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Memory errors that were not, since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Xid errors since the last look.
    pub xids: Vec<u64>,
}

/// Why a GPU runs slower than it could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowed {
    /// It is too hot.
    pub thermal: bool,
    /// It may not draw more.
    pub power: bool,
    /// The board pulled the brake: power supply or heat.
    pub hardware: bool,
}

/// What a GPU's readings mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// It is slower than it should be.
    Strained(Strain),
    /// Requests sent there fail, or soon will.
    Broken(Fault),
}

/// Why a GPU is slower than it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strain {
    /// Too hot.
    Thermal,
    /// The board's brake.
    Hardware,
}

/// Why a GPU cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The driver does not reach it.
    Lost,
    /// Memory errors that were not corrected.
    Memory,
    /// An Xid error after which it needs a reset.
    Xid(u64),
}

impl Verdict {
    /// The word in metrics, logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Fine => "fine",
            Verdict::Strained(Strain::Thermal) => "gpu_hot",
            Verdict::Strained(Strain::Hardware) => "gpu_braked",
            Verdict::Broken(Fault::Lost) => "gpu_lost",
            Verdict::Broken(Fault::Memory) => "gpu_memory_errors",
            Verdict::Broken(Fault::Xid(_)) => "gpu_xid",
        }
    }

    /// Must nothing be sent there?
    pub const fn is_broken(self) -> bool {
        matches!(self, Verdict::Broken(_))
    }
}

/// After the last fault the backend stays out so long: a restarted engine on a GPU that is worn
/// fails again within minutes.
const QUARANTINE: Seconds = Seconds(300.0);

/// One GPU, from look to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuWatch {
    uncorrected: Option<u64>,
    fault: Option<(Fault, Moment)>,
}

impl GpuWatch {
    /// What `reading`, taken at `now`, means together with those before it.
    pub fn look(&mut self, now: Moment, reading: &GpuReading) -> Verdict {
        // A counter that shrank began again with the driver.
        let before = std::mem::replace(&mut self.uncorrected, reading.ecc_uncorrected);
        let more_errors =
            before.zip(reading.ecc_uncorrected).is_some_and(|(before, after)| after > before);
        let xid = reading.xids.iter().copied().find(|xid| is_fatal(*xid));
        let fault = if reading.lost {
            Some(Fault::Lost)
        } else if let Some(xid) = xid {
            Some(Fault::Xid(xid))
        } else {
            more_errors.then_some(Fault::Memory)
        };
        match fault {
            // The driver reaches it again or not: that needs no quarantine.
            Some(Fault::Lost) => return Verdict::Broken(Fault::Lost),
            Some(fault) => self.fault = Some((fault, now)),
            None => {}
        }
        match self.fault {
            Some((fault, since)) if now - since < QUARANTINE => Verdict::Broken(fault),
            _ => strain(reading),
        }
    }
}

fn strain(reading: &GpuReading) -> Verdict {
    match reading.slowed {
        Slowed { hardware: true, .. } => Verdict::Strained(Strain::Hardware),
        Slowed { thermal: true, .. } => Verdict::Strained(Strain::Thermal),
        // At its power limit is where an inference GPU is meant to be.
        _ => Verdict::Fine,
    }
}

/// Xid errors after which the GPU needs a reset or a technician (NVIDIA's "XID errors", the rows
/// whose action is to reset, or to replace). Those that a program brings upon itself (13 graphics
/// exception, 31 MMU fault, 43 stopped channel, 45 preemptive removal) and those that the hardware
/// contained (63 row remapping recorded, 94 contained memory error) end a process, not a GPU.
fn is_fatal(xid: u64) -> bool {
    matches!(
        xid,
        48 // double-bit memory error
        | 62 // internal micro-controller halt
        | 64 // row remapping failed
        | 74 // NVLink error
        | 79 // fallen off the bus
        | 95 // uncontained memory error
        | 119 // GSP does not answer
        | 120 // GSP error
        | 140 // memory error not recovered
        | 143 // GPU initialisation
        | 155 // NVLink software error
        | 156 // resource retirement
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: fn() -> GpuReading = || GpuReading { lost: true, ..GpuReading::default() };

    fn fine() -> GpuReading {
        GpuReading { utilisation: Some(1.0), ecc_uncorrected: Some(3), ..GpuReading::default() }
    }

    fn errors(uncorrected: u64) -> GpuReading {
        GpuReading { ecc_uncorrected: Some(uncorrected), ..fine() }
    }

    fn xids(xids: &[u64]) -> GpuReading {
        GpuReading { xids: xids.to_vec(), ..fine() }
    }

    fn at(seconds: f64) -> Moment {
        Moment::START + Seconds(seconds)
    }

    /// Readings with the second they were taken at, and the verdict on the last.
    fn check(readings: &[(f64, GpuReading)], expected: Verdict) {
        let mut watch = GpuWatch::default();
        let verdicts = readings.iter().map(|(second, reading)| watch.look(at(*second), reading));
        assert_eq!(verdicts.last().unwrap(), expected, "{readings:?}");
    }

    #[test]
    fn a_gpu_that_tells_nothing_or_works_at_its_limit_is_fine() {
        check(&[(0.0, GpuReading::default())], Verdict::Fine);
        let slowed = Slowed { power: true, ..Slowed::default() };
        check(&[(0.0, GpuReading { slowed, ..fine() })], Verdict::Fine);
    }

    #[test]
    fn a_slow_gpu_is_a_notice() {
        let slowed = |slowed| [(0.0, GpuReading { slowed, ..fine() })];
        let thermal = Slowed { thermal: true, ..Slowed::default() };
        check(&slowed(thermal), Verdict::Strained(Strain::Thermal));
        let hardware = Slowed { hardware: true, thermal: true, power: true };
        check(&slowed(hardware), Verdict::Strained(Strain::Hardware));
    }

    #[test]
    fn old_memory_errors_are_history_and_new_ones_a_fault() {
        check(&[(0.0, errors(3))], Verdict::Fine);
        check(&[(0.0, errors(3)), (1.0, errors(3))], Verdict::Fine);
        check(&[(0.0, errors(3)), (1.0, errors(4))], Verdict::Broken(Fault::Memory));
        // The driver was loaded again.
        check(&[(0.0, errors(3)), (1.0, errors(0))], Verdict::Fine);
    }

    #[test]
    fn a_fatal_xid_is_a_fault_and_a_programs_own_is_not() {
        check(&[(0.0, xids(&[13, 31, 43, 45, 63, 94]))], Verdict::Fine);
        check(&[(0.0, xids(&[13, 79]))], Verdict::Broken(Fault::Xid(79)));
    }

    #[test]
    fn a_fault_stands_for_minutes_and_a_lost_gpu_is_back_when_it_is_seen() {
        let fault = Verdict::Broken(Fault::Xid(95));
        check(&[(0.0, xids(&[95])), (299.0, fine())], fault);
        check(&[(0.0, xids(&[95])), (301.0, fine())], Verdict::Fine);
        check(&[(0.0, xids(&[95])), (299.0, xids(&[95])), (301.0, fine())], fault);
        check(&[(0.0, fine()), (1.0, LOST())], Verdict::Broken(Fault::Lost));
        check(&[(0.0, LOST()), (1.0, fine())], Verdict::Fine);
        check(&[(0.0, xids(&[95])), (1.0, LOST()), (2.0, fine())], fault);
    }
}
