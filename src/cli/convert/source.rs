//! Determines what SRC is: a folder of images or TFRecord shards; and ensures that SRC and DEST do not overlap.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::Listed;
use crate::cli::shards::Shards;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Object;
use crate::writer::{MANIFEST, Manifest, Output};

/// What is to be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum From {
    /// A folder tree of images.
    Images,
    /// TFRecord shards.
    Tfrecord,
    /// Shards of the format that their names end in.
    Shards,
}

/// Returns the path of a local file or folder; `None` for URLs of stores.
pub(super) fn local_path(text: &str) -> Option<PathBuf> {
    if text.starts_with("file:") {
        return url::Url::parse(text).ok()?.to_file_path().ok();
    }
    (!text.contains("://")).then(|| PathBuf::from(text))
}

/// Returns a path with all links resolved, even if it does not exist yet.
pub(super) fn real(path: &Path) -> Result<PathBuf> {
    let failed = |e| crate::writer::part::failed(e, "no path of this machine", path);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let mut missing = Vec::new();
    for folder in absolute.ancestors() {
        if let Ok(real) = folder.canonicalize() {
            return Ok(missing.into_iter().rev().fold(real, |path, name| path.join(name)));
        }
        missing.extend(folder.file_name());
    }
    Ok(absolute)
}

/// Returns the folder below which a pattern's files lie, and whether files are searched for in it, as opposed to named.
fn root(src: &Path) -> (PathBuf, bool) {
    let is_pattern =
        |part: &std::path::Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let literal: PathBuf = src.components().take_while(|part| !is_pattern(part)).collect();
    if literal.components().count() < src.components().count() || src.is_dir() {
        return (or_here(&literal), true);
    }
    (src.parent().map_or(PathBuf::from("/"), or_here), false)
}

/// Returns the path, or the current folder if it is empty.
fn or_here(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
}

/// Refuses to convert a folder into itself, or into a folder around it: the input must not change while it is read.
pub(super) fn keep_apart(src: &str, dest: &Path) -> Result<()> {
    let Some(src) = local_path(src) else { return Ok(()) };
    let root = real(&root(&src).0)?;
    if root.starts_with(dest) {
        return Err(Error::config("DEST is the folder of SRC, or around it")
            .url(dest.to_string_lossy().into_owned())
            .advice("convert into a folder of its own"));
    }
    Ok(())
}

/// Returns the shards to be read: without those in DEST, if that lies in the folder of SRC, and without those to which links lead out of that folder.
/// The latter are returned too.
pub(super) fn inside(src: &str, dest: &Path, found: &Shards) -> Result<(Vec<Object>, Vec<PathBuf>)> {
    let root = match local_path(src).map(|src| root(&src)) {
        Some((root, true)) => Some(real(&root)?),
        _ => None,
    };
    let (mut objects, mut links) = (Vec::new(), Vec::new());
    for object in &found.objects {
        let Some(path) = found.store.local_path(object) else {
            objects.push(object.clone());
            continue;
        };
        let real = real(&path)?;
        match &root {
            _ if real.starts_with(dest) => {}
            Some(root) if !real.starts_with(root) => links.push(path),
            _ => objects.push(object.clone()),
        }
    }
    if objects.is_empty() {
        let error = Error::new(ErrorKind::NotFound, "there is nothing to convert").url(src.to_owned());
        return Err(match links.first() {
            Some(link) => error
                .advice(format!("links lead out of the folder; name the folder that `{}` leads to", link.display())),
            None => error.advice("all that it names lies in DEST"),
        });
    }
    Ok((objects, links))
}

/// Returns whether lines have data URIs for bytes, according to the manifests next to them: a writer of ours made them.
///
/// # Errors
/// [`ErrorKind::Config`] if that is the case for only some of the shards.
pub(super) fn has_data_uris(listed: &Listed) -> Result<bool> {
    let mut folders: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for object in &listed.objects {
        let (folder, name) = object.url.rsplit_once('/').unwrap_or(("", &object.url));
        folders.entry(folder).or_default().insert(name);
    }
    let mut ours = 0;
    for (folder, names) in folders {
        let (store, url) = (listed.found.store.clone(), format!("{folder}/{MANIFEST}"));
        let read = listed.found.io.wait(async move { store.read_whole_if_exists(&url).await });
        let manifest = match read {
            Ok(bytes) => bytes.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok()),
            Err(error) if error.kind() == ErrorKind::Access => None,
            Err(error) => return Err(error),
        };
        let manifest = manifest.filter(|manifest| manifest.format == Output::JsonLines);
        let shards = manifest.iter().flat_map(|manifest| &manifest.shards);
        ours += shards.filter(|shard| names.contains(&*shard.name)).count();
    }
    if ours > 0 && ours < listed.objects.len() {
        let others = listed.objects.len() - ours;
        return Err(Error::config(format!(
            "of {ours} shards a {MANIFEST} says that bytes are data URIs in them, of {others} there is none"
        ))
        .advice("state that they are in all of them with --data-uris, or convert them one kind after the other"));
    }
    Ok(ours > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_kept_apart_from_itself_and_from_those_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/1.tfrecord"), "").unwrap();
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        let apart = |src: &str, dest: &str| keep_apart(at(src).to_str().unwrap(), &real(&at(dest)).unwrap()).is_ok();
        assert!(apart("a", "a/out") && apart("a", "out") && apart("a/*.tfrecord", "a/b") && apart("a", "ab/c/d"));
        for (src, dest) in
            [("a", "a"), ("a", "link"), ("link", "a"), ("a/b", "a"), ("a/*.tfrecord", "a"), ("a/1.tfrecord", "a")]
        {
            assert!(!apart(src, dest), "{src} {dest}");
        }
        assert!(keep_apart("gs://bucket/a", Path::new("/")).is_ok());
        for src in ["here", "*.here", "./here"] {
            let dest = real(Path::new("there")).unwrap();
            assert!(
                keep_apart(src, &dest).is_ok() && keep_apart(src, &real(Path::new(".")).unwrap()).is_err(),
                "{src}"
            );
        }
    }

    #[test]
    fn urls_of_files_are_paths_and_others_are_none() {
        assert_eq!(local_path("file:///a%20b"), Some(PathBuf::from("/a b")));
        assert_eq!(local_path("file:/a/*.b"), Some(PathBuf::from("/a/*.b")));
        assert_eq!(local_path("a b"), Some(PathBuf::from("a b")));
        assert_eq!((local_path("gs://b/a"), local_path("memory://b/a")), (None, None));
    }
}
