//! An object store that notes which bytes it is asked for.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Passes everything on to another store.
#[derive(Debug)]
pub(crate) struct Recording {
    store: Arc<dyn ObjectStore>,
    reads: Mutex<Vec<Range<u64>>>,
}

impl Recording {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { store, reads: Mutex::default() })
    }

    /// The ranges that were read since the last call, ascending. A read without a range is one of all there may be.
    pub(crate) fn take(&self) -> Vec<Range<u64>> {
        let mut reads = std::mem::take(&mut *self.reads.lock().expect("no read panics"));
        reads.sort_unstable_by_key(|range| (range.start, range.end));
        reads
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording({})", self.store)
    }
}

impl ObjectStore for Recording {
    fn put_opts<'a, 'b, 'c>(&'a self, path: &'b Path, payload: PutPayload, options: PutOptions) -> Later<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.store.put_opts(path, payload, options)
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        options: PutMultipartOptions,
    ) -> Later<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.store.put_multipart_opts(path, options)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, path: &'b Path, options: GetOptions) -> Later<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        if !options.head {
            let range = match &options.range {
                Some(GetRange::Bounded(range)) => range.clone(),
                Some(GetRange::Offset(start)) => *start..u64::MAX,
                Some(GetRange::Suffix(_)) | None => 0..u64::MAX,
            };
            self.reads.lock().expect("no read panics").push(range);
        }
        self.store.get_opts(path, options)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Later<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.store.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, from: &'b Path, to: &'d Path, options: CopyOptions) -> Later<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.store.copy_opts(from, to, options)
    }
}
