//! Numbers in readable form.

/// Formats a count with separated thousands.
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

/// Formats a size in the largest unit of which there is at least one.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Formats a range, or a single number if both ends are equal.
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
