//! Attempts of a request, one engine after the other, until one serves it. Whether a failure is
//! evidence against an engine is often known only after another engine had the same request:
//! failures are kept with the request and judged at its end.

use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{ClientState, Evidence, OtherAttempts, attribute, is_load};
use tidegate_scheduler::placement::{EXCLUDED_MAX, Split};
use tidegate_types::{BackendId, Seconds};

use crate::backends::fleet::{BACK_OFF_ASKED_MAX, Backend, Stage};
use crate::dispatch::answer::Opened;
use crate::dispatch::blame;
use crate::dispatch::context::Proxy;
use crate::dispatch::hedge::{self, Raced};
use crate::dispatch::legs;
use crate::dispatch::place;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::RequestRecord;
use crate::upstream::failure::{Failure, Leg, LegFailure, LegProblem};
use crate::upstream::verdict::Verdict;

/// What has failed so far.
#[derive(Default)]
pub(crate) struct Tries {
    failures: Vec<Tried>,
    /// Failures that count as attempts.
    charged: u32,
}

struct Tried {
    failure: LegFailure,
    /// Where the hand-off came from that the leg began with.
    from: Option<Arc<Backend>>,
}

/// Runs attempts until an answer's first byte has arrived.
///
/// # Errors
/// [`Failure`] when no backend could be reserved, or when every attempt failed.
pub async fn serve(
    mut serving: Serving<'_>,
    record: &mut RequestRecord,
) -> Result<Opened, Failure> {
    let proxy = serving.proxy;
    if serving.job.split == Split::May
        && proxy.shapes.runs_whole(|| serving.shape(), proxy.clock.now())
    {
        serving.job.split = Split::Never;
    }
    let mut tries = Tries::default();
    loop {
        let Raced { result, also, second, overtaken } = once(&serving, &tries, record).await;
        if let Some(notes) = second {
            hedge::adopt(record, notes);
        }
        if let Some(failure) = also {
            log(record, proxy, &failure);
            tries.take(&mut serving, failure, None, record.notes.attempts);
        }
        if let Some(first) = overtaken {
            let backend = proxy.fleet.backend(first);
            blame::engine(proxy, backend, &"another engine answered while it was late");
        }
        match result {
            Ok(opened) => {
                tries.settle(proxy, opened.head.status.is_success());
                return Ok(opened);
            }
            Err(Miss::Elsewhere(missed)) => {
                log(record, proxy, &missed);
                let handed = missed.leg == Leg::Decode;
                let from = record.notes.prefill_on.clone().filter(|_| handed);
                if let Some(failure) = tries.take(&mut serving, missed, from, record.notes.attempts)
                {
                    tries.settle(proxy, false);
                    return Err(failure);
                }
                record.live.set_stage(Stage::Queued);
            }
            Err(Miss::Final(failure)) => {
                tries.settle(proxy, false);
                return Err(tries.gives_up(proxy, failure));
            }
        }
    }
}

pub(crate) fn log(record: &RequestRecord, proxy: &Proxy, missed: &LegFailure) {
    tracing::warn!(request = &*record.live.name, attempt = record.notes.attempts, "{missed}");
    proxy.metrics.leg_failed(missed);
}

/// One place and what comes of it, and a second one if it is late.
async fn once(serving: &Serving<'_>, tries: &Tries, record: &mut RequestRecord) -> Raced {
    let mut placed = match place::find(serving.proxy, &serving.job, &serving.matches).await {
        Ok(placed) if !tries.has_judged(placed.on()) => placed,
        // No backend is left that has not said no.
        Ok(_) => return Err(Failure::NoBackend.into()).into(),
        Err(failure) => return Err(failure.into()).into(),
    };
    record.placed_at.get_or_insert(serving.proxy.clock.now());
    record.notes.attempts += 1;
    record.notes.considered = placed.take_considered();
    // Each leg has its own number, and so has a retry as a colocated request.
    let (on, second_attempt) = (placed.on(), record.notes.attempts + 2);
    let mut course = record.course();
    let live = course.live;
    let mut first = pin!(legs::attempt(serving, placed, &mut course));
    loop {
        tokio::select! {
            biased;
            done = first.as_mut() => return done.into(),
            () = serving.is_late() => {}
        }
        if let Some(second) = hedge::place(serving, on) {
            // Boxed: it is rare, and unboxed it would enlarge every request's future.
            return Box::pin(hedge::race(first, on, second, live, second_attempt)).await;
        }
    }
}

impl Tries {
    /// Records a failure. `Some`: it was the last.
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
            (Evidence::Load, problem) => {
                let asked = problem.verdict().and_then(|v| v.asks_for(proxy.wall_now()));
                blame::load(proxy, backend, asked, problem);
            }
            (Evidence::Request, LegProblem::Answered(verdict)) => {
                let (backend, verdict) = (Arc::clone(&failure.backend), verdict.clone());
                return Some(Failure::Judged { backend, verdict });
            }
            (_, problem) if problem.is_unreachable() => blame::unreachable(proxy, backend, problem),
            (_, LegProblem::Abandoned { .. }) => {}
            _ => self.charged += 1,
        }
        let job = &mut serving.job;
        job.excluded.insert(failure.on);
        // What an engine has lost is no reason to come last, or too late, at the next.
        let now = proxy.clock.now();
        job.ttft_deadline = job.ttft_deadline.max(now + proxy.fleet.slo().ttft);
        job.queue_deadline = job.queue_deadline.max(now + proxy.queue_deadline);
        self.failures.push(Tried { failure, from });
        let last = self.charged >= proxy.attempts_max || self.failures.len() >= EXCLUDED_MAX;
        last.then(|| self.exhausted(proxy, attempts)).flatten()
    }

    /// Has it answered that it does not serve this request? It need not be asked again. Of a split
    /// request the other leg may be the reason.
    fn has_judged(&self, on: BackendId) -> bool {
        let is_final = |failure: &LegFailure| {
            let whole = failure.leg == Leg::Whole || !failure.problem.is_pending();
            whole && failure.problem.verdict().is_some()
        };
        self.failures.iter().any(|tried| tried.failure.on == on && is_final(&tried.failure))
    }

    /// At the request's end: attributes the earlier failures to backends.
    pub(crate) fn settle(&self, proxy: &Proxy, served: bool) {
        let pending = || self.failures.iter().filter(|tried| tried.failure.problem.is_pending());
        let first = pending().next().map(|tried| tried.failure.on);
        let others = match served {
            true => OtherAttempts::Served,
            false if pending().any(|tried| Some(tried.failure.on) != first) => {
                OtherAttempts::Failed
            }
            false => OtherAttempts::Untried,
        };
        for tried in pending() {
            let problem = &tried.failure.problem;
            let evidence = attribute(problem.sign(), others, ClientState::Reading);
            // An engine that cannot load what a dead one has handed over is not to blame.
            let orphaned = tried.from.as_ref().is_some_and(|from| !from.health.is_well())
                && problem.verdict().is_some();
            if evidence == Evidence::Engine && !orphaned {
                blame::engine(proxy, proxy.fleet.backend(tried.failure.on), problem);
            }
        }
    }

    /// No backend is left: the client gets the last engine error, if there is one.
    pub(crate) fn gives_up(&self, proxy: &Proxy, failure: Failure) -> Failure {
        match failure {
            Failure::NoBackend | Failure::Saturated | Failure::QueueDeadline { .. } => {
                self.verdict(proxy).unwrap_or(failure)
            }
            other => other,
        }
    }

    pub(crate) fn exhausted(&mut self, proxy: &Proxy, attempts: u32) -> Option<Failure> {
        self.verdict(proxy).or_else(|| {
            let last = self.failures.pop()?.failure;
            Some(Failure::Exhausted { attempts, last })
        })
    }

    /// A refusal for load says that it may still be served; then an error of an engine.
    fn verdict(&self, proxy: &Proxy) -> Option<Failure> {
        let verdicts = || {
            self.failures.iter().filter_map(|tried| {
                let verdict = tried.failure.problem.verdict()?;
                Some((&tried.failure.backend, verdict))
            })
        };
        let is_busy = |verdict: &Verdict| verdict.status.is_some_and(is_load);
        let busy = || verdicts().filter(|(_, verdict)| is_busy(verdict));
        if let Some((_, first)) = busy().next() {
            let alike = busy().all(|(_, verdict)| verdict.status == first.status);
            let status = if alike { first.status.unwrap_or(429) } else { 429 };
            let same = busy().rfind(|(_, verdict)| verdict.status == Some(status));
            let (backend, verdict) = same.or_else(|| busy().next_back())?;
            let now = proxy.wall_now();
            let asked = busy().filter_map(|(_, verdict)| verdict.asks_for(now));
            let retry_after = asked.fold(Seconds::ZERO, Seconds::max).min(BACK_OFF_ASKED_MAX);
            return Some(Failure::Busy {
                backend: Arc::clone(backend),
                verdict: Box::new(verdict.clone()),
                status,
                retry_after,
            });
        }
        let (backend, verdict) = verdicts().next_back()?;
        Some(Failure::Judged { backend: Arc::clone(backend), verdict: Box::new(verdict.clone()) })
    }
}
