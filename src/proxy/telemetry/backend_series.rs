//! The series with the label `backend`. Each backend has its own registry, which is removed with
//! the backend. Pod names are not reused, so that a shared registry would grow without bound.

use dashmap::DashMap;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, NoopRecorder, Recorder, SharedString, Unit,
    with_local_recorder,
};
use metrics_exporter_prometheus::PrometheusRecorder;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use crate::telemetry::{descriptions, recorder};

/// The registries by backend name.
pub struct BackendSeries {
    registries: DashMap<Arc<str>, PrometheusRecorder>,
    /// Description of each metric.
    help: BTreeMap<String, String>,
}

impl BackendSeries {
    /// Creates an empty set of registries.
    pub fn new() -> BackendSeries {
        let help = HelpTexts::default();
        with_local_recorder(&help, descriptions::describe);
        let help = help.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        BackendSeries { registries: DashMap::new(), help }
    }

    /// Creates the registry of a backend. Backends with the same name share one.
    pub fn join(&self, name: &Arc<str>) {
        if self.registries.contains_key(name) {
            return;
        }
        match recorder::new() {
            Ok(made) => {
                self.registries.insert(Arc::clone(name), made);
            }
            Err(error) => tracing::error!(backend = %name, "backend has no metrics: {error}"),
        }
    }

    /// Removes every series of a backend.
    pub fn leave(&self, name: &str) {
        self.registries.remove(name);
    }

    /// Runs `make` with the backend's registry. Handles created for an unknown backend are not
    /// exported.
    pub fn within<T>(&self, name: &str, make: impl FnOnce() -> T) -> T {
        match self.registries.get(name) {
            Some(registry) => with_local_recorder(&*registry, make),
            None => with_local_recorder(&NoopRecorder, make),
        }
    }

    /// Drains histograms into their buckets.
    pub fn upkeep(&self) {
        for registry in &self.registries {
            registry.handle().run_upkeep();
        }
    }

    /// Appends the series to a page that contains none of these metrics.
    pub fn render(&self, page: &mut String) {
        let mut pages: Vec<(Arc<str>, String)> = self
            .registries
            .iter()
            .map(|registry| (Arc::clone(registry.key()), registry.handle().render()))
            .collect();
        pages.sort();
        for (metric, (kind, samples)) in by_metric(pages.iter().map(|(_, page)| page)) {
            if let Some(help) = self.help.get(metric) {
                // Writing to a string does not fail.
                writeln!(page, "# HELP {metric} {help}").ok();
            }
            writeln!(page, "{kind}").ok();
            samples.iter().for_each(|sample| page.extend([sample, "\n"]));
            page.push('\n');
        }
    }
}

/// Samples of several pages by metric, with the TYPE line of the metric.
fn by_metric<'a>(
    pages: impl Iterator<Item = &'a String>,
) -> BTreeMap<&'a str, (&'a str, Vec<&'a str>)> {
    let mut metrics: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for page in pages {
        let mut current = None;
        for line in page.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let metric = kind.split(' ').next().unwrap_or(kind);
                current = Some(metrics.entry(metric).or_insert((line, Vec::new())));
            } else if let Some((_, samples)) = &mut current
                && !line.is_empty()
                && !line.starts_with('#')
            {
                samples.push(line);
            }
        }
    }
    metrics
}

/// Recorder that collects the descriptions.
#[derive(Default)]
struct HelpTexts(Mutex<BTreeMap<String, String>>);

impl HelpTexts {
    fn note(&self, name: KeyName, text: SharedString) {
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        texts.insert(name.as_str().to_owned(), text.into_owned());
    }
}

impl Recorder for HelpTexts {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, text: SharedString) {
        self.note(name, text);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, text: SharedString) {
        self.note(name, text);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, text: SharedString) {
        self.note(name, text);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::{counter, gauge, histogram};

    fn page(series: &BackendSeries) -> String {
        let mut page = String::new();
        series.render(&mut page);
        page
    }

    #[test]
    fn each_metric_is_one_block_and_a_departed_backend_is_gone() {
        let series = BackendSeries::new();
        for name in ["a", "b"] {
            series.join(&name.into());
            series.within(name, || {
                gauge!("tidegate_backend_usable", "backend" => name).set(1.0);
                counter!("tidegate_leg_failures_total", "backend" => name).increment(2);
                histogram!("tidegate_prefix_hit_rate_error", "backend" => name).record(0.1);
            });
        }
        let both = page(&series);
        let usable = "# TYPE tidegate_backend_usable gauge\n\
                      tidegate_backend_usable{backend=\"a\"} 1\n\
                      tidegate_backend_usable{backend=\"b\"} 1\n\n";
        assert!(both.contains(usable), "{both}");
        assert!(both.contains("# HELP tidegate_backend_usable 1 if the backend may"), "{both}");
        assert_eq!(both.matches("# TYPE").count(), 3, "{both}");
        assert!(both.contains("tidegate_prefix_hit_rate_error_count{backend=\"b\"} 1"), "{both}");
        series.join(&"a".into());
        assert_eq!(page(&series), both, "a backend of the same name continues the series");
        series.leave("a");
        let kept = page(&series);
        assert!(!kept.contains("\"a\"") && kept.contains("\"b\""), "{kept}");
        series
            .within("a", || counter!("tidegate_leg_failures_total", "backend" => "a").increment(1));
        assert_eq!(page(&series), kept, "a late count does not restore a removed series");
    }
}
