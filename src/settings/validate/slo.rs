//! Checks of `[slo]` and `[[slo.classes]]`.

use std::collections::{BTreeMap, BTreeSet};
use tidegate_types::{CLASSES_MAX, DEFAULT_CLASS};

use super::Findings;
use super::sidecar::is_network;
use crate::problem::nearest;
use crate::schema::{Settings, SloClassSettings};

pub(super) fn slo(settings: &Settings, found: &mut Findings) {
    let slo = &settings.slo;
    found.positive(slo.ttft, "slo.ttft_seconds");
    found.positive(slo.tpot, "slo.tpot_seconds");
    if slo.itl.get() != 0.0 {
        found.positive(slo.itl, "slo.itl_seconds");
    }
    for (i, peer) in slo.trusted_peers.iter().enumerate() {
        let path = format!("slo.trusted_peers[{i}]");
        found.check(is_network(peer), &path, &format!("{peer:?} is not a network"), "10.0.0.0/8");
    }
    let count = slo.classes.len();
    let (problem, hint) = (format!("has {count} entries"), format!("at most {CLASSES_MAX}"));
    found.check(count <= CLASSES_MAX, "slo.classes", &problem, &hint);
    let mut names = BTreeMap::new();
    for (i, class) in slo.classes.iter().enumerate() {
        let path = |field: &str| format!("slo.classes[{i}].{field}");
        found.name(&class.name, &mut names, &path("name"));
        let own = class.name != DEFAULT_CLASS;
        found.check(
            own,
            &path("name"),
            "is reserved for requests without a class",
            "use another name",
        );
        targets(class, &path, found);
        conditions(settings, class, &path, found);
        let reached = reached(&slo.classes[..i], class);
        if let Some(before) = reached {
            let problem =
                format!("matches no request: the earlier class {before:?} matches them all");
            let removed = format!("slo.classes[{i}]");
            found.check_with(false, &path("name"), &[&removed], &problem, "change the order");
        }
    }
}

fn targets(class: &SloClassSettings, path: &dyn Fn(&str) -> String, found: &mut Findings) {
    let spans =
        [(class.ttft, "ttft_seconds"), (class.tpot, "tpot_seconds"), (class.itl, "itl_seconds")];
    for (target, key) in spans {
        let Some(target) = target else { continue };
        if key != "itl_seconds" || target.get() != 0.0 {
            found.positive(target, &path(key));
        }
        let (batch, problem) =
            (path("batch"), "must not be set for batch work, which has no targets");
        found.check_with(!class.batch, &path(key), &[&batch], problem, "remove one of them");
    }
    if let Some(deadline) = class.queue_deadline {
        let key = path("queue_deadline_seconds");
        found.positive(deadline, &key);
        let hint = "batch = true; queue.deadline_seconds applies to all other requests";
        found.check_with(class.batch, &key, &[&path("batch")], "applies to batch work only", hint);
    }
}

fn conditions(
    settings: &Settings,
    class: &SloClassSettings,
    path: &dyn Fn(&str) -> String,
    found: &mut Findings,
) {
    let lists = ["models", "keys", "objectives", "stated_targets"].map(path);
    let with: Vec<&str> = lists.iter().map(String::as_str).collect();
    let (problem, hint) = ("has no condition", "models, keys, objectives or stated_targets");
    found.check_with(!is_unconditional(class), &path("name"), &with, problem, hint);
    if let Some(served) = served_models(settings) {
        for (n, model) in class.models.iter().enumerate() {
            known(model, &served, "models", &path(&format!("models[{n}]")), "backends", found);
        }
    }
    let keys: BTreeSet<&str> = settings.auth.keys.iter().map(|key| &*key.name).collect();
    for (n, key) in class.keys.iter().enumerate() {
        known(key, &keys, "key", &path(&format!("keys[{n}]")), "auth.keys", found);
    }
    let named = !class.objectives.is_empty();
    for (given, key) in [(named, "objectives"), (class.stated_targets, "stated_targets")] {
        let trusted = !given || !settings.slo.trusted_peers.is_empty();
        let (with, problem) = (["slo.trusted_peers"], "has no effect without slo.trusted_peers");
        found.check_with(trusted, &path(key), &with, problem, "the networks of the gateways");
    }
}

/// Checks a name that another section must contain.
fn known(
    name: &str,
    all: &BTreeSet<&str>,
    what: &str,
    path: &str,
    section: &str,
    found: &mut Findings,
) {
    let hint = match nearest(name, all.iter().copied()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("one of {}", all.iter().copied().collect::<Vec<_>>().join(", ")),
    };
    let what = what.trim_end_matches('s');
    let problem = format!("{name:?} is not a known {what}");
    found.check_with(all.contains(name), path, &[section], &problem, &hint);
}

/// Returns the models of the fleet, if the settings name those of every backend.
fn served_models(settings: &Settings) -> Option<BTreeSet<&str>> {
    let all_named = settings.sources.is_empty()
        && settings.backends.iter().all(|backend| !backend.models.is_empty());
    let served = settings.backends.iter().flat_map(|backend| &backend.models);
    all_named.then(|| served.map(String::as_str).collect())
}

fn is_unconditional(class: &SloClassSettings) -> bool {
    class.models.is_empty()
        && class.keys.is_empty()
        && class.objectives.is_empty()
        && !class.stated_targets
}

/// Returns the class of `before` that matches every request that `class` matches.
fn reached<'c>(before: &'c [SloClassSettings], class: &SloClassSettings) -> Option<&'c str> {
    let contains = |wide: &[String], narrow: &[String]| {
        wide.is_empty() || !narrow.is_empty() && narrow.iter().all(|name| wide.contains(name))
    };
    let covers = |other: &&SloClassSettings| {
        !is_unconditional(other)
            && contains(&other.models, &class.models)
            && contains(&other.keys, &class.keys)
            && contains(&other.objectives, &class.objectives)
            && (!other.stated_targets || class.stated_targets)
    };
    before.iter().find(covers).map(|class| &*class.name)
}

#[cfg(test)]
mod tests {
    use crate::Settings;

    const FLEET: &str = "[auth]\n[[auth.keys]]\nname = \"team\"\nkey = \"0123456789\"\n\
         [[backends]]\nname = \"a\"\nurl = \"http://a:1\"\nmodels = [\"llama\"]\n";

    fn problems(slo: &str) -> Vec<String> {
        let problems = Settings::parse(&format!("[slo]\n{slo}\n{FLEET}")).err();
        problems.unwrap_or_default().iter().map(|problem| problem.path.clone()).collect()
    }

    fn class(name: &str, more: &str) -> String {
        format!("[[slo.classes]]\nname = {name:?}\n{more}\n")
    }

    #[test]
    fn classes_with_known_conditions_are_accepted() {
        for good in [
            class("chat", "models = [\"llama\"]\nttft_seconds = 0.3\nitl_seconds = 0"),
            class("chat", "keys = [\"team\"]\ntpot_seconds = 0.02"),
            class("night", "keys = [\"team\"]\nbatch = true\nqueue_deadline_seconds = 3600"),
            format!("trusted_peers = [\"10.0.0.0/8\"]\n{}", class("o", "objectives = [\"fast\"]")),
            format!("trusted_peers = [\"::1\"]\n{}", class("o", "stated_targets = true")),
        ] {
            assert!(problems(&good).is_empty(), "{good}: {:?}", problems(&good));
        }
        // Engines that report their models later may serve any.
        let unnamed = FLEET.replace("models = [\"llama\"]\n", "");
        let text = format!("{}{unnamed}", class("chat", "models = [\"other\"]"));
        assert!(Settings::parse(&text).is_ok());
    }

    #[test]
    fn contradictory_classes_are_refused() {
        let name = "slo.classes[0].name";
        for (wrong, path) in [
            (class("chat", "ttft_seconds = 0.3"), name),
            (class("default", "keys = [\"team\"]"), name),
            (class("a b", "keys = [\"team\"]"), name),
            (class("chat", "models = [\"lama\"]"), "slo.classes[0].models[0]"),
            (class("chat", "keys = [\"teams\"]"), "slo.classes[0].keys[0]"),
            (class("chat", "objectives = [\"fast\"]"), "slo.classes[0].objectives"),
            (class("chat", "stated_targets = true"), "slo.classes[0].stated_targets"),
            (
                class("b", "keys = [\"team\"]\nbatch = true\nttft_seconds = 1"),
                "slo.classes[0].ttft_seconds",
            ),
            (
                class("c", "keys = [\"team\"]\nqueue_deadline_seconds = 9"),
                "slo.classes[0].queue_deadline_seconds",
            ),
            (class("c", "keys = [\"team\"]\ntpot_seconds = 0"), "slo.classes[0].tpot_seconds"),
            ("trusted_peers = [\"gateway\"]".to_owned(), "slo.trusted_peers[0]"),
            (
                format!("trusted_peers = [\"::1\"]\n{}", class("c", "objectives = [\"x\", \"\"]")),
                "slo.classes[0].objectives[1]",
            ),
        ] {
            assert_eq!(problems(&wrong), [path], "{wrong}");
        }
        let all = "keys = [\"team\"]";
        let shadowed = class("one", all) + &class("two", &format!("{all}\nmodels = [\"llama\"]"));
        assert_eq!(problems(&shadowed), ["slo.classes[1].name"]);
        let narrow_first =
            class("one", &format!("{all}\nmodels = [\"llama\"]")) + &class("two", all);
        assert!(problems(&narrow_first).is_empty());
        let same = class("one", all) + &class("one", "models = [\"llama\"]");
        assert_eq!(problems(&same), ["slo.classes[1].name"]);
        let many: String =
            (0..9).map(|n| class(&format!("c{n}"), "models = [\"llama\"]")).collect();
        assert!(problems(&many).contains(&"slo.classes".to_owned()));
    }
}
