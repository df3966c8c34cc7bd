//! Compatibility of backends: reported facts against the settings, and against the other backends
//! of a group. The result is the hand-off group of each backend. It must never put two engines with
//! different reported facts into one group. A fact that an engine does not report is not checked.

use std::fmt;
use tidegate_types::{GroupId, Role};

use crate::facts::{DisaggregationMode, Facts, ServedModel};

/// The settings of one backend that its engine's reported facts are checked against.
#[derive(Clone, Debug)]
pub struct ConfiguredBackend {
    /// Backend name, for messages.
    pub name: String,
    /// Group in the settings.
    pub group: GroupId,
    /// The settings name the group, so that its members must be alike.
    pub group_is_named: bool,
    /// The backend's family can hand KV over.
    pub splits: bool,
    /// The backend's family serves colocated (whole) requests.
    pub serves_colocated: bool,
    /// Configured version; `None`: any.
    pub version: Option<String>,
    /// Configured model names; empty: any.
    pub models: Vec<String>,
    /// Required mode; `None`: the role needs none, or a switch is in progress.
    pub mode: Option<DisaggregationMode>,
}

/// A difference between settings and reported facts, or within a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The engine's version differs from the configured one.
    Version {
        /// In the settings.
        configured: String,
        /// Reported by the engine.
        reported: String,
    },
    /// The engine's disaggregation mode does not suit the backend's role.
    Mode {
        /// Required by the role.
        configured: DisaggregationMode,
        /// Reported by the engine.
        reported: DisaggregationMode,
    },
    /// The engine serves none of the configured models.
    Models {
        /// In the settings.
        configured: Vec<String>,
        /// Reported by the engine.
        reported: Vec<String>,
    },
    /// The engine rejects tidegate's requests for facts: it requires an API key.
    Key {
        /// HTTP status of the rejection.
        status: u16,
    },
    /// The backend differs from the largest class of its group and forms a group with those like
    /// it.
    Group {
        /// A backend of the largest class.
        other: String,
        /// The fact that differs: `version`, `models` or `max_model_len`.
        key: &'static str,
        /// Value of the largest class.
        theirs: String,
        /// Value of this backend.
        own: String,
        /// The settings name the group.
        is_named: bool,
    },
}

impl Misfit {
    /// All metric label values, in the order of [`Misfit::as_str`].
    pub const LABELS: [&str; 5] = ["version", "mode", "models", "key", "group"];

    /// Label value in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Misfit::Version { .. } => "version",
            Misfit::Mode { .. } => "mode",
            Misfit::Models { .. } => "models",
            Misfit::Key { .. } => "key",
            Misfit::Group { .. } => "group",
        }
    }

    /// Returns whether the misfit contradicts the settings, which is an error at start-up.
    pub const fn contradicts(&self) -> bool {
        match self {
            Misfit::Group { is_named, .. } => *is_named,
            // The engine may require a key for some paths only.
            Misfit::Key { .. } => false,
            _ => true,
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Version { configured, reported } => {
                write!(f, "version: the settings have {configured}, the engine reports {reported}")
            }
            Misfit::Mode { configured, reported } => {
                let (configured, reported) = (configured.as_str(), reported.as_str());
                write!(
                    f,
                    "mode: it must be {configured}, the engine's disaggregation_mode is {reported}"
                )
            }
            Misfit::Models { configured, reported } => {
                let (configured, reported) = (configured.join(", "), reported.join(", "));
                write!(f, "models: the settings name {configured}, the engine serves {reported}")
            }
            Misfit::Key { status } => {
                write!(f, "key: the engine answers {status}: set its own api_key or api_key_file")
            }
            Misfit::Group { other, key, theirs, own, .. } => {
                write!(f, "group: its {key} is {own}, that of {other} is {theirs}")
            }
        }
    }
}

/// Result for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compatibility {
    /// Hand-off group: backends may hand over within it.
    pub group: GroupId,
    /// The backend receives no new requests.
    pub excluded: bool,
    /// Reasons for `excluded`, or for a group smaller than configured.
    pub misfits: Vec<Misfit>,
}

/// Compatible backends of one configured group, by index.
struct EngineClass {
    configured: GroupId,
    members: Vec<usize>,
    /// Union of the members' reported facts.
    known: Facts,
}

/// Assigns a group to every backend. `reported` is `None` for engines not yet reached; `before`
/// holds the groups of the previous call, so that a class keeps its number.
pub fn assign_groups(
    configured: &[ConfiguredBackend],
    reported: &[Option<Facts>],
    before: &[GroupId],
) -> Vec<Compatibility> {
    let own: Vec<Vec<Misfit>> =
        configured.iter().zip(reported).map(|(s, t)| own(s, t.as_ref())).collect();
    let mut classes: Vec<EngineClass> = Vec::new();
    for (slot, configured) in configured.iter().enumerate() {
        let alone = configured.splits && (reported[slot].is_none() || !own[slot].is_empty());
        let facts = reported[slot].clone().filter(|_| configured.splits).unwrap_or_default();
        let like = |class: &&mut EngineClass| {
            !alone && class.configured == configured.group && alike(&class.known, &facts)
        };
        match classes.iter_mut().find(like) {
            Some(class) => class.add(slot, facts),
            None if alone => classes.push(EngineClass::lone(configured.group, slot)),
            None => classes.push(EngineClass {
                configured: configured.group,
                members: vec![slot],
                known: facts,
            }),
        }
    }
    let groups = number(configured, &classes, before);
    let mut results: Vec<Compatibility> = own
        .into_iter()
        .zip(groups)
        .zip(configured)
        .map(|((misfits, group), configured)| Compatibility {
            group,
            excluded: is_excluded(configured, &misfits),
            misfits,
        })
        .collect();
    report_differences(configured, &classes, &mut results);
    results
}

/// Compares a backend with its own settings.
fn own(configured: &ConfiguredBackend, reported: Option<&Facts>) -> Vec<Misfit> {
    let mut misfits = Vec::new();
    let Some(reported) = reported else { return misfits };
    if let (Some(configured), Some(reported)) = (&configured.version, &reported.version)
        && !is_version(configured, reported)
    {
        misfits
            .push(Misfit::Version { configured: configured.clone(), reported: reported.clone() });
    }
    if let (Some(configured), Some(reported)) = (configured.mode, reported.mode)
        && configured != reported
    {
        misfits.push(Misfit::Mode { configured, reported });
    }
    misfits.extend(reported.key_required.map(|status| Misfit::Key { status }));
    let serves = reported.models.iter().any(|model| configured.models.contains(&model.id));
    if !configured.models.is_empty() && !reported.models.is_empty() && !serves {
        let reported = reported.models.iter().map(|model| model.id.clone()).collect();
        misfits.push(Misfit::Models { configured: configured.models.clone(), reported });
    }
    misfits
}

/// Returns whether the backend must receive no requests: an engine in another mode answers 400, and
/// a backend that serves no colocated requests is useless without a hand-off partner.
fn is_excluded(configured: &ConfiguredBackend, misfits: &[Misfit]) -> bool {
    let mode = misfits.iter().any(|misfit| matches!(misfit, Misfit::Mode { .. }));
    mode || !misfits.is_empty() && !configured.serves_colocated
}

/// Prefix match on whole components: `0.33` matches every 0.33.x, `0.33.0` matches 0.33.0+cpu.
fn is_version(configured: &str, reported: &str) -> bool {
    let (configured, reported) =
        (configured.trim_start_matches('v'), reported.trim_start_matches('v'));
    reported
        .strip_prefix(configured)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+', '-']))
}

impl EngineClass {
    /// A class of one backend without partners.
    fn lone(configured: GroupId, slot: usize) -> EngineClass {
        let unmatched = ServedModel { id: format!("\0{slot}"), max_model_len: None };
        let known = Facts { models: vec![unmatched], ..Facts::default() };
        EngineClass { configured, members: vec![slot], known }
    }

    fn is_lone(&self) -> bool {
        self.known.models.first().is_some_and(|model| model.id.starts_with('\0'))
    }

    fn add(&mut self, slot: usize, facts: Facts) {
        self.members.push(slot);
        self.known.version = self.known.version.take().or(facts.version);
        if self.known.models.is_empty() {
            self.known.models = facts.models;
        }
    }
}

fn alike(a: &Facts, b: &Facts) -> bool {
    difference(a, b).is_none()
}

/// Returns the first fact that differs, with both values.
fn difference(a: &Facts, b: &Facts) -> Option<(&'static str, String, String)> {
    if let (Some(a), Some(b)) = (&a.version, &b.version)
        && a != b
    {
        return Some(("version", a.clone(), b.clone()));
    }
    if a.models.is_empty() || b.models.is_empty() {
        return None;
    }
    let names =
        |facts: &Facts| facts.models.iter().map(|m| m.id.as_str()).collect::<Vec<_>>().join(", ");
    if names(a) != names(b) {
        return Some(("models", names(a), names(b)));
    }
    let differs = |(a, b): &(&ServedModel, &ServedModel)| matches!((a.max_model_len, b.max_model_len), (Some(a), Some(b)) if a != b);
    let (a, b) = a.models.iter().zip(&b.models).find(differs)?;
    let length = |served: &ServedModel| served.max_model_len.unwrap_or_default().to_string();
    Some(("max_model_len", length(a), length(b)))
}

/// Assigns group numbers. The largest class of a configured group keeps the group's number; the
/// others keep their previous number or get a free one above those of the settings.
fn number(
    configured: &[ConfiguredBackend],
    classes: &[EngineClass],
    before: &[GroupId],
) -> Vec<GroupId> {
    let first_free = configured.iter().map(|configured| configured.group.0 + 1).max().unwrap_or(0);
    let mut groups: Vec<Option<GroupId>> = vec![None; configured.len()];
    let mut taken: Vec<GroupId> = Vec::new();
    let main = |class: &EngineClass| {
        main_of(classes, class.configured).is_some_and(|of| std::ptr::eq(of, class))
    };
    let (mains, others): (Vec<&EngineClass>, Vec<&EngineClass>) =
        classes.iter().partition(|class| main(class));
    let mut give = |class: &EngineClass, group: GroupId, taken: &mut Vec<GroupId>| {
        taken.push(group);
        class.members.iter().for_each(|slot| groups[*slot] = Some(group));
    };
    for class in mains {
        give(class, class.configured, &mut taken);
    }
    // Classes with a previous number come first, so that a new class cannot take one in use.
    let keeps = |class: &&EngineClass| {
        let had = before.get(class.members[0]).copied();
        had.filter(|had| had.0 >= first_free)
    };
    let (old, new): (Vec<&EngineClass>, Vec<&EngineClass>) =
        others.into_iter().partition(|class| keeps(class).is_some());
    for class in old.iter().chain(&new) {
        let kept = keeps(class).filter(|had| !taken.contains(had));
        let free = || (first_free..).map(GroupId).find(|group| !taken.contains(group));
        let group = kept.or_else(free).unwrap_or(class.configured);
        give(class, group, &mut taken);
    }
    groups
        .iter()
        .zip(configured)
        .map(|(group, configured)| group.unwrap_or(configured.group))
        .collect()
}

/// Returns the class that keeps a group's number: the largest, on a tie the first; a lone class
/// only if there is no other.
fn main_of(classes: &[EngineClass], configured: GroupId) -> Option<&EngineClass> {
    let of_group = classes.iter().filter(|class| class.configured == configured);
    of_group.rev().max_by_key(|class| (!class.is_lone(), class.members.len()))
}

fn report_differences(
    configured: &[ConfiguredBackend],
    classes: &[EngineClass],
    results: &mut [Compatibility],
) {
    for class in classes.iter().filter(|class| !class.is_lone()) {
        let Some(main) = main_of(classes, class.configured).filter(|main| !main.is_lone()) else {
            continue;
        };
        let Some((key, theirs, own)) = difference(&main.known, &class.known) else { continue };
        for slot in &class.members {
            let is_named = configured[*slot].group_is_named;
            let other = configured[main.members[0]].name.clone();
            let (theirs, own) = (theirs.clone(), own.clone());
            results[*slot].misfits.push(Misfit::Group { other, key, theirs, own, is_named });
        }
    }
}

/// Returns the disaggregation mode that a role requires; `None` for mixed and draining.
pub fn mode_of(role: Role) -> Option<DisaggregationMode> {
    matches!(role, Role::Prefill | Role::Decode).then_some(DisaggregationMode::Half(role))
}

#[cfg(test)]
#[path = "compatibility_tests.rs"]
mod tests;
