//! The shards that a command's arguments name.

use std::future::Future;
use std::sync::Arc;

use crate::engine::Scheduler;
use crate::engine::io::Io;
use crate::error::{Error, Result};
use crate::store::{Object, Store, StoreOptions, Watch};

/// Shards, and how many threads may process them.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ShardArgs {
    /// Shards: paths or URLs (file, gs, s3, az, http), folders, globs, braces, ranges.
    #[arg(required = true, value_name = "URL")]
    pub(super) urls: Vec<String>,
    /// Number of threads [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) threads: Option<u16>,
}

/// The shards that were found, and the means to read them.
pub(super) struct Shards {
    pub(super) store: Store,
    pub(super) objects: Vec<Object>,
    pub(super) io: Arc<Io>,
    pub(super) threads: usize,
}

/// Runs a read and waits for it; what is in the kernel's page cache is copied by the calling thread.
pub(super) fn read<T: Send + 'static>(io: &Io, read: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let watch = Watch::default();
    let mut read = Box::pin(watch.of(read));
    let runtime = io.enter();
    let copied = watch.copy(&mut read);
    drop(runtime);
    copied.unwrap_or_else(|| io.wait(read))
}

impl ShardArgs {
    /// Lists the shards that the URLs stand for, in the loader's order.
    pub(super) fn find(&self) -> Result<Shards> {
        let scheduler = self.threads.map_or_else(Scheduler::default, |threads| Scheduler::threads(threads.into()));
        let io = Arc::new(Io::new(scheduler)?);
        let store = StoreOptions::new().build();
        let (listing, urls) = (store.clone(), self.urls.clone());
        let objects = io.wait(async move { listing.list(&urls).await.map_err(|e| e.stage("list")) })?;
        Ok(Shards { store, objects, io, threads: scheduler.num_threads() })
    }

    /// Returns an error for each shard that the manifest of its folder names and that was not found as described there.
    pub(super) fn missed(&self, shards: &Shards) -> Result<Vec<Error>> {
        let (store, urls, objects) = (shards.store.clone(), self.urls.clone(), shards.objects.clone());
        let incomplete = shards.io.wait(async move { store.incomplete(&urls, &objects).await })?;
        Ok(incomplete.into_iter().map(|shard| shard.error(0)).collect())
    }
}
