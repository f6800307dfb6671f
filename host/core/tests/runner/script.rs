//! The format of a script: blocks of commands, `---`, and the output that they are expected to
//! show.
//!
//! A block ends at an empty line. Lines that begin with `#` tell the story; they and the commands
//! stay as they are when expected output is rewritten.

use super::commands::Session;

/// Runs a script; returns it with the output that it showed in place of the expected one.
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
