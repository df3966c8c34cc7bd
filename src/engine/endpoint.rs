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
    ("/generate", Endpoint::Other),
    ("/inference/v1/generate", Endpoint::Other),
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
        )
    }

    /// May its prefill and decode run on two engines? Only where the body's recipe is known
    /// (engine_protocols.md §1.3).
    pub const fn can_split(self) -> bool {
        matches!(self, Endpoint::ChatCompletions | Endpoint::Completions)
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
