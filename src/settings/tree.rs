//! A TOML file as a tree: on which line a part stands, and the same tree without that part.
//! It never judges what it holds.

use serde::Deserialize;
use serde_path_to_error::{Path, Segment};
use toml::de::{DeTable, DeValue, Deserializer};
use toml::{Spanned, Table, Value};

/// One step of the way to a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key(String),
    Index(usize),
}

/// serde's path, as far as it is known.
pub(crate) fn parts(path: &Path) -> Vec<Part> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Seq { index } => Some(Part::Index(*index)),
            Segment::Map { key } => Some(Part::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// The file as it was written, and as much of it as still has to be read.
pub(crate) struct Tree<'i> {
    breaks: Breaks,
    written: Spanned<DeTable<'i>>,
    /// What is left after [`Tree::take_out`].
    pub(crate) left: Table,
    /// Elements taken out of lists of plain values, by their written path.
    gone: Vec<Vec<Part>>,
}

impl<'i> Tree<'i> {
    /// The tree, and every place where the text is not TOML, with its line. Where there is one the
    /// tree is a guess.
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
                // A number that TOML can write and no machine can hold.
                let at = error.span().map_or(0, |span| span.start);
                errors.push((breaks.line(at), error.message().to_owned()));
                Table::new()
            }
        };
        (Tree { breaks, written, left, gone: Vec::new() }, errors)
    }

    /// Removes the part at `path` (of what is left), or the nearest part around it that can be
    /// removed; its path as it was written. An element of a list of tables stays, emptied, so that
    /// the ones after it keep their numbers. `None` if nothing could be removed.
    pub(crate) fn take_out(&mut self, path: &[Part]) -> Option<Vec<Part>> {
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

    /// A path in what is left, with list elements numbered as in the file.
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

    /// The line of the part, or of the nearest part around it that was written; `None` for the
    /// whole file.
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
    /// Of a list that is shorter now.
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

/// Where each line of a text ends.
struct Breaks(Vec<usize>);

impl Breaks {
    fn of(text: &str) -> Breaks {
        Breaks(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The line of the byte at `at`, counted from 1.
    fn line(&self, at: usize) -> usize {
        self.0.partition_point(|end| *end < at) + 1
    }
}
