//! Checks of one engine: reachability, identity, ports, clock.

use std::time::{Duration, SystemTime};
use tidegate_engine::EngineKind;
use tidegate_settings::{BackendSettings, Connector, KvRole, ModelSettings, Settings};
use tidegate_signals::facts::DisaggregationMode;
use tidegate_signals::identity::Identity;
use tokio::net::TcpStream;

use super::{DoctorReport, tokenizer};
use crate::ask::{Client, host_of};
use crate::discover;

/// Difference of clocks that is reported. The header has a resolution of one second.
const CLOCKS: Duration = Duration::from_secs(2);
/// Time limit for opening a connection to a side port.
const CONNECT: Duration = Duration::from_secs(2);

/// Checks one engine. Returns a model that it serves, or `None` if it cannot be reached.
pub async fn check(
    settings: &Settings,
    backend: &BackendSettings,
    client: &Client,
    report: &mut DoctorReport,
) -> Option<String> {
    let name = &backend.name;
    let identity = match discover::ask(client, &backend.url).await {
        Ok(identity) => identity,
        Err(why) => {
            let detail = format!("{}: {why}", backend.url);
            report.error(name, "reach", detail, "start the engine, or correct its url");
            return None;
        }
    };
    let model = identity.facts.models.first().map(|model| model.id.clone());
    report.ok(name, "reach", format!("{} answers", backend.url));
    kind(backend, &identity, report);
    connector(backend, &identity, report);
    models(backend, &identity, report);
    role(backend, &identity, report);
    ports(backend, report).await;
    clock(backend, client, report).await;
    let serves = |settings: &&ModelSettings| {
        settings.tokenizer.is_some()
            && identity.facts.models.iter().any(|model| model.id == settings.name)
    };
    let counted: Vec<&ModelSettings> = settings.models.iter().filter(serves).collect();
    if counted.is_empty() {
        tokenizer::none(backend, report);
    }
    for settings in counted {
        tokenizer::check(settings, backend, client, report).await;
    }
    model.or_else(|| backend.models.first().cloned())
}

fn kind(backend: &BackendSettings, identity: &Identity, report: &mut DoctorReport) {
    let (configured, reported) = (backend.kind(), identity.kind);
    let version = identity.facts.version.as_deref().unwrap_or("of unknown version");
    let detail = format!("{} {version}", reported.as_str());
    let name = &backend.name;
    if configured != reported && configured != EngineKind::Plain && reported != EngineKind::Plain {
        let detail = format!("{detail}, but the settings have {}", configured.as_str());
        let advice = format!("engine = \"{}\"", reported.as_str());
        return report.error(name, "engine", detail, &advice);
    }
    if backend
        .version
        .as_ref()
        .is_some_and(|configured| identity.facts.version.as_ref() != Some(configured))
    {
        let detail = format!("{detail}, but the settings have {:?}", backend.version);
        return report.error(name, "engine", detail, "correct version, or upgrade the engine");
    }
    report.ok(name, "engine", detail);
}

fn connector(backend: &BackendSettings, identity: &Identity, report: &mut DoctorReport) {
    let name = &backend.name;
    let configured = match backend.connector {
        Connector::None => None,
        // The metrics of pull and push have the same names.
        Connector::Nixl | Connector::NixlPush => Some("nixl"),
        Connector::Mooncake => Some("mooncake"),
        Connector::Offloading => Some("offloading"),
        Connector::SharedStore => Some("shared_store"),
        Connector::Bootstrap => Some("bootstrap"),
        Connector::Transceiver => Some("transceiver"),
    };
    let reported =
        identity.connector.map(|reported| if reported == "nixl_push" { "nixl" } else { reported });
    match (configured, reported) {
        (None, None) => report.ok(name, "connector", "none: all requests run colocated"),
        (configured, reported) if configured == reported => {
            report.ok(name, "connector", configured.unwrap_or_default())
        }
        (None, Some(reported)) => report.warn(
            name,
            "connector",
            format!(
                "the engine has {reported}, the settings have none: all requests run colocated"
            ),
            &format!("connector = \"{reported}\""),
        ),
        // No metric shows these connectors.
        (Some(configured @ ("offloading" | "shared_store")), None) => {
            report.ok(name, "connector", format!("{configured}, which the engine does not report"));
        }
        (Some(configured), reported) => report.error(
            name,
            "connector",
            format!(
                "the settings have {configured}, the engine reports {}",
                reported.unwrap_or("none")
            ),
            "correct connector, or start the engine with it (--kv-transfer-config)",
        ),
    }
    if let Some(role) = &identity.kv_role {
        let configured = match backend.kv_role {
            KvRole::KvBoth => "kv_both",
            KvRole::KvProducer => "kv_producer",
            KvRole::KvConsumer => "kv_consumer",
        };
        if role != configured {
            let detail = format!("the engine runs as {role}, the settings have {configured}");
            report.error(name, "kv_role", detail, &format!("kv_role = \"{role}\""));
        }
    }
}

fn models(backend: &BackendSettings, identity: &Identity, report: &mut DoctorReport) {
    let name = &backend.name;
    let facts = &identity.facts;
    if let Some(status) = facts.key_required {
        let detail = format!("the engine answers {status}");
        return report.error(name, "models", detail, "set api_key_file of the backend");
    }
    let shown = facts.models.iter().map(|model| match model.max_model_len {
        Some(most) => format!("{} ({most} tokens)", model.id),
        None => model.id.clone(),
    });
    let shown: Vec<String> = shown.collect();
    let is_missing =
        |configured: &&String| !facts.models.iter().any(|model| model.id == **configured);
    let missing: Vec<&str> = backend.models.iter().filter(is_missing).map(String::as_str).collect();
    if shown.is_empty() {
        report.warn(name, "models", "the engine lists no model", "set models of the backend");
    } else if missing.is_empty() {
        report.ok(name, "models", shown.join(", "));
    } else {
        let detail = format!("the engine serves {}, not {}", shown.join(", "), missing.join(", "));
        report.error(name, "models", detail, "correct models, or leave it out");
    }
}

fn role(backend: &BackendSettings, identity: &Identity, report: &mut DoctorReport) {
    let allowed: Vec<&str> = backend.allowed_roles().iter().map(|role| role.as_str()).collect();
    let name = &backend.name;
    if let (Some(DisaggregationMode::Half(mode)), Some(role)) = (identity.facts.mode, backend.role)
        && mode != role
        && !backend.role_switch
    {
        let detail =
            format!("the engine runs in mode {}, role is {}", mode.as_str(), role.as_str());
        return report.error(name, "roles", detail, &format!("role = \"{}\"", mode.as_str()));
    }
    report.ok(name, "roles", format!("may take {}", allowed.join(", ")));
}

/// Checks the ports beside the URL that other engines use for a hand-off.
async fn ports(backend: &BackendSettings, report: &mut DoctorReport) {
    let (check, port) = match backend.connector {
        Connector::Mooncake | Connector::Bootstrap => ("bootstrap port", backend.bootstrap_port),
        Connector::Offloading => ("side channel", backend.side_channel_port),
        _ => return,
    };
    let Ok(host) = host_of(&backend.url) else { return };
    let host = host.trim_matches(['[', ']']);
    let reached = tokio::time::timeout(CONNECT, TcpStream::connect((host, port))).await;
    match reached {
        Ok(Ok(_)) => report.ok(&backend.name, check, format!("{host}:{port} accepts")),
        Ok(Err(_)) | Err(_) => report.warn(
            &backend.name,
            check,
            format!("{host}:{port} is not reached from here"),
            "decode engines must reach it: check the port's setting and the network",
        ),
    }
}

async fn clock(backend: &BackendSettings, client: &Client, report: &mut DoctorReport) {
    let Some(path) = backend.kind().health_paths().first() else { return };
    let Ok(answer) = client.get(&backend.url, path).await else { return };
    let latency = format!("{path} answers in {:.1} ms", answer.took.as_secs_f64() * 1e3);
    let there = answer.date.and_then(|date| httpdate::parse_http_date(&date).ok());
    let Some(there) = there else { return report.ok(&backend.name, "clock", latency) };
    let here = SystemTime::now();
    let apart = here.duration_since(there).unwrap_or_else(|before| before.duration());
    if apart > CLOCKS + answer.took {
        let detail = format!("differs from this machine's by {} s", apart.as_secs());
        let advice = "synchronise the clocks (NTP): logs and leases are compared";
        return report.warn(&backend.name, "clock", detail, advice);
    }
    report.ok(&backend.name, "clock", format!("agrees; {latency}"));
}
