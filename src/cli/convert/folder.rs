//! A folder tree of images: which files are images, with none from outside the folder.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::writer::part;

/// The extensions of images, in either case.
const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// Parts of names by which shards are recognised. Files of other formats may be lists that belong to images.
const SHARDS: [&str; 3] = [".tfrecord", ".parquet", ".tar"];

/// A file below the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The path within the folder: `dog/1.jpg`.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Time of the last modification, in nanoseconds since 1970.
    pub(super) modified: i64,
}

/// The images of a folder.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The folder, with all links resolved.
    pub(super) root: PathBuf,
    /// The images, sorted by the bytes of their paths.
    pub(super) images: Vec<Found>,
    /// Folders directly in the root without an image anywhere below.
    pub(super) empty: Vec<PathBuf>,
    /// The number of files that are not images by their names.
    pub(super) ignored: u64,
    /// How many of those are shards by their names.
    pub(super) shards: u64,
    /// Links that lead out of the folder, to a folder, or nowhere.
    pub(super) links: Vec<PathBuf>,
}

/// Finds the images below `root`, without those in `except`, a folder below it. Names that begin with a dot are skipped.
///
/// A file is an image if its extension is one of an image, or, without any extension, if its first bytes are those of an image.
///
/// Links to files are followed if they stay in the folder. Links to folders are not: images would be found twice, or endlessly if a link leads
/// upwards.
pub(super) fn walk(root: &Path, except: &Path) -> Result<Tree> {
    let root = root.canonicalize().map_err(|e| part::failed(e, "cannot open the folder", root))?;
    let mut tree = Tree { root: root.clone(), ..Tree::default() };
    let mut folders = vec![PathBuf::new()];
    let mut first_level = Vec::new();
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        let failed = |e| part::failed(e, "cannot list the folder", &full);
        for entry in std::fs::read_dir(&full).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, kind) = (folder.join(entry.file_name()), entry.file_type().map_err(failed)?);
            if entry.file_name().as_encoded_bytes().starts_with(b".") || entry.path() == except {
                continue;
            }
            if kind.is_dir() {
                if folder.as_os_str().is_empty() {
                    first_level.push(path.clone());
                }
                folders.push(path);
                continue;
            }
            if kind.is_symlink() && !leads_to_file_inside(&entry.path(), &root) {
                tree.links.push(path);
                continue;
            }
            let metadata = std::fs::metadata(entry.path()).map_err(failed)?;
            if metadata.is_file() && is_image(&entry.path()) {
                tree.images.push(found(path, &metadata));
                continue;
            }
            tree.ignored += 1;
            let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
            tree.shards += u64::from(SHARDS.iter().any(|extension| name.contains(extension)));
        }
    }
    tree.images.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    tree.links.sort();
    let with_images: HashSet<_> = tree.images.iter().filter_map(|image| image.path.components().next()).collect();
    let is_empty = |folder: &PathBuf| folder.components().next().is_some_and(|name| !with_images.contains(&name));
    let empty = first_level.into_iter().filter(is_empty).collect();
    tree.empty = empty;
    tree.empty.sort();
    Ok(tree)
}

/// Returns the file that a list names. The file has to lie in `root` (a folder with all links resolved), and its name has to be relative to it.
///
/// # Errors
/// A description of what is wrong.
pub(super) fn named(root: &Path, name: &str) -> Result<Found, String> {
    let path = Path::new(name);
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(format!("`{name}` has a `..`; files are named from SRC on")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(format!("`{name}` is an absolute path; files are named from SRC on"));
            }
        }
    }
    let full = root.join(&inside);
    let real = full.canonicalize().map_err(|e| format!("there is no file `{name}` in SRC: {e}"))?;
    if !real.starts_with(root) {
        return Err(format!("`{name}` is a link that leads out of SRC"));
    }
    let metadata = std::fs::metadata(&real).map_err(|e| format!("`{name}` cannot be looked at: {e}"))?;
    if !metadata.is_file() {
        return Err(format!("`{name}` is no file"));
    }
    Ok(found(inside, &metadata))
}

/// Returns the bytes of an image, if the file has not changed since it was found.
pub(super) fn read(root: &Path, image: &Found) -> Result<Vec<u8>> {
    let path = root.join(&image.path);
    let failed = |e| part::failed(e, "cannot read the image", &path);
    // Again, in case that a link was put there since.
    let real = path.canonicalize().map_err(failed)?;
    let changed = |what: &'static str| {
        let error = Error::new(crate::ErrorKind::NotFound, what).url(path.to_string_lossy().into_owned());
        error.advice("leave the folder as it is while it is converted, and run it again")
    };
    if !real.starts_with(root) {
        return Err(changed("it leads out of the folder since it was found"));
    }
    let mut file = File::open(&real).map_err(failed)?;
    if found(PathBuf::new(), &file.metadata().map_err(failed)?) != (Found { path: PathBuf::new(), ..*image }) {
        return Err(changed("it was written again since it was found"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn found(path: PathBuf, metadata: &Metadata) -> Found {
    let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Found { path, bytes: metadata.len(), modified }
}

fn leads_to_file_inside(link: &Path, root: &Path) -> bool {
    link.canonicalize().is_ok_and(|real| real.starts_with(root) && real.is_file())
}

fn is_image(path: &Path) -> bool {
    match path.extension() {
        Some(extension) => EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)),
        None => has_image_magic(path).unwrap_or(false),
    }
}

/// Checks for first bytes that no other files have. BMP's two letters are not among them, because a text could begin with them.
fn has_image_magic(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(12).read_to_end(&mut start)?;
    let known: [&[u8]; 6] = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"];
    let is_webp = start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP");
    Ok(is_webp || known.iter().any(|magic| start.starts_with(magic)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"\xff\xd8\xff of an image").unwrap();
        }
        folder
    }

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.images.iter().map(|image| image.path.to_str().unwrap()).collect()
    }

    #[test]
    fn images_are_found_by_their_names_in_a_fixed_order() {
        let folder =
            folder(&["b/2.PNG", "b/1.jpeg", "a/x.JpG", "a/notes.txt", "a/0f3e", ".git/a.jpg", "a/._x.jpg", "c/r.csv"]);
        std::fs::write(folder.path().join("LICENSE"), "II hereby").unwrap();
        let tree = walk(folder.path(), Path::new("")).unwrap();
        assert_eq!(paths(&tree), ["a/0f3e", "a/x.JpG", "b/1.jpeg", "b/2.PNG"]);
        assert_eq!((tree.ignored, tree.empty), (3, vec![PathBuf::from("c")]));
        let except = folder.path().canonicalize().unwrap().join("b");
        assert_eq!(paths(&walk(folder.path(), &except).unwrap()), ["a/0f3e", "a/x.JpG"]);
    }

    #[test]
    fn links_are_followed_to_files_inside_alone() {
        let (inside, outside) = (folder(&["a/1.jpg"]), folder(&["secret.jpg"]));
        let at = |name: &str| inside.path().join(name);
        symlink(outside.path().join("secret.jpg"), at("a/out.jpg")).unwrap();
        symlink(outside.path(), at("folder")).unwrap();
        symlink("..", at("a/up")).unwrap();
        symlink("gone.jpg", at("a/gone.jpg")).unwrap();
        symlink("1.jpg", at("a/same.jpg")).unwrap();
        let tree = walk(inside.path(), Path::new("")).unwrap();
        assert_eq!(paths(&tree), ["a/1.jpg", "a/same.jpg"]);
        assert_eq!(tree.links, ["a/gone.jpg", "a/out.jpg", "a/up", "folder"].map(PathBuf::from));
        assert_eq!(read(&tree.root, &tree.images[0]).unwrap(), b"\xff\xd8\xff of an image");
        // Swapped for a link after it was found.
        std::fs::remove_file(at("a/1.jpg")).unwrap();
        symlink(outside.path().join("secret.jpg"), at("a/1.jpg")).unwrap();
        assert!(read(&tree.root, &tree.images[0]).unwrap_err().to_string().contains("leads out"));
    }

    #[test]
    fn named_files_lie_in_the_folder() {
        let (inside, outside) = (folder(&["a/1.jpg"]), folder(&["secret.jpg"]));
        let root = inside.path().canonicalize().unwrap();
        symlink(outside.path().join("secret.jpg"), root.join("out.jpg")).unwrap();
        assert_eq!(named(&root, "./a//1.jpg").unwrap().path, Path::new("a/1.jpg"));
        let absolute = root.join("a/1.jpg");
        for (name, what) in [
            ("../a/1.jpg", "`..`"),
            ("a/../a/1.jpg", "`..`"),
            (absolute.to_str().unwrap(), "absolute"),
            ("out.jpg", "leads out"),
            ("a/2.jpg", "no file"),
            ("a", "is no file"),
            ("", "is no file"),
        ] {
            let error = named(&root, name).unwrap_err();
            assert!(error.contains(what), "{name}: {error}");
        }
    }
}
