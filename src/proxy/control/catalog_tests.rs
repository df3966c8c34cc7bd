//! The catalog while models appear and disappear.

use super::*;
use tidegate_types::Plan;

fn card(id: &str, len: u64) -> ModelCard {
    ModelCard { id: id.to_owned(), max_model_len: Some(Tokens(len)) }
}

fn table() -> RoutingTable {
    let plan = Plan::first(vec![]);
    RoutingTable { plan, entries: vec![], pools: vec![], models: HashMap::new() }
}

fn configured(n: usize) -> Vec<ConfiguredModels> {
    vec![ConfiguredModels::default(); n]
}

#[test]
fn named_models_hide_the_other_models_of_a_backend() {
    let configured =
        ConfiguredModels { models: vec!["b".to_owned()], ..ConfiguredModels::default() };
    let mut catalog = Catalog::new(vec![configured], vec![]);
    assert!(
        catalog.directory().find("b").is_some(),
        "a configured model is served before the engine reports it"
    );
    let answer = Bytes::from_static(br#"{"data":[{"id":"a"},{"id":"b","x":1}]}"#);
    assert!(catalog.update(BackendId(0), vec![card("a", 100), card("b", 100)], answer));
    assert!(catalog.directory().find("a").is_none());
    assert_eq!(catalog.directory().find("b").unwrap().1.max_model_len, Some(Tokens(100)));
    let list = catalog.list();
    assert_eq!(
        list.all, r#"{"object":"list","data":[{"id":"b","x":1}]}"#,
        "only models that can be requested are listed"
    );
    assert!(list.one("a").is_none());
}

#[test]
fn pools_keep_number_and_demand_while_their_model_is_served() {
    let mut table = table();
    let mut catalog = Catalog::new(configured(2), vec![]);
    catalog.update(BackendId(0), vec![card("b", 9)], Bytes::new());
    catalog.pools(&mut table);
    let b = table.pool_for(Some("b")).unwrap();
    let demand = Arc::clone(&table.pool(b).unwrap().demand);
    catalog.update(BackendId(1), vec![card("a", 9), card("b", 9)], Bytes::new());
    catalog.pools(&mut table);
    assert_eq!(table.pool_for(Some("b")), Some(b));
    assert!(Arc::ptr_eq(&demand, &table.pool(b).unwrap().demand));
    assert_eq!(table.backends(b), [BackendId(0), BackendId(1)]);
    let a = table.pool_for(Some("a")).unwrap();
    assert_eq!(table.backends(a), [BackendId(1)]);
    catalog.update(BackendId(1), vec![card("b", 9)], Bytes::new());
    catalog.pools(&mut table);
    assert_eq!(table.pool_for(Some("a")), None, "the model is no longer served");
    assert!(table.pool(a).is_none() && table.backends(a).is_empty());
    assert_eq!(table.pool_for(Some("b")), Some(b));
    assert_eq!(table.backends(table.pool_for(None).unwrap()).len(), 2);
    catalog.update(BackendId(1), vec![card("c", 9), card("b", 9)], Bytes::new());
    catalog.pools(&mut table);
    assert_ne!(
        table.pool_for(Some("c")),
        Some(a),
        "a number is not reused: requests of the old pool may be in flight"
    );
}

#[test]
fn pools_of_removed_models_are_removed() {
    let mut table = table();
    let mut catalog = Catalog::new(configured(2), vec![]);
    for round in 0..40 {
        let cards = (0..50).map(|n| card(&format!("adapter-{round}-{n}"), 9)).collect();
        catalog.update(BackendId(1), cards, Bytes::new());
        catalog.pools(&mut table);
        for n in 0..50 {
            let pool = table.pool_for(Some(&format!("adapter-{round}-{n}"))).unwrap();
            assert_eq!(table.backends(pool), [BackendId(1)]);
        }
        assert_eq!(table.pools.len(), 51);
    }
}

#[test]
fn requests_go_to_a_pool_with_enough_context_or_the_longest() {
    let mut table = table();
    let mut catalog = Catalog::new(configured(4), vec![]);
    for (slot, len) in [(0, 100), (1, 300), (2, 200), (3, 100)] {
        catalog.update(BackendId(slot), vec![card("m", len)], Bytes::new());
    }
    catalog.pools(&mut table);
    let m = table.pool_for(Some("m")).unwrap();
    let takers = |table: &RoutingTable, needed| {
        let pool = table.long_enough(m, Tokens(needed));
        table.backends(pool).iter().map(|id| id.0).collect::<Vec<_>>()
    };
    for (needed, slots) in
        [(1, &[0, 1, 2, 3][..]), (100, &[0, 1, 2, 3]), (101, &[1, 2]), (201, &[1]), (999, &[1])]
    {
        assert_eq!(takers(&table, needed), slots, "{needed}");
    }
    assert_eq!(catalog.directory().find("m").unwrap().1.max_model_len, Some(Tokens(300)));
    // An engine that reports no context length is not limited.
    let unknown = ModelCard { id: "m".to_owned(), max_model_len: None };
    catalog.update(BackendId(3), vec![unknown], Bytes::new());
    catalog.pools(&mut table);
    assert_eq!(takers(&table, 999), [3]);
    assert_eq!(catalog.directory().find("m").unwrap().1.max_model_len, None);
}

#[test]
fn an_alias_exists_while_its_model_is_served() {
    let known = KnownModel {
        name: "m".into(),
        aliases: vec!["gpt-4".into(), "n".into()],
        max_model_len: None,
        tokenizer: None,
    };
    let mut catalog = Catalog::new(configured(1), vec![known]);
    assert!(catalog.directory().find("gpt-4").is_none());
    catalog.update(BackendId(0), vec![card("m", 9), card("n", 8)], Bytes::new());
    let directory = catalog.directory();
    assert_eq!(&**directory.find("gpt-4").unwrap().0, "m");
    assert_eq!(
        &**directory.find("n").unwrap().0,
        "n",
        "a model's own name takes precedence over an alias"
    );
    let list = catalog.list();
    let one = list.one("gpt-4").unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(one).unwrap()["root"], "m");
    assert!(String::from_utf8_lossy(&list.all).contains(r#""id":"gpt-4""#));
}
