//! Results as seen by the clients.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::clients::Manner;

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Complete answer.
    Served,
    /// The client disconnected or did not read, as its behaviour requires.
    Left,
    /// A request that every engine refuses was refused with the engines' message.
    Refused,
    /// A stream was cut after its first event.
    Cut,
    /// No valid part of the answer was received.
    Lost(String),
}

#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// First few losses of each kind, with the number of the request.
    losses: Mutex<BTreeMap<String, (u64, u64)>>,
}

/// Counts of the requests that must be served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Good {
    pub served: u64,
    pub cut: u64,
    pub lost: u64,
}

impl Tally {
    pub fn add(&self, number: u64, manner: Manner, outcome: &Outcome) {
        let word = match outcome {
            Outcome::Served => "served",
            Outcome::Left => "left",
            Outcome::Refused => "refused",
            Outcome::Cut => "cut",
            Outcome::Lost(_) => "lost",
        };
        *self.counts.lock().unwrap().entry((manner.as_str(), word)).or_default() += 1;
        if let Outcome::Lost(why) = outcome {
            let why = format!("{}: {why}", manner.as_str());
            let mut losses = self.losses.lock().unwrap();
            let (_, count) = losses.entry(why).or_insert((number, 0));
            *count += 1;
        }
    }

    pub fn count(&self, manner: Manner, word: &str) -> u64 {
        let counts = self.counts.lock().unwrap();
        counts
            .iter()
            .filter(|((m, w), _)| *m == manner.as_str() && *w == word)
            .map(|(_, n)| n)
            .sum()
    }

    pub fn good(&self) -> Good {
        let mut good = Good::default();
        for manner in Manner::ALL.into_iter().filter(|manner| manner.must_be_served()) {
            good.served += self.count(manner, "served");
            good.cut += self.count(manner, "cut");
            good.lost += self.count(manner, "lost");
        }
        good
    }

    pub fn print(&self) {
        for ((manner, word), count) in &*self.counts.lock().unwrap() {
            println!("chaos: {manner} {word}: {count}");
        }
        for (why, (first, count)) in self.losses.lock().unwrap().iter().take(40) {
            println!("chaos: {count} lost, first request {first}: {why}");
        }
    }
}
