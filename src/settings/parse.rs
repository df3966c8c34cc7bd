//! Text in, settings or every problem out.
//!
//! serde stops at the first mistake. Here the text is parsed into a tree first; each time a part of
//! the tree does not fit the schema the mistake is noted, the part is taken out, and the rest is
//! tried again. What types cannot say is checked last.

use serde_path_to_error::Segment;
use std::fmt;
use toml::{Table, Value};

use crate::schema::Settings;
use crate::validate::validate;

/// Mistakes of type in one file before the rest of it is not looked at any more.
const PROBLEMS_MAX: usize = 64;
/// An unknown key so near to a known one is a slip.
const SIMILAR: f64 = 0.75;

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `backends[2].url`; empty for the whole file.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right, if that is known.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}", self.path, self.problem)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Settings {
    /// Read a configuration in TOML.
    ///
    /// # Errors
    /// Every [`Problem`] in it, in the order of the file's sections.
    pub fn parse(text: &str) -> Result<Settings, Vec<Problem>> {
        let tree: Table = text.parse().map_err(|error| vec![not_toml(&error)])?;
        let (settings, mut problems) = read(tree);
        if let Some(settings) = settings {
            // What was taken out above would only be missed again here.
            let known: Vec<String> = problems.iter().map(|p| p.path.clone()).collect();
            let told = |p: &Problem| known.iter().any(|known| known.starts_with(&p.path));
            let more = validate(&settings);
            problems.extend(more.into_iter().filter(|p| p.path.is_empty() || !told(p)));
            if problems.is_empty() {
                return Ok(settings);
            }
        }
        Err(problems)
    }
}

fn not_toml(error: &toml::de::Error) -> Problem {
    let text = error.to_string();
    let problem = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Problem {
        path: String::new(),
        problem: format!("not TOML: {}", problem.collect::<Vec<_>>().join(" ")),
        hint: None,
    }
}

/// Fit the tree into the schema, taking out what does not fit.
fn read(mut tree: Table) -> (Option<Settings>, Vec<Problem>) {
    let mut problems = Vec::new();
    while problems.len() < PROBLEMS_MAX {
        let error = match serde_path_to_error::deserialize(Value::Table(tree.clone())) {
            Ok(settings) => return (Some(settings), problems),
            Err(error) => error,
        };
        let mut path: Vec<Segment> = error.path().iter().cloned().collect();
        let message = error.inner().message().to_owned();
        if let Some(key) = unknown_key(&message)
            && !matches!(path.last(), Some(Segment::Map { key: last }) if *last == key)
        {
            path.push(Segment::Map { key });
        }
        problems.push(mistake(&path, &message));
        if !take_out(&mut tree, &path) {
            break;
        }
    }
    (None, problems)
}

fn mistake(path: &[Segment], message: &str) -> Problem {
    let path = text_of(path);
    match unknown_key(message) {
        Some(key) => {
            Problem { path, problem: "no such key".to_owned(), hint: hint(&key, message) }
        }
        None => Problem { path, problem: message.to_owned(), hint: None },
    }
}

/// serde says: unknown field `a`, expected one of `b`, `c`
fn unknown_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    rest.split('`').next().map(str::to_owned)
}

fn hint(key: &str, message: &str) -> Option<String> {
    let known = message.split('`').skip(3).step_by(2);
    let near = known
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .filter(|(nearness, _)| *nearness > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(format!("did you mean {}?", near.1))
}

fn text_of(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => text += &format!("[{index}]"),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text += key;
            }
            Segment::Unknown => text.push('?'),
        }
    }
    text
}

/// Remove the part at `path`. An element of a list stays, without its content, so that the ones
/// after it keep their numbers.
fn take_out(tree: &mut Table, path: &[Segment]) -> bool {
    let Some((Segment::Map { key }, rest)) = path.split_first() else { return false };
    match (tree.get_mut(key), rest) {
        (None, _) => false,
        (Some(_), []) => tree.remove(key).is_some(),
        (Some(value), rest) => take_out_of(value, rest),
    }
}

fn take_out_of(value: &mut Value, path: &[Segment]) -> bool {
    match (value, path) {
        (Value::Table(table), path) => take_out(table, path),
        (Value::Array(list), [Segment::Seq { index }, rest @ ..]) => match list.get_mut(*index) {
            Some(element) if !rest.is_empty() => take_out_of(element, rest),
            Some(Value::Table(table)) => {
                let had = !table.is_empty();
                table.clear();
                had
            }
            Some(_) => {
                list.remove(*index);
                true
            }
            None => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[backends]]\nname = \"a\"\nurl = \"http://127.0.0.1:8000\"\n";

    fn check(text: &str, expected: &[&str]) {
        let problems = Settings::parse(text).err().unwrap_or_default();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let same = lines.len() == expected.len()
            && lines.iter().zip(expected).all(|(line, start)| line.starts_with(start));
        assert!(same, "\n got {lines:#?}\nwant {expected:#?}\n{text}");
    }

    #[test]
    fn a_short_file_is_enough() {
        check(GOOD, &[]);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        check(
            "[server]\nlisten = [\"nowhere\"]\nbody_max_bites = 1\nthreads = \"many\"\n\
             [slo]\nttft_seconds = -1\n[queue]\nhandoff_seconds = 45\n[nothing]\n\
             [[backends]]\nname = \"a\"\nurl = \"ftp://x\"\nrole = \"sideways\"\n\
             [[backends]]\nname = \"a\"\nurl = \"http://b:1\"\nstreams_max = 0\n",
            &[
                "backends[0].role: unknown variant `sideways`",
                "nothing: no such key",
                "server.body_max_bites: no such key (did you mean body_max_bytes?)",
                "server.listen",
                "server.threads: invalid type",
                "slo.ttft_seconds",
                "queue.handoff_seconds",
                "backends[0].url",
                "backends[1].name",
                "backends[1].streams_max",
            ],
        );
    }

    #[test]
    fn text_that_is_not_toml_is_one_problem() {
        check("[server\n", &["not TOML"]);
        check("", &["backends"]);
    }

    #[test]
    fn roles_and_launch_flags_must_agree() {
        let backend = |more: &str| format!("{GOOD}{more}");
        let vllm = "engine = \"vllm\"\nconnector = \"nixl\"\n";
        check(&backend("role = \"prefill\"\n"), &["backends[0].role"]);
        check(&backend("pin = true\n"), &["backends[0].pin"]);
        check(&backend("connector = \"nixl\"\n"), &["backends[0].connector"]);
        check(&backend(&format!("{vllm}kv_role = \"kv_producer\"\nrole = \"decode\"\n")), &[
            "backends[0].role",
        ]);
        check(&backend(&format!("{vllm}role = \"decode\"\npin = true\n")), &[]);
    }
}
