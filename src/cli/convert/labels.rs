//! Labels of images: from the folders in which they lie, or from a list.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};

use super::folder::{self, Found, Tree};
use crate::error::{Error, ErrorKind, Result};

/// A label for each image, or for no image.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Labels {
    /// One number per image, or empty.
    pub(super) numbers: Vec<i64>,
    /// The names that numbers stand for, if labels are names; numbers count from 0 in this order.
    pub(super) classes: Vec<String>,
}

impl Labels {
    /// Numbers the names.
    fn named(names: Vec<String>) -> Self {
        let classes: Vec<String> = names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let number: HashMap<&str, i64> = classes.iter().map(String::as_str).zip(0..).collect();
        let numbers = names.iter().map(|name| number[name.as_str()]).collect();
        Self { numbers, classes }
    }

    /// Returns the label of an image, and its name if it has one.
    pub(super) fn of(&self, image: usize) -> Option<(i64, Option<&str>)> {
        let number = *self.numbers.get(image)?;
        Some((number, usize::try_from(number).ok().and_then(|class| self.classes.get(class)).map(String::as_str)))
    }
}

/// Takes labels from the first folder of each image's path; no labels if all images lie in the root.
///
/// # Errors
/// [`ErrorKind::Config`] if some images lie in the root and some in folders, [`ErrorKind::Schema`] for names that are not text.
pub(super) fn from_folders(tree: &Tree) -> Result<Labels> {
    let class = |image: &Found| match image.path.components().collect::<Vec<_>>()[..] {
        [Component::Normal(class), _, ..] => Some(class.to_owned()),
        _ => None,
    };
    let classes: Vec<_> = tree.images.iter().filter_map(class).collect();
    if classes.is_empty() {
        return Ok(Labels::default());
    }
    if classes.len() < tree.images.len() {
        let loose =
            tree.images.iter().find(|image| class(image).is_none()).map(|image| image.path.display().to_string());
        return Err(Error::config(format!(
            "some images lie in folders, which would be their labels, and {} in none (`{}`)",
            tree.images.len() - classes.len(),
            loose.unwrap_or_default()
        ))
        .url(tree.root.to_string_lossy().into_owned())
        .advice("move them into folders, or name the label of each image in a list: --labels CSV"));
    }
    let text = |name: std::ffi::OsString| {
        let (text, line) = (name.to_str().map(str::to_owned), name.to_string_lossy());
        text.filter(|text| !text.contains(['\n', '\r'])).ok_or_else(|| {
            Error::new(ErrorKind::Schema, format!("the folder's name `{line}` cannot be a label"))
                .advice("rename it: a label is a line of UTF-8")
        })
    };
    Ok(Labels::named(classes.into_iter().map(text).collect::<Result<_>>()?))
}

/// Reads images and labels from a CSV file: the file in the first column, the label in the second; other columns are ignored.
///
/// Labels are numbers if all of them are, otherwise names. The first line counts as a heading if its first field has no extension and is not a file.
/// Images are sorted by their paths, as they are without a list.
///
/// # Errors
/// [`ErrorKind::Schema`], with the line, for a line without a label, and for a file that does not exist, is listed twice or lies outside of `root`.
pub(super) fn from_csv(csv: &Path, root: &Path) -> Result<(Vec<Found>, Labels)> {
    let url = csv.to_string_lossy().into_owned();
    let file =
        std::fs::File::open(csv).map_err(|e| crate::writer::part::failed(e, "cannot open the list of labels", csv))?;
    let bad = |line: u64, what: String| {
        Error::new(ErrorKind::Schema, format!("line {line}: {what}")).url(url.clone()).stage("labels")
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(std::io::BufReader::new(file));
    let mut listed: Vec<(Found, String)> = Vec::new();
    let mut lines = HashMap::new();
    let mut record = csv::StringRecord::new();
    let mut is_first = true;
    loop {
        let more = reader.read_record(&mut record);
        let line = record.position().map_or(0, csv::Position::line);
        let more = more.map_err(|e| {
            let line = e.position().map_or(line, csv::Position::line);
            bad(line, "it is no CSV in UTF-8".into()).because(e)
        })?;
        if !more {
            break;
        }
        let name = record.get(0).unwrap_or_default().trim_start_matches('\u{feff}');
        let found = folder::named(root, name);
        let could_be_heading = std::mem::take(&mut is_first) && Path::new(name).extension().is_none();
        let found = match found {
            Err(_) if could_be_heading => continue,
            found => found.map_err(|what| bad(line, what))?,
        };
        let label = record.get(1).unwrap_or_default();
        if label.is_empty() || label.contains(['\n', '\r']) {
            return Err(bad(line, format!("`{name}` has no label in the second column")));
        }
        if let Some(before) = lines.insert(found.path.clone(), line) {
            return Err(bad(line, format!("`{name}` is listed in line {before} already")));
        }
        listed.push((found, label.to_owned()));
    }
    listed.sort_by(|(a, _), (b, _)| a.path.as_os_str().cmp(b.path.as_os_str()));
    let (images, texts): (Vec<_>, Vec<String>) = listed.into_iter().unzip();
    let numbers: Option<Vec<i64>> = texts.iter().map(|text| text.parse().ok()).collect();
    let labels = match numbers {
        Some(numbers) => Labels { numbers, classes: Vec::new() },
        None => Labels::named(texts),
    };
    Ok((images, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn of_tree(files: &[&str]) -> Result<Labels> {
        from_folders(&folder::walk(folder(files).path(), Path::new("")).unwrap())
    }

    fn of_csv(text: &[u8]) -> Result<(Vec<Found>, Labels)> {
        let folder = folder(&["a/1.jpg", "a/2.jpg", "b.jpg"]);
        let csv = folder.path().join("labels.csv");
        std::fs::write(&csv, text).unwrap();
        from_csv(&csv, &folder.path().canonicalize().unwrap())
    }

    #[test]
    fn folders_are_numbered_by_their_names() {
        let labels = of_tree(&["dog/1.jpg", "cat/deep/er/1.jpg", "cat/2.jpg"]).unwrap();
        assert_eq!(labels.classes, ["cat", "dog"]);
        assert_eq!((labels.of(0), labels.of(2), labels.of(3)), (Some((0, Some("cat"))), Some((1, Some("dog"))), None));
        assert_eq!(of_tree(&["1.jpg", "2.jpg"]).unwrap(), Labels::default());
    }

    #[test]
    fn images_beside_folders_of_images_need_a_list() {
        let error = of_tree(&["dog/1.jpg", "2.jpg"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("`2.jpg`") && error.to_string().contains("--labels"), "{error}");
    }

    #[test]
    fn lists_hold_numbers_or_names_with_and_without_a_heading() {
        for heading in ["", "filename,label\n", "\u{feff}file,class,more\n", "# made by hand\n"] {
            let (images, labels) = of_csv(format!("{heading}b.jpg,7\n./a/1.jpg, -3 ,x\n").as_bytes()).unwrap();
            let paths: Vec<_> = images.iter().map(|image| image.path.to_str().unwrap()).collect();
            assert_eq!((paths, labels.numbers, labels.classes.len()), (vec!["a/1.jpg", "b.jpg"], vec![-3, 7], 0));
        }
        let (_, labels) = of_csv(b"b.jpg,\"owl, barn\"\na/1.jpg,3\r\na/2.jpg,cat\n").unwrap();
        assert_eq!(
            (labels.numbers, labels.classes),
            (vec![0, 1, 2], ["3", "cat", "owl, barn"].map(str::to_owned).into())
        );
    }

    #[test]
    fn mistakes_in_a_list_name_their_line() {
        for (text, line, what) in [
            ("b.jpg,1\n../b.jpg,2\n", 2, "`..`"),
            ("b.jpg,1\n/etc/passwd,2\n", 2, "absolute"),
            ("missing.jpg,1\n", 1, "no file"),
            ("file,label\nb.jpg,1\nmissing.jpg,1\n", 3, "no file"),
            ("b.jpg,1\na/1.jpg\n", 2, "no label"),
            ("b.jpg,1\na/1.jpg,\n", 2, "no label"),
            ("b.jpg,1\na/1.jpg,2\n./b.jpg,1\n", 3, "line 1 already"),
            ("b.jpg,1\na,1\n", 2, "is no file"),
        ] {
            let error = of_csv(text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Schema);
            let text = error.to_string();
            assert!(text.contains(&format!("line {line}: ")) && text.contains(what), "{text}");
        }
        assert!(of_csv(b"b.jpg,\xff\n").is_err());
    }
}
