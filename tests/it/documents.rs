//! Runs documents as they are written: their commands in order, with their files, in an empty
//! folder, and compares what is printed with what the document says.
//!
//! What counts in a document:
//! - A block that begins with ```` ```console ````: a line `$ …` is a command for a shell, the
//!   lines below it are what it prints. Lines `> …` are typed into it. A line `…` stands for any
//!   lines.
//! - A block whose fence names a file, as ```` ```rust src/lib.rs ````, is that file. If it is a
//!   `diff`, it changes the file.
//!
//! A document's addresses are replaced by some that only this process uses. What differs from run
//! to run is in [`Varying`], and nothing else may differ.

mod page;
mod shell;
mod varying;

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_tests::cluster::{guest_file, own_address};

use page::{Step, steps};
use shell::Shell;
use varying::Varying;

/// The ports of the documents, on this host.
const WRITTEN: &str = "127.0.0.1:710";
/// What `lockstep run` says on a terminal, and not to a test.
const GREETING: &str = ": .help says what there is";

/// Follows a document of the checkout, and returns where it differs from what happens.
fn followed(document: &str, text: &str, folder: &Path) -> Result<(), String> {
    let (host, first) = own_address();
    let own = |digit: u16| format!("{host}:{}", first + digit);
    let replaced = |text: &str| {
        (1..=9).fold(text.to_owned(), |text, digit| {
            text.replace(&format!("{WRITTEN}{digit}"), &own(digit))
        })
    };
    let restored = |text: String| {
        (1..=9).fold(text, |text, digit| text.replace(&own(digit), &format!("{WRITTEN}{digit}")))
    };
    let mut shell = Shell::start(folder);
    let mut varying = Varying::default();
    for (line, step) in steps(text) {
        let at = format!("{document}:{line}");
        match step {
            Step::File { path, text } => {
                write(&shell.folder().join(path), &replaced(&text))
                    .map_err(|why| at + ": " + &why)?;
            }
            Step::Change { path, from, to } => {
                let path = shell.folder().join(path);
                let text = fs::read_to_string(&path).map_err(|error| format!("{at}: {error}"))?;
                if text.matches(&from).count() != 1 {
                    return Err(format!("{at}: {} does not have once:\n{from}", path.display()));
                }
                write(&path, &text.replace(&from, &to)).map_err(|why| at + ": " + &why)?;
            }
            Step::Run { command, typed, prints } => {
                let said = shell.run(&replaced(&command), &replaced(&typed))?;
                let printed = restored(said.printed);
                let prints: Vec<&str> =
                    prints.iter().map(|it| &**it).filter(|it| !it.ends_with(GREETING)).collect();
                // What is typed into is a world of its own.
                let mut own = Varying::default();
                let varying = if typed.is_empty() { &mut varying } else { &mut own };
                let why = match varying.same(&prints, &printed.lines().collect::<Vec<_>>()) {
                    Err(why) => why,
                    Ok(()) if prints.is_empty() && said.code != 0 => {
                        format!("it ends with {}", said.code)
                    }
                    Ok(()) => continue,
                };
                return Err(format!("{at}: $ {command}\n{why}\nall that it prints:\n{printed}"));
            }
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// A folder of the checkout.
fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Follows a document in a folder.
fn check(document: &str, folder: &Path) {
    let text = fs::read_to_string(checkout(document)).expect("it is in the checkout");
    if let Err(why) = followed(document, &text, folder) {
        panic!("{why}");
    }
}

#[test]
fn the_tutorial_is_true() {
    // The same folder each time: cargo keeps what it built for each.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tutorial");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("there is space");
    check("docs/tutorial.md", &folder);
}

#[test]
fn what_the_examples_show_is_true() {
    for example in ["examples", "examples/lock", "examples/queue"] {
        check(&format!("{example}/README.md"), &checkout(example));
    }
}

#[test]
fn what_operators_do_about_a_plugin_is_true() {
    let folder = tempfile::tempdir().expect("there is space");
    for (guest, name) in [("kv", "kv"), ("next", "kv-2"), ("fixed", "kv-3")] {
        let file = folder.path().join(name).with_extension("wasm");
        fs::copy(guest_file(guest).expect("it is built"), file).expect("there is space");
    }
    check("docs/operating/plugin.md", folder.path());
}

/// Follows a text of a few lines.
fn check_text(text: &str, expect: Result<(), &str>) {
    let folder = tempfile::tempdir().expect("there is space");
    match (followed("a.md", text, folder.path()), expect) {
        (Ok(()), Ok(())) => {}
        (Err(why), Err(expect)) => assert!(why.contains(expect), "{why}"),
        (other, expect) => panic!("{text}: {other:?}, not {expect:?}"),
    }
}

#[test]
fn what_a_document_says_is_compared() {
    let after = |prints: &str| format!("# A\n\n```console\n$ printf 'a 1\\nb 2\\n'\n{prints}```\n");
    check_text(&after("a 1\nb 2\n"), Ok(()));
    check_text(&after("a 1\n…\n"), Ok(()));
    check_text(&after("…\n"), Ok(()));
    check_text(&after("a 1\nb 3\n"), Err("a.md:4: $ printf"));
    check_text(&after("a 1\n"), Err("`b 2` is printed, too"));
    check_text(&after("a 1\nb 2\nc\n"), Err("`c` is not printed"));
    check_text(&after("…\na 1\n"), Err("`b 2` is printed, too"));
    check_text("```console\n$ false\n```\n", Err("it ends with 1"));
    check_text("```console\n$ cd gone\n…\n$ true\n```\n", Ok(()));
}

#[test]
fn files_are_written_and_changed() {
    let page = |change: &str, prints: &str| {
        format!(
            "```text a.txt\none\ntwo 127.0.0.1:7101\n```\n\n```diff a.txt\n{change}```\n\n\
             ```console\n$ cat a.txt\n{prints}```\n"
        )
    };
    check_text(&page("-one\n+three\n", "three\ntwo 127.0.0.1:7101\n"), Ok(()));
    check_text(&page(" one\n+three\n", "one\nthree\ntwo 127.0.0.1:7101\n"), Ok(()));
    check_text(&page("-four\n+three\n", "…\n"), Err("does not have once:\nfour"));
}

#[test]
fn what_is_typed_is_read_and_jobs_end_with_the_shell() {
    check_text("```console\n$ cat\n> a\na\n> b\nb\n```\n", Ok(()));
    check_text(
        "```console\n$ sleep 1000 & echo $! > id\n$ kill %1\n$ sleep 1000 & echo $! > id\n```\n",
        Ok(()),
    );
}
