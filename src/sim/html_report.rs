//! A comparison or a live run as one self-contained page: attainment against rate, distributions, one
//! run over time, and all figures. The charts of the dashboard draw it. It refers to no external
//! resource, so that it can be opened offline.

use tidegate_types::{Seconds, Slo};

use crate::report::{Outcome, Report};
use crate::report_data::{
    ChartData, OFF_SCALE, ReportPage, Section, Series, Table, distribution, figure, percentiles,
};
use crate::simulate::{Run, SimConfig};
use crate::trace::Trace;

/// Renders a comparison. `names` are the traces; `shown` is the trace at its rate and the run that is
/// drawn over time. Equal values give equal bytes.
pub fn page(
    names: &[String],
    config: &SimConfig,
    runs: &[Run],
    shown: Option<(&Trace, &Run)>,
) -> String {
    let second = config.second.map_or(String::new(), |second| format!(" and {}", second.name));
    let mut sections = vec![against_rate(runs)];
    if let Some((trace, run)) = shown {
        let rate = run.report.rate;
        let same = |other: &&Run| other.report.rate == rate && !other.outcomes.is_empty();
        let lines: Vec<(&str, &[Outcome])> = runs
            .iter()
            .filter(same)
            .map(|run| (run.report.policy.as_str(), &run.outcomes[..]))
            .collect();
        sections.push(distributions(
            &format!("Distributions at {rate} times the rate"),
            &lines,
            &config.slo,
        ));
        sections.push(over_time(config, trace, run));
    }
    sections.push(figures(
        runs,
        config.engines,
        shown.map(|(trace, run)| (trace, run.report.rate)),
    ));
    let data = ReportPage {
        title: names.join(" + "),
        text: format!(
            "{} engines like {}{second}, up to {} tokens a step. {}",
            config.engines,
            config.profile.name,
            config.profile.chunk.get(),
            targets(&config.slo),
        ),
        sections,
    };
    render(&data)
}

/// Renders a live run: the outcomes of `trace`, as sent.
pub fn live_page(
    names: &[String],
    slo: &Slo,
    trace: &Trace,
    report: &Report,
    outcomes: &[Outcome],
) -> String {
    let lines = [(report.policy.as_str(), outcomes)];
    let data = ReportPage {
        title: names.join(" + "),
        text: format!(
            "{} requests over {} s, sent to a running server. {}",
            report.requests,
            figure(trace.end().get(), 1),
            targets(slo)
        ),
        sections: vec![
            Section {
                title: "Latencies over time".to_owned(),
                charts: latencies(slo, trace, outcomes, &[]),
                ..Section::default()
            },
            distributions("Distributions", &lines, slo),
            Section {
                title: "All figures".to_owned(),
                table: Some(table([(report, None, None)].into_iter()).without_cost()),
                ..Section::default()
            },
        ],
    };
    render(&data)
}

fn render(data: &ReportPage) -> String {
    // The data consists of text and finite numbers.
    let json = serde_json::to_string(data).unwrap_or_default();
    tidegate_page::report(&data.title, &json)
}

fn targets(slo: &Slo) -> String {
    let itl = slo.itl.map_or(String::new(), |itl| {
        format!(" Its largest gap between two tokens (ITL) may be {} ms.", itl.as_millis())
    });
    format!(
        "A request is served if its first token comes within {} s and its tokens every {} ms on \
         average (TTFT and TPOT).{itl}",
        slo.ttft.get(),
        slo.tpot.as_millis()
    )
}

fn against_rate(runs: &[Run]) -> Section {
    let mut series: Vec<Series> = Vec::new();
    for run in runs {
        let point = (run.report.rate, run.report.attainment);
        match series.iter_mut().find(|line| line.name == run.report.policy) {
            Some(line) => line.points.push(point),
            None => series.push(Series {
                name: run.report.policy.clone(),
                style: None,
                kind: "dots",
                points: vec![point],
            }),
        }
    }
    for line in &mut series {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let chart = ChartData {
        title: "Attainment".to_owned(),
        axis: "share of requests served, by the factor on the trace's rate",
        x_unit: "×",
        percent: true,
        y_max: Some(1.0),
        series,
        ..ChartData::default()
    };
    Section { title: "Policies".to_owned(), charts: vec![chart], ..Section::default() }
}

fn distributions(title: &str, lines: &[(&str, &[Outcome])], slo: &Slo) -> Section {
    let chart = |title: &str, x_unit, target: f64, value: &dyn Fn(&Outcome) -> Option<f64>| {
        let series = lines.iter().map(|(name, of)| distribution(name, of, target, value));
        ChartData {
            title: title.to_owned(),
            axis: "share of requests at or below",
            x_unit,
            percent: true,
            y_max: Some(1.0),
            x_level: Some(target),
            series: series.collect(),
            ..ChartData::default()
        }
    };
    let (ttft, tpot) = (slo.ttft.get(), slo.tpot.as_millis());
    Section {
        title: title.to_owned(),
        text: format!(
            "Targets: TTFT {ttft} s, TPOT {tpot} ms. Requests without a value count as above."
        ),
        charts: vec![
            chart("TTFT", "s", ttft, &|outcome| outcome.ttft.map(Seconds::get)),
            chart("TPOT", "ms", tpot, &|outcome| outcome.tpot.map(Seconds::as_millis)),
        ],
        table: None,
    }
}

fn over_time(config: &SimConfig, trace: &Trace, run: &Run) -> Section {
    let end = trace.end().get().max(1e-9);
    let pools = &run.timeline.prefill_engines;
    let marks: Vec<f64> = pools.iter().skip(1).map(|(at, _)| at.since_start().get()).collect();
    let mut charts = Vec::new();
    if let Some((_, last)) = pools.last() {
        let point = |(at, engines): &(_, usize)| {
            let at: &tidegate_types::Moment = at;
            (at.since_start().get(), *engines as f64)
        };
        let mut prefill: Vec<(f64, f64)> = pools.iter().map(point).collect();
        prefill.push((end.max(prefill.last().map_or(end, |last| last.0)), *last as f64));
        let decode = prefill.iter().map(|(at, n)| (*at, config.engines as f64 - n)).collect();
        let step = |name: &str, style, points| Series {
            name: name.to_owned(),
            style: Some(style),
            kind: "step",
            points,
        };
        charts.push(ChartData {
            title: "Pools".to_owned(),
            axis: "engines by role",
            unit: "engines",
            x_unit: "s",
            y_max: Some(config.engines as f64),
            series: vec![step("prefill", "prefill", prefill), step("decode", "decode", decode)],
            ..ChartData::default()
        });
        let queue = run.timeline.queue.iter().enumerate();
        let queue = queue.map(|(bin, n)| (run.timeline.middle(bin), *n as f64)).collect();
        charts.push(ChartData {
            title: "Queue".to_owned(),
            axis: "longest queue; ▼ is a flip",
            unit: "requests",
            x_unit: "s",
            marks: marks.clone(),
            series: vec![Series::line("waiting requests", queue)],
            ..ChartData::default()
        });
    }
    charts.extend(latencies(&config.slo, trace, &run.outcomes, &marks));
    let Report { policy, rate, .. } = &run.report;
    Section {
        title: format!("{policy} at {rate} times the rate, over time"),
        charts,
        ..Section::default()
    }
}

/// TTFT and TPOT by arrival.
fn latencies(slo: &Slo, trace: &Trace, outcomes: &[Outcome], marks: &[f64]) -> Vec<ChartData> {
    let end = trace.end().get().max(1e-9);
    let chart =
        |title: &str, unit, target: f64, value: &dyn Fn(usize) -> Option<Seconds>| ChartData {
            title: title.to_owned(),
            axis: "by arrival",
            unit,
            x_unit: "s",
            y_limit: Some(target * OFF_SCALE),
            level: Some(target),
            marks: marks.to_vec(),
            series: percentiles(trace, end, value),
            ..ChartData::default()
        };
    let of = |i: usize| outcomes.get(i);
    vec![
        chart("TTFT", "s", slo.ttft.get(), &|i| of(i)?.ttft),
        chart("TPOT", "ms", slo.tpot.as_millis(), &|i| of(i)?.tpot.map(|tpot| tpot * 1e3)),
    ]
}

/// Returns the table of all runs. `at`: the trace at a rate, from which durations at other rates
/// follow.
fn figures(runs: &[Run], engines: usize, at: Option<(&Trace, f64)>) -> Section {
    let cost = |report: &Report| {
        let (trace, rate) = at?;
        let seconds = trace.end().get() * rate / report.rate;
        let served = report.attainment * report.requests as f64;
        (served > 0.0).then(|| engines as f64 * seconds / served)
    };
    let rows = runs.iter().map(|run| (&run.report, run.split, cost(&run.report)));
    Section {
        title: "All figures".to_owned(),
        text: "Cost: engine-seconds of the fleet per request served.".to_owned(),
        charts: Vec::new(),
        table: Some(table(rows)),
    }
}

fn table<'a>(rows: impl Iterator<Item = (&'a Report, Option<usize>, Option<f64>)>) -> Table {
    let row = |(report, split, cost): (&Report, Option<usize>, Option<f64>)| {
        let split = split.map_or(String::new(), |prefills| format!(" ({prefills}P)"));
        vec![
            report.rate.to_string(),
            format!("{}{split}", report.policy),
            report.requests.to_string(),
            figure(report.attainment, 3),
            figure(report.ttft_attainment, 3),
            figure(report.tpot_attainment, 3),
            figure(report.ttft_p50, 2),
            figure(report.ttft_p99, 2),
            figure(report.tpot_p50 * 1e3, 1),
            figure(report.tpot_p99 * 1e3, 1),
            figure(report.itl_p99 * 1e3, 1),
            figure(report.itl_max * 1e3, 0),
            report.flips.to_string(),
            figure(cost.unwrap_or(f64::NAN), 2),
        ]
    };
    Table {
        head: vec![
            ">Rate",
            "Policy",
            ">Requests",
            ">Served",
            ">TTFT met",
            ">TPOT met",
            ">TTFT p50, s",
            ">p99",
            ">TPOT p50, ms",
            ">p99",
            ">ITL p99, ms",
            ">largest",
            ">Flips",
            ">Cost, s",
        ],
        rows: rows.map(row).collect(),
    }
}

#[cfg(test)]
#[path = "html_report_tests.rs"]
mod tests;
