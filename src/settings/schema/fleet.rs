//! `[[models]]` and `[[backends]]`: models and the engines that serve them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use tidegate_scheduler::cost::{DecodeModel, PrefillModel};
use tidegate_types::{Role, Seconds, Tokens};

use super::kubernetes::PodSettings;
use super::sources::{DirectorySettings, DnsSettings};
use crate::defaults;

/// `[[models]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Model name as in requests.
    pub name: String,
    /// Further names in requests; engines get `name`.
    pub aliases: Vec<String>,
    /// Path of `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// Path of its `tokenizer_config.json`; absent: the one beside the tokenizer.
    pub tokenizer_config: Option<PathBuf>,
    /// Chat template that replaces the tokenizer's own.
    pub chat_template: Option<PathBuf>,
    /// Cache of tokenized messages, in MiB; 0: none.
    pub tokenizer_cache_mib: u16,
    /// Context length; absent: as the engine reports it.
    #[serde(rename = "max_model_len_tokens")]
    pub max_model_len: Option<Tokens>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        ModelSettings {
            name: String::new(),
            aliases: Vec::new(),
            tokenizer: None,
            tokenizer_config: None,
            chat_template: None,
            tokenizer_cache_mib: defaults::TOKENIZER_CACHE_MIB,
            max_model_len: None,
        }
    }
}

/// The engine behind a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's trtllm-serve.
    Trtllm,
    /// Hugging Face's text-generation-inference; requests run colocated, as with the next two.
    Tgi,
    /// llama.cpp's llama-server.
    Llamacpp,
    /// Ollama.
    Ollama,
    /// Any server with OpenAI's API; requests run colocated.
    #[default]
    Plain,
}

/// KV transfer mechanism of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connector {
    /// None: requests run colocated.
    #[default]
    None,
    /// vLLM's NixlConnector, which pulls.
    Nixl,
    /// vLLM's NixlPushConnector; incompatible with NixlConnector.
    NixlPush,
    /// vLLM's MooncakeConnector: rendezvous at the prefill engine's bootstrap server.
    Mooncake,
    /// vLLM's OffloadingConnector with the P2P tier: rendezvous at the prefill engine's side channel.
    Offloading,
    /// A shared KV store (LMCache, MooncakeStore); KV is found by hash.
    SharedStore,
    /// SGLang's `--disaggregation-mode` with any transfer backend: rendezvous at the prefill engine's
    /// bootstrap server.
    Bootstrap,
    /// TensorRT-LLM's `cache_transceiver_config`.
    Transceiver,
}

/// The leg of TensorRT-LLM that is sent first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleStyle {
    /// The context leg; its answer determines the generation leg.
    #[default]
    ContextFirst,
    /// The generation leg; both run concurrently.
    GenerationFirst,
}

/// A secret; its `Debug` output is redacted because settings are logged.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

/// Shown in place of a secret.
const REDACTED: &str = "…";

impl Serialize for Secret {
    /// Redacted: settings are shown at `/v1/config`.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(REDACTED)
    }
}

/// Serializes a secret without its text.
pub(super) fn redacted<S: Serializer>(secret: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|_| REDACTED).serialize(to)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// vLLM's `kv_role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvRole {
    /// Either side, decided per request.
    #[default]
    KvBoth,
    /// Prefill only.
    KvProducer,
    /// Decode only.
    KvConsumer,
}

/// `[[backends]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendSettings {
    /// Name in logs, metrics and commands.
    pub name: String,
    /// `http://host:port` or `https://host:port`, optionally with a path prefix.
    pub url: String,
    /// Name in the engine's certificate; absent: the URL's host.
    pub server_name: Option<String>,
    /// Resolve the host once at the start and make each address a backend: `NAME-1`, `NAME-2`, ….
    pub expand: bool,
    /// Pods in place of the URL: each ready pod is a backend with the pod's name.
    pub kubernetes: Option<PodSettings>,
    /// Addresses of a DNS name in place of the URL: each is a backend.
    pub dns: Option<DnsSettings>,
    /// Files with backends in place of the URL; the entry has no other keys.
    pub directory: Option<DirectorySettings>,
    /// Address, if the backend was made by `expand` or a source.
    #[serde(skip)]
    pub ip: Option<IpAddr>,
    /// Uid of its pod: another uid under the same name is another engine.
    #[serde(skip)]
    pub uid: Option<String>,
    /// Paths that the backend serves beyond those of its engine kind; `*` matches one segment.
    pub paths: Vec<String>,
    /// Engine kind.
    pub engine: EngineName,
    /// KV transfer mechanism.
    pub connector: Connector,
    /// The engine's `kv_role` as launched (vLLM).
    pub kv_role: KvRole,
    /// SGLang's `--disaggregation-bootstrap-port` or vLLM's `VLLM_MOONCAKE_BOOTSTRAP_PORT`, on the
    /// host of the URL.
    pub bootstrap_port: u16,
    /// vLLM's `VLLM_P2P_SIDE_CHANNEL_PORT`, on the host of the URL.
    pub side_channel_port: u16,
    /// The leg that is sent first when this TensorRT-LLM engine prefills.
    pub schedule_style: ScheduleStyle,
    /// The engine's own API key (`--api-key`), sent to it in place of the client's.
    pub api_key: Option<Secret>,
    /// File that holds `api_key`.
    pub api_key_file: Option<PathBuf>,
    /// TensorRT-LLM's internal authentication key; equal for all backends of a group.
    pub disagg_key: Option<Secret>,
    /// File that holds `disagg_key`.
    pub disagg_key_file: Option<PathBuf>,
    /// The engine changes its role by a call: SGLang with `--enable-pd-role-switch`, or vLLM with
    /// `pd_role` in `--kv-transfer-config` (RFC 56133, experimental).
    pub role_switch: bool,
    /// Compatibility group: backends of one group may hand KV cache to each other; absent: all with
    /// the same engine, connector, version and models.
    pub group: Option<String>,
    /// Expected engine version; checked against the reported version.
    pub version: Option<String>,
    /// Served models; absent: as the engine reports them.
    pub models: Vec<String>,
    /// Initial role; absent: the planner's choice.
    pub role: Option<Role>,
    /// Pins `role`: the planner does not change it.
    pub pin: bool,
    /// Endpoint of the engine's KV cache events: `tcp://host:port` or `ipc:///path`; needs the tokenizer.
    pub kv_events: Option<String>,
    /// Replay endpoint for missed KV cache events.
    pub kv_replay: Option<String>,
    /// NVML indexes of the backend's GPUs on this machine; a GPU fault makes the backend unusable.
    pub gpus: Vec<u32>,
    /// Engine profile, used for the four settings below where they are absent: `llama70b-h100x4`,
    /// `llama70b-a100x4`, `llama8b-h100`, `fast`, `qwen3-32b-h20`, `dynamo-mocker`.
    pub profile: Option<String>,
    /// Most concurrent streams: the engine's `--max-num-seqs`.
    pub streams_max: u32,
    /// KV capacity in tokens ("GPU KV cache size" in vLLM's log); absent: as the engine reports it, 430,000
    /// until then.
    #[serde(rename = "kv_capacity_tokens")]
    pub kv_capacity: Option<Tokens>,
    /// Prior of the prefill cost, used until prefills have been observed: base + n × per_token +
    /// (n·x + n²/2) × per_attention for n new tokens after x cached ones.
    #[serde(deserialize_with = "prefill_prior", serialize_with = "prefill_with_units")]
    pub prefill_prior: PrefillModel,
    /// Prior of the decode step cost, used until steps have been observed: base + n × per_stream +
    /// k × per_kv_token for n streams with k KV tokens.
    #[serde(deserialize_with = "decode_prior", serialize_with = "decode_with_units")]
    pub decode_prior: DecodeModel,
}

impl Default for BackendSettings {
    fn default() -> Self {
        BackendSettings {
            name: String::new(),
            url: String::new(),
            server_name: None,
            expand: false,
            kubernetes: None,
            dns: None,
            directory: None,
            ip: None,
            uid: None,
            paths: Vec::new(),
            engine: EngineName::default(),
            connector: Connector::default(),
            kv_role: KvRole::default(),
            bootstrap_port: defaults::BOOTSTRAP_PORT,
            side_channel_port: defaults::SIDE_CHANNEL_PORT,
            schedule_style: ScheduleStyle::default(),
            api_key: None,
            api_key_file: None,
            disagg_key: None,
            disagg_key_file: None,
            role_switch: false,
            group: None,
            version: None,
            models: Vec::new(),
            role: None,
            pin: false,
            kv_events: None,
            kv_replay: None,
            gpus: Vec::new(),
            profile: None,
            streams_max: defaults::STREAMS_MAX,
            kv_capacity: None,
            prefill_prior: PrefillModel::default(),
            decode_prior: DecodeModel::default(),
        }
    }
}

/// `backends.prefill_prior`: the keys with their unit. Absent keys are those of an unknown model.
#[derive(Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct PrefillPrior {
    #[serde(rename = "base_seconds")]
    base: Seconds,
    #[serde(rename = "per_token_seconds")]
    per_token: Seconds,
    #[serde(rename = "per_attention_seconds")]
    per_attention: Seconds,
}

impl Default for PrefillPrior {
    fn default() -> Self {
        let PrefillModel { base, per_token, per_attention } = PrefillModel::default();
        PrefillPrior { base, per_token, per_attention }
    }
}

fn prefill_prior<'de, D: Deserializer<'de>>(from: D) -> Result<PrefillModel, D::Error> {
    let PrefillPrior { base, per_token, per_attention } = PrefillPrior::deserialize(from)?;
    Ok(PrefillModel { base, per_token, per_attention })
}

fn prefill_with_units<S: Serializer>(prior: &PrefillModel, to: S) -> Result<S::Ok, S::Error> {
    let PrefillModel { base, per_token, per_attention } = *prior;
    PrefillPrior { base, per_token, per_attention }.serialize(to)
}

/// `backends.decode_prior`, likewise.
#[derive(Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct DecodePrior {
    #[serde(rename = "base_seconds")]
    base: Seconds,
    #[serde(rename = "per_stream_seconds")]
    per_stream: Seconds,
    free_streams: u32,
    #[serde(rename = "per_kv_token_seconds")]
    per_kv_token: Seconds,
}

impl Default for DecodePrior {
    fn default() -> Self {
        let DecodeModel { base, per_stream, free_streams, per_kv_token } = DecodeModel::default();
        DecodePrior { base, per_stream, free_streams, per_kv_token }
    }
}

fn decode_prior<'de, D: Deserializer<'de>>(from: D) -> Result<DecodeModel, D::Error> {
    let DecodePrior { base, per_stream, free_streams, per_kv_token } =
        DecodePrior::deserialize(from)?;
    Ok(DecodeModel { base, per_stream, free_streams, per_kv_token })
}

fn decode_with_units<S: Serializer>(prior: &DecodeModel, to: S) -> Result<S::Ok, S::Error> {
    let DecodeModel { base, per_stream, free_streams, per_kv_token } = *prior;
    DecodePrior { base, per_stream, free_streams, per_kv_token }.serialize(to)
}
