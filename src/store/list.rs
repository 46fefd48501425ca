//! From patterns to objects: braces are expanded, single objects looked up, everything else listed and matched.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::list::PaginatedListOptions;
use object_store::{ObjectMeta, ObjectStore as _};

use super::pattern::{Pattern, Root, Segment, expand, relative};
use super::range::{head, path, retrying};
use super::remote::Remote;
use super::url::{Base, Location, Scheme, lossy};
use super::{Object, Shared, Store, blocking, local};
use crate::{Error, ErrorKind, Result};

/// The number of names shown when nothing matched.
const SHOWN: usize = 3;

/// The result of one pattern.
#[derive(Debug, Default)]
struct Listing {
    objects: Vec<Object>,
    /// How many objects were examined, and the first names among them.
    seen: usize,
    names: Vec<String>,
}

impl Listing {
    fn see(&mut self, name: &str) {
        self.seen += 1;
        let at = self.names.partition_point(|shown| &**shown < name);
        if at < SHOWN && self.names.get(at).is_none_or(|shown| shown != name) {
            self.names.insert(at, name.to_owned());
            self.names.truncate(SHOWN);
        }
    }
}

/// Lists the objects that the patterns stand for, sorted and each once.
pub(super) async fn list(store: &Store, patterns: &[&str]) -> Result<Vec<Object>> {
    if patterns.is_empty() {
        return Err(Error::config("no URL to list").advice("name at least one file, folder or pattern").stage("list"));
    }
    let mut objects = Vec::new();
    for pattern in patterns {
        objects.extend(list_one(store, pattern).await.map_err(|e| e.stage("list").url(*pattern))?);
    }
    // By location: unescaped, so that a folder has the same order wherever it is copied to.
    let mut sorted = objects.into_iter().map(|o| Ok((order(&o.url)?, o))).collect::<Result<Vec<_>>>()?;
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    sorted.dedup_by(|(a, _), (b, _)| a == b);
    Ok(sorted.into_iter().map(|(_, object)| object).collect())
}

/// The sort key of an object: the unescaped URL.
fn order(url: &str) -> Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    Ok(match Location::parse(url)? {
        Location::Local(path) => [b"file://", path.as_os_str().as_bytes()].concat(),
        Location::Remote(base, key) => [base.url.as_bytes(), b"/", key.as_bytes()].concat(),
    })
}

async fn list_one(store: &Store, text: &str) -> Result<Vec<Object>> {
    let patterns = expand(text)?.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>>>()?;
    let number = patterns.len();
    let mut resolved = futures::stream::iter(patterns.into_iter().map(|pattern| resolve(store, pattern)))
        .buffered(store.shared.options.concurrency);
    let mut objects = Vec::new();
    let (mut missing, mut empty) = (Vec::new(), None);
    while let Some(outcome) = resolved.try_next().await? {
        match outcome {
            Outcome::Object(object) => objects.push(object),
            Outcome::Missing(pattern) => missing.push(pattern),
            Outcome::Listing(pattern, mut listing) => {
                objects.append(&mut listing.objects);
                empty = Some((pattern, listing));
            }
        }
    }
    drop(resolved);
    if let Some(first) = missing.first() {
        let near = near(store, first).await;
        let what = match (number, missing.len()) {
            (1, _) => "no such object".to_owned(),
            (_, 1) => format!("this one of the {number} objects named does not exist"),
            (_, gone) => format!("{gone} of the {number} objects named do not exist, this is the first"),
        };
        let message = if near.is_empty() { what } else { format!("{what}; {near}") };
        return Err(Error::new(ErrorKind::NotFound, message).url(&*first.text));
    }
    match empty {
        Some((pattern, listing)) if objects.is_empty() => Err(nothing(&pattern, &listing)),
        _ => Ok(objects),
    }
}

enum Outcome {
    Object(Object),
    Missing(Pattern),
    Listing(Pattern, Listing),
}

async fn resolve(store: &Store, mut pattern: Pattern) -> Result<Outcome> {
    let shared = &store.shared;
    match pattern.root.clone() {
        Root::Local(root) => {
            let _turn = shared.turns.acquire().await.expect("the semaphore is never closed");
            blocking(move || {
                if pattern.is_literal() {
                    let path = pattern.literal_segments().fold(root, |path, segment| path.join(segment));
                    match std::fs::metadata(&path) {
                        Ok(metadata) if metadata.is_dir() => pattern.folder = true,
                        Ok(metadata) => {
                            return local::object(&path, &metadata)
                                .map(Outcome::Object)
                                .map_err(|e| e.url(&*pattern.text));
                        }
                        Err(e) => {
                            let error = local::io_error(e, "cannot look at the file");
                            return match error.kind() {
                                ErrorKind::NotFound => Ok(Outcome::Missing(pattern)),
                                _ => Err(error.url(&*pattern.text)),
                            };
                        }
                    }
                }
                let listing = walk(&pattern).map_err(|e| e.url(&*pattern.text))?;
                Ok(Outcome::Listing(pattern, listing))
            })
            .await
        }
        Root::Remote(base) => {
            let remote = store.remote(&base).map_err(|e| e.url(&*pattern.text))?;
            if pattern.is_literal() {
                let key = pattern.literal_segments().collect::<Vec<_>>().join("/");
                return match head(shared, &remote, &key).await {
                    Ok(object) => Ok(Outcome::Object(object)),
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(Outcome::Missing(pattern)),
                    Err(e) => Err(e.url(&*pattern.text)),
                };
            }
            if base.scheme == Scheme::Http {
                return Err(Error::config("plain HTTP servers cannot be listed")
                    .url(&*pattern.text)
                    .advice("name the files: braces such as train-{00000..01023}.tfrecord need no listing"));
            }
            let listing = match &remote.pages {
                Some(_) => pages(shared, &remote, &pattern).await,
                None => whole(shared, &remote, &pattern).await,
            };
            let mut listing = listing.map_err(|e| e.url(&*pattern.text))?;
            drop_folder_marks(&mut listing);
            Ok(Outcome::Listing(pattern, listing))
        }
    }
}

/// Lists page by page, from the longest literal prefix. Stays in the folder if the pattern cannot match below it.
async fn pages(shared: &Shared, remote: &Remote, pattern: &Pattern) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut folders = HashSet::new();
    let (prefix, mut token) = (pattern.literal_prefix(), None);
    loop {
        let page = page(shared, remote, &prefix, pattern.is_flat(), token).await?;
        for meta in &page.result.objects {
            take(&mut listing, remote, pattern, meta);
        }
        folders.extend(page.result.common_prefixes.iter().map(|folder| folder.to_string()));
        token = page.page_token;
        if token.is_none() {
            break;
        }
    }
    let marks: HashSet<_> = folders.iter().map(|folder| remote.base.join(folder)).collect();
    listing.objects.retain(|object| object.size > 0 || !marks.contains(&*object.url));
    Ok(listing)
}

async fn page(
    shared: &Shared,
    remote: &Remote,
    prefix: &str,
    flat: bool,
    token: Option<String>,
) -> Result<object_store::list::PaginatedListResult> {
    let request = || {
        let pages = remote.pages.as_ref().map(Arc::clone);
        let options = PaginatedListOptions {
            delimiter: flat.then_some("/".into()),
            page_token: token.clone(),
            ..Default::default()
        };
        async move {
            let pages = pages.expect("asked of stores that list in pages");
            pages.list_paginated((!prefix.is_empty()).then_some(prefix), options).await
        }
    };
    retrying(shared, remote, shared.options.stall_timeout, request).await
}

/// Lists a store that can only list whole folders; starts over when a try fails.
async fn whole(shared: &Shared, remote: &Remote, pattern: &Pattern) -> Result<Listing> {
    let folder = pattern.literal_folder();
    let folder = path(&folder)?;
    let request = || {
        let (store, folder) = (Arc::clone(&remote.store), folder.clone());
        async move { store.list((!folder.is_root()).then_some(&folder)).try_collect::<Vec<_>>().await }
    };
    let mut listing = Listing::default();
    for meta in retrying(shared, remote, shared.options.stall_timeout, request).await? {
        take(&mut listing, remote, pattern, &meta);
    }
    Ok(listing)
}

fn take(listing: &mut Listing, remote: &Remote, pattern: &Pattern, meta: &ObjectMeta) {
    let key = meta.location.as_ref();
    listing.see(key.strip_prefix(&*pattern.literal_folder()).unwrap_or(key));
    if pattern.matches(key) {
        listing.objects.push(remote.object(meta));
    }
}

/// Removes empty objects that only stand for a folder in a web console: their key ended in a slash, which the client cuts off.
fn drop_folder_marks(listing: &mut Listing) {
    if listing.objects.iter().all(|object| object.size > 0) {
        return;
    }
    let folders: HashSet<String> = listing
        .objects
        .iter()
        .flat_map(|object| object.url.match_indices('/').map(|(at, _)| object.url[..at].to_owned()))
        .collect();
    listing.objects.retain(|object| object.size > 0 || !folders.contains(&*object.url));
}

/// Walks the folders that may hold a match (blocking). Symbolic links are followed, but never in circles.
fn walk(pattern: &Pattern) -> Result<Listing> {
    let Root::Local(root) = &pattern.root else { unreachable!("only local patterns are walked") };
    let mut listing = Listing::default();
    let folders = pattern.literal_segments().count() - usize::from(!pattern.folder && pattern.is_literal());
    let start = pattern.literal_segments().take(folders).fold(root.clone(), |path, segment| path.join(segment));
    match std::fs::metadata(&start) {
        Ok(_) => walk_into(pattern, root, &start, &start, &mut Vec::new(), &mut listing)?,
        Err(e) => match local::io_error(e, "cannot look at the folder") {
            e if e.kind() == ErrorKind::NotFound => {}
            e => return Err(e),
        },
    }
    Ok(listing)
}

fn walk_into(
    pattern: &Pattern,
    root: &Path,
    start: &Path,
    folder: &Path,
    above: &mut Vec<(u64, u64)>,
    listing: &mut Listing,
) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let here = std::fs::metadata(folder).map_err(|e| at(folder, e))?;
    let identity = (here.dev(), here.ino());
    if above.contains(&identity) {
        return Ok(());
    }
    above.push(identity);
    for entry in std::fs::read_dir(folder).map_err(|e| at(folder, e))? {
        let path = entry.map_err(|e| at(folder, e))?.path();
        let Some(below) = relative(root, &path) else { continue };
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Something that is gone again, or a link to nothing: only a loss if it was asked for.
            Err(e) if pattern.matches(&below) => return Err(at(&path, e)),
            Err(_) => continue,
        };
        if metadata.is_dir() {
            if pattern.may_match_below(&below) {
                walk_into(pattern, root, start, &path, above, listing)?;
            }
        } else if metadata.is_file() {
            listing.see(&relative(start, &path).unwrap_or_default());
            if pattern.matches(&below) {
                listing.objects.push(local::object(&path, &metadata)?);
            }
        }
    }
    above.pop();
    Ok(())
}

fn at(path: &Path, error: std::io::Error) -> Error {
    local::io_error(error, "cannot list").url(Location::Local(path.to_owned()).url())
}

/// Returns the error of a pattern that matches nothing.
fn nothing(pattern: &Pattern, listing: &Listing) -> Error {
    let folder = match &pattern.root {
        Root::Local(root) => {
            let folder: PathBuf = pattern.literal_segments().fold(root.clone(), |path, segment| path.join(segment));
            if !folder.is_dir() {
                let error = Error::new(ErrorKind::NotFound, format!("nothing matches; {}", local::near(&folder)));
                return error.url(&*pattern.text);
            }
            format!("{}/", lossy(&folder).trim_end_matches('/'))
        }
        Root::Remote(base) => format!("{}/{}", base.url, pattern.literal_prefix()),
    };
    let near = describe(listing.seen, false, &listing.names, &folder);
    let error = Error::new(ErrorKind::NotFound, format!("nothing matches; {near}")).url(&*pattern.text);
    let has_class = pattern.segments.iter().any(|segment| match segment {
        Segment::Glob(tokens) => tokens.iter().any(|token| matches!(token, super::pattern::Token::Class { .. })),
        _ => false,
    });
    if has_class { error.advice("for a `[` that belongs to a name write [[]") } else { error }
}

/// Describes what is next to something that does not exist; nothing if that cannot be found out.
async fn near(store: &Store, pattern: &Pattern) -> String {
    match &pattern.root {
        Root::Local(root) => {
            let path = pattern.literal_segments().fold(root.clone(), |path, segment| path.join(segment));
            blocking(move || Ok(local::near(&path))).await.unwrap_or_default()
        }
        Root::Remote(base) => near_remote(store, base, pattern).await.unwrap_or_default(),
    }
}

async fn near_remote(store: &Store, base: &Base, pattern: &Pattern) -> Result<String> {
    if base.scheme == Scheme::Http {
        return Ok(String::new());
    }
    let remote = store.remote(base)?;
    let folder = pattern.literal_folder();
    let (objects, folders, more) = if remote.pages.is_some() {
        match page(&store.shared, &remote, &folder, true, None).await {
            Ok(page) => (page.result.objects, page.result.common_prefixes, page.page_token.is_some()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(format!("there is no {} either", base.url)),
            Err(e) => return Err(e),
        }
    } else {
        let prefix = path(&folder)?;
        let listed = remote.store.list_with_delimiter((!prefix.is_root()).then_some(&prefix)).await;
        let listed = listed.map_err(|e| remote.fault(e).error)?;
        (listed.objects, listed.common_prefixes, false)
    };
    let key = pattern.literal_segments().collect::<Vec<_>>().join("/");
    if folders.iter().any(|folder| folder.as_ref() == key) {
        return Ok("it is a folder: write it with a / at the end for everything below".to_owned());
    }
    // The folder's own mark has lost its slash, and is no file in it.
    let below = |meta: &ObjectMeta| meta.location.as_ref().strip_prefix(&*folder).map(str::to_owned);
    let mut names: Vec<String> = objects.iter().filter_map(below).collect();
    names.sort();
    Ok(describe(names.len(), more, &names, &format!("{}/{folder}", base.url)))
}

/// "there are 12 files in gs://b/a/: x, y, z, …"
pub(super) fn describe(count: usize, more: bool, names: &[String], folder: &str) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match count {
        0 => format!("there is nothing at {folder}"),
        1 => format!("there is one file at {folder}: {shown}"),
        _ => format!(
            "there are {}{count} files at {folder}: {shown}{}",
            if more { "more than " } else { "" },
            if count > SHOWN { ", …" } else { "" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Creates a folder of files, and the same keys in an in-memory store.
    fn both(name: &str, keys: &[&str]) -> (tempfile::TempDir, [String; 2]) {
        let folder = tempfile::tempdir().unwrap();
        for key in keys {
            let content = if key.contains("empty") { "" } else { key };
            local::write(&folder.path().join(key), content.as_bytes()).unwrap();
            Store::memory_put(&format!("memory://{name}/{key}"), Bytes::from(content.to_owned())).unwrap();
        }
        let roots = [folder.path().to_str().unwrap().to_owned(), format!("memory://{name}")];
        (folder, roots)
    }

    /// Returns the keys below the root, unescaped.
    fn keys(root: &str, objects: &[Object]) -> Vec<String> {
        let root = String::from_utf8(order(&format!("{root}/x")).unwrap()).unwrap();
        let cut = |o: &Object| String::from_utf8(order(&o.url).unwrap()).unwrap()[root.len() - 1..].to_owned();
        objects.iter().map(cut).collect()
    }

    #[tokio::test]
    async fn patterns_find_the_same_in_a_folder_and_in_a_store() {
        let all = [
            "a/train-00000.rec",
            "a/train-00001.rec",
            "a/train-00002.rec",
            "a/val-0.rec",
            "a/train-old/train-9.rec",
            "a/.hidden.rec",
            "a/_SUCCESS",
            "a/empty.rec",
            "a b/#1 100%.rec",
            "größe/😀 [x].rec",
            "b/c/d/deep.rec",
            "top.rec",
        ];
        let (_folder, roots) = both("patterns", &all);
        let cases: &[(&[&str], &[&str])] = &[
            (&["a/train-*.rec"], &["a/train-00000.rec", "a/train-00001.rec", "a/train-00002.rec"]),
            (&["a/train-{00000..00002}.rec"], &["a/train-00000.rec", "a/train-00001.rec", "a/train-00002.rec"]),
            (&["a/{val,train}-?.rec", "top.rec"], &["a/val-0.rec", "top.rec"]),
            (&["a/train-0000[!1].rec"], &["a/train-00000.rec", "a/train-00002.rec"]),
            (
                &["**/train-*"],
                &["a/train-00000.rec", "a/train-00001.rec", "a/train-00002.rec", "a/train-old/train-9.rec"],
            ),
            (&["*/*/*/*.rec"], &["b/c/d/deep.rec"]),
            (&["b/"], &["b/c/d/deep.rec"]),
            (
                &["a/"],
                &[
                    "a/empty.rec",
                    "a/train-00000.rec",
                    "a/train-00001.rec",
                    "a/train-00002.rec",
                    "a/train-old/train-9.rec",
                    "a/val-0.rec",
                ],
            ),
            (&["a/_*"], &["a/_SUCCESS"]),
            (&["a b/#1 100%.rec"], &["a b/#1 100%.rec"]),
            (&["a b/#*%.rec"], &["a b/#1 100%.rec"]),
            (&["größe/*[[]x].rec"], &["größe/😀 [x].rec"]),
            (&["größe/"], &["größe/😀 [x].rec"]),
            (&["top.rec", "*.rec", "top.rec"], &["top.rec"]),
            (&["top.rec", "a/val-0.rec"], &["a/val-0.rec", "top.rec"]),
        ];
        let store = Store::new();
        for root in &roots {
            for (patterns, expected) in cases {
                let patterns: Vec<String> = patterns.iter().map(|pattern| format!("{root}/{pattern}")).collect();
                let objects = store.list(&patterns).await.unwrap();
                assert_eq!(keys(root, &objects), *expected, "{patterns:?}");
                for object in &objects {
                    assert_eq!(store.head(&object.url).await.unwrap(), *object, "what is listed can be asked for");
                    let content = store.read(object, 0..object.size).await.unwrap();
                    let key = &keys(root, std::slice::from_ref(object))[0];
                    assert_eq!(content, if key.contains("empty") { "" } else { &**key });
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_named_with_what_is() {
        let (_folder, roots) = both("near", &["d/a-0", "d/a-1", "d/a-3", "d/a-4", "d/sub/x"]);
        let cases = [
            ("d/b-*", "nothing matches"),
            ("d/a-{0..5}", "2 of the 6 objects named do not exist, this is the first; there are 4"),
            ("d/a-{0..2}", "this one of the 3 objects named does not exist"),
            ("d/a-7", "no such object"),
            ("nowhere/*.rec", "nothing"),
            ("nowhere/", "nothing"),
        ];
        for root in &roots {
            for (pattern, words) in cases {
                let error = Store::new().list(&[format!("{root}/{pattern}")]).await.unwrap_err();
                let text = error.to_string();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{text}");
                assert!(text.contains(words), "{pattern}: {text}");
                assert_eq!(error.place().stage.as_deref(), Some("list"));
            }
            let text = Store::new().list(&[format!("{root}/d/a-7")]).await.unwrap_err().to_string();
            assert!(text.contains("a-0, a-1, a-3"), "{text}");
            let text = Store::new().list(&[format!("{root}/d/a-{{0..2}}")]).await.unwrap_err().to_string();
            assert!(text.starts_with(&format!("{root}/d/a-2 (list)")), "{text}");
        }
        let text = Store::new().list(&["memory://near/d"]).await.unwrap_err().to_string();
        assert!(text.contains("it is a folder"), "{text}");
        let error = Store::new().list::<&str>(&[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn a_local_folder_needs_no_slash_and_links_in_it_are_followed_but_not_in_circles() {
        let (folder, [root, _]) = both("links", &["d/x", "e/y"]);
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink(at("e"), at("d/to-e")).unwrap();
        std::os::unix::fs::symlink(at("d"), at("d/circle")).unwrap();
        std::os::unix::fs::symlink(at("e/y"), at("d/to-y")).unwrap();
        let objects = Store::new().list(&[format!("{root}/d")]).await.unwrap();
        assert_eq!(keys(&root, &objects), ["d/to-e/y", "d/to-y", "d/x"]);
        std::os::unix::fs::symlink(at("gone"), at("d/to-nothing")).unwrap();
        assert_eq!(Store::new().list(&[format!("{root}/d/x*")]).await.unwrap().len(), 1);
        let error = Store::new().list(&[format!("{root}/d/")]).await.unwrap_err();
        assert!(error.to_string().contains("to-nothing"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_mark_of_a_web_console_is_no_shard() {
        for (key, content) in [("m/f", ""), ("m/f/x", "1"), ("m/g", "")] {
            Store::memory_put(&format!("memory://marks/{key}"), Bytes::from_static(content.as_bytes())).unwrap();
        }
        let objects = Store::new().list(&["memory://marks/m/**"]).await.unwrap();
        assert_eq!(keys("memory://marks", &objects), ["m/f/x", "m/g"]);
    }

    #[tokio::test]
    async fn naming_objects_lists_nothing() {
        for i in 0..10 {
            Store::memory_put(&format!("memory://named/s-{i:02}"), Bytes::from_static(b"1")).unwrap();
        }
        let store = Store::new();
        assert_eq!(store.list(&["memory://named/s-{00..09}"]).await.unwrap().len(), 10);
        assert_eq!(store.transfers().requests, 10);
        assert_eq!(store.list(&["memory://named/s-*"]).await.unwrap().len(), 10);
        assert_eq!(store.transfers().requests, 11);
    }
}
