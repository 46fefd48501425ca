//! Finds the pages of a column in files without a page index, by hopping from header to header.
//!
//! For numbers and texts, and for pages of the second version, the header says how many rows there are. For a page of lists of the first version, the
//! levels have to be read; such a page may begin within a row.

use std::ops::Range;

use bytes::Bytes;
use parquet::basic::CompressionCodec as Codec;

use super::footer::{Footer, PageRows};
use super::hybrid::{Run, Runs, unpack};
use super::numbers::levels_of;
use super::page::{Decompressor, Encoding, PageHeader, PageKind, Pages};
use crate::error::{Error, Result};

/// The number of bytes first read to find a header; statistics can make a header longer.
const HEADER_BYTES: u64 = 4 << 10;

/// The longest header that is accepted.
const LONGEST_HEADER: u64 = 16 << 20;

/// The scan of a column of a row group.
pub(crate) struct ColumnScan {
    chunk: Range<u64>,
    rows: u64,
    /// The bytes to which all its pages may decompress.
    bytes: u64,
    codec: Codec,
    is_list: bool,
    at: u64,
    wanted: u64,
    /// The row with which the next page begins, if it begins with one.
    row: u64,
    pages: Vec<PageRows>,
    decompressor: Decompressor,
}

impl ColumnScan {
    /// Creates a scan; `None` for columns that cannot be scanned: lists of lists.
    pub(crate) fn new(footer: &Footer, group: usize, leaf: usize) -> Option<Self> {
        let metadata = footer.metadata().row_group(group);
        let column = metadata.column(leaf);
        let depth = column.column_descr().max_rep_level();
        let chunk = footer.chunk_range(group, leaf);
        (depth <= 1).then(|| Self {
            at: chunk.start,
            chunk,
            rows: metadata.num_rows() as u64,
            bytes: column.uncompressed_size() as u64,
            codec: column.compression_codec(),
            is_list: depth == 1,
            wanted: HEADER_BYTES,
            row: 0,
            pages: Vec::new(),
            decompressor: Decompressor::default(),
        })
    }

    /// Returns the bytes of the file that are needed next; `None` when all pages have been found.
    pub(crate) fn wants(&self) -> Option<Range<u64>> {
        (self.at < self.chunk.end).then(|| self.at..self.chunk.end.min(self.at + self.wanted))
    }

    /// Takes the bytes that were asked for.
    ///
    /// # Errors
    /// Damage, with its offset in the file.
    pub(crate) fn supply(&mut self, data: &Bytes) -> Result<()> {
        let at = self.at;
        self.take(data).map_err(|error| error.byte_offset(at))
    }

    fn take(&mut self, data: &Bytes) -> Result<()> {
        let left = self.chunk.end - self.at;
        let (header, length) = match PageHeader::read(data) {
            Ok(read) => read,
            Err(error) if data.len() as u64 >= left || self.wanted >= LONGEST_HEADER => return Err(error),
            // It may go on behind what is there.
            Err(_) => {
                self.wanted *= 4;
                return Ok(());
            }
        };
        let page = length as u64 + u64::from(header.stored_bytes);
        if page > left {
            return Err(Error::corrupt(format!("a page of {page} bytes, and {left} are left of its column")));
        }
        let rows = match header.kind {
            PageKind::DataV2 { rows, .. } => Some((rows.into(), false)),
            PageKind::Data if self.is_list => {
                if (data.len() as u64) < page {
                    self.wanted = page;
                    return Ok(());
                }
                Some(self.count_lists(data.slice(..page as usize))?)
            }
            PageKind::Data => Some((header.values.into(), false)),
            PageKind::Dictionary | PageKind::Other => None,
        };
        let place = self.at..self.at + page;
        (self.at, self.wanted) = (place.end, HEADER_BYTES);
        let Some((rows, begins_within)) = rows else { return Ok(()) };
        let start = if begins_within { self.row.checked_sub(1) } else { Some(self.row) };
        let start = start.ok_or_else(|| Error::corrupt("a column begins in the middle of a list"))?;
        self.row += rows;
        self.pages.push(PageRows { rows: start..self.row, begins_within, place });
        Ok(())
    }

    /// Returns how many lists begin on a page of the first version, and whether the page begins within one.
    fn count_lists(&mut self, page: Bytes) -> Result<(u64, bool)> {
        let length = page.len();
        let Some(stored) = Pages::new(page, 0..length, self.bytes).next()? else { return Ok((0, false)) };
        if stored.header.levels != Encoding::Rle {
            return Err(Error::corrupt("levels that are not run-length encoded"));
        }
        let values = stored.header.values as usize;
        let opened = self.decompressor.open(stored, self.codec)?;
        let (repetition, _) = levels_of(opened.data, 1)?;
        let mut runs = Runs::new(repetition, 1, values)?;
        let (mut lists, mut first) = (0u64, None);
        let mut unpacked = Vec::new();
        while let Some(run) = runs.next()? {
            match run {
                Run::Repeated { value, count } => {
                    first.get_or_insert(value);
                    lists += if value == 0 { count as u64 } else { 0 };
                }
                Run::Packed { bytes, count } => {
                    unpacked.clear();
                    unpacked.resize(count, 0);
                    unpack(bytes, 1, &mut unpacked);
                    first.get_or_insert(unpacked[0]);
                    lists += unpacked.iter().filter(|&&level| level == 0).count() as u64;
                }
            }
        }
        Ok((lists, first == Some(1)))
    }

    /// Returns the pages that were found.
    ///
    /// # Errors
    /// If the pages do not hold the number of rows that the footer states.
    pub(crate) fn finish(self) -> Result<Vec<PageRows>> {
        if self.row != self.rows {
            return Err(Error::corrupt(format!("pages of {} rows, where the footer says {}", self.row, self.rows))
                .byte_offset(self.chunk.start));
        }
        Ok(self.pages)
    }
}
