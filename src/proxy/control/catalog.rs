//! Which backend serves which models, what the filters and clients get to know of that. Pools are
//! numbered in the order in which their models were first seen and never renumbered: requests in
//! flight hold the numbers.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tidegate_cost::PrefillModel;
use tidegate_engine::{ModelCard, merge_models};
use tidegate_filters::{Directory, ModelEntry, ModelTokenizer};
use tidegate_terms::{BackendId, PoolId, Tokens};

use crate::fleet::{POOLS_MAX, PoolEntry, RoutingTable};

/// A model that the operator said something about.
#[derive(Clone)]
pub struct KnownModel {
    /// Its name.
    pub name: Arc<str>,
    /// Its context length, if the operator knows better than the engine.
    pub max_model_len: Option<Tokens>,
    /// Its tokenizer, if there is one.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
}

/// All models.
pub struct Catalog {
    /// By backend: what it serves.
    served: Vec<Vec<ModelCard>>,
    /// By backend: its own list, for clients.
    answers: Vec<Bytes>,
    /// By backend: the only models that the operator wants from it, if any are named.
    named: Vec<Vec<String>>,
    known: HashMap<Arc<str>, KnownModel>,
}

impl Catalog {
    /// A catalog in which each backend serves what the operator named for it, or nothing until it
    /// says so itself.
    pub fn new(named: Vec<Vec<String>>, known: Vec<KnownModel>) -> Catalog {
        let card = |id: &String| ModelCard { id: id.clone(), max_model_len: None };
        Catalog {
            served: named.iter().map(|names| names.iter().map(card).collect()).collect(),
            answers: named.iter().map(|names| list_of(names)).collect(),
            named,
            known: known.into_iter().map(|model| (Arc::clone(&model.name), model)).collect(),
        }
    }

    /// A backend said what it serves. False if that is what it said before.
    pub fn update(&mut self, backend: BackendId, mut cards: Vec<ModelCard>, answer: Bytes) -> bool {
        let slot = backend.index();
        let named = &self.named[slot];
        if !named.is_empty() {
            cards.retain(|card| named.contains(&card.id));
        }
        if self.served[slot] == cards {
            return false;
        }
        self.served[slot] = cards;
        self.answers[slot] = answer;
        true
    }

    /// Write the pools into a table: those it has keep their numbers.
    pub fn pools(&self, table: &mut RoutingTable) {
        let everyone = (0..self.served.len()).map(|slot| BackendId(slot as u16)).collect();
        let mut pools = std::mem::take(&mut table.pools);
        if pools.is_empty() {
            pools.push(pool("", Vec::new()));
        }
        pools[0].backends = everyone;
        for pool in pools.iter_mut().skip(1) {
            pool.backends.clear();
        }
        for (model, backends) in self.by_model() {
            let known = pools.iter().skip(1).position(|pool| *pool.model == *model);
            match known {
                Some(slot) => pools[slot + 1].backends = backends,
                None if pools.len() < POOLS_MAX => pools.push(pool(model, backends)),
                None => tracing::warn!(model, "too many models: this one is not served"),
            }
        }
        let numbers = pools.iter().enumerate().skip(1).filter(|(_, p)| !p.backends.is_empty());
        table.models =
            numbers.map(|(slot, p)| (Arc::clone(&p.model), PoolId(slot as u16))).collect();
        table.pools = pools;
    }

    /// What the filters know: every model that is served, with its limit and tokenizer.
    pub fn directory(&self) -> Directory {
        let mut models = HashMap::new();
        for card in self.served.iter().flatten() {
            let known = self.known.get(card.id.as_str());
            let said = known.and_then(|known| known.max_model_len);
            let entry = ModelEntry {
                max_model_len: said.or(card.max_model_len),
                tokenizer: known.and_then(|known| known.tokenizer.clone()),
            };
            models.entry(Arc::from(card.id.as_str())).or_insert(entry);
        }
        Directory { models }
    }

    /// The list for clients.
    pub fn answer(&self) -> Bytes {
        let answers: Vec<&[u8]> =
            self.answers.iter().filter(|answer| !answer.is_empty()).map(|a| &a[..]).collect();
        merge_models(&answers)
    }

    fn by_model(&self) -> BTreeMap<&str, Vec<BackendId>> {
        let mut models: BTreeMap<&str, Vec<BackendId>> = BTreeMap::new();
        for (slot, cards) in self.served.iter().enumerate() {
            for card in cards {
                models.entry(card.id.as_str()).or_default().push(BackendId(slot as u16));
            }
        }
        models
    }
}

/// A list in the engines' form, for models that no engine has confirmed yet.
fn list_of(names: &[String]) -> Bytes {
    if names.is_empty() {
        return Bytes::new();
    }
    let card =
        |id: &String| serde_json::json!({ "id": id, "object": "model", "owned_by": "tidegate" });
    let cards: Vec<_> = names.iter().map(card).collect();
    Bytes::from(serde_json::json!({ "object": "list", "data": cards }).to_string())
}

fn pool(model: &str, backends: Vec<BackendId>) -> PoolEntry {
    PoolEntry { model: model.into(), backends, prefill: PrefillModel::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_terms::Plan;

    fn card(id: &str) -> ModelCard {
        ModelCard { id: id.to_owned(), max_model_len: Some(Tokens(100)) }
    }

    #[test]
    fn an_operator_may_name_the_only_models_wanted_of_a_backend() {
        let mut catalog = Catalog::new(vec![vec!["b".to_owned()]], vec![]);
        assert!(catalog.directory().find("b").is_some(), "served before the engine says so");
        assert!(catalog.update(BackendId(0), vec![card("a"), card("b")], Bytes::new()));
        assert!(catalog.directory().find("a").is_none());
        assert_eq!(catalog.directory().find("b").unwrap().1.max_model_len, Some(Tokens(100)));
    }

    #[test]
    fn pools_keep_their_numbers_when_models_come_and_go() {
        let mut table = RoutingTable {
            plan: Plan::first(vec![]),
            entries: vec![],
            pools: vec![],
            models: HashMap::new(),
        };
        let mut catalog = Catalog::new(vec![vec![]; 2], vec![]);
        catalog.update(BackendId(0), vec![card("b")], Bytes::new());
        catalog.pools(&mut table);
        let b = table.pool_for(Some("b")).unwrap();
        catalog.update(BackendId(1), vec![card("a"), card("b")], Bytes::new());
        catalog.pools(&mut table);
        assert_eq!(table.pool_for(Some("b")), Some(b));
        assert_eq!(table.backends(b), [BackendId(0), BackendId(1)]);
        assert_eq!(table.backends(table.pool_for(Some("a")).unwrap()), [BackendId(1)]);
        catalog.update(BackendId(1), vec![card("b")], Bytes::new());
        catalog.pools(&mut table);
        assert_eq!(table.pool_for(Some("a")), None, "nobody serves it any more");
        assert_eq!(table.pool_for(Some("b")), Some(b));
        assert_eq!(table.backends(table.pool_for(None).unwrap()).len(), 2);
    }
}
