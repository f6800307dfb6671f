//! Texts of guests and of the engine, cut before they reach a message.

use std::borrow::Cow;

/// The text, cut to at most `bytes_max` bytes.
pub(crate) fn bounded(text: &str, bytes_max: usize) -> Cow<'_, str> {
    const CUT: &str = " …";
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub(CUT.len()));
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

/// An error with its whole chain of causes, as one line of bounded length.
pub(super) fn one_line(error: &wasmtime::Error) -> String {
    const BYTES_MAX: usize = 1024;
    let text = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    bounded(&text, BYTES_MAX).into_owned()
}

/// The first names, and the number of the others.
pub(super) fn some(names: &[String], most: usize) -> String {
    match names.len().checked_sub(most) {
        _none if names.is_empty() => "nothing".to_owned(),
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..most].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        let check = |text: &str, bytes_max, expect: &str| {
            assert_eq!(bounded(text, bytes_max), expect);
            assert!(expect.len() <= bytes_max);
        };
        check("short", 5, "short");
        check("too long", 7, "too …");
        check("äöüäöü", 9, "äö …");
    }

    #[test]
    fn names_are_counted_if_there_are_many() {
        let check = |count: usize, expect: &str| {
            let names: Vec<_> = ["a", "b", "c"].iter().map(ToString::to_string).collect();
            assert_eq!(some(&names[..count], 2), expect);
        };
        check(0, "nothing");
        check(2, "a, b");
        check(3, "a, b and 1 more");
    }
}
