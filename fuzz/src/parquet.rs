//! Parquet files: footers, the places of pages, and row groups to columns.

use arrow::array::{Array, ArrayRef};
use bytes::Bytes;
use forebay::ErrorKind;
use forebay::format::parquet::check::Opened;

/// Footers may take a multiple of their bytes in memory: a row group or column of a few bytes becomes hundreds of bytes.
const FOOTER_BYTES: usize = 16 << 20;
/// The budget: larger blocks are refused by the loader.
const MOST_BYTES: u64 = 2 << 20;

/// A file is refused, or its row groups are refused or have the rows that the footer declares, in memory that is bounded by the loader's estimate.
/// Where both ways of decoding succeed they agree, and a part of a row group decodes to that part.
///
/// Byte 0 says into how many parts row groups are cut (its lowest two bits), and whether the rest is the whole file or lacks the magic and length of
/// the footer's end (0x80), which are then added: fuzzers seldom keep them.
pub fn parquet(data: &[u8]) {
    crate::quietly(|| {
        let ([mode], rest) = crate::split::<1>(data);
        let mut file = rest.to_vec();
        if mode & 0x80 != 0 {
            // The footer begins where the next byte says, in units of 16 bytes from the end.
            let (&start, body) = rest.split_first().unwrap_or((&0, &[]));
            file = body.to_vec();
            let length = (usize::from(start) * 16 + usize::from(mode >> 3 & 15)).min(body.len());
            file.extend((length as u32).to_le_bytes());
            file.extend(b"PAR1");
        }
        let file = Bytes::from(file);
        let opened = match crate::memory::bounded(FOOTER_BYTES, || Opened::new(file)) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema), "{error}");
                return;
            }
        };
        let mut seen = 0;
        for (group, rows) in opened.groups().into_iter().enumerate().take(8) {
            let bytes = opened.bytes(group, 0..rows);
            seen += bytes;
            // Few in all, so that an input takes no time.
            if rows == 0 || bytes > MOST_BYTES || seen > 4 * MOST_BYTES {
                continue;
            }
            row_group(&opened, group, rows, u64::from(mode & 3) + 1);
        }
    });
}

fn row_group(opened: &Opened, group: usize, rows: u64, parts: u64) {
    let decoded = |rows: std::ops::Range<u64>, direct: bool| {
        // Levels and the copies that arrays grow by come on top of what is delivered.
        let most = 4 * opened.bytes(group, 0..opened.groups()[group]) as usize + (1 << 20) + opened.window_bytes(group);
        let arrays = crate::memory::bounded(most, || opened.decode(group, rows.clone(), None, direct));
        match &arrays {
            Ok(arrays) => arrays.iter().for_each(|array| assert_eq!(array.len() as u64, rows.end - rows.start)),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema), "{error}"),
        }
        arrays
    };
    let (direct, general) = (decoded(0..rows, true), decoded(0..rows, false));
    let Ok(direct) = direct else { return };
    direct.iter().for_each(crate::valid);
    let Ok(general) = general else { return };
    same(&direct, &general, "decoded by the crate");
    for part in opened.cut(group, parts) {
        let (start, length) = (part.start as usize, (part.end - part.start) as usize);
        // Where the page index lies, a part may be damaged although the whole is not.
        let Ok(arrays) = decoded(part, true) else { continue };
        arrays.iter().for_each(crate::valid);
        if opened.cut(group, parts).len() == 1 {
            let whole: Vec<ArrayRef> = direct.iter().map(|array| array.slice(start, length)).collect();
            same(&arrays, &whole, "of the whole row group");
        }
    }
}

fn same(found: &[ArrayRef], wanted: &[ArrayRef], what: &str) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        // Fields of lists have the names that their writers gave them, and floats may be NaN: bits are compared.
        let text = |array: &ArrayRef| format!("{:?}", array.slice(0, array.len().min(64)));
        assert!(found.logical_nulls() == wanted.logical_nulls(), "other nulls than {what}");
        assert!(text(found) == text(wanted), "{found:?}\nother values than {what}: {wanted:?}");
    }
}
