//! What an operator reads of a wrong file, and what the program gets of a right one.

use tidegate_types::{GroupId, Role, RoleCapability, RoleSet, Seconds, Tokens};

use crate::Settings;

const GOOD: &str = "[[backends]]\nname = \"a\"\nurl = \"http://127.0.0.1:8000\"\n";
const NIXL: &str = "engine = \"vllm\"\nconnector = \"nixl\"\n";
const TRTLLM: &str = "engine = \"trtllm\"\nconnector = \"transceiver\"\n";

/// The lines an operator reads, all of them.
fn check(text: &str, expected: &[&str]) {
    let problems = Settings::parse(text).err().unwrap_or_default();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(lines, expected, "{text}");
}

/// A good file with more in its one backend.
fn backend(more: &str, expected: &[&str]) {
    check(&format!("{GOOD}{more}"), expected);
}

/// A good file with more sections before it.
fn section(more: &str, expected: &[&str]) {
    check(&format!("{more}\n{GOOD}"), expected);
}

/// Two backends, good but for what is added to each.
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
fn every_mistake_is_told_at_once_in_the_order_of_the_file() {
    check(
        "[server]\nlisten = [\"nowhere\", \"0.0.0.0:80\", 7]\nbody_max_bites = 1\nthreads = \"many\"\n\
         [slo]\nttft_seconds = -1\n[queue]\nhandoff_seconds = 45\n[nothing]\n\
         [[backends]]\nname = \"a\"\nurl = \"ftp://x\"\nrole = \"sideways\"\n\
         [[backends]]\nname = \"a\"\nurl = \"http://b:1\"\nstreams_max = 0\n",
        &[
            "server.listen[0]: is not an address (\"127.0.0.1:8080\"), line 2",
            "server.listen[2]: invalid type: integer `7` (should be an address, \"127.0.0.1:8080\"), line 2",
            "server.body_max_bites: no such key (did you mean body_max_bytes?), line 3",
            "server.threads: invalid type: string \"many\" (should be a whole number, 0 or more), line 4",
            "slo.ttft_seconds: is -1 (0.001 to 86400 seconds), line 6",
            "queue.handoff_seconds: is 45 (above 0, below 30: vLLM frees a prefill's blocks after 30 seconds), line 8",
            "nothing: no such key (there are server, admin, slo, queue, placement, planner, retry, upstream, auth, log, probe, outlier_ejection, prefix, signals, sidecar, kubernetes, models, backends), line 9",
            "backends[0].url: has neither http nor https (http://host:port), line 12",
            "backends[0].role: unknown variant `sideways` (should be one of prefill, decode, mixed, draining), line 13",
            "backends[1].name: is the same as backends[0].name (give each its own), line 15",
            "backends[1].streams_max: is 0 (1 to 65536), line 17",
        ],
    );
}

#[test]
fn an_empty_file_lacks_backends() {
    check("", &["backends: is missing ([[backends]] with a name and a url)"]);
}

#[test]
fn a_line_that_is_not_toml_does_not_hide_the_others() {
    section(
        "[slo]\nttft_seconds = 1s\ntpot_seconds = 0\n[log]\nlevel = info",
        &[
            "not TOML: string values must be quoted, expected literal string, line 2",
            "slo.tpot_seconds: is 0 (0.001 to 86400 seconds), line 3",
            "not TOML: invalid float, expected `inf`, line 5",
        ],
    );
    // Its name and its key are there, if nobody can read them.
    section(
        "[[auth.keys]]\nname = a\nkey = 'x",
        &[
            "not TOML: string values must be quoted, expected literal string, line 2",
            "not TOML: invalid literal string, expected `'`, line 3",
        ],
    );
}

#[test]
fn a_file_whose_sections_are_lost_is_not_guessed_at() {
    section("[server\nthreads = \"x\"", &["not TOML: unclosed table, expected `]`, line 1"]);
    section("[slo]\n[slo]\nthreads = 1", &["not TOML: duplicate key, line 2"]);
}

#[test]
fn a_mistake_has_no_echo() {
    // The engine is unknown, so nobody can say whether it has this connector.
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
            "backends[0].nam: no such key (did you mean name?), line 2",
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
fn addresses_are_not_shared() {
    section(
        "[server]\nlisten = [\"0.0.0.0:80\", \"127.0.0.1:80\"]",
        &["server.listen[1]: is taken by one before it, line 2"],
    );
    section(
        "[server]\nlisten = [\"0.0.0.0:90\"]\n[admin]\nlisten = \"127.0.0.1:90\"",
        &[
            "admin.listen: is taken by server.listen[0] too (a port of its own: who reaches it changes roles), line 4",
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
fn certificates_of_clients_need_authorities_and_both_halves() {
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
fn a_token_of_the_admin_address_is_long() {
    let admin = |text: &str, expected: &[&str]| section(&format!("[admin]\n{text}"), expected);
    admin("token = \"0123456789abcdef\"\nhosts = [\"gate.example\"]", &[]);
    admin("token = \"short\"", &["admin.token: can be guessed (at least 16 bytes), line 2"]);
    admin("token = \"0123456789abcdef\"\ntoken_file = \"f\"", &[]);
    admin(
        "hosts = [\"http://a\"]",
        &["admin.hosts[0]: is no host name (a name without scheme and port), line 2"],
    );
}

#[test]
fn a_backend_is_not_the_gateway_itself() {
    let one = |listen: &str, url: &str| {
        let text = format!("[server]\nlisten = [\"{listen}\"]\n[[backends]]\nname = \"a\"\n");
        let problems = Settings::parse(&format!("{text}url = \"{url}\"\n")).err();
        problems.is_some_and(|all| all[0].to_string().contains("where this gateway itself listens"))
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
fn numbers_have_bounds() {
    let cases = [
        ("[slo]\nttft_seconds = nan", "slo.ttft_seconds: is NaN (0.001 to 86400 seconds)"),
        ("[slo]\ntpot_seconds = inf", "slo.tpot_seconds: is inf (0.001 to 86400 seconds)"),
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
            "backends[0].decode_prior.per_token_seconds: no such key (did you mean per_kv_token_seconds?), line 5",
        ],
    );
    backend(
        "kv_capacity_tokens = 0",
        &["backends[0].kv_capacity_tokens: is 0 (1 to 1000000000), line 4"],
    );
}

#[test]
fn a_word_that_is_no_log_level_would_silence_the_log() {
    section(
        "[log]\nlevel = \"inof\"",
        &["log.level: \"inof\" is no level (did you mean info?), line 2"],
    );
    section("[log]\nlevel = \"warn,tidegate_proxy=debug\"", &[]);
}

#[test]
fn a_key_has_one_source_and_cannot_be_guessed() {
    let key = |more: &str, expected: &[&str]| {
        section(&format!("[[auth.keys]]\nname = \"n\"\n{more}"), expected);
    };
    key("key = \"long-enough\"", &[]);
    key("key_file = \"/run/secrets/key\"", &[]);
    key("", &["auth.keys[0].key: is missing (or key_file, a file that holds it), line 1"]);
    key("key = \"short\"", &["auth.keys[0].key: can be guessed (at least 8 bytes), line 3"]);
    key(
        "key = \"long enough\"",
        &["auth.keys[0].key: no header can carry (letters, digits, signs), line 3"],
    );
    key(
        "key = \"long-enough\"\nkey_file = \"f\"",
        &["auth.keys[0].key_file: is given beside key (one of both), line 4"],
    );
    key(
        "key = \"long-enough\"\n[[auth.keys]]\nname = \"m\"\nkey = \"long-enough\"",
        &["auth.keys[1].key: is the same as auth.keys[0].key (give each its own), line 6"],
    );
}

#[test]
fn a_key_is_shown_to_nobody() {
    let text = format!("[[auth.keys]]\nname = \"n\"\nkey = \"sk-secret-1\"\n{GOOD}");
    assert!(!format!("{:?}", good(&text)).contains("secret"));
    section(
        "[auth]\nkeys = \"sk-secret-1\"",
        &["auth.keys: is of the wrong type (should be a list), line 2"],
    );
}

#[test]
fn after_many_mistakes_it_stops() {
    let text: String = (0..100).map(|i| format!("zz{i} = 1\n")).collect();
    let problems = Settings::parse(&text).unwrap_err();
    assert_eq!(problems.len(), 65);
    assert_eq!(problems[0].to_string(), "has more than 64 mistakes: no further ones are told");
}

#[test]
fn a_template_needs_its_tokenizer() {
    section(
        "[[models]]\nname = \"m\"\nchat_template = \"t\"",
        &["models[0].tokenizer: is missing (the path of its tokenizer.json), line 1"],
    );
    section(
        "[[models]]\nname = \"m\"\n[[models]]\nname = \"m\"",
        &["models[1].name: is the same as models[0].name (give each its own), line 4"],
    );
}

#[test]
fn a_backend_has_a_label_and_a_base_url() {
    let url = |url: &str, problem: &str| {
        let text = format!("[[backends]]\nname = \"a\"\nurl = \"{url}\"");
        let line = format!("backends[0].url: {problem} (http://host:port), line 3");
        check(&text, if problem.is_empty() { vec![] } else { vec![line.as_str()] }.as_slice());
    };
    url("http://engine.example", "");
    url("http://[::1]:8000/", "");
    url("engine:8000", "has neither http nor https");
    url("http://engine:8000/v1?a=b", "has a query");
    url("http://engine:80000", "has no port from 1 to 65535");
    url("http://engine:0", "has no port from 1 to 65535");
    url("http://me:secret@engine", "has a user");
    url("http://eng ine", "is no URL");
    check(
        "[[backends]]\nname = \"a b\"\nurl = \"http://e\"\n[[backends]]",
        &[
            "backends[0].name: is no label (1 to 63 of a-z, A-Z, 0-9, '.', '_', '-'), line 2",
            "backends[1].name: is missing (it shows in logs and metrics), line 4",
            "backends[1].url: is missing (http://host:port), line 4",
        ],
    );
}

#[test]
fn https_needs_authorities() {
    let engine = "[[backends]]\nname = \"a\"\nurl = \"https://engine\"";
    check(
        engine,
        &[
            "backends[0].url: needs upstream.ca_file (PEM; tidegate trusts no built-in ones), line 3",
        ],
    );
    check(&format!("[upstream]\nca_file = \"ca.pem\"\n{engine}"), &[]);
}

#[test]
fn an_engine_is_listed_once() {
    let url = "url = \"HTTP://127.0.0.1\"";
    check(
        &format!(
            "[[backends]]\nname = \"a\"\n{url}\n[[backends]]\nname = \"b\"\nurl = \"http://127.0.0.1:80/\""
        ),
        &["backends[1].url: is the same engine as backends[0].url (one entry an engine), line 6"],
    );
}

#[test]
fn roles_and_launch_flags_must_agree() {
    let kv_role = |kv_role: &str| format!("{NIXL}kv_role = \"{kv_role}\"\n");
    backend(
        "role = \"prefill\"",
        &[
            "backends[0].role: cannot be prefill (engine, connector and kv_role allow mixed), line 4",
        ],
    );
    backend("pin = true", &["backends[0].pin: has no role to keep (add role), line 4"]);
    backend(
        "connector = \"nixl\"",
        &["backends[0].connector: is vLLM's (add engine = \"vllm\"), line 4"],
    );
    backend(
        "engine = \"vllm\"\nkv_role = \"kv_producer\"",
        &["backends[0].kv_role: is a connector's (add connector = \"nixl\"), line 5"],
    );
    let decodes = "engine = \"vllm\"\nconnector = \"nixl\"\nkv_role = \"kv_consumer\"";
    two(
        &format!("{}role = \"decode\"", kv_role("kv_producer")),
        decodes,
        &[
            "backends[0].role: cannot be decode (engine, connector and kv_role allow prefill), line 7",
        ],
    );
    backend(&format!("{NIXL}role = \"decode\"\npin = true"), &[]);
}

#[test]
fn a_group_is_alike_and_somebody_decodes() {
    let with = |more: &str| format!("{NIXL}{more}");
    two(
        &with("group = \"g\""),
        "group = \"g\"",
        &[
            "backends[1].group: differs in engine from backends[0] (only alike engines can hand over: another group), line 10",
            "backends[1].group: differs in connector from backends[0] (only alike engines can hand over: another group), line 10",
        ],
    );
    two(
        &with("group = \"g\"\nversion = \"1\""),
        &with("group = \"g\"\nversion = \"2\""),
        &[
            "backends[1].group: differs in version from backends[0] (only alike engines can hand over: another group), line 13",
        ],
    );
    let nobody = "leaves nobody in its group to decode (a group is one engine, connector, version, list of models)";
    let prefills = with("role = \"prefill\"\npin = true");
    two(&prefills, &prefills, &[&format!("backends[0].pin: {nobody}, line 7")]);
    two(&prefills, &with("role = \"prefill\""), &[]);
    backend(
        &with("kv_role = \"kv_producer\""),
        &[&format!("backends[0].kv_role: {nobody}, line 6")],
    );
}

#[test]
fn a_profile_fills_in_what_is_not_said() {
    let text = format!(
        "{GOOD}profile = \"llama8b-h100\"\nstreams_max = 64\n\
         [backends.decode_prior]\nbase_seconds = 0.5"
    );
    let settings = good(&text);
    let backend = &settings.backends[0];
    assert_eq!((backend.streams_max, backend.kv_capacity), (64, Some(Tokens(300_000))));
    assert_eq!(backend.decode_prior.base, Seconds(0.5));
    assert_eq!(backend.decode_prior.per_kv_token, Seconds(48.9e-9));
    self::backend(
        "profile = \"gpt\"",
        &[
            "backends[0].profile: \"gpt\" is unknown (one of llama70b-h100x4, llama70b-a100x4, llama8b-h100, fast), line 4",
        ],
    );
}

#[test]
fn profiles_are_the_simulators() {
    for profile in tidegate_sim::Profile::ALL {
        let settings = good(&format!("{GOOD}profile = {:?}", profile.name));
        let backend = &settings.backends[0];
        let (prefill, decode) = (profile.prefill_model(), profile.decode_model());
        let pairs = [
            (backend.prefill_prior.base, prefill.base),
            (backend.prefill_prior.per_token, prefill.per_token),
            (backend.prefill_prior.per_attention, prefill.per_attention),
            (backend.decode_prior.base, decode.base),
            (backend.decode_prior.per_stream, decode.per_stream),
            (backend.decode_prior.per_kv_token, decode.per_kv_token),
        ];
        for (ours, theirs) in pairs {
            let near = (ours / theirs - 1.0).abs() < 0.05;
            assert!(near, "{}: {ours:?} is not {theirs:?}", profile.name);
        }
        assert!(backend.decode_prior.free_streams.abs_diff(decode.free_streams) <= 2);
        assert_eq!(backend.kv_capacity, Some(profile.kv_capacity));
        assert_eq!(backend.streams_max, profile.max_num_seqs);
    }
}

#[test]
fn launch_flags_decide_who_may_change_a_role() {
    let of = |more: &str| {
        let text = format!("{GOOD}{more}\n[[backends]]\nname = \"b\"\nurl = \"http://b\"\n{NIXL}");
        let backend = good(&text).backends.swap_remove(0);
        (backend.capability(), backend.allowed_roles())
    };
    let only = |role| (RoleCapability::Fixed, RoleSet::EMPTY.with(role));
    assert_eq!(of(""), only(Role::Mixed));
    assert_eq!(of(NIXL), (RoleCapability::Instant, RoleSet::ANY));
    assert_eq!(of(&format!("{NIXL}kv_role = \"kv_producer\"")), only(Role::Prefill));
    assert_eq!(of(&format!("{NIXL}kv_role = \"kv_consumer\"")), only(Role::Decode));
    for connector in ["nixl_push", "mooncake", "offloading", "shared_store"] {
        let vllm = format!("engine = \"vllm\"\nconnector = \"{connector}\"\n");
        assert_eq!(of(&vllm), (RoleCapability::Instant, RoleSet::ANY), "{connector}");
        let producer = format!(
            "{vllm}kv_role = \"kv_producer\"\n[[backends]]\nname = \"c\"\nurl = \"http://c\"\n{vllm}"
        );
        assert_eq!(of(&producer), only(Role::Prefill), "{connector}");
        assert_eq!(of(&format!("{vllm}kv_role = \"kv_consumer\"")), only(Role::Decode));
    }
    for style in ["context_first", "generation_first"] {
        let of = of(&format!("{TRTLLM}schedule_style = \"{style}\""));
        assert_eq!(of, (RoleCapability::Instant, RoleSet::ANY));
    }
}

#[test]
fn what_hands_over_differently_does_not_pair() {
    let push = "engine = \"vllm\"\nconnector = \"nixl_push\"";
    let text = format!("{GOOD}{NIXL}[[backends]]\nname = \"b\"\nurl = \"http://b\"\n{push}");
    assert_eq!(good(&text).groups(), [GroupId(0), GroupId(1)]);
    two(
        &format!("{NIXL}group = \"g\""),
        &format!("{push}\ngroup = \"g\""),
        &[
            "backends[1].group: differs in connector from backends[0] (only alike engines can hand over: another group), line 12",
        ],
    );
}

#[test]
fn what_is_one_engines_is_not_anothers() {
    backend(
        "engine = \"sglang\"\nconnector = \"mooncake\"",
        &["backends[0].connector: is vLLM's (add engine = \"vllm\"), line 5"],
    );
    let hint = "is TensorRT-LLM's (add connector = \"transceiver\"), line 4";
    for (key, value) in [
        ("schedule_style", "generation_first"),
        ("disagg_key", "hush-hush"),
        ("disagg_key_file", "/run/secrets/disagg"),
    ] {
        backend(&format!("{key} = \"{value}\""), &[&format!("backends[0].{key}: {hint}")]);
    }
}

#[test]
fn a_key_between_engines_is_given_once_and_shown_to_nobody() {
    let key = format!("{TRTLLM}disagg_key = \"hush-hush\"\n");
    assert!(!format!("{:?}", good(&format!("{GOOD}{key}"))).contains("hush"));
    backend(
        &format!("{key}disagg_key_file = \"f\""),
        &["backends[0].disagg_key_file: is given beside disagg_key (one of both), line 7"],
    );
    backend(
        &format!("{TRTLLM}disagg_key = \"\""),
        &["backends[0].disagg_key: is empty (the engines' own), line 6"],
    );
    two(
        &format!("{key}group = \"g\""),
        &format!("{TRTLLM}group = \"g\""),
        &[
            "backends[1].group: differs in disagg_key from backends[0] (only alike engines can hand over: another group), line 13",
        ],
    );
}

#[test]
fn groups_follow_engine_connector_version_and_models_unless_said() {
    let mut text = String::new();
    let members = [
        ("", 0),
        (NIXL, 1),
        ("engine = \"vllm\"\nconnector = \"nixl\"\nversion = \"0.33.0\"", 2),
        (NIXL, 1),
        ("models = [\"x\", \"y\"]", 3),
        ("models = [\"y\", \"x\"]", 3),
        ("group = \"g\"", 4),
        ("group = \"g\"", 4),
    ];
    for (i, (more, _)) in members.iter().enumerate() {
        text += &format!("[[backends]]\nname = \"b{i}\"\nurl = \"http://b{i}\"\n{more}\n");
    }
    let expected: Vec<GroupId> = members.iter().map(|(_, group)| GroupId(*group)).collect();
    assert_eq!(good(&text).groups(), expected);
}

#[test]
fn without_spill_the_planner_counts_on_none() {
    assert!(good(GOOD).planner_params().spill > 0.0);
    let settings = good(&format!("[placement]\nspill = false\n{GOOD}"));
    assert_eq!(settings.planner_params().spill, 0.0);
}
