//! What legs cost, learned online, per backend; how long answers are, over all of them.

use tidegate_cost::{DecodeFit, DecodeModel, PrefillFit, PrefillModel};
use tidegate_terms::{BackendId, Moment, Seconds, Tokens};

use crate::fleet::{Estimates, Fleet};
use crate::learn::{Beside, Observation};

/// What an operator knows of a backend's costs before any was observed.
#[derive(Clone, Copy, Debug)]
pub struct Priors {
    /// Of a prefill.
    pub prefill: PrefillModel,
    /// Of a decode step.
    pub decode: DecodeModel,
}

/// A prefill that may have waited for more than this share of its time, beyond the mean, is timed
/// too vaguely to tell what a longer one takes: from a phase of short prompts one line through the
/// waits made long ones twice as dear.
const VAGUE: f64 = 0.1;

/// All fits.
pub struct Fits {
    backends: Vec<BackendFit>,
    estimates: Estimates,
    /// The engines' `max_num_batched_tokens`.
    chunk: Tokens,
}

struct BackendFit {
    prefill: PrefillFit,
    /// Nobody said what a prefill costs, and none was timed well.
    guessed: bool,
    decode: DecodeFit,
    /// The account at the last look.
    before: Option<Look>,
}

/// A backend's decode work at one moment.
#[derive(Clone, Copy)]
struct Look {
    at: Moment,
    emitted: Tokens,
    streams: u32,
}

impl Fits {
    /// Fits that start from the operator's knowledge.
    pub fn new(priors: Vec<Priors>, estimates: Estimates, chunk: Tokens) -> Fits {
        let fit = |priors: Priors| BackendFit {
            prefill: PrefillFit::new(priors.prefill),
            guessed: priors.prefill == PrefillModel::default(),
            decode: DecodeFit::new(priors.decode),
            before: None,
        };
        Fits { backends: priors.into_iter().map(fit).collect(), estimates, chunk }
    }

    /// One observation.
    pub fn take(&mut self, observation: Observation) {
        match observation {
            Observation::Prefill { backend, uncached, cached, took, beside } => {
                let fit = &mut self.backends[backend.index()];
                let steps = uncached.get().div_ceil(self.chunk.get().max(1));
                let decode = fit.decode.model();
                let wait = wait_for_step(&decode, beside);
                let vague = wait > took * VAGUE;
                if vague && !fit.guessed {
                    return;
                }
                fit.guessed &= vague;
                let beside = decode.beside_prefill(beside.streams, beside.kv) * steps as f64;
                fit.prefill.observe(uncached, cached, took - beside - wait);
            }
            Observation::Finished { max_tokens, counted, output, prompt, features } => {
                self.estimates.output.observe(max_tokens, counted, output);
                if let (Some(features), Some(prompt)) = (features, prompt) {
                    self.estimates.bytes.observe(&features, prompt);
                }
            }
            Observation::HealthChanged => {}
        }
    }

    /// Look at every backend's decode work since the last look. The mean gap between two tokens
    /// of one stream is the time that passed, times the streams, over the tokens. A backend that
    /// prefilled meanwhile, or whose streams came and went, teaches nothing about decode steps.
    pub fn watch_decodes(&mut self, fleet: &Fleet, now: Moment) {
        for (backend, fit) in fleet.backends.iter().zip(&mut self.backends) {
            let balance = backend.account.balance();
            let look = Look { at: now, emitted: balance.emitted, streams: balance.streams };
            let before = fit.before.replace(look);
            let Some(before) = before.filter(|_| balance.prefill_legs == 0) else { continue };
            let tokens = (look.emitted - before.emitted).as_f64();
            if before.streams == look.streams && look.streams > 0 && tokens > 0.0 {
                let gap = (now - before.at) * (f64::from(look.streams) / tokens);
                fit.decode.observe(look.streams, balance.kv, gap);
            }
        }
    }

    /// A backend's costs as fitted so far. One of which nothing was said or seen yet is taken to be
    /// like its peers: with a guess that is dearer than what they turned out to cost, it would never
    /// be given anything to be judged by.
    pub fn models(
        &self,
        backend: BackendId,
        peers: impl Iterator<Item = BackendId> + Clone,
    ) -> (PrefillModel, DecodeModel) {
        let fit = &self.backends[backend.index()];
        let mut peers = peers.map(|peer| &self.backends[peer.index()]);
        let (mut prefill, mut decode) = (fit.prefill.model(), fit.decode.model());
        if fit.prefill.observations() == 0 && prefill == PrefillModel::default() {
            let seen = peers.clone().find(|peer| peer.prefill.observations() > 0);
            prefill = seen.map_or(prefill, |peer| peer.prefill.model());
        }
        if fit.decode.observations() == 0 && decode == DecodeModel::default() {
            let seen = peers.find(|peer| peer.decode.observations() > 0);
            decode = seen.map_or(decode, |peer| peer.decode.model());
        }
        (prefill, decode)
    }

    /// Lengths as fitted so far.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }
}

/// A prefill that came into a step of streams waited for its end, half of it in the mean. Placement
/// allows for that itself: learned as a cost of prefills it would count twice.
fn wait_for_step(decode: &DecodeModel, beside: Beside) -> Seconds {
    match beside {
        Beside { streams: 0, .. } | Beside { at_once: false, .. } => Seconds::ZERO,
        Beside { streams, kv, .. } => decode.step(streams, kv) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_cost::{ByteEstimator, OutputEstimate};

    const CHUNK: Tokens = Tokens(2048);

    fn fits(prior: PrefillModel) -> Fits {
        let estimates =
            Estimates { bytes: ByteEstimator::default(), output: OutputEstimate::new(Tokens(1)) };
        let decode = DecodeModel::default();
        Fits::new(vec![Priors { prefill: prior, decode }], estimates, CHUNK)
    }

    /// Prefills of `tokens` that wait from none to all of a step.
    fn run(fits: &mut Fits, truth: &PrefillModel, tokens: u64) {
        let decode = DecodeModel::default();
        for n in 0..200 {
            let (uncached, cached) = (Tokens(tokens * (1 + n % 7)), Tokens::ZERO);
            let beside = Beside { streams: 60, kv: Tokens(40_000), at_once: n % 3 > 0 };
            let steps = uncached.get().div_ceil(CHUNK.get());
            let waited = wait_for_step(&decode, beside) * (2.0 * (n * 7 % 11) as f64 / 10.0);
            let shared = decode.beside_prefill(beside.streams, beside.kv) * steps as f64;
            let took = truth.predict(uncached, cached) + shared + waited;
            fits.take(Observation::Prefill {
                backend: BackendId(0),
                uncached,
                cached,
                took,
                beside,
            });
        }
    }

    /// What a prompt of `tokens` is thought to take, in what it takes.
    fn ratio(fits: &Fits, truth: &PrefillModel, tokens: u64) -> f64 {
        let (learned, _) = fits.models(BackendId(0), std::iter::empty());
        let of = |model: &PrefillModel| model.predict(Tokens(tokens), Tokens::ZERO);
        of(&learned) / of(truth)
    }

    #[test]
    fn a_prefill_beside_streams_teaches_what_it_takes_alone() {
        let truth = PrefillModel::default();
        let mut fits = fits(PrefillModel { base: truth.base * 3.0, ..truth });
        run(&mut fits, &truth, 2000);
        for tokens in [2000, 8000] {
            let ratio = ratio(&fits, &truth, tokens);
            assert!((ratio - 1.0).abs() < 0.05, "{tokens}: {ratio}");
        }
    }

    #[test]
    fn short_prompts_that_waited_for_a_step_say_nothing_of_long_ones() {
        let truth = PrefillModel { base: Seconds(0.002), ..PrefillModel::default() };
        let mut told = fits(truth);
        run(&mut told, &truth, 50);
        assert!((ratio(&told, &truth, 4000) - 1.0).abs() < 0.05, "{}", ratio(&told, &truth, 4000));
        let dear = PrefillModel { per_token: truth.per_token * 10.0, ..truth };
        let mut guessed = fits(PrefillModel::default());
        run(&mut guessed, &dear, 50);
        assert!((ratio(&guessed, &dear, 300) - 1.0).abs() < 0.3, "better than the guess");
    }
}
