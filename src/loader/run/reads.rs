//! Reads on the I/O runtime: what is counted while they are under way, and how they are cancelled.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::Run;
use crate::engine::io::Cancel;
use crate::engine::pool::{Level, no_panic, panicked};
use crate::error::Result;
use crate::store::FirstByte;

/// A read under way.
pub(crate) struct Fetch {
    #[expect(dead_code, reason = "held to be dropped: dropping it ends the read")]
    cancel: Option<Cancel>,
    pub(crate) first_byte: FirstByte,
}

/// Counts a task for as long as it lives.
pub(super) struct Alive(Arc<AtomicUsize>);

impl Alive {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A read that is under way. If it is dropped before its end, nobody waits for it any more.
struct Unfinished {
    run: Weak<Run>,
}

impl Unfinished {
    fn disarm(mut self) {
        self.run = Weak::new();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The lock may be held by whoever drops the read, on this very thread: a worker takes the count over.
        if let Some(run) = self.run.upgrade() {
            run.aborted.fetch_add(1, Ordering::AcqRel);
            run.send_errand();
        }
    }
}

/// A read that counts as alive until everything that it holds is dropped. A cancelled read holds its share of the budget until an I/O thread comes to
/// it.
struct Counted {
    read: Pin<Box<dyn Future<Output = ()> + Send>>,
    _alive: Alive,
}

impl Future for Counted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.read.as_mut().poll(context)
    }
}

impl Run {
    /// Runs a future on the I/O runtime (or, single-threaded, as a task of the pool), then `then` with its result.
    pub(crate) fn fetch<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
        then: impl FnOnce(&Run, Result<T>) + Send + 'static,
    ) -> Fetch {
        let this = self.this.clone();
        let first_byte = FirstByte::default();
        let future = first_byte.of(future);
        if self.shared.scheduler.is_single_threaded() {
            self.submit(Level::Decode, move |run, _| then(run, no_panic(|| run.shared.io.wait(future))));
            return Fetch { cancel: None, first_byte };
        }
        let unfinished = Unfinished { run: this.clone() };
        let read = async move {
            let result = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(future)).await;
            let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
            unfinished.disarm();
            if let Some(run) = this.upgrade() {
                run.guarded(|run| then(run, result));
            }
        };
        let counted = Counted { read: Box::pin(read), _alive: Alive::new(&self.shared.alive) };
        Fetch { cancel: Some(self.shared.io.spawn(counted)), first_byte }
    }

    /// Sends a worker to do what follows from a change that was made without the lock.
    pub(super) fn send_errand(&self) {
        let this = self.this.clone();
        self.shared.pool.submit(self.shared.pool.prepare_errand(Level::Collate, move |_| {
            if let Some(run) = this.upgrade() {
                run.guarded(|run| run.update(|_| {}));
            }
        }));
    }
}
