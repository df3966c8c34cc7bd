//! Chaos test: clients of every behaviour send requests through a proxy to emulated engines, split
//! and whole, while engines die, hang, reset, slow down and refuse, and roles are flipped by the
//! admin API.
//!
//! `make test-chaos` runs the long variant: TIDEGATE_CHAOS_REQUESTS (default 20,000; 1,000,000
//! works) and TIDEGATE_CHAOS_SEED (default: the clock; printed). At any time at most one engine of
//! a fleet has a fault, so every valid request can be served. Asserted:
//! - no valid request fails before its first event;
//! - streams cut after their first event are at most those that the fault layer cut;
//! - valid requests are served beside any share of requests that every engine refuses;
//! - every counter is zero at the end;
//! - memory and file descriptors do not grow between the middle and the end.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "tests use sockets")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the seed and the counts are what a reader needs")]

mod clients;
mod faults;
mod fleet;
mod load;
mod process;
mod tally;
mod tap;
mod wire;

use load::Scale;

/// Same allocator as the product: glibc's retains freed memory, and resident memory is asserted.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Seconds since 1970, used as a seed that differs between runs.
fn fresh_seed() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn run(scale: Scale) {
    let seed = number("TIDEGATE_CHAOS_SEED").unwrap_or_else(fresh_seed);
    println!("chaos: TIDEGATE_CHAOS_SEED={seed}, {} requests", scale.requests);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(load::run(seed, scale));
}

#[test]
#[ignore = "half a minute of faults: make test-chaos"]
fn a_short_run() {
    run(Scale { requests: 1_500 });
}

#[test]
#[ignore = "minutes of faults: make test-chaos"]
fn a_long_run() {
    run(Scale { requests: number("TIDEGATE_CHAOS_REQUESTS").unwrap_or(20_000) });
}
