//! Order of KV event messages, which are numbered from 0: next, repeated, or after a gap. A
//! restarted engine starts again at 0; its clock distinguishes new messages from old ones in a
//! replay.

/// Position in one engine's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EventSequence {
    /// Next expected number; `None` before the first message.
    next: Option<u64>,
    /// The engine's clock at the last message.
    last_at: f64,
}

/// Classification of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceStep {
    /// The next message.
    Apply,
    /// A repetition.
    Seen,
    /// Messages from this number on are missing.
    Gap(u64),
    /// The engine has restarted with an empty cache. The caller resets its state and classifies the
    /// message again.
    Restarted,
}

impl EventSequence {
    /// Classifies message `number` with engine time `at` (seconds).
    pub fn classify(&self, number: u64, at: f64) -> SequenceStep {
        match self.next {
            None if number == 0 => SequenceStep::Apply,
            None => SequenceStep::Gap(0),
            Some(next) if number == next => SequenceStep::Apply,
            Some(next) if number > next => SequenceStep::Gap(next),
            Some(_) if at > self.last_at => SequenceStep::Restarted,
            Some(_) => SequenceStep::Seen,
        }
    }

    /// Records that message `number` was applied, whether or not earlier ones are missing.
    pub fn applied(&mut self, number: u64, at: f64) {
        self.next = Some(number.saturating_add(1));
        self.last_at = at;
    }

    /// Skips messages before `number`.
    pub fn skip_to(&mut self, number: u64) {
        self.next = Some(self.next().max(number));
    }

    /// The next expected number.
    pub fn next(&self) -> u64 {
        self.next.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_subscriber_misses_the_messages_before_its_first() {
        assert_eq!(EventSequence::default().classify(0, 1.0), SequenceStep::Apply);
        assert_eq!(EventSequence::default().classify(7, 1.0), SequenceStep::Gap(0));
    }

    #[test]
    fn an_old_number_is_a_restart_with_a_new_time_and_a_repetition_with_an_old_one() {
        let mut sequence = EventSequence::default();
        (0..5).for_each(|number| sequence.applied(number, 10.0 + number as f64));
        assert_eq!(sequence.classify(5, 15.0), SequenceStep::Apply);
        assert_eq!(sequence.classify(8, 15.0), SequenceStep::Gap(5));
        assert_eq!(sequence.classify(3, 13.0), SequenceStep::Seen);
        assert_eq!(sequence.classify(0, 100.0), SequenceStep::Restarted);
    }

    proptest! {
        #[test]
        fn lost_and_repeated_messages_are_applied_once_and_in_order(
            kept in prop::collection::vec((any::<bool>(), 0..3usize), 1..60),
        ) {
            let mut sequence = EventSequence::default();
            let mut applied = Vec::new();
            for (number, (lost, repeats)) in kept.iter().enumerate() {
                if *lost {
                    continue;
                }
                for number in (number.saturating_sub(*repeats)..=number).map(|n| n as u64) {
                    let at = number as f64;
                    let missing = match sequence.classify(number, at) {
                        SequenceStep::Apply => number..number + 1,
                        SequenceStep::Gap(from) => from..number + 1,
                        SequenceStep::Seen => continue,
                        SequenceStep::Restarted => unreachable!("the engine's clock did not advance"),
                    };
                    for number in missing {
                        sequence.applied(number, number as f64);
                        applied.push(number);
                    }
                }
            }
            prop_assert!(applied.iter().copied().eq(0..applied.len() as u64));
        }
    }
}
