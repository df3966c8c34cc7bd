//! The journal: recent role changes with their causes and numbers. Written by the control loop and
//! read by the admin API. It is not on the request path, so it uses a lock.

use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tidegate_types::{Flip, PlanNumber, Role};

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
    pub backend: String,
    pub from: Role,
    pub to: Role,
    /// The cause, for example `prefill_short`, `operator` or `engine`.
    pub cause: &'static str,
    /// The result: `applied`, `draining`, `switched`, `restored`, `quarantined` or `adopted`.
    pub result: &'static str,
    /// Cause and result in one sentence, with numbers.
    pub reason: String,
    /// The numbers behind the decision, by name.
    pub numbers: Numbers,
}

impl JournalEntry {
    /// An entry for `flip`, with the sentence that explains it. `at` in seconds since the Unix
    /// epoch.
    pub fn new(
        plan: PlanNumber,
        at: f64,
        backend: String,
        flip: Flip,
        cause: &'static str,
        result: &'static str,
        numbers: Numbers,
    ) -> JournalEntry {
        let Flip { from, to, .. } = flip;
        let reason = format!("{}{}", explain(cause, flip, &numbers), outcome(result));
        JournalEntry { plan, at, backend, from, to, cause, result, reason, numbers }
    }
}

/// Explains the cause of a role change in a sentence.
fn explain(cause: &str, flip: Flip, numbers: &Numbers) -> String {
    let number = |name: &str| numbers.get(name).copied().unwrap_or(f64::NAN);
    let split = || {
        let (prefill, decode) = (number("prefill_engines"), number("decode_engines"));
        format!("{prefill} prefill and {decode} decode engines")
    };
    let (advised, costs) = (number("advised_prefill_engines"), number("requests_lost_moving"));
    let moves = || {
        let streams = number("streams_left_behind");
        let unit = if streams == 1.0 { "stream" } else { "streams" };
        let lost = "would lose fewer requests on the demand seen";
        format!(
            "{advised} prefill engines {lost}; the move costs {costs:.2} requests and leaves {streams} {unit} to finish"
        )
    };
    let Flip { from, to, .. } = flip;
    match cause {
        "prefill_short" => format!("prefill is short with {}: {}", split(), moves()),
        "decode_short" => format!("decode is short with {}: {}", split(), moves()),
        "minimum_per_role" => format!(
            "{to} is needed so that each role has a backend; usable in the group: {}",
            number("usable")
        ),
        "pinned" => format!("the role is held at {to} by an operator or the settings"),
        "not_allowed" => format!("the launch flags of the engine do not allow {from}"),
        "operator" => format!("an operator set {to}"),
        "engine" => format!("the engine reports {to}"),
        _ => cause.to_owned(),
    }
}

/// What a result other than `applied` adds to the sentence.
const fn outcome(result: &str) -> &'static str {
    match result.as_bytes() {
        b"draining" => "; the engine drains, then switches its role itself",
        b"switched" => "; the engine has switched",
        b"restored" => "; the engine did not switch and keeps its old role",
        b"quarantined" => "; the switch failed and the engine needs a restart",
        _ => "",
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::BackendId;

    #[test]
    fn every_cause_and_result_is_explained_with_its_numbers() {
        let split = [
            ("advised_prefill_engines", 4.0),
            ("prefill_engines", 3.0),
            ("decode_engines", 5.0),
            ("requests_lost_moving", 0.4217),
            ("streams_left_behind", 12.0),
        ];
        let reason = |cause, result, numbers: &[(&'static str, f64)]| {
            let flip = Flip { backend: BackendId(0), from: Role::Decode, to: Role::Prefill };
            let numbers = numbers.iter().copied().collect();
            JournalEntry::new(PlanNumber(1), 0.0, "a".to_owned(), flip, cause, result, numbers)
                .reason
        };
        for (cause, result, numbers, expected) in [
            (
                "prefill_short",
                "applied",
                &split[..],
                "prefill is short with 3 prefill and 5 decode engines: 4 prefill engines would lose \
                 fewer requests on the demand seen; the move costs 0.42 requests and leaves 12 streams \
                 to finish",
            ),
            (
                "minimum_per_role",
                "applied",
                &[("usable", 2.0)][..],
                "prefill is needed so that each role has a backend; usable in the group: 2",
            ),
            (
                "operator",
                "draining",
                &[][..],
                "an operator set prefill; the engine drains, then switches its role itself",
            ),
            ("engine", "adopted", &[][..], "the engine reports prefill"),
        ] {
            assert_eq!(reason(cause, result, numbers), expected);
        }
    }
}
