//! The `OTEL_*` environment variables, as OpenTelemetry's specification defines them. Export is off unless
//! an endpoint is set. A value that cannot be used is reported: it never keeps tidegate from starting.

use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use std::time::Duration;
use tidegate_filters::Sampler;

/// What the environment says.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// `None`: no spans are exported.
    pub settings: Option<OtlpSettings>,
    /// A sentence for each value that cannot be used.
    pub problems: Vec<String>,
}

/// Where spans go, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OtlpSettings {
    /// URL that takes the batches.
    pub url: String,
    /// Headers of each batch.
    pub headers: Vec<(String, String)>,
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// Which traces are sampled.
    pub sampler: Sampler,
    /// Time limit of one attempt.
    pub timeout: Duration,
    /// Time limit of a batch with its retries.
    pub export_timeout: Duration,
    /// Longest time that a span waits for its batch to fill.
    pub delay: Duration,
    /// Most spans in the queue.
    pub queue_max: usize,
    /// Most spans in a batch.
    pub batch_max: usize,
    /// Certificate authorities, client certificate and its key, for an https URL.
    pub tls: [Option<PathBuf>; 3],
}

/// Reads variables and gathers problems.
struct Reader<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Environment {
    /// Reads the variables with `get`.
    pub(crate) fn read(get: &dyn Fn(&str) -> Option<String>) -> Environment {
        let mut reader = Reader { get, problems: Vec::new() };
        let settings = reader.settings();
        Environment { settings, problems: reader.problems }
    }
}

impl Reader<'_> {
    fn settings(&mut self) -> Option<OtlpSettings> {
        let disabled =
            self.text("OTEL_SDK_DISABLED").is_some_and(|t| t.eq_ignore_ascii_case("true"));
        let none = self.text("OTEL_TRACES_EXPORTER").is_some_and(|name| name == "none");
        if disabled || none {
            return None;
        }
        let url = self.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| {
            let base = self.text("OTEL_EXPORTER_OTLP_ENDPOINT")?;
            Some(format!("{}/v1/traces", base.trim_end_matches('/')))
        })?;
        if self.otlp("PROTOCOL").is_some_and(|protocol| protocol == "grpc") {
            self.problems.push(
                "OTEL_EXPORTER_OTLP_PROTOCOL: grpc is not supported, no spans are exported; set the \
                 endpoint to the collector's HTTP port (4318) and the protocol to http/json"
                    .to_owned(),
            );
            return None;
        }
        let file = |reader: &Self, name: &str| reader.otlp(name).map(PathBuf::from);
        let tls = ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"].map(|name| file(self, name));
        let queue_max = self.count("OTEL_BSP_MAX_QUEUE_SIZE", 2048);
        Some(OtlpSettings {
            url,
            headers: self.headers(),
            resource: self.resource(),
            sampler: self.sampler(),
            timeout: self.millis(
                &["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"],
                10_000,
            ),
            export_timeout: self.millis(&["OTEL_BSP_EXPORT_TIMEOUT"], 30_000),
            delay: self.millis(&["OTEL_BSP_SCHEDULE_DELAY"], 5_000),
            queue_max,
            batch_max: self.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512).min(queue_max),
            tls,
        })
    }

    /// A variable; an empty one counts as absent.
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A variable of the exporter: that for traces before that for all signals.
    fn otlp(&self, name: &str) -> Option<String> {
        let traces = self.text(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
        traces.or_else(|| self.text(&format!("OTEL_EXPORTER_OTLP_{name}")))
    }

    fn headers(&mut self) -> Vec<(String, String)> {
        let Some(text) = self.otlp("HEADERS") else { return Vec::new() };
        let valid = |(name, value): &(String, String)| {
            http::HeaderName::try_from(name).is_ok() && http::HeaderValue::try_from(value).is_ok()
        };
        match pairs(&text).filter(|pairs| pairs.iter().all(valid)) {
            Some(pairs) => pairs,
            None => {
                // The value may hold a secret.
                self.problems.push("OTEL_EXPORTER_OTLP_HEADERS: expected name=value,…".to_owned());
                Vec::new()
            }
        }
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let given = self.text("OTEL_RESOURCE_ATTRIBUTES").map(|text| (pairs(&text), text));
        let mut attributes = match given {
            Some((Some(pairs), _)) => pairs,
            Some((None, text)) => {
                self.problems
                    .push(format!("OTEL_RESOURCE_ATTRIBUTES: {text:?} is not key=value,…"));
                Vec::new()
            }
            None => Vec::new(),
        };
        if let Some(name) = self.text("OTEL_SERVICE_NAME") {
            attributes.retain(|(key, _)| key != "service.name");
            attributes.push(("service.name".to_owned(), name));
        }
        let version = env!("CARGO_PKG_VERSION");
        let own = [
            ("service.name", "tidegate"),
            ("service.version", version),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", "tidegate"),
            ("telemetry.sdk.version", version),
        ];
        for (key, value) in own {
            if !attributes.iter().any(|(known, _)| known == key) {
                attributes.push((key.to_owned(), value.to_owned()));
            }
        }
        attributes
    }

    fn sampler(&mut self) -> Sampler {
        let ratio = match self.text("OTEL_TRACES_SAMPLER_ARG").map(|text| (text.parse(), text)) {
            Some((Ok(ratio), _)) if (0.0..=1.0).contains(&ratio) => ratio,
            Some((_, text)) => {
                self.problems
                    .push(format!("OTEL_TRACES_SAMPLER_ARG: {text:?} is not within 0 to 1"));
                1.0
            }
            None => 1.0,
        };
        let Some(name) = self.text("OTEL_TRACES_SAMPLER") else { return Sampler::PARENT_OR_ON };
        Sampler::named(&name, ratio).unwrap_or_else(|| {
            self.problems.push(format!("OTEL_TRACES_SAMPLER: {name:?} is not supported"));
            Sampler::PARENT_OR_ON
        })
    }

    fn count(&mut self, name: &str, usual: usize) -> usize {
        match self.text(name).map(|text| (text.parse(), text)) {
            Some((Ok(count), _)) if count > 0 => count,
            Some((_, text)) => {
                self.problems.push(format!("{name}: {text:?} is not a number above 0"));
                usual
            }
            None => usual,
        }
    }

    /// The first of these variables that is set, in milliseconds.
    fn millis(&mut self, names: &[&str], usual: usize) -> Duration {
        let name = names.iter().find(|name| self.text(name).is_some());
        let millis = name.map_or(usual, |name| self.count(name, usual));
        Duration::from_millis(millis as u64)
    }
}

/// `key=value,key=value` with percent-encoded values; `None` if a part has another form.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let key = key.trim();
        (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
    };
    parts.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        Environment::read(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn settings(variables: &[(&str, &str)]) -> OtlpSettings {
        let read = read(variables);
        assert_eq!(read.problems, [""; 0]);
        read.settings.expect("an endpoint is set")
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");

    #[test]
    fn export_is_off_without_an_endpoint_and_where_it_is_disabled() {
        for variables in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
            &[("OTEL_SERVICE_NAME", "x")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            let read = read(variables);
            assert_eq!((read.settings, read.problems.len()), (None, 0), "{variables:?}");
        }
        let grpc = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert_eq!((grpc.settings, grpc.problems.len()), (None, 1));
    }

    #[test]
    fn the_endpoint_for_traces_is_taken_as_it_is_and_the_general_one_gets_a_path() {
        assert_eq!(settings(&[ENDPOINT]).url, "http://c:4318/v1/traces");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/x");
        assert_eq!(settings(&[ENDPOINT, own]).url, "http://t:1/x");
        assert_eq!(settings(&[own, ("OTEL_SDK_DISABLED", "false")]).url, "http://t:1/x");
    }

    #[test]
    fn absent_values_are_the_defaults_of_the_specification() {
        let found = settings(&[ENDPOINT]);
        assert_eq!(found.sampler, Sampler::PARENT_OR_ON);
        let times = [found.timeout, found.export_timeout, found.delay].map(|time| time.as_millis());
        assert_eq!(times, [10_000, 30_000, 5_000]);
        assert_eq!((found.queue_max, found.batch_max), (2048, 512));
        assert!(found.headers.is_empty() && found.tls == [None, None, None]);
        assert!(found.resource.contains(&("service.name".to_owned(), "tidegate".to_owned())));
    }

    #[test]
    fn given_values_are_read_and_those_for_traces_come_first() {
        let found = settings(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=all"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=k%20ey, x = y"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,k8s.pod.name=p-0"),
            ("OTEL_SERVICE_NAME", "gate"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ]);
        let text = |pairs: &[(String, String)]| {
            pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(text(&found.headers), ["api-key=k ey", "x=y"]);
        assert_eq!(text(&found.resource)[..2], ["k8s.pod.name=p-0", "service.name=gate"]);
        assert_eq!(Some(found.sampler), Sampler::named("traceidratio", 0.5));
        assert_eq!((found.queue_max, found.batch_max), (100, 100));
        assert_eq!((found.delay.as_millis(), found.timeout.as_millis()), (20, 300));
        assert_eq!(found.tls, [Some(PathBuf::from("/ca.pem")), None, None]);
    }

    #[test]
    fn a_wrong_value_is_reported_and_replaced_by_its_default() {
        for wrong in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0ac"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=a"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ] {
            let mut found = read(&[ENDPOINT, wrong]);
            assert_eq!(found.problems.len(), 1, "{wrong:?}");
            assert!(!found.problems[0].contains("secret"), "{:?}", found.problems);
            assert_eq!(found.settings.take(), Some(settings(&[ENDPOINT])), "{wrong:?}");
        }
    }
}
