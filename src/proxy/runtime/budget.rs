//! The memory budget of all request bodies. Bytes are reserved before a body is read, and released
//! when no leg needs it any more. A reservation or release is one atomic operation on one counter.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::runtime::Handle;

/// Largest default budget, in bytes: 32 bodies of the largest default size.
const DEFAULT_MAX: u64 = 1 << 30;
/// Bodies of this size take the kernel more than 0.1 ms to free.
const FREED_ASIDE_MIN: usize = 1 << 20;

/// Byte budget shared by all request bodies.
#[derive(Debug)]
pub struct BodyBudget {
    max: AtomicUsize,
    held: AtomicUsize,
}

/// Bytes reserved for one body. Dropping it releases them.
#[derive(Debug)]
pub struct BudgetShare {
    budget: Arc<BodyBudget>,
    bytes: usize,
    /// Last reference to a large body, freed on a blocking thread. Boxed: most bodies are small.
    body: Option<Box<Bytes>>,
}

impl BodyBudget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Arc<BodyBudget> {
        Arc::new(BodyBudget { max: AtomicUsize::new(max), held: AtomicUsize::new(0) })
    }

    /// Size of the budget in bytes.
    pub fn max(&self) -> usize {
        self.max.load(Relaxed)
    }

    /// Changes the size. Shares beyond a smaller size stay held.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Relaxed);
    }

    /// Bytes reserved now.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Reserves `bytes` if they fit.
    pub fn try_hold(self: &Arc<Self>, bytes: usize) -> Option<BudgetShare> {
        self.add(bytes).then(|| BudgetShare { budget: Arc::clone(self), bytes, body: None })
    }

    fn add(&self, bytes: usize) -> bool {
        // The counter guards no other memory, so `Relaxed` suffices. A compare-and-swap and not an
        // addition that is undone: the excess would refuse smaller bodies until it is undone.
        let max = self.max();
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= max);
        bytes == 0 || self.held.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }
}

impl BudgetShare {
    /// Keeps a reference to the body, so that a large one is not freed on a reactor thread.
    pub fn keep(&mut self, body: &Bytes) {
        if body.len() >= FREED_ASIDE_MIN {
            self.body = Some(Box::new(body.clone()));
        }
    }

    /// Reserves `more` bytes if they fit; otherwise the share is unchanged.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let fits = self.budget.add(more);
        if fits {
            self.bytes += more;
        }
        fits
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        let (budget, bytes, body) = (&self.budget, self.bytes, self.body.take());
        match Handle::try_current() {
            Ok(runtime) if body.is_some() => {
                let budget = Arc::clone(budget);
                runtime.spawn_blocking(move || {
                    drop(body);
                    budget.held.fetch_sub(bytes, Relaxed);
                });
            }
            _ if bytes > 0 => {
                budget.held.fetch_sub(bytes, Relaxed);
            }
            _ => {}
        }
    }
}

/// Returns the default budget: half of the memory available to this process, at most 1 GiB. The other
/// half is for tokens, answers and connections.
#[allow(clippy::disallowed_methods, reason = "files of the kernel, read once at start")]
pub fn default_max() -> usize {
    default_of(|path| std::fs::read_to_string(path).ok())
}

fn default_of(read: impl Fn(&Path) -> Option<String>) -> usize {
    let limit = cgroup_limit(&read).into_iter().chain(total(&read)).min();
    let max = limit.map_or(DEFAULT_MAX, |limit| (limit / 2).min(DEFAULT_MAX));
    usize::try_from(max).unwrap_or(usize::MAX)
}

/// `MemTotal`, in bytes.
fn total(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the smallest limit of this process's cgroup and its ancestors. In a container the path may
/// be the host's; then only the root exists, which is the container's own cgroup.
fn cgroup_limit(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/self/cgroup"))?;
    let mut limits = BTreeSet::new();
    for line in text.lines() {
        // hierarchy:controllers:path; version 2 has hierarchy 0 and no controllers.
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (root, file) = if hierarchy == "0" && controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let text = read(&Path::new(root).join(group).join(file));
            // "max", which is not a number, means no limit.
            limits.extend(text.and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_within_the_budget_is_held_until_dropped() {
        let budget = BodyBudget::new(100);
        let mut first = budget.try_hold(60).unwrap();
        assert!(budget.try_hold(41).is_none());
        assert!(budget.try_hold(usize::MAX).is_none());
        let second = budget.try_hold(40).unwrap();
        assert!(!first.grow(1) && budget.held() == 100);
        drop(second);
        assert!(first.grow(40) && budget.held() == 100);
        assert!(budget.try_hold(0).is_some(), "an empty body always fits");
        budget.set_max(50);
        assert!(budget.try_hold(1).is_none() && budget.held() == 100);
        drop(first);
        assert!(budget.try_hold(50).is_some() && budget.try_hold(51).is_none());
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn threads_never_hold_more_than_the_maximum() {
        let budget = BodyBudget::new(1000);
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let budget = &budget;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let mut held = budget.try_hold(97 * thread);
                        assert!(budget.held() <= 1000);
                        if let Some(held) = &mut held {
                            let _ = held.grow(thread);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn the_default_budget_is_half_of_the_available_memory() {
        const GIB: u64 = 1 << 30;
        let (v2, v1) = ("0::/a/b\n", "9:cpu:/\n4:memory,hugetlb:/docker/x\n0::/\n");
        let unlimited = "9223372036854771712\n";
        let of = |files: &[(&str, &str)]| {
            let files: std::collections::HashMap<_, _> = files.iter().copied().collect();
            default_of(|path| files.get(path.to_str()?).map(|text| (*text).to_owned())) as u64
        };
        let (own, meminfo) = ("/proc/self/cgroup", "/proc/meminfo");
        let large = "MemTotal:       65536000 kB\nMemFree: 1 kB\n";
        let rows: [(&[(&str, &str)], u64); 8] = [
            (&[], GIB),
            (&[(meminfo, large)], GIB),
            (&[(meminfo, "MemTotal: 1048576 kB\n")], GIB / 2),
            (&[(own, v2), ("/sys/fs/cgroup/a/b/memory.max", "536870912\n")], GIB / 4),
            (&[(own, v2), ("/sys/fs/cgroup/a/b/memory.max", "max\n"), (meminfo, large)], GIB),
            (
                &[
                    (own, v2),
                    ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
                    ("/sys/fs/cgroup/a/memory.max", "1000\n"),
                ],
                500,
            ),
            // The host's path, which this container does not see.
            (&[(own, v1), ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n")], 2048),
            (
                &[
                    (own, v1),
                    ("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", unlimited),
                    (meminfo, "MemTotal: 1024 kB\n"),
                ],
                512 << 10,
            ),
        ];
        for (files, expected) in rows {
            assert_eq!(of(files), expected, "{files:?}");
        }
    }
}
