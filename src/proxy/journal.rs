//! The journal: recent role changes with their causes and numbers. Written by the control loop and
//! read by the admin API. It is not on the request path, so it uses a lock.

use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tidegate_types::{PlanNumber, Role};

/// Most entries kept: hours of an active fleet in a few hundred kilobytes.
const ENTRIES_MAX: usize = 2000;

/// The numbers behind a decision, by name.
pub type Numbers = BTreeMap<&'static str, f64>;

/// One role change.
#[derive(Clone, Debug, Serialize)]
pub struct JournalEntry {
    /// The plan that the change created.
    pub plan: PlanNumber,
    /// Seconds since the Unix epoch.
    pub at: f64,
    /// Name of the backend.
    pub backend: String,
    /// The role before.
    pub from: Role,
    /// The role after.
    pub to: Role,
    /// The cause, for example `prefill_short`, `operator` or `engine`.
    pub cause: &'static str,
    /// The result: `applied`, `draining`, `switched`, `restored`, `quarantined` or `adopted`.
    pub result: &'static str,
    /// The numbers behind the decision, by name.
    pub numbers: Numbers,
}

/// The last `ENTRIES_MAX` role changes.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Mutex<VecDeque<JournalEntry>>,
}

impl Journal {
    /// Appends an entry; the oldest is removed when the journal is full.
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
