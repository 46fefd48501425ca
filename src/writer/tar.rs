//! Writes rows as samples of a WebDataset: members that share a key, one per column.
//!
//! A row's members are `KEY.COLUMN`. The key is the value of the column `__key__` if there is one, otherwise the row's number. Byte strings are
//! stored unchanged, numbers in decimal, lists as JSON. Headers hold no time and no owner, so equal rows make equal files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use arrow::array::RecordBatch;
use tar::{Builder, EntryType, Header};

use super::cells::{Cells, refuse, unfit};
use super::encode::{Data, Encode, Piece, Shard, Written};
use super::json;
use super::output::Packing;
use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Shape};

/// The column that keys come from.
const KEY: &str = "__key__";

/// Two blocks of zeros end an archive.
const TRAILER: &[u8] = &[0; 1024];

pub(super) struct Tar {
    columns: Vec<Column>,
    key: Option<usize>,
    packing: Packing,
}

impl Tar {
    /// # Errors
    /// [`ErrorKind::Schema`] for columns whose names cannot be extensions, and for keys that are not text.
    pub(super) fn new(columns: &[Column], packing: Packing) -> Result<Self> {
        let is_key = |column: &Column| column.name().as_ref() == KEY;
        let cannot: Vec<&str> = columns.iter().map(|c| c.name().as_ref()).filter(|name| !is_extension(name)).collect();
        if !cannot.is_empty() {
            let new = |name: &str| {
                let plain = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"_-".contains(c), ".");
                Some(plain.trim_matches('.').to_owned()).filter(|new| !new.is_empty()).unwrap_or("unnamed".into())
            };
            let pairs: Vec<String> = cannot.iter().map(|name| format!("{name}={}", new(name))).collect();
            refuse(columns, "an archive", |column| {
                (!is_extension(column.name())).then(|| {
                    let what = "member with this name as its extension".to_owned();
                    (what, format!("rename it: --rename {}", pairs.join(",")))
                })
            })?;
        }
        let mut extensions = HashMap::new();
        for column in columns {
            if let Some(other) = extensions.insert(column.name().to_ascii_lowercase(), column.name()) {
                let (a, b) = (other, column.name());
                return Err(Error::new(ErrorKind::Schema, format!("`{a}` and `{b}` are one extension, in lower case"))
                    .column(b.clone())
                    .stage("write")
                    .advice(format!("rename one of them: --rename {b}={b}_2")));
            }
        }
        let key = columns.iter().position(is_key);
        if let Some(column) = key.map(|key| &columns[key])
            && (column.dtype() != Dtype::Bytes || *column.shape() != Shape::Scalar)
        {
            return Err(Error::new(ErrorKind::Schema, format!("keys are text, and this is {column}"))
                .column(KEY)
                .advice("leave it out, and rows are numbered"));
        }
        if columns.len() == usize::from(key.is_some()) {
            return Err(Error::new(ErrorKind::Schema, "a sample needs a column beside its key"));
        }
        Ok(Self { columns: columns.to_vec(), key, packing })
    }
}

/// Returns whether a member can be called `key.NAME`, and be found again by that name.
fn is_extension(name: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && c != '/';
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.ends_with('.')
        && name.chars().all(is_plain)
}

/// Returns whether a key can be the beginning of members' names: a path that stays in its folder, without a dot in its last component.
fn is_key(key: &str) -> bool {
    let parts = || key.split('/');
    let last_has_dot = parts().next_back().is_some_and(|last| last.contains('.'));
    !last_has_dot && !key.contains('\0') && parts().all(|part| !part.is_empty() && part != ".." && part != ".")
}

impl Encode for Tar {
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece> {
        let columns: Vec<Cells<'_>> =
            self.columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        let mut builder = Builder::new(Vec::new());
        let (mut ends, mut text) = (Vec::with_capacity(rows.num_rows()), String::new());
        let mut keys = Vec::new();
        for row in 0..rows.num_rows() {
            let number = first + row as u64;
            let key = match self.key.map(|key| (&columns[key], columns[key].values.bytes(row).unwrap_or_default())) {
                None => format!("{number:09}"),
                Some((cells, key)) => match std::str::from_utf8(key).ok().filter(|key| is_key(key)) {
                    Some(key) => key.to_owned(),
                    None => {
                        let what = format!("`{}` is no key", String::from_utf8_lossy(&key[..key.len().min(100)]));
                        return Err(unfit(cells.column, number, what).advice(
                            "keys are names without a dot, or paths; leave the column out, and rows are numbered",
                        ));
                    }
                },
            };
            for (_, cells) in columns.iter().enumerate().filter(|(number, _)| self.key != Some(*number)) {
                text.clear();
                let start = cells.of(row).start;
                let content: &[u8] = match cells.is_scalar() {
                    true => match cells.values.bytes(start) {
                        Some(bytes) => bytes,
                        None => {
                            cells.values.number(start, &mut text);
                            text.as_bytes()
                        }
                    },
                    false => {
                        json::value(cells, row, &mut text).ok_or_else(|| {
                            let what = "lists are stored as JSON, which has neither NaN nor infinite numbers";
                            unfit(cells.column, number, what).advice("write Parquet, or leave the column out")
                        })?;
                        text.as_bytes()
                    }
                };
                let mut header = Header::new_gnu();
                header.set_entry_type(EntryType::Regular);
                header.set_mode(0o644);
                header.set_size(content.len() as u64);
                header.set_mtime(0);
                header.set_uid(0);
                header.set_gid(0);
                let path = format!("{key}.{}", cells.column.name());
                builder
                    .append_data(&mut header, path, content)
                    .map_err(|e| unfit(cells.column, number, "it cannot be a member").because(e))?;
            }
            ends.push(builder.get_ref().len() as u64);
            if self.key.is_some() {
                keys.push((number, key));
            }
        }
        let whole = builder
            .into_inner()
            .map_err(|e| Error::new(ErrorKind::Memory, "the members cannot be put together").because(e))?;
        // Without the end of an archive, which comes once.
        let bytes = bytes::Bytes::from(whole).slice(..ends.last().copied().unwrap_or(0) as usize);
        let data = if self.key.is_some() { Data::Keyed(bytes, keys) } else { Data::Bytes(bytes) };
        Ok(Piece { data, ends })
    }

    fn begin(&self, folder: &Path, name: &str) -> Result<Box<dyn Shard>> {
        let stream = Stream::begin(folder, name, self.packing, TRAILER, false)?;
        Ok(match self.key {
            Some(key) => Box::new(Archive { stream, column: self.columns[key].clone(), keys: HashSet::new() }),
            None => Box::new(stream),
        })
    }

    fn frame_bytes(&self) -> u64 {
        TRAILER.len() as u64
    }
}

/// An archive whose keys come from a column. Each key may occur once, otherwise two members would have the same name.
struct Archive {
    stream: Stream,
    column: Column,
    keys: HashSet<String>,
}

impl Shard for Archive {
    fn append(&mut self, piece: Piece) -> Result<()> {
        let Data::Keyed(bytes, keys) = piece.data else { unreachable!("encoded with keys") };
        for (number, key) in keys {
            if let Some(key) = self.keys.replace(key) {
                return Err(unfit(
                    &self.column,
                    number,
                    format!("an earlier row of the archive has the key `{key}` too"),
                )
                .advice("make keys different; without the column rows are numbered"));
            }
        }
        self.stream.append(Piece { data: Data::Bytes(bytes), ends: piece.ends })
    }

    fn finish(self: Box<Self>) -> Result<Written> {
        Box::new(self.stream).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_or_split_elsewhere_are_none() {
        for name in ["jpg", "seg.png", "class_id", "ünder"] {
            assert!(is_extension(name), "{name}");
        }
        for name in ["", "a/b", ".a", "a.", "a\n"] {
            assert!(!is_extension(name), "{name}");
        }
        for key in ["000", "train/n01/x_1", "a.d/b"] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "/a", "../a", "a/./b", "a.b", "a/", "a\0"] {
            assert!(!is_key(key), "{key:?}");
        }
    }
}
