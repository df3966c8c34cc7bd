//! A TOML file as a tree: the line of each part, and removal of parts. It does not validate contents.

use serde::Deserialize;
use serde_path_to_error::{Path, Segment};
use toml::de::{DeTable, DeValue, Deserializer};
use toml::{Spanned, Table, Value};

/// One step of a path: a key or a list index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key(String),
    Index(usize),
}

/// Converts serde's path, up to its first unknown step.
pub(crate) fn parts(path: &Path) -> Vec<Part> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Seq { index } => Some(Part::Index(*index)),
            Segment::Map { key } => Some(Part::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// The file as written, and the part of it that is still to be deserialized.
pub(crate) struct Tree<'i> {
    breaks: Breaks,
    written: Spanned<DeTable<'i>>,
    /// The remainder after [`Tree::remove`].
    pub(crate) left: Table,
    /// Elements removed from lists of plain values, by their path in the file.
    gone: Vec<Vec<Part>>,
}

impl<'i> Tree<'i> {
    /// Parses the text. Returns the tree and the syntax errors with their lines; with errors the tree
    /// is a guess.
    pub(crate) fn parse(text: &'i str) -> (Tree<'i>, Vec<(usize, String)>) {
        let (written, errors) = DeTable::parse_recoverable(text);
        let breaks = Breaks::of(text);
        let mut errors: Vec<(usize, String)> = errors
            .iter()
            .map(|error| {
                let at = error.span().map_or(0, |span| span.start);
                (breaks.line(at), error.message().to_owned())
            })
            .collect();
        let left = match Table::deserialize(Deserializer::from(written.clone())) {
            Ok(left) => left,
            Err(error) => {
                // A number outside the range of 64 bits.
                let at = error.span().map_or(0, |span| span.start);
                errors.push((breaks.line(at), error.message().to_owned()));
                Table::new()
            }
        };
        (Tree { breaks, written, left, gone: Vec::new() }, errors)
    }

    /// Removes the part at `path` (in `left`), or the nearest removable part that contains it. Returns
    /// its path in the file; `None` if no part could be removed. An element of a list of tables is
    /// emptied instead, so that later elements keep their numbers.
    pub(crate) fn remove(&mut self, path: &[Part]) -> Option<Vec<Part>> {
        for end in (1..=path.len()).rev() {
            let written = self.as_written(&path[..end]);
            match take_out_of(&mut self.left, &path[..end]) {
                Removed::Nothing => {}
                Removed::Part => return Some(written),
                Removed::Element => {
                    self.gone.push(written.clone());
                    return Some(written);
                }
            }
        }
        None
    }

    /// Converts a path in `left` to the path in the file: list indexes differ after removals.
    pub(crate) fn as_written(&self, path: &[Part]) -> Vec<Part> {
        let mut written: Vec<Part> = Vec::with_capacity(path.len());
        for segment in path {
            let Part::Index(index) = segment else {
                written.push(segment.clone());
                continue;
            };
            let mut gone: Vec<usize> = self
                .gone
                .iter()
                .filter_map(|gone| gone.strip_prefix(written.as_slice()))
                .filter_map(|rest| match rest {
                    [Part::Index(index)] => Some(*index),
                    _ => None,
                })
                .collect();
            gone.sort_unstable();
            let shift = |index, gone: usize| if gone <= index { index + 1 } else { index };
            written.push(Part::Index(gone.into_iter().fold(*index, shift)));
        }
        written
    }

    /// Returns the line of the part, or of the nearest part of the file that contains it; `None` for
    /// the whole file.
    pub(crate) fn line(&self, path: &[Part]) -> Option<usize> {
        let mut line = None;
        let (mut table, mut value) = (Some(self.written.get_ref()), None::<&Spanned<DeValue>>);
        for segment in path {
            let next = match segment {
                Part::Key(key) => {
                    let entry = table.and_then(|table| table.get_key_value(key.as_str()));
                    entry.map(|(key, value)| (key.span().start, value))
                }
                Part::Index(index) => value
                    .and_then(|value| value.get_ref().as_array()?.get(*index))
                    .map(|value| (value.span().start, value)),
            };
            let Some((at, next)) = next else { break };
            line = Some(self.breaks.line(at));
            table = next.get_ref().as_table();
            value = Some(next);
        }
        line
    }
}

enum Removed {
    Nothing,
    Part,
    /// An element of a list that became shorter.
    Element,
}

fn take_out_of(table: &mut Table, path: &[Part]) -> Removed {
    match path {
        [Part::Key(key)] => match table.remove(key) {
            Some(_) => Removed::Part,
            None => Removed::Nothing,
        },
        [Part::Key(key), rest @ ..] => match table.get_mut(key) {
            Some(value) => take_out_of_value(value, rest),
            None => Removed::Nothing,
        },
        _ => Removed::Nothing,
    }
}

fn take_out_of_value(value: &mut Value, path: &[Part]) -> Removed {
    match (value, path) {
        (Value::Table(table), path) => take_out_of(table, path),
        (Value::Array(list), [Part::Index(index), rest @ ..]) => match list.get_mut(*index) {
            None => Removed::Nothing,
            Some(element) if !rest.is_empty() => take_out_of_value(element, rest),
            Some(Value::Table(table)) if table.is_empty() => Removed::Nothing,
            Some(Value::Table(table)) => {
                table.clear();
                Removed::Part
            }
            Some(_) => {
                list.remove(*index);
                Removed::Element
            }
        },
        _ => Removed::Nothing,
    }
}

/// Positions of the line ends of a text.
struct Breaks(Vec<usize>);

impl Breaks {
    fn of(text: &str) -> Breaks {
        Breaks(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// Returns the line of the byte at `at`, from 1.
    fn line(&self, at: usize) -> usize {
        self.0.partition_point(|end| *end < at) + 1
    }
}
