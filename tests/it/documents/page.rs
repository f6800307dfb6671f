//! What a document has its reader do, step by step.

use std::iter::Peekable;

/// The fence that begins and ends a block.
const FENCE: &str = "```";

/// One thing to do.
pub(super) enum Step {
    /// Write a file.
    File { path: String, text: String },
    /// Replace a part of a file.
    Change { path: String, from: String, to: String },
    /// Run a command, type lines into it, and see what it prints.
    Run { command: String, typed: String, prints: Vec<String> },
}

/// All steps of a document, each with the number of its line.
pub(super) fn steps(text: &str) -> Vec<(usize, Step)> {
    let mut lines = text.lines().zip(1..).peekable();
    let mut found = Vec::new();
    while let Some((line, number)) = lines.next() {
        let Some(info) = line.strip_prefix(FENCE) else {
            continue;
        };
        let block: Vec<_> = lines.by_ref().take_while(|(line, _)| *line != FENCE).collect();
        match info.split_once(' ') {
            None if info == "console" => commands(&block, &mut found),
            None => {}
            Some(("diff", path)) => found.push((number, change(path, &block))),
            Some((_, path)) => {
                let text = block.iter().map(|(line, _)| format!("{line}\n")).collect();
                found.push((number, Step::File { path: path.to_owned(), text }));
            }
        }
    }
    found
}

fn commands(block: &[(&str, usize)], found: &mut Vec<(usize, Step)>) {
    let mut lines = block.iter().copied().peekable();
    while let Some((line, number)) = lines.next() {
        let command = line.strip_prefix("$ ").map(str::to_owned);
        let command =
            command.unwrap_or_else(|| panic!("line {number}: a command begins with `$ `"));
        let (mut typed, mut prints) = (String::new(), Vec::new());
        while let Some(line) = next_of_output(&mut lines) {
            match line.strip_prefix("> ") {
                Some(text) => typed.extend([text, "\n"]),
                None => prints.push(line.to_owned()),
            }
        }
        found.push((number, Step::Run { command, typed, prints }));
    }
}

/// The next line, unless it is a command.
fn next_of_output<'a>(
    lines: &mut Peekable<impl Iterator<Item = (&'a str, usize)>>,
) -> Option<&'a str> {
    lines.next_if(|(line, _)| !line.starts_with("$ ")).map(|(line, _)| line)
}

/// The lines with a space in front are in the file before and after, those with `-` only before,
/// those with `+` only after.
fn change(path: &str, block: &[(&str, usize)]) -> Step {
    let those = |signs: [char; 2]| {
        let lines = block.iter().filter_map(|(line, _)| line.strip_prefix(signs));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    Step::Change { path: path.to_owned(), from: those([' ', '-']), to: those([' ', '+']) }
}
