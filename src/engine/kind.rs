//! Engine kinds, with their paths for health and facts: the cheapest reliable ones. Paths are
//! values; the proxy sends the requests.

/// Server software of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum EngineKind {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's trtllm-serve.
    Trtllm,
    /// Hugging Face's text-generation-inference.
    Tgi,
    /// llama.cpp's llama-server.
    Llamacpp,
    /// Ollama.
    Ollama,
    /// Any other server with OpenAI's API.
    #[default]
    Plain,
}

impl EngineKind {
    /// All kinds.
    pub const ALL: [EngineKind; 7] = [
        EngineKind::Vllm,
        EngineKind::Sglang,
        EngineKind::Trtllm,
        EngineKind::Tgi,
        EngineKind::Llamacpp,
        EngineKind::Ollama,
        EngineKind::Plain,
    ];

    /// Health check paths. The first one that the engine has (no 404) decides.
    pub const fn health_paths(self) -> &'static [&'static str] {
        match self {
            // `/health` generates a token and takes a second; older versions have nothing else.
            EngineKind::Sglang => &["/ready", "/health"],
            // Ollama has no `/health`; this path answers without loading a model.
            EngineKind::Ollama => &["/api/version"],
            // 503 while the model loads.
            EngineKind::Llamacpp => &["/health"],
            EngineKind::Vllm | EngineKind::Trtllm | EngineKind::Tgi => &["/health"],
            // Some of these have no `/health`; all list their models.
            EngineKind::Plain => &["/health", "/v1/models"],
        }
    }

    /// Returns whether the path generates a token before it answers. SGLang's `/health` takes a
    /// second, longer on a busy engine.
    pub fn generates_at(self, path: &str) -> bool {
        self == EngineKind::Sglang && path == "/health"
    }

    /// Path that reports the version, and the mode if there is one.
    pub const fn about_path(self) -> Option<&'static str> {
        match self {
            EngineKind::Vllm | EngineKind::Trtllm => Some("/version"),
            EngineKind::Sglang => Some("/server_info"),
            EngineKind::Tgi => Some("/info"),
            EngineKind::Llamacpp => Some("/props"),
            EngineKind::Ollama => Some("/api/version"),
            EngineKind::Plain => None,
        }
    }

    /// Name in settings and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            EngineKind::Vllm => "vllm",
            EngineKind::Sglang => "sglang",
            EngineKind::Trtllm => "trtllm",
            EngineKind::Tgi => "tgi",
            EngineKind::Llamacpp => "llamacpp",
            EngineKind::Ollama => "ollama",
            EngineKind::Plain => "plain",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_kind_has_health_check_paths() {
        for kind in EngineKind::ALL {
            let paths = kind.health_paths();
            assert!(!paths.is_empty() && paths.iter().all(|path| path.starts_with('/')));
            // The path that generates a token comes last.
            assert_eq!(paths[0] == "/ready", kind == EngineKind::Sglang);
        }
    }
}
