//! Errors reported for `[[models]]` and `[[backends]]`, and values derived from them.

use tidegate_types::{GroupId, Role, RoleCapability, RoleSet, Seconds, Tokens};

use super::{GOOD, NIXL, TRTLLM, backend, check, good, section, two};

#[test]
fn a_template_needs_its_tokenizer() {
    section(
        "[[models]]\nname = \"m\"\nchat_template = \"t\"",
        &["models[0].tokenizer: is missing (the path of its tokenizer.json), line 1"],
    );
    section(
        "[[models]]\nname = \"m\"\n[[models]]\nname = \"m\"",
        &["models[1].name: is the same as models[0].name (must be unique), line 4"],
    );
}

#[test]
fn a_backend_has_a_name_and_a_base_url() {
    let url = |url: &str, problem: &str| {
        let text = format!("[[backends]]\nname = \"a\"\nurl = \"{url}\"");
        let line = format!("backends[0].url: {problem} (http://host:port), line 3");
        check(&text, if problem.is_empty() { vec![] } else { vec![line.as_str()] }.as_slice());
    };
    url("http://engine.example", "");
    url("http://[::1]:8000/", "");
    url("engine:8000", "is neither http nor https");
    url("http://engine:8000/v1?a=b", "has a query");
    url("http://engine:80000", "has no port from 1 to 65535");
    url("http://engine:0", "has no port from 1 to 65535");
    url("http://me:secret@engine", "contains user information");
    url("http://eng ine", "is not a URL");
    check(
        "[[backends]]\nname = \"a b\"\nurl = \"http://e\"\n[[backends]]",
        &[
            "backends[0].name: is not a valid label (1 to 63 of a-z, A-Z, 0-9, '.', '_', '-'), line 2",
            "backends[1].name: is missing (the name in logs and metrics), line 4",
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
            "backends[0].url: needs upstream.ca_file (PEM; tidegate trusts no built-in authorities), line 3",
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
        &["backends[1].url: is the same engine as backends[0].url (one entry per engine), line 6"],
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
    backend("pin = true", &["backends[0].pin: requires a role (add role), line 4"]);
    backend(
        "connector = \"nixl\"",
        &["backends[0].connector: requires vLLM (add engine = \"vllm\"), line 4"],
    );
    backend(
        "engine = \"vllm\"\nkv_role = \"kv_producer\"",
        &["backends[0].kv_role: requires a vLLM connector (add connector = \"nixl\"), line 5"],
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
fn a_group_has_one_engine_kind_and_a_decode_backend() {
    let with = |more: &str| format!("{NIXL}{more}");
    two(
        &with("group = \"g\""),
        "group = \"g\"",
        &[
            "backends[1].group: differs in engine from backends[0] (hand-offs need equal engines: use another group), line 10",
            "backends[1].group: differs in connector from backends[0] (hand-offs need equal engines: use another group), line 10",
        ],
    );
    two(
        &with("group = \"g\"\nversion = \"1\""),
        &with("group = \"g\"\nversion = \"2\""),
        &[
            "backends[1].group: differs in version from backends[0] (hand-offs need equal engines: use another group), line 13",
        ],
    );
    let no_decode = "leaves its group without a backend for decode (a group has one engine kind, connector, version and list of models)";
    let prefills = with("role = \"prefill\"\npin = true");
    two(&prefills, &prefills, &[&format!("backends[0].pin: {no_decode}, line 7")]);
    two(&prefills, &with("role = \"prefill\""), &[]);
    backend(
        &with("kv_role = \"kv_producer\""),
        &[&format!("backends[0].kv_role: {no_decode}, line 6")],
    );
}

#[test]
fn a_profile_fills_in_absent_keys() {
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
            "backends[0].profile: \"gpt\" is unknown (one of llama70b-h100x4, llama70b-a100x4, llama8b-h100, fast, qwen3-32b-h20, dynamo-mocker), line 4",
        ],
    );
}

#[test]
fn profiles_equal_those_of_the_simulator() {
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
fn launch_flags_determine_how_a_role_can_change() {
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
fn different_connectors_do_not_form_a_group() {
    let push = "engine = \"vllm\"\nconnector = \"nixl_push\"";
    let text = format!("{GOOD}{NIXL}[[backends]]\nname = \"b\"\nurl = \"http://b\"\n{push}");
    assert_eq!(good(&text).groups(), [GroupId(0), GroupId(1)]);
    two(
        &format!("{NIXL}group = \"g\""),
        &format!("{push}\ngroup = \"g\""),
        &[
            "backends[1].group: differs in connector from backends[0] (hand-offs need equal engines: use another group), line 12",
        ],
    );
}

#[test]
fn keys_of_one_engine_kind_are_refused_for_another() {
    backend(
        "engine = \"sglang\"\nconnector = \"mooncake\"",
        &["backends[0].connector: requires vLLM (add engine = \"vllm\"), line 5"],
    );
    let hint = "requires TensorRT-LLM's transceiver (add connector = \"transceiver\"), line 4";
    for (key, value) in [
        ("schedule_style", "generation_first"),
        ("disagg_key", "hush-hush"),
        ("disagg_key_file", "/run/secrets/disagg"),
    ] {
        backend(&format!("{key} = \"{value}\""), &[&format!("backends[0].{key}: {hint}")]);
    }
}

#[test]
fn a_disaggregation_key_has_one_source_and_is_redacted() {
    let key = format!("{TRTLLM}disagg_key = \"hush-hush\"\n");
    assert!(!format!("{:?}", good(&format!("{GOOD}{key}"))).contains("hush"));
    backend(
        &format!("{key}disagg_key_file = \"f\""),
        &["backends[0].disagg_key_file: is set together with disagg_key (set one of them), line 7"],
    );
    backend(
        &format!("{TRTLLM}disagg_key = \"\""),
        &["backends[0].disagg_key: is empty (the engines' own), line 6"],
    );
    two(
        &format!("{key}group = \"g\""),
        &format!("{TRTLLM}group = \"g\""),
        &[
            "backends[1].group: differs in disagg_key from backends[0] (hand-offs need equal engines: use another group), line 13",
        ],
    );
}

#[test]
fn default_groups_follow_engine_connector_version_and_models() {
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
fn without_spill_the_planner_counts_no_spill_capacity() {
    assert!(good(GOOD).planner_params().spill);
    let settings = good(&format!("[placement]\nspill = false\n{GOOD}"));
    assert!(!settings.planner_params().spill);
}
