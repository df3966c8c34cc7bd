//! Attempts of a request on successive engines until one serves it. Whether a failure is evidence
//! against an engine often depends on the result of another engine with the same request: failures are
//! kept with the request and attributed at its end.

use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{ClientState, Evidence, OtherAttempts, attribute, is_load};
use tidegate_scheduler::placement::{Disaggregation, EXCLUDED_MAX};
use tidegate_types::{BackendId, Seconds};

use crate::backends::fleet::{BACK_OFF_REQUESTED_MAX, Backend, Stage};
use crate::dispatch::answer::OpenedAnswer;
use crate::dispatch::blame;
use crate::dispatch::context::Proxy;
use crate::dispatch::hedge::{self, HedgedResult};
use crate::dispatch::legs;
use crate::dispatch::place;
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestRecord;
use crate::upstream::error_answer::ErrorAnswer;
use crate::upstream::failure::{Failure, LegFailure, LegKind, LegProblem};

/// Failed attempts of one request.
#[derive(Default)]
pub(crate) struct FailedAttempts {
    failures: Vec<FailedAttempt>,
    /// Failures counted against the limit of attempts.
    charged: u32,
}

struct FailedAttempt {
    failure: LegFailure,
    /// Prefill engine whose hand-off the failed decode leg used.
    from: Option<Arc<Backend>>,
}

/// Runs attempts until an answer's first byte has arrived.
///
/// # Errors
/// [`Failure`] when no backend could be reserved, or when every attempt failed.
pub async fn serve(
    mut serving: Serving<'_>,
    record: &mut RequestRecord,
) -> Result<OpenedAnswer, Failure> {
    let proxy = serving.proxy;
    if serving.job.disaggregation == Disaggregation::Allowed
        && proxy.shapes.runs_colocated(|| serving.shape(), || proxy.clock.now())
    {
        serving.job.disaggregation = Disaggregation::Never;
    }
    let mut failed_attempts = FailedAttempts::default();
    loop {
        let HedgedResult { result, other_failure, hedge_notes, overtaken } =
            once(&serving, &failed_attempts, record).await;
        if let Some(notes) = hedge_notes {
            record.adopt(notes);
        }
        if let Some(failure) = other_failure {
            log(record, proxy, &failure);
            failed_attempts.take(&mut serving, failure, None, record.attempts());
        }
        if let Some(first) = overtaken {
            let backend = proxy.fleet.backend(first);
            blame::engine(proxy, &backend, &"a hedge on another engine answered first");
        }
        match result {
            Ok(opened) => {
                failed_attempts.attribute(proxy, opened.head.status.is_success());
                return Ok(opened);
            }
            Err(AttemptError::Retryable(missed)) => {
                log(record, proxy, &missed);
                let handed = missed.leg == LegKind::Decode;
                let from = record.prefill_on().cloned().filter(|_| handed);
                if let Some(failure) =
                    failed_attempts.take(&mut serving, missed, from, record.attempts())
                {
                    failed_attempts.attribute(proxy, false);
                    return Err(failure);
                }
                record.live.set_stage(Stage::Queued);
            }
            Err(AttemptError::Final(failure)) => {
                failed_attempts.attribute(proxy, false);
                return Err(failed_attempts.final_failure(proxy, failure));
            }
        }
    }
}

/// Logs and counts a failed leg.
pub(crate) fn log(record: &RequestRecord, proxy: &Proxy, missed: &LegFailure) {
    tracing::warn!(request = &*record.live.name, attempt = record.attempts(), "{missed}");
    proxy.metrics.leg_failed(missed);
}

/// One attempt: reserves a backend, runs the legs, and hedges them once when they are slow.
async fn once(
    serving: &Serving<'_>,
    failed_attempts: &FailedAttempts,
    record: &mut RequestRecord,
) -> HedgedResult {
    let mut placed = match place::find(
        serving.proxy,
        serving.settings(),
        &serving.job,
        &serving.matches,
    )
    .await
    {
        Ok(placed) if !failed_attempts.has_refused(placed.on()) => placed,
        // Every usable backend has refused the request.
        Ok(_) => return Err(Failure::NoBackend.into()).into(),
        Err(failure) => return Err(failure.into()).into(),
    };
    record.placed(serving.proxy.clock.now(), placed.take_considered());
    // The first attempt may use two request ids: its own, and one of a colocated retry.
    let (on, second_attempt) = (placed.on(), record.attempts() + 2);
    let mut progress = record.progress();
    let live = progress.live;
    let mut first = pin!(legs::attempt(serving, placed, &mut progress));
    loop {
        tokio::select! {
            biased;
            done = first.as_mut() => return done.into(),
            () = serving.is_slow() => {}
        }
        if let Some(second) = hedge::place(serving, on) {
            // Boxed: it is rare, and unboxed it would enlarge every request's future.
            return Box::pin(hedge::race(first, on, second, live, second_attempt)).await;
        }
    }
}

impl FailedAttempts {
    /// Records a failure. Returns the error for the client if no attempt is left.
    pub(crate) fn take(
        &mut self,
        serving: &mut Serving<'_>,
        failure: LegFailure,
        from: Option<Arc<Backend>>,
        attempts: u32,
    ) -> Option<Failure> {
        let proxy = serving.proxy;
        if failure.problem.is_final() {
            return Some(Failure::Exhausted { attempts, last: failure });
        }
        let backend = proxy.fleet.backend(failure.on);
        let sign = failure.problem.sign();
        let evidence = attribute(sign, OtherAttempts::Untried, ClientState::Reading);
        match (evidence, &failure.problem) {
            // Its role is changing or has changed; it is free for legs of the new one.
            (_, LegProblem::NotAdmitted(_)) => {}
            (Evidence::Load, problem) => {
                let requested =
                    problem.error_answer().and_then(|v| v.retry_delay(proxy.wall_now()));
                blame::load(proxy, &backend, requested, problem);
            }
            (Evidence::Request, LegProblem::Answered(answer)) => {
                let (backend, answer) = (Arc::clone(&failure.backend), answer.clone());
                return Some(Failure::EngineError { backend, answer });
            }
            (_, problem) if problem.is_unreachable() => {
                blame::unreachable(proxy, &backend, problem)
            }
            (_, LegProblem::Abandoned { .. }) => {}
            _ => self.charged += 1,
        }
        let settings = &serving.inbound.settings;
        let (values, class) = (&settings.values, settings.classes.class(serving.job.targets.class));
        let job = &mut serving.job;
        job.excluded.insert(failure.on);
        // The deadlines are renewed: time lost on a failed engine does not count against the request.
        let now = proxy.clock.now();
        job.ttft_deadline = job.ttft_deadline.max(now + job.targets.slo.ttft);
        job.queue_deadline = job.queue_deadline.max(now + class.queue_deadline);
        self.failures.push(FailedAttempt { failure, from });
        let last = self.charged >= values.retry.attempts || self.failures.len() >= EXCLUDED_MAX;
        last.then(|| self.exhausted(proxy, attempts)).flatten()
    }

    /// Returns whether the backend has answered that it does not serve this request. A refused leg of a
    /// disaggregated request counts only if the failure is final, because the other leg may be the cause.
    fn has_refused(&self, on: BackendId) -> bool {
        let refuses = |failure: &LegFailure| {
            let whole = failure.leg == LegKind::Colocated || !failure.problem.is_pending();
            whole && failure.problem.error_answer().is_some()
        };
        self.failures.iter().any(|failed_attempt| {
            failed_attempt.failure.on == on && refuses(&failed_attempt.failure)
        })
    }

    /// At the request's end: attributes the earlier failures to backends.
    pub(crate) fn attribute(&self, proxy: &Proxy, served: bool) {
        let pending = || {
            self.failures
                .iter()
                .filter(|failed_attempt| failed_attempt.failure.problem.is_pending())
        };
        let first = pending().next().map(|failed_attempt| failed_attempt.failure.on);
        let others = match served {
            true => OtherAttempts::Served,
            false if pending().any(|failed_attempt| Some(failed_attempt.failure.on) != first) => {
                OtherAttempts::Failed
            }
            false => OtherAttempts::Untried,
        };
        for failed_attempt in pending() {
            let problem = &failed_attempt.failure.problem;
            let evidence = attribute(problem.sign(), others, ClientState::Reading);
            // A decode engine is not charged for a hand-off whose prefill engine has failed.
            let orphaned =
                failed_attempt.from.as_ref().is_some_and(|from| !from.health.is_healthy())
                    && problem.error_answer().is_some();
            if evidence == Evidence::Engine && !orphaned {
                blame::engine(proxy, &proxy.fleet.backend(failed_attempt.failure.on), problem);
            }
        }
    }

    /// Returns the error for the client when no backend is left: an engine's error, if there is one.
    pub(crate) fn final_failure(&self, proxy: &Proxy, failure: Failure) -> Failure {
        match failure {
            Failure::NoBackend
            | Failure::Saturated
            | Failure::QueueDeadline { .. }
            | Failure::Late { .. } => self.engine_failure(proxy).unwrap_or(failure),
            other => other,
        }
    }

    /// Returns the error for the client after the last attempt.
    pub(crate) fn exhausted(&mut self, proxy: &Proxy, attempts: u32) -> Option<Failure> {
        self.engine_failure(proxy).or_else(|| {
            let last = self.failures.pop()?.failure;
            Some(Failure::Exhausted { attempts, last })
        })
    }

    /// Returns the engine's error for the client. A refusal for load has precedence over other errors,
    /// because a retry may succeed.
    fn engine_failure(&self, proxy: &Proxy) -> Option<Failure> {
        let answers = || {
            self.failures.iter().filter_map(|failed_attempt| {
                let answer = failed_attempt.failure.problem.error_answer()?;
                Some((&failed_attempt.failure.backend, answer))
            })
        };
        let is_busy = |answer: &ErrorAnswer| answer.status.is_some_and(is_load);
        let busy = || answers().filter(|(_, answer)| is_busy(answer));
        if let Some((_, first)) = busy().next() {
            let alike = busy().all(|(_, answer)| answer.status == first.status);
            let status = if alike { first.status.unwrap_or(429) } else { 429 };
            let same = busy().rfind(|(_, answer)| answer.status == Some(status));
            let (backend, answer) = same.or_else(|| busy().next_back())?;
            let now = proxy.wall_now();
            let requested = busy().filter_map(|(_, answer)| answer.retry_delay(now));
            let retry_after =
                requested.fold(Seconds::ZERO, Seconds::max).min(BACK_OFF_REQUESTED_MAX);
            return Some(Failure::Busy {
                backend: Arc::clone(backend),
                answer: Box::new(answer.clone()),
                status,
                retry_after,
            });
        }
        let (backend, answer) = answers().next_back()?;
        Some(Failure::EngineError {
            backend: Arc::clone(backend),
            answer: Box::new(answer.clone()),
        })
    }
}
