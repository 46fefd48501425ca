//! Where the records of shards are: indexes that are kept, found beside shards, hopped or read, and which of them count.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::PIECE_BYTES;
use super::reader::{ShardReader, too_large};
use crate::dataset::TfRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::{Check, Compression, Fingerprint, HEADER_BYTES, INDEX_FOLDER, ShardIndex, Shortened};
use crate::source::Next;
use crate::source::open::Index;
use crate::store::{Object, Store};

/// A shard whose stored index is damaged or of another version of it.
pub(super) struct Stale {
    pub(super) url: Arc<str>,
    pub(super) reason: Outdated,
    pub(super) rebuilt: bool,
}

/// Why a stored index does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outdated {
    Shortened(Shortened),
    /// It is damaged, or of another version of the shard: in words.
    Other(String),
}

impl Outdated {
    pub(crate) fn shortened(&self) -> Option<Shortened> {
        if let Self::Shortened(shortened) = self { Some(*shortened) } else { None }
    }
}

impl std::fmt::Display for Outdated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shortened(shortened) => write!(f, "{shortened}"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// Shards that are named one by one in notes.
pub(in crate::source) const NAMED: usize = 3;

pub(super) fn notes_of(stale: &[Stale], rebuild: &str, index: Index, is_indexed: bool) -> Vec<String> {
    let read = match is_indexed {
        true => "what it has is read",
        false => "shards are read as they come, in another order than with indexes",
    };
    let note = |Stale { url, reason, rebuilt }: &Stale| {
        let is_shortened = reason.shortened().is_some();
        match (rebuilt, is_shortened) {
            (true, true) if index == Index::Build => {
                format!("{url}: {reason}; copy it again, unless it was rewritten: its index was built again")
            }
            (_, true) => {
                format!("{url}: {reason}; {read}: copy it again, or, if it was rewritten, index it anew: {rebuild}")
            }
            (true, false) => format!("{url}: its index was stale and was built again: {reason}"),
            (false, false) => format!("{url}: its index is stale, so {read}: {reason}; {rebuild}"),
        }
    };
    // What may be damage is named before what merely changed.
    let (shortened, changed): (Vec<&Stale>, Vec<&Stale>) =
        stale.iter().partition(|stale| stale.reason.shortened().is_some());
    let mut notes: Vec<String> = shortened.into_iter().chain(changed).take(NAMED).map(note).collect();
    if stale.len() > NAMED {
        notes.push(format!("the indexes of {} more shards were stale as well", stale.len() - NAMED));
    }
    notes
}

/// What is known of a shard's records.
pub(super) enum Found {
    Whole(ShardIndex),
    /// Those before damage to the framing.
    Damaged(ShardIndex, Error),
    /// Nothing: it takes reading the shard.
    Nothing,
}

/// Keeps indexes in a folder, under a name made from the shard's URL.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    dir: Option<PathBuf>,
}

/// What a [`Keeper`] has of a shard.
pub(crate) enum Kept {
    Nothing,
    /// Damaged, or of another version of the shard: why it does not count.
    Stale(Outdated),
    Index(ShardIndex),
}

impl Kept {
    /// What stored bytes are for this object.
    fn of(stored: &[u8], object: &Object) -> Self {
        let (index, now) = match ShardIndex::from_bytes(stored) {
            Ok(index) => (index, fingerprint(object)),
            Err(error) => return Self::Stale(Outdated::Other(error.reason())),
        };
        if let Some(shortened) = Shortened::of(index.fingerprint(), &now) {
            return Self::Stale(Outdated::Shortened(shortened));
        }
        match index.matches(&now) {
            Ok(()) => Self::Index(index),
            Err(difference) => Self::Stale(Outdated::Other(format!("the shard has changed: its {difference}"))),
        }
    }
}

impl Keeper {
    /// A keeper in this folder; without one it keeps nothing.
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir }
    }

    fn path(&self, url: &str) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(format!("{:016x}.index", xxhash_rust::xxh3::xxh3_64(url.as_bytes()))))
    }

    /// What is stored of this object.
    pub(crate) fn look(&self, object: &Object) -> Kept {
        match self.path(&object.url).and_then(|path| std::fs::read(path).ok()) {
            Some(stored) => Kept::of(&stored, object),
            None => Kept::Nothing,
        }
    }

    /// Stores an index where it can; where not, the next run builds it again.
    pub(crate) fn save(&self, object: &Object, index: &ShardIndex) {
        _ = self.try_save(object, index);
    }

    /// Stores an index, whole or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::Access`] if the folder cannot be written to.
    pub(crate) fn try_save(&self, object: &Object, index: &ShardIndex) -> Result<()> {
        let Some(path) = self.path(&object.url) else { return Ok(()) };
        write_whole(&path, index.to_bytes()?)
    }
}

/// Writes an index, whole or not at all.
pub(in crate::source) fn write_whole(path: &Path, bytes: Vec<u8>) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let part = path.with_extension(format!("part-{}-{:?}", std::process::id(), std::thread::current().id()));
    let stored = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, path));
    stored.map_err(|error| {
        _ = std::fs::remove_file(part);
        Error::new(ErrorKind::Access, format!("the index cannot be written to {}", path.display())).because(error)
    })
}

pub(in crate::source) fn fingerprint(object: &Object) -> Fingerprint {
    Fingerprint { size: object.size, etag: object.lasting_etag(), modified: object.modified }
}

/// The index of a shard, as [`find_index`], for commands: without a budget, and with nothing to deliver before damage. `None` where it would
/// take reading the shard.
#[cfg(feature = "cli")]
pub(crate) async fn index_of(
    store: Store,
    keeper: Keeper,
    object: Object,
    options: TfRecord,
    policy: Index,
) -> Result<Option<ShardIndex>> {
    match find_index(store, keeper, object, options, policy, super::LARGEST_RECORD).await?.0 {
        Found::Whole(index) => Ok(Some(index)),
        Found::Damaged(_, error) if policy == Index::Build => Err(error),
        Found::Damaged(..) | Found::Nothing => Ok(None),
    }
}

/// The index of one shard: stored, hopped or read, as told; and why the stored one does not count, if there is one that does not.
pub(super) async fn find_index(
    store: Store,
    keeper: Keeper,
    object: Object,
    options: TfRecord,
    policy: Index,
    max_bytes: usize,
) -> Result<(Found, Option<Outdated>)> {
    let local = store.local_path(&object);
    let (known, found, stated) = (object.clone(), keeper.clone(), options.compression);
    let hopped = on_disk_thread(move || {
        // A wrong statement ends in the same error with an index and without.
        let agrees = |index: &ShardIndex| index.is_empty() || stated.is_none_or(|stated| stated == index.compression());
        let mut stale = match found.look(&known) {
            Kept::Index(index) if agrees(&index) => return Ok((Found::Whole(index), None)),
            Kept::Stale(reason) => Some(reason),
            Kept::Index(_) | Kept::Nothing => None,
        };
        match local.as_deref().map_or(Kept::Nothing, |path| beside(path, &known)) {
            Kept::Index(index) if agrees(&index) => return Ok((Found::Whole(index), None)),
            Kept::Stale(shortened @ Outdated::Shortened(_)) => stale = Some(shortened),
            // An index of something else says nothing of this shard.
            Kept::Stale(Outdated::Other(_)) | Kept::Index(_) | Kept::Nothing => {}
        }
        let hopped = local.map_or(Ok(Found::Nothing), |path| hop(&path, &known, &options))?;
        // An index that says what a shard has lost is replaced by who knows that it has not; until then it says so at each start.
        let may_be_cut = stale.as_ref().is_some_and(|stale| stale.shortened().is_some());
        if let Found::Whole(index) = &hopped
            && (!may_be_cut || policy == Index::Build)
        {
            found.save(&known, index);
        }
        Ok((hopped, stale))
    });
    let place = |error: Error| error.url(object.url.clone()).stage("index");
    let (mut found, stale) = hopped.await.map_err(place)?;
    if policy == Index::Build && matches!(found, Found::Nothing) {
        found = read_through(&store, &object, stated, max_bytes).await.map_err(place)?;
        if let Found::Whole(index) = &found {
            keeper.save(&object, index);
        }
    }
    let found = match (found, stale.as_ref().and_then(Outdated::shortened)) {
        (Found::Damaged(index, error), Some(shortened)) => Found::Damaged(index, place(shortened.explain(error))),
        (Found::Damaged(index, error), None) => Found::Damaged(index, place(error)),
        (found, _) => found,
    };
    Ok((found, stale))
}

pub(in crate::source) async fn on_disk_thread<T: Send + 'static>(
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let result = tokio::task::spawn_blocking(f).await;
    result.unwrap_or_else(|e| Err(Error::new(ErrorKind::Panicked, "a disk thread panicked").because(e)))
}

/// A plain local shard, header by header; nothing is found of a compressed one.
fn hop(path: &Path, object: &Object, options: &TfRecord) -> Result<Found> {
    let file = std::fs::File::open(path).map_err(|e| Error::new(ErrorKind::Access, "cannot be opened").because(e))?;
    let mut head = vec![0; HEADER_BYTES.min(object.size as usize)];
    file.read_exact_at(&mut head, 0).map_err(|e| Error::new(ErrorKind::Transfer, "cannot be read").because(e))?;
    if options.compression.unwrap_or_else(|| Compression::detect(&head)) != Compression::None {
        return Ok(Found::Nothing);
    }
    let mut read_at = |offset: u64, buffer: &mut [u8]| file.read_exact_at(buffer, offset);
    Ok(match ShardIndex::hop_up_to_damage(&mut read_at, fingerprint(object))? {
        (index, None) => Found::Whole(index),
        (index, Some(damage)) => Found::Damaged(index, damage),
    })
}

/// The index that whoever wrote a local shard put beside it. It knows the shard's size alone, so that it can be copied along.
pub(crate) fn beside(path: &Path, object: &Object) -> Kept {
    let stored = || {
        let name = format!("{}.index", path.file_name()?.to_str()?);
        std::fs::read(path.parent()?.join(INDEX_FOLDER).join(name)).ok()
    };
    stored().map_or(Kept::Nothing, |stored| Kept::of(&stored, object))
}

/// Reads a shard once for its index.
async fn read_through(
    store: &Store,
    object: &Object,
    compression: Option<Compression>,
    max_bytes: usize,
) -> Result<Found> {
    let mut shard = ShardReader::new(object, compression, Check::LengthsOnly);
    let mut at = 0;
    while at < object.size {
        let end = object.size.min(at + PIECE_BYTES);
        let piece = store.read(object, at..end).await?;
        at = end;
        shard = on_disk_thread(move || {
            shard.supply(piece, at == shard.size);
            loop {
                match shard.next_block(max_bytes) {
                    Ok(Next::Block(_)) => {}
                    Ok(Next::Room(bytes)) => return Err(too_large(bytes, &shard)),
                    Ok(Next::Piece) | Err(_) => return Ok(shard),
                }
            }
        })
        .await?;
        if shard.failed.is_some() {
            break;
        }
    }
    shard.found()
}
