//! What types cannot say: ranges, names that must differ, keys that must agree.

use std::collections::HashSet;
use std::fmt::Display;
use tidegate_terms::{Role, Seconds};

use crate::defaults::LEASE;
use crate::parse::Problem;
use crate::schema::{BackendSettings, Connector, EngineName, Settings};

/// Gathers problems.
#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, path: impl Display, problem: &str, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        self.0.push(Problem { path: path.to_string(), problem: problem.to_owned(), hint });
    }

    fn check(&mut self, holds: bool, path: impl Display, problem: &str, hint: &str) {
        if !holds {
            self.add(path, problem, hint);
        }
    }

    /// A span that must be a finite number of seconds above zero.
    fn positive(&mut self, span: Seconds, path: &str) {
        let fine = span.get().is_finite() && span.get() > 0.0;
        self.check(fine, path, "must be above 0", "a number of seconds");
    }

    /// A span that may be zero.
    fn not_negative(&mut self, span: Seconds, path: &str) {
        let fine = span.get().is_finite() && span.get() >= 0.0;
        self.check(fine, path, "must not be below 0", "a number of seconds");
    }
}

/// All problems of a configuration whose types are right.
pub(crate) fn validate(settings: &Settings) -> Vec<Problem> {
    let mut found = Found::default();
    server(settings, &mut found);
    spans(settings, &mut found);
    counts(settings, &mut found);
    keys(settings, &mut found);
    models(settings, &mut found);
    backends(settings, &mut found);
    found.0
}

fn server(settings: &Settings, found: &mut Found) {
    let server = &settings.server;
    found.check(!server.listen.is_empty(), "server.listen", "no address", "\"0.0.0.0:8080\"");
    let same = server.listen.contains(&settings.admin.listen) && settings.admin.listen.port() != 0;
    found.check(!same, "admin.listen", "is a data address too", "give it a port of its own");
    if let Some(tls) = &server.tls {
        let named = !tls.cert.as_os_str().is_empty();
        found.check(named, "server.tls.cert", "is missing", "a PEM file");
        let named = !tls.key.as_os_str().is_empty();
        found.check(named, "server.tls.key", "is missing", "a PEM file");
    }
}

fn spans(settings: &Settings, found: &mut Found) {
    found.positive(settings.server.keepalive, "server.keepalive_seconds");
    found.not_negative(settings.server.drain, "server.drain_seconds");
    found.not_negative(settings.server.linger, "server.linger_seconds");
    found.positive(settings.slo.ttft, "slo.ttft_seconds");
    found.positive(settings.slo.tpot, "slo.tpot_seconds");
    found.positive(settings.queue.deadline, "queue.deadline_seconds");
    found.positive(settings.queue.room, "queue.room_seconds");
    found.positive(settings.queue.handoff, "queue.handoff_seconds");
    found.check(
        settings.queue.handoff < LEASE,
        "queue.handoff_seconds",
        "must be below 30",
        "vLLM frees a prefill's blocks after 30 s",
    );
    found.positive(settings.planner.interval, "planner.interval_seconds");
    let optional = [
        (settings.planner.dwell, "planner.dwell_seconds"),
        (settings.planner.demand_window, "planner.demand_window_seconds"),
    ];
    for (span, path) in optional {
        found.not_negative(span.unwrap_or_default(), path);
    }
    found.positive(settings.upstream.connect_timeout, "upstream.connect_timeout_seconds");
    found.positive(settings.upstream.idle, "upstream.idle_seconds");
    found.positive(settings.upstream.first_byte_timeout, "upstream.first_byte_timeout_seconds");
    found.positive(settings.upstream.silence, "upstream.silence_seconds");
    found.positive(settings.probe.interval, "probe.interval_seconds");
    found.positive(settings.probe.timeout, "probe.timeout_seconds");
}

fn counts(settings: &Settings, found: &mut Found) {
    let above = |found: &mut Found, count: u64, path: &str| {
        found.check(count > 0, path, "must be above 0", "");
    };
    above(found, settings.server.body_max_bytes as u64, "server.body_max_bytes");
    above(found, settings.queue.requests_max as u64, "queue.requests_max");
    above(found, u64::from(settings.retry.attempts), "retry.attempts");
    above(found, settings.upstream.idle_per_backend_max as u64, "upstream.idle_per_backend_max");
    above(found, u64::from(settings.probe.failures_to_eject), "probe.failures_to_eject");
    above(found, settings.prefix.block_tokens as u64, "prefix.block_tokens");
    above(found, settings.placement.chunk.get(), "placement.chunk_tokens");
    let lines = settings.prefix.lines;
    let power = lines.is_power_of_two() && (1 << 6..=1 << 26).contains(&lines);
    found.check(power, "prefix.lines", "must be a power of two from 64 to 2^26", "65536");
    let share = (0.0..=1.0).contains(&settings.queue.hopeless_share);
    found.check(share, "queue.hopeless_share", "must be from 0 to 1", "");
    let margin = settings.planner.margin.is_none_or(|margin| margin.is_finite() && margin >= 0.0);
    found.check(margin, "planner.margin", "must not be below 0", "a number of engines");
}

fn keys(settings: &Settings, found: &mut Found) {
    let mut names = HashSet::<&str, FixedHash>::default();
    for (i, key) in settings.auth.keys.iter().enumerate() {
        let path = |field: &str| format!("auth.keys[{i}].{field}");
        found.check(is_label(&key.name), path("name"), NOT_A_LABEL, LABEL);
        found.check(names.insert(&key.name), path("name"), "is used twice", "");
        let said = usize::from(key.key.is_some()) + usize::from(key.key_file.is_some());
        found.check(said == 1, path("key"), "give either key or key_file", "");
        let strong = key.key.as_ref().is_none_or(|key| key.len() >= 8);
        found.check(strong, path("key"), "is shorter than 8 characters", "");
    }
}

fn models(settings: &Settings, found: &mut Found) {
    let mut names = HashSet::<&str, FixedHash>::default();
    for (i, model) in settings.models.iter().enumerate() {
        let path = |field: &str| format!("models[{i}].{field}");
        found.check(!model.name.is_empty(), path("name"), "is missing", "as requests say it");
        found.check(names.insert(&model.name), path("name"), "is described twice", "");
        let alone = model.tokenizer.is_none()
            && (model.tokenizer_config.is_some() || model.chat_template.is_some());
        found.check(!alone, path("tokenizer"), "is missing", "the path of its tokenizer.json");
    }
}

fn backends(settings: &Settings, found: &mut Found) {
    let any = !settings.backends.is_empty();
    found.check(any, "backends", "there is none", "[[backends]] with name and url");
    let few = settings.backends.len() <= usize::from(u16::MAX);
    found.check(few, "backends", "there are more than 65,535", "");
    let mut names = HashSet::<&str, FixedHash>::default();
    for (i, backend) in settings.backends.iter().enumerate() {
        let path = |field: &str| format!("backends[{i}].{field}");
        found.check(is_label(&backend.name), path("name"), NOT_A_LABEL, LABEL);
        found.check(names.insert(&backend.name), path("name"), "is used twice", "");
        let url = is_base_url(&backend.url);
        found.check(url, path("url"), "is not a base URL", "http://host:port");
        found.check(backend.streams_max > 0, path("streams_max"), "must be above 0", "");
        found.check(backend.kv_capacity.get() > 0, path("kv_capacity_tokens"), "must be above 0", "");
        roles(backend, &path, found);
        costs(backend, &path, found);
    }
}

fn roles(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Found) {
    let plain = backend.engine == EngineName::Plain && backend.connector == Connector::Nixl;
    found.check(!plain, path("connector"), "only vLLM has it", "engine = \"vllm\"");
    let allowed = backend.allowed_roles();
    if let Some(role) = backend.role
        && !allowed.contains(role)
    {
        let words: Vec<_> = allowed.iter().map(Role::as_str).collect();
        let hint = format!("it can be {}", words.join(", "));
        found.add(path("role"), &format!("its launch flags do not allow {role}"), &hint);
    }
    let pinned = !backend.pin || backend.role.is_some();
    found.check(pinned, path("pin"), "nothing to keep", "say the role too");
}

fn costs(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Found) {
    let fine = |spans: [Seconds; 3]| spans.iter().all(|s| s.get().is_finite() && s.get() >= 0.0);
    let prefill = backend.prefill_prior;
    let spans = [prefill.base, prefill.per_token, prefill.per_attention];
    found.check(fine(spans), path("prefill_prior"), "has a number below 0", "");
    let decode = backend.decode_prior;
    let spans = [decode.base, decode.per_stream, decode.per_kv_token];
    found.check(fine(spans), path("decode_prior"), "has a number below 0", "");
}

const NOT_A_LABEL: &str = "must be 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-'";
const LABEL: &str = "it shows in logs and metrics";

fn is_label(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=63).contains(&name.len()) && name.bytes().all(fine)
}

fn is_base_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest)) else { return false };
    let host = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            port.parse::<u16>().is_ok_and(|port| port > 0).then_some(host)
        }
        _ => Some(rest),
    };
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', ' ', '@', '?', '#']))
}

/// Deterministic, as everything in a pure room.
type FixedHash = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;
