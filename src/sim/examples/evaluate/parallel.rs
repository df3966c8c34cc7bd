//! Runs simulations in parallel.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// Simulations at a time.
const WORKERS: usize = 2;

/// Runs jobs on two threads; results are in the order of jobs. With a label, progress goes to stderr.
pub fn in_parallel<J: Sync, R: Send>(
    label: Option<&str>,
    jobs: &[J],
    run: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let (began, next) = (Instant::now(), AtomicUsize::new(0));
    let done: Mutex<Vec<(usize, R)>> = Mutex::default();
    let step = jobs.len().div_ceil(10).max(1);
    let work = || {
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some(job) = jobs.get(index) else { return };
            let result = run(job);
            let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            done.push((index, result));
            if let Some(label) = label
                && (done.len().is_multiple_of(step) || done.len() == jobs.len())
            {
                let seconds = began.elapsed().as_secs_f64();
                eprintln!("{label}: {}/{}, {seconds:.0} s", done.len(), jobs.len());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
