//! Health of one GPU from its readings. A hot or throttled GPU is reported; a fault that makes
//! requests fail takes the backend out of service.

use tidegate_types::{Moment, Seconds};

/// One reading of one GPU. Values that the driver does not report are `None`, never 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// The driver cannot reach the GPU.
    pub lost: bool,
    /// Share of time in which a kernel ran, 0 to 1.
    pub utilisation: Option<f64>,
    /// Used memory, bytes.
    pub memory_used: Option<u64>,
    /// Total memory, bytes.
    pub memory_total: Option<u64>,
    /// Power draw, watts.
    pub power: Option<f64>,
    /// Power limit, watts.
    pub power_limit: Option<f64>,
    /// SM clock, MHz.
    pub clock: Option<u32>,
    /// Memory clock, MHz.
    pub memory_clock: Option<u32>,
    /// Temperature, °C.
    pub temperature: Option<u32>,
    /// Active clock throttling reasons.
    pub slowed: Slowed,
    /// Corrected memory errors since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Uncorrected memory errors since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Xid errors since the previous reading.
    pub xids: Vec<u64>,
}

/// Clock throttling reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowed {
    /// Temperature.
    pub thermal: bool,
    /// Power limit.
    pub power: bool,
    /// Hardware slowdown: power supply or temperature.
    pub hardware: bool,
}

/// Health of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuHealth {
    /// No problem.
    Fine,
    /// Throttled.
    Throttled(Throttling),
    /// Requests fail, or will soon.
    Broken(GpuFault),
}

/// Reason for throttling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttling {
    /// Temperature.
    Thermal,
    /// Hardware slowdown.
    Hardware,
}

/// Reason why a GPU is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuFault {
    /// The driver cannot reach it.
    Lost,
    /// New uncorrected memory errors.
    Memory,
    /// An Xid error that requires a reset; the number.
    Xid(u64),
}

impl GpuHealth {
    /// Label value in metrics, logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            GpuHealth::Fine => "fine",
            GpuHealth::Throttled(Throttling::Thermal) => "gpu_hot",
            GpuHealth::Throttled(Throttling::Hardware) => "gpu_braked",
            GpuHealth::Broken(GpuFault::Lost) => "gpu_lost",
            GpuHealth::Broken(GpuFault::Memory) => "gpu_memory_errors",
            GpuHealth::Broken(GpuFault::Xid(_)) => "gpu_xid",
        }
    }

    /// Returns whether the backend must receive no requests.
    pub const fn is_broken(self) -> bool {
        matches!(self, GpuHealth::Broken(_))
    }
}

/// Time out of service after the last fault: an engine restarted on a worn GPU fails again within
/// minutes.
const QUARANTINE: Seconds = Seconds(300.0);

/// Tracks consecutive readings of one GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuWatch {
    uncorrected: Option<u64>,
    fault: Option<(GpuFault, Moment)>,
}

impl GpuWatch {
    /// Returns the health after `reading`, taken at `now`.
    pub fn observe(&mut self, now: Moment, reading: &GpuReading) -> GpuHealth {
        // A smaller counter means that the driver was reloaded.
        let before = std::mem::replace(&mut self.uncorrected, reading.ecc_uncorrected);
        let more_errors =
            before.zip(reading.ecc_uncorrected).is_some_and(|(before, after)| after > before);
        let xid = reading.xids.iter().copied().find(|xid| is_fatal(*xid));
        let fault = if reading.lost {
            Some(GpuFault::Lost)
        } else if let Some(xid) = xid {
            Some(GpuFault::Xid(xid))
        } else {
            more_errors.then_some(GpuFault::Memory)
        };
        match fault {
            // Ends as soon as the driver reaches the GPU again; no quarantine.
            Some(GpuFault::Lost) => return GpuHealth::Broken(GpuFault::Lost),
            Some(fault) => self.fault = Some((fault, now)),
            None => {}
        }
        match self.fault {
            Some((fault, since)) if now - since < QUARANTINE => GpuHealth::Broken(fault),
            _ => strain(reading),
        }
    }
}

fn strain(reading: &GpuReading) -> GpuHealth {
    match reading.slowed {
        Slowed { hardware: true, .. } => GpuHealth::Throttled(Throttling::Hardware),
        Slowed { thermal: true, .. } => GpuHealth::Throttled(Throttling::Thermal),
        // Power-limited operation is normal for inference.
        _ => GpuHealth::Fine,
    }
}

/// Xid errors that require a reset or a technician (NVIDIA's "XID errors", rows with the action
/// reset or replace). Errors caused by a program (13 graphics exception, 31 MMU fault, 43 stopped
/// channel, 45 preemptive removal) and errors that the hardware contained (63 row remapping
/// recorded, 94 contained memory error) end a process, not the GPU.
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

    /// Feeds readings with their times in seconds and checks the last verdict.
    fn check(readings: &[(f64, GpuReading)], expected: GpuHealth) {
        let mut watch = GpuWatch::default();
        let verdicts = readings.iter().map(|(second, reading)| watch.observe(at(*second), reading));
        assert_eq!(verdicts.last().unwrap(), expected, "{readings:?}");
    }

    #[test]
    fn a_gpu_without_readings_or_at_its_power_limit_is_fine() {
        check(&[(0.0, GpuReading::default())], GpuHealth::Fine);
        let slowed = Slowed { power: true, ..Slowed::default() };
        check(&[(0.0, GpuReading { slowed, ..fine() })], GpuHealth::Fine);
    }

    #[test]
    fn a_throttled_gpu_is_reported_with_its_reason() {
        let slowed = |slowed| [(0.0, GpuReading { slowed, ..fine() })];
        let thermal = Slowed { thermal: true, ..Slowed::default() };
        check(&slowed(thermal), GpuHealth::Throttled(Throttling::Thermal));
        let hardware = Slowed { hardware: true, thermal: true, power: true };
        check(&slowed(hardware), GpuHealth::Throttled(Throttling::Hardware));
    }

    #[test]
    fn only_new_uncorrected_memory_errors_are_a_fault() {
        check(&[(0.0, errors(3))], GpuHealth::Fine);
        check(&[(0.0, errors(3)), (1.0, errors(3))], GpuHealth::Fine);
        check(&[(0.0, errors(3)), (1.0, errors(4))], GpuHealth::Broken(GpuFault::Memory));
        // The driver was reloaded.
        check(&[(0.0, errors(3)), (1.0, errors(0))], GpuHealth::Fine);
    }

    #[test]
    fn a_fatal_xid_is_a_fault_and_a_program_error_is_not() {
        check(&[(0.0, xids(&[13, 31, 43, 45, 63, 94]))], GpuHealth::Fine);
        check(&[(0.0, xids(&[13, 79]))], GpuHealth::Broken(GpuFault::Xid(79)));
    }

    #[test]
    fn a_fault_is_quarantined_and_a_lost_gpu_returns_when_reachable() {
        let fault = GpuHealth::Broken(GpuFault::Xid(95));
        check(&[(0.0, xids(&[95])), (299.0, fine())], fault);
        check(&[(0.0, xids(&[95])), (301.0, fine())], GpuHealth::Fine);
        check(&[(0.0, xids(&[95])), (299.0, xids(&[95])), (301.0, fine())], fault);
        check(&[(0.0, fine()), (1.0, LOST())], GpuHealth::Broken(GpuFault::Lost));
        check(&[(0.0, LOST()), (1.0, fine())], GpuHealth::Fine);
        check(&[(0.0, xids(&[95])), (1.0, LOST()), (2.0, fine())], fault);
    }
}
