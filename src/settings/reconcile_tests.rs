//! Tests of the reconciler: by example, and over random updates of all sources.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn backend(name: &str, url: u8) -> BackendSettings {
    BackendSettings {
        name: name.to_owned(),
        url: format!("http://10.0.0.{url}:8000"),
        ..BackendSettings::default()
    }
}

/// Applies changes as the control loop does, and checks that each is possible.
fn apply(fleet: &mut BTreeMap<String, BackendSettings>, changes: Vec<BackendChange>) {
    for change in changes {
        match change {
            BackendChange::Join(b) => assert!(fleet.insert(b.name.clone(), *b).is_none()),
            BackendChange::Leave(name) => assert!(fleet.remove(&name).is_some()),
            BackendChange::Replace(b) => assert!(fleet.insert(b.name.clone(), *b).is_some()),
        }
    }
}

#[test]
fn a_change_that_failed_is_returned_again_until_it_is_not_desired() {
    let mut all = Reconciler::default();
    all.set(SourceId::File, vec![Ok(backend("a", 1))]);
    assert!(all.again().is_empty());
    let two = || vec![Ok(backend("a", 2)), Ok(backend("b", 3))];
    let (changes, _) = all.set(SourceId::File, two());
    all.failed("a");
    all.failed("b");
    assert_eq!(all.in_force().values().collect::<Vec<_>>(), [&backend("a", 1)]);
    assert_eq!(all.again(), changes);
    assert!(all.again().is_empty(), "both were made");
    all.set(SourceId::File, vec![Ok(backend("a", 1))]);
    all.set(SourceId::File, two());
    all.failed("a");
    all.failed("b");
    let (changes, _) = all.set(SourceId::File, Vec::new());
    assert_eq!(changes, [BackendChange::Leave("a".to_owned())], "the version before, and no b");
}

#[test]
fn a_name_belongs_to_the_source_with_precedence() {
    let mut all = Reconciler::default();
    all.set(SourceId::Dns, vec![Ok(backend("a", 1))]);
    let (changes, bad) = all.set(SourceId::File, vec![Ok(backend("a", 2)), Ok(backend("b", 3))]);
    let expected = [
        BackendChange::Replace(Box::new(backend("a", 2))),
        BackendChange::Join(Box::new(backend("b", 3))),
    ];
    assert_eq!(changes, expected);
    assert!(bad.is_empty());
    assert_eq!(all.source("a"), Some(SourceId::File));
    let (changes, _) = all.set(SourceId::File, Vec::new());
    let expected =
        [BackendChange::Leave("b".to_owned()), BackendChange::Replace(Box::new(backend("a", 1)))];
    assert_eq!(changes, expected);
    assert_eq!((all.source("a"), all.source("b")), (Some(SourceId::Dns), None));
}

#[test]
fn a_bad_entry_keeps_its_old_version_and_the_rest_applies() {
    let mut all = Reconciler::default();
    all.set(SourceId::Watched, vec![Ok(backend("a", 1)), Ok(backend("b", 2))]);
    let wrong = |name: &str| BadEntry { name: name.to_owned(), problem: "no url".to_owned() };
    let desired = vec![Err(wrong("a")), Err(wrong("new")), Ok(backend("c", 3))];
    let (changes, bad) = all.set(SourceId::Watched, desired);
    assert_eq!(
        changes,
        [BackendChange::Leave("b".to_owned()), BackendChange::Join(Box::new(backend("c", 3)))]
    );
    assert_eq!(bad, [wrong("a"), wrong("new")]);
    assert_eq!(all.source("a"), Some(SourceId::Watched));
}

#[test]
fn a_removed_name_stays_hidden_until_it_is_put_again() {
    let mut all = Reconciler::default();
    all.set(SourceId::File, vec![Ok(backend("a", 1))]);
    assert_eq!(all.remove("a"), [BackendChange::Leave("a".to_owned())]);
    assert!(all.set(SourceId::File, vec![Ok(backend("a", 2))]).0.is_empty());
    assert!(all.is_hidden("a"));
    let own = backend("a", 3);
    assert_eq!(all.put(SourceId::Admin, own.clone()), [BackendChange::Join(Box::new(own))]);
    assert_eq!(all.remove("unknown"), []);
    assert!(!all.is_hidden("a") && !all.is_hidden("unknown"));
    // A name of the admin address alone leaves nothing behind.
    all.put(SourceId::Admin, backend("own", 1));
    assert_eq!(all.remove("own"), [BackendChange::Leave("own".to_owned())]);
    assert!(!all.is_hidden("own"));
}

proptest! {
    /// For any input of the sources, the changes transform the fleet into the desired one: names are
    /// unique, each change is applicable, and repeated input causes no change.
    #[test]
    fn changes_lead_to_the_desired_fleet(
        steps in vec((0usize..5, vec((0u8..6, 0u8..4, any::<bool>()), 0..8)), 1..20),
    ) {
        const SOURCES: [SourceId; 5] = [
            SourceId::Admin,
            SourceId::File,
            SourceId::Watched,
            SourceId::Dns,
            SourceId::Kubernetes,
        ];
        let (mut all, mut fleet) = (Reconciler::default(), BTreeMap::new());
        for (source, entries) in steps {
            let entry = |(name, url, good): &(u8, u8, bool)| {
                let name = format!("b{name}");
                match good {
                    true => Ok(backend(&name, *url)),
                    false => Err(BadEntry { name, problem: "bad".to_owned() }),
                }
            };
            let desired: Vec<_> = entries.iter().map(entry).collect();
            let before = fleet.clone();
            let (changes, bad) = all.set(SOURCES[source], desired.clone());
            apply(&mut fleet, changes);
            prop_assert_eq!(&fleet, &all.in_force);
            for (name, backend) in &fleet {
                let source = all.source(name).expect("each has a source");
                prop_assert_eq!(&all.sources[&source][name], backend);
            }
            for wrong in bad.iter().filter(|bad| bad.problem == "bad") {
                let first = desired.iter().flatten().any(|b| b.name == wrong.name);
                if !first && before.contains_key(&wrong.name) {
                    prop_assert!(fleet.contains_key(&wrong.name));
                }
            }
            prop_assert_eq!(all.changes(), []);
        }
    }
}
