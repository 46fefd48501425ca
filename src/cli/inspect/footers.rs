//! The contents of the footers of Parquet files.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use parquet::basic::Compression;

use super::Footers;
use crate::cli::opened::is_damage;
use crate::cli::shards::Shards;
use crate::cli::terminal::{Terminal, Unit};
use crate::error::{Error, Result};
use crate::source::parquet::read_footer;

/// The number of footers that are read at the same time.
const READING: usize = 16;

/// Reads the footer of each file. Returns a summary of the footers, and the number of rows in each file.
pub(super) fn read(shards: &Shards, errors: &mut Vec<Error>, terminal: &Terminal) -> Result<(Footers, Vec<u64>)> {
    let bar = terminal.progress("footers", shards.objects.len() as u64, Unit::Things);
    let (store, objects, counting) = (shards.store.clone(), shards.objects.clone(), bar.clone());
    let found: Vec<_> = shards.io.wait(async move {
        let read = |object: crate::store::Object| {
            let (store, bar) = (store.clone(), counting.clone());
            async move {
                let footer = read_footer(&store, &object).await;
                bar.inc(1);
                // Only the numbers are kept: footers are large.
                footer.map(|footer| of(footer.metadata())).map_err(|e| e.url(object.url.clone()).stage("footer"))
            }
        };
        Ok(stream::iter(objects).map(read).buffered(READING).collect().await)
    })?;
    bar.finish_and_clear();
    let (mut all, mut counts, mut codecs) = (Footers::default(), Vec::new(), BTreeSet::new());
    for found in found {
        match found {
            Ok((footers, rows)) => {
                all.row_groups += footers.row_groups;
                all.decompressed_bytes += footers.decompressed_bytes;
                all.indexed += u64::from(footers.page_index);
                codecs.extend(footers.codecs);
                counts.push(rows);
            }
            Err(error) if is_damage(&error) => {
                errors.push(error);
                counts.push(0);
            }
            Err(error) => return Err(error),
        }
    }
    all.page_index = all.indexed == counts.len() as u64;
    all.codecs = codecs.into_iter().collect();
    Ok((all, counts))
}

fn of(metadata: &parquet::file::metadata::ParquetMetaData) -> (Footers, u64) {
    let groups = metadata.row_groups();
    let columns = || groups.iter().flat_map(|group| group.columns());
    let codecs: BTreeSet<_> = columns().map(|column| codec(column.compression())).collect();
    let footers = Footers {
        row_groups: groups.len() as u64,
        codecs: codecs.into_iter().collect(),
        page_index: columns().all(|column| column.offset_index_offset().is_some()) && !groups.is_empty(),
        indexed: 0,
        decompressed_bytes: groups.iter().map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum(),
    };
    (footers, groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum())
}

fn codec(compression: Compression) -> &'static str {
    match compression {
        Compression::UNCOMPRESSED => "none",
        Compression::SNAPPY => "snappy",
        Compression::GZIP(_) => "gzip",
        Compression::LZO => "lzo",
        Compression::BROTLI(_) => "brotli",
        Compression::LZ4 => "lz4_hadoop",
        Compression::ZSTD(_) => "zstd",
        Compression::LZ4_RAW => "lz4",
    }
}
