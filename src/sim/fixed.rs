//! A fleet with a fixed split, in virtual time: K engines prefill, the others decode, as operators
//! run it today. Each prompt goes at once to the prefill engine with the least predicted work, each
//! prefilled request to the decode engine with the fewest tokens of KV.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use tidegate_terms::{Seconds, Slo, Tokens};

use crate::engine::{Engine, Event, SeqId, Sequence, Work};
use crate::profile::Profile;
use crate::report::{Outcome, Report};
use crate::trace::Trace;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrives(usize),
    StepEnds(usize),
    HandedOver(usize, usize),
}

struct Fleet<'a> {
    trace: &'a Trace,
    profile: Profile,
    prefills: usize,
    engines: Vec<Engine>,
    busy: Vec<bool>,
    /// Predicted prefill work outstanding, by engine.
    work: Vec<f64>,
    /// KV tokens given to each decode engine.
    kv: Vec<u64>,
    /// Where each request prefilled.
    from: Vec<usize>,
    to: Vec<usize>,
    firsts: Vec<Option<f64>>,
    lasts: Vec<f64>,
    left: Vec<u64>,
    due: BinaryHeap<Reverse<(u64, What)>>,
}

/// What becomes of a trace on `engines` engines of which `prefills` prefill. Runs until `deadline`
/// after the start; what is unfinished then stays so.
pub fn fixed_split(
    trace: &Trace,
    profile: Profile,
    engines: usize,
    prefills: usize,
    deadline: Seconds,
) -> Vec<Outcome> {
    let n = trace.arrivals.len();
    let mut fleet = Fleet {
        trace,
        profile,
        prefills,
        engines: vec![Engine::new(profile); engines],
        busy: vec![false; engines],
        work: vec![0.0; engines],
        kv: vec![0; engines],
        from: vec![0; n],
        to: vec![0; n],
        firsts: vec![None; n],
        lasts: vec![0.0; n],
        left: trace.arrivals.iter().map(|arrival| arrival.output.get()).collect(),
        due: BinaryHeap::new(),
    };
    for (i, arrival) in trace.arrivals.iter().enumerate() {
        fleet.due.push(Reverse((nanos(arrival.at), What::Arrives(i))));
    }
    fleet.run(nanos(deadline));
    (0..n).map(|i| fleet.outcome(i)).collect()
}

/// The best of all splits, in hindsight: its number of prefill engines and its report.
pub fn best_split(
    trace: &Trace,
    profile: Profile,
    engines: usize,
    deadline: Seconds,
    slo: &Slo,
) -> Option<(usize, Report)> {
    let report = |prefills| {
        let outcomes = fixed_split(trace, profile, engines, prefills, deadline);
        (prefills, Report::of(&format!("static:{prefills}"), 1.0, 0, &outcomes, slo))
    };
    // Ties go to the smaller number.
    (1..engines).rev().map(report).max_by(|a, b| a.1.attainment.total_cmp(&b.1.attainment))
}

impl Fleet<'_> {
    fn run(&mut self, deadline: u64) {
        let mut events = Vec::new();
        while let Some(Reverse((now, what))) = self.due.pop() {
            if now > deadline {
                return;
            }
            match what {
                What::Arrives(i) => self.prefill(i, now),
                What::HandedOver(i, to) => {
                    self.engines[self.from[i]].release(SeqId(i as u64));
                    self.admit(i, to, Work::DecodeOnly, now);
                }
                What::StepEnds(engine) => {
                    self.busy[engine] = false;
                    self.engines[engine].end_step(&mut events);
                    for event in events.drain(..) {
                        self.take(event, now);
                    }
                    self.step(engine, now);
                }
            }
        }
    }

    fn prefill(&mut self, i: usize, now: u64) {
        let least = |a: &usize, b: &usize| self.work[*a].total_cmp(&self.work[*b]);
        let to = (0..self.prefills).min_by(least).unwrap_or(0);
        self.work[to] += self.predicted(i);
        self.from[i] = to;
        self.admit(i, to, Work::PrefillOnly, now);
    }

    fn take(&mut self, event: Event, now: u64) {
        match event {
            Event::PrefillDone { id } => {
                let i = id.0 as usize;
                self.work[self.from[i]] -= self.predicted(i);
                let decodes = self.prefills..self.engines.len();
                let to = decodes.min_by_key(|engine| self.kv[*engine]).unwrap_or(0);
                self.to[i] = to;
                self.kv[to] += self.held(i);
                let took = self.profile.transfer(self.trace.arrivals[i].prompt);
                self.due.push(Reverse((now + nanos(took), What::HandedOver(i, to))));
            }
            Event::Token { id, last } => {
                let i = id.0 as usize;
                let at = now as f64 / 1e9;
                self.firsts[i].get_or_insert(at);
                self.lasts[i] = at;
                self.left[i] -= 1;
                if last {
                    self.kv[self.to[i]] -= self.held(i);
                }
            }
        }
    }

    fn admit(&mut self, i: usize, engine: usize, work: Work, now: u64) {
        let arrival = &self.trace.arrivals[i];
        self.engines[engine].admit(Sequence {
            id: SeqId(i as u64),
            prompt: arrival.prompt,
            cached: Tokens::ZERO,
            output: arrival.output,
            work,
        });
        self.step(engine, now);
    }

    fn step(&mut self, engine: usize, now: u64) {
        if self.busy[engine] {
            return;
        }
        if let Some(took) = self.engines[engine].begin_step() {
            self.busy[engine] = true;
            self.due.push(Reverse((now + nanos(took), What::StepEnds(engine))));
        }
    }

    fn predicted(&self, i: usize) -> f64 {
        let prompt = self.trace.arrivals[i].prompt;
        self.profile.prefill_model().predict(prompt, Tokens::ZERO).get()
    }

    fn held(&self, i: usize) -> u64 {
        let arrival = &self.trace.arrivals[i];
        arrival.prompt.get() + arrival.output.get()
    }

    fn outcome(&self, i: usize) -> Outcome {
        let arrival = &self.trace.arrivals[i];
        let tokens = arrival.output.get() - self.left[i];
        let done = self.left[i] == 0;
        let first = self.firsts[i];
        let gaps = tokens.saturating_sub(1);
        let span = first.map(|first| Seconds(self.lasts[i] - first));
        Outcome {
            ttft: first.map(|first| Seconds(first) - arrival.at),
            tpot: span.filter(|_| done && gaps > 0).map(|span| span / gaps as f64),
            done,
            error: false,
            tokens: Tokens(tokens),
        }
    }
}

fn nanos(span: Seconds) -> u64 {
    (span.get() * 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_request_pays_prefill_hand_off_and_one_step() {
        let arrival = crate::trace::Arrival {
            at: Seconds(1.0),
            prompt: Tokens(1000),
            output: Tokens(3),
            blocks: Vec::new(),
        };
        let trace = Trace { arrivals: vec![arrival] };
        let outcomes = fixed_split(&trace, Profile::default(), 2, 1, Seconds(60.0));
        let prefill = 2e-3 + 71e-6 * 1000.0 + 1.33e-9 * 1000.0 * 1000.0 / 2.0;
        let handoff = 3e-3 + 8e-6 * 1000.0;
        let step = 15.1e-3 + 30.6e-9 * 1000.0;
        let ttft = outcomes[0].ttft.unwrap().get();
        assert!((ttft - prefill - handoff - step).abs() < 1e-6, "{ttft}");
        assert!((outcomes[0].tpot.unwrap().get() - step).abs() < 1e-6);
    }

    #[test]
    fn the_same_input_gives_the_same_outcome_and_hindsight_is_best() {
        let trace = Trace::bursts(5, Seconds(40.0), 10.0, Seconds(10.0)).scale_output(0.3);
        let (profile, end) = (Profile::default(), Seconds(120.0));
        let run = |k| fixed_split(&trace, profile, 8, k, end);
        assert_eq!(run(4), run(4));
        let slo = Slo::default();
        let (_, best) = best_split(&trace, profile, 8, end, &slo).unwrap();
        for k in 1..8 {
            let report = Report::of("", 1.0, 0, &run(k), &slo);
            assert!(report.attainment <= best.attainment);
        }
    }
}
