//! Small TFRecord shards in a folder that goes away.

use std::path::{Path, PathBuf};

use forebay::format::example::Example;
use forebay::format::tfrecord::Writer;
use forebay::{Compression, Dataset, LoaderBuilder};

/// A folder of shards, with a folder for their indexes beside.
pub(crate) struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join("shards")).expect("a folder");
        Self { root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("shards").join(name)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn index_dir(&self) -> PathBuf {
        self.root.path().join("index")
    }

    /// The indexes that are stored, without one that is being written for an epoch read ahead.
    pub(crate) fn indexes(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.index_dir()).into_iter().flatten().flatten().map(|file| file.path());
        files.filter(|file| file.extension().is_some_and(|ending| ending == "index")).collect()
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).expect("a file");
    }

    /// Shards `00.tfrecord`, `01.tfrecord`, … of so many records each, with ids that go through all of them.
    pub(crate) fn with_ids(sizes: &[u64]) -> Self {
        let (folder, mut first) = (Self::new(), 0);
        for (shard, &size) in sizes.iter().enumerate() {
            folder.put(&format!("{shard:02}.tfrecord"), &shard_of_ids(first..first + size, Compression::None));
            first += size;
        }
        folder
    }

    pub(crate) fn open(&self, pattern: &str) -> Dataset {
        Dataset::open(self.url(pattern)).expect("a pattern")
    }

    pub(crate) fn all(&self) -> Dataset {
        self.open("*.tfrecord")
    }

    /// A loader that keeps its indexes here.
    pub(crate) fn loader(&self, dataset: &Dataset) -> LoaderBuilder {
        dataset.loader().index_dir(self.index_dir())
    }
}

/// A record with its id and between 0 and 300 bytes of noise, a function of the id.
pub(crate) fn record(id: u64) -> Vec<u8> {
    let noise = vec![id as u8; (id * 97 % 301) as usize];
    Example::new().with_int64("id", [id as i64]).with_bytes("noise", [noise]).encode()
}

pub(crate) fn shard_of_ids(ids: std::ops::Range<u64>, compression: Compression) -> Vec<u8> {
    shard(ids.map(record), compression)
}

pub(crate) fn shard(payloads: impl IntoIterator<Item = Vec<u8>>, compression: Compression) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), compression);
    payloads.into_iter().for_each(|payload| writer.write(&payload).expect("memory takes it"));
    writer.finish().expect("memory takes it")
}

/// A golden file of `tests/data`.
pub(crate) fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

/// The content of a file that must be there.
pub(crate) fn content(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}
