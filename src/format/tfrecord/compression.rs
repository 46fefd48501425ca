//! Compression of whole shards, recognised by their first bytes and undone in pieces of bounded size.

use flate2::{Decompress, FlushDecompress, Status};

use super::framing::{HEADER_BYTES, masked_crc32c};
use crate::error::{Error, Result};

/// How the bytes of a shard are compressed.
///
/// # Example
/// ```
/// use forebay::format::tfrecord::Compression;
///
/// assert_eq!(Compression::detect(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
/// assert_eq!(Compression::detect(&[0x78, 0x9c, 0xed, 0x5d]), Compression::Zlib);
/// assert_eq!(Compression::detect(&[]), Compression::None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compression {
    /// Records are stored uncompressed.
    #[default]
    None,
    /// One gzip member, or several in succession.
    Gzip,
    /// One zlib stream.
    Zlib,
}

impl Compression {
    /// Recognises the compression by a shard's first bytes, whatever its name says. Pass at least 12 bytes where the shard has that many.
    ///
    /// A plain shard starts with a length that could look like the magic bytes of gzip or zlib. Its checksum, in bytes 8 to 11, decides which it is.
    pub fn detect(first_bytes: &[u8]) -> Self {
        if let Some((length, stored)) = first_bytes.first_chunk::<HEADER_BYTES>().map(|header| header.split_at(8))
            && masked_crc32c(length).to_le_bytes() == *stored
        {
            return Compression::None;
        }
        match first_bytes {
            [0x1f, 0x8b, 8, ..] => Compression::Gzip,
            // No deflate stream goes on with six zeros (a stored block would have to say its length twice, once inverted),
            // but a plain record's length does.
            [0x78, _, 0, 0, 0, 0, 0, 0, ..] => Compression::None,
            [0x78, flags, ..] if (0x7800 + u16::from(*flags)) % 31 == 0 && flags & 0x20 == 0 => Compression::Zlib,
            _ => Compression::None,
        }
    }

    /// Returns the name that metadata and messages use.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zlib => "zlib",
        }
    }

    /// Returns the compression of this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Compression::None, Compression::Gzip, Compression::Zlib].into_iter().find(|c| c.name() == name)
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What one call of [`Decoder::decode`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Input bytes that have been used up.
    pub consumed: usize,
    /// Whether the call stopped at its limit. If so, call again with the rest of the input, even when none is left.
    pub more: bool,
}

/// Decompresses a shard that arrives in pieces. Each call adds no more output than asked for.
///
/// The decoder reads through several gzip members and verifies the checksum and length at the end of each. Plain shards pass through unchanged.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for damage, for bytes after the end, and (from [`finish`](Self::finish)) for a stream that
/// breaks off. The error's place is the offset in the decompressed shard; its message has the offset in the stored shard. The output holds what was
/// decompressed before the damage. The compression's checksum can only be verified at its end, so rely on each record's own checksum. After an error,
/// every further call returns the same error.
///
/// # Memory
/// One window (32 KiB) and the caller's output, which grows by at most `limit` bytes per call.
///
/// # Example
/// ```
/// use forebay::format::tfrecord::{Compression, Decoder, Writer};
///
/// let mut writer = Writer::new(Vec::new(), Compression::Gzip);
/// writer.write(&[7; 100_000])?;
/// let shard = writer.finish()?;
///
/// let (mut decoder, mut plain) = (Decoder::new(Compression::Gzip), Vec::new());
/// for mut piece in shard.chunks(100) {
///     loop {
///         let decoded = decoder.decode(piece, &mut plain, 4096)?;
///         piece = &piece[decoded.consumed..];
///         if !decoded.more {
///             break;
///         }
///     }
/// }
/// decoder.finish()?;
/// assert_eq!(plain.len(), 12 + 100_000 + 4);
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    compression: Compression,
    /// The member being read; `None` before its first byte.
    member: Option<Decompress>,
    members: u64,
    read: u64,
    written: u64,
    failed: Option<Error>,
}

/// Output is filled in pieces of this size, which stay in the first-level cache between writing and checksumming.
const PIECE_BYTES: usize = 32 << 10;

impl Decoder {
    /// Creates a decoder at the start of a shard.
    pub fn new(compression: Compression) -> Self {
        Self { compression, member: None, members: 0, read: 0, written: 0, failed: None }
    }

    /// Returns the number of stored bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Returns the number of decompressed bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    /// Decompresses `input` onto the end of `output`, until the input is used up or `limit` bytes have been added.
    ///
    /// # Errors
    /// See [`Decoder`].
    pub fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, limit: usize) -> Result<Decoded> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.compression == Compression::None {
            let taken = input.len().min(limit);
            output.extend_from_slice(&input[..taken]);
            self.read += taken as u64;
            self.written += taken as u64;
            return Ok(Decoded { consumed: taken, more: taken < input.len() });
        }
        let (mut consumed, mut added) = (0, 0);
        loop {
            let rest = &input[consumed..];
            if rest.is_empty() && self.member.is_none() {
                return Ok(Decoded { consumed, more: false });
            }
            if added == limit {
                return Ok(Decoded { consumed, more: true });
            }
            let room = (limit - added).min(PIECE_BYTES);
            let (read, written, ended) = self.inflate(rest, output, room)?;
            consumed += read;
            added += written;
            if !ended && written < room && (consumed == input.len() || read + written == 0) {
                return Ok(Decoded { consumed, more: false });
            }
        }
    }

    /// Runs the current member, or a new one, for at most `room` bytes of output.
    fn inflate(&mut self, input: &[u8], output: &mut Vec<u8>, room: usize) -> Result<(usize, usize, bool)> {
        if self.member.is_none() {
            if self.compression == Compression::Zlib && self.members > 0 {
                return Err(self.fail(format!("{} or more bytes follow the end of the zlib stream", input.len())));
            }
            self.members += 1;
            self.member = Some(match self.compression {
                Compression::Gzip => Decompress::new_gzip(15),
                _ => Decompress::new(true),
            });
        }
        let member = self.member.as_mut().expect("made above");
        let (before_in, before_out, start) = (member.total_in(), member.total_out(), output.len());
        output.resize(start + room, 0);
        let status = member.decompress(input, &mut output[start..], FlushDecompress::None);
        let (read, written) = ((member.total_in() - before_in) as usize, (member.total_out() - before_out) as usize);
        output.truncate(start + written);
        let garbage = self.members > 1 && member.total_out() == 0 && member.total_in() < 10;
        self.read += read as u64;
        self.written += written as u64;
        match status {
            Ok(Status::StreamEnd) => {
                self.member = None;
                Ok((read, written, true))
            }
            Ok(Status::Ok | Status::BufError) => Ok((read, written, false)),
            Err(_) if garbage => Err(self.fail("bytes that are no gzip member follow the end of one".to_owned())),
            Err(error) => {
                let reason = error.message().unwrap_or("invalid data").to_owned();
                Err(self.fail(format!("{} data is damaged: {reason}", self.compression)))
            }
        }
    }

    /// Checks whether the shard may end here.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the shard breaks off inside compressed data.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.compression != Compression::None && (self.member.is_some() || self.members == 0) {
            return Err(self.fail(format!("the {} data breaks off", self.compression)));
        }
        Ok(())
    }

    #[cold]
    fn fail(&mut self, what: String) -> Error {
        let error = Error::corrupt(format!("{what} (at byte {} of the stored shard)", self.read))
            .byte_offset(self.written)
            .advice("fetch or write the shard again");
        self.failed.insert(error).clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::format::tfrecord::Writer;

    fn shard(compression: Compression, payloads: &[&[u8]]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), compression);
        payloads.iter().for_each(|p| writer.write(p).unwrap());
        writer.finish().unwrap()
    }

    /// Returns the output and the error of feeding `bytes` in pieces of `piece`, with at most `limit` bytes of output per call.
    fn decode(compression: Compression, bytes: &[u8], piece: usize, limit: usize) -> (Vec<u8>, Result<()>) {
        let (mut decoder, mut output) = (Decoder::new(compression), Vec::new());
        for mut input in bytes.chunks(piece) {
            loop {
                let before = output.len();
                let decoded = match decoder.decode(input, &mut output, limit) {
                    Ok(decoded) => decoded,
                    Err(error) => return (output, Err(error)),
                };
                assert!(output.len() - before <= limit);
                input = &input[decoded.consumed..];
                if !decoded.more {
                    assert!(input.is_empty());
                    break;
                }
            }
        }
        let end = decoder.finish();
        (output, end)
    }

    const BOTH: [Compression; 2] = [Compression::Gzip, Compression::Zlib];

    #[test]
    fn every_prefix_gives_good_bytes_and_then_an_error() {
        let payloads: [&[u8]; 3] = [b"one", b"", &[5; 200]];
        let plain = shard(Compression::None, &payloads);
        for compression in BOTH {
            let bytes = shard(compression, &payloads);
            for cut in 0..bytes.len() {
                let (output, end) = decode(compression, &bytes[..cut], 7, 64);
                assert!(plain.starts_with(&output));
                assert_eq!(end.unwrap_err().kind(), ErrorKind::Corrupt, "{compression} cut at {cut}");
            }
            assert!(matches!(decode(compression, &bytes, 7, 64), (output, Ok(())) if output == plain));
        }
    }

    #[test]
    fn every_flipped_byte_gives_an_error_or_the_right_bytes() {
        let payloads: [&[u8]; 3] = [b"one", b"", &[5; 200]];
        let plain = shard(Compression::None, &payloads);
        for compression in BOTH {
            let bytes = shard(compression, &payloads);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                if let (output, Ok(())) = decode(compression, &damaged, 1000, 1 << 16) {
                    assert_eq!(output, plain, "{compression} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn gzip_members_are_read_through_and_other_bytes_behind_them_refused() {
        let (a, b) = (shard(Compression::Gzip, &[b"a"]), shard(Compression::Gzip, &[b"b"]));
        let plain = shard(Compression::None, &[b"a", b"b"]);
        let both = [a.clone(), b].concat();
        assert!(matches!(decode(Compression::Gzip, &both, 1, 5), (output, Ok(())) if output == plain));
        for rest in [&b"\0\0\0\0"[..], b"garbage", &[0x1f, 0x8c]] {
            let (output, end) = decode(Compression::Gzip, &[&a[..], rest].concat(), 3, 100);
            assert_eq!(output.len(), 17);
            assert!(end.unwrap_err().to_string().contains("follow the end"));
        }
        let zlib = [shard(Compression::Zlib, &[b"a"]), vec![0]].concat();
        assert!(decode(Compression::Zlib, &zlib, 100, 100).1.unwrap_err().to_string().contains("follow the end"));
    }

    #[test]
    fn a_bomb_is_unpacked_only_as_far_as_asked() {
        let zeros = vec![0; 16 << 20];
        let bytes = shard(Compression::Gzip, &[&zeros]);
        assert!(bytes.len() < 20_000);
        let (mut decoder, mut output) = (Decoder::new(Compression::Gzip), Vec::new());
        let decoded = decoder.decode(&bytes, &mut output, 1000).unwrap();
        assert!(decoded.more && output.len() == 1000 && output.capacity() < 10_000);
    }

    #[test]
    fn plain_shards_are_told_from_compressed_ones_by_the_length_checksum() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zlib] {
            assert_eq!(Compression::detect(&shard(compression, &[b"abc"])), compression);
            assert_eq!(Compression::from_name(compression.name()), Some(compression));
        }
        // Lengths whose bytes are the magic numbers of zlib and gzip.
        for length in [0x9c78, 0x0178, 0x08_8b1f] {
            let plain = shard(Compression::None, &[&vec![1; length]]);
            assert_eq!(Compression::detect(&plain), Compression::None);
        }
        assert_eq!(Compression::detect(&[0x78, 0x9d, 1, 1]), Compression::None);
    }

    proptest! {
        #[test]
        fn pieces_and_limits_change_nothing(
            payload in proptest::collection::vec(0u8..4, 0..5000), piece in 1usize..600, limit in 1usize..600, gzip: bool,
        ) {
            let compression = if gzip { Compression::Gzip } else { Compression::Zlib };
            let (output, end) = decode(compression, &shard(compression, &[&payload]), piece, limit);
            prop_assert!(end.is_ok());
            prop_assert_eq!(output, shard(Compression::None, &[&payload]));
        }
    }
}
