//! The repository's own text, as Parquet files of token lists.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ListArray, RecordBatch};
use arrow::datatypes::Int32Type;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::Result;

/// Documents of a row group: small, so that a shuffle has several to mix.
const ROW_GROUP: usize = 256;
/// Every so-many-th document is held out.
const HELD_OUT: usize = 20;
/// Shorter ones are headings, and lines that separate.
const SHORTEST: usize = 24;

/// Writes the documents found below `root` to two files in `folder`: those to train on, and those held out.
pub(crate) fn write(root: &Path, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let mut documents = Vec::new();
    for path in ["README.md", "CONTRIBUTING.md", "docs", "src"].map(|name| root.join(name)) {
        visit(&path, &mut documents)?;
    }
    let bytes: usize = documents.iter().map(String::len).sum();
    println!("{} documents of {} bytes in the mean", documents.len(), bytes / documents.len().max(1));
    let (held_out, train): (Vec<_>, Vec<_>) =
        documents.into_iter().enumerate().partition(|(number, _)| number % HELD_OUT == 0);
    Ok((to_parquet(&train, folder.join("train.parquet"))?, to_parquet(&held_out, folder.join("held-out.parquet"))?))
}

/// The documents of a file, or of all files below a folder, in the order of their names.
fn visit(path: &Path, documents: &mut Vec<String>) -> Result<()> {
    if path.is_dir() {
        let mut below = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        below.sort();
        return below.iter().try_for_each(|path| visit(path, documents));
    }
    let paragraphs = match path.extension().and_then(|ending| ending.to_str()) {
        Some("md") => paragraphs(fs::read_to_string(path)?.lines().map(Some)),
        Some("rs") => paragraphs(fs::read_to_string(path)?.lines().map(comment)),
        _ => return Ok(()),
    };
    documents.extend(paragraphs.into_iter().filter(|paragraph| paragraph.len() >= SHORTEST));
    Ok(())
}

/// What a line of a source documents.
fn comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("//!").or_else(|| line.strip_prefix("///")).map(|text| text.strip_prefix(' ').unwrap_or(text))
}

/// Lines end to end, up to the next that is empty or no text at all.
fn paragraphs<'a>(lines: impl Iterator<Item = Option<&'a str>>) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in lines {
        match line {
            Some(line) if !line.trim().is_empty() => paragraphs.last_mut().expect("never empty").extend([line, "\n"]),
            _ => paragraphs.push(String::new()),
        }
    }
    paragraphs
}

/// One column `tokens`, a list of the document's bytes; as `list<int32>`, which is what tokenizers leave.
fn to_parquet(documents: &[(usize, String)], path: PathBuf) -> Result<PathBuf> {
    let lists = documents.iter().map(|(_, text)| Some(text.bytes().map(|byte| Some(i32::from(byte)))));
    let tokens = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
    let rows = RecordBatch::try_from_iter([("tokens", Arc::new(tokens) as _)])?;
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(ROW_GROUP)).build();
    let mut writer = ArrowWriter::try_new(File::create(&path)?, rows.schema(), Some(properties))?;
    writer.write(&rows)?;
    writer.close()?;
    Ok(path)
}
