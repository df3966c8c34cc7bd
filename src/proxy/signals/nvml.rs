//! NVIDIA's driver library (NVML), loaded at start-up; without it there are no GPUs. Reads values
//! without judging them.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use tidegate_signals::gpu::{GpuReading, Slowed};

/// The unversioned name exists only where development files are installed.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// Most Xid errors taken per reading: a broken GPU can report thousands.
const XIDS_MAX: usize = 64;

/// The library and the registered events.
pub struct NvmlDriver {
    nvml: &'static Nvml,
    events: Vec<(u32, EventSet<'static>)>,
}

impl NvmlDriver {
    /// Loads the library and registers for Xid events.
    ///
    /// # Errors
    /// There is no driver, or it does not answer.
    pub fn load() -> Result<NvmlDriver, NvmlError> {
        let load = |name: &&str| Nvml::builder().lib_path(OsStr::new(name)).init();
        let mut found = load(&LIBRARIES[0]);
        if found.is_err() {
            found = load(&LIBRARIES[1]).or(found);
        }
        // Leaked once per process: event sets borrow from it.
        let nvml: &'static Nvml = Box::leak(Box::new(found?));
        let events = (0..nvml.device_count()?).filter_map(|gpu| {
            let set = nvml.create_event_set().ok()?;
            let device = nvml.device_by_index(gpu).ok()?;
            // A GPU without events is still read.
            let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()?;
            Some((gpu, set))
        });
        Ok(NvmlDriver { nvml, events: events.collect() })
    }

    /// Reads every GPU, by NVML number. Takes some milliseconds per GPU.
    pub fn read_all(&self) -> BTreeMap<u32, GpuReading> {
        let count = self.nvml.device_count().unwrap_or(0);
        (0..count).map(|gpu| (gpu, self.reading(gpu))).collect()
    }

    fn reading(&self, gpu: u32) -> GpuReading {
        let xids = self.xids(gpu);
        match self.nvml.device_by_index(gpu) {
            Ok(device) => GpuReading { xids, ..reading(&device) },
            Err(error) => GpuReading {
                lost: matches!(error, NvmlError::GpuLost),
                xids,
                ..GpuReading::default()
            },
        }
    }

    /// Xid errors since the previous reading.
    fn xids(&self, gpu: u32) -> Vec<u64> {
        let Some((_, events)) = self.events.iter().find(|(of, _)| *of == gpu) else {
            return Vec::new();
        };
        let mut xids = Vec::new();
        while xids.len() < XIDS_MAX {
            // An empty queue is reported as a time-out.
            let Ok(event) = events.wait(0) else { break };
            if let Some(XidError::Value(xid)) = event.event_data {
                xids.push(xid);
            }
        }
        xids
    }
}

fn reading(device: &Device<'_>) -> GpuReading {
    let utilisation = device.utilization_rates();
    let lost = matches!(utilisation, Err(NvmlError::GpuLost));
    let memory = device.memory_info().ok();
    let milliwatts = |power: Result<u32, NvmlError>| power.ok().map(|mw| f64::from(mw) / 1e3);
    let reasons = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    GpuReading {
        lost,
        utilisation: utilisation.ok().map(|rates| f64::from(rates.gpu) / 100.0),
        memory_used: memory.as_ref().map(|memory| memory.used),
        memory_total: memory.as_ref().map(|memory| memory.total),
        power: milliwatts(device.power_usage()),
        power_limit: milliwatts(device.enforced_power_limit()),
        clock: device.clock_info(Clock::SM).ok(),
        memory_clock: device.clock_info(Clock::Memory).ok(),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
        slowed: slowed(reasons),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        xids: Vec::new(),
    }
}

fn slowed(reasons: ThrottleReasons) -> Slowed {
    Slowed {
        thermal: reasons.intersects(
            ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN,
        ),
        power: reasons.contains(ThrottleReasons::SW_POWER_CAP),
        hardware: reasons
            .intersects(ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_reasons_are_classified() {
        let of = |reasons: ThrottleReasons| {
            let Slowed { thermal, power, hardware } = slowed(reasons);
            (thermal, power, hardware)
        };
        assert_eq!(of(ThrottleReasons::GPU_IDLE), (false, false, false));
        assert_eq!(of(ThrottleReasons::SW_POWER_CAP), (false, true, false));
        assert_eq!(of(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN), (false, false, true));
        let hot = ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        assert_eq!(of(hot), (true, false, true));
    }
}
