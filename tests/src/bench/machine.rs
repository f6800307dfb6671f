//! What readers have to know about the machine to interpret a figure.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::statfs;

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: u64 = 0x0102_1994;
/// Clock ticks in a second, as `/proc` counts: the same on every Linux.
const TICKS: f64 = 100.0;

/// Processors, load and memory, in one line.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!(
        "{cores} cores ({}), Linux {}, load {:.2} before the first run",
        model.map_or("unknown", |(_, model)| model.trim()),
        kernel.trim(),
        load()
    )
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// Refuses a directory in memory, where syncs cost nothing and figures would mean nothing.
pub(crate) fn refuse_tmpfs(dir: &Path) -> Result<()> {
    let found =
        statfs(dir).with_context(|| format!("finding the filesystem of {}", dir.display()))?;
    ensure!(
        u64::try_from(found.f_type) != Ok(TMPFS),
        "{} is in memory (tmpfs), where syncing costs nothing: name one on a disk with --dir",
        dir.display()
    );
    Ok(())
}

/// Processor time that a process has used so far, in microseconds; `self` means this process.
pub(crate) fn cpu_micros(process: &str) -> Result<f64> {
    let file = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    // The process name, in parentheses, may hold any character; after it come the fields from the
    // third on.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let mut ticks = fields.split_whitespace().skip(11).map_while(|field| field.parse::<f64>().ok());
    let (user, system) = (ticks.next(), ticks.next());
    let ticks = user.zip(system).with_context(|| format!("{file} has no times"))?;
    Ok((ticks.0 + ticks.1) / TICKS * 1e6)
}
