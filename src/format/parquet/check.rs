//! Decodes a file in memory, with the direct decoders or without: for tests and fuzzing.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::ArrayRef;
use bytes::Bytes;
use parquet::basic::CompressionCodec;

use super::{Decompressor, Fetched, Footer, FooterReader, Part, Progress, Projection, cut, decode, ranges};
use crate::error::Result;

/// A Parquet file whose footer has been read.
#[derive(Debug)]
pub struct Opened {
    pub(super) footer: Footer,
    file: Bytes,
}

impl Opened {
    /// Reads the footer and the places of pages, in as many steps as the reader needs.
    pub fn new(file: Bytes) -> Result<Self> {
        let length = file.len() as u64;
        let finish = |mut reader: FooterReader| loop {
            match reader.next()? {
                Progress::Done(metadata) => return Ok(metadata),
                Progress::Wants(ranges) => {
                    for range in ranges {
                        let bytes = file.slice(range.start as usize..range.end as usize);
                        reader.supply(range, bytes)?;
                    }
                }
            }
        };
        let metadata = finish(FooterReader::new(length)?)?;
        // As the loader, which looks at footers before it asks for more.
        Footer::new(Arc::new((*metadata).clone()), length)?;
        let metadata = finish(FooterReader::of_page_index(length, &metadata, true)?)?;
        Ok(Self { footer: Footer::new(Arc::new(*metadata), length)?, file })
    }

    /// Scans every row group for its pages, as the loader does for large row groups.
    pub fn scanned(self) -> Result<Self> {
        let mut footer = self.footer.clone();
        for group in 0..self.groups().len() {
            for leaf in Projection::new(&footer, None).leaves() {
                let Some(mut scan) = super::ColumnScan::new(&footer, group, leaf) else { continue };
                while let Some(range) = scan.wants() {
                    scan.supply(&self.file.slice(range.start as usize..range.end as usize))?;
                }
                footer = footer.with_pages([((group, leaf), scan.finish()?)]);
            }
        }
        Ok(Self { footer, ..self })
    }

    /// Returns the number of rows of each row group.
    pub fn groups(&self) -> Vec<u64> {
        self.footer.metadata().row_groups().iter().map(|group| group.num_rows() as u64).collect()
    }

    /// Returns the bytes that some rows take, as the loader estimates them.
    pub fn bytes(&self, group: usize, rows: Range<u64>) -> u64 {
        let (stored, decoded) = Projection::new(&self.footer, None).bytes(&self.footer, &Part { group, rows });
        stored.saturating_add(decoded)
    }

    /// Returns the bytes that decompressors of a row group may allocate for themselves, however small its pages are.
    pub fn window_bytes(&self, group: usize) -> usize {
        let columns = self.footer.metadata().row_group(group).columns();
        let brotli = columns.iter().any(|column| column.compression_codec() == CompressionCodec::BROTLI);
        if brotli { 17 << 20 } else { 0 }
    }

    /// Cuts a row group into about `parts` parts.
    pub fn cut(&self, group: usize, parts: u64) -> Vec<Range<u64>> {
        let rows = 0..self.groups()[group];
        cut(&self.footer, &Projection::new(&self.footer, None), &Part { group, rows }, parts)
    }

    /// Decodes rows of the columns with these dotted names (or of all columns), given only the bytes that the decoder asks for. With `direct`,
    /// numbers and lists of numbers are decoded straight from their pages, as in the loader; without it, the `parquet` crate decodes everything.
    pub fn decode(
        &self,
        group: usize,
        rows: Range<u64>,
        names: Option<&[&str]>,
        direct: bool,
    ) -> Result<Vec<ArrayRef>> {
        let mut projection = Projection::new(&self.footer, names);
        if !direct {
            projection.leave_to_the_crate();
        }
        let part = Part { group, rows };
        let pieces = ranges(&self.footer, &projection, &part).into_iter();
        let pieces =
            pieces.map(|range| (range.start, self.file.slice(range.start as usize..range.end as usize))).collect();
        let fetched = Fetched::new(pieces, self.file.len() as u64);
        decode(&self.footer, &projection, &part, &fetched, &mut Decompressor::default())
    }
}
