//! `lockstep run` with its input piped: what an author types, and what the prompt answers.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use lockstep_tests::cluster::binary;

use super::{PATIENCE, guest};
use crate::solo::assert_says;

/// A prompt under way. A dropped one is killed.
struct Prompt {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Prompt {
    fn start(args: &[&str]) -> Self {
        let mut run = Command::new(binary().expect("it is built"));
        run.arg("run").args(args);
        Self::of(run)
    }

    fn of(mut run: Command) -> Self {
        let mut child = run
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("it answers")
    }

    fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it is open");
        writeln!(input, "{line}").expect("it reads");
    }

    /// Says a line and expects one that contains all parts.
    fn check(&mut self, line: &str, says: &[&str]) {
        self.say(line);
        let said = self.next();
        assert_says(&format!("{line} -> {said}"), says);
    }

    /// Ends the input; returns the exit code, what else was printed, and the errors.
    fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        drop(self.input.take());
        let rest: Vec<String> = self.lines.iter().collect();
        let status = self.child.wait().expect("it ends");
        let errors = self.child.stderr.take().expect("it is piped");
        (status.code(), rest, std::io::read_to_string(errors).expect("it is text"))
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn commands_queries_and_events() {
    let mut prompt = Prompt::start(&[&guest("planted")]);
    prompt.check("set ant 7", &["-> ok"]);
    prompt.check("?ant", &["-> 7"]);
    prompt.check("?bee", &["-> rejected: there is no such key"]);
    prompt.check("nonsense", &["-> rejected: expected `set KEY N`"]);
    prompt.check(".watch b", &["events whose topic begins with `b` are shown"]);
    prompt.check("set ant 8", &["-> ok"]);
    prompt.check("set bee 9", &["-> ok"]);
    let event = prompt.next();
    assert!(event.starts_with("event ") && event.ends_with(".0 bee: 9"), "{event}");
    prompt.check(".watch", &["-> all events are shown"]);
    prompt.check(".unwatch", &["no events are shown"]);
    prompt.check("set bee 1", &["-> ok"]);
    prompt.check("\\.dotted", &["-> rejected: expected"]);
    prompt.check("list", &["-> ant bee"]);
    prompt.say(".help");
    assert_says(&prompt.next(), &["TEXT", "a command"]);
    prompt.say(".quit");
    let (code, rest, errors) = prompt.end();
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{rest:?}");
    assert_says(&rest.join("\n"), &[".watch PREFIX", ".snapshot"]);
}

#[test]
fn snapshots_and_time() {
    let mut prompt = Prompt::start(&[&guest("planted")]);
    prompt.check("set ant 1", &["-> ok"]);
    prompt.check(".snapshot", &["took the snapshot of entry ", " bytes"]);
    prompt.check("set ant 2", &["-> ok"]);
    prompt.check(".restore", &["went back to the snapshot of entry "]);
    prompt.check("?ant", &["-> 1"]);
    prompt.check("alarm bee 3600000", &["-> ok"]);
    prompt.check(".time", &["the timer did not fire; the timer is set, for "]);
    prompt.check(".time +59m", &["the timer did not fire; the timer is set, for "]);
    prompt.check(".time +1m", &["the timer fired once; the timer is not set"]);
    prompt.check(".time tomorrow", &["`tomorrow` is no time: write .time +5s"]);
    // A timer fires on its own, too.
    prompt.check("alarm cat 300", &["-> ok"]);
    let fired = prompt.next();
    assert!(fired.starts_with("the timer fired (entry "), "{fired}");
    let (code, rest, errors) = prompt.end();
    assert_eq!((code, rest.len()), (Some(1), 0), "a line was wrong: {errors}");
}

#[test]
fn everything_as_json() {
    let mut prompt = Prompt::start(&[&guest("planted"), "--json"]);
    prompt.check("set ant 7", &[r#"{"answer":"","ok":true}"#]);
    prompt.check("?bee", &[r#""answer":"there is no such key""#, r#""ok":false"#]);
    prompt.check(".watch", &[r#"{"note":"#]);
    prompt.check("set ant 8", &[r#""ok":true"#]);
    assert_says(&prompt.next(), &[r#"{"event":{"at":""#, r#""payload":"8""#, r#""topic":"ant""#]);
    prompt.check(".snapshot", &[r#"{"snapshot":{"bytes":"#, r#""index":"#]);
    let woken = [r#""waking_failed":false"#, r#""wakes_at_ms":null"#, r#""woken":0"#];
    prompt.check(".time +1s", &[&[r#""time_ms":"#], &woken[..]].concat());
    let (code, rest, errors) = prompt.end();
    assert_eq!((code, rest.len(), errors.as_str()), (Some(0), 0, ""));
}

/// A line that is longer than a command may be is refused as a whole.
#[test]
fn long_lines_are_no_commands() {
    let mut prompt = Prompt::start(&[&guest("planted")]);
    let long = |bytes| format!("set ant {}", "7".repeat(bytes));
    prompt.say(&long(1 << 20));
    assert_says(&prompt.next(), &["the command has 1048584 bytes", "at most 1044480 bytes"]);
    prompt.say(&long(5 << 20));
    assert_says(&prompt.next(), &["the line is too long", "nothing was applied"]);
    prompt.check("?ant", &["-> rejected: there is no such key"]);
    let (code, rest, errors) = prompt.end();
    assert_eq!((code, rest.len()), (Some(1), 0), "{errors}");
}

/// A call that traps is told, and the state is as it was before.
#[test]
fn a_trap_takes_nothing_along() {
    let mut prompt = Prompt::start(&[&guest("planted"), "--config", "query-emits"]);
    prompt.check("set ant 7", &["-> ok"]);
    prompt.check("?ant", &["trap in query", "events.emit", "the state is as it was before"]);
    prompt.check("count", &["-> 2"]);
    let (code, _, errors) = prompt.end();
    assert_eq!(code, Some(1), "{errors}");

    let refused = Prompt::start(&[&guest("planted"), "--config", "no-such-bug"]);
    let (code, rest, errors) = refused.end();
    assert_eq!((code, rest.len()), (Some(2), 0), "{errors}");
    assert_says(&errors, &["there is no such bug", "that `init` accepts with --config TEXT"]);
    let fails = Prompt::start(&[&guest("hostile"), "--config", "init panic"]);
    let (code, rest, errors) = fails.end();
    assert_eq!((code, rest.len()), (Some(1), 0), "{errors}");
    assert_says(&errors, &["trap in init"]);
    assert!(!errors.contains("--config"), "another configuration may not help: {errors}");
}

/// A timer whose wake fails is due, and waits for the next command.
#[test]
fn a_wake_that_fails_is_told() {
    let mut prompt = Prompt::start(&[&guest("hostile")]);
    prompt.check("wake write", &["-> ok"]);
    prompt.check("wake-at 1", &["-> ok"]);
    assert_says(&prompt.next(), &["trap in wake", "the state is as it was before"]);
    prompt.check(".time", &["the timer did not fire; the timer is due, but waking failed: it is"]);
    prompt.check("nothing", &["-> ok"]);
    assert_says(&prompt.next(), &["trap in wake"]);
    let (code, rest, errors) = prompt.end();
    assert_eq!((code, rest.len()), (Some(1), 0), "{errors}");
}

/// The file is exchanged while the prompt is open: a broken one is told and the old one goes on, a
/// good one takes over the state, and one that cannot read the state is told.
#[test]
fn a_file_that_changes_is_loaded() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("fsm.wasm");
    let replace = |bytes: &[u8]| {
        let next = dir.path().join("next");
        fs::write(&next, bytes).expect("it can be written");
        fs::rename(&next, &file).expect("it can be renamed");
    };
    let built = |name| fs::read(guest(name)).expect("it is built");
    replace(&built("counter"));
    let mut prompt = Prompt::start(&[&file.display().to_string()]);
    prompt.check("add 5", &["-> 5"]);

    replace(b"\0asm");
    assert_says(&prompt.next(), &["the file changed, but ", "the old one goes on"]);
    prompt.check("add 1", &["-> 6"]);

    // The same machine, other bytes: a section that says nothing.
    let mut other = built("counter");
    other.extend([0, 2, 1, b'x']);
    replace(&other);
    assert_says(&prompt.next(), &["counter 0.1.0 took over the state of entry ", "8 bytes"]);
    prompt.check("?get", &["-> 6"]);

    replace(&built("bank"));
    assert_says(&prompt.next(), &["the file changed, but ", "the old one goes on"]);
    prompt.check("add 1", &["-> 7"]);
    let (code, _, errors) = prompt.end();
    assert_eq!(code, Some(0), "{errors}");
}

/// Without a file, the project in the folder is built, and built again when its source changes.
/// What does not compile is told, and the old one goes on; what compiles takes over the state.
#[test]
fn a_project_is_built_when_its_source_changes() {
    let home = tempfile::tempdir().expect("a directory");
    let in_project = |command: &str| {
        let mut lockstep = Command::new(binary().expect("it is built"));
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("project-target");
        lockstep.arg(command).current_dir(home.path());
        lockstep.env("CARGO_NET_OFFLINE", "true").env("CARGO_TARGET_DIR", target);
        lockstep
    };
    let made = in_project("new").args(["counted", "--dir", "."]).output().expect("it starts");
    assert!(made.status.success(), "{made:?}");
    let change = |path: &str, from: &str, to: &str| {
        let file = home.path().join(path);
        let text = fs::read_to_string(&file).expect("it is there").replacen(from, to, 1);
        fs::write(file, text).expect("there is space");
    };

    let mut run = in_project("run");
    run.arg("--json");
    let mut prompt = Prompt::of(run);
    let add = r#"{"add": {"key": "apples", "by": 3}}"#;
    prompt.check(add, &[r#""answer":"3","ok":true"#]);
    change("src/lib.rs", "use lockstep_guest::*;", "use lockstep_guest::*; fn broken(");
    let says = ["the source changed, but the old one goes on: ", "error: ", "fn broken("];
    assert_says(&prompt.next(), &says);
    prompt.check(add, &[r#""answer":"6","ok":true"#]);
    change("src/lib.rs", " fn broken(", "");
    change("Cargo.toml", "0.1.0", "0.2.0");
    assert_says(&prompt.next(), &["counted 0.2.0 took over the state of entry "]);
    prompt.check(r#"?{"count": "apples"}"#, &[r#""answer":"6","ok":true"#]);
    let (code, rest, errors) = prompt.end();
    assert_eq!((code, rest.len()), (Some(0), 0), "{errors}");
    assert_says(&errors, &["counted: building, in Rust"]);
}
