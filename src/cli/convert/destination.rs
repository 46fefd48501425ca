//! The folder to which shards are written: its manifest, its lock, what is already done, and what is refused.
//!
//! | file | what | when |
//! |---|---|---|
//! | `_forebay-convert.json` | the manifest: what is converted, how, and into which shards | written first, and again when all is done |
//! | `.forebay-convert.journal` | a line for each shard that is done | until all is done |
//! | `_manifest.json`, `_index/` | what every writer leaves: see [`Manifest`](crate::Manifest) | when all is done; with each shard |
//! | `_labels.txt` | the names of the classes, one per line | before the shards |
//! | `.NAME.part` | a file that is being written | until it is complete |
//!
//! A shard counts as done if it exists *and* is in the journal, with the size recorded there. It gets its name before its line. If a run is
//! interrupted between the two, the shard is written again, with the same bytes. The names of the manifest and the labels begin with `_` because
//! listings of a folder skip such names, so the folder can be opened as a data set as it is.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::plan;
use crate::engine::file_lock::FileLock;
use crate::error::{Error, Result};
use crate::format::tfrecord::{Compression, INDEX_FOLDER, IndexBuilder};
use crate::schema::Column;
use crate::writer::part;
use crate::writer::{Counted, Skipped, clear_written, is_written, lock, save_index};

pub(super) const MANIFEST: &str = "_forebay-convert.json";
pub(super) const LABELS: &str = "_labels.txt";
const JOURNAL: &str = ".forebay-convert.journal";
const VERSION: u32 = 1;
/// More shards than any folder should hold; the limit keeps a damaged manifest from making us look for more.
pub(super) const MAX_SHARDS: usize = 1_000_000;

/// What two conversions must have in common to be the same: the inputs, and every option that affects the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// A hash of the inputs' names, sizes, versions and labels.
    pub(super) inputs: String,
    pub(super) options: serde_json::Map<String, serde_json::Value>,
    pub(super) prefix: String,
    pub(super) num_shards: usize,
}

impl Identity {
    fn names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.num_shards).map(|shard| plan::name(&self.prefix, shard, self.num_shards))
    }

    /// Describes what differs, for people.
    fn difference(&self, other: &Self) -> String {
        let keys: std::collections::BTreeSet<_> = self.options.keys().chain(other.options.keys()).collect();
        let mut differing: Vec<String> = keys
            .into_iter()
            .filter(|key| self.options.get(*key) != other.options.get(*key))
            .map(|key| format!("--{}", key.replace('_', "-")))
            .collect();
        if self.prefix != other.prefix {
            differing.push("--prefix".into());
        }
        match differing.is_empty() {
            true => "its inputs were others, or have changed since".into(),
            false => format!("{} differ", differing.join(", ")),
        }
    }
}

/// A shard that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) name: String,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// The checksum of the file, in hexadecimal.
    pub(super) crc32c: String,
    /// Inputs that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) skipped: Vec<Skipped>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    complete: bool,
    #[serde(flatten)]
    identity: Identity,
    classes: usize,
    records: u64,
    bytes: u64,
    shards: Vec<Done>,
}

/// A folder into which only this process converts.
#[derive(Debug)]
pub(super) struct Destination {
    folder: PathBuf,
    identity: Identity,
    classes: usize,
    columns: Vec<Column>,
    done: Mutex<BTreeMap<String, Done>>,
    journal: Mutex<File>,
    /// Locks the folder until it is dropped.
    _folder: FileLock,
}

impl Destination {
    /// Prepares the folder for a conversion: a new one, an interrupted one, or, with `force`, a new one that replaces whatever is there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if another process converts into the folder, or if it holds files that would be overwritten.
    pub(super) fn open(
        folder: &Path,
        identity: Identity,
        classes: &[String],
        columns: Vec<Column>,
        force: bool,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| part::failed(e, "cannot make the folder", folder))?;
        let lock = lock(folder)?;
        let manifest = load(folder)?;
        let done = match &manifest {
            _ if force => BTreeMap::new(),
            Stored::Manifest(manifest) if manifest.identity == identity => {
                let done = done_before(folder, manifest);
                if manifest.complete && done.len() == identity.num_shards {
                    return Err(refused("all of this was converted into it before", folder));
                }
                done
            }
            Stored::Manifest(manifest) => {
                let difference = manifest.identity.difference(&identity);
                return Err(refused(&format!("it holds another conversion: {difference}"), folder));
            }
            Stored::Foreign => {
                return Err(refused(&format!("its `{MANIFEST}` is none that this version reads"), folder));
            }
            Stored::Nothing if is_written(folder) => return Err(refused("it holds another data set", folder)),
            Stored::Nothing => {
                let names = identity.names().chain((!classes.is_empty()).then(|| LABELS.to_owned()));
                if let Some(name) = names.into_iter().find(|name| is_there(&folder.join(name))) {
                    return Err(refused(&format!("it holds `{name}`, which would be written over"), folder));
                }
                BTreeMap::new()
            }
        };
        if let (true, Stored::Manifest(manifest)) = (force, &manifest) {
            clear(folder, manifest)?;
        }
        if force {
            clear_written(folder)?;
        }
        remove(folder, identity.names().chain([MANIFEST.into(), LABELS.into()]).map(|name| part::hidden_name(&name)))?;
        // The journal before the manifest: so no journal is read beside a manifest that it does not belong to.
        let lines = done.values().map(line).collect::<Vec<_>>().concat();
        part::write(folder, JOURNAL, lines.as_bytes())?;
        let path = folder.join(JOURNAL);
        let journal = File::options().append(true).open(&path);
        let journal = journal.map_err(|e| part::failed(e, "cannot open the journal", &path))?;
        let destination = Self {
            folder: folder.to_owned(),
            identity,
            classes: classes.len(),
            columns,
            done: Mutex::new(done),
            journal: Mutex::new(journal),
            _folder: lock,
        };
        destination.write_manifest(false)?;
        if !classes.is_empty() {
            part::write(folder, LABELS, (classes.join("\n") + "\n").as_bytes())?;
        }
        Ok(destination)
    }

    /// Returns the shards that are done.
    pub(super) fn done(&self) -> Vec<Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Begins a shard.
    pub(super) fn file(&self, name: &str) -> Result<Counted> {
        Counted::create(&self.folder, name)
    }

    /// Stores the places of a shard's records.
    pub(super) fn save_index(
        &self,
        shard: &str,
        index: IndexBuilder,
        bytes: u64,
        compression: Compression,
    ) -> Result<()> {
        save_index(&self.folder, shard, index, bytes, compression)
    }

    /// Records that a shard is complete and has its name.
    pub(super) fn note(&self, shard: Done) -> Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let written = journal.write_all(line(&shard).as_bytes()).and_then(|()| journal.sync_data());
        written.map_err(|e| part::failed(e, "cannot write the journal", &self.folder.join(JOURNAL)))?;
        self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(shard.name.clone(), shard);
        Ok(())
    }

    /// Completes the conversion, once all of its shards are done.
    pub(super) fn complete(&self) -> Result<()> {
        self.write_manifest(true)?;
        let mut options: BTreeMap<String, serde_json::Value> = self.identity.options.clone().into_iter().collect();
        options.insert("name".into(), self.identity.prefix.clone().into());
        let done = self.done();
        let mut skipped: Vec<Skipped> = done.iter().flat_map(|shard| shard.skipped.iter().cloned()).collect();
        skipped.sort_by_key(|skipped| skipped.row);
        let shards = done.into_iter().map(|shard| (shard.name, shard.records, shard.bytes, shard.crc32c));
        crate::Manifest::of_shards(self.columns.clone(), options, self.identity.inputs.clone(), shards, skipped)
            .write(&self.folder)?;
        remove(&self.folder, [JOURNAL.to_owned()])
    }

    fn write_manifest(&self, complete: bool) -> Result<()> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        // While it runs the journal says what is done.
        let shards: Vec<Done> = match complete {
            true => self.identity.names().filter_map(|name| done.get(&name).cloned()).collect(),
            false => Vec::new(),
        };
        let manifest = Manifest {
            version: VERSION,
            complete,
            identity: self.identity.clone(),
            classes: self.classes,
            records: shards.iter().map(|shard| shard.records).sum(),
            bytes: shards.iter().map(|shard| shard.bytes).sum(),
            shards,
        };
        let json = serde_json::to_vec_pretty(&manifest).expect("numbers and strings");
        part::write(&self.folder, MANIFEST, &json)
    }
}

/// Removes what a conversion of this kind has left, before one of another kind begins; refuses to do so without `force`.
pub(super) fn make_way(folder: &Path, force: bool) -> Result<()> {
    let stored = load(folder)?;
    if matches!(stored, Stored::Nothing) {
        return Ok(());
    }
    if !force {
        return Err(refused("it holds another conversion", folder));
    }
    let _lock = lock(folder)?;
    if let Stored::Manifest(manifest) = &stored {
        clear(folder, manifest)?;
    }
    remove(folder, [MANIFEST.to_owned()])
}

fn line(shard: &Done) -> String {
    serde_json::to_string(shard).expect("numbers and strings") + "\n"
}

fn refused(what: &str, folder: &Path) -> Error {
    Error::config(format!("the folder is not written to: {what}"))
        .url(folder.to_string_lossy().into_owned())
        .advice("convert into a folder of its own, or start over with --force")
}

enum Stored {
    Manifest(Box<Manifest>),
    /// The manifest is damaged, or of another version.
    Foreign,
    Nothing,
}

fn load(folder: &Path) -> Result<Stored> {
    let path = folder.join(MANIFEST);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Stored::Nothing),
        Err(error) => return Err(part::failed(error, "cannot read the manifest", &path)),
    };
    let manifest: Option<Manifest> = serde_json::from_slice(&bytes).ok();
    // Names are made from the prefix and the number, and of nothing else that stands in the file.
    let valid = |m: &Manifest| {
        m.version == VERSION && m.identity.num_shards <= MAX_SHARDS && plan::parse_prefix(&m.identity.prefix).is_ok()
    };
    Ok(manifest.filter(valid).map_or(Stored::Foreign, |manifest| Stored::Manifest(Box::new(manifest))))
}

/// Returns the shards of a conversion that exist and are complete.
fn done_before(folder: &Path, manifest: &Manifest) -> BTreeMap<String, Done> {
    let journal = std::fs::read_to_string(folder.join(JOURNAL)).unwrap_or_default();
    // The last line may be half of one.
    let lines = journal.lines().filter_map(|line| serde_json::from_str(line).ok());
    let names: HashSet<String> = manifest.identity.names().collect();
    let there = |shard: &Done| {
        let metadata = std::fs::symlink_metadata(folder.join(&shard.name));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == shard.bytes)
    };
    let noted = manifest.shards.iter().cloned().chain(lines);
    // A later note of the same shard holds.
    let noted: BTreeMap<String, Done> = noted.map(|shard: Done| (shard.name.clone(), shard)).collect();
    noted.into_iter().filter(|(name, shard)| names.contains(name) && there(shard)).collect()
}

/// Removes what a conversion has written, except its manifest.
fn clear(folder: &Path, manifest: &Manifest) -> Result<()> {
    let names = manifest.identity.names().flat_map(|name| {
        let index = format!("{INDEX_FOLDER}/{name}.index");
        [part::hidden_name(&name), index, name]
    });
    let labels = (manifest.classes > 0).then(|| LABELS.to_owned());
    remove(folder, names.chain(labels).chain([JOURNAL.to_owned()]))
}

fn remove(folder: &Path, names: impl IntoIterator<Item = String>) -> Result<()> {
    names.into_iter().try_for_each(|name| {
        let path = folder.join(name);
        part::remove_if_there(&path).map_err(|e| part::failed(e, "cannot remove the file", &path))
    })
}

fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
