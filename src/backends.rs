//! `tidegate backends list | add | remove`: backends of a running proxy, through its admin API.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::io::Write;
use tidegate_settings::BackendSettings;
use tidegate_types::Role;

use crate::ask::engine_url;
use crate::operate::{Admin, OperateError, read, segment};

/// List, add and remove backends of a running proxy.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List all backends, including those being removed
    List(ListArgs),
    /// Add a backend, or replace the one with its name
    Add(AddArgs),
    /// Remove a backend: it receives no new requests and is removed once its requests have finished
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

/// Add a backend, or replace the one with its name.
///
/// Further settings are KEY=VALUE pairs with the keys of [[backends]] in the configuration file. The
/// value of a key of type string is taken as text, any other as JSON: version=0.32 streams_max=64
/// models='["m"]'. Keep secrets in files
/// (api_key_file): arguments of a command are visible to other users of the machine.
#[derive(clap::Args)]
struct AddArgs {
    /// Name of the backend
    name: String,
    /// Address of the engine: http://host:port or https://host:port
    #[arg(value_parser = engine_url)]
    url: String,
    /// Further settings of the backend
    #[arg(value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, Value)>,
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RemoveArgs {
    /// Name of the backend
    name: String,
    /// Send requests that wait for its first byte to other backends at once instead of after 300 s
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    admin: Admin,
    /// Print the admin API's JSON response
    #[arg(long)]
    json: bool,
}

/// `/v1/backends`, as far as the list shows it.
#[derive(Deserialize)]
struct BackendList {
    backends: Vec<BackendRow>,
}

#[derive(Deserialize)]
struct BackendRow {
    name: String,
    url: String,
    engine: String,
    version: Option<String>,
    role: Role,
    health: String,
    #[serde(default)]
    leaving: bool,
}

/// Answer to an added or removed backend.
#[derive(Deserialize)]
struct ChangeAnswer {
    joined: usize,
    left: usize,
    replaced: usize,
}

/// `tidegate backends`
pub fn run(args: &Args) -> Result<(), OperateError> {
    match &args.action {
        Action::List(args) => {
            let body = args.admin.ask("GET", "/v1/backends", "")?;
            say(&if args.json { body } else { table(&read(&body)?) });
        }
        Action::Add(args) => {
            let answer = args.admin.ask("POST", "/v1/backends", &entry(args).to_string())?;
            let name = &args.name;
            say(&match read::<ChangeAnswer>(&answer)? {
                _ if args.json => answer,
                ChangeAnswer { replaced: 1.., .. } => {
                    format!("{name} replaces the backend of the same name")
                }
                ChangeAnswer { joined: 1.., .. } => {
                    format!(
                        "{name} is added; it receives requests after its first successful probe"
                    )
                }
                ChangeAnswer { .. } => format!("{name} already has these settings"),
            });
        }
        Action::Remove(args) => {
            let query = if args.now { "?now=true" } else { "" };
            let path = format!("/v1/backends/{}{query}", segment(&args.name)?);
            let answer = args.admin.ask("DELETE", &path, "")?;
            let name = &args.name;
            say(&match read::<ChangeAnswer>(&answer)? {
                _ if args.json => answer,
                ChangeAnswer { left: 1.., .. } => {
                    format!(
                        "{name} receives no new requests and is removed once its requests have finished"
                    )
                }
                ChangeAnswer { .. } => format!("{name} is already being removed"),
            });
        }
    }
    Ok(())
}

fn entry(args: &AddArgs) -> Value {
    let mut entry: Map<String, Value> = args.settings.iter().cloned().collect();
    entry.insert("name".to_owned(), args.name.as_str().into());
    entry.insert("url".to_owned(), args.url.as_str().into());
    Value::Object(entry)
}

/// Reads `KEY=VALUE`.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if matches!(key, "" | "name" | "url") {
        return Err("expected a key of [[backends]] other than name and url".to_owned());
    }
    Ok((key.to_owned(), typed(key, value)))
}

/// Parses the value by the type of `key` in the schema. Text may be given as a JSON string. An unknown
/// key, and a value that fits neither type, are left to the server to report.
fn typed(key: &str, value: &str) -> Value {
    let json = serde_json::from_str(value);
    match json {
        Ok(Value::String(_)) | Err(_) => json.unwrap_or_else(|_| value.into()),
        Ok(_) if accepts_text(key, value) => value.into(),
        Ok(json) => json,
    }
}

/// Whether the schema accepts this text as the value of a key of `[[backends]]`.
fn accepts_text(key: &str, text: &str) -> bool {
    let entry = Map::from_iter([(key.to_owned(), text.into())]);
    serde_json::from_value::<BackendSettings>(Value::Object(entry)).is_ok()
}

fn table(all: &BackendList) -> String {
    let line = |name: &str, engine: &str, role: &str, health: &str, url: &str| {
        format!("{name:<20} {engine:<20} {role:<9} {health:<8} {url}")
    };
    let mut lines = vec![line("backend", "engine", "role", "health", "url")];
    for backend in &all.backends {
        let BackendRow { name, url, engine, version, role, health, leaving } = backend;
        let engine = format!("{engine} {}", version.as_deref().unwrap_or(""));
        let health = if *leaving { "leaving" } else { health };
        lines.push(line(name, engine.trim_end(), role.as_str(), health, url));
    }
    lines.join("\n")
}

fn say(text: &str) {
    // A closed stdout (EPIPE) is ignored.
    writeln!(std::io::stdout(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct TestCommand {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_backend_is_given_as_key_value_pairs() {
        let line = [
            "backends",
            "add",
            "e9",
            "http://h:8000",
            "engine=vllm",
            "streams_max=64",
            "pin=true",
            r#"models=["m"]"#,
            "version=0.32",
            "group=7",
            "api_key=12345678",
            "profile=true",
            "server_name=null",
            "api_key_file=1e3",
            r#"kv_events="tcp://h:1""#,
            "kv_capacity_tokens=5000",
            r#"decode_prior={"free_streams":2}"#,
        ];
        let Action::Add(args) = TestCommand::try_parse_from(line).unwrap().args.action else {
            panic!()
        };
        let expected = serde_json::json!({
            "name": "e9", "url": "http://h:8000", "engine": "vllm", "streams_max": 64,
            "pin": true, "models": ["m"], "version": "0.32", "group": "7", "api_key": "12345678",
            "profile": "true", "server_name": "null", "api_key_file": "1e3",
            "kv_events": "tcp://h:1", "kv_capacity_tokens": 5000,
            "decode_prior": {"free_streams": 2},
        });
        assert_eq!(entry(&args), expected);
        for url in ["ftp://h:1", "h:8000", "http://", "http://h:0", "http://u@h", "http://h/?a"] {
            assert!(TestCommand::try_parse_from(["backends", "add", "e9", url]).is_err(), "{url}");
        }
        for wrong in ["engine", "=x", "name=x"] {
            let line = ["backends", "add", "e9", "http://h:8000", wrong];
            assert!(TestCommand::try_parse_from(line).is_err(), "{wrong}");
        }
    }
}
