//! Which server an engine is, and by which paths it says how it is and what it is: the cheapest that
//! is honest. Paths as values; nothing here asks.

/// A server that tidegate knows by name.
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
    /// Every kind.
    pub const ALL: [EngineKind; 7] = [
        EngineKind::Vllm,
        EngineKind::Sglang,
        EngineKind::Trtllm,
        EngineKind::Tgi,
        EngineKind::Llamacpp,
        EngineKind::Ollama,
        EngineKind::Plain,
    ];

    /// Where to ask whether it is well. The first path that it has (no 404) decides.
    pub const fn health_paths(self) -> &'static [&'static str] {
        match self {
            // /health generates a token here, and takes a second; older ones have nothing else.
            EngineKind::Sglang => &["/ready", "/health"],
            // It has no /health; this answers without loading a model.
            EngineKind::Ollama => &["/api/version"],
            // 503 while it loads its model.
            EngineKind::Llamacpp => &["/health"],
            EngineKind::Vllm | EngineKind::Trtllm | EngineKind::Tgi => &["/health"],
            // Not all have a /health; those with OpenAI's API list their models.
            EngineKind::Plain => &["/health", "/v1/models"],
        }
    }

    /// Does this path have the engine generate a token before it answers? SGLang's /health waits a
    /// second for it, longer on a busy engine.
    pub fn generates_at(self, path: &str) -> bool {
        self == EngineKind::Sglang && path == "/health"
    }

    /// Where it says what it is: its version, and its mode if it has one.
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

    /// The word for it in settings and logs.
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
    fn every_engine_can_be_asked_whether_it_is_well() {
        for kind in EngineKind::ALL {
            let paths = kind.health_paths();
            assert!(!paths.is_empty() && paths.iter().all(|path| path.starts_with('/')));
            // One that generates a token is the last resort.
            assert_eq!(paths[0] == "/ready", kind == EngineKind::Sglang);
        }
    }
}
