//! Errors reported for invalid files, and settings parsed from valid ones. The backends' tests are in
//! `fleet`.

use crate::Settings;

#[path = "fleet_tests.rs"]
mod fleet;

const GOOD: &str = "[[backends]]\nname = \"a\"\nurl = \"http://127.0.0.1:8000\"\n";
const NIXL: &str = "engine = \"vllm\"\nconnector = \"nixl\"\n";
const TRTLLM: &str = "engine = \"trtllm\"\nconnector = \"transceiver\"\n";

/// Asserts that these lines are reported, and no others.
fn check(text: &str, expected: &[&str]) {
    let problems = Settings::parse(text).err().unwrap_or_default();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(lines, expected, "{text}");
}

/// A valid file with more keys in its backend.
fn backend(more: &str, expected: &[&str]) {
    check(&format!("{GOOD}{more}"), expected);
}

/// A valid file with more sections.
fn section(more: &str, expected: &[&str]) {
    check(&format!("{more}\n{GOOD}"), expected);
}

/// A valid file of two backends, with more keys in each.
fn two(a: &str, b: &str, expected: &[&str]) {
    let other = "[[backends]]\nname = \"b\"\nurl = \"http://127.0.0.1:8001\"";
    check(&format!("{GOOD}{a}\n{other}\n{b}\n"), expected);
}

fn good(text: &str) -> Settings {
    Settings::parse(text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

#[test]
fn a_short_file_is_enough() {
    check(GOOD, &[]);
}

#[test]
fn all_errors_are_reported_at_once_in_file_order() {
    check(
        "[server]\nlisten = [\"nowhere\", \"0.0.0.0:80\", 7]\nbody_max_bites = 1\nthreads = \"many\"\n\
         [slo]\nttft_seconds = -1\n[queue]\nhandoff_seconds = 45\n[nothing]\n\
         [[backends]]\nname = \"a\"\nurl = \"ftp://x\"\nrole = \"sideways\"\n\
         [[backends]]\nname = \"a\"\nurl = \"http://b:1\"\nstreams_max = 0\n",
        &[
            "server.listen[0]: is not an address (for example \"127.0.0.1:8080\"), line 2",
            "server.listen[2]: invalid type: integer `7` (should be an address, \"127.0.0.1:8080\"), line 2",
            "server.body_max_bites: unknown key (did you mean body_max_bytes?), line 3",
            "server.threads: invalid type: string \"many\" (should be a whole number, 0 or more), line 4",
            "slo.ttft_seconds: is -1 (0.001 to 86400 seconds), line 6",
            "queue.handoff_seconds: is 45 (above 0, below 30: vLLM frees a prefill's blocks after 30 seconds), line 8",
            "nothing: unknown key (known keys: server, admin, slo, queue, placement, planner, retry, upstream, auth, log, probe, outlier_ejection, prefix, signals, sidecar, kubernetes, gateways, models, backends), line 9",
            "backends[0].url: is neither http nor https (http://host:port), line 12",
            "backends[0].role: unknown variant `sideways` (should be one of prefill, decode, mixed, draining), line 13",
            "backends[1].name: is the same as backends[0].name (must be unique), line 15",
            "backends[1].streams_max: is 0 (1 to 65536), line 17",
        ],
    );
}

#[test]
fn an_empty_file_is_an_error_for_its_missing_backends() {
    check("", &["backends: is missing ([[backends]] with a name and a url)"]);
}

#[test]
fn a_file_that_is_not_toml_reports_only_its_syntax_errors() {
    section(
        "[slo]\nttft_seconds = 1s\ntpot_seconds = 0\n[log]\nlevel = info",
        &[
            "not TOML: string values must be quoted, expected literal string, line 2",
            "not TOML: invalid float, expected `inf`, line 5",
        ],
    );
    section(
        "[[auth.keys]]\nname = a\nkey = 'x",
        &[
            "not TOML: string values must be quoted, expected literal string, line 2",
            "not TOML: invalid literal string, expected `'`, line 3",
        ],
    );
    section("[server\nthreads = \"x\"", &["not TOML: unclosed table, expected `]`, line 1"]);
    section("[slo]\n[slo]\nthreads = 1", &["not TOML: duplicate key, line 2"]);
    // Without a readable backend too.
    check("x = = 3\n", &["not TOML: extra `=`, expected nothing, line 1"]);
    check(
        "[[backends]]\nname = a\n",
        &["not TOML: string values must be quoted, expected literal string, line 2"],
    );
}

#[test]
fn a_fleet_has_as_many_backends_as_there_are_slots() {
    let fleet = |count: usize| {
        let entry = |i| format!("[[backends]]\nname = \"b{i}\"\nurl = \"http://h:{}\"\n", i + 1);
        (0..count).map(entry).collect::<String>()
    };
    check(&fleet(tidegate_types::BACKENDS_MAX), &[]);
    check(&fleet(4097), &["backends: has 4097 entries (at most 4096), line 1"]);
}

#[test]
fn an_error_is_reported_once() {
    // The engine kind is unknown, so its connectors are unknown too.
    backend(
        "engine = \"vlm\"\nconnector = \"nixl\"\nrole = \"prefill\"\npin = true",
        &[
            "backends[0].engine: unknown variant `vlm` (should be one of vllm, sglang, trtllm, tgi, llamacpp, ollama, plain), line 4",
        ],
    );
    backend(
        "role = \"x\"\npin = true",
        &[
            "backends[0].role: unknown variant `x` (should be one of prefill, decode, mixed, draining), line 4",
        ],
    );
    check(
        "[[backends]]\nnam = \"a\"\nurl = 3",
        &[
            "backends[0].nam: unknown key (did you mean name?), line 2",
            "backends[0].url: invalid type: integer `3` (should be a string), line 3",
        ],
    );
    section(
        "[[auth.keys]]\nname = \"n\"\nkey_file = 1",
        &["auth.keys[0].key_file: is of the wrong type (should be a path in quotes), line 3"],
    );
    check("backends = 3", &["backends: invalid type: integer `3` (should be a list), line 1"]);
}

#[test]
fn listening_addresses_must_differ() {
    section(
        "[server]\nlisten = [\"0.0.0.0:80\", \"127.0.0.1:80\"]",
        &["server.listen[1]: is already in the list, line 2"],
    );
    section(
        "[server]\nlisten = [\"0.0.0.0:90\"]\n[admin]\nlisten = \"127.0.0.1:90\"",
        &[
            "admin.listen: is also the address server.listen[0] (use another port: clients of this address can change roles), line 4",
        ],
    );
    section("[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"", &[]);
    section("[server]\nlisten = []", &["server.listen: is empty ([\"127.0.0.1:8080\"]), line 2"]);
}

#[test]
fn tls_needs_both_files() {
    section("[server.tls]\ncert = \"c.pem\"", &["server.tls.key: is missing (a PEM file), line 1"]);
}

#[test]
fn client_certificates_need_authorities_a_certificate_and_a_key() {
    let both = "cert = \"c\"\nkey = \"k\"\n";
    for section_name in ["server.tls", "admin.tls"] {
        section(
            &format!("[{section_name}]\n{both}client_auth = \"optional\""),
            &[&format!(
                "{section_name}.client_auth: needs client_ca_file (the authorities that client certificates are verified against), line 4"
            )],
        );
        section(&format!("[{section_name}]\n{both}client_ca_file = \"a\""), &[]);
    }
    section(
        "[upstream]\nca_file = \"a\"\nclient_cert = \"c\"",
        &["upstream.client_key: is missing (the private key of client_cert), line 1"],
    );
    section(
        "[upstream]\nclient_cert = \"c\"\nclient_key = \"k\"",
        &[
            "upstream.client_cert: needs ca_file (the authorities of the engines' certificates), line 2",
        ],
    );
}

#[test]
fn an_admin_token_has_at_least_16_bytes() {
    let admin = |text: &str, expected: &[&str]| section(&format!("[admin]\n{text}"), expected);
    admin("token = \"0123456789abcdef\"\nhosts = [\"gate.example\"]", &[]);
    admin("token = \"short\"", &["admin.token: is too short (at least 16 bytes), line 2"]);
    admin("token = \"0123456789abcdef\"\ntoken_file = \"f\"", &[]);
    admin(
        "hosts = [\"http://a\"]",
        &["admin.hosts[0]: is not a host name (a name without scheme and port), line 2"],
    );
}

#[test]
fn a_backend_must_not_be_the_gateway_itself() {
    let one = |listen: &str, url: &str| {
        let text = format!("[server]\nlisten = [\"{listen}\"]\n[[backends]]\nname = \"a\"\n");
        let problems = Settings::parse(&format!("{text}url = \"{url}\"\n")).err();
        problems.is_some_and(|all| all[0].to_string().contains("an address of this gateway"))
    };
    for (listen, url, is_own) in [
        ("127.0.0.1:80", "http://127.0.0.1", true),
        ("127.0.0.1:80", "http://localhost:80", true),
        ("0.0.0.0:80", "http://localhost", true),
        ("0.0.0.0:80", "http://127.0.0.1", true),
        ("[::]:80", "http://[::1]:80", true),
        ("10.0.0.1:80", "http://10.0.0.1", true),
        ("127.0.0.1:9000", "http://127.0.0.1:9090", true),
        ("10.0.0.1:80", "http://10.0.0.2", false),
        ("127.0.0.1:80", "http://127.0.0.1:81", false),
        ("0.0.0.0:80", "http://engine", false),
    ] {
        assert_eq!(one(listen, url), is_own, "{listen} {url}");
    }
}

#[test]
fn an_itl_target_of_0_is_none() {
    let itl = |text: &str| good(&format!("{text}\n{GOOD}")).slo().itl.map(|itl| itl.get());
    assert_eq!((itl(""), itl("[slo]\nitl_seconds = 0")), (None, None));
    assert_eq!(itl("[slo]\nitl_seconds = 0.25"), Some(0.25));
}

#[test]
fn numbers_have_bounds() {
    let cases = [
        ("[slo]\nttft_seconds = nan", "slo.ttft_seconds: is NaN (0.001 to 86400 seconds)"),
        ("[slo]\ntpot_seconds = inf", "slo.tpot_seconds: is inf (0.001 to 86400 seconds)"),
        ("[slo]\nitl_seconds = -1", "slo.itl_seconds: is -1 (0.001 to 86400 seconds)"),
        ("[server]\nlinger_seconds = -1", "server.linger_seconds: is -1 (0 to 86400 seconds)"),
        ("[server]\nthreads = 5000", "server.threads: is 5000 (0 to 1024)"),
        ("[server]\nbody_budget_bytes = 0", "server.body_budget_bytes: is 0 (1 to 17592186044416)"),
        ("[server]\nbody_max_bytes = 0", "server.body_max_bytes: is 0 (1 to 1073741824)"),
        ("[queue]\nlate_class_share = 1.5", "queue.late_class_share: is 1.5 (0 to 1)"),
        ("[queue]\ntrunk_reservation_share = -1", "queue.trunk_reservation_share: is -1 (0 to 1)"),
        ("[queue]\nrequests_max = 0", "queue.requests_max: is 0 (1 to 1048576)"),
        (
            "[planner]\ninterval_seconds = 0",
            "planner.interval_seconds: is 0 (0.001 to 3600 seconds)",
        ),
        (
            "[planner]\ndemand_window_seconds = 0",
            "planner.demand_window_seconds: is 0 (0.001 to 86400 seconds)",
        ),
        (
            "[probe]\ninterval_seconds = 1e-9",
            "probe.interval_seconds: is 0.000000001 (0.01 to 3600 seconds)",
        ),
        (
            "[signals]\nscrape_seconds = 80000",
            "signals.scrape_seconds: is 80000 (0 for never, or 0.01 to 3600 seconds)",
        ),
        ("[admin]\nflip_hold_seconds = 0", "admin.flip_hold_seconds: is 0 (1 to 604800 seconds)"),
        ("[retry]\nattempts = 0", "retry.attempts: is 0 (1 to 16)"),
        ("[prefix]\nlines = 1000", "prefix.lines: is 1000 (a power of two from 64 to 67108864)"),
        (
            "[probe]\nfailures_to_eject = -1",
            "probe.failures_to_eject: invalid value: integer `-1` (should be a whole number from 0 to 4294967295)",
        ),
        ("[placement]\nchunk_tokens = 0", "placement.chunk_tokens: is 0 (1 to 1048576)"),
    ];
    for (text, expected) in cases {
        section(text, &[&format!("{expected}, line 2")]);
    }
    backend(
        "[backends.prefill_prior]\nper_token_seconds = -1",
        &["backends[0].prefill_prior.per_token_seconds: is -1 (0 to 60 seconds), line 5"],
    );
    backend(
        "[backends.decode_prior]\nper_token_seconds = 1",
        &[
            "backends[0].decode_prior.per_token_seconds: unknown key (did you mean per_kv_token_seconds?), line 5",
        ],
    );
    backend(
        "kv_capacity_tokens = 0",
        &["backends[0].kv_capacity_tokens: is 0 (1 to 1000000000), line 4"],
    );
}

#[test]
fn an_unknown_log_level_is_an_error() {
    section(
        "[log]\nlevel = \"inof\"",
        &["log.level: \"inof\" is not a log level (did you mean info?), line 2"],
    );
    section("[log]\nlevel = \"warn,tidegate_proxy=debug\"", &[]);
}

#[test]
fn a_key_has_one_source_and_at_least_16_bytes() {
    let key = |more: &str, expected: &[&str]| {
        section(&format!("[[auth.keys]]\nname = \"n\"\n{more}"), expected);
    };
    key("key = \"long-enough\"", &[]);
    key("key_file = \"/run/secrets/key\"", &[]);
    key("", &["auth.keys[0].key: is missing (or key_file, a file that holds it), line 1"]);
    key("key = \"short\"", &["auth.keys[0].key: is too short (at least 8 bytes), line 3"]);
    key(
        "key = \"long enough\"",
        &[
            "auth.keys[0].key: is not a valid header value (letters, digits and punctuation), line 3",
        ],
    );
    key(
        "key = \"long-enough\"\nkey_file = \"f\"",
        &["auth.keys[0].key_file: is set together with key (set one of them), line 4"],
    );
    key(
        "key = \"long-enough\"\n[[auth.keys]]\nname = \"m\"\nkey = \"long-enough\"",
        &["auth.keys[1].key: is the same as auth.keys[0].key (must be unique), line 6"],
    );
}

#[test]
fn keys_are_redacted_in_debug_output() {
    let text = format!("[[auth.keys]]\nname = \"n\"\nkey = \"sk-secret-1\"\n{GOOD}");
    assert!(!format!("{:?}", good(&text)).contains("secret"));
    section(
        "[auth]\nkeys = \"sk-secret-1\"",
        &["auth.keys: is of the wrong type (should be a list), line 2"],
    );
}

#[test]
fn the_number_of_reported_errors_is_bounded() {
    let text: String = (0..100).map(|i| format!("zz{i} = 1\n")).collect();
    let problems = Settings::parse(&text).unwrap_err();
    assert_eq!(problems.len(), 65);
    assert_eq!(problems[0].to_string(), "has more than 64 errors; further ones are not reported");
}

#[test]
fn blank_texts_are_problems_in_every_section() {
    const FLEET: &str = "[[backends]]\nname = \"a\"\nurl = \"http://a:1\"\n";
    for (text, path) in [
        ("[[models]]\nname = \"m\"\naliases = [\"b\", \" \"]\n", "models[0].aliases[1]"),
        ("[[models]]\nname = \"\\t\"\n", "models[0].name"),
        ("[[models]]\nname = \"a\\nb\"\n", "models[0].name"),
        ("[[models]]\nname = \"m\"\ntokenizer = \"\"\n", "models[0].tokenizer"),
        ("[admin]\ntoken_file = \"\"\n", "admin.token_file"),
        ("[gateways]\nserver_name = \"\"\n", "gateways.server_name"),
        ("[planner]\nrecord = \" \"\n", "planner.record"),
    ] {
        let problems = Settings::parse(&format!("{text}{FLEET}")).unwrap_err();
        let paths: Vec<&str> = problems.iter().map(|problem| &*problem.path).collect();
        assert_eq!(paths, [path], "{text}");
    }
    for (key, path) in [
        ("models = [\"m\", \" \"]", "backends[0].models[1]"),
        ("group = \"\"", "backends[0].group"),
        ("version = \" \"", "backends[0].version"),
        ("api_key_file = \"\"", "backends[0].api_key_file"),
        ("server_name = \"\"", "backends[0].server_name"),
    ] {
        let problems = Settings::parse(&format!("{FLEET}{key}\n")).unwrap_err();
        let paths: Vec<&str> = problems.iter().map(|problem| &*problem.path).collect();
        assert_eq!(paths, [path], "{key}");
    }
}
