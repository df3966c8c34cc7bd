//! The models that are served, and the paths that are there, as the proxy last knew them: a snapshot
//! that is replaced whole. It must never say where a model is served.

use crate::ModelTokenizer;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_engine::Kinds;
use tidegate_engine::paths::{self, Lookup, PathEntry};
use tidegate_types::Tokens;

/// Every model a client may name, and every path it may ask for.
#[derive(Clone, Debug)]
pub struct Directory {
    /// By name.
    pub models: HashMap<Arc<str>, ModelEntry>,
    /// Further names, and the models that they mean.
    pub aliases: HashMap<Arc<str>, Arc<str>>,
    /// The kinds of engine that there are.
    pub kinds: Kinds,
    /// Paths that operators say some backend has beside those of its kind.
    pub paths: Vec<String>,
}

/// What is known of one model.
#[derive(Clone, Debug, Default)]
pub struct ModelEntry {
    /// The longest context, prompt and answer together; `None` if no engine told.
    pub max_model_len: Option<Tokens>,
    /// Its tokenizer; `None`: prompts are estimated from their bytes.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
}

impl Default for Directory {
    /// No model, and the paths of every kind of engine.
    fn default() -> Directory {
        Directory {
            models: HashMap::new(),
            aliases: HashMap::new(),
            kinds: Kinds::ALL,
            paths: Vec::new(),
        }
    }
}

impl Directory {
    /// The model of this name or alias, with its own name as the directory holds it (no copy needed).
    pub fn find(&self, name: &str) -> Option<(&Arc<str>, &ModelEntry)> {
        self.models
            .get_key_value(name)
            .or_else(|| self.models.get_key_value(self.aliases.get(name)?))
    }

    /// The fleet's model, if it has just one.
    pub fn only(&self) -> Option<(&Arc<str>, &ModelEntry)> {
        let mut all = self.models.iter();
        all.next().filter(|_| all.next().is_none())
    }

    /// What is at `path` for `method`, if some engine has it.
    pub fn at(&self, method: &str, path: &str) -> Lookup {
        let listed = || {
            let short = paths::without_slash(path);
            let is_listed = self.paths.iter().any(|pattern| paths::matches(pattern, short));
            (is_listed && !paths::is_administration(short))
                .then(|| PathEntry { endpoint: paths::listed(method), kinds: Kinds::NONE })
        };
        match paths::lookup(method, path) {
            Lookup::Found(served) => match (served.kinds.meets(self.kinds), listed()) {
                // The one that lists it may be the only one that has it.
                (true, _) | (false, Some(_)) => Lookup::Found(served),
                (false, None) => Lookup::Nothing,
            },
            other => listed().map_or(other, Lookup::Found),
        }
    }

    /// Is no model known yet?
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }
}
