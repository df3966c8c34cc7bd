//! The last decisions, with their reasons and numbers. Written by the control loop, read by the
//! admin API; requests never come here, so a lock is fine.

use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tidegate_types::{PlanNumber, Role};

/// How many decisions are kept: hours of a lively fleet in a few hundred kilobytes.
const ENTRIES_MAX: usize = 2000;

/// The numbers that a decision was made from, by name.
pub type Numbers = BTreeMap<&'static str, f64>;

/// One role change: what, when, why, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct JournalEntry {
    /// The plan that it made.
    pub plan: PlanNumber,
    /// Seconds since the Unix epoch.
    pub at: f64,
    /// Whose role.
    pub backend: String,
    /// What it had.
    pub from: Role,
    /// What it got.
    pub to: Role,
    /// Why, as a word.
    pub cause: &'static str,
    /// `applied`, or why not.
    pub result: &'static str,
    /// The numbers that the decision was made from.
    pub numbers: Numbers,
}

/// The journal.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Mutex<VecDeque<JournalEntry>>,
}

impl Journal {
    /// Add an entry; the oldest goes when there are too many.
    pub fn write(&self, entry: JournalEntry) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> Vec<JournalEntry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().cloned().collect()
    }
}
