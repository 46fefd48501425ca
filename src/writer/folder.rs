//! The folder to which shards are written: its lock, its journal, what is already done, and what is refused.
//!
//! | file | what | when |
//! |---|---|---|
//! | `.forebay-writer.journal` | what is written, how, and a line for each shard that is begun, and for each that is complete | until all is done |
//! | `_manifest.json` | the manifest | when all is done |
//! | `_index/NAME.index` | where the records of a TFRecord shard are | with its shard |
//! | `.NAME.part` | a file that is being written | until it is complete |
//!
//! A shard gets its name before the journal has the line that says that it is complete. If a run is interrupted between the two, the shard is written
//! again, with the same bytes. The line that says that a shard is begun comes before its name, so there is never a shard that the journal does not
//! name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::images::is_folder;
use super::manifest::{MANIFEST, Manifest, ShardEntry, Skipped};
use super::output::Output;
use super::part;
use crate::engine::file_lock::FileLock;
use crate::error::{Error, Result};
use crate::format::tfrecord::{Compression, Fingerprint, INDEX_FOLDER, IndexBuilder};
use crate::schema::Column;

const JOURNAL: &str = ".forebay-writer.journal";
/// The folder to which rows are distributed before they are shuffled.
pub(super) const SHUFFLE: &str = ".forebay-writer.shuffle";

/// What two runs must have in common to write the same shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) format: Output,
    pub(super) columns: Vec<Column>,
    pub(super) options: BTreeMap<String, serde_json::Value>,
    pub(super) source: Option<String>,
    /// The beginning and the end of shard names.
    pub(super) name: String,
    pub(super) extension: String,
    /// The number of shards, if it is known beforehand: then names include it.
    pub(super) num_shards: Option<u64>,
}

impl Identity {
    pub(super) fn shard_name(&self, number: u64) -> String {
        let Self { name, extension, .. } = self;
        match self.num_shards {
            Some(shards) => format!("{name}-{number:05}-of-{shards:05}.{extension}"),
            None => format!("{name}-{number:05}.{extension}"),
        }
    }

    /// Describes what differs, for people.
    fn difference(&self, other: &Self) -> String {
        let keys: BTreeSet<&String> = self.options.keys().chain(other.options.keys()).collect();
        let differs = |key: &&String| self.options.get(*key) != other.options.get(*key);
        let mut differing: Vec<String> = keys.into_iter().filter(differs).cloned().collect();
        let parts = [
            ("format", self.format == other.format),
            ("columns", self.columns == other.columns),
            ("name", self.name == other.name),
            ("source", self.source == other.source),
            ("number of shards", self.num_shards == other.num_shards),
        ];
        differing.extend(parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part.to_owned()));
        match differing.is_empty() {
            true => "another version of forebay wrote it".into(),
            false => format!("{} differ", differing.join(", ")),
        }
    }
}

/// A shard that is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) entry: ShardEntry,
    /// The rows of the source from which it and the shards before it were made.
    pub(super) end: u64,
    pub(super) labels: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Begin(Identity),
    Begun(String),
    Shard(Done),
    Skipped(Skipped),
}

/// What to do with a data set that is already there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Existing {
    #[default]
    Refuse,
    /// Continue if the same run was interrupted.
    Resume,
    /// Start over.
    Overwrite,
}

/// A folder into which only this process writes.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    identity: Identity,
    state: Mutex<State>,
    /// Locks the folder until it is dropped.
    _lock: FileLock,
}

#[derive(Debug)]
struct State {
    journal: File,
    done: BTreeMap<u64, Done>,
    skipped: Vec<Skipped>,
}

impl Folder {
    /// Prepares the folder.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if another process writes into the folder, or if it holds something that would be overwritten.
    pub(super) fn open(path: &Path, identity: Identity, existing: Existing) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| part::failed(e, "cannot make the folder", path))?;
        let lock = lock(path)?;
        let journal = read_journal(path);
        let manifest = path.join(MANIFEST);
        let is_complete = is_there(&manifest);
        let (mut done, mut skipped, mut begun) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        if existing == Existing::Overwrite {
            clear(path, journal.as_ref())?;
        } else if is_complete {
            return Err(refused("it holds a whole data set, with its manifest", path));
        } else if let Some(journal) = journal {
            if journal.identity != identity {
                let what = journal.identity.difference(&identity);
                return Err(refused(&format!("it holds the beginning of another data set: {what}"), path));
            }
            if existing == Existing::Refuse {
                return Err(refused("it holds the beginning of this data set", path)
                    .advice("go on with it: .resume(true), or start over: .overwrite(true)"));
            }
            (done, skipped, begun) = (journal.done, journal.skipped, journal.begun);
        } else if let Some(name) = in_the_way(path, &identity)? {
            return Err(refused(
                &format!("it holds `{name}`, which could be written over or be taken for a shard"),
                path,
            ));
        }
        // Only what follows the beginning without a gap is where a run can go on from.
        let number = (0..).take_while(|number| done.get(number).is_some_and(|shard| is_whole(path, &identity, shard)));
        let number = number.count() as u64;
        // The new journal names no others, so none may stay: nobody would remove them any more.
        begun.extend(done.split_off(&number).into_values().map(|shard| shard.entry.name));
        done.values().for_each(|shard| _ = begun.remove(&shard.entry.name));
        begun.iter().try_for_each(|name| remove_shard(path, name, &identity.name))?;
        let end = done.values().next_back().map_or(0, |shard| shard.end);
        skipped.retain(|skipped: &Skipped| skipped.row < end);
        clear_parts(path, &identity)?;
        let lines = [Line::Begin(identity.clone())]
            .into_iter()
            .chain(done.values().cloned().map(Line::Shard))
            .chain(skipped.iter().cloned().map(Line::Skipped));
        let text: String = lines.map(|line| text(&line)).collect();
        part::write(path, JOURNAL, text.as_bytes())?;
        let file = path.join(JOURNAL);
        let journal =
            File::options().append(true).open(&file).map_err(|e| part::failed(e, "cannot open the journal", &file))?;
        let state = Mutex::new(State { journal, done, skipped });
        Ok(Self { path: path.to_owned(), identity, state, _lock: lock })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shard_name(&self, number: u64) -> String {
        self.identity.shard_name(number)
    }

    /// Returns the number of complete shards, the rows in them, and the rows of the source from which they were made.
    pub(super) fn progress(&self) -> (u64, u64, u64) {
        let state = self.state();
        let rows = state.done.values().map(|shard| shard.entry.rows).sum();
        (state.done.len() as u64, rows, state.done.values().next_back().map_or(0, |shard| shard.end))
    }

    /// Returns how many rows of the source were left out.
    #[cfg(feature = "cli")]
    pub(super) fn num_skipped(&self) -> u64 {
        self.state().skipped.len() as u64
    }

    /// Records that a shard is begun, before any file has its name.
    pub(super) fn begin(&self, name: &str) -> Result<()> {
        // The names of images are those of rows.
        if self.identity.format == Output::Images {
            return Ok(());
        }
        self.append(&mut self.state(), &Line::Begun(name.to_owned()))
    }

    /// Records that a shard is complete and has its name.
    pub(super) fn note(&self, shard: Done) -> Result<()> {
        let mut state = self.state();
        self.append(&mut state, &Line::Shard(shard.clone()))?;
        state.done.insert(shard.number, shard);
        Ok(())
    }

    /// Records that a row of the source was left out.
    #[cfg(feature = "cli")]
    pub(super) fn note_skipped(&self, skipped: Skipped) -> Result<()> {
        let mut state = self.state();
        if state.skipped.contains(&skipped) {
            return Ok(());
        }
        self.append(&mut state, &Line::Skipped(skipped.clone()))?;
        state.skipped.push(skipped);
        Ok(())
    }

    fn append(&self, state: &mut State, line: &Line) -> Result<()> {
        let written = state.journal.write_all(text(line).as_bytes()).and_then(|()| state.journal.sync_data());
        written.map_err(|e| part::failed(e, "cannot write the journal", &self.path.join(JOURNAL)))
    }

    /// Writes the manifest, once all shards are complete, and removes the journal.
    pub(super) fn complete(&self) -> Result<Manifest> {
        let mut state = self.state();
        if let Some(stated) = self.identity.num_shards.filter(|stated| *stated != state.done.len() as u64) {
            let there = state.done.len();
            return Err(Error::config(format!("the shards are called one of {stated}, and there are {there}"))
                .url(self.path.to_string_lossy().into_owned())
                .advice("write as many rows as .expected_rows(n) says, or leave it out"));
        }
        let shards: Vec<ShardEntry> = state.done.values().map(|shard| shard.entry.clone()).collect();
        let labels: BTreeSet<String> = state.done.values().flat_map(|shard| shard.labels.iter().cloned()).collect();
        state.skipped.sort_by_key(|skipped| skipped.row);
        let manifest = Manifest {
            version: Manifest::VERSION,
            format: self.identity.format,
            columns: self.identity.columns.clone(),
            rows: shards.iter().map(|shard| shard.rows).sum(),
            bytes: shards.iter().map(|shard| shard.bytes).sum(),
            shards,
            options: self.identity.options.clone(),
            source: self.identity.source.clone(),
            labels: labels.into_iter().collect(),
            skipped: state.skipped.clone(),
        };
        manifest.write(&self.path)?;
        let journal = self.path.join(JOURNAL);
        part::remove_if_there(&journal).map_err(|e| part::failed(e, "cannot remove the journal", &journal))?;
        Ok(manifest)
    }
}

/// Stores the index of a shard next to it. The index identifies the shard by its size alone, because the file may be copied elsewhere.
pub(crate) fn save_index(
    folder: &Path,
    shard: &str,
    index: IndexBuilder,
    bytes: u64,
    compression: Compression,
) -> Result<()> {
    let fingerprint = Fingerprint { size: bytes, etag: None, modified: None };
    let index = index.finish(fingerprint, compression)?.to_bytes()?;
    let folder = folder.join(INDEX_FOLDER);
    std::fs::create_dir_all(&folder).map_err(|e| part::failed(e, "cannot make the folder", &folder))?;
    part::write(&folder, &format!("{shard}.index"), &index)
}

fn text(line: &Line) -> String {
    serde_json::to_string(line).expect("numbers and strings") + "\n"
}

fn refused(what: &str, folder: &Path) -> Error {
    Error::config(format!("the folder is not written to: {what}"))
        .url(folder.to_string_lossy().into_owned())
        .advice("write into a folder of its own, or start over: .overwrite(true), --force")
}

/// Locks the folder itself, which leaves no lock file behind. The system releases the lock when the process ends, however it ends.
pub(crate) fn lock(folder: &Path) -> Result<FileLock> {
    let file = File::open(folder).map_err(|e| part::failed(e, "cannot open the folder", folder))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::config("another process is writing into this folder")
            .url(folder.to_string_lossy().into_owned())
            .advice("wait for it, or write into another folder")),
        // Some network file systems know no locks. There nobody is kept from starting twice at once.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(FileLock::of(file)),
    }
}

fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

struct Journal {
    identity: Identity,
    /// Names of shards that have been begun.
    begun: BTreeSet<String>,
    done: BTreeMap<u64, Done>,
    skipped: Vec<Skipped>,
}

/// Returns the journal, if there is one that this version can read.
fn read_journal(folder: &Path) -> Option<Journal> {
    let text = std::fs::read_to_string(folder.join(JOURNAL)).ok()?;
    // The last line may be half of one.
    let mut lines = text.lines().map_while(|line| serde_json::from_str(line).ok());
    let Some(Line::Begin(identity)) = lines.next() else { return None };
    let mut journal = Journal { identity, begun: BTreeSet::new(), done: BTreeMap::new(), skipped: Vec::new() };
    for line in lines {
        match line {
            Line::Begin(_) => return None,
            Line::Begun(name) => _ = journal.begun.insert(name),
            Line::Shard(done) => _ = journal.done.insert(done.number, done),
            Line::Skipped(skipped) => journal.skipped.push(skipped),
        }
    }
    Some(journal)
}

/// Returns whether a shard that the journal names is there and complete.
fn is_whole(folder: &Path, identity: &Identity, shard: &Done) -> bool {
    // Images are many files; their line is written when all have their names.
    identity.format == Output::Images
        || (shard.entry.name == identity.shard_name(shard.number)
            && std::fs::symlink_metadata(folder.join(&shard.entry.name))
                .is_ok_and(|metadata| metadata.is_file() && metadata.len() == shard.entry.bytes))
}

/// Finds a file that does not belong to the data set to be written but looks as if it did.
fn in_the_way(folder: &Path, identity: &Identity) -> Result<Option<String>> {
    let found = names(folder)?.into_iter().find(|name| match identity.format {
        Output::Images => !name.starts_with(['.', '_']),
        _ => is_shard(name, &identity.name) && name.ends_with(&identity.extension),
    });
    Ok(found)
}

/// Returns whether a file could be a shard: `NAME-00000…`, in the folder itself.
fn is_shard(file: &str, name: &str) -> bool {
    let number = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|rest| rest.len() > 5 && rest.as_bytes()[..5].iter().all(u8::is_ascii_digit))
        && !file.contains('/')
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |e| part::failed(e, "cannot list the folder", folder);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Removes what an interrupted run left under hidden names.
fn clear_parts(folder: &Path, identity: &Identity) -> Result<()> {
    for name in names(folder)? {
        let part = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part"));
        if part.is_some_and(|part| is_shard(part, &identity.name) || [JOURNAL, MANIFEST].contains(&part)) {
            remove(&folder.join(&name))?;
        }
    }
    remove_folder(&folder.join(SHUFFLE))
}

/// Returns whether a writer has written into the folder, or begun to.
#[cfg(feature = "cli")]
pub(crate) fn is_written(folder: &Path) -> bool {
    [MANIFEST, JOURNAL].iter().any(|name| is_there(&folder.join(name)))
}

/// Removes what a writer has written into the folder.
#[cfg(feature = "cli")]
pub(crate) fn clear_written(folder: &Path) -> Result<()> {
    clear(folder, read_journal(folder).as_ref())?;
    remove_folder(&folder.join(SHUFFLE))
}

/// Advises what to do when it is not known which files were written before: shards that stayed would be read as part of the new data.
fn unknown(error: Error) -> Error {
    error.advice("what was written into the folder is not known: remove it by hand, or write into another")
}

/// Removes what was written before, by a complete run or an interrupted one.
fn clear(folder: &Path, journal: Option<&Journal>) -> Result<()> {
    let manifest = is_there(&folder.join(MANIFEST)).then(|| Manifest::read(folder)).transpose().map_err(unknown)?;
    if journal.is_none() && is_there(&folder.join(JOURNAL)) {
        return Err(unknown(
            Error::corrupt("its journal is none of this version").url(folder.join(JOURNAL).display().to_string()),
        ));
    }
    let (name, labels): (Option<String>, Vec<String>) = match (&manifest, journal) {
        (Some(manifest), _) => {
            let name = manifest.options.get("name").and_then(|name| name.as_str()).map(str::to_owned);
            (name, manifest.labels.clone())
        }
        (None, Some(journal)) => (
            Some(journal.identity.name.clone()),
            journal.done.values().flat_map(|shard| shard.labels.clone()).collect(),
        ),
        (None, None) => (None, Vec::new()),
    };
    let files = manifest.iter().flat_map(|manifest| &manifest.shards).map(|entry| &entry.name);
    let done = journal.iter().flat_map(|journal| journal.done.values().map(|shard| &shard.entry.name));
    let begun = journal.iter().flat_map(|journal| &journal.begun);
    for file in files.chain(done).chain(begun) {
        name.iter().try_for_each(|name| remove_shard(folder, file, name))?;
    }
    let is_images =
        manifest.as_ref().map(|manifest| manifest.format).or(journal.map(|journal| journal.identity.format));
    if is_images == Some(Output::Images) {
        let labels: BTreeSet<String> = labels.into_iter().filter(|label| is_folder(label)).collect();
        for folder in labels.iter().map(|label| folder.join(label)).chain([folder.to_owned()]) {
            // Not through a link to somewhere else.
            if std::fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_dir()) {
                let mut numbered = names(&folder)?.into_iter().filter(|name| is_numbered(name));
                numbered.try_for_each(|name| remove(&folder.join(name)))?;
            }
        }
        // Those that hold something else stay.
        labels.iter().for_each(|label| _ = std::fs::remove_dir(folder.join(label)));
    }
    _ = std::fs::remove_dir(folder.join(INDEX_FOLDER));
    remove(&folder.join(MANIFEST))?;
    remove(&folder.join(JOURNAL))
}

/// Removes a shard and its index. The names come from a file that anybody may have written, so only names that a writer would give are removed.
fn remove_shard(folder: &Path, file: &str, name: &str) -> Result<()> {
    if !is_shard(file, name) {
        return Ok(());
    }
    remove(&folder.join(file))?;
    remove(&folder.join(INDEX_FOLDER).join(format!("{file}.index")))
}

/// Returns whether a file is named like an image (eight digits or more, and an extension), or is such a file in progress.
fn is_numbered(name: &str) -> bool {
    let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")).unwrap_or(name);
    let stem = name.split_once('.').map(|(stem, _)| stem);
    stem.is_some_and(|stem| stem.len() >= 8 && stem.bytes().all(|byte| byte.is_ascii_digit()))
}

fn remove(path: &Path) -> Result<()> {
    part::remove_if_there(path).map_err(|e| part::failed(e, "cannot remove the file", path))
}

/// Removes a folder and its content, if it is a folder and not a link.
pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            std::fs::remove_dir_all(path).map_err(|e| part::failed(e, "cannot remove the folder", path))
        }
        Ok(_) => remove(path),
        Err(_) => Ok(()),
    }
}
