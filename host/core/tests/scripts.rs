//! Stories of whole clusters, written by hand: runs `scripts/*.txt` against
//! [`lockstep_core::group`].
//!
//! Each script runs twice and must show the same both times. `UPDATE_EXPECT=1` rewrites the output
//! that scripts expect; `SCRIPT=text` runs only the scripts whose name contains the text. What must
//! always hold is checked after every command, whatever a script expects (`checks`). With
//! `--nocapture`, the last line says how many scripts ran and how long they took.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[path = "runner/checks.rs"]
mod checks;
#[path = "runner/cluster.rs"]
mod cluster;
#[path = "runner/commands.rs"]
mod commands;
#[path = "runner/disk.rs"]
mod disk;
#[path = "runner/forge.rs"]
mod forge;
#[path = "runner/lane.rs"]
mod lane;
#[path = "runner/machine.rs"]
mod machine;
#[path = "runner/more.rs"]
mod more;
#[path = "runner/script.rs"]
mod script;
#[path = "runner/setup.rs"]
mod setup;
#[path = "runner/trials.rs"]
mod trials;
#[path = "runner/words.rs"]
mod words;

#[test]
fn every_story_goes_as_told() {
    let begun = Instant::now();
    let only = std::env::var("SCRIPT").unwrap_or_default();
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let paths: Vec<PathBuf> =
        scripts().into_iter().filter(|path| path.to_string_lossy().contains(&only)).collect();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let check_every = |start: usize| {
        let mine = paths.iter().skip(start).step_by(threads);
        mine.filter_map(|path| check(path, update).err()).collect::<Vec<_>>()
    };
    let check_every = &check_every;
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|start| scope.spawn(move || check_every(start))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    });
    println!("{} scripts, each run twice, in {:.2?}", paths.len(), begun.elapsed());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let files = std::fs::read_dir(folder).expect("the folder of scripts exists");
    let mut paths: Vec<PathBuf> =
        files.map(|file| file.expect("the folder can be read").path()).collect();
    paths.sort();
    paths
}

fn check(path: &Path, update: bool) -> Result<(), String> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let told = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
    let went = run(&name, &told)?;
    if run(&name, &told)? != went {
        return Err(format!("{name}: two runs differ"));
    }
    if update && went != told {
        std::fs::write(path, &went).map_err(|e| format!("{name}: {e}"))?;
        return Ok(());
    }
    if told == went { Ok(()) } else { Err(format!("{name}: {}", difference(&told, &went))) }
}

fn run(name: &str, text: &str) -> Result<String, String> {
    let mut last = String::new();
    let mut progress = |command: &str| command.clone_into(&mut last);
    catch_unwind(AssertUnwindSafe(|| script::replay(text, &mut progress))).map_err(|panic| {
        let why = panic.downcast_ref::<String>().map_or("?", String::as_str);
        format!("{name}: panicked at \"{last}\": {why}")
    })
}

/// Shows the first line that differs, with its neighbours.
fn difference(told: &str, went: &str) -> String {
    let same = told.lines().zip(went.lines()).take_while(|(a, b)| a == b).count();
    let part = |text: &str| {
        let lines = text.lines().skip(same.saturating_sub(3)).take(8);
        lines.map(|line| format!("    {line}\n")).collect::<String>()
    };
    format!("line {}\n  expected:\n{}  shown:\n{}", same + 1, part(told), part(went))
}
