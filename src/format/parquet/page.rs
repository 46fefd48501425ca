//! Pages of a column chunk: headers, checksums, decompression. Sizes that headers declare are checked against the chunk before memory is allocated.
//!
//! Source: Apache Parquet, "File Format" and `parquet.thrift`.

use std::io::Read as _;
use std::ops::Range;

use bytes::Bytes;
use parquet::basic::CompressionCodec as Codec;

use super::thrift::{Kind, Reader};
use crate::error::{Error, ErrorKind, Result};

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    Data,
    DataV2 {
        rows: u32,
        nulls: u32,
        definition_bytes: u32,
        repetition_bytes: u32,
        is_compressed: bool,
    },
    Dictionary,
    /// Index pages, and page types that later versions may add: skipped.
    Other,
}

/// How values are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    /// Indexes into the dictionary page.
    Dictionary,
    Rle,
    BitPacked,
    /// Byte strings that share prefixes with the string before them.
    DeltaByteArray,
    /// Byte strings, preceded by their lengths.
    DeltaLengths,
    Other(i32),
}

/// The header of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageHeader {
    pub(super) kind: PageKind,
    pub(super) values: u32,
    pub(super) encoding: Encoding,
    /// How levels are encoded in pages of the first version.
    pub(super) levels: Encoding,
    pub(super) stored_bytes: u32,
    pub(super) bytes: u32,
    crc: Option<u32>,
}

impl PageHeader {
    /// Reads a header from the front of `data`; also returns the header's length.
    pub(super) fn read(data: &[u8]) -> Result<(Self, usize)> {
        let mut reader = Reader::new(data);
        let (mut kind, mut sizes, mut crc) = (None, [None; 2], None);
        let mut inner: Option<(i64, [i64; 8])> = None;
        let mut last = 0;
        while let Some((field, wire)) = reader.field(&mut last)? {
            match (field, wire) {
                (1, Kind::Int) => kind = Some(reader.int()?),
                (2 | 3, Kind::Int) => sizes[field as usize - 2] = Some(size(reader.int()?)?),
                (4, Kind::Int) => crc = Some(reader.int()? as u32),
                (5, Kind::Struct) => inner = Some((field, numbers(&mut reader, 4)?)),
                (7, Kind::Struct) => inner = Some((field, numbers(&mut reader, 2)?)),
                (8, Kind::Struct) => inner = Some((field, numbers(&mut reader, 6)?)),
                (1..=5 | 7 | 8, wire) => return Err(of_another_kind(field, wire)),
                (_, wire) => reader.skip(wire)?,
            }
        }
        let (Some(kind), [Some(bytes), Some(stored_bytes)]) = (kind, sizes) else {
            return Err(Error::corrupt("a page header lacks its type or sizes"));
        };
        let (field, numbers) = inner.unwrap_or((0, [0; 8]));
        let (kind, values, encoding, levels) = match (kind, field) {
            (0, 5) => (PageKind::Data, numbers[0], numbers[1], numbers[2].max(numbers[3])),
            (2, 7) => (PageKind::Dictionary, numbers[0], numbers[1], 3),
            (3, 8) => {
                let [_, nulls, rows, _, definition_bytes, repetition_bytes, uncompressed, _] = numbers;
                let kind = PageKind::DataV2 {
                    rows: size(rows)?,
                    nulls: size(nulls)?,
                    definition_bytes: size(definition_bytes)?,
                    repetition_bytes: size(repetition_bytes)?,
                    is_compressed: uncompressed == 0,
                };
                (kind, numbers[0], numbers[3], 3)
            }
            (0 | 2 | 3, _) => return Err(Error::corrupt("a page header lacks the part that its type has")),
            _ => (PageKind::Other, 0, 0, 3),
        };
        let header = Self {
            kind,
            values: size(values)?,
            encoding: encoding_of(encoding),
            levels: encoding_of(levels),
            stored_bytes,
            bytes,
            crc,
        };
        Ok((header, reader.position()))
    }

    /// Returns whether it is a page of values.
    pub(super) fn is_data(&self) -> bool {
        matches!(self.kind, PageKind::Data | PageKind::DataV2 { .. })
    }
}

fn size(value: i64) -> Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|&size| size <= i32::MAX as u32)
        .ok_or_else(|| Error::corrupt(format!("a page header declares a size of {value}")))
}

fn of_another_kind(field: i64, wire: Kind) -> Error {
    Error::corrupt(format!("field {field} of a page header is a {wire:?}"))
}

/// Reads the first eight fields of a structure, the first `ints` of which are integers. A boolean that is false gives 1 (the only boolean of interest
/// is true unless stated otherwise).
fn numbers(reader: &mut Reader<'_>, ints: i64) -> Result<[i64; 8]> {
    let (mut numbers, mut last) = ([0; 8], 0);
    while let Some((field, wire)) = reader.field(&mut last)? {
        let slot = usize::try_from(field - 1).ok().and_then(|at| numbers.get_mut(at));
        match (slot, wire) {
            (Some(slot), Kind::Int) => *slot = reader.int()?,
            // Others read on as if it were one.
            (Some(_), wire) if field <= ints => return Err(of_another_kind(field, wire)),
            (Some(slot), Kind::False) => *slot = 1,
            (_, wire) => reader.skip(wire)?,
        }
    }
    Ok(numbers)
}

fn encoding_of(code: i64) -> Encoding {
    match code {
        0 => Encoding::Plain,
        2 | 8 => Encoding::Dictionary,
        3 => Encoding::Rle,
        4 => Encoding::BitPacked,
        6 => Encoding::DeltaLengths,
        7 => Encoding::DeltaByteArray,
        other => Encoding::Other(other as i32),
    }
}

/// A page as it is stored.
#[derive(Clone, Debug)]
pub(super) struct StoredPage {
    pub(super) header: PageHeader,
    /// Offset of its header from the beginning of the chunk.
    pub(super) offset: usize,
    body: Bytes,
}

impl StoredPage {
    /// Refuses content for which a decompressor would allocate memory of its own without bound: with Brotli's large windows, which are not part of
    /// its standard, a few bytes can ask for 1 GiB. Within the standard, the most is 16 MiB.
    ///
    /// Source: RFC 7932, section 9.1, where the bits 0010001 are reserved.
    pub(super) fn check_window(&self, codec: Codec) -> Result<()> {
        let levels = match self.header.kind {
            PageKind::DataV2 { is_compressed: false, .. } => return Ok(()),
            PageKind::DataV2 { definition_bytes, repetition_bytes, .. } => {
                definition_bytes as usize + repetition_bytes as usize
            }
            _ => 0,
        };
        match self.body.get(levels) {
            Some(first) if codec == Codec::BROTLI && first & 0x7f == 0x11 => {
                Err(Error::corrupt("a page does not decompress: it has a large window").byte_offset(self.offset as u64))
            }
            _ => Ok(()),
        }
    }
}

/// Iterates over the pages in some bytes of a column chunk, which begin with a header.
pub(super) struct Pages {
    data: Bytes,
    at: usize,
    end: usize,
    /// Bytes that all its pages may decompress to.
    left: u64,
}

impl Pages {
    /// Creates an iterator over the pages within `range` of `data`; together they may decompress to `bytes`.
    pub(super) fn new(data: Bytes, range: Range<usize>, bytes: u64) -> Self {
        Self { end: range.end.min(data.len()), data, at: range.start, left: bytes }
    }

    /// Returns the next page; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<StoredPage>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let offset = self.at;
        let located = |error: Error| error.byte_offset(offset as u64);
        let (header, length) = PageHeader::read(&self.data[self.at..self.end]).map_err(located)?;
        let start = self.at + length;
        let end = start + header.stored_bytes as usize;
        if end > self.end {
            let there = self.end - start;
            let message = format!("a page of {} bytes, and {there} are left of its column", header.stored_bytes);
            return Err(located(Error::corrupt(message)));
        }
        // The header counts towards a chunk's size as well, so pages never add up to more.
        self.left = self.left.checked_sub(u64::from(header.bytes)).ok_or_else(|| {
            located(Error::corrupt(format!(
                "a page says that it decompresses to {} bytes, more than its column's footer allows",
                header.bytes
            )))
        })?;
        self.at = end;
        Ok(Some(StoredPage { header, offset, body: self.data.slice(start..end) }))
    }
}

/// A page's content, decompressed: levels and values.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) header: PageHeader,
    /// The repetition levels of a page of the second version, which come first and are not compressed.
    pub(super) repetition: &'a [u8],
    pub(super) definition: &'a [u8],
    /// In pages of the first version, levels and then values; otherwise values alone.
    pub(super) data: &'a [u8],
}

/// Decompresses pages, and keeps codecs and memory from one page to the next. Allocating fresh memory for each page took a fifth of the time of
/// decoding 40 columns of numbers.
#[derive(Default)]
pub(crate) struct Decompressor {
    codecs: Codecs,
    /// The current page, as stored and as decompressed.
    stored: Bytes,
    scratch: Vec<u8>,
}

#[derive(Default)]
struct Codecs {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    snappy: Option<snap::raw::Decoder>,
}

/// The most memory that is kept for the next page: pages are seldom larger.
const KEPT_BYTES: usize = 8 << 20;

impl Decompressor {
    /// Decompresses a page's content.
    ///
    /// # Errors
    /// A wrong checksum, or content that differs from what the header declares.
    pub(super) fn open(&mut self, page: StoredPage, codec: Codec) -> Result<Page<'_>> {
        page.check_window(codec)?;
        let StoredPage { header, offset, body } = page;
        let opened = self.content(&header, body, codec);
        opened.map_err(|error| error.byte_offset(offset as u64))
    }

    fn content(&mut self, header: &PageHeader, body: Bytes, codec: Codec) -> Result<Page<'_>> {
        if let Some(stored) = header.crc {
            let computed = crc32fast::hash(&body);
            if computed != stored {
                return Err(Error::corrupt(format!("page checksum {computed:08x}, stored {stored:08x}"))
                    .advice("fetch or write the shard again"));
            }
        }
        self.stored = body;
        let (mut levels, mut is_compressed) = ([&[][..]; 2], codec != Codec::UNCOMPRESSED);
        let mut rest: &[u8] = &self.stored;
        let mut bytes = header.bytes as usize;
        if let PageKind::DataV2 { definition_bytes, repetition_bytes, is_compressed: stated, .. } = header.kind {
            is_compressed &= stated;
            for (level, length) in levels.iter_mut().zip([repetition_bytes, definition_bytes]) {
                let length = length as usize;
                if length > rest.len() || length > bytes {
                    return Err(Error::corrupt(format!("levels of {length} bytes, and {} are there", rest.len())));
                }
                (*level, rest) = rest.split_at(length);
                bytes -= length;
            }
        }
        let data = match is_compressed {
            // A page of nulls alone may have nothing to decompress.
            true if rest.is_empty() && bytes == 0 => rest,
            true => {
                if self.scratch.capacity() > KEPT_BYTES {
                    self.scratch = Vec::new();
                }
                self.codecs.decompress(rest, bytes, codec, &mut self.scratch)?;
                &self.scratch
            }
            false if rest.len() == bytes => rest,
            false => {
                return Err(Error::corrupt(format!("an uncompressed page of {} bytes declares {bytes}", rest.len())));
            }
        };
        let [repetition, definition] = levels;
        Ok(Page { header: *header, repetition, definition, data })
    }
}

impl Codecs {
    /// Replaces `data` with exactly `bytes` decompressed bytes.
    fn decompress(&mut self, stored: &[u8], bytes: usize, codec: Codec, data: &mut Vec<u8>) -> Result<()> {
        let wrong = |what: String| Error::corrupt(format!("a page does not decompress: {what}"));
        let found =
            match codec {
                Codec::ZSTD => {
                    let zstd = match &mut self.zstd {
                        Some(zstd) => zstd,
                        none => none.insert(zstd::bulk::Decompressor::new().map_err(|e| wrong(e.to_string()))?),
                    };
                    data.clear();
                    data.reserve(bytes);
                    zstd.decompress_to_buffer(stored, data).map_err(|e| wrong(e.to_string()))?
                }
                Codec::SNAPPY => {
                    let length = snap::raw::decompress_len(stored).map_err(|e| wrong(e.to_string()))?;
                    if length == bytes {
                        data.resize(bytes, 0);
                        let snappy = self.snappy.get_or_insert_with(snap::raw::Decoder::new);
                        snappy.decompress(stored, data).map_err(|e| wrong(e.to_string()))?
                    } else {
                        length
                    }
                }
                Codec::GZIP => read_up_to(flate2::read::MultiGzDecoder::new(stored), bytes, data)
                    .map_err(|e| wrong(e.to_string()))?,
                Codec::BROTLI => read_up_to(brotli::Decompressor::new(stored, 4096), bytes, data)
                    .map_err(|e| wrong(e.to_string()))?,
                Codec::LZ4_RAW => {
                    data.resize(bytes, 0);
                    lz4_flex::block::decompress_into(stored, data).map_err(|e| wrong(e.to_string()))?
                }
                Codec::LZ4 => {
                    data.resize(bytes, 0);
                    lz4_hadoop(stored, data).map_err(wrong)?
                }
                other => {
                    return Err(Error::new(
                        ErrorKind::Schema,
                        format!("compressed with {other:?}, which is not supported"),
                    )
                    .advice("write the file with zstd, snappy, gzip, lz4 or brotli"));
                }
            };
        if found != bytes {
            return Err(wrong(format!("it gives other than the {bytes} bytes that its header says")));
        }
        Ok(())
    }
}

/// Reads to the end, but at most one byte more than expected.
fn read_up_to(reader: impl std::io::Read, bytes: usize, data: &mut Vec<u8>) -> std::io::Result<usize> {
    data.clear();
    data.try_reserve(bytes + 1)?;
    reader.take(bytes as u64 + 1).read_to_end(data)
}

/// Decompresses the codec of old files: Hadoop's frames with big-endian lengths, LZ4's frame format, or a bare block.
fn lz4_hadoop(stored: &[u8], out: &mut [u8]) -> Result<usize, String> {
    fn framed(mut stored: &[u8], out: &mut [u8]) -> Option<usize> {
        let mut at = 0usize;
        while !stored.is_empty() {
            let length = |at: usize| Some(u32::from_be_bytes(stored.get(at..at + 4)?.try_into().ok()?) as usize);
            let (bytes, compressed) = (length(0)?, length(4)?);
            let block = stored.get(8..8 + compressed)?;
            let slot = out.get_mut(at..at.checked_add(bytes)?)?;
            if lz4_flex::block::decompress_into(block, slot).ok()? != bytes {
                return None;
            }
            at += bytes;
            stored = &stored[8 + compressed..];
        }
        Some(at)
    }
    fn frame_format(stored: &[u8], out: &mut [u8]) -> Option<usize> {
        let mut decoder = lz4_flex::frame::FrameDecoder::new(stored);
        let mut at = 0;
        loop {
            match decoder.read(&mut out[at..]).ok()? {
                0 => return Some(at),
                read => at += read,
            }
        }
    }
    framed(stored, out)
        .or_else(|| frame_format(stored, out))
        .or_else(|| lz4_flex::block::decompress_into(stored, out).ok())
        .ok_or_else(|| "neither in frames nor as a block of LZ4".to_owned())
}
