//! Byte strings in JSON: those that are not text become base64 data URIs.
//!
//! Source: RFC 2397; RFC 4648, section 4.

/// The prefix of byte strings that are not text.
pub(crate) const DATA_URI: &str = "data:;base64,";

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends base64 with padding.
pub(crate) fn base64(bytes: &[u8], out: &mut String) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place)) as usize & 63;
            out.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
}

/// Decodes base64 in the form that [`base64`] writes: padded, with nothing in between, and with zeros in the bits that are left over. Returns `None`
/// for any other text.
#[cfg(feature = "text")]
pub(crate) fn undo_base64(text: &[u8]) -> Option<Vec<u8>> {
    const VALUES: [u8; 256] = {
        let mut values = [255; 256];
        let mut value = 0;
        while value < 64 {
            values[ALPHABET[value] as usize] = value as u8;
            value += 1;
        }
        values
    };
    let groups = text.chunks_exact(4);
    if !groups.remainder().is_empty() {
        return None;
    }
    let padding = text.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for (number, group) in groups.enumerate() {
        let padding = if (number + 1) * 4 == text.len() { padding } else { 0 };
        let mut bits = 0u32;
        for byte in &group[..4 - padding] {
            let value = VALUES[usize::from(*byte)];
            if value == 255 {
                return None;
            }
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * padding;
        let [_, all @ ..] = bits.to_be_bytes();
        let (there, over) = all.split_at(3 - padding);
        if over.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(there);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\u{3ff}\u{ff}", "z7/Dvw=="),
        ] {
            let mut out = String::new();
            base64(bytes.as_bytes(), &mut out);
            assert_eq!(out, text);
            #[cfg(feature = "text")]
            assert_eq!(undo_base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
    }

    #[cfg(feature = "text")]
    #[test]
    fn what_is_no_base64_is_refused() {
        for text in
            ["Z", "Zg", "Zg=", "====", "Zh==", "Zm9=", "Zm9v Zm9v", "Zg==Zg==", "Zm-v", "Zm\u{9}v", "=m9v", "Zg=v"]
        {
            assert_eq!(undo_base64(text.as_bytes()), None, "{text}");
        }
    }
}
