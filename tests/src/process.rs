//! One `lockstep serve` process: started, signalled, measured, and never left behind.
//!
//! - Only the child that was started here is ever signalled, by its own id.
//! - A dropped process is killed and waited for, so that no test leaves one behind.
//! - Its output goes to a file that outlives it; a restart appends.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How often a wait checks whether a process has ended.
const POLL: Duration = Duration::from_millis(10);
/// How often the memory of a process is sampled.
const MEMORY_POLL: Duration = Duration::from_millis(5);

/// A running node.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Samples the memory of a process again and again.
pub struct MemoryWatch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

/// The exit code and the output of a program that ended.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    /// Starts `program` with `args`; both of its outputs are appended to `log`.
    pub fn start(program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        Self::start_as(program, args, log, |_| {})
    }

    /// Starts a program; `surround` may change the command before it runs.
    pub fn start_as(
        program: &Path,
        args: &[&str],
        log: &Path,
        surround: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let out = append_to(log)?;
        let err = out.try_clone().with_context(|| format!("{}", log.display()))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
        // No user's cache of compiled code: what a test sees must not depend on earlier ones.
        command.env("LOCKSTEP_CACHE_DIR", "");
        surround(&mut command);
        let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("killing a node")?;
        self.child.wait().context("waiting for a killed node")?;
        Ok(())
    }

    /// Sends SIGSTOP: the process keeps its connections and answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Sends SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Sends SIGTERM; [`Process::ended`] waits for the end.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// The process's exit status, if it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("asking whether a node has ended")
    }

    /// Waits until the process ends by itself; fails if it does not within `patience`.
    pub async fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let since = Instant::now();
        while since.elapsed() < patience {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("process {} did not end within {patience:?}; see {}", self.id(), self.log.display())
    }

    /// The process's present memory, bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        memory_bytes(self.id())
    }

    /// Samples the process's memory until the watch is asked for the peak.
    pub fn watch_memory(&self) -> MemoryWatch {
        let (id, ended) = (self.id(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut peak = 0;
            // A process that has ended has no memory; its end is reported elsewhere.
            while !seen.load(Ordering::Relaxed) {
                peak = peak.max(memory_bytes(id).unwrap_or(0));
                thread::sleep(MEMORY_POLL);
            }
            peak
        });
        MemoryWatch { ended, thread }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let id = id.expect("a child has an id above 0");
        kill_process(id, signal).with_context(|| format!("{signal:?} to process {}", self.id()))
    }
}

impl MemoryWatch {
    /// The most memory that was seen, bytes.
    pub fn peak(self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("sampling does not panic")
    }
}

/// The memory of a process, bytes. A page that the process maps twice counts once: the copy of a
/// guest that writes snapshots maps the pages of the live one, which the kernel's own peak of
/// resident memory counts again.
fn memory_bytes(process: u32) -> Result<u64> {
    let file = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{file} has no Pss"))? << 10)
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program that must end by itself within `patience`.
pub async fn run(program: &Path, args: &[&str], patience: Duration) -> Result<Output> {
    let dir = tempfile::tempdir().context("a directory for a program's output")?;
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(append_to(&out)?)
        .stderr(append_to(&err)?)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let mut process = Process { child, log: err.clone() };
    let status = process.ended(patience).await;
    let text =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let output = Output {
        code: status.as_ref().ok().and_then(ExitStatus::code),
        stdout: text(&out),
        stderr: text(&err),
    };
    ensure!(status.is_ok(), "{} {args:?} did not end: {output:?}", program.display());
    Ok(output)
}

fn append_to(file: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("opening {}", file.display()))
}
