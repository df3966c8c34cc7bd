//! Checks beyond types: ranges, names that must differ, keys that must agree. Each check names the
//! keys that it reads, and is skipped if one of them was removed before, so that an error is reported
//! once.

mod fleet;
mod gateways;
mod kubernetes;
mod sidecar;
mod signals;
mod slo;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tidegate_types::Seconds;

pub use fleet::check_base_url;

use crate::defaults::LEASE;
use crate::problem::{Problem, nearest};
use crate::schema::{BackendSettings, ClientAuth, Settings, TlsSettings, UpstreamSettings};
use crate::tree::Part;

/// Upper bound of every duration, in seconds; a larger value is most likely in the wrong unit.
const DAY: f64 = 86_400.0;
/// Shortest plan interval, in seconds: a plan visits every backend.
const PLAN_INTERVAL_MIN: f64 = 0.001;
/// More than the cores of any machine.
const THREADS_MAX: u64 = 1024;
/// File descriptors of the largest hosts.
const CONNECTIONS_MAX: u64 = 1 << 20;
/// Bound of one body, in bytes; bodies of queued requests stay in memory.
const BODY_MAX_BYTES: u64 = 1 << 30;
/// Bound of the budget of all bodies, in bytes: the memory of the largest machines.
const BODY_BUDGET_BYTES: u64 = 1 << 44;
/// Bound of the queue, in requests.
const QUEUE_MAX: u64 = 1 << 20;
/// Bound of the attempts: each one delays the answer.
const ATTEMPTS_MAX: u64 = 16;
/// Bound of idle connections per backend: one file descriptor each.
const IDLE_MAX: u64 = 65_536;
/// Bound of failed probes: minutes at the usual interval.
const FAILURES_MAX: u64 = 1000;
/// Bound of the block size, in tokens: longer blocks are hardly ever shared.
const BLOCK_TOKENS_MAX: u64 = 65_536;
/// Bound of the chunk, in tokens; above `max_num_batched_tokens` of any engine.
const CHUNK_MAX: u64 = 1 << 20;
/// 4 GiB of prefix index.
const PREFIX_LINES: std::ops::RangeInclusive<usize> = 1 << 6..=1 << 26;
/// Shortest API key, in bytes; shorter ones can be guessed.
const KEY_BYTES_MIN: usize = 8;
/// Shortest admin token, in bytes: 128 bits if it is random. The token allows role changes.
const TOKEN_BYTES_MIN: usize = 16;
/// Shortest duration, in seconds: the resolution of timers.
const SPAN_MIN: f64 = 0.001;
/// Bounds of polling intervals, in seconds: shorter ones load the engines, longer ones detect nothing in
/// time.
const INTERVAL: (f64, f64) = (0.01, 3600.0);
/// Longest hold of a flip, in seconds: one week. Longer holds are pins.
const HOLD_MAX: f64 = 7.0 * DAY;

/// Parts of a file that were removed because they do not fit the schema, by their paths.
#[derive(Default)]
pub(crate) struct RemovedParts {
    paths: Vec<String>,
    /// Keys that are missing because they are misspelt.
    misspelt: BTreeSet<String>,
}

impl RemovedParts {
    pub(crate) fn add(&mut self, path: &str) {
        self.paths.push(path.to_owned());
    }

    pub(crate) fn add_missing(&mut self, path: &str) {
        self.misspelt.insert(path.to_owned());
    }

    /// Returns whether the part at `path`, a part that contains it, or a part within it was removed.
    fn affect(&self, path: &str) -> bool {
        let inside = |path: &str, other: &str| {
            path.strip_prefix(other)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.paths.iter().any(|out| inside(path, out) || inside(out, path))
    }
}

/// The problems found so far.
struct Findings {
    removed: RemovedParts,
    problems: Vec<(Vec<Part>, Problem)>,
}

/// Returns the problems of a configuration whose types fit the schema, with their paths.
pub(crate) fn validate(settings: &Settings, removed: RemovedParts) -> Vec<(Vec<Part>, Problem)> {
    let mut found = Findings { removed, problems: Vec::new() };
    server(settings, &mut found);
    admin(settings, &mut found);
    client_certificate(settings, &mut found);
    spans(settings, &mut found);
    counts(settings, &mut found);
    log(settings, &mut found);
    keys(settings, &mut found);
    cors(settings, &mut found);
    signals::signals(settings, &mut found);
    kubernetes::kubernetes(settings, &mut found);
    gateways::gateways(settings, &mut found);
    sidecar::sidecar(settings, &mut found);
    slo::slo(settings, &mut found);
    fleet::models(settings, &mut found);
    fleet::backends(settings, &mut found);
    fleet::groups(settings, &mut found);
    found.problems
}

/// Returns the problems of a discovered backend. Its name and group are not checked: the source chose
/// the name, and the other members of the group are unknown here.
pub(crate) fn validate_discovered(backend: &BackendSettings) -> Vec<Problem> {
    let backend = BackendSettings { name: "discovered".to_owned(), ..backend.clone() };
    let upstream =
        UpstreamSettings { ca_file: Some(PathBuf::from("ca")), ..UpstreamSettings::default() };
    let settings = Settings { backends: vec![backend], upstream, ..Settings::default() };
    let mut found = Findings { removed: RemovedParts::default(), problems: Vec::new() };
    fleet::backends(&settings, &mut found);
    found.problems.into_iter().map(|(_, problem)| problem).collect()
}

impl Findings {
    /// Records `problem` at `path` unless `holds`.
    fn check(&mut self, holds: bool, path: &str, problem: &str, hint: &str) {
        self.check_with(holds, path, &[], problem, hint);
    }

    /// Like [`Findings::check`], for a check that also reads the keys `with`.
    fn check_with(&mut self, holds: bool, path: &str, with: &[&str], problem: &str, hint: &str) {
        let is_removed = |path: &&str| self.removed.affect(path);
        if !holds && !is_removed(&path) && !with.iter().any(is_removed) {
            self.problems.push((segments(path), Problem::new(path, problem).hint(hint)));
        }
    }

    /// Checks a required key. Returns whether it is present.
    fn required(&mut self, there: bool, path: &str, hint: &str) -> bool {
        let is_reported = there || self.removed.misspelt.contains(path);
        self.check(is_reported, path, "is missing", hint);
        there
    }

    fn number(&mut self, number: f64, (min, max): (f64, f64), path: &str, unit: &str) {
        let holds = (min..=max).contains(&number);
        self.check(holds, path, &format!("is {number}"), &format!("{min} to {max}{unit}"));
    }

    /// Checks a duration above zero.
    fn positive(&mut self, span: Seconds, path: &str) {
        let holds = (SPAN_MIN..=DAY).contains(&span.get());
        let problem = format!("is {}", span.get());
        self.check(holds, path, &problem, &format!("{SPAN_MIN} to {DAY} seconds"));
    }

    /// Checks a duration that may be zero.
    fn not_negative(&mut self, span: Seconds, path: &str) {
        self.number(span.get(), (0.0, DAY), path, " seconds");
    }

    fn count(&mut self, count: u64, (min, max): (u64, u64), path: &str) {
        let holds = (min..=max).contains(&count);
        self.check(holds, path, &format!("is {count}"), &format!("{min} to {max}"));
    }

    /// Checks a name: a label of logs and metrics, unique in its list.
    fn name<'n>(&mut self, name: &'n str, names: &mut BTreeMap<&'n str, String>, path: &str) {
        if !self.required(!name.is_empty(), path, "the name in logs and metrics") {
            return;
        }
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let label = name.len() <= 63 && name.bytes().all(letter);
        self.check(label, path, "is not a valid label", "1 to 63 of a-z, A-Z, 0-9, '.', '_', '-'");
        self.unique(name, names, path);
    }

    fn unique<'n>(&mut self, name: &'n str, names: &mut BTreeMap<&'n str, String>, path: &str) {
        if let Some(first) = names.get(name) {
            let problem = format!("is the same as {first}");
            self.check(false, path, &problem, "must be unique");
        } else {
            names.insert(name, path.to_owned());
        }
    }
}

fn server(settings: &Settings, found: &mut Findings) {
    let server = &settings.server;
    found.check(!server.listen.is_empty(), "server.listen", "is empty", "[\"127.0.0.1:8080\"]");
    for (i, address) in server.listen.iter().enumerate() {
        let path = format!("server.listen[{i}]");
        let before = server.listen.iter().take(i).any(|other| collide(other, address));
        found.check_with(!before, &path, &["server.listen"], "is already in the list", "");
        let admin = collide(address, &settings.admin.listen);
        let problem = format!("is also the address {path}");
        let hint = "use another port: clients of this address can change roles";
        found.check_with(!admin, "admin.listen", &["server.listen"], &problem, hint);
    }
    for (i, host) in server.handoff_hosts.iter().enumerate() {
        let path = format!("server.handoff_hosts[{i}]");
        let hint = "a name, an address, or a network such as 10.0.0.0/8";
        found.check(
            is_host_or_net(host),
            &path,
            &format!("{host:?} is not a host or network"),
            hint,
        );
        let problem = "has no effect without trust_client_handoff";
        let trusted = server.trust_client_handoff;
        found.check_with(trusted, &path, &["server.trust_client_handoff"], problem, "set both");
    }
    tls("server.tls", server.tls.as_ref(), found);
}

fn tls(section: &str, tls: Option<&TlsSettings>, found: &mut Findings) {
    let Some(tls) = tls else { return };
    let path = |key: &str| format!("{section}.{key}");
    found.required(!tls.cert.as_os_str().is_empty(), &path("cert"), "a PEM file");
    found.required(!tls.key.as_os_str().is_empty(), &path("key"), "a PEM file");
    let verified = tls.client_auth == ClientAuth::Required || tls.client_ca_file.is_some();
    let hint = "the authorities that client certificates are verified against";
    let (auth, authorities) = (path("client_auth"), path("client_ca_file"));
    found.check_with(verified, &auth, &[&authorities], "needs client_ca_file", hint);
}

fn admin(settings: &Settings, found: &mut Findings) {
    let admin = &settings.admin;
    tls("admin.tls", admin.tls.as_ref(), found);
    if let Some(token) = &admin.token {
        let long = token.0.len() >= TOKEN_BYTES_MIN;
        found.check(long, "admin.token", "is too short", "at least 16 bytes");
        let plain = token.0.bytes().all(|byte| byte.is_ascii_graphic());
        found.check(
            plain,
            "admin.token",
            "is not a valid header value",
            "letters, digits and punctuation",
        );
    }
    for (i, host) in admin.hosts.iter().enumerate() {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let name = !host.is_empty() && host.bytes().all(letter);
        let hint = "a name without scheme and port";
        found.check(name, &format!("admin.hosts[{i}]"), "is not a host name", hint);
    }
    let hold = admin.flip_hold.get();
    found.number(hold, (1.0, HOLD_MAX), "admin.flip_hold_seconds", " seconds");
    found.count(admin.requests_kept as u64, (0, QUEUE_MAX), "admin.requests_kept");
}

/// Checks the client certificate that tidegate presents to engines.
fn client_certificate(settings: &Settings, found: &mut Findings) {
    let upstream = &settings.upstream;
    let (cert, key) = ("upstream.client_cert", "upstream.client_key");
    match (&upstream.client_cert, &upstream.client_key) {
        (Some(_), None) if !found.removed.affect(key) => {
            found.required(false, key, "the private key of client_cert");
        }
        (None, Some(_)) if !found.removed.affect(cert) => {
            found.required(false, cert, "the certificate chain of client_key");
        }
        (Some(_), Some(_)) => {
            let verifies = upstream.ca_file.is_some();
            let hint = "the authorities of the engines' certificates";
            found.check_with(verifies, cert, &["upstream.ca_file"], "needs ca_file", hint);
        }
        _ => {}
    }
}

/// Returns whether this is a DNS name, an IP address, or a network in CIDR notation.
fn is_host_or_net(text: &str) -> bool {
    if let Some((address, bits)) = text.split_once('/') {
        let bits: Option<u8> = bits.parse().ok();
        return match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => bits.is_some_and(|bits| bits <= 32),
            Ok(IpAddr::V6(_)) => bits.is_some_and(|bits| bits <= 128),
            Err(_) => false,
        };
    }
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    text.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.bytes().all(name))
}

/// Returns whether only one of two addresses can be bound. Port 0 never conflicts.
fn collide(a: &SocketAddr, b: &SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || any)
}

fn spans(settings: &Settings, found: &mut Findings) {
    let Settings { server, queue, planner, upstream, probe, .. } = settings;
    found.positive(server.keepalive, "server.keepalive_seconds");
    found.not_negative(server.keepalive_comment, "server.keepalive_comment_seconds");
    found.positive(server.client_stall, "server.client_stall_seconds");
    found.not_negative(server.drain, "server.drain_seconds");
    found.not_negative(server.linger, "server.linger_seconds");
    found.positive(queue.deadline, "queue.deadline_seconds");
    found.positive(queue.prefill_backlog_max, "queue.prefill_backlog_max_seconds");
    let handoff = queue.handoff.get();
    found.check(
        handoff > 0.0 && handoff < LEASE.get(),
        "queue.handoff_seconds",
        &format!("is {handoff}"),
        "above 0, below 30: vLLM frees a prefill's blocks after 30 seconds",
    );
    let interval = planner.interval.get();
    let range = (PLAN_INTERVAL_MIN, INTERVAL.1);
    found.number(interval, range, "planner.interval_seconds", " seconds");
    if let Some(dwell) = planner.dwell {
        found.not_negative(dwell, "planner.dwell_seconds");
    }
    if let Some(window) = planner.demand_window {
        found.positive(window, "planner.demand_window_seconds");
    }
    if let Some(switch) = planner.switch {
        found.not_negative(switch, "planner.switch_seconds");
    }
    found.positive(upstream.connect_timeout, "upstream.connect_timeout_seconds");
    found.positive(upstream.idle, "upstream.idle_seconds");
    found.positive(upstream.first_byte_timeout, "upstream.first_byte_timeout_seconds");
    found.not_negative(settings.retry.hedge, "retry.hedge_seconds");
    found.not_negative(upstream.silence, "upstream.silence_seconds");
    found.number(probe.interval.get(), INTERVAL, "probe.interval_seconds", " seconds");
    found.positive(probe.timeout, "probe.timeout_seconds");
    found.not_negative(probe.slow_return, "probe.slow_return_seconds");
    let ejection = &settings.outlier_ejection;
    found.positive(ejection.window, "outlier_ejection.window_seconds");
    found.positive(ejection.ejection, "outlier_ejection.ejection_seconds");
    found.positive(ejection.ejection_max, "outlier_ejection.ejection_max_seconds");
}

fn counts(settings: &Settings, found: &mut Findings) {
    let Settings { server, queue, placement, retry, upstream, probe, prefix, .. } = settings;
    found.count(server.threads as u64, (0, THREADS_MAX), "server.threads");
    found.count(server.connections_max as u64, (1, CONNECTIONS_MAX), "server.connections_max");
    let per_address = server.connections_per_address_max as u64;
    found.count(per_address, (0, CONNECTIONS_MAX), "server.connections_per_address_max");
    found.count(server.body_max_bytes as u64, (1, BODY_MAX_BYTES), "server.body_max_bytes");
    if let Some(budget) = server.body_budget_bytes {
        found.count(budget as u64, (1, BODY_BUDGET_BYTES), "server.body_budget_bytes");
    }
    found.count(queue.requests_max as u64, (1, QUEUE_MAX), "queue.requests_max");
    found.number(queue.late_class_share, (0.0, 1.0), "queue.late_class_share", "");
    found.number(queue.trunk_reservation_share, (0.0, 1.0), "queue.trunk_reservation_share", "");
    found.count(placement.chunk.get(), (1, CHUNK_MAX), "placement.chunk_tokens");
    found.count(placement.colocate_below.get(), (0, CHUNK_MAX), "placement.colocate_below_tokens");
    found.count(retry.attempts.into(), (1, ATTEMPTS_MAX), "retry.attempts");
    let idle = upstream.idle_per_backend_max as u64;
    found.count(idle, (1, IDLE_MAX), "upstream.idle_per_backend_max");
    found.count(probe.failures_to_eject.into(), (1, FAILURES_MAX), "probe.failures_to_eject");
    let ejection = &settings.outlier_ejection;
    let min = ejection.requests_min.into();
    found.count(min, (1, FAILURES_MAX), "outlier_ejection.requests_min");
    found.number(ejection.failure_share, (0.0, 1.0), "outlier_ejection.failure_share", "");
    found.number(ejection.pool_share_max, (0.0, 1.0), "outlier_ejection.pool_share_max", "");
    found.count(prefix.block_tokens as u64, (1, BLOCK_TOKENS_MAX), "prefix.block_tokens");
    let power = prefix.lines.is_power_of_two() && PREFIX_LINES.contains(&prefix.lines);
    let problem = format!("is {}", prefix.lines);
    found.check(power, "prefix.lines", &problem, "a power of two from 64 to 67108864");
}

fn cors(settings: &Settings, found: &mut Findings) {
    let Some(cors) = &settings.server.cors else { return };
    let hint = "\"https://host\", or \"*\"";
    let named = !cors.allow_origins.is_empty();
    if found.required(named, "server.cors.allow_origins", hint) {
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            let path = format!("server.cors.allow_origins[{i}]");
            found.check(is_origin(origin), &path, &format!("{origin:?} is not an origin"), hint);
        }
    }
    let token = |word: &String| {
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !word.is_empty() && word.bytes().all(sign)
    };
    let (methods, headers) = ("server.cors.allow_methods", "server.cors.allow_headers");
    let good = !cors.allow_methods.is_empty() && cors.allow_methods.iter().all(token);
    found.check(good, methods, "is empty or contains an invalid method", "GET, POST, …");
    let good = cors.allow_headers.iter().all(token);
    found.check(good, headers, "contains an invalid header name", "names of headers, or \"*\"");
    let any = cors.allow_origins.iter().any(|origin| origin == "*");
    let credentials = "server.cors.allow_credentials";
    let problem = "must not be combined with origin \"*\"";
    let with = ["server.cors.allow_origins"];
    found.check_with(
        !any || !cors.allow_credentials,
        credentials,
        &with,
        problem,
        "list the origins",
    );
    found.not_negative(cors.max_age, "server.cors.max_age_seconds");
}

/// Returns whether this is an origin as browsers write it: scheme, host and optional port.
fn is_origin(origin: &str) -> bool {
    let host = origin.split_once("://").map(|(_, host)| host);
    let plain =
        |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    matches!(origin, "*" | "null") || host.is_some_and(plain)
}

/// Checks the log level: tracing silently reads an unknown level as the name of a module.
fn log(settings: &Settings, found: &mut Findings) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in settings.log.level.split(',') {
        let level = directive.rsplit('=').next().unwrap_or("").trim();
        let known = LEVELS.contains(&level.to_lowercase().as_str());
        let hint = match nearest(level, LEVELS.into_iter()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("one of {}, or \"info,PART=debug\"", LEVELS.join(", ")),
        };
        found.check(known, "log.level", &format!("{level:?} is not a log level"), &hint);
    }
}

fn keys(settings: &Settings, found: &mut Findings) {
    let (mut names, mut values) = (BTreeMap::new(), BTreeMap::new());
    for (i, key) in settings.auth.keys.iter().enumerate() {
        let path = |field: &str| format!("auth.keys[{i}].{field}");
        found.name(&key.name, &mut names, &path("name"));
        let file = path("key_file");
        match (&key.key, &key.key_file) {
            (None, None) if found.removed.affect(&file) => {}
            (None, None) => {
                found.required(false, &path("key"), "or key_file, a file that holds it");
            }
            (Some(_), Some(_)) => {
                found.check(false, &file, "is set together with key", "set one of them")
            }
            (Some(key), None) => {
                let (long, hint) = (key.len() >= KEY_BYTES_MIN, "at least 8 bytes");
                found.check(long, &path("key"), "is too short", hint);
                // Header values are printable ASCII.
                let plain = key.bytes().all(|byte| byte.is_ascii_graphic());
                found.check(
                    plain,
                    &path("key"),
                    "is not a valid header value",
                    "letters, digits and punctuation",
                );
                found.unique(key, &mut values, &path("key"));
            }
            (None, Some(path)) => {
                found.check(!path.as_os_str().is_empty(), &file, "is empty", "a path");
            }
        }
    }
}

/// Splits `a.b[0]` into its parts. Only for paths of the schema, whose keys need no quotes.
fn segments(path: &str) -> Vec<Part> {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
            Some(index) => Part::Index(index),
            None => Part::Key(part.to_owned()),
        })
        .collect()
}
