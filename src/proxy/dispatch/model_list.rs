//! `/v1/models` and `/v1/models/ID` over all backends: the engines' own cards, put together when
//! they change.

use bytes::Bytes;
use std::collections::HashMap;
use tidegate_engine::list_of;

/// What can be asked for.
#[derive(Clone, Debug, Default)]
pub struct ModelList {
    /// The answer to `/v1/models`.
    pub all: Bytes,
    cards: HashMap<String, Bytes>,
    order: Vec<String>,
}

impl ModelList {
    /// A name with its card, unless it is there already; in the list if it `shows`.
    pub(crate) fn add(&mut self, id: &str, card: String, shows: bool) {
        if self.cards.contains_key(id) {
            return;
        }
        self.cards.insert(id.to_owned(), Bytes::from(card));
        if shows {
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
