//! The models that are served, as the proxy last knew them: a snapshot that is replaced whole. It
//! must never say where a model is served.

use crate::ModelTokenizer;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_terms::Tokens;

/// Every model a client may name.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// By name.
    pub models: HashMap<Arc<str>, ModelEntry>,
}

/// What is known of one model.
#[derive(Clone, Debug, Default)]
pub struct ModelEntry {
    /// The longest context, prompt and answer together; `None` if no engine told.
    pub max_model_len: Option<Tokens>,
    /// Its tokenizer; `None`: prompts are estimated from their bytes.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
}

impl Directory {
    /// The model of this name, with the name as the directory holds it (no copy needed).
    pub fn find(&self, name: &str) -> Option<(&Arc<str>, &ModelEntry)> {
        self.models.get_key_value(name)
    }

    /// The fleet's model, if it has just one.
    pub fn only(&self) -> Option<(&Arc<str>, &ModelEntry)> {
        let mut all = self.models.iter();
        all.next().filter(|_| all.next().is_none())
    }

    /// Is no model known yet?
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }
}
