//! Messages of KV events are numbered from 0: is this the next one, one seen before, or are some
//! missing? An engine that restarts begins again at 0; its clock tells its messages from old ones
//! that a replay brings a second time.

/// How far one engine's messages were followed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EventSequence {
    /// The next number expected; none before the first message.
    next: Option<u64>,
    /// The engine's clock at the last message.
    last_at: f64,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceStep {
    /// It is the next one.
    Apply,
    /// It was applied before.
    Seen,
    /// Messages from this number on are missing before it.
    Gap(u64),
    /// The engine has restarted: all that it had is gone. Ask again with the same message.
    Restarted,
}

impl EventSequence {
    /// What is message `number`, sent when the engine's clock showed `at`?
    pub fn look(&self, number: u64, at: f64) -> SequenceStep {
        match self.next {
            None if number == 0 => SequenceStep::Apply,
            None => SequenceStep::Gap(0),
            Some(next) if number == next => SequenceStep::Apply,
            Some(next) if number > next => SequenceStep::Gap(next),
            Some(_) if at > self.last_at => SequenceStep::Restarted,
            Some(_) => SequenceStep::Seen,
        }
    }

    /// Message `number` was applied, whatever may be missing before it.
    pub fn applied(&mut self, number: u64, at: f64) {
        self.next = Some(number.saturating_add(1));
        self.last_at = at;
    }

    /// Messages before `number` will not come.
    pub fn skip_to(&mut self, number: u64) {
        self.next = Some(self.next().max(number));
    }

    /// The number that should come next.
    pub fn next(&self) -> u64 {
        self.next.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_listener_misses_all_that_came_before_the_first_message() {
        assert_eq!(EventSequence::default().look(0, 1.0), SequenceStep::Apply);
        assert_eq!(EventSequence::default().look(7, 1.0), SequenceStep::Gap(0));
    }

    #[test]
    fn an_old_number_with_a_new_time_is_a_restart_and_with_an_old_one_a_repetition() {
        let mut sequence = EventSequence::default();
        (0..5).for_each(|number| sequence.applied(number, 10.0 + number as f64));
        assert_eq!(sequence.look(5, 15.0), SequenceStep::Apply);
        assert_eq!(sequence.look(8, 15.0), SequenceStep::Gap(5));
        assert_eq!(sequence.look(3, 13.0), SequenceStep::Seen);
        assert_eq!(sequence.look(0, 100.0), SequenceStep::Restarted);
    }

    proptest! {
        #[test]
        fn messages_lost_and_repeated_are_applied_once_each_and_in_order(
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
                    let missing = match sequence.look(number, at) {
                        SequenceStep::Apply => number..number + 1,
                        SequenceStep::Gap(from) => from..number + 1,
                        SequenceStep::Seen => continue,
                        SequenceStep::Restarted => unreachable!("no clock went forward"),
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
