//! Writes an inferred configuration as a commented TOML file, which this crate's parser accepts.

use serde::Serialize;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_types::Role;

/// An inferred configuration.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigDraft {
    /// Data addresses; empty: the default.
    pub listen: Vec<SocketAddr>,
    /// The admin address; absent: the default.
    pub admin: Option<SocketAddr>,
    /// Authorities for https engines.
    pub ca_file: Option<PathBuf>,
    /// The models with a tokenizer.
    pub models: Vec<DraftModel>,
    /// Lines about models without one.
    pub notes: Vec<String>,
    /// The engines.
    pub backends: Vec<DraftBackend>,
}

/// A model with its tokenizer.
#[derive(Clone, Debug, Serialize)]
pub struct DraftModel {
    /// Name as in requests.
    pub name: String,
    /// Path of its `tokenizer.json`.
    pub tokenizer: PathBuf,
}

/// One engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DraftBackend {
    /// Name of the backend.
    pub name: String,
    /// Its base URL.
    pub url: String,
    /// As in the settings.
    pub engine: &'static str,
    /// KV transfer mechanism; `None`: no key is written, as for the keys below.
    pub connector: Option<&'static str>,
    /// vLLM's `kv_role`.
    pub kv_role: Option<String>,
    /// Port of the bootstrap server.
    pub bootstrap_port: Option<u16>,
    /// Initial role.
    pub role: Option<Role>,
    /// Whether SGLang runs with `--enable-pd-role-switch`.
    pub role_switch: bool,
    /// Most concurrent streams.
    pub streams_max: Option<u32>,
    /// File with the engine's API key.
    pub api_key_file: Option<PathBuf>,
    /// Facts reported by the engine, one line each.
    pub comments: Vec<String>,
}

impl ConfigDraft {
    /// The file.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Written by tidegate from what the engines report. Every key has a default; `tidegate check`\n\
             # verifies a change, docs/reference/configuration.md describes every key.\n",
        );
        // Writing to a String cannot fail.
        if !self.listen.is_empty() {
            let all: Vec<String> = self.listen.iter().map(|at| quoted(&at.to_string())).collect();
            write!(text, "\n[server]\nlisten = [{}]\n", all.join(", ")).ok();
        }
        if let Some(admin) = self.admin {
            text += "\n# Metrics, dashboard and role changes: keep it from clients.\n";
            write!(text, "[admin]\nlisten = \"{admin}\"\n").ok();
        }
        text += "\n# Latency targets; placement and roles follow from them.\n[slo]\n\
                 #ttft_seconds = 1.0   # time to first token\n\
                 #tpot_seconds = 0.03  # mean time per further token\n";
        if let Some(path) = &self.ca_file {
            let path = quoted(&path.display().to_string());
            write!(text, "\n[upstream]\nca_file = {path}\n").ok();
        }
        for note in &self.notes {
            write!(text, "\n{}", comment(note)).ok();
        }
        if !self.notes.is_empty() {
            text += "\n#[[models]]\n#name = \"…\"\n#tokenizer = \"/models/…/tokenizer.json\"\n";
        }
        for model in &self.models {
            let tokenizer = quoted(&model.tokenizer.display().to_string());
            let name = quoted(&model.name);
            write!(text, "\n[[models]]\nname = {name}\ntokenizer = {tokenizer}\n").ok();
        }
        for backend in &self.backends {
            text += &backend.to_toml();
        }
        text
    }
}

impl DraftBackend {
    fn to_toml(&self) -> String {
        let mut text = String::from("\n");
        for words in &self.comments {
            writeln!(text, "{}", comment(words)).ok();
        }
        let (name, url) = (quoted(&self.name), quoted(&self.url));
        write!(text, "[[backends]]\nname = {name}\nurl = {url}\nengine = \"{}\"\n", self.engine)
            .ok();
        let mut line = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                writeln!(text, "{key} = {value}").ok();
            }
        };
        line("connector", self.connector.map(quoted));
        line("kv_role", self.kv_role.as_deref().map(quoted));
        line("bootstrap_port", self.bootstrap_port.map(|port| port.to_string()));
        line("role", self.role.map(|role| quoted(role.as_str())));
        line("role_switch", self.role_switch.then(|| "true".to_owned()));
        line("streams_max", self.streams_max.map(|most| most.to_string()));
        let key = self.api_key_file.as_ref();
        line("api_key_file", key.map(|path| quoted(&path.display().to_string())));
        text
    }
}

/// A comment of one line. It may be an engine's own words, such as a version with a line end, which
/// would become settings.
fn comment(words: &str) -> String {
    format!("# {}", words.replace(char::is_control, " "))
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn the_words_of_an_engine_stay_in_a_comment() {
        let backend = DraftBackend {
            name: "engine-0".to_owned(),
            url: "http://127.0.0.1:8000".to_owned(),
            engine: "vllm",
            comments: vec!["vLLM 1\n[admin]\nlisten = \"0.0.0.0:1\"\r\u{1b}[2J".to_owned()],
            ..DraftBackend::default()
        };
        let notes = vec!["a\n[planner]\nenabled = false".to_owned()];
        let draft = ConfigDraft { notes, backends: vec![backend], ..ConfigDraft::default() };
        let settings = Settings::parse(&draft.to_toml()).unwrap();
        let expected = Settings::default();
        assert_eq!((settings.admin, settings.planner), (expected.admin, expected.planner));
    }

    #[test]
    fn a_written_draft_parses() {
        let backend = DraftBackend {
            name: "engine-0".to_owned(),
            url: "http://127.0.0.1:8000".to_owned(),
            engine: "vllm",
            connector: Some("nixl"),
            kv_role: Some("kv_both".to_owned()),
            streams_max: Some(64),
            comments: vec!["vLLM 0.32.0; models: \"a\"".to_owned()],
            ..DraftBackend::default()
        };
        let sglang = DraftBackend {
            name: "engine-1".to_owned(),
            url: "http://127.0.0.1:8001".to_owned(),
            engine: "sglang",
            connector: Some("bootstrap"),
            bootstrap_port: Some(9001),
            role: Some(Role::Prefill),
            ..DraftBackend::default()
        };
        let decode = DraftBackend {
            name: "engine-2".to_owned(),
            url: "http://127.0.0.1:8002".to_owned(),
            role: Some(Role::Decode),
            ..sglang.clone()
        };
        let draft = ConfigDraft {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            admin: Some(SocketAddr::from(([127, 0, 0, 1], 9090))),
            models: vec![DraftModel {
                name: "a \"quoted\" name".to_owned(),
                tokenizer: "/models/a/tokenizer.json".into(),
            }],
            notes: vec!["No tokenizer for b.".to_owned()],
            backends: vec![backend, sglang, decode],
            ..ConfigDraft::default()
        };
        let text = draft.to_toml();
        let settings = Settings::parse(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        assert_eq!(settings.models[0].name, "a \"quoted\" name");
        assert_eq!(settings.backends[0].streams_max, 64);
        assert_eq!(settings.backends[1].role, Some(Role::Prefill));
        assert_eq!(settings.backends[1].bootstrap_port, 9001);
    }
}
