//! One configuration error, formatted on one line for any file content.

use std::fmt;

use crate::tree::Part;

/// Maximum length of configuration text quoted in a message.
const TEXT_MAX: usize = 200;
/// Minimum string similarity (0..1) at which a known key is suggested for an unknown one.
const SIMILAR: f64 = 0.75;

/// One configuration error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the part, as `backends[2].url`; empty for the whole file.
    pub path: String,
    /// Description of the error.
    pub problem: String,
    /// The suggested correction, if known.
    pub hint: Option<String>,
    /// Line of the part, from 1; of the containing part if the part is missing; `None` for the whole
    /// file.
    pub line: Option<usize>,
}

/// Returns problems as one line, for messages about one entry.
pub fn joined(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl fmt::Display for Problem {
    /// `PATH: PROBLEM (HINT), line N`, and never a line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}", self.path, self.problem)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        match self.line {
            Some(line) => write!(f, ", line {line}"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// Creates a problem without hint and line.
    pub(crate) fn new(path: impl Into<String>, problem: impl Into<String>) -> Problem {
        let problem = one_line(&problem.into());
        Problem { path: path.into(), problem, hint: None, line: None }
    }

    /// Removes quoted configuration text, which may contain a secret.
    pub(crate) fn unquoted(mut self) -> Problem {
        self.problem = "is of the wrong type".to_owned();
        self
    }

    /// Adds the correction; an empty text adds none.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(one_line(&hint.into())).filter(|hint| !hint.is_empty());
        self
    }
}

/// Formats a path as `backends[2].url`, with quotes around keys that need them.
pub(crate) fn text_of(path: &[Part]) -> String {
    let mut text = String::new();
    for part in path {
        match part {
            Part::Index(index) => text += &format!("[{index}]"),
            Part::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                match is_bare(key) {
                    true => text += key,
                    false => text += &one_line(&format!("{key:?}")),
                }
            }
        }
    }
    text
}

/// Returns the known key that is most similar to `word`, if it is similar enough.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::jaro_winkler(word, known), known))
        .filter(|(nearness, _)| *nearness > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Escapes control characters and truncates to [`TEXT_MAX`].
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(TEXT_MAX));
    for (n, letter) in text.chars().enumerate() {
        if n == TEXT_MAX {
            line.push('…');
            break;
        }
        match letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}
