//! Colours of the command line: only on a terminal, and not with `NO_COLOR` (no-color.org).

use std::io::IsTerminal;

/// Styles, by their SGR code.
#[derive(Clone, Copy, Debug)]
pub enum Style {
    Bold = 1,
    Faint = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
}

/// Whether stdout shows colours.
pub fn has_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !refused && !dumb
}

/// A painter of text, which does nothing without colours.
#[derive(Clone, Copy, Debug)]
pub struct Paint(pub bool);

impl Paint {
    /// For stdout.
    pub fn stdout() -> Paint {
        Paint(has_colours())
    }

    /// `text` in a style.
    pub fn style(self, style: Style, text: &str) -> String {
        match self.0 {
            true => format!("\x1b[{}m{text}\x1b[0m", style as u8),
            false => text.to_owned(),
        }
    }
}
