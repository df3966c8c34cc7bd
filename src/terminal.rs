//! Text of the command line: times, and colours, which are only on a terminal and not with `NO_COLOR`
//! (no-color.org).

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

/// Placeholder of an unknown value.
pub const ABSENT: &str = "–";

/// A time in the unit that suits its length.
pub fn time_text(seconds: Option<f64>) -> String {
    match seconds {
        Some(long) if long >= 10.0 => format!("{long:.1} s"),
        Some(some) if some >= 1.0 => format!("{some:.2} s"),
        Some(short) if short >= 0.01 => format!("{:.0} ms", short * 1e3),
        Some(short) => format!("{:.1} ms", short * 1e3),
        None => ABSENT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_the_unit_of_its_length() {
        for (seconds, text) in [
            (Some(0.0), "0.0 ms"),
            (Some(0.0042), "4.2 ms"),
            (Some(0.46), "460 ms"),
            (Some(1.0), "1.00 s"),
            (Some(9.859), "9.86 s"),
            (Some(10.8), "10.8 s"),
            (None, "–"),
        ] {
            assert_eq!(time_text(seconds), text);
        }
    }
}
