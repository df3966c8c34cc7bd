//! One connection's wake-ups, heard only when they mean something.
//!
//! hyper's halves of a client connection, the driver and the body, wake each other; and the task
//! that polls them is also woken for its client's side. Without a filter one chunk costs two polls
//! of the task and eleven of the driver. Here a ring from within a poll only makes that poll go
//! round again, and a poll that nobody rang for costs one atomic read. It must never swallow a ring
//! that comes between two polls.

use atomic_waker::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::task::{Context, Poll, Wake, Waker};

/// Somebody rang since the last look.
const RUNG: u8 = 1;
/// A poll is under way: it looks for rings before it ends.
const INSIDE: u8 = 2;
/// How often one poll goes round before it lets the task's other work have a turn.
const ROUNDS_MAX: u32 = 16;

struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(RUNG, AcqRel) & INSIDE == 0 {
            self.task.wake();
        }
    }
}

/// The bell of one connection, at the side of whoever polls it.
pub(super) struct Doorbell {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Doorbell {
    /// A bell that has rung: the first poll goes through.
    pub(super) fn new() -> Doorbell {
        let bell = Arc::new(Bell { state: AtomicU8::new(RUNG), task: AtomicWaker::new() });
        Doorbell { waker: Waker::from(Arc::clone(&bell)), bell }
    }

    /// Runs `poll` if the bell has rung, again as long as it rings meanwhile. What is ready is
    /// followed by another poll, rung or not: there may be more.
    pub(super) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let state = &self.bell.state;
        self.bell.task.register(context.waker());
        if state.load(Acquire) & RUNG == 0 {
            return Poll::Pending;
        }
        let mut within = Context::from_waker(&self.waker);
        for _ in 0..ROUNDS_MAX {
            state.swap(INSIDE, AcqRel);
            if let Poll::Ready(ready) = poll(&mut within) {
                state.swap(RUNG, AcqRel);
                return Poll::Ready(ready);
            }
            if state.compare_exchange(INSIDE, 0, AcqRel, Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        state.swap(RUNG, AcqRel);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// A doorbell, a task that counts its wake-ups, and how often the inside was polled.
    fn polls(bell: &Doorbell, task: &Arc<Woken>, answers: &[Poll<()>]) -> (Poll<()>, usize) {
        let waker = Waker::from(Arc::clone(task));
        let mut polled = 0;
        let answer = bell.poll(&mut Context::from_waker(&waker), |_| {
            polled += 1;
            answers[(polled - 1).min(answers.len() - 1)]
        });
        (answer, polled)
    }

    #[test]
    fn nobody_rang_nothing_is_polled() {
        let (bell, task) = (Doorbell::new(), Arc::default());
        assert_eq!(polls(&bell, &task, &[Poll::Pending]), (Poll::Pending, 1), "the first goes in");
        assert_eq!(polls(&bell, &task, &[Poll::Pending]), (Poll::Pending, 0));
        bell.waker.wake_by_ref();
        assert_eq!(task.0.load(Relaxed), 1);
        assert_eq!(polls(&bell, &task, &[Poll::Pending]), (Poll::Pending, 1));
    }

    #[test]
    fn what_is_ready_may_be_followed_by_more() {
        let (bell, task) = (Doorbell::new(), Arc::default());
        assert_eq!(polls(&bell, &task, &[Poll::Ready(())]), (Poll::Ready(()), 1));
        assert_eq!(polls(&bell, &task, &[Poll::Ready(())]), (Poll::Ready(()), 1));
    }

    #[test]
    fn a_ring_from_within_goes_round_again_and_wakes_no_task() {
        let (bell, task) = (Doorbell::new(), Arc::<Woken>::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut polled = 0;
        let answer = bell.poll(&mut Context::from_waker(&waker), |within| {
            polled += 1;
            if polled < 3 {
                within.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert_eq!((answer, polled, task.0.load(Relaxed)), (Poll::Pending, 3, 0));
    }

    #[test]
    fn one_that_rings_for_ever_gives_the_task_a_turn() {
        let (bell, task) = (Doorbell::new(), Arc::<Woken>::default());
        let waker = Waker::from(Arc::clone(&task));
        let answer = bell.poll(&mut Context::from_waker(&waker), |within| {
            within.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!((answer, task.0.load(Relaxed)), (Poll::Pending, 1));
        assert_eq!(polls(&bell, &task, &[Poll::Pending]).1, 1);
    }

    /// Rings from another thread, at any moment: none is lost.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "rings from another thread are what it is about")]
    fn rings_from_elsewhere_are_never_lost() {
        const RINGS: u32 = 20_000;
        let bell = Doorbell::new();
        let rung = Arc::new(AtomicU32::new(0));
        let ringer = {
            let (waker, rung) = (bell.waker.clone(), Arc::clone(&rung));
            std::thread::spawn(move || {
                for _ in 0..RINGS {
                    rung.fetch_add(1, Relaxed);
                    waker.wake_by_ref();
                }
            })
        };
        // Parks between polls: a lost ring would leave it parked for ever.
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        while bell
            .poll(&mut context, |_| match rung.load(Relaxed) {
                RINGS => Poll::Ready(()),
                _ => Poll::Pending,
            })
            .is_pending()
        {
            std::thread::park();
        }
        ringer.join().unwrap();
    }
}
