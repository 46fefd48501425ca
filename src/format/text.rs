//! Text with one record per line: finds where the lines of JSON and the rows of CSV start.

use std::io::BufRead as _;

/// How rows are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Each line is a row, except for blank lines.
    Lines,
    /// As in RFC 4180, and `\n` or `\r` also ends a row. A field that begins with a quote ends at the next quote that is not doubled; line ends
    /// within the field are content. Blank lines are not rows.
    Csv { delimiter: u8 },
}

/// Finds rows in text that arrives in pieces, cut anywhere.
#[derive(Clone, Debug)]
pub(crate) struct RowFinder {
    rows: Rows,
    state: State,
    /// Bytes seen.
    at: u64,
    starts: Vec<u64>,
    /// How much of a byte order mark has been seen, at the beginning of a shard and until it is known whether it is one.
    mark: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There has been only white space (in lines) or line ends (in CSV) since the last row.
    Between,
    /// In a line, or at the beginning of a field.
    Field,
    Unquoted,
    Quoted,
    /// After a quote within a quoted field: either the end of the field, or the first of two quotes that stand for one.
    QuoteInQuoted,
}

/// The byte order mark that some programs put before UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl RowFinder {
    /// Creates a finder for a shard, from its beginning.
    pub(crate) fn new(rows: Rows) -> Self {
        Self { mark: Some(0), ..Self::within(rows) }
    }

    /// Creates a finder for a part of a shard that begins with a row.
    pub(crate) fn within(rows: Rows) -> Self {
        Self { rows, state: State::Between, at: 0, starts: Vec::new(), mark: None }
    }

    pub(crate) fn feed(&mut self, mut piece: &[u8]) {
        while let (Some(seen), Some((&byte, rest))) = (self.mark, piece.split_first()) {
            if byte != BYTE_ORDER_MARK[seen] {
                self.no_mark(seen);
                break;
            }
            piece = rest;
            self.mark = (seen + 1 < BYTE_ORDER_MARK.len()).then_some(seen + 1);
            if self.mark.is_none() {
                self.at += BYTE_ORDER_MARK.len() as u64;
            }
        }
        self.feed_content(piece);
    }

    /// Treats bytes that looked like the beginning of a mark as content.
    fn no_mark(&mut self, seen: usize) {
        self.mark = None;
        self.feed_content(&BYTE_ORDER_MARK[..seen]);
    }

    fn feed_content(&mut self, piece: &[u8]) {
        match self.rows {
            Rows::Lines => self.feed_lines(piece),
            Rows::Csv { delimiter } => self.feed_csv(piece, delimiter),
        }
        self.at += piece.len() as u64;
    }

    /// Returns where each row starts.
    pub(crate) fn starts(mut self) -> Vec<u64> {
        if let Some(seen) = self.mark {
            self.no_mark(seen);
        }
        self.starts
    }

    fn feed_lines(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while !rest.is_empty() {
            let from = self.at + (piece.len() - rest.len()) as u64;
            if self.state == State::Between {
                let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
                let Some(first) = rest.iter().position(|byte| !blank(byte)) else { return };
                self.starts.push(from + first as u64);
                self.state = State::Unquoted;
                rest = &rest[first..];
            }
            let before = rest.len();
            // The standard library's search for a byte is a fast one. Reading from memory cannot fail.
            let skipped = rest.skip_until(b'\n').unwrap_or(before);
            if skipped > 0 && piece[piece.len() - before + skipped - 1] == b'\n' {
                self.state = State::Between;
            }
        }
    }

    fn feed_csv(&mut self, piece: &[u8], delimiter: u8) {
        for (at, &byte) in piece.iter().enumerate() {
            let ends = byte == b'\n' || byte == b'\r';
            self.state = match self.state {
                State::Between if ends => State::Between,
                State::Between => {
                    self.starts.push(self.at + at as u64);
                    of_field(byte, delimiter)
                }
                State::Quoted if byte == b'"' => State::QuoteInQuoted,
                State::Quoted => State::Quoted,
                _ if ends => State::Between,
                State::Field => of_field(byte, delimiter),
                State::QuoteInQuoted if byte == b'"' => State::Quoted,
                _ if byte == delimiter => State::Field,
                _ => State::Unquoted,
            };
        }
    }
}

/// Returns the state after the first byte of a field.
fn of_field(byte: u8, delimiter: u8) -> State {
    match byte {
        b'"' => State::Quoted,
        byte if byte == delimiter => State::Field,
        _ => State::Unquoted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: Rows, text: &str) -> Vec<u64> {
        let mut whole = RowFinder::new(rows);
        whole.feed(text.as_bytes());
        let starts = whole.starts();
        for size in 1..text.len() {
            let mut pieces = RowFinder::new(rows);
            text.as_bytes().chunks(size).for_each(|piece| pieces.feed(piece));
            assert_eq!(pieces.starts(), starts, "{text:?} in pieces of {size}");
        }
        starts
    }

    #[test]
    fn lines_are_rows_and_blank_ones_are_not() {
        let cases: [(&str, &[u64]); 9] = [
            ("", &[]),
            ("\u{feff}", &[]),
            ("\u{fec0}\n", &[0]),
            ("{}", &[0]),
            ("{}\n", &[0]),
            ("{}\n{}\r\n{}", &[0, 3, 7]),
            ("\n\n  {}\n \t\r\n{}\n\n", &[4, 11]),
            ("\u{feff}{}\n{}", &[3, 6]),
            ("\"a\nb\"\n", &[0, 3]),
        ];
        for (text, starts) in cases {
            assert_eq!(rows(Rows::Lines, text), starts, "{text:?}");
        }
    }

    #[test]
    fn line_ends_within_quotes_belong_to_their_field() {
        let cases: [(&str, &[u64]); 15] = [
            ("", &[]),
            // The letter A of full width, and one that differs from a mark in its last byte.
            ("\u{ff21},b\nc,d", &[0, 6]),
            ("\u{fec0}", &[0]),
            ("\u{feff}\u{feff}a", &[3]),
            ("a\n\u{feff}b\n", &[0, 2]),
            ("a,b", &[0]),
            ("a,b\nc,d\n", &[0, 4]),
            ("a,b\r\nc,d\r\n\r\n", &[0, 5]),
            ("a\rb\r", &[0, 2]),
            ("\"a\nb\",c\nd,e\n", &[0, 8]),
            ("\"a\"\"\nb\",c\nd,e\n", &[0, 10]),
            ("a\"b,c\nd,e\n", &[0, 6]),
            ("a,\"\"\nb,c\n", &[0, 5]),
            (",\n,\n", &[0, 2]),
            ("\u{feff}a,b\nc,d", &[3, 7]),
        ];
        for (text, starts) in cases {
            assert_eq!(rows(Rows::Csv { delimiter: b',' }, text), starts, "{text:?}");
        }
        assert_eq!(rows(Rows::Csv { delimiter: b'\t' }, "a\t\"x\ny\"\nb\tc"), [0, 8]);
    }

    #[cfg(feature = "text")]
    #[test]
    fn rows_are_those_that_the_reader_finds() {
        // All short texts of the bytes that matter, against the reader of the `csv` crate's core through Arrow.
        let alphabet = [b'a', b',', b'"', b'\n', b'\r'];
        for number in 0..alphabet.len().pow(5) {
            let text: Vec<u8> =
                (0..5).scan(number, |rest, _| Some(alphabet[std::mem::replace(rest, *rest / 5) % 5])).collect();
            let mut finder = RowFinder::new(Rows::Csv { delimiter: b',' });
            finder.feed(&text);
            let starts = finder.starts();
            let field = arrow::datatypes::Field::new("x", arrow::datatypes::DataType::Utf8, true);
            let columns = |row: &[u8]| {
                // As many columns as it takes.
                (1..8).find_map(|count| {
                    let schema = arrow::datatypes::Schema::new(vec![field.clone(); count]);
                    let mut decoder = arrow::csv::ReaderBuilder::new(schema.into())
                        .with_header(false)
                        .with_batch_size(9)
                        .build_decoder();
                    let mut bytes = row.to_vec();
                    bytes.push(b'\n');
                    decoder.decode(&bytes).ok()?;
                    decoder.flush().ok().flatten().map(|batch| batch.num_rows())
                })
            };
            for (row, &start) in starts.iter().enumerate() {
                let end = starts.get(row + 1).map_or(text.len(), |&end| end as usize);
                let found = columns(&text[start as usize..end]);
                // An open quote at the end of the text is no row to the reader.
                let last = row + 1 == starts.len();
                assert!(found == Some(1) || last && found.is_none(), "{:?}: {found:?}", String::from_utf8_lossy(&text));
            }
        }
    }
}
