//! Arrow IPC files and streams, against Arrow's own readers.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::{self, MessageHeader};
use bytes::Bytes;
use forebay::ArrowIpc;
use forebay::source::Source;

use crate::shard::{self, MAX_BYTES};

/// The memory that a shard and its decompressed buffers may take in addition to what is delivered.
const MOST_BYTES: usize = 8 * MAX_BYTES;

/// The memory that LZ4 takes in addition: a frame states how large its blocks are, 8 MiB at most, and one block is held both as stored and as
/// decompressed.
const LZ4_BYTES: usize = 17 << 20;

fn most_bytes(shard: &[u8]) -> usize {
    let has_lz4 = shard.windows(4).any(|bytes| bytes == b"\x04\x22\x4d\x18");
    if has_lz4 { MOST_BYTES + LZ4_BYTES } else { MOST_BYTES }
}

/// A shard is refused, or its batches are refused or have the rows that the shard declares, in bounded memory. The values are those that Arrow's own
/// reader finds, if that can be used, and a row is bad exactly if one of them is null or too large. A column read alone is the same as among the
/// others.
///
/// Byte 0 chooses that column; the rest is the shard.
pub fn ipc(data: &[u8]) {
    crate::quietly(|| {
        let ([chosen], rest) = crate::split::<1>(data);
        let bytes = Bytes::copy_from_slice(rest);
        let (most, most_of_block) = (MOST_BYTES + 64 * bytes.len(), most_bytes(&bytes));
        let Ok(source) = shard::open(bytes.clone(), ArrowIpc::new().into(), shard::all(), most) else { return };
        against_arrow(&*source, &bytes);
        let columns = source.columns();
        let column = usize::from(chosen) % columns.len();
        let alone = shard::columns(&columns[column..=column]);
        let alone = shard::open(bytes, ArrowIpc::new().into(), alone, most).expect("a column of those that were found");
        assert_eq!(alone.catalog().rows(), source.catalog().rows());
        for block in 0..source.catalog().blocks() {
            let Some(Ok(all)) = shard::block(&*source, block, most_of_block) else { continue };
            // Alone it takes less memory than with the others.
            let one = shard::block(&*alone, block, most_of_block).expect("a block that was not too large");
            let one = one.expect("a column of a batch that can be decoded");
            for (all, one) in shard::rows_of(&all).zip(shard::rows_of(&one)) {
                assert!(all.is_none_or(|all| one.is_some_and(|one| one[0] == all[column])));
            }
        }
    });
}

fn against_arrow(source: &dyn Source, shard: &[u8]) {
    let blocks = source.catalog().blocks();
    let batches: Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>> = match trusted_batches(shard) {
        Some(batches) if batches >= blocks.saturating_sub(1) => match shard.starts_with(b"ARROW1") {
            true => match catch_unwind(|| FileReader::try_new(Cursor::new(shard), None)) {
                Ok(Ok(reader)) => Box::new(reader),
                _ => Box::new(std::iter::empty()),
            },
            false => match StreamReader::try_new(Cursor::new(shard), None) {
                Ok(reader) => Box::new(reader),
                Err(_) => Box::new(std::iter::empty()),
            },
        },
        _ => Box::new(std::iter::empty()),
    };
    let mut batches = batches.take(trusted_batches(shard).unwrap_or(0));
    for number in 0..blocks {
        // Arrow's reader is asked for what was found good alone: it may panic at what is not.
        let Some(Ok(decoded)) = shard::block(source, number, most_bytes(shard)) else { return };
        // Behind the batches one bad row stands for what is wrong.
        let Ok(Some(Ok(batch))) = catch_unwind(AssertUnwindSafe(|| batches.next())) else { return };
        assert_eq!(decoded.rows.num_rows(), batch.num_rows(), "rows of block {number}");
        for (row, found) in shard::rows_of(&decoded).enumerate() {
            let columns = source.columns().iter();
            let wanted: Option<Vec<_>> = columns.map(|column| shard::values_of(&batch, column.name(), row)).collect();
            let same = match (&found, &wanted) {
                (Some(found), Some(wanted)) => found.iter().zip(wanted).all(|(a, b)| shard::agree(a, b)),
                (None, None) => true,
                _ => false,
            };
            assert!(same, "row {row} of block {number}: {found:?}, and Arrow reads {wanted:?}");
        }
    }
}

/// Returns how many batches Arrow's reader can be given: it trusts what compressed buffers say about their length, and the content of batches without
/// rows and of dictionaries that nothing needs.
fn trusted_batches(shard: &[u8]) -> Option<usize> {
    let mut batches = 0;
    let mut each = |metadata: &[u8], body: &[u8]| {
        let message = ipc::root_as_message(metadata).ok()?;
        let batch = match message.header_type() {
            MessageHeader::RecordBatch => {
                batches += 1;
                message.header_as_record_batch()?
            }
            MessageHeader::DictionaryBatch => message.header_as_dictionary_batch()?.data()?,
            _ => return Some(()),
        };
        let mut total = 0i64;
        for buffer in batch.buffers()? {
            let start = usize::try_from(buffer.offset()).ok()?;
            let bytes = body.get(start..start.checked_add(usize::try_from(buffer.length()).ok()?)?)?;
            if batch.compression().is_some() && !bytes.is_empty() {
                total = total.checked_add(i64::from_le_bytes(*bytes.first_chunk()?).max(0))?;
            }
        }
        (batch.length() > 0 && total <= MAX_BYTES as i64).then_some(())
    };
    let prefix = |at: usize| {
        let number = |at: usize| Some(u32::from_le_bytes(*shard.get(at..)?.first_chunk()?) as usize);
        let first = number(at)?;
        if first == u32::MAX as usize { Some((at + 8, number(at + 4)?)) } else { Some((at + 4, first)) }
    };
    if shard.starts_with(b"ARROW1") {
        let end = shard.len().checked_sub(10)?;
        let length = u32::from_le_bytes(*shard[end..].first_chunk()?) as usize;
        let footer = ipc::root_as_footer(&shard[end.checked_sub(length)?..end]).ok()?;
        for block in footer.dictionaries().into_iter().flatten().chain(footer.recordBatches().into_iter().flatten()) {
            let (start, length) = prefix(usize::try_from(block.offset()).ok()?)?;
            let body = (block.offset() + i64::from(block.metaDataLength())) as usize;
            each(shard.get(start..start + length)?, shard.get(body..body + block.bodyLength() as usize)?)?;
        }
        return Some(batches);
    }
    let mut at = 0;
    while at < shard.len() {
        let Some((start, length)) = prefix(at) else { break };
        let Some(metadata) = shard.get(start..start + length).filter(|bytes| !bytes.is_empty()) else { break };
        let Ok(message) = ipc::root_as_message(metadata) else { break };
        let body =
            usize::try_from(message.bodyLength()).ok().and_then(|bytes| shard.get(start + length..)?.get(..bytes));
        let Some(body) = body else { break };
        each(metadata, if message.header_type() == MessageHeader::Schema { b"" } else { body })?;
        at = start + length + if message.header_type() == MessageHeader::Schema { 0 } else { body.len() };
    }
    Some(batches)
}
