//! Checks whether a folder holds the shards that its manifest names.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use futures::{StreamExt as _, TryStreamExt as _};

use super::pattern::{Pattern, Root, expand};
use super::url::Location;
use super::{Object, Store, blocking};
use crate::{Error, ErrorKind, Result};

/// The file that writers put next to their shards when all of them are complete.
const MANIFEST: &str = "_manifest.json";

/// The parts of a manifest that are needed here.
#[derive(serde::Deserialize)]
struct Manifest {
    version: u32,
    format: String,
    shards: Vec<Shard>,
}

#[derive(serde::Deserialize)]
struct Shard {
    name: String,
    bytes: u64,
}

impl Manifest {
    /// Returns the names and sizes of the shards. Returns nothing for files of other programs that may have the same name, and for formats whose
    /// shards are not files.
    fn shards(bytes: &[u8]) -> Vec<Shard> {
        match serde_json::from_slice(bytes) {
            Ok(Self { version: 1, format, shards }) if format != "images" => shards,
            _ => Vec::new(),
        }
    }
}

/// A shard that does not match the manifest of its folder.
pub(crate) struct Incomplete {
    url: String,
    /// The size found, if the shard exists.
    found: Option<u64>,
    written: u64,
}

impl Incomplete {
    /// Returns the error for this shard, which also stands for `others` more.
    pub(crate) fn error(self, others: usize) -> Error {
        let also = match others {
            0 => String::new(),
            1 => "; another shard is not as it says either".to_owned(),
            others => format!("; {others} other shards are not as it says either"),
        };
        let (kind, message) = match self.found {
            None => (ErrorKind::NotFound, format!("no such shard, and the folder's {MANIFEST} names it{also}")),
            Some(bytes) => (
                ErrorKind::Corrupt,
                format!("{bytes} bytes, and the folder's {MANIFEST} says that {} were written{also}", self.written),
            ),
        };
        Error::new(kind, message)
            .url(self.url)
            .advice("copy it again, or remove the manifest if it no longer holds")
            .stage("list")
    }
}

/// The size of the largest manifest that is read: that of a million shards.
const LARGEST: u64 = 256 << 20;

/// Returns the shards that the patterns stand for and that are missing among the `listed`, or that differ in size from what was written.
///
/// Only folders and globs are considered, and only manifests in the folder itself. A manifest that may not be read counts as absent.
pub(super) async fn incomplete(store: &Store, patterns: &[&str], listed: &[Object]) -> Result<Vec<Incomplete>> {
    let sizes: HashMap<&str, u64> = listed.iter().map(|object| (&*object.url, object.size)).collect();
    // By the URL that they have in common, as many patterns are of one folder.
    let mut folders: BTreeMap<String, Vec<Pattern>> = BTreeMap::new();
    for text in patterns {
        for text in expand(text)? {
            let pattern = folder_of(Pattern::parse(&text)?, &sizes).await?;
            if pattern.is_literal() || !(pattern.folder || pattern.is_flat()) {
                continue;
            }
            let url = url_of(&pattern, MANIFEST);
            folders.entry(url).or_default().push(pattern);
        }
    }
    let found = futures::stream::iter(folders).map(|(url, patterns)| incomplete_of(store, url, patterns, &sizes));
    let found: Vec<Vec<Incomplete>> = found.buffered(store.shared.options.concurrency).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Returns the pattern, as one of a folder if it names a local folder.
async fn folder_of(mut pattern: Pattern, sizes: &HashMap<&str, u64>) -> Result<Pattern> {
    if let Root::Local(root) = &pattern.root
        && pattern.is_literal()
    {
        let path: PathBuf = pattern.literal_segments().fold(root.clone(), |path, segment| path.join(segment));
        let is_listed = sizes.contains_key(&*Location::Local(path.clone()).url());
        pattern.folder = !is_listed && blocking(move || Ok(path.is_dir())).await?;
    }
    Ok(pattern)
}

/// Returns the URL of a name in the folder that a pattern lists.
fn url_of(pattern: &Pattern, name: &str) -> String {
    let folder = pattern.literal_folder();
    match &pattern.root {
        Root::Local(root) => Location::Local(root.join(folder).join(name)).url(),
        Root::Remote(base) => base.join(&format!("{folder}{name}")),
    }
}

async fn incomplete_of(
    store: &Store,
    manifest: String,
    patterns: Vec<Pattern>,
    sizes: &HashMap<&str, u64>,
) -> Result<Vec<Incomplete>> {
    let none = |error: &Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Access);
    let read = match store.head(&manifest).await {
        Ok(object) if object.size > LARGEST => return Ok(Vec::new()),
        Ok(object) => store.read(&object, 0..object.size).await,
        Err(error) => Err(error),
    };
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) if none(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Some(first) = patterns.first() else { return Ok(Vec::new()) };
    let folder = first.literal_folder();
    let shards = Manifest::shards(&bytes).into_iter().filter(|shard| {
        let key = format!("{folder}{}", shard.name);
        !shard.name.contains('/') && patterns.iter().any(|pattern| pattern.matches(&key))
    });
    Ok(shards
        .map(|Shard { name, bytes }| {
            let url = url_of(first, &name);
            Incomplete { found: sizes.get(&*url).copied(), written: bytes, url }
        })
        .filter(|shard| shard.found != Some(shard.written))
        .collect())
}
