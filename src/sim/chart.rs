//! Line charts as SVG text: titled axes with units, round ticks, a legend that is readable without
//! colour. The module is independent of what the values mean.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
/// Margins around the plot for titles and tick labels, in SVG units.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
/// Colour-blind-safe colours (Okabe and Ito), with dash patterns for greyscale print.
const STYLES: [(&str, &str); 8] = [
    ("#0072b2", ""),
    ("#d55e00", "7 3"),
    ("#009e73", "2 3"),
    ("#cc79a7", "9 3 2 3"),
    ("#e69f00", "4 4"),
    ("#56b4e9", "12 4"),
    ("#8c6d1f", "1 3"),
    ("#7f7f7f", "6 2 1 2"),
];
/// Maximum number of ticks of an axis.
const TICKS_MAX: f64 = 6.0;

pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Draw as a step function: a value holds until the next one.
    pub(crate) steps: bool,
    /// Mark each value with a dot, for lines of few points.
    pub(crate) dots: bool,
}

pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    pub(crate) lines: Vec<Line>,
    /// Positions of vertical marks on the x axis.
    pub(crate) marks: Vec<f64>,
    /// Horizontal line with a label, such as a target.
    pub(crate) level: Option<(f64, &'a str)>,
    /// Upper limit of the vertical axis.
    pub(crate) y_max: Option<f64>,
}

/// Maps values to picture coordinates.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Chart<'_> {
    pub(crate) fn svg(&self) -> String {
        let scale = self.scale();
        let mut out = String::with_capacity(16 << 10);
        let title = escape(self.title);
        // Writing to a String cannot fail.
        write!(
            out,
            "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\
             <text class=\"title\" x=\"{LEFT}\" y=\"18\">{title}</text>"
        )
        .ok();
        self.axes(&mut out, &scale);
        for mark in &self.marks {
            let x = scale.x(*mark);
            let end = HEIGHT - BOTTOM;
            write!(out, "<path class=\"mark\" d=\"M{x:.1} {TOP}V{end}\"/>").ok();
        }
        if let Some((level, name)) = self.level.filter(|(level, _)| *level <= scale.y.1) {
            let (y, end, name) = (scale.y(level), WIDTH - RIGHT, escape(name));
            write!(
                out,
                "<path class=\"level\" d=\"M{LEFT} {y:.1}H{end}\"/>\
                 <text class=\"tick\" x=\"{end}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                y - 4.0
            )
            .ok();
        }
        for (i, line) in self.lines.iter().enumerate() {
            line.draw(&mut out, &scale, STYLES[i % STYLES.len()]);
        }
        out.push_str("</svg>");
        self.legend(&mut out);
        out.push_str("</figure>\n");
        out
    }

    fn scale(&self) -> Scale {
        let values = || self.lines.iter().flat_map(|line| &line.points);
        let low = values().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let high = values().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
        let x = if low.is_finite() { (low, high.max(low + 1e-9)) } else { (0.0, 1.0) };
        let top = values().map(|point| point.1).fold(0.0, f64::max);
        let top = self.y_max.map_or(top, |most| most.min(top));
        let step = step(if top > 0.0 { top } else { 1.0 });
        let top = if top > 0.0 { (top / step).ceil() * step } else { 1.0 };
        Scale { x, y: (0.0, top) }
    }

    fn axes(&self, out: &mut String, scale: &Scale) {
        let (end, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for value in ticks(scale.y) {
            let y = scale.y(value);
            write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{end}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                number(value)
            )
            .ok();
        }
        for value in ticks(scale.x) {
            write!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                scale.x(value),
                bottom + 16.0,
                number(value)
            )
            .ok();
        }
        let (middle, height) = ((LEFT + end) / 2.0, (TOP + bottom) / 2.0);
        write!(
            out,
            "<text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"axis\" x=\"16\" y=\"{height:.1}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 16 {height:.1})\">{}</text>",
            HEIGHT - 8.0,
            escape(self.x),
            escape(self.y)
        )
        .ok();
    }

    fn legend(&self, out: &mut String) {
        out.push_str("<figcaption>");
        for (i, line) in self.lines.iter().enumerate() {
            let (colour, dash) = STYLES[i % STYLES.len()];
            write!(
                out,
                "<span><svg class=\"key\" viewBox=\"0 0 34 8\"><path d=\"M0 4H34\" \
                 stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/></svg>{}</span>",
                escape(&line.name)
            )
            .ok();
        }
        out.push_str("</figcaption>");
    }
}

impl Line {
    fn draw(&self, out: &mut String, scale: &Scale, (colour, dash): (&str, &str)) {
        let mut path = String::new();
        for (i, (x, y)) in self.points.iter().enumerate() {
            let (x, y) = (scale.x(*x), scale.y(*y));
            match (i, self.steps) {
                (0, _) => write!(path, "M{x:.1} {y:.1}").ok(),
                (_, true) => write!(path, "H{x:.1}V{y:.1}").ok(),
                (_, false) => write!(path, "L{x:.1} {y:.1}").ok(),
            };
        }
        write!(
            out,
            "<path class=\"line\" d=\"{path}\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/>"
        )
        .ok();
        for (x, y) in self.points.iter().filter(|_| self.dots) {
            let (x, y) = (scale.x(*x), scale.y(*y));
            write!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>").ok();
        }
    }
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Values above the axis are clamped to its end.
    fn y(&self, value: f64) -> f64 {
        let share = ((value - self.y.0) / (self.y.1 - self.y.0)).min(1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// Returns a round step (1, 2 or 5 times a power of ten) that gives an axis of this length at most
/// [`TICKS_MAX`] ticks.
fn step(length: f64) -> f64 {
    let rough = length / TICKS_MAX;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough);
    factor.unwrap_or(10.0) * power
}

fn ticks((low, high): (f64, f64)) -> impl Iterator<Item = f64> {
    let step = step((high - low).max(1e-9));
    let first = (low / step).ceil();
    (0..=20)
        .map(move |i| (first + f64::from(i)) * step)
        .take_while(move |t| *t <= high + step / 1e6)
}

/// Formats a tick label with the fewest digits that are exact enough.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

/// Escapes text for use between tags or in an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let of = |low, high| ticks((low, high)).map(number).collect::<Vec<_>>().join(" ");
        assert_eq!(of(0.0, 1.0), "0 0.2 0.4 0.6 0.8 1");
        assert_eq!(of(0.8, 1.2), "0.8 0.9 1 1.1 1.2");
        assert_eq!(of(0.0, 1800.0), "0 500 1000 1500");
        assert_eq!(of(3.0, 3.0), "3");
    }

    #[test]
    fn a_chart_without_a_value_is_still_a_chart() {
        let chart = Chart {
            title: "nothing",
            x: "x",
            y: "y",
            lines: Vec::new(),
            marks: Vec::new(),
            level: None,
            y_max: None,
        };
        let svg = chart.svg();
        assert!(svg.contains("nothing") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
