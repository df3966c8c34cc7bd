//! Section `classes`: loads of several service classes. Each load runs with the classes known to the
//! scheduler, with every request treated as one of the default class, and without the other classes.

use std::fmt::Write;
use tidegate_sim::{
    ClassReport, Classes, Estimate, Policy, SimConfig, TidegateParams, Trace, simulate,
};
use tidegate_types::{ClassId, Seconds, Slo, Tokens};

use crate::arguments::Args;
use crate::cells::{GENERATED, read};
use crate::parallel::in_parallel;

/// Token budget of a step.
const CHUNK: Tokens = Tokens(2048);
/// Shares of an engine for batch work.
const SHARES: [f64; 5] = [0.1, 0.25, 0.5, 0.75, 0.9];
/// The class besides the default one.
const OTHER: ClassId = ClassId(1);

/// A load of two classes.
struct ClassLoad {
    name: &'static str,
    /// Name of the class besides the default one, with its targets.
    class: &'static str,
    classes: Classes,
    draw: Box<dyn Fn(u64) -> Trace + Sync>,
}

impl ClassLoad {
    fn is_batch(&self) -> bool {
        self.classes.targets(OTHER, Slo::default()).is_batch()
    }
}

/// How a load is run.
#[derive(Clone, Copy, PartialEq)]
enum Variant {
    Known,
    Unknown,
    /// Without the requests of the other class.
    Without,
    /// With another share of an engine for batch work.
    Share(f64),
}

struct ClassRun<'a> {
    load: &'a ClassLoad,
    variant: Variant,
    seed: u64,
}

/// Results of one load and variant: one entry a draw, in the order of seeds.
struct Result<'a> {
    variant: Variant,
    draws: &'a [Vec<ClassReport>],
}

fn loads() -> std::result::Result<Vec<ClassLoad>, String> {
    let conv = read("azure_llm_2023_conv.first30min.csv")?;
    let code = read("azure_llm_2023_code.first30min.csv")?;
    let class = |ttft, tpot| {
        let slo = Slo { ttft: Seconds(ttft), tpot: Seconds(tpot), itl: None };
        Classes::default().with_interactive(slo).unwrap_or_default()
    };
    let batch = Classes::default().with_batch().unwrap_or_default();
    let bursts = |seed: u64, rate: f64| Trace::bursts(seed + 1, GENERATED, rate, Seconds(60.0));
    let strict = class(0.5, 0.02);
    let work = |seed: u64, rate| Trace::bursts(seed + 1001, GENERATED, rate, Seconds(45.0));
    let (dialogue, completions) = (conv.clone(), code);
    Ok(vec![
        ClassLoad {
            name: "bursts 60 s ×0.8, and batch work of 25 requests/s",
            class: "batch",
            classes: batch,
            draw: Box::new(move |seed| {
                Trace::merge([bursts(seed, 11.2), work(seed, 25.0).of_class(OTHER)])
            }),
        },
        ClassLoad {
            name: "conv ×5, and code ×6 as batch work",
            class: "batch",
            classes: batch,
            draw: Box::new(move |seed| {
                let batch = completions.clone().resampled(seed).at_rate(6.0).of_class(OTHER);
                let chat = dialogue.clone().resampled(seed).at_rate(5.0);
                // Both last as long as the conversations, 6 minutes.
                let end = chat.end();
                Trace::merge([chat, batch.window(Seconds::ZERO, end)])
            }),
        },
        ClassLoad {
            name: "bursts 60 s ×0.8, a fifth strict",
            class: "TTFT .5 s, TPOT 20 ms",
            classes: strict,
            draw: Box::new(move |seed| bursts(seed, 11.2).with_class(OTHER, 0.2, seed)),
        },
        ClassLoad {
            name: "conv ×5, a fifth strict",
            class: "TTFT .5 s, TPOT 20 ms",
            classes: strict,
            draw: Box::new(move |seed| {
                conv.clone().resampled(seed).at_rate(5.0).with_class(OTHER, 0.2, seed)
            }),
        },
        ClassLoad {
            name: "bursts 60 s ×1.2, a third lax",
            class: "TTFT 5 s, TPOT 100 ms",
            classes: class(5.0, 0.1),
            draw: Box::new(move |seed| bursts(seed, 16.8).with_class(OTHER, 1.0 / 3.0, seed)),
        },
    ])
}

pub fn run(args: &Args) -> std::result::Result<String, String> {
    let mut loads = loads()?;
    loads.retain(|load| load.name.contains(&args.only));
    let variants = |load: &ClassLoad| -> Vec<Variant> {
        let shares = SHARES.iter().map(|share| Variant::Share(*share));
        [Variant::Known, Variant::Unknown, Variant::Without]
            .into_iter()
            .chain(shares.filter(|_| load.is_batch()))
            .collect()
    };
    let mut runs = Vec::new();
    for load in &loads {
        for variant in variants(load) {
            runs.extend((0..args.seeds).map(|seed| ClassRun { load, variant, seed }));
        }
    }
    let reports = in_parallel(Some("classes"), &runs, |run| run.reports(args.params));
    let mut draws = reports.chunks(args.seeds as usize);
    let results: Vec<(&ClassLoad, Vec<Result<'_>>)> = loads
        .iter()
        .map(|load| {
            let all = variants(load).into_iter().zip(draws.by_ref());
            (load, all.map(|(variant, draws)| Result { variant, draws }).collect())
        })
        .collect();
    Ok(format!("{}\n{}", by_class(&results), by_share(&results)))
}

impl ClassRun<'_> {
    fn reports(&self, params: TidegateParams) -> Vec<ClassReport> {
        let mut config = SimConfig { tidegate: params, ..SimConfig::default() };
        config.profile = config.profile.with_chunk(CHUNK);
        config.classes = self.load.classes;
        let mut trace = (self.load.draw)(self.seed);
        match self.variant {
            Variant::Known => {}
            Variant::Unknown => config.tidegate.knows_classes = false,
            Variant::Without => trace = trace.without_class(OTHER),
            Variant::Share(share) => config.tidegate.placement.batch_engine_share = share,
        }
        simulate(&trace, 1.0, Policy::Tidegate, &config).report.classes
    }
}

impl Result<'_> {
    /// Returns a figure of a class in each draw.
    fn figures(&self, class: ClassId, of: impl Fn(&ClassReport) -> f64) -> Vec<f64> {
        let report = |reports: &Vec<ClassReport>| {
            reports.iter().find(|report| report.class == class.0).map(&of)
        };
        self.draws.iter().filter_map(report).collect()
    }
}

fn find<'a>(results: &'a [Result<'a>], variant: Variant) -> Option<&'a Result<'a>> {
    results.iter().find(|result| result.variant == variant)
}

/// Returns the paired difference in points.
fn points(after: &[f64], before: &[f64]) -> Estimate {
    Estimate::paired(after.iter().copied().zip(before.iter().copied())).scaled(100.0)
}

/// Attainment of the default class, the share of batch work that ended before the last arrival.
fn achieved(report: &ClassReport) -> f64 {
    report.attainment.unwrap_or(report.done)
}

/// Returns the table of each class with and without knowledge of the classes.
fn by_class(results: &[(&ClassLoad, Vec<Result<'_>>)]) -> String {
    let mut text = String::from(
        "| load | class | requests | classes known | unknown | difference, points | without the other class | price of it, points | TTFT p99, s: known, unknown |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (load, results) in results {
        let of = |variant| find(results, variant);
        let (Some(known), Some(unknown), Some(without)) =
            (of(Variant::Known), of(Variant::Unknown), of(Variant::Without))
        else {
            continue;
        };
        for (class, name) in [(ClassId::DEFAULT, "default"), (OTHER, load.class)] {
            let (ours, theirs) = (known.figures(class, achieved), unknown.figures(class, achieved));
            let alone = without.figures(class, achieved);
            let (left, price) = match alone.is_empty() {
                true => (String::new(), String::new()),
                false => (
                    format!("{:.3}", Estimate::of(&alone)),
                    format!("{:+.2}", points(&ours, &alone)),
                ),
            };
            let mean = |result: &Result<'_>, of: fn(&ClassReport) -> f64| {
                Estimate::of(&result.figures(class, of)).mean
            };
            writeln!(
                text,
                "| {} | {name} | {:.0} | {:.3} | {:.3} | {:+.2} | {left} | {price} | {:.1}, {:.1} |",
                load.name,
                mean(known, |report| report.requests as f64),
                Estimate::of(&ours),
                Estimate::of(&theirs),
                points(&ours, &theirs),
                mean(known, |report| report.ttft_p99),
                mean(unknown, |report| report.ttft_p99),
            )
            .ok();
        }
    }
    text
}

/// Returns the table of shares of an engine for batch work: the price for the default class and the share
/// of batch work that ended before the last arrival.
fn by_share(results: &[(&ClassLoad, Vec<Result<'_>>)]) -> String {
    let batch: Vec<_> = results.iter().filter(|(load, _)| load.is_batch()).collect();
    if batch.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = batch.iter().map(|(load, _)| load.name).collect();
    let mut text = format!(
        "| share of an engine for batch work | {} |\n| --- |{}\n",
        names.join(" | "),
        " --- |".repeat(names.len())
    );
    for share in SHARES {
        let cell = |(_, results): &&(&ClassLoad, Vec<Result<'_>>)| -> Option<String> {
            let (with, without) =
                (find(results, Variant::Share(share))?, find(results, Variant::Without)?);
            let default = |result: &Result<'_>| result.figures(ClassId::DEFAULT, achieved);
            let done = Estimate::of(&with.figures(OTHER, achieved));
            Some(format!("{:+.2}; {done:.3}", points(&default(with), &default(without))))
        };
        let row: Vec<String> = batch.iter().filter_map(cell).collect();
        writeln!(text, "| {share} | {} |", row.join(" | ")).ok();
    }
    text
}
