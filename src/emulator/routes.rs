//! Routes: those of a vLLM server, and two private ones.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::config::EmulatedEngine;
use crate::engine::EmulatedState;
use crate::error_response::ErrorResponse;
use crate::generate::{generate, json, refuse};
use crate::kv_transfer;
use crate::metrics;
use crate::request_body;
use crate::response_body::ResponseBody;
use crate::{mooncake, pd_role, sglang, trtllm};

/// Path of the counters as JSON, for tests in other processes.
pub const STATS_PATH: &str = "/emulator/stats";

/// Paths with their method and route.
const ROUTES: &[(&str, Method, EmulatorRoute)] = &[
    ("/v1/chat/completions", Method::POST, EmulatorRoute::Chat),
    ("/v1/completions", Method::POST, EmulatorRoute::Completion),
    (kv_transfer::PATH, Method::POST, EmulatorRoute::KvTransfer),
    ("/v1/models", Method::GET, EmulatorRoute::Models),
    ("/health", Method::GET, EmulatorRoute::Health),
    ("/ping", Method::GET, EmulatorRoute::Health),
    ("/version", Method::GET, EmulatorRoute::Version),
    ("/load", Method::GET, EmulatorRoute::Load),
    ("/server_info", Method::GET, EmulatorRoute::ServerInfo),
    ("/pd_role_switch", Method::POST, EmulatorRoute::RoleSwitch),
    ("/v1/pd_role", Method::GET, EmulatorRoute::PdRole),
    ("/v1/pd_role", Method::POST, EmulatorRoute::PdRole),
    ("/metrics", Method::GET, EmulatorRoute::Metrics),
    ("/tokenize", Method::POST, EmulatorRoute::Tokenize),
    ("/detokenize", Method::POST, EmulatorRoute::Detokenize),
    ("/v1/chat/completions/render", Method::POST, EmulatorRoute::Render),
    ("/v1/completions/render", Method::POST, EmulatorRoute::Render),
    ("/query", Method::GET, EmulatorRoute::Query),
    (STATS_PATH, Method::GET, EmulatorRoute::Stats),
];

#[derive(Clone, Copy)]
enum EmulatorRoute {
    Chat,
    Completion,
    KvTransfer,
    Models,
    Health,
    Version,
    Load,
    ServerInfo,
    RoleSwitch,
    PdRole,
    Metrics,
    Tokenize,
    Detokenize,
    Render,
    Query,
    Stats,
}

/// Answers one request.
///
/// # Errors
/// The client disconnected within its body.
pub async fn answer(
    engine: Arc<EmulatedState>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, hyper::Error> {
    let (parts, body) = request.into_parts();
    if let Some((status, body)) =
        pd_role::refusal(&engine, &parts.method, parts.uri.path(), &parts.headers)
    {
        return Ok(json(status, body));
    }
    let route = match find(parts.uri.path(), &parts.method) {
        Ok(route) => route,
        Err(StatusCode::NOT_FOUND) => return Ok(not_found()),
        Err(status) => {
            let body = Bytes::from_static(b"{\"detail\":\"Method Not Allowed\"}");
            return Ok(json(status, body));
        }
    };
    let body = body.collect().await?.to_bytes();
    Ok(match route {
        EmulatorRoute::PdRole => {
            let (status, body) = pd_role::serve(&engine, &parts.method, &body);
            json(status, body)
        }
        EmulatorRoute::Chat => generate(engine, true, &parts.headers, &body).await,
        EmulatorRoute::Completion => generate(engine, false, &parts.headers, &body).await,
        EmulatorRoute::KvTransfer => {
            let (status, body) = kv_transfer::serve(&engine, &body);
            json(status, body)
        }
        EmulatorRoute::RoleSwitch => match sglang::switch(&engine, &body) {
            Some((status, body)) => json(status, body),
            None => not_found(),
        },
        _ => aside(&engine, route, &body),
    })
}

/// Returns the route of a path and a method, or the status of the refusal.
fn find(path: &str, method: &Method) -> Result<EmulatorRoute, StatusCode> {
    let mut status = StatusCode::NOT_FOUND;
    for (_, of, route) in ROUTES.iter().filter(|(own, ..)| *own == path) {
        if of == method {
            return Ok(*route);
        }
        status = StatusCode::METHOD_NOT_ALLOWED;
    }
    Err(status)
}

fn not_found() -> Response<ResponseBody> {
    json(StatusCode::NOT_FOUND, Bytes::from_static(b"{\"detail\":\"Not Found\"}"))
}

/// Answers routes that do not generate.
fn aside(engine: &EmulatedState, route: EmulatorRoute, body: &[u8]) -> Response<ResponseBody> {
    let config = &engine.config;
    let value = match route {
        EmulatorRoute::Health if engine.has_failed_assertion() => {
            return json(StatusCode::SERVICE_UNAVAILABLE, Bytes::new());
        }
        EmulatorRoute::Health => return json(StatusCode::OK, Bytes::new()),
        EmulatorRoute::Query => match mooncake::query(engine) {
            Some(ranks) => ranks,
            None => return not_found(),
        },
        EmulatorRoute::Metrics => return page(metrics::page(engine)),
        EmulatorRoute::Render => return refuse(&ErrorResponse::scale_out_disabled()),
        EmulatorRoute::Version => json!({ "version": "0.32.0" }),
        EmulatorRoute::ServerInfo => match server_info(engine) {
            Some(info) => info,
            None => return not_found(),
        },
        EmulatorRoute::Load => json!({ "server_load": engine.counters.open.load(Relaxed) }),
        EmulatorRoute::Stats => json!(engine.counters.snapshot(engine.leases.count())),
        EmulatorRoute::Tokenize => match request_body::tokenize(config, body) {
            Ok(prompt) => json!({
                "count": prompt.tokens(), "max_model_len": config.max_model_len,
                "tokens": prompt.ids(), "token_strs": null,
            }),
            Err(refusal) => return refuse(&refusal),
        },
        EmulatorRoute::Detokenize => match request_body::detokenize(body) {
            Ok(prompt) => json!({ "prompt": prompt.text() }),
            Err(refusal) => return refuse(&refusal),
        },
        _ => json!({ "object": "list", "data": [{
            "id": config.model, "object": "model", "created": 1, "owned_by": "vllm",
            "root": config.model, "parent": null, "max_model_len": config.max_model_len,
            "permission": [],
        }]}),
    };
    json(StatusCode::OK, Bytes::from(value.to_string()))
}

/// Returns the server information of SGLang and TensorRT-LLM; the other engines have no such path.
fn server_info(engine: &EmulatedState) -> Option<serde_json::Value> {
    match engine.kind() {
        EmulatedEngine::Sglang(mode) => Some(sglang::info(engine, mode)),
        EmulatedEngine::Trtllm => Some(json!({ "disaggregated_params": {
            "ctx_dp_rank": 0, "ctx_info_endpoint": [trtllm::endpoint(engine)],
        }})),
        EmulatedEngine::Vllm | EmulatedEngine::Plain => None,
    }
}

fn page(text: String) -> Response<ResponseBody> {
    let mut response = json(StatusCode::OK, Bytes::from(text));
    let kind = HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
