//! A cluster of real processes on loopback, with real files, sockets and signals.
//!
//! - Needs the binary `lockstep` (`cargo build -p lockstep-host --bin lockstep`) and the guests
//!   (`cargo xtask guests`); `cargo xtask test` builds both first.
//! - Nodes listen below the range from which the kernel takes outgoing ports, on an address in
//!   127/8 that only this process uses: nothing else takes a port while its node restarts.
//! - Each wait is for a condition, with a time limit and a sentence that names the condition; never
//!   for a fixed time.
//! - A cluster that is dropped kills its processes. It keeps its directory, for the logs, if the
//!   thread panics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::Process;

/// From SIGTERM to exit: twice 3 s to hand leadership over and 3 s to drain, and 3 s for a slow
/// machine.
pub const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name of the cluster.
    pub cluster: String,
    /// How many nodes there are; their ids begin at 1.
    pub nodes: u16,
    pub groups: Vec<GroupSpec>,
    /// Lines for the top of every `node.toml`.
    pub settings: Vec<String>,
    /// Host and port of node 1; the other nodes have the ports after it. `None`: an address that
    /// only this process uses.
    pub first_address: Option<(String, u16)>,
}

/// One group of a cluster.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    pub name: String,
    /// As in `node.toml`: a path, or `native:NAME`.
    pub module: String,
    /// Lines for its table in `node.toml`.
    pub settings: Vec<String>,
}

/// The processes, and where their files are.
pub struct Cluster {
    spec: Spec,
    binary: PathBuf,
    dir: Option<TempDir>,
    root: PathBuf,
    addresses: BTreeMap<u16, String>,
    processes: BTreeMap<u16, Process>,
}

impl Spec {
    /// `nodes` nodes with one group of a guest that `cargo xtask guests` built.
    pub fn of_guest(guest: &str, nodes: u16) -> Result<Self> {
        Ok(Self::of_module(guest, &guest_file(guest)?.display().to_string(), nodes))
    }

    /// `nodes` nodes with one group.
    pub fn of_module(group: &str, module: &str, nodes: u16) -> Self {
        Self {
            cluster: "test".to_owned(),
            nodes,
            groups: vec![GroupSpec::new(group, module)],
            // Small segments, because many clusters may share a disk.
            settings: vec!["log-segment = \"4MiB\"".to_owned()],
            first_address: None,
        }
    }

    /// Takes snapshots after this many entries, in every group.
    pub fn with_snapshot_entries(mut self, entries: u64) -> Self {
        for group in &mut self.groups {
            group.settings.push(format!("snapshot-entries = {entries}"));
        }
        self
    }

    /// Adds a group.
    pub fn with_group(mut self, name: &str, module: &str) -> Self {
        self.groups.push(GroupSpec::new(name, module));
        self
    }

    /// Replaces the lines at the top of every `node.toml`.
    pub fn with_settings(mut self, lines: &[&str]) -> Self {
        self.settings = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }
}

impl GroupSpec {
    pub fn new(name: &str, module: &str) -> Self {
        Self { name: name.to_owned(), module: module.to_owned(), settings: Vec::new() }
    }
}

impl Cluster {
    /// Writes the configurations; starts nothing.
    pub fn prepare(spec: Spec) -> Result<Self> {
        let binary = binary()?;
        let dir = tempfile::Builder::new().prefix("lockstep-").tempdir();
        let dir = dir.context("a directory for a cluster")?;
        let root = dir.path().to_owned();
        let (host, first) = spec.first_address.clone().unwrap_or_else(own_address);
        let addresses: BTreeMap<u16, String> =
            (1..=spec.nodes).map(|node| (node, format!("{host}:{}", first + node - 1))).collect();
        let dir = Some(dir);
        let cluster = Self { spec, binary, dir, root, addresses, processes: BTreeMap::new() };
        for node in cluster.nodes() {
            fs::create_dir_all(cluster.node_dir(node)).context("a node's directory")?;
            cluster.configure(node, &cluster.configuration(node))?;
        }
        Ok(cluster)
    }

    /// Writes the configurations and starts every node.
    pub fn start(spec: Spec) -> Result<Self> {
        let mut cluster = Self::prepare(spec)?;
        for node in cluster.nodes() {
            cluster.start_node(node)?;
        }
        Ok(cluster)
    }

    /// All nodes, running or not.
    pub fn nodes(&self) -> Vec<u16> {
        self.addresses.keys().copied().collect()
    }

    pub fn running(&self) -> Vec<u16> {
        self.processes.keys().copied().collect()
    }

    pub fn address(&self, node: u16) -> &str {
        &self.addresses[&node]
    }

    /// The addresses of all nodes, separated by commas: what the commands take as `--endpoint`.
    pub fn endpoints(&self) -> String {
        self.addresses.values().map(String::as_str).collect::<Vec<_>>().join(",")
    }

    /// Where the nodes' directories are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn config_file(&self, node: u16) -> PathBuf {
        self.node_dir(node).join("node.toml")
    }

    pub fn data_dir(&self, node: u16) -> PathBuf {
        self.node_dir(node).join("data")
    }

    /// The log of a node, over all its restarts.
    pub fn log_file(&self, node: u16) -> PathBuf {
        self.node_dir(node).join("log")
    }

    pub fn log_text(&self, node: u16) -> String {
        fs::read_to_string(self.log_file(node)).unwrap_or_default()
    }

    /// What `prepare` writes to a node's `node.toml`.
    pub fn configuration(&self, node: u16) -> String {
        let mut text = format!("cluster = \"{}\"\nnode = {node}\n", self.spec.cluster);
        text.push_str("data-dir = \"data\"\n");
        for line in &self.spec.settings {
            writeln!(text, "{line}").expect("a string takes everything");
        }
        text.push_str("\n[nodes]\n");
        for (id, address) in &self.addresses {
            writeln!(text, "{id} = \"{address}\"").expect("a string takes everything");
        }
        for group in &self.spec.groups {
            let lines = group.settings.join("\n");
            write!(
                text,
                "\n[[groups]]\nname = \"{}\"\nmodule = \"{}\"\n{lines}\n",
                group.name, group.module
            )
            .expect("a string takes everything");
        }
        text
    }

    /// Replaces a node's `node.toml`.
    pub fn configure(&self, node: u16, text: &str) -> Result<()> {
        let file = self.config_file(node);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    pub fn start_node(&mut self, node: u16) -> Result<()> {
        self.start_node_with(node, &[])
    }

    /// Starts a node with additional arguments.
    pub fn start_node_with(&mut self, node: u16, more: &[&str]) -> Result<()> {
        self.start_node_as(node, more, |_| {})
    }

    /// Starts a node with additional arguments; `surround` may change the command before it runs.
    pub fn start_node_as(
        &mut self,
        node: u16,
        more: &[&str],
        surround: impl FnOnce(&mut Command),
    ) -> Result<()> {
        ensure!(!self.processes.contains_key(&node), "node {node} is already running");
        let config = self.config_file(node).display().to_string();
        let args: Vec<&str> =
            ["serve", "--config", &config].into_iter().chain(more.iter().copied()).collect();
        let log = self.log_file(node);
        let process = Process::start_as(&self.binary, &args, &log, surround)?;
        self.processes.insert(node, process);
        Ok(())
    }

    /// Starts a node that may have at most this many descriptors.
    pub fn start_node_limited(&mut self, node: u16, descriptors: u32) -> Result<()> {
        ensure!(!self.processes.contains_key(&node), "node {node} is already running");
        let (binary, config) = (self.binary.display().to_string(), self.config_file(node));
        let limited = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        let config = config.display().to_string();
        let args = ["-c", &limited, &binary, "serve", "--config", &config];
        let process = Process::start(Path::new("/bin/sh"), &args, &self.log_file(node))?;
        self.processes.insert(node, process);
        Ok(())
    }

    pub fn process(&self, node: u16) -> Result<&Process> {
        self.processes.get(&node).with_context(|| format!("node {node} is not running"))
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, node: u16) -> Result<()> {
        self.take(node)?.kill()
    }

    /// Stops a node with SIGTERM; returns its exit status.
    pub async fn stop(&mut self, node: u16) -> Result<ExitStatus> {
        let mut process = self.take(node)?;
        process.terminate()?;
        process.ended(STOP_PATIENCE).await
    }

    /// Waits until a node ends by itself; returns its exit status.
    pub async fn ended(&mut self, node: u16, patience: Duration) -> Result<ExitStatus> {
        self.take(node)?.ended(patience).await
    }

    /// Stops all nodes at once with SIGTERM; each must exit with 0.
    pub async fn stop_all(&mut self) -> Result<()> {
        for process in self.processes.values() {
            process.terminate()?;
        }
        for (node, mut process) in std::mem::take(&mut self.processes) {
            let status = process.ended(STOP_PATIENCE).await?;
            ensure!(
                status.success(),
                "node {node} was told to stop and ended with {status}; see {}",
                self.log_file(node).display()
            );
        }
        Ok(())
    }

    /// Removes a stopped node's data directory, as if it had lost its disk.
    pub fn wipe(&self, node: u16) -> Result<()> {
        ensure!(!self.processes.contains_key(&node), "node {node} is still running");
        let data = self.data_dir(node);
        fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))
    }

    /// Fails if a node has ended that should run, and names it.
    pub fn check_running(&mut self) -> Result<()> {
        for (node, process) in &mut self.processes {
            if let Some(status) = process.exited()? {
                let log = self.root.join(format!("node-{node}")).join("log");
                bail!("node {node} ended with {status}: {}", last_lines(&log, 5));
            }
        }
        Ok(())
    }

    /// Keeps the directory with configurations, data and logs, whatever happens.
    pub fn keep_files(&mut self) {
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
    }

    /// Leaves every process running and every file in place.
    pub fn leave(mut self) {
        self.keep_files();
        std::mem::take(&mut self.processes).into_values().for_each(std::mem::forget);
    }

    fn node_dir(&self, node: u16) -> PathBuf {
        self.root.join(format!("node-{node}"))
    }

    fn take(&mut self, node: u16) -> Result<Process> {
        self.processes.remove(&node).with_context(|| format!("node {node} is not running"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the cluster's files are kept in {}", self.root.display());
            for node in self.nodes() {
                eprintln!("node {node}: {}", last_lines(&self.log_file(node), 8));
            }
            self.keep_files();
        }
        // The processes end before their files are removed.
        self.processes.clear();
    }
}

/// The binary under test: `LOCKSTEP_BIN`, or `lockstep` in cargo's target directory.
pub fn binary() -> Result<PathBuf> {
    if let Some(file) = std::env::var_os("LOCKSTEP_BIN") {
        return Ok(file.into());
    }
    let this = std::env::current_exe().context("finding out where this program is")?;
    // target/debug/PROGRAM, or target/debug/deps/TEST.
    let found = this.ancestors().skip(1).take(2).map(|dir| dir.join("lockstep"));
    found.into_iter().find(|file| file.is_file()).with_context(|| {
        format!(
            "there is no binary `lockstep` beside {}; \
             build it with `cargo build -p lockstep-host --bin lockstep`",
            this.display()
        )
    })
}

/// A guest that `cargo xtask guests` built.
pub fn guest_file(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies in the checkout");
    let file = root.join("target/guests").join(name).with_extension("wasm");
    ensure!(file.is_file(), "{} is missing; build it with `cargo xtask guests`", file.display());
    Ok(file)
}

/// The last lines of a log.
pub fn last_lines(file: &Path, count: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(count)..].join("\n  ");
    format!("{}:\n  {tail}", file.display())
}

/// A host address in 127/8 that is made of this process's id, and the first of the 16 ports that
/// one more cluster of this process gets.
pub fn own_address() -> (String, u16) {
    static CLUSTERS: AtomicU16 = AtomicU16::new(0);
    let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // The second byte is at least 64, so that it is never 127.0.0.1.
    (format!("127.{}.{middle}.{low}", high | 64), 7_000 + number * 16)
}
