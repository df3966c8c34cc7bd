//! Do the engines fit what the operator said of them, and each other? What was said and what was
//! told in, who may hand over to whom out. It must never let two engines pair whose own words
//! differ, and never hold silence against an engine: what it does not tell is not checked.

use std::fmt;
use tidegate_types::{GroupId, Role};

use crate::facts::{DisaggregationMode, Facts, ServedModel};

/// What the operator said of a backend, as far as its engine can be asked.
#[derive(Clone, Debug)]
pub struct ConfiguredBackend {
    /// Its name.
    pub name: String,
    /// Its group by the settings.
    pub group: GroupId,
    /// That group has a name in the settings: its members were said to be alike.
    pub group_is_named: bool,
    /// Does it hand over, and does it take whole requests?
    pub splits: bool,
    /// As above.
    pub runs_whole: bool,
    /// The version, if any was said.
    pub version: Option<String>,
    /// The models, if any were named.
    pub models: Vec<String>,
    /// The mode that it must be in; `None`: its role does not hang on one, or is changing.
    pub mode: Option<DisaggregationMode>,
}

/// What is wrong with one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Not the version that was said.
    Version {
        /// By the settings.
        configured: String,
        /// By the engine.
        reported: String,
    },
    /// Not in the mode that its role needs.
    Mode {
        /// By the settings.
        configured: DisaggregationMode,
        /// By the engine.
        reported: DisaggregationMode,
    },
    /// It serves none of the models that were named.
    Models {
        /// By the settings.
        configured: Vec<String>,
        /// By the engine.
        reported: Vec<String>,
    },
    /// It answers only with its key, and has not got it.
    Key {
        /// What it answered.
        status: u16,
    },
    /// It differs from most of its group, and pairs only with those like it.
    Group {
        /// One of the others.
        other: String,
        /// In what.
        key: &'static str,
        /// Theirs and its own.
        theirs: String,
        /// As above.
        own: String,
        /// The operator said that they are alike.
        is_named: bool,
    },
}

impl Misfit {
    /// The words in metrics.
    pub const LABELS: [&str; 5] = ["version", "mode", "models", "key", "group"];

    /// One of them.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Misfit::Version { .. } => "version",
            Misfit::Mode { .. } => "mode",
            Misfit::Models { .. } => "models",
            Misfit::Key { .. } => "key",
            Misfit::Group { .. } => "group",
        }
    }

    /// Does it contradict what the operator wrote? Then it is an error before anything is served.
    pub const fn contradicts(&self) -> bool {
        match self {
            Misfit::Group { is_named, .. } => *is_named,
            // The file says nothing of a key, or a wrong one: the engine may want it for a part.
            Misfit::Key { .. } => false,
            _ => true,
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Version { configured, reported } => {
                write!(f, "version: the settings say {configured}, the engine says {reported}")
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
                write!(
                    f,
                    "key: the engine answers {status}: it wants its own api_key or api_key_file"
                )
            }
            Misfit::Group { other, key, theirs, own, .. } => {
                write!(f, "group: its {key} is {own}, that of {other} is {theirs}")
            }
        }
    }
}

/// What follows for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compatibility {
    /// Whom it may hand over to: those in the same group.
    pub group: GroupId,
    /// Nothing new may go there.
    pub out: bool,
    /// Why, or why it pairs with fewer than the settings say.
    pub misfits: Vec<Misfit>,
}

/// Engines alike, by their slots.
struct EngineClass {
    configured: GroupId,
    members: Vec<usize>,
    /// What is known of its members together.
    known: Facts,
}

/// Judge all backends. `told`: `None` where an engine was not reached yet; `before`: the groups of
/// the last judgement, so that a group keeps its number.
pub fn judge(
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
            out: is_out(configured, &misfits),
            misfits,
        })
        .collect();
    report_differences(configured, &classes, &mut results);
    results
}

/// A backend against its own settings.
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
    misfits.extend(reported.locked.map(|status| Misfit::Key { status }));
    let serves = reported.models.iter().any(|model| configured.models.contains(&model.id));
    if !configured.models.is_empty() && !reported.models.is_empty() && !serves {
        let reported = reported.models.iter().map(|model| model.id.clone()).collect();
        misfits.push(Misfit::Models { configured: configured.models.clone(), reported });
    }
    misfits
}

/// An engine in another mode answers 400 to what it would get, and so does one that never runs
/// whole requests and may not pair.
fn is_out(configured: &ConfiguredBackend, misfits: &[Misfit]) -> bool {
    let mode = misfits.iter().any(|misfit| matches!(misfit, Misfit::Mode { .. }));
    mode || !misfits.is_empty() && !configured.runs_whole
}

/// `0.33` means every 0.33, `0.33.0` means 0.33.0+cpu too.
fn is_version(configured: &str, reported: &str) -> bool {
    let (configured, reported) =
        (configured.trim_start_matches('v'), reported.trim_start_matches('v'));
    reported
        .strip_prefix(configured)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+', '-']))
}

impl EngineClass {
    /// A class that nobody may join.
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

/// The first thing in which two engines differ, with what each has.
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

/// A number for each backend's class. The largest class of a group keeps the group's own; the
/// others keep what they had, or take a free one above those of the settings.
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
    // Those that keep theirs first, so that a newcomer takes no number that is in use.
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

/// The class that keeps a group's number: the largest, of equals the first; one that nobody may
/// join only if there is no other.
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

/// The mode that a backend's role needs.
pub fn mode_of(role: Role) -> Option<DisaggregationMode> {
    matches!(role, Role::Prefill | Role::Decode).then_some(DisaggregationMode::Half(role))
}

#[cfg(test)]
#[path = "compatibility_tests.rs"]
mod tests;
