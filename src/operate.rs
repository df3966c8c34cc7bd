//! `tidegate status | flip | pin | unpin`: clients of a running proxy's admin API.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tidegate_types::Role;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

/// Request timeout; the admin API answers within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes: several times that of a fleet of 4,096 backends.
const ANSWER_MAX: u64 = 64 << 20;
/// Environment variable read for the token if --token-file is absent.
const TOKEN: &str = "TIDEGATE_ADMIN_TOKEN";

/// Address and credentials of the admin API.
#[derive(clap::Args)]
pub struct Admin {
    /// The proxy's admin address: host:port, or https://host:port with --ca-file
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin: String,
    /// File with the admin token; default: the environment variable TIDEGATE_ADMIN_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// CA certificates (PEM) that verify an https admin address
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// Show backends, roles and loads.
#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

/// Set a backend's role temporarily.
///
/// The planner does not change it until the hold ends (--for; default admin.flip_hold_seconds,
/// 10 minutes), then resumes control. Streams finish on their current backend. `tidegate pin`
/// sets a role without a time limit; `tidegate unpin` ends either.
#[derive(clap::Args)]
pub struct FlipArgs {
    /// The backend's name
    backend: String,
    /// prefill, decode, mixed or draining
    role: Role,
    /// Duration of the role: 90s, 10m, 2h; at most one week
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    hold: Option<f64>,
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

/// Set a backend's role without a time limit.
///
/// The planner does not change it until `tidegate unpin`; the pin survives a restart if
/// admin.state_file is set. For a temporary role use `tidegate flip`.
#[derive(clap::Args)]
pub struct RoleArgs {
    /// The backend's name
    backend: String,
    /// prefill, decode, mixed or draining
    role: Role,
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

/// End a manual flip or a pin and return the backend to the planner.
#[derive(clap::Args)]
pub struct BackendArgs {
    /// The backend's name
    backend: String,
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

/// Failure of a request to the admin API.
#[derive(Debug, Error)]
pub enum OperateError {
    /// The connection failed.
    #[error("cannot reach the admin address {address}: {source}")]
    Unreachable {
        /// The admin address.
        address: String,
        source: std::io::Error,
    },
    /// A file given by an option cannot be used.
    #[error("cannot use {path}: {problem}")]
    File {
        /// The file's path.
        path: PathBuf,
        problem: String,
    },
    /// The runtime that waits for signals.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    /// The proxy rejected the request.
    #[error("{0}")]
    Refused(String),
    /// The response cannot be parsed.
    #[error("the response is not from tidegate's admin API: {0}")]
    Unreadable(String),
}

/// `/v1/fleet`, as far as the command line shows it.
#[derive(Deserialize)]
pub(crate) struct FleetStatus {
    pub(crate) plan: u64,
    pub(crate) ready: bool,
    pub(crate) waiting_requests: usize,
    pub(crate) live_requests: usize,
    pub(crate) backends: Vec<BackendStatus>,
}

/// One backend of `/v1/fleet`.
#[derive(Deserialize)]
pub(crate) struct BackendStatus {
    pub(crate) name: String,
    url: String,
    pub(crate) role: Role,
    pinned: bool,
    held_seconds: Option<f64>,
    pub(crate) health: String,
    health_reason: Option<String>,
    pub(crate) misfits: Vec<String>,
    pub(crate) prefill_seconds: f64,
    prefill_legs: u32,
    pub(crate) streams: u32,
    pub(crate) streams_max: u32,
    pub(crate) kv_tokens: u64,
    pub(crate) kv_capacity_tokens: u64,
}

/// `tidegate status`
pub fn status(args: &StatusArgs) -> Result<(), OperateError> {
    let body = args.admin.ask("GET", "/v1/fleet", "")?;
    let mut out = std::io::stdout().lock();
    let text = if args.json { body } else { table(&body)? };
    // A closed stdout (EPIPE) is ignored.
    writeln!(out, "{text}").ok();
    Ok(())
}

/// `tidegate flip`
pub fn flip(args: &FlipArgs) -> Result<(), OperateError> {
    let mut body = serde_json::json!({ "role": args.role });
    if let Some(hold) = args.hold {
        body["hold_seconds"] = hold.into();
    }
    let (changed, answer) = args.admin.change(&args.backend, &body)?;
    if args.json {
        say(&answer);
        return Ok(());
    }
    let (name, role) = (&args.backend, args.role);
    say(&match changed.held_seconds {
        Some(left) => format!(
            "{name} is {role} for {}, then the planner resumes control; `tidegate unpin {name}` ends it early",
            span(left)
        ),
        None => {
            format!("{name} is {role} and remains pinned until `tidegate unpin {name}`")
        }
    });
    Ok(())
}

/// `tidegate pin`
pub fn pin(args: &RoleArgs) -> Result<(), OperateError> {
    let body = serde_json::json!({ "role": args.role, "pin": true });
    let (_, answer) = args.admin.change(&args.backend, &body)?;
    let (name, role) = (&args.backend, args.role);
    let words = format!("{name} is {role} and pinned until `tidegate unpin {name}`");
    say(if args.json { &answer } else { &words });
    Ok(())
}

/// `tidegate unpin`
pub fn unpin(args: &BackendArgs) -> Result<(), OperateError> {
    let (_, answer) = args.admin.change(&args.backend, &serde_json::json!({ "pin": false }))?;
    let words = format!("{} is returned to the planner", args.backend);
    say(if args.json { &answer } else { &words });
    Ok(())
}

fn say(line: &str) {
    // A closed stdout (EPIPE) is ignored.
    writeln!(std::io::stdout(), "{line}").ok();
}

/// `90s`, `10m`, `2h`, or a number of seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let at = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err("expected a time such as 90s, 10m or 2h".to_owned()),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * unit),
        _ => Err("expected a time such as 90s, 10m or 2h".to_owned()),
    }
}

fn span(seconds: f64) -> String {
    match seconds {
        long if long >= 5400.0 => format!("{:.1} hours", long / 3600.0),
        some if some >= 100.0 => format!("{:.0} minutes", some / 60.0),
        few => format!("{few:.0} seconds"),
    }
}

/// Answer to a role change.
#[derive(Deserialize)]
struct Changed {
    held_seconds: Option<f64>,
}

fn table(body: &str) -> Result<String, OperateError> {
    let fleet: FleetStatus = read(body)?;
    let ready = if fleet.ready { "ready" } else { "not ready" };
    let mut text = format!(
        "plan {}, {} live requests, {} waiting, {ready}\n{:<20} {:<9} {:<10} {:<8} {:>10} {:>5} {:>8} {:>10}  url",
        fleet.plan,
        fleet.live_requests,
        fleet.waiting_requests,
        "backend",
        "role",
        "by hand",
        "health",
        "prefill s",
        "legs",
        "streams",
        "kv tokens",
    );
    for b in fleet.backends {
        let by_hand = match (b.pinned, b.held_seconds) {
            (true, _) => "pinned".to_owned(),
            (false, Some(left)) => format!("{left:.0} s"),
            (false, None) => String::new(),
        };
        text += &format!(
            "\n{:<20} {:<9} {:<10} {:<8} {:>10.3} {:>5} {:>8} {:>10}  {}",
            b.name,
            b.role.as_str(),
            by_hand,
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
    /// The address as given.
    pub(crate) fn address(&self) -> &str {
        &self.admin
    }

    /// Changes a role; returns the answer parsed and as text.
    fn change(
        &self,
        backend: &str,
        body: &serde_json::Value,
    ) -> Result<(Changed, String), OperateError> {
        let path = format!("/v1/backends/{}/role", segment(backend)?);
        let answer = self.ask("POST", &path, &body.to_string())?;
        Ok((read(&answer)?, answer))
    }

    /// One HTTP/1.0 exchange of the admin API: the server closes the connection, so EOF ends the response.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Result<String, OperateError> {
        let (address, tls) = match self.admin.split_once("://") {
            Some(("https", address)) => (address.trim_end_matches('/'), true),
            Some(("http", address)) => (address.trim_end_matches('/'), false),
            Some(_) => {
                let problem = format!("{:?} is neither http nor https", self.admin);
                return Err(OperateError::Refused(problem));
            }
            None => (self.admin.as_str(), self.ca_file.is_some()),
        };
        let key = match self.token()? {
            Some(token) => format!("authorization: Bearer {token}\r\n"),
            None => String::new(),
        };
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             {key}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let unreachable =
            |source| OperateError::Unreachable { address: self.admin.clone(), source };
        let stream = connect(address).map_err(unreachable)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
        let answer = match tls {
            true => exchange(self.over_tls(address, stream)?, &request),
            false => exchange(stream, &request),
        };
        let answer = answer.map_err(unreachable)?;
        let unreadable = || {
            OperateError::Unreadable(without_controls(&answer.chars().take(80).collect::<String>()))
        };
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(unreadable)?;
        let status = head.split(' ').nth(1).ok_or_else(unreadable)?;
        match status {
            "200" => Ok(body.to_owned()),
            _ => Err(OperateError::Refused(reason(body))),
        }
    }

    /// Returns the token from the file, else from the environment.
    fn token(&self) -> Result<Option<String>, OperateError> {
        let Some(path) = &self.token_file else {
            return Ok(std::env::var(TOKEN).ok().filter(|token| !token.is_empty()));
        };
        let token = tidegate_proxy::files::secret(path);
        token.map(Some).map_err(|problem| OperateError::File {
            path: path.clone(),
            problem: problem.to_string(),
        })
    }

    fn over_tls(
        &self,
        address: &str,
        stream: TcpStream,
    ) -> Result<StreamOwned<ClientConnection, TcpStream>, OperateError> {
        let Some(path) = &self.ca_file else {
            return Err(OperateError::Refused("an https admin address needs --ca-file".to_owned()));
        };
        let failed = |problem: String| OperateError::File { path: path.clone(), problem };
        let config = crate::ask::verified_by(path).map_err(failed)?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|error| failed(error.to_string()))?;
        let connection = ClientConnection::new(Arc::new(config), name);
        Ok(StreamOwned::new(connection.map_err(|error| failed(error.to_string()))?, stream))
    }
}

/// Connects to the first address of the name that accepts in time.
fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns the name of a backend as part of a path.
///
/// # Errors
/// No backend can have it.
pub(crate) fn segment(name: &str) -> Result<&str, OperateError> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match !name.is_empty() && name.bytes().all(letter) {
        true => Ok(name),
        false => Err(OperateError::Refused(format!("no backend is named {name:?}"))),
    }
}

/// Parses an answer. Control characters in its texts, which may be an engine's own words, are replaced:
/// a terminal would obey them.
///
/// # Errors
/// [`OperateError::Unreadable`]
pub(crate) fn read<T: DeserializeOwned>(body: &str) -> Result<T, OperateError> {
    let unreadable = |error: serde_json::Error| OperateError::Unreadable(error.to_string());
    let mut value = serde_json::from_str(body).map_err(unreadable)?;
    replace_controls(&mut value);
    serde_json::from_value(value).map_err(unreadable)
}

fn replace_controls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = without_controls(text),
        serde_json::Value::Array(values) => values.iter_mut().for_each(replace_controls),
        serde_json::Value::Object(members) => members.values_mut().for_each(replace_controls),
        _ => {}
    }
}

/// Returns a text that a terminal shows and does not obey.
pub(crate) fn without_controls(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = String::new();
    match stream.take(ANSWER_MAX).read_to_string(&mut answer) {
        // The server closes without a TLS close_notify, which rustls reports as an unexpected EOF.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(answer),
        Err(error) => Err(error),
        Ok(_) => Ok(answer),
    }
}

fn reason(body: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let error = parsed.as_ref().and_then(|body| body.get("error")?.as_str());
    // Several errors are one a line.
    let lines: Vec<String> = error.unwrap_or(body).lines().map(without_controls).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_sent_no_control_characters_of_an_engine() {
        let words: Vec<String> = read(r#"["up\u001b[2J", "a\nb"]"#).unwrap();
        assert_eq!(words, ["up\u{fffd}[2J", "a\u{fffd}b"]);
        assert_eq!(reason("{\"error\":\"a\\u001b[2J\\nb\"}"), "a\u{fffd}[2J\nb");
    }

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(segment("pod-1.a_b").unwrap(), "pod-1.a_b");
        for wrong in ["", "a/b", "a?now=true", "a b", "a\r\nx: y", "a#", "a%2f"] {
            assert!(segment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_admin_address_is_http_or_https() {
        let admin = Admin { admin: "ftp://h:1".into(), token_file: None, ca_file: None };
        let error = admin.ask("GET", "/v1/fleet", "").unwrap_err().to_string();
        assert_eq!(error, "\"ftp://h:1\" is neither http nor https");
    }
}
