//! Readings of the GPUs of the proxy's machine, exported as metrics. A backend whose GPU has a fault
//! receives no new work until the fault is cleared.

use metrics::{Gauge, counter, gauge};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_signals::gpu::{GpuHealth, GpuReading, GpuWatch};
use tidegate_types::{Moment, Seconds};

use super::nvml::NvmlDriver;
use crate::signals::SignalHost;

/// Every GPU seen so far, by NVML number.
#[derive(Default)]
struct Gpus {
    known: BTreeMap<u32, Gpu>,
}

struct Gpu {
    watch: GpuWatch,
    verdict: GpuHealth,
    gauges: GpuGauges,
}

struct GpuGauges {
    utilisation: Gauge,
    memory_used: Gauge,
    memory_total: Gauge,
    power: Gauge,
    power_limit: Gauge,
    clock: Gauge,
    memory_clock: Gauge,
    temperature: Gauge,
    slowed: [Gauge; 3],
    corrected: Gauge,
    uncorrected: Gauge,
    broken: Gauge,
}

/// Reads the GPUs of this machine every `every` while the runtime lives; returns at once without
/// NVML.
pub async fn run(host: Arc<dyn SignalHost>, every: Seconds) {
    // Loading the library may take a second, and reading a GPU some milliseconds.
    let mut driver = match tokio::task::spawn_blocking(NvmlDriver::load).await {
        Ok(Ok(driver)) => driver,
        Ok(Err(error)) => {
            let named =
                host.signals().backends.load().iter().any(|signals| !signals.gpus.is_empty());
            match named {
                true => tracing::warn!("backends list `gpus`, but NVML cannot be loaded: {error}"),
                false => tracing::debug!("NVML cannot be loaded: {error}"),
            }
            return;
        }
        Err(_) => return,
    };
    let mut gpus = Gpus::default();
    loop {
        // The driver's handles move between threads and are never shared.
        let reading = tokio::task::spawn_blocking(move || {
            let readings = driver.read_all();
            (driver, readings)
        });
        let Ok((back, readings)) = reading.await else { return };
        driver = back;
        gpus.take(&*host, host.clock().now(), &readings);
        tokio::time::sleep(every.to_duration()).await;
    }
}

impl Gpus {
    /// Takes the readings made at `now`.
    fn take(&mut self, host: &dyn SignalHost, now: Moment, readings: &BTreeMap<u32, GpuReading>) {
        for (number, reading) in readings {
            let gpu = self.known.entry(*number).or_insert_with(|| Gpu {
                watch: GpuWatch::default(),
                verdict: GpuHealth::Fine,
                gauges: host.metrics().within(|| GpuGauges::new(*number)),
            });
            let verdict = gpu.watch.observe(now, reading);
            if verdict != gpu.verdict {
                tracing::warn!(gpu = number, verdict = verdict.as_str(), "GPU state changed");
                gpu.verdict = verdict;
            }
            gpu.gauges.show(reading, verdict);
            host.metrics().within(|| {
                for xid in &reading.xids {
                    let (gpu, xid) = (number.to_string(), xid.to_string());
                    counter!("tidegate_gpu_xid_errors_total", "gpu" => gpu, "xid" => xid)
                        .increment(1);
                }
            });
        }
        self.apply_verdicts(host);
    }

    /// The verdict of a backend is the worst of its GPUs' verdicts.
    fn apply_verdicts(&self, host: &dyn SignalHost) {
        for backend in host.fleet().backends().iter() {
            let signals = host.signals().of(backend.id);
            let own = signals.gpus.iter().filter_map(|gpu| self.known.get(gpu));
            let verdicts: Vec<GpuHealth> = own.map(|gpu| gpu.verdict).collect();
            let broken = verdicts.iter().find(|verdict| verdict.is_broken());
            let impaired = verdicts.iter().find(|verdict| **verdict != GpuHealth::Fine);
            let alert = broken.or(impaired).map(|verdict| verdict.as_str());
            signals.gpu_alert.store(alert.map(Arc::new));
            if backend.health.set_hardware_fault(broken.is_some()) {
                let verdict = alert.unwrap_or("fine");
                tracing::warn!(backend = %backend.name, verdict, "GPU state of the backend changed");
            }
        }
    }
}

impl GpuGauges {
    fn new(gpu: u32) -> GpuGauges {
        let of = |metric: &'static str| {
            let gauge = gauge!(metric, "gpu" => gpu.to_string());
            // NaN marks a value that was not reported, unlike 0.
            gauge.set(f64::NAN);
            gauge
        };
        let ecc = |kind: &'static str| {
            let gauge = gauge!("tidegate_gpu_ecc_errors", "gpu" => gpu.to_string(), "kind" => kind);
            gauge.set(f64::NAN);
            gauge
        };
        let slowed = |reason: &'static str| gauge!("tidegate_gpu_throttled", "gpu" => gpu.to_string(), "reason" => reason);
        GpuGauges {
            utilisation: of("tidegate_gpu_utilisation_ratio"),
            memory_used: of("tidegate_gpu_memory_used_bytes"),
            memory_total: of("tidegate_gpu_memory_bytes"),
            power: of("tidegate_gpu_power_watts"),
            power_limit: of("tidegate_gpu_power_limit_watts"),
            clock: of("tidegate_gpu_clock_mhz"),
            memory_clock: of("tidegate_gpu_memory_clock_mhz"),
            temperature: of("tidegate_gpu_temperature_celsius"),
            slowed: ["thermal", "power", "hardware"].map(slowed),
            corrected: ecc("corrected"),
            uncorrected: ecc("uncorrected"),
            broken: of("tidegate_gpu_fault"),
        }
    }

    fn show(&self, reading: &GpuReading, verdict: GpuHealth) {
        let set = |gauge: &Gauge, value: Option<f64>| gauge.set(value.unwrap_or(f64::NAN));
        let whole = |value: Option<u64>| value.map(|value| value as f64);
        set(&self.utilisation, reading.utilisation);
        set(&self.memory_used, whole(reading.memory_used));
        set(&self.memory_total, whole(reading.memory_total));
        set(&self.power, reading.power);
        set(&self.power_limit, reading.power_limit);
        set(&self.clock, reading.clock.map(f64::from));
        set(&self.memory_clock, reading.memory_clock.map(f64::from));
        set(&self.temperature, reading.temperature.map(f64::from));
        let slowed = [reading.slowed.thermal, reading.slowed.power, reading.slowed.hardware];
        for (gauge, slowed) in self.slowed.iter().zip(slowed) {
            gauge.set(f64::from(u8::from(slowed)));
        }
        set(&self.corrected, whole(reading.ecc_corrected));
        set(&self.uncorrected, whole(reading.ecc_uncorrected));
        self.broken.set(f64::from(u8::from(verdict.is_broken())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::context::Proxy;
    use crate::process::start;
    use tidegate_settings::Settings;

    fn proxy() -> Arc<Proxy> {
        let text = "[[backends]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\ngpus = [0, 1]\n\
                    [[backends]]\nname = \"b\"\nurl = \"http://127.0.0.1:2\"\ngpus = [2]\n";
        start::build(&Settings::parse(text).unwrap(), &Arc::default()).unwrap().proxy
    }

    fn usable(proxy: &Proxy) -> Vec<bool> {
        proxy.fleet.backends().iter().map(|backend| backend.health.is_usable()).collect()
    }

    fn readings(lost: Option<u32>) -> BTreeMap<u32, GpuReading> {
        let reading = |gpu| GpuReading {
            lost: lost == Some(gpu),
            utilisation: Some(0.5),
            xids: if gpu == 2 { vec![31] } else { Vec::new() },
            ..GpuReading::default()
        };
        (0..3).map(|gpu| (gpu, reading(gpu))).collect()
    }

    #[test]
    fn a_lost_gpu_takes_its_backend_out_of_service_until_it_returns() {
        let (proxy, mut gpus) = (proxy(), Gpus::default());
        gpus.take(&*proxy, Moment::START, &readings(None));
        assert_eq!(usable(&proxy), [true, true]);
        gpus.take(&*proxy, Moment::START, &readings(Some(1)));
        assert_eq!(usable(&proxy), [false, true]);
        let ids: Vec<_> = proxy.fleet.backends().iter().map(|backend| backend.id).collect();
        assert_eq!(proxy.signals.alerts(ids[0]), ["gpu_lost"]);
        // Answered probes do not end a GPU fault.
        proxy.fleet.backends()[0].health.probed(Moment::START);
        proxy.fleet.backends()[0].health.succeeded(Moment::START);
        assert_eq!(usable(&proxy), [false, true]);
        gpus.take(&*proxy, Moment::START, &readings(None));
        assert_eq!(usable(&proxy), [true, true]);
        assert!(proxy.signals.alerts(ids[0]).is_empty());
        let page = proxy.metrics.render(&proxy.fleet, &proxy.fleet.table(), 0, &proxy.bodies);
        for line in [
            "tidegate_gpu_utilisation_ratio{gpu=\"1\"} 0.5",
            "tidegate_gpu_power_watts{gpu=\"0\"} NaN",
            "tidegate_gpu_fault{gpu=\"1\"} 0",
            "tidegate_gpu_xid_errors_total{gpu=\"2\",xid=\"31\"} 3",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }
}
