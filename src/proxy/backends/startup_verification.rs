//! Start-up verification: before requests are served, the facts of every running engine are compared
//! with the settings. A contradiction is logged as an error and makes the backend unusable; with
//! `strict_start` it prevents the start. Engines that start later are verified by their first probe.

use std::sync::Arc;
use thiserror::Error;
use tidegate_engine::Family;
use tidegate_settings::{BackendSettings, Settings};
use tidegate_signals::compatibility::{ConfiguredBackend, Misfit, assign_groups, mode_of};
use tidegate_signals::facts::{DisaggregationMode, Facts};
use tidegate_types::GroupId;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::backends::fleet::Backend;
use crate::backends::introspect;
use crate::upstream::Pool;

/// Contradictions between engines and settings, one a line; with `strict_start` the start fails.
#[derive(Debug, Error)]
#[error("engines contradict the settings:\n{0}")]
pub struct Misfits(String);

/// Returns the configured facts of all backends.
pub(crate) fn configured_all(settings: &Settings) -> Vec<ConfiguredBackend> {
    let groups = settings.groups();
    settings.backends.iter().zip(groups).map(|(b, group)| configured(b, group)).collect()
}

/// Returns the configured facts of one backend.
pub(crate) fn configured(backend: &BackendSettings, group: GroupId) -> ConfiguredBackend {
    ConfiguredBackend {
        name: backend.name.clone(),
        group,
        group_is_named: backend.group.is_some(),
        splits: backend.family().can_split(),
        serves_colocated: backend.family().serves_colocated(),
        version: backend.version.clone(),
        models: backend.models.clone(),
        mode: mode(backend),
    }
}

/// The configured mode. `None` for an engine with role switching, whose mode may have changed.
fn mode(backend: &BackendSettings) -> Option<DisaggregationMode> {
    match backend.family() {
        Family::SglangPd | Family::VllmPdRole if backend.role_switch => None,
        Family::SglangPd => backend.role.and_then(mode_of),
        // Only SGLang reports a mode; an SGLang engine in a PD mode refuses colocated requests.
        _ => Some(DisaggregationMode::Colocated),
    }
}

/// Reads the facts of all engines concurrently. `pools` are not used afterwards: a connection
/// belongs to the runtime that opened it.
pub(crate) fn read_all_facts(
    settings: &Settings,
    backends: &[Arc<Backend>],
    pools: Vec<Pool>,
) -> Vec<Option<Facts>> {
    let mut reported = vec![None; backends.len()];
    let timeout = settings.probe.timeout;
    let reading = async {
        let mut all = JoinSet::new();
        for (pool, backend) in pools.into_iter().zip(backends) {
            let (slot, kind) = (backend.id.index(), backend.kind);
            all.spawn(async move { (slot, introspect::read_facts(&pool, kind, timeout).await) });
        }
        let mut answers = Vec::new();
        while let Some(answer) = all.join_next().await {
            // A panic leaves one engine unverified.
            answers.extend(answer.ok());
        }
        answers
    };
    // On a separate thread, as the caller may already be in a runtime.
    let answers = std::thread::scope(|scope| {
        let run =
            || Builder::new_current_thread().enable_all().build().map(|rt| rt.block_on(reading));
        scope.spawn(run).join()
    });
    match answers {
        Ok(Ok(answers)) => {
            for (slot, answer) in answers {
                reported[slot] = answer.map(|answer| answer.facts);
            }
        }
        _ => tracing::error!(
            "start-up verification failed: the facts of the engines could not be read"
        ),
    }
    reported
}

/// Reports contradictions between settings and facts: in the log, or as one error.
///
/// # Errors
/// [`Misfits`] with `strict_start`.
pub(crate) fn check(
    settings: &Settings,
    configured: &[ConfiguredBackend],
    reported: &[Option<Facts>],
) -> Result<(), Misfits> {
    let groups = assign_groups(configured, reported, &[]);
    let lines = groups.iter().zip(configured).flat_map(|(group, configured)| {
        let wrong = group.misfits.iter().filter(|misfit| misfit.contradicts());
        wrong.map(move |misfit: &Misfit| format!("backend {}: {misfit}", configured.name))
    });
    let lines: Vec<String> = lines.collect();
    if settings.probe.strict_start && !lines.is_empty() {
        return Err(Misfits(lines.join("\n")));
    }
    for line in lines {
        tracing::error!("{line}: backend is unusable until it matches the settings");
    }
    Ok(())
}
