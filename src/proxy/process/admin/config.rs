//! The settings in force, and the check of another version of them.

use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use tidegate_settings::Settings;
use tidegate_settings::reload::reload;

use super::{AdminApp, Answer, body_of, json, problem};
use crate::backends::expand;
use crate::dispatch::context::Proxy;
use crate::dispatch::settings_in_force::{LastReload, Trigger};
use crate::process::config_file;
use crate::process::file_references::{self, Permitted};

/// Largest settings file that is checked, in bytes; one with 1,000 backends has about 0.3 MB.
const TEXT_MAX: usize = 4 << 20;

/// Answer to `GET /v1/config`.
#[derive(Serialize)]
struct ConfigView<'a> {
    revision: u64,
    /// Seconds since the Unix epoch.
    loaded_at: f64,
    trigger: Trigger,
    file: Option<&'a Path>,
    /// FNV-1a of the file's text, 16 hexadecimal digits.
    text_hash: String,
    last_reload: &'a LastReload,
    settings: &'a Settings,
}

/// Answer to `POST /v1/config/check`.
#[derive(Default, Serialize)]
struct CheckView {
    ok: bool,
    errors: Vec<String>,
    /// Settings that a reload would change.
    changes: Vec<String>,
    /// Settings that would take effect at a restart.
    needs_restart: Vec<String>,
}

/// `GET /v1/config`: the settings in force, without secrets.
pub(super) fn config(proxy: &Proxy) -> Answer {
    let (in_force, last_reload) = (proxy.settings.load_full(), proxy.settings.last_reload());
    let view = ConfigView {
        revision: in_force.revision,
        loaded_at: in_force.loaded_at,
        trigger: in_force.trigger,
        file: in_force.values.file.as_deref(),
        text_hash: format!("{:016x}", in_force.values.text_hash),
        last_reload: &last_reload,
        settings: &in_force.values,
    };
    json(StatusCode::OK, &view)
}

impl AdminApp {
    /// `POST /v1/config/check`: all errors of a settings file in the body, and what a reload of it
    /// would change. Files that it names are read if [`Permitted`], except those of settings that
    /// need a restart; host names of `expand` are not resolved. One check runs at a time.
    pub(super) async fn check_config(&self, request: Request<Incoming>) -> Answer {
        let body = match body_of(request, TEXT_MAX).await {
            Ok(body) => body,
            Err(answer) => return *answer,
        };
        let Ok(text) = String::from_utf8(body.to_vec()) else {
            return problem(StatusCode::BAD_REQUEST, "the body is not UTF-8".to_owned());
        };
        let Ok(one) = Arc::clone(&self.checks).try_acquire_owned() else {
            return problem(StatusCode::CONFLICT, "another check is running".to_owned());
        };
        let in_force = self.proxy.settings.load_full();
        // On a blocking thread: tokenizers are read.
        let checking = tokio::task::spawn_blocking(move || {
            let _one = one;
            check(&in_force.values, &text)
        });
        match checking.await {
            Ok(view) => json(StatusCode::OK, &view),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

fn check(in_force: &Settings, text: &str) -> CheckView {
    let failed = |errors| CheckView { errors, ..CheckView::default() };
    let wanted = match config_file::parse(text) {
        Ok(wanted) => wanted,
        Err(errors) => return failed(errors),
    };
    let merged = reload(in_force, wanted.clone()).settings;
    let mut named = file_references::reloadable(&merged);
    named.extend(file_references::of_backends(&merged.backends));
    let refused = Permitted::by(in_force).problems(&named);
    if !refused.is_empty() {
        return failed(refused);
    }
    let verified = match config_file::verify(merged) {
        Ok(verified) => verified,
        Err(errors) => return failed(errors),
    };
    // A request must not make this machine ask a name server.
    let backends = expand::as_in_force(verified.settings.backends, &in_force.backends);
    let reloaded = reload(in_force, Settings { backends, ..wanted });
    let (changes, needs_restart) = (reloaded.changed, reloaded.needs_restart);
    CheckView { ok: true, errors: Vec::new(), changes, needs_restart }
}
