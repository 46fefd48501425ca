//! Records when the first byte of a read arrived, which distinguishes a slow response from a slow connection.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    /// The record of the read that this task runs.
    static READ: FirstByte;
}

/// Records the moment at which a read that runs within [`of`](Self::of) receives its first byte. For a local file, that is when reading begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstByte(Arc<OnceLock<Instant>>);

impl FirstByte {
    /// Runs `read` and records its first byte here.
    pub(crate) fn of<F: Future>(&self, read: F) -> TaskLocalFuture<Self, F> {
        READ.scope(self.clone(), read)
    }

    /// Returns when the first byte came, if it has.
    pub(crate) fn came(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

/// Notes that bytes of the read that this task runs have arrived.
pub(super) fn came() {
    // Reads that nobody watches run outside of any scope.
    _ = READ.try_with(|read| _ = read.0.get_or_init(Instant::now));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
            let (first, before) = (FirstByte::default(), Instant::now());
            assert_eq!(first.came(), None);
            first.of(store.read(&object, 0..4)).await.unwrap();
            assert!(first.came().is_some_and(|came| came >= before), "{url}");
        }
    }
}
