//! Runs the command, and makes shards for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay::Compression;
use forebay::format::example::Example;
use forebay::format::tfrecord::Writer;
use serde_json::Value;

/// A golden file.
pub(crate) fn golden(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder that goes away, with shards in it and indexes beside them.
pub(crate) struct Folder {
    root: tempfile::TempDir,
}

/// What a process left behind.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    /// Standard output as a JSON object a line.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }

    /// The JSON object on standard error.
    pub(crate) fn error(&self) -> Value {
        let line = self.err.lines().last().unwrap_or("");
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {}", self.err))["error"].take()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code().expect("not killed"), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// The same command, ended by an interrupt whatever runs the tests: what a shell starts in the background ignores interrupts, and so would this.
pub(crate) fn interruptible(command: &Command) -> Command {
    let mut outer = Command::new("env");
    outer.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        outer.current_dir(folder);
    }
    outer
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn index_dir(&self) -> PathBuf {
        self.path(".index")
    }

    /// Writes a file and returns its path.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.path(name), content).expect("a file");
        self.url(name)
    }

    /// The command with these arguments, its indexes kept here.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(args).env("FOREBAY_INDEX_DIR", self.index_dir()).env_remove("NO_COLOR");
        // Where bench keeps its data: the current folder has no `target`.
        command.current_dir(self.root.path()).env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        self.command(args).output().expect("it runs").into()
    }

    /// Runs it and expects an exit code.
    pub(crate) fn run_to<S: AsRef<std::ffi::OsStr>>(&self, code: i32, args: impl IntoIterator<Item = S>) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.code, code, "{}{}", ended.out, ended.err);
        ended
    }
}

pub(crate) fn shard(payloads: impl IntoIterator<Item = Vec<u8>>, compression: Compression) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), compression);
    payloads.into_iter().for_each(|payload| writer.write(&payload).expect("memory takes it"));
    writer.finish().expect("memory takes it")
}

/// A record with its id and `bytes` bytes of noise.
pub(crate) fn record(id: u64, bytes: usize) -> Vec<u8> {
    Example::new().with_int64("id", [id as i64]).with_bytes("noise", [vec![id as u8; bytes]]).encode()
}

/// Records with these ids, about 100 bytes each.
pub(crate) fn ids(ids: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    ids.map(|id| record(id, 60 + (id % 40) as usize)).collect()
}

/// Where the records of a plain shard start, and its end.
pub(crate) fn offsets(shard: &[u8]) -> Vec<usize> {
    let (mut offsets, mut at) = (vec![0], 0);
    while let Some(length) = shard[at..].first_chunk::<8>() {
        at += 16 + u64::from_le_bytes(*length) as usize;
        offsets.push(at);
    }
    offsets
}

/// An encoded image of the library's own tests.
pub(crate) fn picture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(&golden("images")).join(name)).expect("a golden image")
}
