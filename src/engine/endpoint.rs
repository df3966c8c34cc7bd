//! What is asked for at a path, and what that means for its way. Which paths there are, says
//! [`crate::paths`].

use crate::paths::{Lookup, lookup};

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
    /// `/v1/models/ID`: likewise
    Model,
    /// `/v1/audio/...`: forms, of which only the model is read
    Audio,
    /// Files, pictures and others that few engines have: forms or JSON
    Upload,
    /// Something that one engine keeps, by its id: a response, a stored chat, a file, a batch
    Kept,
    /// What an engine says, to be read: no body
    Page,
    /// `/v1/realtime`: a websocket
    Realtime,
    /// Any other known path: a JSON body, passed through to one backend
    Other,
}

impl Endpoint {
    /// The endpoint at `path` (no query string), whatever the method; `None` is a path to answer 404.
    pub fn of(path: &str) -> Option<Endpoint> {
        ["POST", "GET"].into_iter().find_map(|method| match lookup(method, path) {
            Lookup::Found(served) => Some(served.endpoint),
            _ => None,
        })
    }

    /// Is its body JSON, so that [`crate::scan`] applies?
    pub const fn reads_json(self) -> bool {
        !matches!(
            self,
            Endpoint::Models
                | Endpoint::Model
                | Endpoint::Audio
                | Endpoint::Upload
                | Endpoint::Kept
                | Endpoint::Page
                | Endpoint::Realtime
        )
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
            Endpoint::Model => "model",
            Endpoint::Audio => "audio",
            Endpoint::Upload => "upload",
            Endpoint::Kept => "kept",
            Endpoint::Page => "page",
            Endpoint::Realtime => "realtime",
            Endpoint::Other => "other",
        }
    }
}
