//! What a store and those who wait for a read tell each other about it while it is under way.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    /// The watch over the read that this task runs.
    static READ: Watch;
}

/// Watches a read that runs within [`of`](Self::of): a slow response is told from a slow connection, and files that are in memory from others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// When the first byte came. For a local file, that is when reading begins.
    first_byte: OnceLock<Instant>,
    /// Whether the thread that polls the read is one for computation, which may copy but not wait.
    may_copy: AtomicBool,
    /// Whether a file was read whose pages were all in the kernel's page cache.
    cached: AtomicBool,
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
        self.let_copy(true);
        // Where it goes on, its first poll lets it be woken there.
        let polled = Pin::new(read).poll(&mut Context::from_waker(Waker::noop()));
        self.let_copy(false);
        match polled {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// Says whether the thread that polls the read next may spend its time on copying.
    pub(crate) fn let_copy(&self, may_copy: bool) {
        self.0.may_copy.store(may_copy, Ordering::Relaxed);
    }

    /// Whether files were read, all of which were in the kernel's page cache.
    pub(crate) fn was_cached(&self) -> bool {
        self.0.cached.load(Ordering::Relaxed) && !self.0.missing.load(Ordering::Relaxed)
    }
}

/// Notes that bytes of the read that this task runs have arrived.
pub(super) fn came() {
    // Reads that nobody watches run outside of any scope.
    _ = READ.try_with(|watch| _ = watch.0.first_byte.get_or_init(Instant::now));
}

/// Whether the thread that polls this task's read may copy what need not be waited for.
pub(super) fn may_copy() -> bool {
    READ.try_with(|watch| watch.0.may_copy.load(Ordering::Relaxed)).unwrap_or(false)
}

/// Notes whether the pages of a file were all in the kernel's page cache.
pub(crate) fn copied(all_cached: bool) {
    _ = READ.try_with(|Watch(seen)| {
        let flag = if all_cached { &seen.cached } else { &seen.missing };
        flag.store(true, Ordering::Relaxed);
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
    async fn a_read_was_cached_if_all_of_its_files_were() {
        for (files, was_cached) in
            [(vec![], false), (vec![true], true), (vec![true, false], false), (vec![false], false)]
        {
            let watch = Watch::default();
            watch.of(async { files.iter().for_each(|&all_cached| copied(all_cached)) }).await;
            assert_eq!(watch.was_cached(), was_cached, "{files:?}");
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
        let is_known = watch.was_cached();
        assert!(watch.of(store.read(&object, 1..4)).now_or_never().is_none(), "nobody may copy");
        let watch = Watch::default();
        let mut read = Box::pin(watch.of(store.read(&object, 1..4)));
        let copied = watch.copy(&mut read);
        assert_eq!(copied.is_some(), is_known);
        let read = if let Some(copied) = copied { copied } else { read.await };
        assert_eq!(read.unwrap(), "123");
    }
}
