//! Checks of `[[models]]` and `[[backends]]`, alone and together.

use http::Uri;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use tidegate_engine::paths::is_administration;
use tidegate_types::{BACKENDS_MAX, Role, Seconds};

use super::Findings;
use crate::profiles;
use crate::schema::{BackendSettings, Connector, EngineName, KvRole, ScheduleStyle, Settings};

/// Above the streams of any engine.
const STREAMS_MAX: u64 = 65_536;
/// Above the KV capacity of any engine, in tokens.
const KV_CAPACITY_MAX: u64 = 1_000_000_000;
/// Ten times the longest contexts of today, in tokens.
const MODEL_LEN_MAX: u64 = 1 << 30;
/// Above the duration of any step, in seconds.
const COST_MAX: f64 = 60.0;

pub(super) fn models(settings: &Settings, found: &mut Findings) {
    let mut names = BTreeMap::new();
    for (i, model) in settings.models.iter().enumerate() {
        let path = |field: &str| format!("models[{i}].{field}");
        if found.required(!model.name.is_empty(), &path("name"), "the name in requests") {
            found.unique(&model.name, &mut names, &path("name"));
        }
        for (n, alias) in model.aliases.iter().enumerate() {
            let path = path(&format!("aliases[{n}]"));
            if found.required(!alias.is_empty(), &path, "a name") {
                found.unique(alias, &mut names, &path);
            }
        }
        let alone = model.tokenizer.is_none()
            && (model.tokenizer_config.is_some() || model.chat_template.is_some());
        found.required(!alone, &path("tokenizer"), "the path of its tokenizer.json");
        if let Some(length) = model.max_model_len {
            found.count(length.get(), (1, MODEL_LEN_MAX), &path("max_model_len_tokens"));
        }
    }
}

pub(super) fn backends(settings: &Settings, found: &mut Findings) {
    let hint = "[[backends]] with a name and a url";
    found.required(!settings.backends.is_empty(), "backends", hint);
    let count = settings.backends.len();
    let (problem, hint) = (format!("has {count} entries"), format!("at most {BACKENDS_MAX}"));
    found.check(count <= BACKENDS_MAX, "backends", &problem, &hint);
    let (mut names, mut engines) = (BTreeMap::new(), BTreeMap::new());
    for (i, backend) in settings.backends.iter().enumerate() {
        let path = |field: &str| format!("backends[{i}].{field}");
        found.name(&backend.name, &mut names, &path("name"));
        address(backend, &path, settings, &mut engines, found);
        protocol(backend, &path, found);
        api_key(backend, &path, found);
        roles(backend, &path, found);
        super::signals::of_backend(backend, &path, found);
        super::kubernetes::of_backend(backend, &path, found);
        super::sources::of_backend(backend, &path, found);
        if let Some(profile) = &backend.profile {
            let names: Vec<_> = profiles::names().collect();
            let known = names.contains(&profile.as_str());
            let problem = format!("{profile:?} is unknown");
            found.check(known, &path("profile"), &problem, &format!("one of {}", names.join(", ")));
        }
        for (n, pattern) in backend.paths.iter().enumerate() {
            let path = path(&format!("paths[{n}]"));
            let rooted = pattern.starts_with('/') && !pattern.ends_with('/');
            let plain =
                pattern.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%".contains(&byte));
            let hint = "/v1/moderations, or /v1/files/*";
            found.check(rooted && plain, &path, &format!("{pattern:?} is not a path"), hint);
            let own = is_administration(pattern);
            found.check(!own, &path, "is an administration path", "such paths are never forwarded");
        }
        let empty = backend.models.iter().any(String::is_empty);
        found.check(!empty, &path("models"), "has an empty name", "or leave models out");
        found.count(backend.streams_max.into(), (1, STREAMS_MAX), &path("streams_max"));
        if let Some(capacity) = backend.kv_capacity {
            found.count(capacity.get(), (1, KV_CAPACITY_MAX), &path("kv_capacity_tokens"));
        }
        costs(backend, &path, found);
    }
}

type Engines = BTreeMap<(String, &'static str), String>;

fn address(
    backend: &BackendSettings,
    path: &dyn Fn(&str) -> String,
    settings: &Settings,
    engines: &mut Engines,
    found: &mut Findings,
) {
    let path = path("url");
    // The source lists the addresses; a URL gives only scheme and path.
    if backend.is_source() && backend.url.is_empty() {
        return;
    }
    if !found.required(!backend.url.is_empty(), &path, "http://host:port") {
        return;
    }
    let authority = match base_of(&backend.url) {
        Ok(authority) => authority,
        Err(problem) => return found.check(false, &path, problem, "http://host:port"),
    };
    let checked = !backend.is_https() || settings.upstream.ca_file.is_some();
    let hint = "PEM; tidegate trusts no built-in authorities";
    found.check_with(checked, &path, &["upstream.ca_file"], "needs upstream.ca_file", hint);
    if let Some(listens) = own_address(settings, &authority) {
        let problem = format!("is {listens}, an address of this gateway");
        found.check_with(false, &path, &[listens], &problem, "the address of an engine");
    }
    if backend.is_source() {
        return;
    }
    // Two entries for one engine would count its streams and KV memory twice.
    let family = backend.family();
    let kind = if family.can_split() { "split" } else { "colocated" };
    if let Some(first) = engines.get(&(authority.clone(), kind)) {
        found.check(
            false,
            &path,
            &format!("is the same engine as {first}"),
            "one entry per engine",
        );
    } else {
        engines.insert((authority, kind), path);
    }
}

/// Checks an API key: given once, and valid in a header.
fn api_key(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Findings) {
    let both = backend.api_key.is_some() && backend.api_key_file.is_some();
    found.check(!both, &path("api_key_file"), "is set together with api_key", "set one of them");
    if let Some(key) = &backend.api_key {
        let plain = !key.0.is_empty() && key.0.bytes().all(|byte| byte.is_ascii_graphic());
        found.check(
            plain,
            &path("api_key"),
            "is not a valid header value",
            "letters, digits and punctuation",
        );
    }
}

impl Settings {
    /// Returns the setting whose listening address equals the address in a base URL of a backend:
    /// requests would loop. Names that resolve to this machine are not detected.
    pub fn own_address(&self, url: &str) -> Option<&'static str> {
        own_address(self, &base_of(url).ok()?)
    }
}

fn own_address(settings: &Settings, authority: &str) -> Option<&'static str> {
    let authority = authority.split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.ends_with(".localhost");
    let ip: Option<IpAddr> = host.parse().ok();
    let same = |listens: &SocketAddr| {
        let local = is_local || ip.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified());
        let reached = match listens.ip() {
            any if any.is_unspecified() => local,
            own if own.is_loopback() && is_local => true,
            own => ip == Some(own) || ip.is_some_and(|ip| ip.is_unspecified()),
        };
        listens.port() != 0 && port.parse() == Ok(listens.port()) && reached
    };
    match () {
        () if settings.server.listen.iter().any(same) => Some("server.listen"),
        () if same(&settings.admin.listen) => Some("admin.listen"),
        () => None,
    }
}

/// Checks a base URL: `http://host:port` or `https://host:port`, with an optional path.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn check_base_url(url: &str) -> Result<(), &'static str> {
    base_of(url).map(|_| ())
}

/// Returns host, port and path prefix of a base URL, or the problem with it.
fn base_of(url: &str) -> Result<String, &'static str> {
    let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
    let default_port = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return Err("is neither http nor https"),
    };
    let authority = uri.authority().ok_or("has no host")?;
    if authority.as_str().contains('@') {
        return Err("contains user information");
    }
    let host = authority.host();
    let port = match authority.as_str().get(host.len()..) {
        None | Some("") => Some(default_port),
        Some(port) => port.trim_start_matches(':').parse::<u16>().ok(),
    };
    match port {
        _ if host.is_empty() => Err("has no host"),
        _ if uri.query().is_some() => Err("has a query"),
        None | Some(0) => Err("has no port from 1 to 65535"),
        Some(port) => {
            let prefix = uri.path().trim_end_matches('/');
            Ok(format!("{}:{port}{prefix}", host.to_ascii_lowercase()))
        }
    }
}

/// Returns the engine of a connector.
fn engine_of(connector: Connector) -> Option<EngineName> {
    match connector {
        Connector::None => None,
        Connector::Nixl
        | Connector::NixlPush
        | Connector::Mooncake
        | Connector::Offloading
        | Connector::SharedStore => Some(EngineName::Vllm),
        Connector::Bootstrap => Some(EngineName::Sglang),
        Connector::Transceiver => Some(EngineName::Trtllm),
    }
}

/// Checks that engine, connector and `kv_role` are compatible.
fn protocol(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Findings) {
    let (engine, connector) = (path("engine"), path("connector"));
    let of = engine_of(backend.connector);
    let (problem, hint) = match of {
        Some(EngineName::Vllm) => ("requires vLLM", "add engine = \"vllm\""),
        Some(EngineName::Sglang) => ("requires SGLang", "add engine = \"sglang\""),
        Some(EngineName::Trtllm) => ("requires TensorRT-LLM", "add engine = \"trtllm\""),
        // No other engine kind has a connector.
        Some(_) | None => ("", ""),
    };
    let fits = of.is_none_or(|of| of == backend.engine);
    found.check_with(fits, &connector, &[&engine], problem, hint);
    found.check_with(
        of == Some(EngineName::Vllm) || backend.kv_role == KvRole::KvBoth,
        &path("kv_role"),
        &[&engine, &connector],
        "requires a vLLM connector",
        "add connector = \"nixl\"",
    );
    // The role of a pod is given by its label.
    let launched = backend.connector == Connector::Bootstrap || backend.role_switch;
    if launched && backend.kubernetes.is_none() {
        let role = path("role");
        let hint = "\"prefill\" or \"decode\", its --disaggregation-mode or pd_role";
        let is_fixed = matches!(backend.role, Some(Role::Prefill | Role::Decode));
        found.check_with(is_fixed, &role, &[&connector], "is missing", hint);
    }
    found.check_with(
        !backend.role_switch || matches!(backend.connector, Connector::Bootstrap | Connector::Nixl),
        &path("role_switch"),
        &[&connector],
        "requires SGLang's disaggregation or vLLM's NixlConnector",
        "add connector = \"bootstrap\" or \"nixl\"",
    );
    found.check_with(
        !backend.role_switch || backend.kv_role == KvRole::KvBoth,
        &path("role_switch"),
        &[&path("kv_role")],
        "requires an engine that can take both roles",
        "remove kv_role",
    );
    transceivers(backend, path, found);
    for (key, port) in [
        ("bootstrap_port", backend.bootstrap_port),
        ("side_channel_port", backend.side_channel_port),
    ] {
        found.count(u64::from(port), (1, u64::from(u16::MAX)), &path(key));
    }
}

/// Checks the keys of TensorRT-LLM.
fn transceivers(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Findings) {
    let connector = path("connector");
    let (key, file) = (&backend.disagg_key, &backend.disagg_key_file);
    for (name, is_set) in [
        ("schedule_style", backend.schedule_style != ScheduleStyle::default()),
        ("disagg_key", key.is_some()),
        ("disagg_key_file", file.is_some()),
    ] {
        found.check_with(
            !is_set || backend.connector == Connector::Transceiver,
            &path(name),
            &[&connector],
            "requires TensorRT-LLM's transceiver",
            "add connector = \"transceiver\"",
        );
    }
    let both = key.is_some() && file.is_some();
    found.check(
        !both,
        &path("disagg_key_file"),
        "is set together with disagg_key",
        "set one of them",
    );
    let empty = key.as_ref().is_some_and(|key| key.0.is_empty());
    found.check(!empty, &path("disagg_key"), "is empty", "the engines' own");
    let nowhere = file.as_ref().is_some_and(|file| file.as_os_str().is_empty());
    found.check(!nowhere, &path("disagg_key_file"), "is empty", "a path");
}

fn roles(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Findings) {
    let keys = [path("engine"), path("connector"), path("kv_role")];
    let keys = keys.each_ref().map(String::as_str);
    let allowed = backend.allowed_roles();
    if let Some(role) = backend.role {
        let words: Vec<_> = allowed.iter().map(Role::as_str).collect();
        let hint = format!("engine, connector and kv_role allow {}", words.join(", "));
        let problem = format!("cannot be {role}");
        found.check_with(allowed.contains(role), &path("role"), &keys, &problem, &hint);
    }
    let kept = !backend.pin || backend.role.is_some();
    found.check_with(kept, &path("pin"), &[&path("role")], "requires a role", "add role");
}

fn costs(backend: &BackendSettings, path: &dyn Fn(&str) -> String, found: &mut Findings) {
    let (prefill, decode) = (backend.prefill_prior, backend.decode_prior);
    let each: [(&str, Seconds); 6] = [
        ("prefill_prior.base_seconds", prefill.base),
        ("prefill_prior.per_token_seconds", prefill.per_token),
        ("prefill_prior.per_attention_seconds", prefill.per_attention),
        ("decode_prior.base_seconds", decode.base),
        ("decode_prior.per_stream_seconds", decode.per_stream),
        ("decode_prior.per_kv_token_seconds", decode.per_kv_token),
    ];
    for (key, cost) in each {
        found.number(cost.get(), (0.0, COST_MAX), &path(key), " seconds");
    }
    let free = u64::from(decode.free_streams);
    found.count(free, (0, STREAMS_MAX), &path("decode_prior.free_streams"));
}

/// Checks each group: the same engine, connector and version, and at least one decode backend.
pub(super) fn groups(settings: &Settings, found: &mut Findings) {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, group) in settings.groups().into_iter().enumerate() {
        groups.entry(group).or_default().push(i);
    }
    for members in groups.values() {
        alike(settings, members, found);
        complete(settings, members, found);
    }
}

fn alike(settings: &Settings, members: &[usize], found: &mut Findings) {
    let Some((&first, others)) = members.split_first() else { return };
    let a = &settings.backends[first];
    for &other in others {
        let b = &settings.backends[other];
        let sorted = |models: &[String]| {
            let mut models = models.to_vec();
            models.sort();
            models
        };
        let versions = a.version.is_some() && b.version.is_some();
        let models = !a.models.is_empty() && !b.models.is_empty();
        let has_key = |b: &BackendSettings| b.disagg_key.is_some() || b.disagg_key_file.is_some();
        let differ = [
            ("engine", a.engine != b.engine),
            ("connector", a.connector != b.connector),
            ("version", versions && a.version != b.version),
            ("models", models && sorted(&a.models) != sorted(&b.models)),
            // With a key on one side only, signatures of hand-offs would be refused.
            ("disagg_key", has_key(a) != has_key(b)),
        ];
        for (key, _) in differ.into_iter().filter(|(_, differs)| *differs) {
            let keys = [first, other].map(|i| format!("backends[{i}].{key}"));
            let problem = format!("differs in {key} from backends[{first}]");
            let hint = "hand-offs need equal engines: use another group";
            let path = format!("backends[{other}].group");
            found.check_with(false, &path, &[&keys[0], &keys[1]], &problem, hint);
        }
    }
}

fn complete(settings: &Settings, members: &[usize], found: &mut Findings) {
    // A backend whose role or protocol could not be read may decode.
    let unknown = |i: &usize| {
        let keys = ["engine", "connector", "kv_role", "role", "pin", "group", "version", "models"];
        keys.iter().any(|key| found.removed.affect(&format!("backends[{i}].{key}")))
    };
    let is_source = |i: &usize| settings.backends[*i].is_source();
    if members.iter().any(unknown) || members.iter().any(is_source) {
        return;
    }
    let splits = |i: &&usize| settings.backends[**i].family().can_split();
    let may_decode = |i: &&usize| {
        let backend = &settings.backends[**i];
        match backend.role.filter(|_| backend.pin) {
            Some(role) => role != Role::Prefill,
            None => backend.allowed_roles().contains(Role::Decode),
        }
    };
    let Some(&first) = members.iter().find(splits) else { return };
    let paired = !settings.backends[first].family().serves_colocated();
    // The gateway of a sidecar names engines that prefill.
    let named = settings.sidecar.is_some();
    let may_prefill =
        |i: &usize| named || settings.backends[*i].allowed_roles().contains(Role::Prefill);
    let problem = match members.iter().any(|i| may_decode(&i)) {
        false => "leaves its group without a backend for decode",
        true if paired && !members.iter().any(may_prefill) => {
            "leaves its group without a backend for prefill"
        }
        true => return,
    };
    let key = match settings.backends[first].pin {
        true => "pin",
        false if paired => "role",
        false => "kv_role",
    };
    let path = format!("backends[{first}].{key}");
    found.check(
        false,
        &path,
        problem,
        "a group has one engine kind, connector, version and list of models",
    );
}
