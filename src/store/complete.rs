//! Whether a folder holds the shards that its manifest names.

use std::collections::HashMap;
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

/// The shards that patterns stand for, and that are missing among the `listed` or not as long as they were written.
///
/// Only folders and globs are looked at, and only manifests in the folder itself. One that cannot be read is passed over: listings need none.
pub(super) async fn incomplete(store: &Store, patterns: &[&str], listed: &[Object]) -> Result<Vec<Incomplete>> {
    let mut parsed = Vec::new();
    for text in patterns {
        parsed.extend(expand(text)?.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>>>()?);
    }
    let sizes: HashMap<&str, u64> = listed.iter().map(|object| (&*object.url, object.size)).collect();
    let found = futures::stream::iter(parsed).map(|pattern| incomplete_of(store, pattern, &sizes));
    let found: Vec<Vec<Incomplete>> = found.buffered(store.shared.options.concurrency).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

async fn incomplete_of(store: &Store, mut pattern: Pattern, sizes: &HashMap<&str, u64>) -> Result<Vec<Incomplete>> {
    if let Root::Local(root) = &pattern.root
        && pattern.is_literal()
    {
        let path: PathBuf = pattern.literal_segments().fold(root.clone(), |path, segment| path.join(segment));
        pattern.folder = blocking(move || Ok(path.is_dir())).await?;
    }
    if pattern.is_literal() || !(pattern.folder || pattern.is_flat()) {
        return Ok(Vec::new());
    }
    let folder = pattern.literal_folder();
    let url = |name: &str| match &pattern.root {
        Root::Local(root) => Location::Local(root.join(&folder).join(name)).url(),
        Root::Remote(base) => base.join(&format!("{folder}{name}")),
    };
    let Ok(Some(bytes)) = store.read_whole_if_exists(&url(MANIFEST)).await else { return Ok(Vec::new()) };
    let wanted = Manifest::shards(&bytes)
        .into_iter()
        .filter(|shard| !shard.name.contains('/') && pattern.matches(&format!("{folder}{}", shard.name)));
    Ok(wanted
        .map(|Shard { name, bytes }| {
            let url = url(&name);
            Incomplete { found: sizes.get(&*url).copied(), written: bytes, url }
        })
        .filter(|shard| shard.found != Some(shard.written))
        .collect())
}
