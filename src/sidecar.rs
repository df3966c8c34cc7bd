//! `tidegate sidecar`: the proxy in an engine's pod, with the flags and ports of llm-d's pd-sidecar.

use clap::ValueEnum;
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use tidegate_proxy::Listeners;
use tidegate_settings::Settings;

/// Run the proxy beside one engine, in place of llm-d's pd-sidecar
///
/// Flags and ports are those of pd-sidecar; those with another behaviour are listed in
/// docs/kubernetes/sidecar.md.
#[derive(clap::Args)]
pub struct Args {
    /// Port of the sidecar
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Port of the engine in this pod
    #[arg(long, alias = "vllm-port", default_value_t = 8200, value_name = "PORT")]
    model_server_port: u16,
    /// KV transfer between prefill and decode engine
    #[arg(long, default_value = "nixlv2")]
    kv_connector: KvConnector,
    /// Port of the prefill engines' side channel, for --kv-connector offloading
    #[arg(long, default_value_t = 7777, env = "P2P_CONNECTOR_PORT", value_name = "PORT")]
    p2p_connector_port: u16,
    /// Accept only prefill targets of the InferencePool
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    enable_ssrf_protection: bool,
    /// The InferencePool, for --enable-ssrf-protection
    #[arg(long, env = "INFERENCE_POOL", value_name = "[NAMESPACE/]NAME")]
    inference_pool: Option<String>,
    /// Networks of the gateways whose headers are accepted
    #[arg(long, value_delimiter = ',', default_values = PRIVATE, value_name = "NETWORK")]
    trusted_peers: Vec<String>,
    /// Choose at random among several prefill targets
    #[arg(long, env = "ENABLE_PREFILLER_SAMPLING", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    enable_prefiller_sampling: bool,
    /// Further attempts of a prefill after 502, 503, 504 and failed connections
    #[arg(long, default_value_t = 0, value_name = "N")]
    prefill_max_retries: u32,
    /// Delay before each further attempt, for example 200ms
    #[arg(long, default_value = "200ms", value_parser = duration, value_name = "DURATION")]
    prefill_retry_backoff: f64,
    /// Serve TLS with the certificate in --cert-path
    #[arg(long, alias = "secure-proxy", default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    secure_serving: bool,
    /// Directory with tls.crt and tls.key
    #[arg(long, value_name = "DIR")]
    cert_path: Option<PathBuf>,
    /// Idle connections kept to the engine
    #[arg(long, value_name = "N")]
    max_idle_conns_per_host: Option<u32>,
    /// Port of metrics, probes and the admin API
    #[arg(long, default_value_t = 9090, value_name = "PORT")]
    metrics_port: u16,
    /// Data-parallel ranks of the engine; only 1 is supported
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1))]
    data_parallel_size: u32,
    /// Verbosity as in pd-sidecar; 4 and above log at level debug
    #[arg(long, short, default_value_t = 0)]
    v: u8,
    /// Print the equivalent configuration and exit
    #[arg(long)]
    print_config: bool,
}

/// pd-sidecar's names of KV transfer mechanisms.
#[derive(Clone, Copy, ValueEnum)]
enum KvConnector {
    /// vLLM's NixlConnector
    Nixlv2,
    /// A KV store shared by the engines
    SharedStorage,
    /// SGLang's disaggregation
    Sglang,
    /// vLLM's OffloadingConnector with its P2P tier
    Offloading,
}

/// Networks of pods and of this host. pd-sidecar accepts the headers of any peer.
const PRIVATE: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "fc00::/7",
    "::1/128",
];

/// Parses `200ms`, `1.5s` or `1m`, as Go writes durations, into seconds.
fn duration(text: &str) -> Result<f64, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err("write 200ms, 1.5s or 1m".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "write 200ms, 1.5s or 1m".to_owned())?;
    Ok(number * scale)
}

/// Runs the sidecar and returns once it has drained.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let text = config(args)?;
    if args.print_config {
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
        return Ok(());
    }
    let settings = Settings::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("the flags result in an invalid configuration:\n{}", lines.join("\n"))
    })?;
    let _log = tidegate_proxy::log::init(&settings.log);
    tidegate_proxy::run(&settings, Listeners::Own, None, |addresses| {
        crate::serve::announce(&settings, addresses);
    })?;
    Ok(())
}

/// Returns the equivalent configuration in TOML.
fn config(args: &Args) -> Result<String, String> {
    let mut text = format!("[server]\nlisten = [\"[::]:{}\"]\n", args.port);
    if args.secure_serving {
        let hint = "set --cert-path DIR with tls.crt and tls.key, or --secure-serving=false";
        let dir = args.cert_path.as_ref().ok_or(hint)?;
        let file = |name: &str| quoted(&dir.join(name).to_string_lossy());
        let (cert, key) = (file("tls.crt"), file("tls.key"));
        add(&mut text, format_args!("[server.tls]\ncert = {cert}\nkey = {key}\n"));
    }
    add(&mut text, format_args!("[admin]\nlisten = \"[::]:{}\"\n", args.metrics_port));
    let level = if args.v >= 4 { "debug" } else { "info" };
    add(&mut text, format_args!("[log]\nlevel = \"{level}\"\n"));
    // A sidecar has one engine: a retry has no other backend.
    add(&mut text, format_args!("[retry]\nattempts = 1\n"));
    if let Some(idle) = args.max_idle_conns_per_host {
        add(&mut text, format_args!("[upstream]\nidle_per_backend_max = {idle}\n"));
    }
    let peers: Vec<String> = args.trusted_peers.iter().map(|peer| quoted(peer)).collect();
    add(&mut text, format_args!("[sidecar]\ntrusted_peers = [{}]\n", peers.join(", ")));
    if args.enable_ssrf_protection {
        let pool = args.inference_pool.as_ref();
        let pool = pool.ok_or("--enable-ssrf-protection needs --inference-pool")?;
        add(&mut text, format_args!("inference_pool = {}\n", quoted(pool)));
    }
    add(
        &mut text,
        format_args!(
            "prefill_sampling = {}\nprefill_retries = {}\nprefill_retry_backoff_seconds = {}\n",
            args.enable_prefiller_sampling, args.prefill_max_retries, args.prefill_retry_backoff
        ),
    );
    let engine = match args.kv_connector {
        KvConnector::Nixlv2 => "engine = \"vllm\"\nconnector = \"nixl\"\n".to_owned(),
        KvConnector::SharedStorage => {
            "engine = \"vllm\"\nconnector = \"shared_store\"\n".to_owned()
        }
        KvConnector::Sglang => {
            "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\"\n".to_owned()
        }
        KvConnector::Offloading => format!(
            "engine = \"vllm\"\nconnector = \"offloading\"\nside_channel_port = {}\n",
            args.p2p_connector_port
        ),
    };
    let port = args.model_server_port;
    let name = "name = \"local\"";
    add(
        &mut text,
        format_args!("[[backends]]\n{name}\nurl = \"http://127.0.0.1:{port}\"\n{engine}"),
    );
    Ok(text)
}

/// Writing to a String cannot fail.
fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).ok();
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use tidegate_settings::{Connector, EngineName};

    #[derive(Parser)]
    struct SidecarTestCommand {
        #[command(flatten)]
        args: Args,
    }

    fn settings(flags: &[&str]) -> Result<Settings, String> {
        let line = ["sidecar"].iter().chain(flags);
        let args =
            SidecarTestCommand::try_parse_from(line).map_err(|error| error.to_string())?.args;
        Settings::parse(&config(&args)?).map_err(|problems| format!("{problems:?}"))
    }

    #[test]
    fn the_ports_and_defaults_are_those_of_pd_sidecar() {
        let settings = settings(&["--secure-serving=false"]).unwrap();
        assert_eq!(settings.server.listen[0].port(), 8000);
        let [engine] = settings.backends.as_slice() else { panic!("one engine") };
        assert_eq!(engine.url, "http://127.0.0.1:8200");
        assert_eq!((engine.engine, engine.connector), (EngineName::Vllm, Connector::Nixl));
        let sidecar = settings.sidecar.unwrap();
        assert_eq!((sidecar.prefill_retries, sidecar.prefill_retry_backoff.get()), (0, 0.2));
        assert!(!sidecar.prefill_sampling && sidecar.inference_pool.is_none());
    }

    #[test]
    fn the_flags_of_pd_sidecar_are_accepted() {
        let settings = settings(&[
            "--port=8001",
            "--vllm-port=8201",
            "--kv-connector=sglang",
            "--secure-proxy=false",
            "--enable-ssrf-protection",
            "--inference-pool=llm/pool",
            "--enable-prefiller-sampling=true",
            "--prefill-max-retries=3",
            "--prefill-retry-backoff=1.5s",
            "--max-idle-conns-per-host=32",
            "--metrics-port=9091",
            "--data-parallel-size=1",
            "--v=5",
        ])
        .unwrap();
        let sidecar = settings.sidecar.unwrap();
        assert_eq!(sidecar.inference_pool.as_deref(), Some("llm/pool"));
        assert_eq!((sidecar.prefill_retries, sidecar.prefill_retry_backoff.get()), (3, 1.5));
        assert!(sidecar.prefill_sampling);
        assert_eq!(settings.backends[0].url, "http://127.0.0.1:8201");
        assert_eq!(settings.backends[0].connector, Connector::Bootstrap);
        assert_eq!((settings.admin.listen.port(), settings.log.level.as_str()), (9091, "debug"));
        assert_eq!(settings.upstream.idle_per_backend_max, 32);
    }

    #[test]
    fn the_flags_in_the_manifest_for_llm_d_are_accepted() {
        let manifest = include_str!("../deploy/kustomize/overlays/llm-d/decode.yaml");
        let args = manifest.split("- sidecar\n").nth(1).unwrap();
        let flags: Vec<&str> =
            args.lines().map_while(|line| line.trim().strip_prefix("- ")).collect();
        let settings = settings(&flags).unwrap();
        assert_eq!(settings.sidecar.unwrap().inference_pool.as_deref(), Some("vllm-llama"));
    }

    #[test]
    fn unsupported_flags_are_refused() {
        for (flags, problem) in [
            (&["--secure-serving"][..], "--cert-path"),
            (&[], "--cert-path"),
            (&["--secure-serving=false", "--enable-ssrf-protection"], "--inference-pool"),
            (&["--secure-serving=false", "--data-parallel-size=8"], "data-parallel-size"),
            (&["--secure-serving=false", "--kv-connector=mooncake"], "mooncake"),
            (&["--secure-serving=false", "--ec-connector=nixl"], "ec-connector"),
            (&["--secure-serving=false", "--prefill-retry-backoff=fast"], "200ms"),
        ] {
            let error = settings(flags).unwrap_err();
            assert!(error.contains(problem), "{flags:?}: {error}");
        }
    }
}
