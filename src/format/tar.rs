//! Tar archives in the convention of WebDataset: consecutive members with the same key form a sample.
//!
//! The walk reads only the headers, not the content between them. It understands GNU's long names, pax headers and ustar's prefixes. Links, folders
//! and devices are not members.

use std::ops::Range;

use tar::{EntryType, Header};

use crate::error::{Error, Result};

/// The size of a header, and the multiple to which members are padded, in bytes.
pub(crate) const HEADER_BYTES: u64 = 512;

/// The most bytes that a long name or a pax header may have.
const MAX_EXTENSION: u64 = 1 << 20;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    /// Where its header starts, or the first of the extension headers that belong to it.
    pub(crate) start: u64,
    pub(crate) data: Range<u64>,
}

impl Member {
    /// Returns the key of its sample and the name of its column: the parts before and after the first dot in the last component of its name, the
    /// column in lower case. Returns `None` for names that WebDataset leaves out: those without a dot or with one at the beginning, and
    /// `__like_this__`.
    pub(crate) fn key(&self) -> Option<(&[u8], String)> {
        let name = self.name.strip_prefix(b"./").unwrap_or(&self.name);
        let base = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let dot = base + name[base..].iter().position(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
        let is_meta = name[base..].starts_with(b"__") && name[base..].ends_with(b"__");
        let extension = String::from_utf8_lossy(&name[dot + 1..]).to_ascii_lowercase();
        (!is_meta && !extension.is_empty()).then_some((&name[..dot], extension))
    }
}

/// What a walk needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The walk needs these bytes of the archive.
    Read(Range<u64>),
    /// The archive ends at this offset.
    End(u64),
}

/// A walk from header to header.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Size of the archive in bytes.
    size: u64,
    /// Offset of the next header.
    at: u64,
    /// Where the extension headers of the next member start.
    start: Option<u64>,
    /// What extension headers have said about the next member.
    name: Option<Vec<u8>>,
    length: Option<u64>,
    is_sparse: bool,
    /// Content that is needed: that of a long name or of a pax header.
    wanted: Option<(Range<u64>, EntryType)>,
    ended: Option<u64>,
}

impl Walk {
    /// Creates a walk through an archive of `size` bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, at: 0, start: None, name: None, length: None, is_sparse: false, wanted: None, ended: None }
    }

    /// Returns what to read next: a header, or the content of an extension header.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the archive ends within a header.
    pub(crate) fn next(&self) -> Result<Step> {
        if let Some(end) = self.ended {
            return Ok(Step::End(end));
        }
        if let Some((range, _)) = &self.wanted {
            return Ok(Step::Read(range.clone()));
        }
        if self.at == self.size {
            return match self.start {
                None => Ok(Step::End(self.at)),
                Some(start) => Err(broken("the archive ends behind a long name or a pax header", start)),
            };
        }
        if self.size - self.at < HEADER_BYTES {
            return Err(broken("the archive ends inside a header", self.at));
        }
        Ok(Step::Read(self.at..self.at + HEADER_BYTES))
    }

    /// Takes the bytes that [`next`](Self::next) asked for. Returns a member if they were its header.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for damaged headers and for members that extend beyond the archive; the error's place holds
    /// the byte.
    pub(crate) fn supply(&mut self, bytes: &[u8]) -> Result<Option<Member>> {
        if let Some((range, kind)) = self.wanted.take() {
            match kind {
                EntryType::GNULongName => {
                    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                    self.name = Some(bytes[..end].to_vec());
                }
                _ => self.pax(bytes).ok_or_else(|| broken("a damaged pax header", range.start))?,
            }
            return Ok(None);
        }
        let at = self.at;
        let Ok(header) = <&[u8; HEADER_BYTES as usize]>::try_from(bytes) else {
            return Err(broken("the archive ends inside a header", at));
        };
        if header.iter().all(|byte| *byte == 0) {
            self.ended = Some(self.start.unwrap_or(at));
            return Ok(None);
        }
        if !checksum_fits(header) {
            return Err(broken("a header's checksum is not that of its bytes", at));
        }
        let header = Header::from_byte_slice(header);
        let kind = header.entry_type();
        let size = header.entry_size().map_err(|e| broken("a header without a length", at).because(e))?;
        let extends = matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        );
        let size = if extends { size } else { self.length.take().unwrap_or(size) };
        let data = at + HEADER_BYTES..(at + HEADER_BYTES).saturating_add(size);
        if data.end > self.size {
            let left = self.size - data.start;
            return Err(broken(format!("a member of {size} bytes, of which the archive holds {left}"), at));
        }
        // The last member's padding may be missing.
        self.at = data.end.next_multiple_of(HEADER_BYTES).min(self.size);
        let start = *self.start.get_or_insert(at);
        match kind {
            EntryType::GNULongName | EntryType::XHeader => {
                if size > MAX_EXTENSION {
                    return Err(broken(format!("a name or a pax header of {size} bytes"), at));
                }
                self.wanted = Some((data, kind));
                return Ok(None);
            }
            EntryType::GNULongLink | EntryType::XGlobalHeader => return Ok(None),
            _ if self.is_sparse || kind == EntryType::GNUSparse => {
                return Err(
                    broken("a sparse member, which is not read", at).advice("write the archive without --sparse")
                );
            }
            _ => {}
        }
        self.start = None;
        let name = self.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        // A regular member whose name ends so was a folder before ustar.
        Ok((is_file && !name.ends_with(b"/")).then_some(Member { name, start, data }))
    }

    /// Reads a path, a length, and whether the member has holes, from `LENGTH KEY=VALUE\n` records.
    fn pax(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
            let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            match (&record[..equals], &record[equals + 1..]) {
                (b"path", value) => self.name = Some(value.to_vec()),
                // What is stored is not the content: holes are left out.
                (key, _) if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                (b"size", value) => self.length = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                _ => {}
            }
            records = &records[length..];
        }
        Some(())
    }

    /// Walks an archive that is in memory and passes its members to `each`. Returns where the archive ends.
    pub(crate) fn through(archive: &[u8], mut each: impl FnMut(Member)) -> Result<u64> {
        let mut walk = Walk::new(archive.len() as u64);
        loop {
            match walk.next()? {
                Step::End(end) => return Ok(end),
                Step::Read(range) => {
                    if let Some(member) = walk.supply(&archive[range.start as usize..range.end as usize])? {
                        each(member);
                    }
                }
            }
        }
    }
}

fn broken(what: impl Into<std::borrow::Cow<'static, str>>, at: u64) -> Error {
    Error::corrupt(what).byte_offset(at).advice("fetch or write the archive again")
}

/// Checks the sum of a header's bytes, with its checksum field taken as spaces. Some old programs added up signed bytes.
fn checksum_fits(header: &[u8; HEADER_BYTES as usize]) -> bool {
    let Ok(stored) = Header::from_byte_slice(header).cksum() else { return false };
    let bytes = || header.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    bytes().map(u32::from).sum::<u32>() == stored
        || bytes().map(|byte| i64::from(byte as i8)).sum::<i64>() == i64::from(stored)
}

/// Finds where samples start: at each member whose key differs from that of the member before.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    key: Option<Vec<u8>>,
}

impl Samples {
    /// Returns the member's column and whether the member begins a sample; `None` if it belongs to no sample.
    pub(crate) fn place(&mut self, member: &Member) -> Option<(String, bool)> {
        let (key, column) = member.key()?;
        let begins = self.key.as_deref() != Some(key);
        if begins {
            self.key = Some(key.to_vec());
        }
        Some((column, begins))
    }

    /// Returns the key of the sample that was placed last.
    pub(crate) fn key(&self) -> &[u8] {
        self.key.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in members {
            let mut header = Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn members(archive: &[u8]) -> Result<Vec<(String, Vec<u8>, u64)>> {
        let mut found = Vec::new();
        Walk::through(archive, |Member { name, start, data }| {
            let data = archive[data.start as usize..data.end as usize].to_vec();
            found.push((String::from_utf8(name).unwrap(), data, start));
        })?;
        Ok(found)
    }

    #[test]
    fn members_are_found_with_names_of_any_length() {
        let long = format!("{}/{}.jpg", "folder".repeat(20), "name".repeat(30));
        let archive = archive(&[("a.jpg", b"one"), (&long, &[7; 600]), ("b.jpg", b"")]);
        let found = members(&archive).unwrap();
        let names: Vec<_> = found.iter().map(|(name, data, start)| (name.as_str(), data.len(), *start)).collect();
        // A header and its content; behind it the long name's header, its content, the member's header and its content.
        assert_eq!(names, [("a.jpg", 3, 0), (&long[..], 600, 1024), ("b.jpg", 0, 1024 + 512 + 512 + 512 + 1024)]);
    }

    #[test]
    fn pax_headers_and_prefixes_give_names() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", &b"from pax.txt"[..]), ("comment", b"x")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(2);
        header.set_path("short.txt").unwrap();
        header.set_cksum();
        builder.append(&header, &b"hi"[..]).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(1);
        let deep = format!("{}/{}.txt", "d".repeat(120), "n".repeat(60));
        header.set_path(&deep).unwrap();
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        let mut folder = Header::new_ustar();
        folder.set_entry_type(EntryType::Directory);
        folder.set_path("folder/").unwrap();
        folder.set_size(0);
        folder.set_cksum();
        builder.append(&folder, &b""[..]).unwrap();
        let found = members(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(found.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["from pax.txt", &deep]);
        assert_eq!(found[0].2, 0, "the pax header belongs to its member");
    }

    #[test]
    fn members_with_holes_are_refused_however_the_archive_says_so() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.name", b"a.bin")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(2);
        header.set_path("GNUSparseFile.1/a.bin").unwrap();
        header.set_cksum();
        builder.append(&header, &b"hi"[..]).unwrap();
        let of_pax = builder.into_inner().unwrap();
        let mut of_gnu = archive(&[("a.bin", b"hi")]);
        let mut header = Header::from_byte_slice(&of_gnu[..512]).clone();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_cksum();
        of_gnu[..512].copy_from_slice(header.as_bytes());
        for (archive, at) in [(of_pax, 1024), (of_gnu, 0)] {
            let error = members(&archive).unwrap_err();
            assert!(error.place().byte_offset == Some(at) && error.to_string().contains("sparse"), "{error}");
        }
    }

    #[test]
    fn keys_end_at_the_first_dot_of_the_last_part() {
        let key = |name: &str| {
            let member = Member { name: name.into(), start: 0, data: 0..0 };
            member.key().map(|(key, column)| (String::from_utf8(key.to_vec()).unwrap(), column))
        };
        let some = |key: &str, column: &str| Some((key.to_owned(), column.to_owned()));
        assert_eq!(key("a.jpg"), some("a", "jpg"));
        assert_eq!(key("./dir.d/a.seg.PNG"), some("dir.d/a", "seg.png"));
        assert_eq!(key("a"), None);
        assert_eq!(key("dir/.hidden"), None);
        assert_eq!(key("dir/a."), None);
        assert_eq!(key("__meta.x__"), None);
    }

    #[test]
    fn damage_names_its_byte() {
        let sound = archive(&[("a.jpg", b"one"), ("b.jpg", b"two"), ("c.jpg", b"three")]);
        let wrong = |spoil: &dyn Fn(&mut Vec<u8>), at: u64, words: &str| {
            let mut archive = sound.clone();
            spoil(&mut archive);
            let error = members(&archive).unwrap_err();
            assert!(error.place().byte_offset == Some(at) && error.to_string().contains(words), "{error}");
        };
        wrong(&|archive| archive[1024] ^= 1, 1024, "checksum");
        wrong(&|archive| archive.truncate(1024 + 100), 1024, "inside a header");
        wrong(&|archive| archive.truncate(1024 + 513), 1024, "of which the archive holds 1");
        wrong(&|archive| archive[2048 + 150] = b'z', 2048, "checksum");
        let huge = |archive: &mut Vec<u8>| {
            let mut header = Header::from_byte_slice(&archive[1024..1536]).clone();
            header.set_size(1 << 60);
            header.set_cksum();
            archive[1024..1536].copy_from_slice(header.as_bytes());
        };
        wrong(&huge, 1024, "1152921504606846976 bytes");
        // Without the blocks of zeros at the end it is whole.
        let mut archive = sound.clone();
        archive.truncate(2048 + 512 + 5);
        assert_eq!(members(&archive).unwrap().len(), 3);
    }
}
