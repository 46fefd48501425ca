//! What a store and those who wait for a read tell each other about it while it is under way.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    /// The watch over the read that this task runs.
    static READ: Watch;
}

/// Bytes of a read that a thread for computation copies; for more, other work would wait too long.
const MOST_COPIED: u64 = 16 << 20;

/// Watches a read that runs within [`of`](Self::of): a slow response is told from a slow connection, and files that are in memory from others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// When the first byte came. For a local file, that is when reading begins.
    first_byte: OnceLock<Instant>,
    /// Bytes that the thread that polls the read may copy: more than none if it is one for computation, which may not wait.
    allowance: AtomicU64,
    /// Bytes of files that were in the kernel's page cache.
    cached: AtomicU64,
    /// Whether a file was read of which pages were missing there.
    missing: AtomicBool,
}

impl Watch {
    /// Watches over `read`.
    pub(crate) fn of<F: Future>(&self, read: F) -> TaskLocalFuture<Self, F> {
        READ.scope(self.clone(), read)
    }

    /// Returns when the first byte came, if it has.
    pub(crate) fn first_byte(&self) -> Option<Instant> {
        self.0.first_byte.get().copied()
    }

    /// Polls a watched read on this thread, which may spend its time on copying but not wait: files in the kernel's page cache are read by it. Returns
    /// `None` if more is needed; then the same read goes on elsewhere. Has to be called within a tokio runtime.
    pub(crate) fn copy<F: Future + Unpin>(&self, read: &mut F) -> Option<F::Output> {
        self.let_copy(MOST_COPIED);
        // Where it goes on, its first poll lets it be woken there.
        let polled = Pin::new(read).poll(&mut Context::from_waker(Waker::noop()));
        self.let_copy(0);
        match polled {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// Says how many bytes the thread that polls the read next may copy.
    pub(crate) fn let_copy(&self, bytes: u64) {
        self.0.allowance.store(bytes, Ordering::Relaxed);
    }

    /// Returns whether [`copy`](Self::copy) could have read all of it: files that were all in the kernel's page cache, and not too many bytes.
    pub(crate) fn was_copyable(&self) -> bool {
        let copied = self.0.cached.load(Ordering::Relaxed);
        (1..=MOST_COPIED).contains(&copied) && !self.0.missing.load(Ordering::Relaxed)
    }
}

/// Notes that bytes of the read that this task runs have arrived.
pub(super) fn came() {
    // Reads that nobody watches run outside of any scope.
    _ = READ.try_with(|watch| _ = watch.0.first_byte.get_or_init(Instant::now));
}

/// Takes so many bytes off what the thread that polls this task's read may copy; returns whether it may copy them. After a file that was not in memory
/// it may copy no more: it would have to look for each.
pub(super) fn may_copy(bytes: u64) -> bool {
    let take = |Watch(seen): &Watch| {
        let left = seen.allowance.load(Ordering::Relaxed).checked_sub(bytes);
        let left = left.filter(|_| !seen.missing.load(Ordering::Relaxed));
        left.inspect(|&left| seen.allowance.store(left, Ordering::Relaxed)).is_some()
    };
    READ.try_with(take).unwrap_or(false)
}

/// Notes that so many bytes of a file were all in the kernel's page cache, or that some were not.
pub(crate) fn copied(bytes: u64, all_cached: bool) {
    _ = READ.try_with(|Watch(seen)| {
        if all_cached {
            seen.cached.fetch_add(bytes, Ordering::Relaxed);
        } else {
            seen.missing.store(true, Ordering::Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt as _;

    use super::super::Store;
    use super::*;

    #[tokio::test]
    async fn a_read_notes_its_first_byte_where_it_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new();
        for url in ["memory://first-byte/a".to_owned(), format!("{}/a", folder.path().display())] {
            store.write(&url, Bytes::from_static(b"0123")).await.unwrap();
            let object = store.head(&url).await.unwrap();
            store.read(&object, 0..4).await.unwrap();
            let (watch, before) = (Watch::default(), Instant::now());
            assert_eq!(watch.first_byte(), None);
            watch.of(store.read(&object, 0..4)).await.unwrap();
            assert!(watch.first_byte().is_some_and(|came| came >= before), "{url}");
        }
    }

    #[tokio::test]
    async fn a_read_was_copyable_if_all_of_its_files_were_in_memory_and_they_are_not_too_large() {
        for (files, was_copyable) in [
            (vec![], false),
            (vec![(5, true)], true),
            (vec![(5, true), (6, false)], false),
            (vec![(6, false)], false),
            (vec![(MOST_COPIED / 2, true); 2], true),
            (vec![(MOST_COPIED / 2 + 1, true); 2], false),
        ] {
            let watch = Watch::default();
            watch.of(async { files.iter().for_each(|&(bytes, all_cached)| copied(bytes, all_cached)) }).await;
            assert_eq!(watch.was_copyable(), was_copyable, "{files:?}");
        }
    }

    #[test]
    fn a_thread_copies_no_more_than_it_may_and_nothing_after_a_miss() {
        let asked = |misses: bool| async move {
            let first = may_copy(MOST_COPIED - 1);
            copied(MOST_COPIED - 1, !misses);
            [first, may_copy(2), may_copy(1), may_copy(1)]
        };
        for (misses, granted) in [(false, [true, false, true, false]), (true, [true, false, false, false])] {
            let watch = Watch::default();
            assert_eq!(watch.copy(&mut Box::pin(watch.of(asked(misses)))), Some(granted));
            assert_eq!(watch.of(asked(misses)).now_or_never(), Some([false; 4]), "nobody said so");
        }
    }

    #[tokio::test]
    async fn a_file_in_memory_is_copied_by_the_first_poll_where_that_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new();
        let url = format!("{}/a", folder.path().display());
        store.write(&url, Bytes::from_static(b"0123")).await.unwrap();
        let object = store.head(&url).await.unwrap();
        let watch = Watch::default();
        watch.of(store.read(&object, 0..4)).await.unwrap();
        // On a file system that does not say what is in memory, nothing is.
        let is_known = watch.was_copyable();
        let watch = Watch::default();
        let mut read = Box::pin(watch.of(store.read(&object, 1..4)));
        let copied = watch.copy(&mut read);
        assert_eq!(copied.is_some(), is_known);
        let read = if let Some(copied) = copied { copied } else { read.await };
        assert_eq!(read.unwrap(), "123");
    }
}
