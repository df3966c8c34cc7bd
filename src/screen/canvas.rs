//! The terminal: alternate screen, restored on drop and on a panic.

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use std::io::{self, Stderr, stderr};
use std::time::Duration;

use super::{Screen, draw};

/// The alternate screen of stderr, so that stdout stays for results.
pub struct Canvas {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    colours: bool,
    keys: bool,
}

impl Canvas {
    /// Takes the terminal over; with `keys` it reads keys instead of letting the terminal turn
    /// Ctrl-C into a signal.
    ///
    /// # Errors
    /// stderr is not a usable terminal.
    pub fn open(colours: bool, keys: bool) -> io::Result<Canvas> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
        let opened = take(keys);
        if opened.is_err() {
            restore();
        }
        Ok(Canvas { terminal: opened?, colours, keys })
    }

    /// Draws a screen.
    ///
    /// # Errors
    /// The terminal cannot be written.
    pub fn show(&mut self, screen: &Screen) -> io::Result<()> {
        let colours = self.colours;
        self.terminal.draw(|frame| draw(frame, screen, colours)).map(drop)
    }

    /// Waits for `span`, or until a key that ends the view: q, Esc or Ctrl-C.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub fn wait(&self, span: Duration) -> io::Result<bool> {
        if !self.keys {
            std::thread::sleep(span);
            return Ok(false);
        }
        let end = std::time::Instant::now() + span;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if !poll(left)? {
                return Ok(false);
            }
            let Event::Key(key) = read()? else { continue };
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            let ends = match key.code {
                KeyCode::Char('q') | KeyCode::Esc => true,
                KeyCode::Char('c') => control,
                _ => false,
            };
            if ends && key.kind == KeyEventKind::Press {
                return Ok(true);
            }
        }
    }
}

impl Drop for Canvas {
    fn drop(&mut self) {
        restore();
    }
}

fn take(keys: bool) -> io::Result<Terminal<CrosstermBackend<Stderr>>> {
    if keys {
        enable_raw_mode()?;
    }
    // Some terminals keep the earlier contents on the alternate screen.
    execute!(stderr(), EnterAlternateScreen, Clear(ClearType::All), Hide)?;
    Terminal::new(CrosstermBackend::new(stderr()))
}

/// Restores the terminal; errors of a closed terminal are ignored.
fn restore() {
    disable_raw_mode().ok();
    execute!(stderr(), LeaveAlternateScreen, Show).ok();
}
