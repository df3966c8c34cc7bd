//! Draws a screen: the pools side by side, queue and latencies as sparklines, the last flips.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use tidegate_types::Role;

use super::{ChartSeries, EngineRow, Screen, percent};
use crate::terminal::{ABSENT, time_text};

/// Cells of an engine's load bar.
const BAR: usize = 12;
/// Rows of the sparklines with their frame.
const CHART: u16 = 6;
/// Rows of flips with their frame.
const FLIPS: u16 = 6;

/// Colours by meaning; none of them without colours.
#[derive(Clone, Copy)]
struct Palette(bool);

impl Palette {
    fn of(self, colour: Color) -> Style {
        if self.0 { Style::new().fg(colour) } else { Style::new() }
    }

    fn role(self, role: Role) -> Style {
        self.of(match role {
            Role::Prefill => Color::Blue,
            Role::Decode => Color::Green,
            Role::Mixed => Color::Cyan,
            Role::Draining => Color::DarkGray,
        })
    }

    fn bad(self) -> Style {
        self.of(Color::Red).add_modifier(Modifier::BOLD)
    }
}

/// Draws a screen on a frame.
pub fn draw(frame: &mut Frame<'_>, screen: &Screen, colours: bool) {
    let palette = Palette(colours);
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(4),
        Constraint::Length(CHART),
        Constraint::Length(FLIPS),
        Constraint::Length(1),
    ])
    .split(frame.area());
    let title = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(screen.title.as_str()).style(title), rows[0]);
    pools(frame, screen, rows[1], palette);
    charts(frame, screen, rows[2], palette);
    let flips = screen.flips.iter().map(|flip| Line::from(flip.as_str()));
    let flips = Paragraph::new(flips.collect::<Vec<_>>())
        .block(Block::bordered().title("last role changes"));
    frame.render_widget(flips, rows[3]);
    frame.render_widget(Paragraph::new(screen.footer.as_str()), rows[4]);
}

/// The pools that have engines, prefill and decode always.
fn pools(frame: &mut Frame<'_>, screen: &Screen, area: Rect, palette: Palette) {
    let shown = |role: &Role| {
        matches!(role, Role::Prefill | Role::Decode) || screen.pool(*role).next().is_some()
    };
    let all = [Role::Prefill, Role::Decode, Role::Mixed, Role::Draining];
    let roles: Vec<Role> = all.into_iter().filter(shown).collect();
    let columns = Layout::horizontal(roles.iter().map(|_| Constraint::Fill(1))).split(area);
    for (role, column) in roles.iter().zip(columns.iter()) {
        let engines: Vec<&EngineRow> = screen.pool(*role).collect();
        let engines_word = if engines.len() == 1 { "engine" } else { "engines" };
        let title = format!("{} · {} {engines_word}", role.as_str(), engines.len());
        let lines = engines.iter().map(|engine| row(engine, palette));
        let block = Block::bordered().title(title).border_style(palette.role(*role));
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), *column);
    }
}

fn row<'a>(engine: &'a EngineRow, palette: Palette) -> Line<'a> {
    let full = (engine.load.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR - full));
    let kv = format!("  KV {:>3}", percent(Some(engine.kv)));
    let mut spans = vec![
        Span::raw(format!("{:<12.12} ", engine.name)),
        Span::styled(bar, palette.role(engine.role)),
        Span::raw(format!(" {:>11}", engine.detail)),
        Span::raw(kv),
    ];
    if !engine.problem.is_empty() {
        spans.push(Span::styled(format!("  {}", engine.problem), palette.bad()));
    }
    Line::from(spans)
}

fn charts(frame: &mut Frame<'_>, screen: &Screen, area: Rect, palette: Palette) {
    let columns = Layout::horizontal([Constraint::Fill(1); 4]).split(area);
    let beside = screen.beside.as_deref();
    let count = |value: Option<f64>| value.map_or(ABSENT.to_owned(), |value| format!("{value:.0}"));
    chart(frame, "queue", &screen.queue, count, beside, columns[0], palette);
    chart(frame, "TTFT", &screen.ttft, time_text, beside, columns[1], palette);
    chart(frame, "TPOT", &screen.tpot, time_text, beside, columns[2], palette);
    chart(frame, "in time", &screen.attainment, percent, beside, columns[3], palette);
}

fn chart(
    frame: &mut Frame<'_>,
    name: &str,
    series: &ChartSeries,
    shown: fn(Option<f64>) -> String,
    beside: Option<&str>,
    area: Rect,
    palette: Palette,
) {
    let target = series.target.map(|target| format!(" / {}", shown(Some(target))));
    let title = format!("{name} {}{}", shown(series.now()), target.unwrap_or_default());
    let mut block = Block::bordered().title(title);
    if let Some(beside) = beside {
        block = block.title_bottom(format!("{beside}: {}", shown(series.beside)));
    }
    // Twice the target fills the chart, so that the middle is the target.
    let peak = series.values.iter().flatten().fold(0.0_f64, |peak, value| peak.max(*value));
    let top = series.target.map_or(peak, |target| (2.0 * target).max(peak)).max(1e-9);
    let cells = usize::from(area.width.saturating_sub(2));
    let last = &series.values[series.values.len().saturating_sub(cells)..];
    let bars: Vec<u64> =
        last.iter().map(|value| (value.unwrap_or(0.0) / top * 1000.0) as u64).collect();
    let style = if series.misses() { palette.bad() } else { palette.of(Color::Yellow) };
    let spark = Sparkline::default().data(&bars).max(1000).style(style).block(block);
    frame.render_widget(spark, area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn engine(name: &str, role: Role) -> EngineRow {
        EngineRow {
            name: name.to_owned(),
            role,
            load: 0.5,
            detail: "31 streams".to_owned(),
            kv: 0.25,
            problem: String::new(),
        }
    }

    #[test]
    fn pools_values_and_flips_are_on_the_screen() {
        let mut screen = Screen {
            title: "tidegate".to_owned(),
            engines: vec![engine("e0", Role::Prefill), engine("e1", Role::Decode)],
            flips: vec!["e1 is decode now".to_owned()],
            beside: Some("fixed split".to_owned()),
            ttft: ChartSeries::with_target(1.0),
            ..Screen::default()
        };
        screen.engines[1].problem = "down".to_owned();
        screen.ttft.push(Some(0.4));
        screen.ttft.beside = Some(2.5);
        for colours in [false, true] {
            let mut terminal = Terminal::new(TestBackend::new(120, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &screen, colours)).unwrap();
            let buffer = terminal.backend().buffer().clone();
            let text: String = buffer.content().iter().map(|cell| cell.symbol()).collect();
            for word in [
                "prefill · 1 engine",
                "██████░░░░░░",
                "31 streams",
                "KV 25 %",
                "down",
                "TTFT 400 ms / 1.00 s",
                "fixed split: 2.50 s",
                "e1 is decode now",
            ] {
                assert!(text.contains(word), "{word} in\n{text}");
            }
            let coloured = buffer.content().iter().any(|cell| cell.fg != Color::Reset);
            assert_eq!(coloured, colours);
        }
    }
}
