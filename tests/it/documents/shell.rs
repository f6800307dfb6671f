//! A shell that runs the commands of a document, one after the other.
//!
//! - Folder, variables and jobs stay from one command to the next, as for a reader.
//! - The shell and all that it started are one process group, and end with it: first as they are
//!   told to, then by force.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lockstep_tests::cluster::{STOP_PATIENCE, binary};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a command may take: the first build of a project compiles its dependencies.
const PATIENCE: Duration = Duration::from_secs(600);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The shell says so of a job, at some later command.
const KILLED: &str = " Killed ";
/// What the shell says when a command has ended, before its exit code and folder.
const ENDED: &str = "ended";

pub(super) struct Shell {
    bash: Child,
    commands: ChildStdin,
    /// What the shell itself says.
    says: Receiver<String>,
    folder: PathBuf,
    /// Where input and output of commands lie.
    scratch: tempfile::TempDir,
    commands_run: u32,
}

/// What a command did.
pub(super) struct Said {
    pub(super) code: i32,
    /// On both outputs.
    pub(super) printed: String,
}

impl Shell {
    /// A shell in this folder, which finds the binary as `lockstep`. What cargo needs was fetched
    /// for the examples.
    pub(super) fn start(folder: &Path) -> Self {
        let binary = binary().expect("it is built");
        let built = binary.parent().expect("it is in a folder").display().to_string();
        let path = std::env::var("PATH").expect("there is one");
        let scratch = tempfile::tempdir().expect("there is space");
        let mut bash = Command::new("bash")
            .args(["--norc", "--noprofile"])
            .current_dir(folder)
            .env("PATH", format!("{built}:{path}"))
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("project-target"))
            // Outputs in English and without colours, no user's cluster, and no user's cache of
            // compiled code, but one of its own, so that nodes start as fast as for a reader.
            .env("LC_ALL", "C")
            .env("CARGO_TERM_COLOR", "never")
            .env("LOCKSTEP_CACHE_DIR", scratch.path().join("cache"))
            .env_remove("LOCKSTEP_ENDPOINT")
            .env_remove("LOCKSTEP_LOG")
            .env_remove("LOCKSTEP_LOG_FORMAT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("bash is there");
        let commands = bash.stdin.take().expect("it is piped");
        let lines = BufReader::new(bash.stdout.take().expect("it is piped")).lines();
        let (sender, says) = channel();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { bash, commands, says, folder: folder.to_owned(), scratch, commands_run: 0 }
    }

    /// The folder in which the shell is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command to its end. After `lockstep dev`, its nodes are where clients look.
    pub(super) fn run(&mut self, command: &str, typed: &str) -> Result<Said, String> {
        // Jobs go on writing to theirs.
        self.commands_run += 1;
        let name = |what: &str| self.scratch.path().join(format!("{what}-{}", self.commands_run));
        let (input, output) = (name("input"), name("output"));
        fs::write(&input, typed).map_err(|error| format!("{}: {error}", input.display()))?;
        let (from, to) = (input.display(), output.display());
        let line = format!("{{ {command}\n}} <{from} >{to} 2>&1\necho {ENDED} $? \"$PWD\"\n");
        self.commands
            .write_all(line.as_bytes())
            .map_err(|error| format!("$ {command}\nthe shell has ended: {error}"))?;
        let said = self.says.recv_timeout(PATIENCE);
        // A job may print what is no text.
        let printed = fs::read(&output).map_err(|error| format!("{to}: {error}"))?;
        let printed: String = String::from_utf8_lossy(&printed)
            .split_inclusive('\n')
            .filter(|line| !(line.starts_with("bash: line ") && line.contains(KILLED)))
            .collect();
        let said = said.map_err(|error| format!("$ {command}\n{error}; so far:\n{printed}"))?;
        let told = said.strip_prefix(ENDED).and_then(|it| it.trim_start().split_once(' '));
        let (code, folder) = told.ok_or_else(|| format!("the shell says: {said}"))?;
        self.folder = folder.into();
        let code = code.parse().map_err(|_| format!("the shell says: {said}"))?;
        if command.contains("lockstep dev ") && command.ends_with('&') {
            let endpoint = endpoint_of(&output)?;
            self.run(&format!("export LOCKSTEP_ENDPOINT={endpoint}"), "")?;
        }
        Ok(Said { code, printed })
    }
}

/// Waits until a cluster says where its nodes are. Its usual ports may be taken.
fn endpoint_of(output: &Path) -> Result<String, String> {
    let begun = Instant::now();
    loop {
        let printed = fs::read_to_string(output).unwrap_or_default();
        let status =
            printed.lines().find_map(|line| line.split_once("lockstep status --endpoint "));
        match status {
            Some((_, endpoint)) if printed.contains("Ctrl-C stops") => {
                return Ok(endpoint.trim().to_owned());
            }
            _ if begun.elapsed() > PATIENCE => {
                return Err(format!("no cluster has started: {printed}"));
            }
            _ => std::thread::sleep(LOOK),
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Jobs that are told to end remove their files.
        let _ = self.commands.write_all(b"kill $(jobs -p) 2>/dev/null; wait; exit\n");
        let begun = Instant::now();
        while matches!(self.bash.try_wait(), Ok(None)) {
            if begun.elapsed() > STOP_PATIENCE {
                let _ = kill_process_group(Pid::from_child(&self.bash), Signal::KILL);
                let _ = self.bash.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}
