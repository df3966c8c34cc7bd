//! Start-up verification: before requests are served, every engine that is up is asked for its
//! facts. An engine that contradicts the settings is logged as an error and left out; with
//! `strict_start` it prevents the start. Engines that are not up are verified when they come up.

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

/// Engines contradict the settings, and `strict_start` asks for a refusal to start: one a line.
#[derive(Debug, Error)]
#[error("engines contradict the settings:\n{0}")]
pub struct Misfits(String);

/// The facts that the settings state.
pub(crate) fn said(settings: &Settings) -> Vec<ConfiguredBackend> {
    let groups = settings.groups();
    settings.backends.iter().zip(groups).map(|(b, group)| configured(b, group)).collect()
}

/// The facts that the settings state of one backend.
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
        Family::SglangPd if backend.role_switch => None,
        Family::SglangPd => backend.role.and_then(mode_of),
        // Only SGLang reports a mode; an SGLang engine in a PD mode refuses whole requests.
        _ => Some(DisaggregationMode::Whole),
    }
}

/// Asks all engines for their facts, concurrently. `pools` are used only here, because connections
/// belong to the runtime that opened them.
pub(crate) fn ask_all(
    settings: &Settings,
    backends: &[Arc<Backend>],
    pools: Vec<Pool>,
) -> Vec<Option<Facts>> {
    let mut told = vec![None; backends.len()];
    let timeout = settings.probe.timeout;
    let asking = async {
        let mut all = JoinSet::new();
        for (pool, backend) in pools.into_iter().zip(backends) {
            let (slot, kind) = (backend.id.index(), backend.kind);
            all.spawn(async move { (slot, introspect::what(&pool, kind, timeout).await) });
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
            || Builder::new_current_thread().enable_all().build().map(|rt| rt.block_on(asking));
        scope.spawn(run).join()
    });
    match answers {
        Ok(Ok(answers)) => {
            for (slot, answer) in answers {
                told[slot] = answer.map(|answer| answer.facts);
            }
        }
        _ => tracing::error!(
            "start-up verification failed: engines could not be asked for their facts"
        ),
    }
    told
}

/// Reports contradictions between settings and facts: in the log, or as one error.
///
/// # Errors
/// [`Misfits`] with `strict_start`.
pub(crate) fn check(
    settings: &Settings,
    said: &[ConfiguredBackend],
    told: &[Option<Facts>],
) -> Result<(), Misfits> {
    let fits = assign_groups(said, told, &[]);
    let lines = fits.iter().zip(said).flat_map(|(fit, said)| {
        let wrong = fit.misfits.iter().filter(|misfit| misfit.contradicts());
        wrong.map(move |misfit: &Misfit| format!("backend {}: {misfit}", said.name))
    });
    let lines: Vec<String> = lines.collect();
    if settings.probe.strict_start && !lines.is_empty() {
        return Err(Misfits(lines.join("\n")));
    }
    for line in lines {
        tracing::error!("{line}: backend is left out until it fits");
    }
    Ok(())
}
