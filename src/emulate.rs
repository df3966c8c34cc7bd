//! `tidegate emulate`: emulated engines over HTTP until interrupted.

use std::net::SocketAddr;
use tidegate_emulator::{EmulatorConfig, EngineKind, LoadFailurePolicy, start};
use tidegate_sim::Profile;
use tidegate_terms::Seconds;

/// Serve emulated engines.
#[derive(clap::Args)]
pub struct Args {
    /// Which engine's manners
    #[arg(long, value_enum, default_value = "vllm")]
    engine: Kind,
    /// The first engine's address; the others take the ports after it
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// How many engines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Their physics: llama70b-h100x4, llama8b-h100 or fast
    #[arg(long, default_value = "llama70b-h100x4", value_parser = profile)]
    profile: Profile,
    /// The model they serve
    #[arg(long, default_value = "emulated")]
    model: String,
    /// Its context length, in tokens
    #[arg(long, default_value_t = 131_072)]
    max_model_len: u64,
    /// What a decode engine does when the KV does not come
    #[arg(long, value_enum, default_value = "fail")]
    kv_load_failure_policy: Policy,
    /// How long a prefill's KV waits to be read
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    kv_lease_seconds: f64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Vllm,
    Plain,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Policy {
    Fail,
    Recompute,
}

/// A profile by its name.
pub fn profile(name: &str) -> Result<Profile, String> {
    let names: Vec<_> = Profile::ALL.iter().map(|profile| profile.name).collect();
    Profile::named(name).ok_or_else(|| format!("known profiles: {}", names.join(", ")))
}

/// Runs until SIGINT or SIGTERM.
pub fn run(args: Args) -> std::io::Result<()> {
    let config = EmulatorConfig {
        listen: args.listen,
        count: args.count,
        profile: args.profile,
        model: args.model,
        max_model_len: args.max_model_len,
        kind: match args.engine {
            Kind::Vllm => EngineKind::Vllm,
            Kind::Plain => EngineKind::Plain,
        },
        policy: match args.kv_load_failure_policy {
            Policy::Fail => LoadFailurePolicy::Fail,
            Policy::Recompute => LoadFailurePolicy::Recompute,
        },
        lease: Seconds(args.kv_lease_seconds),
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let running = start(config).await?;
        for address in running.addresses() {
            eprintln!("emulated engine on http://{address}");
        }
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = term.recv() => {}
        }
        running.stop().await;
        Ok(())
    })
}
