//! `/v1/models` and `/v1/models/ID` over all backends: the engines' model cards, merged when they change.

use bytes::Bytes;
use std::collections::HashMap;
use tidegate_engine::list_of;

/// Answers to the model endpoints.
#[derive(Clone, Debug, Default)]
pub struct ModelList {
    /// The answer to `/v1/models`.
    pub all: Bytes,
    cards: HashMap<String, Bytes>,
    order: Vec<String>,
}

impl ModelList {
    /// Adds a name with its card, unless the name is present; `listed`: it appears in `/v1/models`.
    pub(crate) fn add(&mut self, id: &str, card: String, listed: bool) {
        if self.cards.contains_key(id) {
            return;
        }
        self.cards.insert(id.to_owned(), Bytes::from(card));
        if listed {
            self.order.push(id.to_owned());
        }
    }

    pub(crate) fn finish(mut self) -> ModelList {
        let cards = self.order.iter().filter_map(|id| self.cards.get(id));
        self.all = list_of(cards.filter_map(|card| std::str::from_utf8(card).ok()));
        self
    }

    /// A model's card.
    pub fn one(&self, id: &str) -> Option<&Bytes> {
        self.cards.get(id)
    }
}
