//! Before anything is served: every engine that is up is asked what it is. One that contradicts the
//! settings is left out with an error in the log that names both, or, with `strict_start`, is a reason
//! not to start. Engines that are not up are asked when they are.

use std::sync::Arc;
use tidegate_engine::Family;
use tidegate_settings::{BackendSettings, Settings};
use tidegate_signals::compatibility::{ConfiguredBackend, Misfit, assign_groups, mode_of};
use tidegate_signals::facts::{DisaggregationMode, Facts};
use tidegate_types::GroupId;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::ask;
use crate::fleet::Backend;
use crate::start::StartError;
use crate::upstream::Pool;

/// What the settings say that an engine can be asked for.
pub(crate) fn said(settings: &Settings) -> Vec<ConfiguredBackend> {
    let groups = settings.groups();
    let of = |(backend, group): (&BackendSettings, GroupId)| ConfiguredBackend {
        name: backend.name.clone(),
        group,
        group_is_named: backend.group.is_some(),
        splits: backend.family().can_split(),
        runs_whole: backend.family().serves_colocated(),
        version: backend.version.clone(),
        models: backend.models.clone(),
        mode: mode(backend),
    };
    settings.backends.iter().zip(groups).map(of).collect()
}

/// One that can switch may have done so: its own word counts.
fn mode(backend: &BackendSettings) -> Option<DisaggregationMode> {
    match backend.family() {
        Family::SglangPd if backend.role_switch => None,
        Family::SglangPd => backend.role.and_then(mode_of),
        // Only an SGLang tells a mode; one that disaggregates refuses whole requests.
        _ => Some(DisaggregationMode::Whole),
    }
}

/// Ask all engines once, at the same time. `pools` are for this alone: a connection belongs to the
/// runtime that opened it.
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
            all.spawn(async move { (slot, ask::what(&pool, kind, timeout).await) });
        }
        let mut answers = Vec::new();
        while let Some(answer) = all.join_next().await {
            // A panic in one of them leaves it unasked.
            answers.extend(answer.ok());
        }
        answers
    };
    // On a thread of its own: the caller may be in a runtime.
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
        _ => tracing::error!("the engines could not be asked what they are"),
    }
    told
}

/// Whatever contradicts the settings, in the log or in one error.
///
/// # Errors
/// [`StartError::Misfits`], if the settings ask for it.
pub(crate) fn check(
    settings: &Settings,
    said: &[ConfiguredBackend],
    told: &[Option<Facts>],
) -> Result<(), StartError> {
    let fits = assign_groups(said, told, &[]);
    let lines = fits.iter().zip(said).flat_map(|(fit, said)| {
        let wrong = fit.misfits.iter().filter(|misfit| misfit.contradicts());
        wrong.map(move |misfit: &Misfit| format!("backend {}: {misfit}", said.name))
    });
    let lines: Vec<String> = lines.collect();
    if settings.probe.strict_start && !lines.is_empty() {
        return Err(StartError::Misfits(lines.join("\n")));
    }
    for line in lines {
        tracing::error!("{line}: it is left out until it fits");
    }
    Ok(())
}
