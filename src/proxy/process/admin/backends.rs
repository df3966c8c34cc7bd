//! Backends that operators add and remove while the proxy runs.

use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;
use tidegate_settings::BackendSettings;
use tidegate_settings::reconcile::SourceId;
use tokio::sync::oneshot;

use super::{AdminApp, Answer, json, parsed, problem};
use crate::control::{Desired, FleetUpdate};
use crate::process::file_references::{self, Permitted};

impl AdminApp {
    /// `POST /v1/backends`: adds a backend with the keys of `[[backends]]`, or replaces the one with
    /// its name.
    pub(super) async fn add_backend(&self, request: Request<Incoming>) -> Answer {
        let text: Value = match parsed(request).await {
            Ok(text) => text,
            Err(answer) => return *answer,
        };
        let backend = match BackendSettings::parse(&text) {
            Ok(backend) if backend.expand => {
                let why = "expand is for the settings file: add one backend for each address";
                return problem(StatusCode::BAD_REQUEST, why.to_owned());
            }
            Ok(backend) => backend,
            Err(problems) => {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                return problem(StatusCode::BAD_REQUEST, lines.join("\n"));
            }
        };
        let settings = self.proxy.settings.load_full();
        let named = file_references::of_backends(std::slice::from_ref(&backend));
        let refused = Permitted::by(&settings.values).problems(&named);
        if !refused.is_empty() {
            return problem(StatusCode::BAD_REQUEST, refused.join("\n"));
        }
        self.update(Desired::One(Box::new(backend), text)).await
    }

    /// `DELETE /v1/backends/{name}`: the backend gets no new work and leaves once drained.
    pub(super) async fn remove_backend(&self, name: &str, now: bool) -> Answer {
        if self.proxy.fleet.named(name).is_none() {
            return problem(StatusCode::NOT_FOUND, format!("no backend is named {name:?}"));
        }
        self.update(Desired::Without { name: name.to_owned(), now }).await
    }

    async fn update(&self, desired: Desired) -> Answer {
        let (reply, answer) = oneshot::channel();
        let update = FleetUpdate { source: SourceId::Admin, desired, reply: Some(reply) };
        let sent = self.fleet_updates.send(update).await.is_ok();
        match answer.await {
            Ok(Ok(done)) if sent => json(StatusCode::OK, &done),
            Ok(Err(refused)) => problem(StatusCode::CONFLICT, refused),
            _ => problem(StatusCode::SERVICE_UNAVAILABLE, "the control loop has stopped".into()),
        }
    }
}
