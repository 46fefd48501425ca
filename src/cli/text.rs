//! Numbers as people read them.

/// A count, its thousands set apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest unit that it has one of.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A range, or the one number that it holds.
pub(super) fn span(least: u64, most: u64) -> String {
    if least == most { count(least) } else { format!("{}-{}", count(least), count(most)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!((span(3, 3), span(0, 1200)), ("3".into(), "0-1,200".into()));
        assert_eq!(size(3 << 20), "3.00 MiB");
    }
}
