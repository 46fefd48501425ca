//! A folder of labelled photographs, written as TFRecord shards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use forebay::Compression;
use forebay::format::example::Example;
use forebay::format::tfrecord::Writer;
use tempfile::TempDir;

use crate::{IMAGE, LABEL, Result};

const LABELS: &str = "labels.csv";
const ENDINGS: [&str; 9] = ["bmp", "gif", "jpeg", "jpg", "jpe", "png", "tif", "tiff", "webp"];

/// Small enough that a data set has several to shuffle, large enough for long reads.
const SHARD_BYTES: u64 = 16 << 20;

/// A photograph and its class.
struct Photograph {
    path: PathBuf,
    label: i64,
    text: String,
}

/// Writes the photographs of `folder` to shards, beside this program, in a folder that is removed when dropped.
pub(crate) fn to_shards(folder: &Path) -> Result<TempDir> {
    let photographs = if folder.join(LABELS).is_file() { listed(folder) } else { in_subfolders(folder) }?;
    if photographs.is_empty() {
        let what = format!("{}: no photographs, neither in a {LABELS} nor in sub-folders", folder.display());
        return Err(what.into());
    }
    let program = std::env::current_exe()?;
    let beside = program.parent().unwrap_or(Path::new("."));
    let shards = tempfile::Builder::new().prefix("photographs-").tempdir_in(beside)?;
    let create = |number: usize| -> Result<_> {
        let path = shards.path().join(format!("train-{number:05}.tfrecord"));
        Ok(Writer::new(File::create(path)?, Compression::None))
    };
    let mut number = 0;
    let mut writer = create(number)?;
    for photograph in &photographs {
        if writer.offset() >= SHARD_BYTES {
            number += 1;
            std::mem::replace(&mut writer, create(number)?).finish()?;
        }
        let encoded = fs::read(&photograph.path).map_err(|error| named(&photograph.path, error))?;
        let example = Example::new()
            .with_bytes(IMAGE, [encoded])
            .with_int64(LABEL, [photograph.label])
            .with_bytes("image/class/text", [&photograph.text]);
        writer.write(&example.encode())?;
    }
    writer.finish()?;
    println!("{} photographs written as shards to {}", photographs.len(), shards.path().display());
    Ok(shards)
}

/// The photographs of a `labels.csv`: under a heading, a line `file,label_index,label_name` each.
fn listed(folder: &Path) -> Result<Vec<Photograph>> {
    let path = folder.join(LABELS);
    let text = fs::read_to_string(&path).map_err(|error| named(&path, error))?;
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let mut fields = line.splitn(3, ',').map(|field| field.trim().trim_matches('"'));
            let (file, label) = (fields.next(), fields.next().and_then(|label| label.parse().ok()));
            let (Some(file), Some(label)) = (file, label) else {
                let what = format!("{}:{}: not `file,label_index,label_name`", path.display(), number + 1);
                return Err(what.into());
            };
            Ok(Photograph { path: folder.join(file), label, text: fields.next().unwrap_or(file).to_owned() })
        })
        .collect()
}

/// A class for each sub-folder, in the order of their names.
fn in_subfolders(folder: &Path) -> Result<Vec<Photograph>> {
    let classes = sorted(folder)?.into_iter().filter(|path| path.is_dir());
    let mut photographs = Vec::new();
    for (class, label) in classes.zip(0..) {
        let text = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for path in sorted(&class)? {
            let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
            if ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
                photographs.push(Photograph { path, label, text: text.clone() });
            }
        }
    }
    Ok(photographs)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| named(folder, error))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

fn named(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
