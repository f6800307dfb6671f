//! The format of a script: blocks of commands, `---`, and what they are expected to show.
//!
//! Blocks end at an empty line. Lines that begin with `#` tell the story; they and the commands are
//! kept as they are when the expectations are written anew.

use super::commands::Session;

/// Runs a script; returns it with what really happened in place of what was expected.
pub(crate) fn replay(text: &str, progress: &mut dyn FnMut(&str)) -> String {
    let mut session = Session::default();
    let mut out = String::new();
    for block in text.split("\n\n").map(|block| block.trim_matches('\n')) {
        if block.is_empty() {
            continue;
        }
        let head = block.split("---\n").next().unwrap_or(block).trim_end_matches("---");
        let head = head.trim_end_matches('\n');
        out += head;
        out.push('\n');
        let commands = head.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let mut shown = Vec::new();
        let mut any = false;
        for command in commands {
            any = true;
            progress(command);
            shown.extend(session.run(command));
        }
        if any {
            out += "---\n";
        }
        for line in shown {
            out += &line;
            out.push('\n');
        }
        out.push('\n');
    }
    out.trim_end_matches('\n').to_owned() + "\n"
}
