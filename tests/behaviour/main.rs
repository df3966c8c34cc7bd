//! Whole-program tests by behaviour: a real proxy on real sockets in front of scripted or emulated
//! engines. One binary, one module per subject.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "tests use sockets")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accounting;
mod admin;
mod admin_trust;
mod api_server;
mod apis;
mod architecture;
mod browsers;
mod budget;
mod cancel;
mod certificates;
mod citations;
mod client;
mod cluster;
mod connectors;
mod dashboard;
mod engine_paths;
mod errors;
mod fake;
mod field;
mod field_clients;
mod field_keepalive;
mod field_requests;
mod field_stream;
mod fitness;
mod fleet;
mod flips;
mod handoff_trust;
mod health;
mod kubernetes;
mod kubernetes_lease;
mod kv_events;
mod limits;
mod manifests;
mod models;
mod overload;
mod pd_protocol_rules;
mod plain_engines;
mod pool;
mod process;
mod proxy;
mod relay;
mod retry;
mod scheduling;
mod sglang;
mod sidecar;
mod signals;
mod split;
mod tls;
mod trtllm;
mod trtllm_generation_first;
mod upgrade;
mod websockets;
mod wire;
