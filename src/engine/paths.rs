//! Paths of each engine kind, with their methods. A path outside of the table is answered 404,
//! unless the operator lists it for a backend. The table contains no administration paths
//! (`/flush_cache`, `/update_weights*`, `/load_lora_adapter`, `/api/pull`, `/slots`, …).

use crate::{Endpoint, EngineKind};

/// A set of engine kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u8);

/// A known path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathEntry {
    /// Meaning of the path.
    pub endpoint: Endpoint,
    /// Engine kinds that have the path.
    pub kinds: Kinds,
}

/// Result of a lookup by method and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathLookup {
    /// A known path with this method.
    Found(PathEntry),
    /// A known path with other methods: a 405 with this `allow` header.
    Methods(&'static str),
    /// An unknown path: a 404.
    Nothing,
}

/// Pattern, methods as in an `allow` header, endpoint, engine kinds. `*` matches one segment, an
/// id.
type Row = (&'static str, &'static str, Endpoint, Kinds);

const V: Kinds = Kinds::of(EngineKind::Vllm);
const S: Kinds = Kinds::of(EngineKind::Sglang);
const T: Kinds = Kinds::of(EngineKind::Trtllm);
const G: Kinds = Kinds::of(EngineKind::Tgi);
const L: Kinds = Kinds::of(EngineKind::Llamacpp);
const O: Kinds = Kinds::of(EngineKind::Ollama);
/// A plain engine may have all of OpenAI's API, and common paths of rerankers and Ollama.
const P: Kinds = Kinds::of(EngineKind::Plain);
const ALL: Kinds = Kinds(u8::MAX);

/// Sources: the engines' route tables (vLLM 0.33, SGLang 0.5.23, trtllm-serve 1.3, TGI 3.3,
/// llama.cpp's server b6800, Ollama 0.12) and OpenAI's API reference. Exact paths precede patterns
/// with `*`.
const ROWS: &[Row] = &[
    ("/v1/chat/completions", "POST", Endpoint::ChatCompletions, ALL),
    ("/v1/completions", "POST", Endpoint::Completions, ALL),
    ("/v1/embeddings", "POST", Endpoint::Embeddings, ALL),
    ("/v1/responses", "POST", Endpoint::Responses, ALL),
    ("/v1/messages", "POST", Endpoint::Messages, ALL),
    ("/v1/models", "GET, HEAD", Endpoint::Models, ALL),
    ("/v1/messages/count_tokens", "POST", Endpoint::Other, ALL),
    ("/v1/chat/completions/render", "POST", Endpoint::Other, V.or(P)),
    ("/v1/completions/render", "POST", Endpoint::Other, V.or(P)),
    // Objects stored by one engine.
    ("/v1/responses/*", "GET, DELETE", Endpoint::StoredObject, ALL),
    ("/v1/responses/*/cancel", "POST", Endpoint::StoredObject, ALL),
    ("/v1/responses/*/input_items", "GET", Endpoint::StoredObject, ALL),
    ("/v1/chat/completions/*", "GET, POST, DELETE", Endpoint::StoredObject, ALL),
    ("/v1/chat/completions/*/messages", "GET", Endpoint::StoredObject, ALL),
    ("/v1/conversations", "POST", Endpoint::Other, S.or(P)),
    ("/v1/conversations/*", "GET, POST, DELETE", Endpoint::StoredObject, S.or(P)),
    ("/v1/conversations/*/items", "GET, POST", Endpoint::StoredObject, S.or(P)),
    ("/v1/conversations/*/items/*", "GET, DELETE", Endpoint::StoredObject, S.or(P)),
    ("/v1/files", "GET, POST", Endpoint::Upload, P),
    ("/v1/files/*", "GET, DELETE", Endpoint::StoredObject, P),
    ("/v1/files/*/content", "GET", Endpoint::StoredObject, P),
    ("/v1/batches", "GET, POST", Endpoint::Upload, P),
    ("/v1/batches/*", "GET", Endpoint::StoredObject, P),
    ("/v1/batches/*/cancel", "POST", Endpoint::StoredObject, P),
    ("/v1/videos", "GET, POST", Endpoint::Upload, V.or(S).or(T).or(P)),
    ("/v1/videos/*", "GET, DELETE", Endpoint::StoredObject, V.or(S).or(T).or(P)),
    ("/v1/videos/*/content", "GET", Endpoint::StoredObject, V.or(S).or(T).or(P)),
    // Tokenization, reranking, classification.
    ("/tokenize", "POST", Endpoint::Tokenize, V.or(S).or(G).or(L).or(P)),
    ("/detokenize", "POST", Endpoint::Detokenize, V.or(S).or(L).or(P)),
    ("/v1/tokenize", "POST", Endpoint::Tokenize, S.or(P)),
    ("/v1/detokenize", "POST", Endpoint::Detokenize, S.or(P)),
    ("/v1/rerank", "POST", Endpoint::Other, V.or(S).or(L).or(P)),
    ("/v2/rerank", "POST", Endpoint::Other, V.or(P)),
    ("/rerank", "POST", Endpoint::Other, V.or(L).or(P)),
    ("/reranking", "POST", Endpoint::Other, L.or(P)),
    ("/v1/reranking", "POST", Endpoint::Other, L.or(P)),
    ("/v1/score", "POST", Endpoint::Other, V.or(S).or(P)),
    ("/score", "POST", Endpoint::Other, V.or(P)),
    ("/pooling", "POST", Endpoint::Other, V.or(P)),
    ("/classify", "POST", Endpoint::Other, V.or(S).or(P)),
    ("/v1/classify", "POST", Endpoint::Other, S.or(P)),
    ("/v1/moderations", "POST", Endpoint::Upload, P),
    // Audio, images and video.
    ("/v1/audio/transcriptions", "POST", Endpoint::Audio, V.or(S).or(T).or(L).or(P)),
    ("/v1/audio/translations", "POST", Endpoint::Audio, V.or(S).or(T).or(L).or(P)),
    // The only audio path with a JSON body.
    ("/v1/audio/speech", "POST", Endpoint::Other, V.or(S).or(T).or(L).or(P)),
    ("/v1/audio/voices", "GET", Endpoint::Page, V.or(P)),
    ("/v1/images/generations", "POST", Endpoint::Upload, V.or(S).or(T).or(P)),
    ("/v1/images/edits", "POST", Endpoint::Upload, V.or(S).or(T).or(P)),
    ("/v1/images/variations", "POST", Endpoint::Upload, V.or(S).or(T).or(P)),
    ("/v1/realtime", "GET", Endpoint::Realtime, V.or(S).or(P)),
    // APIs of single engines.
    ("/generate", "POST", Endpoint::Generate, S.or(G).or(P)),
    ("/generate_stream", "POST", Endpoint::Generate, G.or(P)),
    ("/encode", "POST", Endpoint::Other, S),
    ("/inference/v1/generate", "POST", Endpoint::TokensIn, V.or(P)),
    ("/invocations", "POST", Endpoint::Other, V.or(S).or(G).or(P)),
    ("/chat_tokenize", "POST", Endpoint::Other, G),
    ("/completion", "POST", Endpoint::Other, L.or(P)),
    ("/completions", "POST", Endpoint::Other, L.or(P)),
    ("/infill", "POST", Endpoint::Other, L.or(P)),
    ("/apply-template", "POST", Endpoint::Other, L.or(P)),
    ("/embedding", "POST", Endpoint::Other, L.or(P)),
    ("/embeddings", "POST", Endpoint::Other, L.or(P)),
    ("/api/chat", "POST", Endpoint::OllamaChat, O.or(S).or(L).or(P)),
    ("/api/generate", "POST", Endpoint::OllamaGenerate, O.or(S).or(P)),
    ("/api/embed", "POST", Endpoint::Other, O.or(P)),
    ("/api/embeddings", "POST", Endpoint::Other, O.or(P)),
    ("/api/show", "POST", Endpoint::Other, O.or(S).or(L).or(P)),
    ("/api/tags", "GET, HEAD", Endpoint::Page, O.or(S).or(L).or(P)),
    ("/api/ps", "GET", Endpoint::Page, O.or(P)),
    ("/api/version", "GET", Endpoint::Page, O.or(P)),
    // Information about an engine.
    ("/version", "GET", Endpoint::Page, V.or(T).or(P)),
    ("/ping", "GET, POST", Endpoint::Page, V.or(S).or(P)),
    ("/model_info", "GET", Endpoint::Page, S),
    ("/get_model_info", "GET", Endpoint::Page, S),
    ("/info", "GET", Endpoint::Page, G),
    ("/props", "GET", Endpoint::Page, L.or(P)),
];

/// Path prefixes of engine administration. They are never forwarded, even if an operator lists
/// them.
const ADMINISTRATION: &[&str] = &[
    "/abort_request",
    "/api/blobs",
    "/api/copy",
    "/api/create",
    "/api/delete",
    "/api/pull",
    "/api/push",
    "/clear_hicache",
    "/close_session",
    "/collective_rpc",
    "/configure_logging",
    "/continue_generation",
    "/flush_cache",
    "/freeze_gc",
    "/init_weights",
    "/is_sleeping",
    "/load_lora_adapter",
    "/lora-adapters",
    "/metrics",
    "/open_session",
    "/pause",
    "/pause_generation",
    "/pd_role",
    "/release_memory_occupation",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/resume_memory_occupation",
    "/scale_elastic_ep",
    "/server_info",
    "/set_internal_state",
    "/sleep",
    "/slots",
    "/slow_down",
    "/start_profile",
    "/stop_profile",
    "/unload_lora_adapter",
    "/update_weight",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/wake_up",
];

/// Looks up `path` for `method`. A trailing slash makes no difference.
pub fn lookup(method: &str, path: &str) -> PathLookup {
    let path = without_slash(path);
    if let Some(id) = path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()) {
        // Model names may contain slashes.
        debug_assert!(!id.is_empty());
        return among(method, "GET, HEAD", Endpoint::Model, ALL);
    }
    match ROWS.iter().find(|(pattern, ..)| matches(pattern, path)) {
        Some((_, methods, endpoint, kinds)) => among(method, methods, *endpoint, *kinds),
        None => PathLookup::Nothing,
    }
}

/// Returns the endpoint of a path that only an operator's list contains.
pub fn listed(method: &str) -> Endpoint {
    match method {
        "POST" => Endpoint::Other,
        "GET" | "HEAD" => Endpoint::Page,
        _ => Endpoint::StoredObject,
    }
}

/// Removes a trailing slash, for the lookup and for the engine: with a slash engines answer with a
/// redirect or a 404.
pub fn without_slash(path: &str) -> &str {
    match path.strip_suffix('/') {
        Some(short) if !short.is_empty() && !short.ends_with('/') => short,
        _ => path,
    }
}

/// Returns whether `path` matches a pattern; `*` matches one segment.
pub fn matches(pattern: &str, path: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == path;
    }
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        match segments.next() {
            Some(segment) if wanted == "*" && is_id(segment) => {}
            Some(segment) if wanted == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

/// Returns whether a path is engine administration.
pub fn is_administration(pattern: &str) -> bool {
    ADMINISTRATION.iter().any(|known| pattern.starts_with(known))
}

/// Returns whether a segment is an id that no server would resolve or decode differently.
fn is_id(segment: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    !segment.is_empty() && segment.bytes().all(plain) && segment.bytes().any(|byte| byte != b'.')
}

fn among(method: &str, methods: &'static str, endpoint: Endpoint, kinds: Kinds) -> PathLookup {
    match methods == method || methods.split(", ").any(|known| known == method) {
        true => PathLookup::Found(PathEntry { endpoint, kinds }),
        false => PathLookup::Methods(methods),
    }
}

impl Kinds {
    /// The empty set.
    pub const NONE: Kinds = Kinds(0);
    /// All kinds.
    pub const ALL: Kinds = ALL;

    /// The set of one kind.
    pub const fn of(kind: EngineKind) -> Kinds {
        Kinds(1 << kind as u8)
    }

    /// Returns the union.
    #[must_use]
    pub const fn or(self, others: Kinds) -> Kinds {
        Kinds(self.0 | others.0)
    }

    /// Returns whether `kind` is in the set.
    pub const fn contains(self, kind: EngineKind) -> bool {
        self.0 & Kinds::of(kind).0 != 0
    }

    /// Returns whether the sets intersect.
    pub const fn intersects(self, others: Kinds) -> bool {
        self.0 & others.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(method: &str, path: &str) -> Option<Endpoint> {
        match lookup(method, path) {
            PathLookup::Found(served) => Some(served.endpoint),
            _ => None,
        }
    }

    #[test]
    fn every_path_of_the_table_is_found_with_and_without_a_slash() {
        for (pattern, methods, wanted, _) in ROWS {
            let path = pattern.replace('*', "resp_1-a.b:c");
            for method in methods.split(", ") {
                assert_eq!(endpoint(method, &path), Some(*wanted), "{method} {path}");
                assert_eq!(
                    endpoint(method, &format!("{path}/")),
                    Some(*wanted),
                    "{method} {path}/"
                );
            }
            assert_eq!(lookup("PATCH", &path), PathLookup::Methods(methods), "{path}");
            assert!(!is_administration(pattern), "{pattern}");
        }
    }

    #[test]
    fn other_paths_are_not_found() {
        for path in [
            "",
            "/",
            "//",
            "/v1",
            "/v1/Models",
            "/v1/models//",
            "/v1/chat/completions//",
            "/v1/responses/..",
            "/v1/responses/a%2fb",
            "/v1/responses/a/b",
            "/v1/responses//cancel",
            "/v1/files/.",
        ] {
            let found = lookup("GET", path);
            assert!(found == PathLookup::Nothing || path == "/v1/models//", "{path}");
        }
        for path in ADMINISTRATION {
            for method in ["GET", "POST"] {
                assert_eq!(lookup(method, path), PathLookup::Nothing, "{path}");
            }
        }
    }

    #[test]
    fn a_model_name_may_contain_slashes() {
        for path in ["/v1/models/m", "/v1/models/org/m", "/v1/models/org%2Fm/"] {
            assert_eq!(endpoint("GET", path), Some(Endpoint::Model), "{path}");
            assert_eq!(endpoint("HEAD", path), Some(Endpoint::Model), "{path}");
            assert_eq!(lookup("DELETE", path), PathLookup::Methods("GET, HEAD"));
        }
    }

    #[test]
    fn each_kind_has_its_own_paths() {
        let has = |method: &str, path: &str, kind| match lookup(method, path) {
            PathLookup::Found(served) => served.kinds.contains(kind),
            _ => false,
        };
        use EngineKind::{Llamacpp, Ollama, Plain, Sglang, Tgi, Trtllm, Vllm};
        for (method, path, with, without) in [
            ("POST", "/v1/tokenize", Sglang, Vllm),
            ("POST", "/v1/classify", Sglang, Vllm),
            ("POST", "/completion", Llamacpp, Vllm),
            ("POST", "/infill", Llamacpp, Ollama),
            ("POST", "/apply-template", Llamacpp, Sglang),
            ("GET", "/api/tags", Ollama, Vllm),
            ("POST", "/api/show", Ollama, Trtllm),
            ("GET", "/api/ps", Ollama, Sglang),
            ("GET", "/version", Vllm, Ollama),
            ("POST", "/pooling", Vllm, Tgi),
            ("POST", "/v1/moderations", Plain, Vllm),
        ] {
            assert!(has(method, path, with) && !has(method, path, without), "{path}");
        }
        for kind in EngineKind::ALL {
            assert!(has("POST", "/v1/chat/completions", kind) && Kinds::ALL.contains(kind));
        }
    }
}
