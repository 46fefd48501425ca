//! Tests tar archives in the convention of WebDataset, plain and compressed, against the `tar` crate's reader.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use forebay::source::check::Asked;
use forebay::{Column, Dtype, Missing, Shape, Tar, bytes, float32, int64};
use tar::{EntryType, Header};

use crate::gzip;
use crate::shard::{self, MAX_BYTES, Value, Values};

/// The memory that reading may take in addition to the archive.
const MOST_BYTES: usize = 8 * MAX_BYTES;

/// An archive is refused, or has the samples that a plain reader finds, in bounded memory; everything after damage becomes one bad row. The samples
/// are the same however the archive is cut into blocks and compressed.
///
/// Byte 0: whether checksums of headers are repaired (bit 0), because a fuzzer seldom finds one, whether columns are stated (bit 1), whether the rest
/// is an archive or stored unchanged (bit 2), and how else an archive is read (bits 4 and 5: in small blocks, gzip, zstd, gzip in two).
pub fn tar(data: &[u8]) {
    let ([mode], rest) = crate::split::<1>(data);
    let mut archive = rest.to_vec();
    if mode & 1 != 0 {
        mend(&mut archive);
    }
    let stated = (mode & 2 != 0).then(|| {
        let optional = [bytes("jpg").optional(), Column::new("n", Dtype::U8, Shape::Scalar).or(Missing::Int(7))];
        [bytes("__key__"), int64("cls"), float32("x")].into_iter().chain(optional).collect::<Vec<_>>()
    });
    let most = MOST_BYTES + 64 * archive.len();
    let open = |stored: &[u8], blocks| {
        let asked = Asked { columns: stated.clone(), blocks, ..shard::all() };
        let source = shard::open(Bytes::copy_from_slice(stored), Tar::new().into(), asked, most)?;
        let rows = shard::rows(&*source, most);
        Ok::<_, forebay::Error>((source.columns().to_vec(), rows))
    };
    let plain = open(&archive, 1);
    if mode & 4 != 0 || archive.starts_with(b"\x1f\x8b\x08") || archive.starts_with(b"\x28\xb5\x2f\xfd") {
        return;
    }
    let other = match mode >> 4 & 3 {
        0 => open(&archive, 1 << 20),
        1 => open(&gzip(&archive), 1),
        2 => open(&zstd::encode_all(&archive[..], 1).expect("memory"), 1),
        _ => open(&[&gzip(&archive[..archive.len() / 2])[..], &gzip(&archive[archive.len() / 2..])].concat(), 1),
    };
    match (&plain, &other) {
        (Ok((columns, rows)), Ok((other_columns, other_rows))) => {
            assert_eq!(columns, other_columns);
            assert!(rows.is_none() || other_rows.is_none() || rows == other_rows, "{rows:?}, then {other_rows:?}");
        }
        (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind(), "{a}, then {b}"),
        _ => panic!("{:?}, then {:?}", plain.as_ref().map(drop), other.as_ref().map(drop)),
    }
    if let Ok((columns, Some(rows))) = plain {
        against_a_plain_reader(&archive, &columns, &rows);
    }
}

/// A sample: its key, and the members of each extension.
type Sample = (Vec<u8>, BTreeMap<String, Vec<Vec<u8>>>);

fn against_a_plain_reader(archive: &[u8], columns: &[Column], rows: &[Option<Vec<Values>>]) {
    let (samples, is_whole) = samples(archive);
    // The last sample may go on behind what could be read.
    let known = if is_whole { samples.len() } else { samples.len().saturating_sub(1) };
    for (at, (row, sample)) in rows.iter().zip(&samples[..known]).enumerate() {
        let wanted: Option<Vec<Values>> = columns.iter().map(|column| value(sample, column)).collect();
        // A row that is bad for no reason of its own stands for damage, and nothing comes behind it.
        let stands_for_damage = row.is_none() && at + 1 == rows.len();
        assert!(*row == wanted || stands_for_damage, "sample {at} is {row:?}, where a plain reader finds {wanted:?}");
    }
    let has_damage = rows.last().is_none_or(Option::is_none);
    assert!(rows.len() >= known || has_damage, "{} samples, where a plain reader finds {known}", rows.len());
    assert!(rows.len() <= samples.len() || has_damage || !is_whole, "{} samples of {}", rows.len(), samples.len());
}

fn value((key, members): &Sample, column: &Column) -> Option<Values> {
    if column.name().as_ref() == "__key__" {
        return Some(vec![Value::Bytes(key.clone())]);
    }
    let content = match members.get(column.name().as_ref()).map(Vec::as_slice) {
        Some([one]) => one,
        Some(_) => return None,
        None => {
            return match column.missing() {
                Missing::Bytes(bytes) => Some(vec![Value::Bytes(bytes.clone())]),
                Missing::Int(int) if column.dtype() == Dtype::Bytes => Some(vec![Value::Bytes(int.to_string().into())]),
                Missing::Int(int) => Some(vec![Value::Int(*int)]),
                _ => None,
            };
        }
    };
    let text = || Some(std::str::from_utf8(content).ok()?.trim());
    Some(vec![match column.dtype() {
        Dtype::Bytes => Value::Bytes(content.clone()),
        Dtype::F32 => {
            let number: f64 = text()?.parse().ok()?;
            let rounded = number as f32;
            (rounded.is_infinite() == number.is_infinite()).then_some(())?;
            Value::Float(f64::from(rounded).to_bits())
        }
        Dtype::U8 => Value::Int(text()?.parse::<i64>().ok().filter(|value| (0..256).contains(value))?),
        _ => Value::Int(text()?.parse().ok()?),
    }])
}

/// Returns the samples of an archive, and whether it could be read to its end; whatever two readers may see differently counts as its end.
fn samples(archive: &[u8]) -> (Vec<Sample>, bool) {
    let mut samples: Vec<Sample> = Vec::new();
    let mut reader = tar::Archive::new(archive);
    let Ok(entries) = reader.entries() else { return (samples, false) };
    for entry in entries {
        let Ok(mut entry) = entry else { return (samples, false) };
        let name = entry.path_bytes().into_owned();
        let mut paths: Vec<Vec<u8>> = Vec::new();
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            for extension in extensions {
                let Ok(extension) = extension else { return (samples, false) };
                match extension.key_bytes() {
                    b"path" => paths.push(extension.value_bytes().to_vec()),
                    b"size" if extension.value().is_ok_and(|value| value.parse::<u64>().is_ok()) => {}
                    b"size" => return (samples, false),
                    _ => {}
                }
            }
        }
        // Two names for one member, names with an end within, and names of old headers: each reader has its own view.
        if paths.len() > 1 || paths.first().is_some_and(|path| *path != name) || name.contains(&0) {
            return (samples, false);
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::GNUSparse | EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader => {
                return (samples, false);
            }
            _ => continue,
        }
        let mut content = Vec::new();
        let size = entry.size();
        if entry.read_to_end(&mut content).is_err() || content.len() as u64 != size {
            return (samples, false);
        }
        if name.ends_with(b"/") {
            continue;
        }
        let Some((key, extension)) = key(&name) else { continue };
        if samples.last().is_none_or(|(last, _)| *last != key) {
            samples.push((key, BTreeMap::new()));
        }
        let (_, members) = samples.last_mut().expect("one was pushed");
        members.entry(extension).or_default().push(content);
    }
    (samples, true)
}

/// Returns the parts before and after the first dot in the last component of a name.
fn key(name: &[u8]) -> Option<(Vec<u8>, String)> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    let last = parts[parts.len() - 1];
    let dot = last.iter().position(|byte| *byte == b'.')?;
    let extension = String::from_utf8_lossy(&last[dot + 1..]).to_ascii_lowercase();
    let is_meta = last.starts_with(b"__") && last.ends_with(b"__");
    let key = &name[..name.len() - last.len() + dot];
    (dot > 0 && !extension.is_empty() && !is_meta).then(|| (key.to_vec(), extension))
}

/// Writes the correct checksums into headers, as far as their lengths lead.
fn mend(archive: &mut [u8]) {
    let mut at = 0usize;
    while let Some(bytes) = archive.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<512>()) {
        if bytes.iter().any(|byte| *byte != 0) {
            let mut header = Header::from_byte_slice(bytes).clone();
            header.set_cksum();
            bytes.copy_from_slice(header.as_bytes());
            let size = header.entry_size().unwrap_or(0).min(1 << 30) as usize;
            at += size.next_multiple_of(512);
        }
        at += 512;
    }
}
