//! How the kit shows bytes: as text where they are text, and never too many of them.

use lockstep_core::ids::hex;

/// Most characters of a value that are shown.
const SHOWN_MAX: usize = 160;
/// Bytes shown before and after the first byte that differs.
const AROUND_BYTES: usize = 32;

/// UTF-8 as quoted text, and any other bytes in hexadecimal; long ones are cut.
pub fn show(bytes: &[u8]) -> String {
    let whole = match str::from_utf8(bytes) {
        Ok(text) => format!("`{}`", text.escape_debug()),
        Err(_) => format!("0x{}", hex(bytes)),
    };
    match whole.char_indices().nth(SHOWN_MAX) {
        None => whole,
        Some((cut, _)) => format!("{}… ({} bytes)", &whole[..cut], bytes.len()),
    }
}

/// UTF-8 as it is, and any other bytes in hexadecimal.
pub fn text_or_hex(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("0x{}", hex(bytes)),
    }
}

/// What stands around a place in bytes.
pub fn around(bytes: &[u8], place: usize) -> String {
    let begin = place.saturating_sub(AROUND_BYTES).min(bytes.len());
    let end = (place + AROUND_BYTES).min(bytes.len());
    let (before, after) =
        (if begin > 0 { "…" } else { "" }, if end < bytes.len() { "…" } else { "" });
    format!("{before}{}{after} ({} bytes)", show(&bytes[begin..end]), bytes.len())
}

/// The first place at which two strings of bytes differ; `None` if they are equal.
pub fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let common = one.iter().zip(other).position(|(a, b)| a != b);
    common.or_else(|| (one.len() != other.len()).then(|| one.len().min(other.len())))
}
