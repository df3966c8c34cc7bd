//! `tidegate emulate`: serves emulated engines over HTTP until interrupted.

use std::io::Write;
use std::net::SocketAddr;
use tidegate_emulator::{
    EmulatedEngine, EmulatorConfig, LoadFailurePolicy, SglangMode, VllmConnector, VllmKvRole, start,
};
use tidegate_sim::{Bursts, Profile};
use tidegate_types::{Seconds, Tokens};

/// Serve emulated engines.
#[derive(clap::Args)]
pub struct Args {
    /// Engine whose protocol is emulated
    #[arg(long, value_enum, default_value = "vllm")]
    engine: EngineArg,
    /// vLLM's kv_connector; bootstrap server and side channel use the engine's listening port
    #[arg(long, value_enum, default_value = "nixl")]
    connector: ConnectorArg,
    /// vLLM's kv_role
    #[arg(long, value_enum, default_value = "kv_both", value_name = "ROLE")]
    kv_role: KvRoleArg,
    /// Number of data-parallel ranks of a Mooncake engine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    data_parallel_size: u16,
    /// TensorRT-LLM's internal authentication key; hand-offs must be signed with it
    #[arg(long, value_name = "KEY")]
    disagg_key: Option<String>,
    /// SGLang's --disaggregation-mode; the bootstrap port is the listening port
    #[arg(long, value_enum, default_value = "null", value_name = "MODE")]
    disaggregation_mode: Mode,
    /// Address of the first engine; the others use the following ports
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Number of engines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Engine profile (speed and memory): llama70b-h100x4, llama70b-a100x4, llama8b-h100, fast, qwen3-32b-h20 or dynamo-mocker
    #[arg(long, default_value = "llama70b-h100x4", value_parser = profile)]
    profile: Profile,
    /// Name of the served model
    #[arg(long, default_value = "emulated")]
    model: String,
    /// The model's context length in tokens
    #[arg(long, default_value_t = 131_072)]
    max_model_len: u64,
    /// Behaviour of a decode engine when the KV transfer fails
    #[arg(long, value_enum, default_value = "fail")]
    kv_load_failure_policy: LoadFailureArg,
    /// Lease of prefilled KV: time within which it must be fetched
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", value_parser = seconds)]
    kv_lease_seconds: f64,
    /// Timeout of a decode engine for an unresponsive prefill engine
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = seconds)]
    handshake_timeout: f64,
    /// Host name advertised to other engines; default: the listening address
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Output tokens of a request without max_tokens
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    default_output: u64,
    /// Token budget of one step (max_num_batched_tokens); default: the profile's
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    max_num_batched_tokens: Option<u64>,
    /// Queue limit in requests; above it the engine answers 503
    #[arg(long, value_name = "REQUESTS")]
    max_num_queued_reqs: Option<u32>,
    /// Enable the prefix cache
    #[arg(long)]
    enable_prefix_caching: bool,
    /// Report cached tokens in usage
    #[arg(long)]
    enable_prompt_tokens_details: bool,
    /// Mean tokens of each stream in a step, as with speculative decoding; they leave in one chunk
    #[arg(long, default_value_t = 1.0, value_name = "MEAN", value_parser = bursts)]
    bursts: f64,
    /// Print the engines' URLs as one line of JSON on stdout once they listen
    #[arg(long)]
    json: bool,
    /// Exit after this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum EngineArg {
    Vllm,
    Sglang,
    Trtllm,
    Plain,
}

/// vLLM's `kv_connector`.
#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum ConnectorArg {
    Nixl,
    NixlPush,
    Mooncake,
    Offloading,
    SharedStore,
}

/// vLLM's `kv_role`.
#[derive(Clone, Copy, clap::ValueEnum)]
enum KvRoleArg {
    #[value(name = "kv_both")]
    Both,
    #[value(name = "kv_producer")]
    Producer,
    #[value(name = "kv_consumer")]
    Consumer,
}

/// SGLang's `--disaggregation-mode`.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Mode {
    Null,
    Prefill,
    Decode,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LoadFailureArg {
    Fail,
    Recompute,
}

/// Parses a profile name.
pub fn profile(name: &str) -> Result<Profile, String> {
    let names: Vec<_> = Profile::ALL.iter().map(|profile| profile.name).collect();
    Profile::named(name).ok_or_else(|| format!("known profiles: {}", names.join(", ")))
}

/// Parses a duration in seconds above 0.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if seconds.is_finite() && seconds > 0.0 { Ok(seconds) } else { Err("not above 0".to_owned()) }
}

/// Parses the mean of bursts.
fn bursts(text: &str) -> Result<f64, String> {
    let mean: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let means = 1.0..=Bursts::MEAN_MAX;
    if means.contains(&mean) { Ok(mean) } else { Err(format!("not 1 to {}", Bursts::MEAN_MAX)) }
}

/// Runs until SIGINT, SIGTERM or the end of `--seconds`. Single-threaded: most work is in the
/// kernel, and cross-thread wake-ups cost more than parallelism gains.
pub fn run(args: Args) -> std::io::Result<()> {
    let (end, json) = (args.seconds, args.json);
    let config = config(args);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let running = start(config).await?;
        let urls: Vec<String> =
            running.addresses().iter().map(|address| format!("http://{address}")).collect();
        for url in &urls {
            eprintln!("emulated engine on {url}");
        }
        if json {
            // A closed stdout (EPIPE) is ignored.
            writeln!(std::io::stdout(), "{}", serde_json::json!({ "engines": urls })).ok();
        }
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let over = async {
            match end {
                Some(end) => tokio::time::sleep(Seconds(end).to_duration()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = term.recv() => {}
            () = over => {}
        }
        running.stop().await;
        Ok(())
    })
}

fn config(args: Args) -> EmulatorConfig {
    let chunk = args.max_num_batched_tokens.map_or(args.profile.chunk, Tokens);
    EmulatorConfig {
        listen: args.listen,
        count: args.count,
        profile: args.profile.with_chunk(chunk),
        model: args.model,
        max_model_len: args.max_model_len,
        kind: match args.engine {
            EngineArg::Vllm => EmulatedEngine::Vllm,
            EngineArg::Sglang => EmulatedEngine::Sglang(match args.disaggregation_mode {
                Mode::Null => SglangMode::Null,
                Mode::Prefill => SglangMode::Prefill,
                Mode::Decode => SglangMode::Decode,
            }),
            EngineArg::Trtllm => EmulatedEngine::Trtllm,
            EngineArg::Plain => EmulatedEngine::Plain,
        },
        connector: match args.connector {
            ConnectorArg::Nixl => VllmConnector::Nixl,
            ConnectorArg::NixlPush => VllmConnector::NixlPush,
            ConnectorArg::Mooncake => VllmConnector::Mooncake,
            ConnectorArg::Offloading => VllmConnector::Offloading,
            ConnectorArg::SharedStore => VllmConnector::SharedStore,
        },
        kv_role: match args.kv_role {
            KvRoleArg::Both => VllmKvRole::Both,
            KvRoleArg::Producer => VllmKvRole::Producer,
            KvRoleArg::Consumer => VllmKvRole::Consumer,
        },
        ranks: args.data_parallel_size,
        disagg_key: args.disagg_key,
        policy: match args.kv_load_failure_policy {
            LoadFailureArg::Fail => LoadFailurePolicy::Fail,
            LoadFailureArg::Recompute => LoadFailurePolicy::Recompute,
        },
        lease: Seconds(args.kv_lease_seconds),
        handshake_timeout: Seconds(args.handshake_timeout),
        advertise: args.advertise,
        default_output: Tokens(args.default_output),
        max_queued: args.max_num_queued_reqs,
        bursts: args.bursts,
        prefix_cache: args.enable_prefix_caching,
        prompt_tokens_details: args.enable_prompt_tokens_details,
        ..EmulatorConfig::default()
    }
}
