//! Tables of settings, reported facts and resulting groups.

use super::*;

fn configured(name: &str) -> ConfiguredBackend {
    ConfiguredBackend {
        name: name.to_owned(),
        group: GroupId(0),
        group_is_named: false,
        splits: true,
        serves_colocated: true,
        version: None,
        models: Vec::new(),
        mode: None,
    }
}

/// Parses `version model max_model_len`; `-` is a fact not reported, `?` an engine not reached.
fn reported(text: &str) -> Option<Facts> {
    if text == "?" {
        return None;
    }
    let mut words = text.split(' ').map(|word| Some(word.to_owned()).filter(|word| word != "-"));
    let version = words.next().flatten();
    let id = words.next().flatten();
    let length = words.next().flatten().and_then(|length| length.parse().ok());
    let models = id.map(|id| ServedModel { id, max_model_len: length });
    Some(Facts { version, models: models.into_iter().collect(), ..Facts::default() })
}

/// Checks groups and misfit messages of engines in one configured group.
fn check(engines: &[&str], groups: &[u16], misfits: &[&str]) {
    let configured: Vec<ConfiguredBackend> =
        (0..engines.len()).map(|i| configured(&format!("e{i}"))).collect();
    let reported: Vec<Option<Facts>> = engines.iter().map(|text| reported(text)).collect();
    let results = assign_groups(&configured, &reported, &[]);
    let found: Vec<u16> = results.iter().map(|fit| fit.group.0).collect();
    assert_eq!(found, groups, "{engines:?}");
    let found: Vec<String> =
        results.iter().map(|fit| fit.misfits.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(found, misfits, "{engines:?}");
    assert!(results.iter().all(|fit| !fit.excluded));
}

#[test]
fn equal_engines_share_a_group_and_different_ones_get_their_own() {
    check(&["1 m 8", "1 m 8"], &[0, 0], &["", ""]);
    check(
        &["1 m 8", "2 m 8", "2 m 8"],
        &[1, 0, 0],
        &["group: its version is 1, that of e1 is 2", "", ""],
    );
    check(&["1 m 8", "1 other 8"], &[0, 1], &["", "group: its models is other, that of e0 is m"]);
    check(&["1 m 8", "1 m 4"], &[0, 1], &["", "group: its max_model_len is 4, that of e0 is 8"]);
}

#[test]
fn unreported_facts_are_not_compared() {
    check(&["- - -", "1 m 8", "- m -", "1 - -"], &[0, 0, 0, 0], &["", "", "", ""]);
    // Two engines that differ are not joined through a third that reports nothing.
    let alike = ["- - -", "1 m 8", "2 m 8"];
    check(&alike, &[0, 0, 1], &["", "", "group: its version is 2, that of e0 is 1"]);
}

#[test]
fn an_unreached_engine_has_no_hand_off_partner() {
    check(&["1 m 8", "?", "1 m 8", "?"], &[0, 1, 0, 2], &["", "", "", ""]);
    check(&["?", "?"], &[0, 1], &["", ""]);
}

#[test]
fn a_group_keeps_its_number_while_it_has_members() {
    let configured: Vec<ConfiguredBackend> = (0..4).map(|i| configured(&format!("e{i}"))).collect();
    let groups_of = |engines: [&str; 4], before: &[GroupId]| -> Vec<GroupId> {
        let reported: Vec<Option<Facts>> = engines.iter().map(|text| reported(text)).collect();
        assign_groups(&configured, &reported, before).into_iter().map(|fit| fit.group).collect()
    };
    let before = groups_of(["1 m 8", "2 m 8", "1 m 8", "?"], &[]);
    assert_eq!(before, [0, 1, 0, 2].map(GroupId));
    let after = groups_of(["1 m 8", "3 m 8", "1 m 8", "2 m 8"], &before);
    assert_eq!(after, [0, 1, 0, 2].map(GroupId));
    let upgraded = groups_of(["2 m 8", "2 m 8", "1 m 8", "2 m 8"], &after);
    assert_eq!(upgraded, [0, 0, 1, 0].map(GroupId), "the larger half keeps the group's number");
}

#[test]
fn a_contradiction_of_the_settings_is_reported_and_excludes_hand_offs() {
    let mut both = [configured("a"), configured("b")];
    both[0].version = Some("0.33".to_owned());
    both[1].models = vec!["named".to_owned()];
    let results = assign_groups(&both, &[reported("0.32.0 m 8"), reported("0.32.0 m 8")], &[]);
    let lines: Vec<String> =
        results.iter().flat_map(|fit| &fit.misfits).map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "version: the settings have 0.33, the engine reports 0.32.0",
            "models: the settings name named, the engine serves m",
        ]
    );
    assert_ne!(results[0].group, results[1].group);
    assert!(results.iter().all(|fit| !fit.excluded && fit.misfits[0].contradicts()));

    both[0].version = Some("0.32".to_owned());
    both[1].models = vec!["m".to_owned(), "adapter".to_owned()];
    let results =
        assign_groups(&both, &[reported("0.32.0+cpu m 8"), reported("0.32.0+cpu m 8")], &[]);
    assert!(
        results.iter().all(|fit| fit.misfits.is_empty() && fit.group == GroupId(0)),
        "{results:?}"
    );
}

#[test]
fn an_engine_in_the_wrong_mode_receives_no_requests() {
    let mode = |role| Facts { mode: Some(DisaggregationMode::Half(role)), ..Facts::default() };
    let mut both = [configured("a"), configured("b")];
    for (configured, role) in both.iter_mut().zip([Role::Prefill, Role::Decode]) {
        (configured.serves_colocated, configured.mode) = (false, mode_of(role));
    }
    let good = assign_groups(&both, &[Some(mode(Role::Prefill)), Some(mode(Role::Decode))], &[]);
    assert!(good.iter().all(|fit| !fit.excluded && fit.group == GroupId(0)), "{good:?}");
    let swapped =
        assign_groups(&both, &[Some(mode(Role::Prefill)), Some(mode(Role::Prefill))], &[]);
    assert_eq!([swapped[0].excluded, swapped[1].excluded], [false, true]);
    let text = swapped[1].misfits[0].to_string();
    assert_eq!(text, "mode: it must be decode, the engine's disaggregation_mode is prefill");
    // A misfit also excludes a backend that serves no colocated requests.
    both[0].version = Some("1".to_owned());
    let odd = Facts { version: Some("2".to_owned()), ..mode(Role::Prefill) };
    let results = assign_groups(&both, &[Some(odd), Some(mode(Role::Decode))], &[]);
    assert_eq!([results[0].excluded, results[1].excluded], [true, false]);
}

#[test]
fn differences_in_a_named_group_contradict_the_settings() {
    let mut both = [configured("a"), configured("b")];
    both.iter_mut().for_each(|configured| configured.group_is_named = true);
    let facts = [reported("1 m 8"), reported("2 m 8")];
    assert!(assign_groups(&both, &facts, &[])[1].misfits[0].contradicts());
    both.iter_mut().for_each(|configured| configured.group_is_named = false);
    assert!(!assign_groups(&both, &facts, &[])[1].misfits[0].contradicts());
}

#[test]
fn a_short_version_matches_all_its_releases() {
    for (configured, reported, results) in [
        ("0.33.0", "0.33.0", true),
        ("0.33.0", "0.33.0+cu130", true),
        ("v0.33", "0.33.1", true),
        ("0.3", "0.33.0", false),
        ("0.33.0", "0.33", false),
        ("0.33.0", "0.33.01", false),
    ] {
        assert_eq!(is_version(configured, reported), results, "{configured} {reported}");
    }
}

#[test]
fn backends_without_hand_off_are_not_compared() {
    let mut both = [configured("a"), configured("b")];
    both.iter_mut().for_each(|configured| configured.splits = false);
    let results = assign_groups(&both, &[reported("1 m 8"), reported("2 other 4")], &[]);
    assert!(
        results.iter().all(|fit| fit.misfits.is_empty() && fit.group == GroupId(0)),
        "{results:?}"
    );
}

#[test]
fn a_missing_key_is_reported_but_does_not_contradict_the_settings() {
    let key_required = Facts { key_required: Some(401), ..Facts::default() };
    let results = assign_groups(&[configured("a")], &[Some(key_required)], &[]);
    let [misfit] = results[0].misfits.as_slice() else { panic!("{results:?}") };
    assert!(misfit.to_string().contains("401") && misfit.to_string().contains("api_key"));
    assert!(!misfit.contradicts());
}
