//! Elections in virtual time, with paused contenders, delayed messages and API server outages.

use tidegate_types::{Moment, Seconds};

use crate::lease::{ElectionParams, ElectionStep, Elector, LeaseSpec};

const CONTENDERS: usize = 3;
/// Step of virtual time, in seconds.
const TICK: f64 = 0.01;

/// xorshift64*: a seed is an argument.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: f64) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        bits as f64 / (1u64 << 53) as f64 * limit
    }

    fn once_in(&mut self, n: f64) -> bool {
        self.below(n) < 1.0
    }
}

/// The API server: one object with a version.
#[derive(Default)]
struct Server {
    record: Option<LeaseSpec>,
    version: u64,
    away_until: f64,
    /// Distinct epochs and the holder of each.
    epochs: Vec<(u64, String)>,
}

impl Server {
    /// A write with its precondition; `false`: a conflict.
    fn write(&mut self, record: LeaseSpec, expected: u64) -> bool {
        if expected != self.version {
            return false;
        }
        let holder = record.holder_identity.clone().unwrap_or_default();
        let known = self.epochs.iter().find(|(epoch, _)| *epoch == record.lease_transitions);
        match known {
            Some((epoch, of)) => {
                assert!(holder.is_empty() || *of == holder, "epoch {epoch} has two holders");
            }
            None => self.epochs.push((record.lease_transitions, holder)),
        }
        (self.record, self.version) = (Some(record), self.version + 1);
        true
    }
}

/// The pending operation of a contender.
enum Waits {
    Until(f64),
    /// A write that reaches the server at the first time and is known at the second.
    Write {
        record: LeaseSpec,
        expected: u64,
        began: f64,
        arrives: f64,
        known: f64,
        result: Option<bool>,
    },
}

struct Contender {
    elector: Elector,
    waits: Waits,
    /// End of a pause, as by SIGSTOP or a busy node.
    stopped_until: f64,
}

fn at(seconds: f64) -> Moment {
    Moment::START + Seconds(seconds)
}

/// Runs one contender for a tick. One in `late` of its writes travels for 4 s.
fn act(contender: &mut Contender, server: &mut Server, now: f64, late: f64, random: &mut Random) {
    if let Waits::Write { record, expected, arrives, result, .. } = &mut contender.waits {
        // Messages travel while their sender is stopped.
        if result.is_none() && now >= *arrives && now >= server.away_until {
            *result = Some(server.write(record.clone(), *expected));
        }
    }
    if now < contender.stopped_until {
        return;
    }
    match &contender.waits {
        Waits::Write { record, began, known, result: Some(done), .. } if now >= *known => {
            if *done {
                contender.elector.written(record.clone(), at(*began));
            }
            contender.waits = Waits::Until(now + 0.5);
        }
        Waits::Until(due) if now >= *due => {
            if now < server.away_until {
                contender.waits = Waits::Until(now + 0.5);
                return;
            }
            contender.elector.observe(server.record.as_ref(), at(now));
            let wall = format!("{now:.6}");
            contender.waits = match contender.elector.step(at(now), &wall) {
                ElectionStep::Wait => Waits::Until(now + 0.5),
                ElectionStep::Create(record) | ElectionStep::Write(record) => {
                    let arrives =
                        now + random.below(0.05) + if random.once_in(late) { 4.0 } else { 0.0 };
                    let known = arrives + random.below(0.05);
                    let expected = server.version;
                    Waits::Write { record, expected, began: now, arrives, known, result: None }
                }
            };
        }
        _ => {}
    }
}

fn contenders() -> Vec<Contender> {
    let one = |n: usize| Contender {
        elector: Elector::new(format!("gateway-{n}"), ElectionParams::default()),
        waits: Waits::Until(0.1 * n as f64),
        stopped_until: 0.0,
    };
    (0..CONTENDERS).map(one).collect()
}

fn leaders(all: &[Contender], now: f64) -> Vec<u64> {
    all.iter().filter_map(|one| one.elector.epoch(at(now))).collect()
}

#[test]
fn at_most_one_contender_leads_under_pauses_and_delays() {
    let mut terms = 0;
    for seed in 1..=40 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed) | 1);
        let (mut server, mut all) = (Server::default(), contenders());
        let mut last_epoch = 0;
        for tick in 0..12_000 {
            let now = f64::from(tick) * TICK;
            for one in &mut all {
                act(one, &mut server, now, 20.0, &mut random);
                if random.once_in(3000.0) {
                    one.stopped_until = now + random.below(8.0);
                }
            }
            if random.once_in(4000.0) {
                server.away_until = now + random.below(10.0);
            }
            // A paused contender checks the clock when it resumes, so that it does not count.
            let leading = leaders(&all, now);
            assert!(leading.len() <= 1, "seed {seed}, {now:.2} s: epochs {leading:?} lead at once");
            if let Some(epoch) = leading.first() {
                assert!(*epoch >= last_epoch, "seed {seed}: epoch {epoch} after {last_epoch}");
                last_epoch = *epoch;
            }
        }
        terms += server.epochs.len();
    }
    assert!(terms > 100, "leaders hardly changed: {terms} terms");
}

#[test]
fn a_leader_that_is_killed_is_replaced_within_five_seconds() {
    for seed in 1..=20 {
        let mut random = Random((seed * 77) | 1);
        let (mut server, mut all) = (Server::default(), contenders());
        let (mut killed, mut replaced) = (None, None);
        for tick in 0..2_000 {
            let now = f64::from(tick) * TICK;
            for one in &mut all {
                act(one, &mut server, now, f64::MAX, &mut random);
            }
            let leader = all.iter().position(|one| one.elector.epoch(at(now)).is_some());
            match (killed, leader) {
                (None, Some(leader)) if now > 5.0 => {
                    all[leader].stopped_until = f64::MAX;
                    killed = Some((now, leader));
                }
                (Some((when, who)), Some(leader)) if leader != who && replaced.is_none() => {
                    replaced = Some(now - when);
                }
                _ => {}
            }
        }
        let took = replaced.unwrap_or(f64::MAX);
        assert!(took < 5.0, "seed {seed}: {took:.2} s");
    }
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let params = ElectionParams::default();
    let (mut first, mut second) =
        (Elector::new("a".into(), params), Elector::new("b".into(), params));
    first.observe(None, at(1.0));
    let ElectionStep::Create(record) = first.step(at(1.0), "t1") else {
        panic!("there is no Lease")
    };
    first.written(record.clone(), at(1.0));
    assert_eq!(first.epoch(at(1.1)), Some(1));
    second.observe(Some(&record), at(1.1));
    assert_eq!(second.step(at(1.2), "t2"), ElectionStep::Wait);
    let released = first.released(at(1.2)).unwrap();
    second.observe(Some(&released), at(1.3));
    let ElectionStep::Write(taken) = second.step(at(1.3), "t3") else { panic!("it is free") };
    assert_eq!((taken.lease_transitions, taken.holder_identity.as_deref()), (2, Some("b")));
    first.observe(Some(&taken), at(1.4));
    assert_eq!((first.epoch(at(1.4)), first.released(at(1.4))), (None, None));
}

#[test]
fn a_leader_that_cannot_write_stops_before_another_may_begin() {
    let params = ElectionParams::default();
    let mut leader = Elector::new("a".into(), params);
    leader.observe(None, at(0.0));
    let ElectionStep::Create(record) = leader.step(at(0.0), "t0") else { panic!() };
    leader.written(record.clone(), at(0.0));
    assert!(leader.epoch(at(1.99)).is_some() && leader.epoch(at(2.0)).is_none());
    let mut other = Elector::new("b".into(), params);
    other.observe(Some(&record), at(0.0));
    assert_eq!(other.step(at(2.99), "t"), ElectionStep::Wait);
    assert!(matches!(other.step(at(3.0), "t"), ElectionStep::Write(_)));
    // A renewal is a change: the time begins anew.
    let renewed = LeaseSpec { renew_time: Some("t2".into()), ..record };
    other.observe(Some(&renewed), at(2.9));
    assert_eq!(other.step(at(5.8), "t"), ElectionStep::Wait);
}
