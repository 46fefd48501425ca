//! The runtime for I/O: tokio, with nothing but I/O on it.

use std::future::Future;
use std::sync::mpsc;

use tokio::runtime::{Builder, Handle, Runtime};

use super::pool::Scheduler;
use crate::error::{Error, Result};

/// Threads that drive sockets. They only move bytes between the kernel and memory.
const SOCKET_THREADS: usize = 2;

/// Threads that may wait for a disk at the same time.
const DISK_THREADS: usize = 32;

/// A tokio runtime that belongs to the loader, so that it works inside and outside of other runtimes and ends with the loader.
pub(crate) struct Io {
    runtime: Option<Runtime>,
    inline: bool,
}

impl Io {
    pub(crate) fn new(scheduler: Scheduler) -> Result<Self> {
        let inline = scheduler.is_single_threaded();
        let neighbour = scheduler.neighbour();
        let mut builder = if inline { Builder::new_current_thread() } else { Builder::new_multi_thread() };
        let runtime = builder
            .worker_threads(SOCKET_THREADS)
            .max_blocking_threads(DISK_THREADS)
            .thread_name("forebay-io")
            .on_thread_start(move || neighbour.apply())
            .enable_all()
            .build()
            .map_err(|e| Error::config("cannot start the I/O runtime").because(e))?;
        Ok(Self { runtime: Some(runtime), inline })
    }

    fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("there until dropped").handle()
    }

    /// Runs `future` to its end and waits for it.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.inline {
            let runtime = self.runtime.as_ref().expect("there until dropped");
            if Handle::try_current().is_err() {
                return runtime.block_on(future);
            }
            // A thread of another runtime may not drive this one.
            let driven = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join());
            return driven.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let (done, result) = mpsc::sync_channel(1);
        self.handle().spawn(async move { done.send(future.await) });
        result.recv().unwrap_or_else(|_| Err(Error::new(crate::ErrorKind::Panicked, "an I/O task panicked")))
    }

    /// Makes the calling thread one of the runtime's for what it starts until the guard is dropped.
    pub(crate) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.handle().enter()
    }

    /// Starts `future`; it is dropped with the returned handle.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> Cancel {
        Cancel(self.handle().spawn(future).abort_handle())
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ends an I/O task when dropped.
pub(crate) struct Cancel(tokio::task::AbortHandle);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::engine::neighbour::seen_of_this_thread;

    #[test]
    fn threads_for_sockets_and_disks_are_good_neighbours() {
        let own = seen_of_this_thread();
        let core = own.0.split(['-', ',']).next().expect("a core").parse().expect("its number");
        let nice = (own.1 + 5).min(19) as i8;
        let io = Io::new(Scheduler::threads(1).cores([core]).niceness(nice).settle().unwrap()).unwrap();
        let seen = io.wait(async {
            let disk = tokio::task::spawn_blocking(seen_of_this_thread).await.expect("no panic");
            Ok([seen_of_this_thread(), disk])
        });
        assert_eq!(seen.unwrap(), [(); 2].map(|()| (core.to_string(), nice.into(), libc::SCHED_OTHER.into())));
    }
}
