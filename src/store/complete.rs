//! Whether a folder holds the shards that its manifest names.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use futures::{StreamExt as _, TryStreamExt as _};

use super::pattern::{Pattern, Root, expand};
use super::url::Location;
use super::{Object, Store, blocking};
use crate::{Error, ErrorKind, Result};

/// What writers leave beside their shards when all of them are whole.
const MANIFEST: &str = "_manifest.json";

/// As much of a manifest as is asked here.
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
    /// Names and sizes of the shards. Nothing in files of others, which may be called the same, and where shards are no files.
    fn shards(bytes: &[u8]) -> Vec<Shard> {
        match serde_json::from_slice(bytes) {
            Ok(Self { version: 1, format, shards }) if format != "images" => shards,
            _ => Vec::new(),
        }
    }
}

/// A shard that is not as the manifest of its folder says.
pub(crate) struct Incomplete {
    url: String,
    /// The size of what is there, if anything is.
    found: Option<u64>,
    written: u64,
}

impl Incomplete {
    /// The error of this shard, which stands for others too.
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

/// The largest manifest that is read: that of a million shards.
const LARGEST: u64 = 256 << 20;

/// The shards that patterns stand for, and that are missing among the `listed` or not as long as they were written.
///
/// Only folders and globs are looked at, and only manifests in the folder itself. Where one may not be read there is none.
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

/// The pattern, which is one of a folder where it names a local one.
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

/// The URL of a name in the folder that a pattern lists.
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
