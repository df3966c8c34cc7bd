//! Cache of the objects of a list and its watch, by name.

use std::collections::BTreeMap;

use crate::event::WatchEvent;
use crate::pod::Object;

/// Objects of one namespace and selector.
#[derive(Debug)]
pub struct Objects<T> {
    by_name: BTreeMap<String, T>,
    /// resourceVersion at which the next watch starts.
    version: String,
    is_listed: bool,
}

/// Effect of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The objects differ.
    Changed,
    /// No object differs.
    Same,
    /// The resourceVersion has expired: list again.
    Expired,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Objects { by_name: BTreeMap::new(), version: String::new(), is_listed: false }
    }
}

impl<T: Object + PartialEq> Objects<T> {
    /// Replaces all objects by a complete list. Returns whether they differ, which the first list always
    /// does.
    pub fn replace(&mut self, items: Vec<T>, version: String) -> bool {
        let named = |mut item: T| {
            item.metadata_mut().resource_version.clear();
            (item.metadata().name.clone(), item)
        };
        let new: BTreeMap<String, T> = items.into_iter().map(named).collect();
        let differs = !self.is_listed || new != self.by_name;
        self.by_name = new;
        self.version = version;
        self.is_listed = true;
        differs
    }

    /// Applies an event of the watch; an error but 410 changes nothing.
    pub fn apply(&mut self, event: WatchEvent<T>) -> Effect {
        match event {
            WatchEvent::Applied(mut item) => {
                // Without its version: an update of fields that are not read is no change.
                self.note(std::mem::take(&mut item.metadata_mut().resource_version));
                match self.by_name.get(&item.metadata().name) {
                    Some(known) if *known == item => Effect::Same,
                    _ => {
                        self.by_name.insert(item.metadata().name.clone(), item);
                        Effect::Changed
                    }
                }
            }
            WatchEvent::Deleted(mut item) => {
                self.note(std::mem::take(&mut item.metadata_mut().resource_version));
                match self.by_name.remove(&item.metadata().name) {
                    Some(_) => Effect::Changed,
                    None => Effect::Same,
                }
            }
            WatchEvent::Bookmark(version) => {
                self.note(version);
                Effect::Same
            }
            WatchEvent::Error { code: GONE, .. } => Effect::Expired,
            WatchEvent::Error { .. } => Effect::Same,
        }
    }

    /// The objects in the order of their names; `None` before the first list.
    pub fn all(&self) -> Option<impl Iterator<Item = &T>> {
        self.is_listed.then(|| self.by_name.values())
    }

    /// The resourceVersion at which a watch continues; empty: list first.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Forces the next attempt to list; the cached objects stay.
    pub fn expire(&mut self) {
        self.version.clear();
    }

    /// resourceVersions are opaque: the last one seen is kept, never the larger one.
    fn note(&mut self, version: String) {
        if !version.is_empty() {
            self.version = version;
        }
    }
}

/// HTTP status of a resourceVersion that the server no longer has.
pub const GONE: u16 = 410;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{Metadata, Pod};

    fn pod(name: &str, uid: &str, version: &str) -> Pod {
        let metadata = Metadata {
            name: name.into(),
            uid: uid.into(),
            resource_version: version.into(),
            ..Metadata::default()
        };
        Pod { metadata, ..Pod::default() }
    }

    fn names(objects: &Objects<Pod>) -> Vec<String> {
        let all = objects.all().into_iter().flatten();
        all.map(|pod| format!("{}:{}", pod.metadata.name, pod.metadata.uid)).collect()
    }

    #[test]
    fn a_list_and_its_events_give_the_objects() {
        let mut objects = Objects::default();
        assert!(objects.all().is_none(), "no objects before the first list");
        assert!(objects.replace(vec![], "1".into()), "an empty first list is a change");
        assert!(!objects.replace(vec![], "2".into()));
        assert_eq!(objects.apply(WatchEvent::Applied(pod("b", "1", "3"))), Effect::Changed);
        assert_eq!(objects.apply(WatchEvent::Applied(pod("a", "2", "4"))), Effect::Changed);
        assert_eq!(names(&objects), ["a:2", "b:1"]);
        assert_eq!(
            objects.apply(WatchEvent::Applied(pod("b", "9", "5"))),
            Effect::Changed,
            "made again"
        );
        let same = WatchEvent::Applied(pod("b", "9", "6"));
        assert_eq!(objects.apply(same), Effect::Same, "changes of other fields are ignored");
        assert_eq!(objects.apply(WatchEvent::Deleted(pod("a", "2", "7"))), Effect::Changed);
        assert_eq!(objects.apply(WatchEvent::Deleted(pod("a", "2", "8"))), Effect::Same);
        assert_eq!(names(&objects), ["b:9"]);
        assert_eq!(objects.version(), "8");
    }

    #[test]
    fn bookmarks_move_the_version_and_errors_keep_the_objects() {
        let mut objects = Objects::default();
        objects.replace(vec![pod("a", "1", "1")], "1".into());
        assert_eq!(objects.apply(WatchEvent::Bookmark("40".into())), Effect::Same);
        assert_eq!(objects.version(), "40");
        let error = |code| WatchEvent::Error { code, message: String::new(), retry_after: None };
        assert_eq!(objects.apply(error(500)), Effect::Same);
        assert_eq!(objects.apply(error(GONE)), Effect::Expired);
        objects.expire();
        assert_eq!((names(&objects), objects.version()), (vec!["a:1".to_owned()], ""));
    }
}
