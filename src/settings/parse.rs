//! Parses a configuration and reports all errors at once.
//!
//! serde stops at the first error. Here the text is parsed to a tree; each part that does not fit the
//! schema is reported and removed, and the rest is deserialized again. Constraints beyond types are
//! checked last; a check that reads a removed part is skipped.

use serde::Serialize;
use std::collections::BTreeMap;
use toml::{Table, Value};

use crate::problem::{Problem, nearest, text_of};
use crate::profiles;
use crate::schema::{BackendSettings, Settings};
use crate::tree::{Part, Tree, parts};
use crate::validate::{RemovedParts, validate};

/// Most errors of one kind reported for a file.
const PROBLEMS_MAX: usize = 64;

impl Settings {
    /// Reads a configuration in TOML.
    ///
    /// # Errors
    /// Every [`Problem`] in it, in the order of the file; those of the whole file come first. Of a
    /// file that is not TOML the syntax errors alone.
    ///
    /// ```
    /// use tidegate_settings::Settings;
    ///
    /// let text = "[[backends]]\nname = \"a\"\nurl = \"http://10.0.0.1:8000\"\n";
    /// assert_eq!(Settings::parse(text)?.backends.len(), 1);
    ///
    /// let problems = Settings::parse("[server]\nthread = 4\n").unwrap_err();
    /// assert_eq!(problems.len(), 2, "an unknown key, and no backend");
    /// # Ok::<(), Vec<tidegate_settings::Problem>>(())
    /// ```
    pub fn parse(text: &str) -> Result<Settings, Vec<Problem>> {
        let (tree, errors) = Tree::parse(text);
        let mut problems = not_toml(errors);
        if !problems.is_empty() {
            return Err(problems);
        }
        match check(tree, RemovedParts::default(), &mut problems) {
            Some(mut settings) if problems.is_empty() => {
                let is_source = |backend: &mut BackendSettings| backend.is_source();
                settings.sources = settings.backends.extract_if(.., is_source).collect();
                settings.text_hash = crate::reload::text_hash(text);
                Ok(settings)
            }
            _ => Err(problems),
        }
    }
}

impl BackendSettings {
    /// Reads one backend with the keys of `[[backends]]`, for example from JSON.
    ///
    /// # Errors
    /// Every [`Problem`] in it, except those of its compatibility group, whose other members are
    /// unknown here.
    pub fn parse(from: &impl Serialize) -> Result<BackendSettings, Vec<Problem>> {
        let plain = |error: toml::ser::Error| vec![Problem::new("backends[0]", error.to_string())];
        let table = Value::Table(Table::try_from(from).map_err(plain)?);
        let file = Table::from_iter([("backends".to_owned(), Value::Array(vec![table]))]);
        let text = toml::to_string(&file).map_err(plain)?;
        let (tree, errors) = Tree::parse(&text);
        let mut problems = not_toml(errors);
        let mut removed = RemovedParts::default();
        removed.add("backends[0].group");
        let settings = check(tree, removed, &mut problems);
        let backend = settings.and_then(|settings| settings.backends.into_iter().next());
        if backend.as_ref().is_some_and(BackendSettings::is_source) {
            let problem = "describes discovered backends, which only the settings file may do";
            problems.push(Problem::new("backends[0]", problem));
        }
        match backend {
            Some(backend) if problems.is_empty() => Ok(backend),
            _ => Err(problems.into_iter().map(|p| Problem { line: None, ..p }).collect()),
        }
    }
}

/// Reads a file that holds `[[backends]]` alone.
///
/// # Errors
/// Every [`Problem`] in it, except those of compatibility groups, whose other members are unknown
/// here. A file without any key is a problem: it may have been truncated to be written again.
pub fn backends_of(text: &str) -> Result<Vec<BackendSettings>, Vec<Problem>> {
    let (tree, errors) = Tree::parse(text);
    let mut problems = not_toml(errors);
    if problems.is_empty() && tree.left.is_empty() {
        let problem = Problem::new("", "has no [[backends]]");
        let hint = "to remove its backends, delete the file or write backends = []";
        return Err(vec![problem.hint(hint)]);
    }
    let is_none = tree.left.get("backends").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if problems.is_empty() && is_none && tree.left.len() == 1 {
        return Ok(Vec::new());
    }
    let mut removed = RemovedParts::default();
    // Certificate authorities are in the settings file.
    removed.add("upstream");
    for section in tree.left.keys().filter(|section| *section != "backends") {
        let problem = "belongs in the settings file: this file may contain only [[backends]]";
        problems.push(Problem::new(section.as_str(), problem));
    }
    let entries = tree.left.get("backends").and_then(Value::as_array).map_or(0, Vec::len);
    (0..entries).for_each(|i| removed.add(&format!("backends[{i}].group")));
    let backends = check(tree, removed, &mut problems).map(|settings| settings.backends);
    for (i, _) in backends.iter().flatten().enumerate().filter(|(_, one)| one.is_source()) {
        let problem = "describes discovered backends, which only the settings file may do";
        problems.push(Problem::new(format!("backends[{i}]"), problem));
    }
    match backends {
        Some(backends) if problems.is_empty() => Ok(backends),
        _ => Err(problems),
    }
}

/// Converts syntax errors to problems, the first of each line: later ones are mostly consequences.
fn not_toml(errors: Vec<(usize, String)>) -> Vec<Problem> {
    let mut first: BTreeMap<usize, String> = BTreeMap::new();
    for (line, message) in errors {
        first.entry(line).or_insert(message);
    }
    let problem = |(line, message): (usize, String)| Problem {
        line: Some(line),
        ..Problem::new("", format!("not TOML: {message}"))
    };
    first.into_iter().take(PROBLEMS_MAX).map(problem).collect()
}

/// Appends the problems of a file that is TOML, in its order. Returns the settings if they could be
/// read.
fn check(
    mut tree: Tree<'_>,
    mut removed: RemovedParts,
    all: &mut Vec<Problem>,
) -> Option<Settings> {
    let mut problems = Vec::new();
    profiles::complete(&mut tree.left);
    let settings = read(&mut tree, &mut problems, &mut removed);
    if let Some(settings) = &settings {
        problems.extend(validate(settings, removed));
        let mut blank = Vec::new();
        blank_texts(&Value::Table(tree.left.clone()), &mut Vec::new(), &mut blank);
        // A check of the key itself says more.
        blank.retain(|path| !problems.iter().any(|(known, _)| known == path));
        for path in blank {
            let problem = Problem::new(text_of(&path), "is blank or has control characters");
            problems.push((path, problem.hint("a text, or omit it")));
        }
    }
    all.extend(sorted(problems, &tree));
    settings
}

/// Appends the paths of texts that are blank or have control characters. No setting means anything by
/// either: they are the remains of an empty variable or of a pasted line.
fn blank_texts(value: &Value, path: &mut Vec<Part>, found: &mut Vec<Vec<Part>>) {
    let mut within = |part: Part, value: &Value| {
        path.push(part);
        blank_texts(value, path, found);
        path.pop();
    };
    match value {
        Value::Table(table) => {
            table.iter().for_each(|(key, value)| within(Part::Key(key.clone()), value));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| within(Part::Index(index), value));
        }
        Value::String(text) if text.trim().is_empty() || text.contains(char::is_control) => {
            found.push(path.clone());
        }
        _ => {}
    }
}

/// Adds lines to the problems and sorts by them.
fn sorted(problems: Vec<(Vec<Part>, Problem)>, tree: &Tree<'_>) -> Vec<Problem> {
    let with_line = |(path, problem): (Vec<Part>, Problem)| Problem {
        line: problem.line.or_else(|| tree.line(&path)),
        ..problem
    };
    let mut problems: Vec<Problem> = problems.into_iter().map(with_line).collect();
    problems.sort_by_key(|problem| problem.line);
    problems
}

/// Deserializes the tree, removing parts that do not fit the schema.
fn read(
    tree: &mut Tree<'_>,
    problems: &mut Vec<(Vec<Part>, Problem)>,
    removed: &mut RemovedParts,
) -> Option<Settings> {
    for _ in 0..PROBLEMS_MAX {
        let error = match serde_path_to_error::deserialize(Value::Table(tree.left.clone())) {
            Ok(settings) => return Some(settings),
            Err(error) => error,
        };
        let mut path: Vec<Part> = parts(error.path());
        let message = error.inner().message();
        let unknown = unknown_key(message, &mut path);
        let written = tree.as_written(&path);
        let problem = match &unknown {
            Some(unknown) => unknown.problem(text_of(&written)),
            None => misfit(text_of(&written), message),
        };
        let problem = match written.first() {
            // It may be a key.
            Some(Part::Key(key)) if key == "auth" && unknown.is_none() => problem.unquoted(),
            _ => problem,
        };
        problems.push((written.clone(), problem));
        if let Some(meant) = unknown.and_then(|unknown| unknown.meant) {
            removed.add_missing(&text_of(&sibling(&written, &meant)));
        }
        match tree.remove(&path) {
            Some(out) => removed.add(&text_of(&out)),
            None => return None,
        }
    }
    let problem = format!("has more than {PROBLEMS_MAX} errors; further ones are not reported");
    problems.push((Vec::new(), Problem::new("", problem)));
    None
}

fn sibling(path: &[Part], key: &str) -> Vec<Part> {
    let mut path = path.to_vec();
    path.pop();
    path.push(Part::Key(key.to_owned()));
    path
}

struct UnknownKey {
    meant: Option<String>,
    known: Vec<String>,
}

impl UnknownKey {
    fn problem(&self, path: String) -> Problem {
        let problem = Problem::new(path, "unknown key");
        match &self.meant {
            Some(meant) => problem.hint(format!("did you mean {meant}?")),
            None => problem.hint(format!("known keys: {}", self.known.join(", "))),
        }
    }
}

/// Parses serde's message: unknown field `a`, expected one of `b`, `c`. The path may lack `a`.
fn unknown_key(message: &str, path: &mut Vec<Part>) -> Option<UnknownKey> {
    let rest = message.strip_prefix("unknown field `")?;
    let named = match path.last() {
        Some(Part::Key(key)) if rest.starts_with(&format!("{key}`, ")) => key.clone(),
        _ => {
            let key = rest.rsplit_once("`, expected")?.0.to_owned();
            path.push(Part::Key(key.clone()));
            key
        }
    };
    let words = rest.get(named.len() + 1..)?.split('`').skip(1).step_by(2);
    let known: Vec<String> = words.map(str::to_owned).collect();
    let meant = nearest(&named, known.iter().map(String::as_str)).map(str::to_owned);
    Some(UnknownKey { meant, known })
}

/// Converts serde's type error to a message for operators.
fn misfit(path: String, message: &str) -> Problem {
    if message.starts_with("invalid socket address") {
        return Problem::new(path, "is not an address").hint("for example \"127.0.0.1:8080\"");
    }
    let Some((found, wanted)) = message.split_once(", expected ") else {
        return Problem::new(path, message);
    };
    let wanted = match wanted {
        "usize" | "u64" => "a whole number, 0 or more".to_owned(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "socket address" => "an address, \"127.0.0.1:8080\"".to_owned(),
        "path string" => "a path in quotes".to_owned(),
        table if table.starts_with("struct ") => "a table".to_owned(),
        words => words.replace('`', ""),
    };
    Problem::new(path, found).hint(format!("should be {wanted}"))
}

/// Returns the tables in the list `tables[key]`.
pub(crate) fn tables_of<'t>(tree: &'t mut Table, key: &str) -> impl Iterator<Item = &'t mut Table> {
    let list = tree.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_table_mut)
}
