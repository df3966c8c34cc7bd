//! `tidegate status | flip | pin | unpin`: talk to a running proxy's admin address.

use serde::Deserialize;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use thiserror::Error;
use tidegate_terms::Role;

/// An admin address answers within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the admin address is.
#[derive(clap::Args)]
pub struct Admin {
    /// The proxy's admin address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin: String,
}

/// Show backends, roles and loads.
#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: Admin,
    /// Print the admin address's own JSON
    #[arg(long)]
    json: bool,
}

/// A backend and the role it shall have.
#[derive(clap::Args)]
pub struct RoleArgs {
    /// The backend's name
    backend: String,
    /// prefill, decode, mixed or draining
    role: Role,
    #[command(flatten)]
    admin: Admin,
}

/// A backend.
#[derive(clap::Args)]
pub struct BackendArgs {
    /// The backend's name
    backend: String,
    #[command(flatten)]
    admin: Admin,
}

/// Why a running proxy could not be asked, or said no.
#[derive(Debug, Error)]
pub enum OperateError {
    /// Nobody answers there.
    #[error("cannot reach the admin address {address}: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The proxy refused.
    #[error("{0}")]
    Refused(String),
    /// What answers there is no tidegate.
    #[error("the answer is not tidegate's: {0}")]
    Strange(String),
}

#[derive(Deserialize)]
struct Fleet {
    plan: u64,
    ready: bool,
    waiting_requests: usize,
    live_requests: usize,
    backends: Vec<Backend>,
}

#[derive(Deserialize)]
struct Backend {
    name: String,
    url: String,
    role: Role,
    health: String,
    health_reason: Option<String>,
    misfits: Vec<String>,
    prefill_seconds: f64,
    prefill_legs: u32,
    streams: u32,
    kv_tokens: u64,
}

/// `tidegate status`
pub fn status(args: &StatusArgs) -> Result<(), OperateError> {
    let body = args.admin.ask("GET", "/v1/fleet", "")?;
    let mut out = std::io::stdout().lock();
    let text = if args.json { body } else { table(&body)? };
    // A reader that has gone needs no more lines.
    writeln!(out, "{text}").ok();
    Ok(())
}

/// `tidegate flip`
pub fn flip(args: &RoleArgs) -> Result<(), OperateError> {
    let body = serde_json::json!({ "role": args.role });
    args.admin.change(&args.backend, &body, &format!("is {} now", args.role))
}

/// `tidegate pin`
pub fn pin(args: &RoleArgs) -> Result<(), OperateError> {
    let body = serde_json::json!({ "role": args.role, "pin": true });
    args.admin.change(&args.backend, &body, &format!("is {} and stays so", args.role))
}

/// `tidegate unpin`
pub fn unpin(args: &BackendArgs) -> Result<(), OperateError> {
    let body = serde_json::json!({ "pin": false });
    args.admin.change(&args.backend, &body, "is the planner's again")
}

fn table(body: &str) -> Result<String, OperateError> {
    let fleet: Fleet =
        serde_json::from_str(body).map_err(|error| OperateError::Strange(error.to_string()))?;
    let ready = if fleet.ready { "ready" } else { "not ready" };
    let mut text = format!(
        "plan {}, {} live requests, {} waiting, {ready}\n{:<20} {:<9} {:<8} {:>10} {:>5} {:>8} {:>10}  url",
        fleet.plan,
        fleet.live_requests,
        fleet.waiting_requests,
        "backend",
        "role",
        "health",
        "prefill s",
        "legs",
        "streams",
        "kv tokens",
    );
    for b in fleet.backends {
        text += &format!(
            "\n{:<20} {:<9} {:<8} {:>10.3} {:>5} {:>8} {:>10}  {}",
            b.name,
            b.role.as_str(),
            b.health,
            b.prefill_seconds,
            b.prefill_legs,
            b.streams,
            b.kv_tokens,
            b.url,
        );
        for why in b.health_reason.iter().chain(&b.misfits) {
            text += &format!("\n{:<20} {why}", "");
        }
    }
    Ok(text)
}

impl Admin {
    fn change(
        &self,
        backend: &str,
        body: &serde_json::Value,
        done: &str,
    ) -> Result<(), OperateError> {
        self.ask("POST", &format!("/v1/backends/{backend}/role"), &body.to_string())?;
        // A reader that has gone needs no more lines.
        writeln!(std::io::stdout(), "{backend} {done}").ok();
        Ok(())
    }

    /// One HTTP/1.0 exchange: the server closes after it, so the answer ends where the bytes do.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<String, OperateError> {
        let address = &self.admin;
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange()
            .map_err(|source| OperateError::Unreachable { address: address.clone(), source })?;
        let strange = || OperateError::Strange(answer.chars().take(80).collect());
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(strange)?;
        let status = head.split(' ').nth(1).ok_or_else(strange)?;
        match status {
            "200" => Ok(body.to_owned()),
            _ => Err(OperateError::Refused(reason(body))),
        }
    }
}

fn reason(body: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let error = parsed.as_ref().and_then(|body| body.get("error")?.as_str());
    error.unwrap_or(body).to_owned()
}
