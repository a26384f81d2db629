//! Texts in JSON.

/// Returns a JSON string (RFC 8259, section 7) of a text in any encoding that has ASCII in it.
pub fn json_string(text: &[u8]) -> Vec<u8> {
    let mut json = Vec::with_capacity(text.len() + 2);
    json.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => json.extend([b'\\', *byte]),
            b'\n' => json.extend(b"\\n"),
            b'\r' => json.extend(b"\\r"),
            b'\t' => json.extend(b"\\t"),
            0..=31 => json.extend(format!("\\u{byte:04x}").into_bytes()),
            _ => json.push(*byte),
        }
    }
    json.push(b'"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_controls_are_escaped() {
        assert_eq!(json_string(b"a\"b\\c\n\x01"), br#""a\"b\\c\n\u0001""#);
        assert_eq!(json_string("é".as_bytes()), "\"é\"".as_bytes());
    }
}
