//! Comparison as one self-contained page: attainment against rate for every policy, one run over
//! time, and all figures. The page refers to no external resource, because it is sent by mail.

use std::fmt::Write;
use tidegate_types::{Seconds, Slo};

use crate::chart::{Chart, Line, escape};
use crate::simulate::{Run, SimConfig};
use crate::trace::Trace;

/// Number of time bins of a run.
const BINS: usize = 180;
/// Latencies beyond this multiple of their target are clamped to the top, so that the rest stays
/// readable.
const OFF_SCALE: f64 = 4.0;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --grid: #d8dee4; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --grid: #30363d; --page: #0d1117; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 900px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, figcaption { color: var(--soft); }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption span { display: inline-flex; align-items: center; gap: .4rem; margin-right: 1.2rem; }
svg { width: 100%; height: auto; } svg.key { width: 34px; height: 8px; }
text { fill: var(--ink); font-size: 12px; } text.title { font-weight: 600; font-size: 14px; }
text.tick { fill: var(--soft); font-size: 11px; } text.axis { fill: var(--soft); }
path { fill: none; } .grid { stroke: var(--grid); } .line { stroke-width: 1.8; }
.key path { stroke-width: 2; } .mark { stroke: var(--soft); stroke-width: .6; stroke-opacity: .45; }
.level { stroke: #c62828; stroke-dasharray: 3 3; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid var(--grid); }
th:nth-child(2), td:nth-child(2) { text-align: left; }
";

/// Renders the page. `names` are the traces; `shown` is the trace at its rate and the run that is
/// drawn over time. Equal values give equal bytes.
pub fn page(
    names: &[String],
    config: &SimConfig,
    runs: &[Run],
    shown: Option<(&Trace, &Run)>,
) -> String {
    let mut out = String::with_capacity(64 << 10);
    let Slo { ttft, tpot } = config.slo;
    // Writing to a String cannot fail.
    let second = config.second.map_or(String::new(), |second| format!(" and {}", second.name));
    let kinds = format!("{}{second}", config.profile.name);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>tidegate simulate</title>\
         <style>{STYLE}</style>\n<h1>{}</h1>\n<p>{} engines like {}, up to {} tokens a step. A request \
         counts as served if its first token came within {} s and its tokens every {} ms on average \
         (TTFT and TPOT).</p>\n",
        escape(&names.join(" + ")),
        config.engines,
        escape(&kinds),
        config.profile.chunk.get(),
        ttft.get(),
        tpot.as_millis(),
    )
    .ok();
    out.push_str(&against_rate(runs));
    if let Some((trace, run)) = shown {
        over_time(&mut out, config, trace, run);
    }
    table(&mut out, runs);
    out.push_str("</html>\n");
    out
}

fn against_rate(runs: &[Run]) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for run in runs {
        let point = (run.report.rate, run.report.attainment);
        match lines.iter_mut().find(|line| line.name == run.report.policy) {
            Some(line) => line.points.push(point),
            None => lines.push(Line {
                name: run.report.policy.clone(),
                points: vec![point],
                steps: false,
                dots: true,
            }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Chart {
        title: "Attainment",
        x: "times the trace's rate",
        y: "share of requests served",
        lines,
        marks: Vec::new(),
        level: None,
        y_max: Some(1.0),
    }
    .svg()
}

fn over_time(out: &mut String, config: &SimConfig, trace: &Trace, run: &Run) {
    let (policy, rate) = (escape(&run.report.policy), run.report.rate);
    writeln!(out, "<h2>{policy} at {rate} times the rate, over time</h2>").ok();
    let end = trace.end().get().max(1e-9);
    let marks: Vec<f64> =
        run.timeline.prefill_engines.iter().skip(1).map(|(at, _)| at.since_start().get()).collect();
    if !run.timeline.prefill_engines.is_empty() {
        let mut prefill: Vec<(f64, f64)> = run
            .timeline
            .prefill_engines
            .iter()
            .map(|(at, engines)| (at.since_start().get(), *engines as f64))
            .collect();
        if let Some((_, last)) = prefill.last().copied() {
            prefill.push((end.max(prefill.last().map_or(end, |point| point.0)), last));
        }
        let decode = prefill.iter().map(|(at, n)| (*at, config.engines as f64 - n)).collect();
        let line =
            |name: &str, points| Line { name: name.to_owned(), points, steps: true, dots: false };
        let lines = vec![line("prefill", prefill), line("decode", decode)];
        out.push_str(&chart("Pools", "engines", lines, &[], None));
        let queue = run.timeline.queue.iter().enumerate();
        let queue = queue.map(|(bin, n)| (run.timeline.middle(bin), *n as f64)).collect();
        let lines =
            vec![Line { name: "longest queue".into(), points: queue, steps: false, dots: false }];
        out.push_str(&chart(
            "Requests that wait; a thin line is a flip",
            "requests",
            lines,
            &marks,
            None,
        ));
    }
    let slo = config.slo;
    let of = |value: &dyn Fn(usize) -> Option<Seconds>| percentiles(trace, end, value);
    let lines = of(&|i| run.outcomes[i].ttft);
    out.push_str(&chart("TTFT, by arrival", "seconds", lines, &marks, Some(slo.ttft.get())));
    let lines = of(&|i| run.outcomes[i].tpot.map(|tpot| tpot * 1e3));
    out.push_str(&chart(
        "TPOT, by arrival",
        "milliseconds",
        lines,
        &marks,
        Some(slo.tpot.as_millis()),
    ));
}

fn chart(title: &str, y: &str, lines: Vec<Line>, marks: &[f64], target: Option<f64>) -> String {
    Chart {
        title,
        x: "seconds after the start",
        y,
        lines,
        marks: marks.to_vec(),
        level: target.map(|target| (target, "target")),
        y_max: target.map(|target| target * OFF_SCALE),
    }
    .svg()
}

/// Returns the median and the 90th percentile of a value by arrival bin.
fn percentiles(trace: &Trace, end: f64, value: &dyn Fn(usize) -> Option<Seconds>) -> Vec<Line> {
    let mut bins = vec![Vec::new(); BINS];
    for (i, arrival) in trace.arrivals.iter().enumerate() {
        let bin = (arrival.at.get() / end * BINS as f64) as usize;
        bins[bin.min(BINS - 1)].extend(value(i).map(Seconds::get));
    }
    for bin in &mut bins {
        bin.sort_by(f64::total_cmp);
    }
    let line = |name: &str, share: f64| {
        let filled = bins.iter().enumerate().filter(|(_, bin)| !bin.is_empty());
        let points = filled.map(|(i, bin)| {
            let rank = (share * bin.len() as f64).ceil() as usize;
            ((i as f64 + 0.5) / BINS as f64 * end, bin[rank.saturating_sub(1)])
        });
        Line { name: name.to_owned(), points: points.collect(), steps: false, dots: false }
    };
    vec![line("median", 0.5), line("90th percentile", 0.9)]
}

fn table(out: &mut String, runs: &[Run]) {
    out.push_str(
        "<h2>All figures</h2>\n<table><tr><th>rate<th>policy<th>requests<th>served<th>TTFT met\
         <th>TPOT met<th>TTFT p50, s<th>p99<th>TPOT p50, ms<th>p99<th>flips</tr>\n",
    );
    for Run { report, split, .. } in runs {
        let split = split.map_or(String::new(), |prefills| format!(" ({prefills}P)"));
        let numbers = [
            (report.attainment, 3),
            (report.ttft_attainment, 3),
            (report.tpot_attainment, 3),
            (report.ttft_p50, 2),
            (report.ttft_p99, 2),
            (report.tpot_p50 * 1e3, 1),
            (report.tpot_p99 * 1e3, 1),
        ];
        let numbers = numbers.map(|(value, digits)| match value.is_nan() {
            true => "<td>–".to_owned(),
            false => format!("<td>{value:.digits$}"),
        });
        writeln!(
            out,
            "<tr><td>{}<td>{}{split}<td>{}{}<td>{}</tr>",
            report.rate,
            escape(&report.policy),
            report.requests,
            numbers.concat(),
            report.flips,
        )
        .ok();
    }
    out.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::simulate::simulate;

    fn runs(trace: &Trace, config: &SimConfig) -> Vec<Run> {
        let policies = [Policy::Aggregated, Policy::Bound, Policy::Tidegate];
        policies.map(|policy| simulate(trace, 1.0, policy, config)).to_vec()
    }

    fn trace(lines: usize) -> Trace {
        let line = |i: usize| {
            let at = i as f64 * 0.4;
            format!(
                "{{\"timestamp\":{},\"input_length\":{},\"output_length\":40}}\n",
                at * 1e3,
                200 + i * 90
            )
        };
        Trace::parse(&(0..lines).map(line).collect::<String>()).unwrap()
    }

    #[test]
    fn a_page_names_every_policy_and_refers_to_nothing_outside() {
        let (config, trace) = (SimConfig { engines: 3, ..SimConfig::default() }, trace(60));
        let runs = runs(&trace, &config);
        let names = ["a <b> & \"c\"".to_owned()];
        let html = page(&names, &config, &runs, Some((&trace, &runs[2])));
        for word in ["aggregated", "bound", "tidegate", "Pools", "TTFT", "TPOT", "All figures"] {
            assert!(html.contains(word), "{word}");
        }
        for word in ["http", "src=", "<script", "<b>", "NaN", "inf"] {
            assert!(!html.contains(word), "{word}");
        }
        for tag in ["svg", "figure", "text", "figcaption", "table", "h2"] {
            let count = |what: String| html.matches(&what).count();
            let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
            assert_eq!(opened, count(format!("</{tag}>")), "{tag}");
        }
        assert_eq!(html, page(&names, &config, &runs, Some((&trace, &runs[2]))));
    }

    #[test]
    fn a_run_without_a_request_has_a_page_too() {
        let (config, trace) = (SimConfig::default(), Trace { arrivals: Vec::new() });
        let runs = runs(&trace, &config);
        let html = page(&["empty".to_owned()], &config, &runs, Some((&trace, &runs[2])));
        assert!(html.contains("empty") && !html.contains("NaN"), "{html}");
    }
}
