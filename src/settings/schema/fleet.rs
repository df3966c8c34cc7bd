//! `[[models]]` and `[[backends]]`: what there is to route to.

use serde::{Deserialize, Deserializer};
use std::fmt;
use std::path::PathBuf;
use tidegate_cost::{DecodeModel, PrefillModel};
use tidegate_terms::{Role, Seconds, Tokens};

use crate::defaults;

/// `[[models]]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Its name as requests say it.
    pub name: String,
    /// Its tokenizer.json.
    pub tokenizer: Option<PathBuf>,
    /// Its tokenizer_config.json; the one beside the tokenizer if absent.
    pub tokenizer_config: Option<PathBuf>,
    /// A chat template in place of the tokenizer's own.
    pub chat_template: Option<PathBuf>,
    /// Memory for the tokens of messages seen before, in MiB; 0: none.
    pub tokenizer_cache_mib: u16,
    /// Its context length; the engine's own word if absent.
    #[serde(rename = "max_model_len_tokens")]
    pub max_model_len: Option<Tokens>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        ModelSettings {
            name: String::new(),
            tokenizer: None,
            tokenizer_config: None,
            chat_template: None,
            tokenizer_cache_mib: defaults::TOKENIZER_CACHE_MIB,
            max_model_len: None,
        }
    }
}

/// The engine behind a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's trtllm-serve.
    Trtllm,
    /// Hugging Face's text-generation-inference; runs whole requests, as the next two do.
    Tgi,
    /// llama.cpp's llama-server.
    Llamacpp,
    /// Ollama.
    Ollama,
    /// Anything that speaks OpenAI's API; runs whole requests.
    #[default]
    Plain,
}

/// How an engine hands KV cache over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connector {
    /// Not at all.
    #[default]
    None,
    /// vLLM's NixlConnector, which pulls.
    Nixl,
    /// vLLM's NixlPushConnector: the two do not understand each other.
    NixlPush,
    /// vLLM's MooncakeConnector: both sides meet at the prefill engine's bootstrap server.
    Mooncake,
    /// vLLM's OffloadingConnector with the P2P tier: both sides meet at the prefill engine's side
    /// channel.
    Offloading,
    /// A store that all engines share (LMCache, MooncakeStore): the KV is found by hash.
    SharedStore,
    /// SGLang's `--disaggregation-mode`, whatever its transfer backend: both sides meet at the
    /// prefill engine's bootstrap server.
    Bootstrap,
    /// TensorRT-LLM's `cache_transceiver_config`.
    Transceiver,
}

/// Which of TensorRT-LLM's legs goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleStyle {
    /// The context; its answer makes the generation leg.
    #[default]
    ContextFirst,
    /// The generation; both run at once.
    GenerationFirst,
}

/// What nobody is to see: settings end up in logs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// vLLM's `kv_role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvRole {
    /// Either side, decided per request.
    #[default]
    KvBoth,
    /// Prefill alone.
    KvProducer,
    /// Decode alone.
    KvConsumer,
}

/// `[[backends]]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendSettings {
    /// Its name in logs, metrics and commands.
    pub name: String,
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// Which engine it is.
    pub engine: EngineName,
    /// How it hands KV cache over.
    pub connector: Connector,
    /// As the engine was started.
    pub kv_role: KvRole,
    /// SGLang's `--disaggregation-bootstrap-port` or vLLM's `VLLM_MOONCAKE_BOOTSTRAP_PORT`, on the
    /// host of the URL.
    pub bootstrap_port: u16,
    /// vLLM's `VLLM_P2P_SIDE_CHANNEL_PORT`, on the host of the URL.
    pub side_channel_port: u16,
    /// Which of TensorRT-LLM's legs goes first when it prefills.
    pub schedule_style: ScheduleStyle,
    /// The engine's own API key (`--api-key`), sent to it in place of the client's.
    pub api_key: Option<Secret>,
    /// A file that holds it.
    pub api_key_file: Option<PathBuf>,
    /// TensorRT-LLM's internal authentication key, the same in all of a group.
    pub disagg_key: Option<Secret>,
    /// A file that holds it.
    pub disagg_key_file: Option<PathBuf>,
    /// It was started with `--enable-pd-role-switch`: operators can change its role.
    pub role_switch: bool,
    /// Backends of one group may hand KV cache to each other; by default all with the same engine,
    /// connector, version and models.
    pub group: Option<String>,
    /// The engine's version, checked against its own word: engines of different versions do not hand over.
    pub version: Option<String>,
    /// The models it serves; its own word if absent.
    pub models: Vec<String>,
    /// The role it starts with; the planner's choice if absent.
    pub role: Option<Role>,
    /// Keep that role whatever the planner thinks.
    pub pin: bool,
    /// Where it publishes its KV cache events: `tcp://host:port` or `ipc:///path`.
    pub kv_events: Option<String>,
    /// Where it repeats those that were missed.
    pub kv_replay: Option<String>,
    /// The GPUs of this machine that it runs on, as NVML numbers them.
    pub gpus: Vec<u32>,
    /// Where to take the four below from, unless they are said: a model on its hardware.
    pub profile: Option<String>,
    /// Most streams at once.
    pub streams_max: u32,
    /// KV tokens that fit into its memory.
    #[serde(rename = "kv_capacity_tokens")]
    pub kv_capacity: Tokens,
    /// What a prefill costs, before any was observed.
    #[serde(deserialize_with = "prefill_prior")]
    pub prefill_prior: PrefillModel,
    /// What a decode step costs, before any was observed.
    #[serde(deserialize_with = "decode_prior")]
    pub decode_prior: DecodeModel,
}

impl Default for BackendSettings {
    fn default() -> Self {
        BackendSettings {
            name: String::new(),
            url: String::new(),
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
            kv_capacity: defaults::KV_CAPACITY,
            prefill_prior: PrefillModel::default(),
            decode_prior: DecodeModel::default(),
        }
    }
}

/// `backends.prefill_prior`: the keys with their unit. What is not said is as for an unknown model.
#[derive(Deserialize)]
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

/// `backends.decode_prior`, likewise.
#[derive(Deserialize)]
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
