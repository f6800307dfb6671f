//! Shortens what rustfmt leaves too long: comments and strings.
//!
//! * The paragraph of a comment is filled again from its first long line on. Lists keep their
//!   indent; what stands in a fence, in a table or after code is left alone.
//! * A string is cut after a blank with a `\`, which does not change its value. Raw strings are
//!   left alone.
//! * A line with no place to cut stays long. Wrapping twice gives the same result as wrapping once.

use super::source::Source;

/// The file with its long lines wrapped at `width` columns; `None` if nothing changes.
pub(super) fn wrap(path: &str, text: &str, width: usize) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut at = 0;
    let mut fenced = false;
    while at < lines.len() {
        let comment = Comment::of(&lines[at]);
        fenced = comment.as_ref().is_some_and(|comment| comment.is_fence() != fenced);
        let long = lines[at].chars().count() > width;
        if let (Some(comment), true, false) = (&comment, long, fenced) {
            let end = comment.paragraph_end(&lines, at);
            let filled = comment.filled(&lines[at..end], width);
            lines.splice(at..end, filled);
        }
        at += 1;
    }
    cut_strings(path, &mut lines, width);
    let wrapped = lines.join("\n") + "\n";
    (wrapped != text).then_some(wrapped)
}

/// A line that holds a comment and nothing else.
struct Comment<'a> {
    /// The indent and the slashes.
    head: &'a str,
    /// Everything after them.
    body: &'a str,
}

impl<'a> Comment<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let indent = line.len() - line.trim_start().len();
        let slashes = ["//!", "///", "//"].into_iter().find(|s| line[indent..].starts_with(s))?;
        let (head, body) = line.split_at(indent + slashes.len());
        (body.is_empty() || body.starts_with(' ')).then_some(Self { head, body })
    }

    fn is_fence(&self) -> bool {
        self.body.trim_start().starts_with("```")
    }

    /// Bytes before the text of a list's item, its marker included; `None` for other lines.
    fn item(&self) -> Option<usize> {
        let text = self.body.trim_start();
        let blanks = self.body.len() - text.len();
        let digits = text.chars().take_while(char::is_ascii_digit).count();
        let numbered = digits > 0 && text[digits..].starts_with(". ");
        let has_marker = text.starts_with("- ") || text.starts_with("* ");
        match (has_marker, numbered) {
            (true, _) => Some(blanks + 2),
            (false, true) => Some(blanks + digits + 2),
            (false, false) => None,
        }
    }

    /// Whether this line continues the paragraph of the line before, whose head was `head`.
    fn goes_on(&self, head: &str) -> bool {
        let text = self.body.trim_start();
        let own = text.is_empty() || text.starts_with(['|', '#', '>', '[']) || self.is_fence();
        self.head == head && !own && self.item().is_none()
    }

    /// The line after the last one of the paragraph that the line at `at` is in.
    fn paragraph_end(&self, lines: &[String], at: usize) -> usize {
        let more = lines[at + 1..]
            .iter()
            .take_while(|line| Comment::of(line).is_some_and(|next| next.goes_on(self.head)));
        at + 1 + more.count()
    }

    /// These lines, the first of which is this one, filled to `width`.
    fn filled(&self, lines: &[String], width: usize) -> Vec<String> {
        let text = self.body.trim_start();
        if text.starts_with('|') {
            return lines.to_vec();
        }
        let indent = self.item().unwrap_or(self.body.len() - text.len());
        let mut filled = Vec::new();
        let mut line = format!("{}{}", self.head, &self.body[..indent]);
        let mut is_empty = true;
        let bodies = lines.iter().enumerate().map(|(number, line)| {
            if number == 0 { &self.body[indent..] } else { &line[self.head.len()..] }
        });
        for word in bodies.flat_map(str::split_whitespace) {
            if !is_empty && line.chars().count() + 1 + word.chars().count() > width {
                let next = format!("{}{}", self.head, " ".repeat(indent));
                filled.push(std::mem::replace(&mut line, next));
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        filled.push(line);
        filled
    }
}

/// Cuts strings in lines that are too long, until none can be cut.
fn cut_strings(path: &str, lines: &mut Vec<String>, width: usize) {
    let mut at = 0;
    while at < lines.len() {
        if lines[at].chars().count() > width {
            // Which characters belong to a string depends on everything before them.
            let text = lines.join("\n");
            let code: Vec<char> = Source::new(path, &text).code[at].chars().collect();
            if let Some((head, tail)) = cut_string(&lines[at], &code, width) {
                lines.splice(at..=at, [head, tail]);
            }
        }
        at += 1;
    }
}

fn cut_string(line: &str, code: &[char], width: usize) -> Option<(String, String)> {
    let chars: Vec<char> = line.chars().collect();
    let blanks = chars.iter().take_while(|c| **c == ' ').count();
    let in_string = |at: usize| code[at] == '"';
    let may_cut = |at: usize| {
        let next = chars.get(at + 1).copied().unwrap_or(' ');
        in_string(at) && in_string(at + 1) && chars[at] == ' ' && !" \"".contains(next)
    };
    // The blank stays in front of the `\`, which takes the last column.
    let cut = (blanks + 1..width.min(chars.len()) - 1).rev().find(|at| may_cut(*at))?;
    let inside = blanks > 0 && in_string(0);
    let indent = " ".repeat(match chars.get(blanks) {
        _ if inside => blanks,
        // Under the first character of the string.
        Some('"') => blanks + 1,
        _ => blanks + 4,
    });
    let head = chars[..=cut].iter().collect::<String>() + "\\";
    Some((head, indent + &chars[cut + 1..].iter().collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &str) {
        let wrapped = wrap("a.rs", text, 24).unwrap_or_else(|| text.to_owned());
        assert_eq!(wrapped, expect);
        assert_eq!(wrap("a.rs", &wrapped, 24), None, "wrapping twice");
    }

    #[test]
    fn comments_are_filled() {
        check("//! short\n", "//! short\n");
        check(
            "//! one two three four five\n//! six\n//!\n//! seven\n",
            "//! one two three four\n//! five six\n//!\n//! seven\n",
        );
        check(
            "/// - one two three four five\n///   six\n/// - seven\n",
            "/// - one two three four\n///   five six\n/// - seven\n",
        );
        check(
            "    // 12. one two three four\n    fn a() {}\n",
            "    // 12. one two three\n    //     four\n    fn a() {}\n",
        );
        check("// a_word_that_has_no_place_to_cut\n", "// a_word_that_has_no_place_to_cut\n");
    }

    #[test]
    fn what_has_a_shape_keeps_it() {
        for text in [
            "//! ```text\n//! one two three four five\n//! ```\n//! six\n",
            "//! | one | two | three | four |\n",
            "let a = 1; // one two three four\n",
            "const A: &str = r\"one two three\";\n",
            "const A: [char; 1] = [' ', 'b', 'c'];\n",
        ] {
            check(text, text);
        }
        check(
            "//! ```\n//! a\n//! ```\n//! one two three four five\n",
            "//! ```\n//! a\n//! ```\n//! one two three four\n//! five\n",
        );
    }

    #[test]
    fn strings_are_cut_and_mean_the_same() {
        check(
            "#[error(\"one two three four five six seven\")]\n",
            "#[error(\"one two three \\\n    four five six \\\n    seven\")]\n",
        );
        check(
            "  f(\"one_two_three  four_five\")\n",
            "  f(\"one_two_three  \\\n      four_five\")\n",
        );
        check("f(\"one_two_three_four \")\n", "f(\"one_two_three_four \")\n");
    }
}
