//! Endpoints: the meaning of a path, and how its requests may be routed. [`crate::paths`] maps
//! paths to endpoints.

use crate::paths::{PathLookup, lookup};

/// Meaning of a path.
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
    /// `/v1/messages`, Anthropic's API
    Messages,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/generate` of SGLang and TGI
    Generate,
    /// vLLM's `/inference/v1/generate`: token ids in, token ids out
    TokensIn,
    /// `/api/chat` of Ollama
    OllamaChat,
    /// `/api/generate` of Ollama
    OllamaGenerate,
    /// `/v1/models`: answered by the proxy for all backends
    Models,
    /// `/v1/models/ID`: answered by the proxy
    Model,
    /// `/v1/audio/...`: forms, of which only the model is read
    Audio,
    /// Files, images and other paths of few engines: forms or JSON
    Upload,
    /// An object that one engine stores under an id: a response, a stored chat, a file, a batch
    StoredObject,
    /// Information of an engine; no request body
    Page,
    /// `/v1/realtime`: a websocket
    Realtime,
    /// Any other known path: a JSON body, passed through to one backend
    Other,
}

impl Endpoint {
    /// Returns the endpoint at `path` (without query string) for any method; `None`: unknown path.
    pub fn of(path: &str) -> Option<Endpoint> {
        ["POST", "GET"].into_iter().find_map(|method| match lookup(method, path) {
            PathLookup::Found(served) => Some(served.endpoint),
            _ => None,
        })
    }

    /// Returns whether the request body is JSON, so that [`crate::scan`] applies.
    pub const fn reads_json(self) -> bool {
        !matches!(
            self,
            Endpoint::Models
                | Endpoint::Model
                | Endpoint::Audio
                | Endpoint::Upload
                | Endpoint::StoredObject
                | Endpoint::Page
                | Endpoint::Realtime
        )
    }

    /// Returns whether requests generate tokens, with a prefill and a decode phase.
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

    /// Returns whether some family can split its requests; see [`crate::Family::splits`].
    pub const fn can_split(self) -> bool {
        self.generates() && !matches!(self, Endpoint::OllamaChat | Endpoint::OllamaGenerate)
    }

    /// OpenAI's chat or completions: every family splits them, and vLLM can report usage in each
    /// chunk of their streams.
    pub const fn is_completion(self) -> bool {
        matches!(self, Endpoint::ChatCompletions | Endpoint::Completions)
    }

    /// Returns whether this is an engine's own API, with member names of its own.
    pub const fn is_native(self) -> bool {
        matches!(
            self,
            Endpoint::Generate
                | Endpoint::TokensIn
                | Endpoint::OllamaChat
                | Endpoint::OllamaGenerate
        )
    }

    /// Returns whether the answer is a stream if the request has no `stream`.
    pub const fn streams_by_default(self) -> bool {
        matches!(self, Endpoint::OllamaChat | Endpoint::OllamaGenerate)
    }

    /// Returns whether streams consist of JSON lines instead of server-sent events.
    pub const fn streams_lines(self) -> bool {
        self.streams_by_default()
    }

    /// Returns the end mark of a stream, if all engines with this API send the same one; else
    /// empty.
    pub const fn end_mark(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions | Endpoint::Completions => "data: [DONE]\n\n",
            Endpoint::Messages => "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
            _ => "",
        }
    }

    /// Label value in metrics and logs.
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
            Endpoint::StoredObject => "kept",
            Endpoint::Page => "page",
            Endpoint::Realtime => "realtime",
            Endpoint::Other => "other",
        }
    }
}
