//! Cells: a load on a fleet with targets. Tuning cells are those that rules and constants were
//! chosen on; held-out cells were not used for that.

use std::path::Path;
use tidegate_sim::{Profile, SimConfig, TidegateParams, Trace};
use tidegate_types::{Seconds, Slo, Tokens};

use crate::arguments::Args;

const TRACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/traces/");
/// Longest prompt that the profiles' engines take.
const PROMPT_MAX: Tokens = Tokens(32_000);
/// Length of generated loads.
pub const GENERATED: Seconds = Seconds(1800.0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    Tuning,
    HeldOut,
    /// Held-out cells whose prompts share prefixes, on engines with prefix caches.
    Reuse,
}

impl Set {
    pub const ALL: [Set; 3] = [Set::Tuning, Set::HeldOut, Set::Reuse];

    pub fn as_str(self) -> &'static str {
        match self {
            Set::Tuning => "tuning",
            Set::HeldOut => "held-out",
            Set::Reuse => "reuse",
        }
    }
}

/// Load without a rate: a trace, or a generator of traces.
#[derive(Clone, Debug)]
pub enum Source {
    Trace(Trace),
    /// `Trace::bursts` at this many requests/s, with phases of this length.
    Bursts(f64, Seconds),
    /// `Trace::agents` with this many sessions/s.
    Agents(f64),
}

impl Source {
    /// Returns draw number `seed`: generators draw from another seed, a trace is resampled.
    pub fn draw(&self, seed: u64) -> Trace {
        match self {
            Source::Trace(trace) => trace.clone().resampled(seed),
            Source::Bursts(rate, phase) => Trace::bursts(seed + 1, GENERATED, *rate, *phase),
            Source::Agents(sessions) => Trace::agents(seed + 1, GENERATED, *sessions),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Cell {
    pub name: String,
    pub set: Set,
    pub source: Source,
    pub rate: f64,
    pub config: SimConfig,
    /// Whether the engines keep the token budget of their profile.
    pub own_chunk: bool,
}

impl Cell {
    fn new(set: Set, name: &str, source: &Source, rate: f64, params: TidegateParams) -> Cell {
        let config = SimConfig { tidegate: params, ..SimConfig::default() };
        Cell {
            name: format!("{name} ×{rate}"),
            set,
            source: source.clone(),
            rate,
            config,
            own_chunk: false,
        }
    }

    /// Returns the cell with other engines or targets, which `what` names.
    fn with(self, what: &str, change: impl FnOnce(&mut SimConfig)) -> Cell {
        let mut config = self.config;
        change(&mut config);
        Cell { name: format!("{}, {what}", self.name), config, ..self }
    }
}

/// Traces that rules and constants were chosen on, by name.
pub fn tuning_sources() -> Result<Vec<(String, Source)>, String> {
    let code = read("azure_llm_2023_code.first30min.csv")?;
    let conv = read("azure_llm_2023_conv.first30min.csv")?;
    Ok(named([
        ("regime 60 s", Source::Trace(read("regime_shift_60s.jsonl")?)),
        ("regime 300 s", Source::Trace(read("regime_shift_300s.jsonl")?)),
        ("code", Source::Trace(code.clone())),
        ("code+conv", Source::Trace(Trace::merge([conv, code]))),
    ]))
}

/// Traces and generators that were not used for that, by name.
pub fn held_out_sources() -> Result<Vec<(String, Source)>, String> {
    Ok(named([
        ("conv", Source::Trace(read("azure_llm_2023_conv.first30min.csv")?)),
        ("mooncake", Source::Trace(read("mooncake_conversation.first10min.jsonl")?)),
        ("bursts 30 s", Source::Bursts(14.0, Seconds(30.0))),
        ("bursts 120 s", Source::Bursts(14.0, Seconds(120.0))),
    ]))
}

fn named<const N: usize>(sources: [(&str, Source); N]) -> Vec<(String, Source)> {
    sources.map(|(name, source)| (name.to_owned(), source)).into()
}

/// Returns the cells that the arguments select.
pub fn cells(args: &Args) -> Result<Vec<Cell>, String> {
    let mut cells = tuning(args.params)?;
    cells.extend(held_out(args.params)?);
    cells.extend(reuse(args.params)?);
    if let Some(folder) = &args.traces {
        cells.extend(folder_cells(folder, args.params)?);
    }
    cells.retain(|cell| cell.name.contains(&args.only) && cell.set.as_str().contains(&args.set_of));
    match cells.is_empty() {
        true => Err("no cell is selected".to_owned()),
        false => Ok(cells),
    }
}

/// The six columns of the ablation.
fn tuning(params: TidegateParams) -> Result<Vec<Cell>, String> {
    let sources = tuning_sources()?;
    let rates: [&[f64]; 4] = [&[1.0, 1.2], &[1.0, 1.2], &[2.0], &[2.0]];
    let of = |((name, source), rates): (&(String, Source), &[f64])| -> Vec<Cell> {
        rates.iter().map(|rate| Cell::new(Set::Tuning, name, source, *rate, params)).collect()
    };
    Ok(sources.iter().zip(rates).flat_map(of).collect())
}

fn held_out(params: TidegateParams) -> Result<Vec<Cell>, String> {
    let sources = held_out_sources()?;
    let [(_, conv), (_, mooncake), (_, short), (_, long)] = sources.as_slice() else {
        return Err("four held-out sources".to_owned());
    };
    let cell = |name, source, rate| Cell::new(Set::HeldOut, name, source, rate, params);
    let slo = |ttft, tpot| {
        move |config: &mut SimConfig| config.slo = Slo { ttft, tpot, ..Slo::default() }
    };
    let engines = |count| move |config: &mut SimConfig| config.engines = count;
    let profile = |name| Profile::named(name).ok_or(format!("no profile {name}"));
    let (a100, h20) = (profile("llama70b-a100x4")?, profile("qwen3-32b-h20")?);
    let (strict, loose) = ((Seconds(0.5), Seconds(0.02)), (Seconds(5.0), Seconds(0.05)));
    Ok(vec![
        cell("conv", conv, 7.0),
        cell("conv", conv, 9.0),
        cell("mooncake", mooncake, 1.0),
        cell("bursts 30 s", short, 1.0),
        cell("bursts 30 s", short, 1.3),
        cell("bursts 120 s", long, 1.0),
        cell("bursts 120 s", long, 1.3),
        cell("bursts 30 s", short, 4.0),
        cell("bursts 30 s", short, 0.5).with("4 engines", engines(4)),
        cell("bursts 120 s", long, 2.2).with("16 engines", engines(16)),
        cell("conv", conv, 16.0).with("16 engines", engines(16)),
        cell("bursts 60 s", &Source::Bursts(14.0, Seconds(60.0)), 0.7)
            .with("4 H100 and 4 A100", |config| config.second = Some(a100)),
        // 8.5 requests/s: Llumnix's own cell.
        cell("conv", conv, 1.52).with("8 H20, TTFT 6 s, TPOT 50 ms", |config| {
            config.profile = h20;
            config.slo = Slo { ttft: Seconds(6.0), tpot: Seconds(0.05), ..Slo::default() };
        }),
        cell("bursts 120 s", long, 0.8).with("TTFT .5 s, TPOT 20 ms", slo(strict.0, strict.1)),
        cell("bursts 30 s", short, 1.6).with("TTFT 5 s, TPOT 50 ms", slo(loose.0, loose.1)),
        cell("mooncake", mooncake, 1.5).with("TTFT 5 s, TPOT 50 ms", slo(loose.0, loose.1)),
    ])
}

fn reuse(params: TidegateParams) -> Result<Vec<Cell>, String> {
    let mooncake = Source::Trace(read("mooncake_conversation.first10min.jsonl")?);
    let cell = |name, source: &Source, rate| {
        Cell::new(Set::Reuse, name, source, rate, params)
            .with("prefix caches", |config| config.prefix_caching = true)
    };
    let cells = [
        cell("mooncake", &mooncake, 1.5),
        cell("agents 0.06/s", &Source::Agents(0.06), 1.0),
        cell("agents 0.1/s", &Source::Agents(0.1), 1.0),
    ];
    let with_events =
        |cell: Cell| cell.with("KV events", |config| config.tidegate.kv_events = true);
    Ok(cells.into_iter().flat_map(|cell| [cell.clone(), with_events(cell)]).collect())
}

/// Cells of the other traces of a folder: one each at its own rate, with prefix caches where the
/// trace has block ids. Files that `benches/traces` has too are left out.
fn folder_cells(folder: &Path, params: TidegateParams) -> Result<Vec<Cell>, String> {
    let problem = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(problem)? {
        paths.push(entry.map_err(problem)?.path());
    }
    paths.sort();
    let mut cells = Vec::new();
    for path in paths {
        let trace = path.extension().is_some_and(|kind| kind == "csv" || kind == "jsonl");
        let (Some(name), true) = (path.file_stem().and_then(|name| name.to_str()), trace) else {
            continue;
        };
        let file = path.file_name().map(|file| Path::new(TRACES).join(file));
        if file.is_some_and(|file| file.exists()) {
            continue;
        }
        let trace = parse(&path)?;
        let blocks = trace.arrivals.iter().any(|arrival| !arrival.blocks.is_empty());
        let source = Source::Trace(trace);
        let mut cell = Cell::new(Set::HeldOut, name, &source, 1.0, params);
        if name.starts_with("dynamo") {
            // As Dynamo's own replay of these traces: docs/spec/engine-model.md#dynamo-mocker.
            cell = cell.with("Dynamo mocker, TTFT .5 s, TPOT 25 ms", |config| {
                config.profile = Profile::named("dynamo-mocker").unwrap_or_default();
                config.slo = Slo { ttft: Seconds(0.5), tpot: Seconds(0.025), ..Slo::default() };
            });
            cell.own_chunk = true;
        }
        let mocker = cell.own_chunk;
        cells.push(cell);
        if blocks && !mocker {
            let cell = Cell::new(Set::Reuse, name, &source, 1.0, params);
            cells.push(cell.with("prefix caches", |config| config.prefix_caching = true));
        }
    }
    Ok(cells)
}

/// Returns a trace of `benches/traces`.
pub fn read(name: &str) -> Result<Trace, String> {
    parse(&Path::new(TRACES).join(name))
}

fn parse(path: &Path) -> Result<Trace, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let trace = Trace::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(trace.cap_prompt(PROMPT_MAX))
}
