//! The models of each backend, the filters' directory of them, and the clients' model list. A pool
//! keeps its number while its model is served; numbers are not reused, because in-flight requests
//! refer to pools by number.

use bytes::Bytes;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tidegate_engine::{Kinds, ModelCard, cards_of, redact_answer};
use tidegate_filters::{Directory, ModelEntry, ModelTokenizer};
use tidegate_scheduler::cost::PrefillModel;
use tidegate_settings::BackendSettings;
use tidegate_types::{BackendId, PoolId, Tokens};

use crate::backends::fleet::{EVERYONE, PoolEntry, RoutingTable};
use crate::dispatch::model_list::ModelList;

/// A model that the settings mention.
#[derive(Clone)]
pub struct KnownModel {
    pub name: Arc<str>,
    /// Further names by which clients may address it.
    pub aliases: Vec<Arc<str>>,
    /// Context length from the settings; replaces the length that engines report.
    pub max_model_len: Option<Tokens>,
    /// Its tokenizer, if configured.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
}

/// The models and paths that the settings name for one backend.
#[derive(Clone, Default)]
pub struct ConfiguredModels {
    /// The only models to use on this backend; empty: all that the engine reports.
    pub models: Vec<String>,
    pub kinds: Kinds,
    /// Paths it serves beside those of its kind.
    pub paths: Vec<String>,
}

impl ConfiguredModels {
    /// Returns those in a backend's settings.
    pub fn of(backend: &BackendSettings) -> ConfiguredModels {
        ConfiguredModels {
            models: backend.models.clone(),
            kinds: Kinds::of(backend.kind()),
            paths: backend.paths.clone(),
        }
    }
}

/// The models of all backends.
pub struct Catalog {
    /// Model cards by backend slot.
    served: Vec<Vec<ModelCard>>,
    /// The engine's `/v1/models` answer by backend slot, as bytes.
    answers: Vec<Bytes>,
    /// By backend slot.
    configured: Vec<ConfiguredModels>,
    /// By backend slot: whether it takes new work; false while it is being removed.
    is_present: Vec<bool>,
    known: HashMap<Arc<str>, KnownModel>,
    /// The number of the next new pool.
    next: PoolId,
}

/// Identity of a pool: model name, and the context length that its backends exceed.
type Key = (Arc<str>, Option<Tokens>);

impl Catalog {
    /// A catalog in which each backend serves the models named in the settings; a backend without
    /// named models serves nothing until its engine has reported.
    pub fn new(configured: Vec<ConfiguredModels>, known: Vec<KnownModel>) -> Catalog {
        let card = |id: &String| ModelCard { id: id.clone(), max_model_len: None };
        Catalog {
            served: configured
                .iter()
                .map(|configured| configured.models.iter().map(card).collect())
                .collect(),
            answers: vec![Bytes::new(); configured.len()],
            is_present: vec![true; configured.len()],
            configured,
            known: by_name(known),
            next: PoolId(EVERYONE.0 + 1),
        }
    }

    /// Replaces the models that the settings describe.
    pub fn set_known(&mut self, known: Vec<KnownModel>) {
        self.known = by_name(known);
    }

    /// Adds a backend that joins, in place of the one that had its slot.
    pub fn join(&mut self, backend: BackendId, configured: ConfiguredModels) {
        let card = |id: &String| ModelCard { id: id.clone(), max_model_len: None };
        backend.put(&mut self.served, configured.models.iter().map(card).collect());
        backend.put(&mut self.answers, Bytes::new());
        backend.put(&mut self.configured, configured);
        backend.put(&mut self.is_present, true);
    }

    /// Removes a backend from every pool.
    pub fn leave(&mut self, backend: BackendId) {
        let slot = backend.index();
        self.served[slot] = Vec::new();
        self.answers[slot] = Bytes::new();
        self.configured[slot] = ConfiguredModels::default();
        self.is_present[slot] = false;
    }

    /// Takes the models that a backend reported. Returns whether they changed.
    pub fn update(&mut self, backend: BackendId, mut cards: Vec<ModelCard>, answer: Bytes) -> bool {
        let slot = backend.index();
        let named = &self.configured[slot].models;
        if !named.is_empty() {
            cards.retain(|card| named.contains(&card.id));
        }
        if self.served[slot] == cards {
            return false;
        }
        self.served[slot] = cards;
        self.answers[slot] = match redact_answer(&answer) {
            Cow::Owned(clean) => Bytes::from(clean),
            Cow::Borrowed(_) => answer,
        };
        true
    }

    /// Writes the pools into `table`. Existing pools keep their number and demand; pools of models
    /// that are no longer served are removed.
    pub fn pools(&mut self, table: &mut RoutingTable) {
        let before = std::mem::take(&mut table.pools);
        let mut before: HashMap<Key, PoolEntry> =
            before.into_iter().map(|pool| ((Arc::clone(&pool.model), pool.above), pool)).collect();
        let slots = (0..self.served.len()).filter(|slot| self.is_present[*slot]);
        let everyone = slots.map(|slot| BackendId(slot as u16)).collect();
        let first =
            before.remove(&(Arc::from(""), None)).unwrap_or_else(|| pool(EVERYONE, "", None));
        let mut pools = vec![PoolEntry { backends: everyone, ..first }];
        let mut make = |next: &mut PoolId, model: &str, above, backends| {
            let known = before.remove(&(Arc::from(model), above));
            let entry = known.unwrap_or_else(|| {
                let id = *next;
                next.0 += 1;
                pool(id, model, above)
            });
            PoolEntry { backends, longer: Vec::new(), ..entry }
        };
        let mut models = HashMap::new();
        for (model, backends) in by_model(&self.served) {
            let all = backends.iter().map(|(id, _)| *id).collect();
            let mut main = make(&mut self.next, model, None, all);
            for context in shorter_contexts(&backends) {
                let above = backends.iter().filter(|(_, len)| len.is_none_or(|len| len > context));
                let above = above.map(|(id, _)| *id).collect();
                let longer = make(&mut self.next, model, Some(context), above);
                main.longer.push((context, longer.id));
                pools.push(longer);
            }
            models.insert(Arc::clone(&main.model), main.id);
            pools.push(main);
        }
        pools.sort_unstable_by_key(|pool| pool.id);
        table.models = models;
        table.pools = pools;
    }

    /// The filters' view: every served model with its context limit and tokenizer, every alias of a
    /// served model, and the served paths.
    pub fn directory(&self) -> Directory {
        let mut models = HashMap::new();
        for (model, backends) in by_model(&self.served) {
            let known = self.known.get(model);
            let configured = known.and_then(|known| known.max_model_len);
            let longest = backends.iter().map(|(_, len)| *len).reduce(longer).flatten();
            let entry = ModelEntry {
                max_model_len: configured.or(longest),
                tokenizer: known.and_then(|known| known.tokenizer.clone()),
            };
            models.insert(Arc::from(model), entry);
        }
        let aliases = self.known.values().flat_map(|known| {
            known.aliases.iter().map(|alias| (Arc::clone(alias), Arc::clone(&known.name)))
        });
        let aliases = aliases
            .filter(|(alias, name)| models.contains_key(name) && !models.contains_key(alias));
        // While no backend is known, no path is refused by the filters: the request ends with 503.
        let kinds = match self.is_present.contains(&true) {
            true => self
                .configured
                .iter()
                .fold(Kinds::NONE, |kinds, configured| kinds.or(configured.kinds)),
            false => Kinds::ALL,
        };
        Directory {
            aliases: aliases.collect(),
            kinds,
            paths: self
                .configured
                .iter()
                .flat_map(|configured| configured.paths.iter().cloned())
                .collect(),
            models,
        }
    }

    /// The model lists for clients: all models that can be requested, with the engine's own JSON
    /// where it was reported. If several backends serve a name, the first one's JSON is used.
    pub fn list(&self) -> ModelList {
        let mut list = ModelList::default();
        for (served, answer) in self.served.iter().zip(&self.answers) {
            for (id, card) in cards_of(answer) {
                if served.iter().any(|known| known.id == id) {
                    list.add(&id, card.to_owned(), true);
                }
            }
        }
        for card in self.served.iter().flatten() {
            // Short names, and models that no engine has reported yet.
            let named =
                self.configured.iter().any(|configured| configured.models.contains(&card.id));
            list.add(&card.id, own_card(&card.id, None, card.max_model_len), named);
        }
        let mut aliases: Vec<_> = self.directory().aliases.into_iter().collect();
        aliases.sort();
        for (alias, model) in aliases {
            list.add(&alias, own_card(&alias, Some(&model), None), true);
        }
        list.finish()
    }
}

fn by_name(known: Vec<KnownModel>) -> HashMap<Arc<str>, KnownModel> {
    known.into_iter().map(|model| (Arc::clone(&model.name), model)).collect()
}

/// JSON for a name that no engine lists.
fn own_card(id: &str, root: Option<&str>, max_model_len: Option<Tokens>) -> String {
    let mut card = serde_json::json!({ "id": id, "object": "model", "owned_by": "tidegate" });
    if let Some(root) = root {
        card["root"] = root.into();
    }
    if let Some(len) = max_model_len {
        card["max_model_len"] = len.get().into();
    }
    card.to_string()
}

/// The backends of each model, with the context length they report.
fn by_model(served: &[Vec<ModelCard>]) -> BTreeMap<&str, Vec<(BackendId, Option<Tokens>)>> {
    let mut models: BTreeMap<&str, Vec<(BackendId, Option<Tokens>)>> = BTreeMap::new();
    for (slot, cards) in served.iter().enumerate() {
        for card in cards {
            let backends = models.entry(card.id.as_str()).or_default();
            let id = BackendId(slot as u16);
            if backends.last().is_none_or(|(last, _)| *last != id) {
                backends.push((id, card.max_model_len));
            }
        }
    }
    models
}

/// The longer of two context lengths; `None` (unknown) counts as unlimited.
fn longer(one: Option<Tokens>, other: Option<Tokens>) -> Option<Tokens> {
    one.zip(other).map(|(one, other)| one.max(other))
}

/// Context lengths that at least one other backend exceeds, in ascending order.
fn shorter_contexts(backends: &[(BackendId, Option<Tokens>)]) -> Vec<Tokens> {
    let mut contexts: Vec<Tokens> = backends.iter().filter_map(|(_, len)| *len).collect();
    contexts.sort_unstable();
    contexts.dedup();
    if backends.iter().all(|(_, len)| len.is_some()) {
        contexts.pop();
    }
    contexts
}

fn pool(id: PoolId, model: &str, above: Option<Tokens>) -> PoolEntry {
    PoolEntry {
        id,
        model: model.into(),
        above,
        backends: Vec::new(),
        longer: Vec::new(),
        prefill: PrefillModel::default(),
        demand: Arc::default(),
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
