//! Parses and formats sizes such as `256MiB`, `1GB`, `1000000`.

/// Units and the bytes they stand for.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Parses a size in bytes, at least 1. Units may be in either case, and are never guessed: `64M` could be either of two.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim());
    let factor = match unit {
        "" => Some(1),
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor),
    };
    let number: Option<u64> = number.parse().ok();
    match number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor)) {
        Some(0) => Err("a size is at least 1 byte".into()),
        Some(bytes) => Ok(bytes),
        None => Err("write whole numbers with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB: 256MiB, 1GB, 1000000".into()),
    }
}

/// Formats a size for people, in the largest binary unit that leaves a number of at least 1.
pub(super) fn show(bytes: u64) -> String {
    let unit = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match unit.into_iter().find(|(factor, _)| bytes >= *factor) {
        Some((factor, name)) => format!("{:.1} {name}", bytes as f64 / factor as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_others_refused() {
        for (text, bytes) in [
            ("1", 1),
            ("1000000", 1_000_000),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("1 GB", 1_000_000_000),
            ("7B", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "0GB", "64M", "-1", "1.5GiB", "MiB", "1e6", "99999999999TiB", "18446744073709551616"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!((show(1023), show(1536), show(3 << 30)), ("1023 bytes".into(), "1.5 KiB".into(), "3.0 GiB".into()));
    }
}
