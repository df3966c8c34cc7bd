//! `tidegate explain REQUEST_ID`: where one request spent its time, and how it was placed.

use serde::Deserialize;
use std::fmt::Write as _;
use std::io::Write as _;

use crate::operate::{Admin, OperateError, read};
use crate::terminal::{ABSENT, Paint, Style, time_text};

/// Show one request: its phases as a waterfall, its predicted and observed times, and the candidates of
/// its placement.
///
/// The proxy keeps the last admin.requests_kept requests (4096).
#[derive(clap::Args)]
pub struct Args {
    /// The request's x-request-id (in every answer of the proxy), or its number in /v1/requests;
    /// without one: the last requests, one a line
    request_id: Option<String>,
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct ExplainedRequest {
    request_id: String,
    model: Option<String>,
    stage: String,
    prompt_tokens: u64,
    output_tokens: u64,
    prefill_backend: Option<String>,
    backend: Option<String>,
    age_seconds: Option<f64>,
    ended: Option<String>,
    #[serde(default)]
    status: u16,
    problem: Option<String>,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    duration_seconds: f64,
    #[serde(default)]
    phases: Vec<ExplainedPhase>,
    #[serde(default)]
    targets: ExplainedNumbers,
    #[serde(default)]
    predicted: ExplainedNumbers,
    #[serde(default)]
    observed: ExplainedNumbers,
    #[serde(default)]
    choice: String,
    #[serde(default)]
    candidates: Vec<ExplainedCandidate>,
}

#[derive(Deserialize)]
struct ExplainedPhase {
    name: String,
    start_seconds: f64,
    seconds: f64,
    backend: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ExplainedNumbers {
    queued_seconds: Option<f64>,
    backlog_seconds: Option<f64>,
    prefill_seconds: Option<f64>,
    cached_tokens: Option<u64>,
    ttft_seconds: Option<f64>,
    tpot_seconds: Option<f64>,
    gap_max_seconds: Option<f64>,
    itl_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct ExplainedCandidate {
    backend: String,
    role: String,
    chosen: bool,
    open: bool,
    prefill_room: bool,
    decode_room: bool,
    streams: u32,
    cached_tokens: u64,
    backlog_seconds: f64,
    prefill_end_seconds: f64,
}

/// Requests in the list without an id.
const LISTED: usize = 20;
/// Characters of a bar.
const BAR: usize = 40;

/// `tidegate explain`
pub fn run(args: &Args) -> Result<(), OperateError> {
    let path = match &args.request_id {
        Some(id) => format!("/v1/requests/{}", encoded(id)),
        None => format!("/v1/requests?ended={LISTED}"),
    };
    let body = args.admin.ask("GET", &path, "")?;
    let text = match (args.json, &args.request_id) {
        (true, _) => body + "\n",
        (false, Some(_)) => waterfall(&read(&body)?),
        (false, None) => list(&read::<Vec<ExplainedRequest>>(&body)?),
    };
    // A closed stdout (EPIPE) is ignored.
    write!(std::io::stdout(), "{text}").ok();
    Ok(())
}

/// Percent-encodes what a path segment cannot carry.
fn encoded(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let letter = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    id.bytes().map(letter).collect()
}

fn list(requests: &[ExplainedRequest]) -> String {
    let mut text = format!(
        "{:<38} {:<12} {:>8} {:>8} {:>9} {:>9}  engines\n",
        "request", "outcome", "prompt", "output", "TTFT", "time"
    );
    for request in requests {
        let time = request.age_seconds.unwrap_or(request.duration_seconds);
        let engines = [&request.prefill_backend, &request.backend];
        let engines: Vec<&str> = engines.into_iter().flatten().map(String::as_str).collect();
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{:<38} {:<12} {:>8} {:>8} {:>9} {:>9}  {}",
            request.request_id,
            request.ended.as_ref().unwrap_or(&request.stage),
            request.prompt_tokens,
            request.output_tokens,
            time_text(request.observed.ttft_seconds),
            time_text(Some(time)),
            engines.join(" → ")
        )
        .ok();
    }
    text
}

fn waterfall(request: &ExplainedRequest) -> String {
    let paint = Paint::stdout();
    let model = request.model.as_deref().unwrap_or("no model");
    let Some(ended) = &request.ended else {
        let age = time_text(request.age_seconds);
        let id = &request.request_id;
        return format!("{id} · {model} · in flight: {}, {age} old\n", request.stage);
    };
    let mut text = format!(
        "{} · {model} · {ended} ({}) after {}, {} prompt and {} output tokens, attempts: {}\n",
        paint.style(Style::Bold, &request.request_id),
        request.status,
        time_text(Some(request.duration_seconds)),
        request.prompt_tokens,
        request.output_tokens,
        request.attempts,
    );
    if let Some(problem) = &request.problem {
        text += &format!("{}\n", paint.style(Style::Red, problem));
    }
    text += "\n";
    for phase in &request.phases {
        text += &bar(phase, request.duration_seconds, paint);
    }
    text += &format!("\n{}\n\n", request.choice);
    text += &beside(request, paint);
    text += &candidates(&request.candidates, paint);
    text
}

fn bar(phase: &ExplainedPhase, whole: f64, paint: Paint) -> String {
    let cells = |seconds: f64| (seconds / whole.max(1e-9) * BAR as f64).round() as usize;
    let before = cells(phase.start_seconds).min(BAR - 1);
    let long = cells(phase.seconds).clamp(1, BAR - before);
    let style = match phase.name.as_str() {
        "queue" => Style::Yellow,
        "prefill" => Style::Blue,
        "handoff" => Style::Faint,
        _ => Style::Green,
    };
    let drawn = paint.style(style, &"█".repeat(long));
    let rest = " ".repeat(BAR - before - long);
    let name = match phase.name.as_str() {
        "handoff" => "hand-off",
        "unstreamed" => "answer",
        name => name,
    };
    let on = phase.backend.as_deref().unwrap_or("");
    let time = time_text(Some(phase.seconds));
    format!("  {name:<9} {time:>9} │{}{drawn}{rest}│ {on}\n", " ".repeat(before))
}

/// Predictions beside observations.
fn beside(request: &ExplainedRequest, paint: Paint) -> String {
    let ExplainedRequest { predicted, observed, targets, .. } = request;
    let mut text =
        format!("  {:<16} {:>10} {:>10} {:>10}\n", "", "predicted", "observed", "target");
    let rows = [
        ("queue", None, observed.queued_seconds, None),
        ("backlog", predicted.backlog_seconds, None, None),
        ("prefill", predicted.prefill_seconds, observed.prefill_seconds, None),
        ("TTFT", predicted.ttft_seconds, observed.ttft_seconds, targets.ttft_seconds),
        ("TPOT", predicted.tpot_seconds, observed.tpot_seconds, targets.tpot_seconds),
        ("largest gap", None, observed.gap_max_seconds, targets.itl_seconds),
    ];
    for (name, predicted, observed, target) in rows {
        let missed = matches!((observed, target), (Some(seen), Some(most)) if seen > most);
        let seen = format!("{:>10}", time_text(observed));
        let seen = if missed { paint.style(Style::Red, &seen) } else { seen };
        let (predicted, target) = (time_text(predicted), time_text(target));
        text += &format!("  {name:<16} {predicted:>10} {seen} {target:>10}\n");
    }
    let tokens = |count: Option<u64>| count.map_or(ABSENT.to_owned(), |count| count.to_string());
    let (before, after) = (tokens(predicted.cached_tokens), tokens(observed.cached_tokens));
    text + &format!("  {:<16} {before:>10} {after:>10} {ABSENT:>10}\n", "cached tokens")
}

fn candidates(candidates: &[ExplainedCandidate], paint: Paint) -> String {
    if candidates.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n  {:<20} {:<9} {:>10} {:>8} {:>8} {:>12}\n",
        "candidate", "role", "backlog", "streams", "cached", "prefill ends"
    );
    for each in candidates {
        let note = match (each.chosen, each.open, each.prefill_room, each.decode_room) {
            (true, ..) => "chosen",
            (_, false, ..) => "not usable",
            (_, _, false, _) => "at its prefill backlog bound",
            (_, _, _, false) => "no capacity for a stream",
            _ => "",
        };
        let line = format!(
            "  {:<20} {:<9} {:>10} {:>8} {:>8} {:>12}  {note}",
            each.backend,
            each.role,
            time_text(Some(each.backlog_seconds)),
            each.streams,
            each.cached_tokens,
            time_text(Some(each.prefill_end_seconds)),
        );
        let line = if each.chosen { paint.style(Style::Bold, &line) } else { line };
        text += &format!("{}\n", line.trim_end());
    }
    text
}
