//! Directory of served models and available paths: a snapshot that the proxy replaces as a whole.
//! It does not contain the backends of a model.

use crate::ModelTokenizer;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_engine::Kinds;
use tidegate_engine::paths::{self, PathEntry, PathLookup};
use tidegate_types::Tokens;

/// Models that clients may name, and paths that they may use.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Models by name.
    pub models: HashMap<Arc<str>, ModelEntry>,
    /// Aliases, each with its model name.
    pub aliases: HashMap<Arc<str>, Arc<str>>,
    /// Engine kinds in the fleet.
    pub kinds: Kinds,
    /// Path patterns that operators list for backends.
    pub paths: Vec<String>,
}

/// Properties of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelEntry {
    /// Context length in tokens, prompt and output together; `None` if no engine reports it.
    pub max_model_len: Option<Tokens>,
    /// Tokenizer; `None`: prompts are estimated from their bytes.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
}

impl Default for Directory {
    /// No models; the paths of every engine kind.
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
    /// Returns the model of this name or alias, with its own name.
    pub fn find(&self, name: &str) -> Option<(&Arc<str>, &ModelEntry)> {
        self.models
            .get_key_value(name)
            .or_else(|| self.models.get_key_value(self.aliases.get(name)?))
    }

    /// Returns the fleet's model, if there is exactly one.
    pub fn only(&self) -> Option<(&Arc<str>, &ModelEntry)> {
        let mut all = self.models.iter();
        all.next().filter(|_| all.next().is_none())
    }

    /// Looks up `path` for `method` among the fleet's engine kinds.
    pub fn at(&self, method: &str, path: &str) -> PathLookup {
        let listed = || {
            let short = paths::without_slash(path);
            let is_listed = self.paths.iter().any(|pattern| paths::matches(pattern, short));
            (is_listed && !paths::is_administration(short))
                .then(|| PathEntry { endpoint: paths::listed(method), kinds: Kinds::NONE })
        };
        match paths::lookup(method, path) {
            PathLookup::Found(served) => match (served.kinds.intersects(self.kinds), listed()) {
                // A backend that lists the path may be the only one that has it.
                (true, _) | (false, Some(_)) => PathLookup::Found(served),
                (false, None) => PathLookup::Nothing,
            },
            other => listed().map_or(other, PathLookup::Found),
        }
    }

    /// Returns whether no model is known yet.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }
}
