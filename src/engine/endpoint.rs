//! Which paths tidegate knows. One table; a path that is not in it is answered 404. It must never
//! guess: an unknown path may be an engine's own administration.

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`, Anthropic's form
    Messages,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// SGLang's and TGI's own `/generate`
    Generate,
    /// vLLM's `/inference/v1/generate`: token ids in, token ids out
    TokensIn,
    /// Ollama's own `/api/chat`
    OllamaChat,
    /// Ollama's own `/api/generate`
    OllamaGenerate,
    /// `/v1/models`: the proxy answers it from all backends
    Models,
    /// `/v1/audio/...`: multipart bodies, passed through unread
    Audio,
    /// Any other known path: a JSON body, passed through to one backend
    Other,
}

/// Exact paths; no prefix and no pattern, so that nothing slips through.
const PATHS: &[(&str, Endpoint)] = &[
    ("/v1/chat/completions", Endpoint::ChatCompletions),
    ("/v1/completions", Endpoint::Completions),
    ("/v1/embeddings", Endpoint::Embeddings),
    ("/v1/responses", Endpoint::Responses),
    ("/v1/messages", Endpoint::Messages),
    ("/tokenize", Endpoint::Tokenize),
    ("/detokenize", Endpoint::Detokenize),
    ("/v1/models", Endpoint::Models),
    ("/v1/messages/count_tokens", Endpoint::Other),
    ("/v1/rerank", Endpoint::Other),
    ("/v2/rerank", Endpoint::Other),
    ("/rerank", Endpoint::Other),
    ("/v1/score", Endpoint::Other),
    ("/score", Endpoint::Other),
    ("/pooling", Endpoint::Other),
    ("/classify", Endpoint::Other),
    // SGLang's and TGI's own.
    ("/generate", Endpoint::Generate),
    ("/generate_stream", Endpoint::Generate),
    ("/inference/v1/generate", Endpoint::TokensIn),
    ("/api/chat", Endpoint::OllamaChat),
    ("/api/generate", Endpoint::OllamaGenerate),
    ("/api/embed", Endpoint::Other),
    ("/api/embeddings", Endpoint::Other),
    ("/v1/chat/completions/render", Endpoint::Other),
    ("/v1/completions/render", Endpoint::Other),
    ("/v1/audio/transcriptions", Endpoint::Audio),
    ("/v1/audio/translations", Endpoint::Audio),
    // Speech alone among the audio paths has a JSON body.
    ("/v1/audio/speech", Endpoint::Other),
];

impl Endpoint {
    /// The endpoint at `path` (no query string); `None` is a path to answer 404.
    pub fn of(path: &str) -> Option<Endpoint> {
        PATHS.iter().find(|(known, _)| *known == path).map(|(_, endpoint)| *endpoint)
    }

    /// The one method it takes; anything else is answered 405 with this in `allow`.
    pub const fn method(self) -> &'static str {
        match self {
            Endpoint::Models => "GET",
            _ => "POST",
        }
    }

    /// Is its body JSON, so that [`crate::scan`] applies?
    pub const fn reads_json(self) -> bool {
        !matches!(self, Endpoint::Models | Endpoint::Audio)
    }

    /// Does it generate tokens, so that it has a prefill, a decode, and perhaps a stream?
    pub const fn generates(self) -> bool {
        matches!(
            self,
            Endpoint::ChatCompletions
                | Endpoint::Completions
                | Endpoint::Responses
                | Endpoint::Messages
                | Endpoint::Generate
                | Endpoint::TokensIn
                | Endpoint::OllamaChat
                | Endpoint::OllamaGenerate
        )
    }

    /// May its prefill and decode run on two engines of some family? Of which, says
    /// [`crate::Family::splits`].
    pub const fn can_split(self) -> bool {
        self.generates() && !matches!(self, Endpoint::OllamaChat | Endpoint::OllamaGenerate)
    }

    /// OpenAI's chat or completions: the two that every family splits, and whose streams vLLM can be
    /// asked to count exactly.
    pub const fn is_completion(self) -> bool {
        matches!(self, Endpoint::ChatCompletions | Endpoint::Completions)
    }

    /// An engine's own API: its members have names of their own.
    pub const fn is_native(self) -> bool {
        matches!(
            self,
            Endpoint::Generate
                | Endpoint::TokensIn
                | Endpoint::OllamaChat
                | Endpoint::OllamaGenerate
        )
    }

    /// Is its answer a stream if `stream` is not given?
    pub const fn streams_unless_told(self) -> bool {
        matches!(self, Endpoint::OllamaChat | Endpoint::OllamaGenerate)
    }

    /// Are its streams a line of JSON a piece, and no server-sent events?
    pub const fn streams_lines(self) -> bool {
        self.streams_unless_told()
    }

    /// A word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "chat_completions",
            Endpoint::Completions => "completions",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Responses => "responses",
            Endpoint::Messages => "messages",
            Endpoint::Tokenize => "tokenize",
            Endpoint::Detokenize => "detokenize",
            Endpoint::Generate => "generate",
            Endpoint::TokensIn => "tokens_in",
            Endpoint::OllamaChat => "ollama_chat",
            Endpoint::OllamaGenerate => "ollama_generate",
            Endpoint::Models => "models",
            Endpoint::Audio => "audio",
            Endpoint::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_table_is_known_and_nothing_else_is() {
        for (path, endpoint) in PATHS {
            assert_eq!(Endpoint::of(path), Some(*endpoint));
            assert_eq!(Endpoint::of(&format!("{path}/")), None);
        }
        for path in ["", "/", "/v1", "/v1/load_lora_adapter", "/reset_prefix_cache", "/v1/Models"] {
            assert_eq!(Endpoint::of(path), None, "{path}");
        }
    }

    #[test]
    fn only_what_generates_can_split() {
        for (_, endpoint) in PATHS {
            assert!(!endpoint.can_split() || endpoint.generates());
        }
    }
}
