//! A node's configuration file, `node.toml`: reads it, checks it, and explains what is wrong.
//!
//! ```toml
//! cluster = "demo"                  # nodes of another cluster are refused
//! node = 1                          # 1 to 65535
//! data-dir = "data/1"               # relative paths are relative to this file
//!
//! [nodes]                           # every node of the cluster, this one included
//! 1 = "127.0.0.1:7101"
//! 2 = "127.0.0.1:7102"
//! 3 = "127.0.0.1:7103"
//!
//! [[groups]]
//! name = "kv"
//! module = "kv.wasm"
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lockstep_core::group::SnapshotPolicy;
use lockstep_core::ids::{Lineage, NodeId, unhex};
use lockstep_core::limits;
use serde::Deserialize;

use crate::store::layout::snapshot_dir_of;

pub mod address;
pub mod clients;
pub mod guest;

pub use clients::ClientSettings;
pub use guest::GuestLimits;
use guest::Written;
pub(crate) use guest::check_limits;

use address::{Place, check_address};

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub cluster: String,
    pub node: NodeId,
    pub data_dir: PathBuf,
    /// Where this node listens: its own entry in `nodes`, unless the key `listen` overrides it.
    pub listen: String,
    pub nodes: BTreeMap<NodeId, String>,
    pub log_segment_bytes: u64,
    /// Disk space that all snapshots of this node may take together; `None` = no limit.
    pub snapshot_budget: Option<Share>,
    /// Bytes per second at which each snapshot is sent; 0 = no limit.
    pub snapshot_rate_bytes: u64,
    /// Seconds between two scrubs, which read everything on the disk; 0 = no scrubs.
    pub scrub_seconds: u64,
    /// Where metrics are served over HTTP, if anywhere.
    pub metrics_listen: Option<String>,
    pub clients: ClientSettings,
    pub groups: Vec<GroupSpec>,
    /// Added to this node's wall clock, to test what a wrong clock does.
    pub clock_offset_ms: i64,
}

/// One group this node hosts.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    pub name: String,
    pub module: ModuleSource,
    /// The lineage of the only group of this name that the node may host; `None` = any.
    pub lineage: Option<Lineage>,
    /// The nodes that host it; by default, all nodes of the cluster.
    pub nodes: BTreeSet<NodeId>,
    /// Handed to the guest's `init` when the group is bootstrapped.
    pub config: String,
    /// The state machine's limits, recorded when the group is bootstrapped.
    pub limits: GuestLimits,
    pub snapshot_policy: SnapshotPolicy,
    /// The group's own directory for snapshots, if they do not lie in the data directory.
    pub snapshot_dir: Option<PathBuf>,
    /// How much of the node's snapshot budget the group may take; `None` = no cap.
    pub snapshot_cap: Option<Share>,
}

/// An amount of disk space: in bytes, or as a part of the filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    Bytes(u64),
    Percent(u8),
}

impl Share {
    /// The amount in bytes, on a filesystem of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// Where a group's state machine comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ModuleSource {
    /// A WebAssembly component.
    File(PathBuf),
    /// `native:NAME`: a built-in state machine, for tests and measurements.
    Native(String),
}

/// Why a configuration cannot be used: the file, the place and what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct ConfigError {
    pub file: PathBuf,
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawNode {
    cluster: String,
    node: u16,
    data_dir: PathBuf,
    listen: Option<String>,
    nodes: BTreeMap<String, String>,
    log_segment: Option<String>,
    snapshot_budget: Option<String>,
    snapshot_rate: Option<String>,
    scrub_hours: Option<u64>,
    metrics_listen: Option<String>,
    connections: Option<u64>,
    client_memory: Option<String>,
    #[serde(default)]
    advertise: BTreeMap<String, String>,
    #[serde(default)]
    groups: Vec<RawGroup>,
    #[serde(default)]
    test_clock_offset_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawGroup {
    name: String,
    module: String,
    lineage: Option<String>,
    nodes: Option<Vec<u16>>,
    #[serde(default)]
    config: String,
    memory: Option<String>,
    entry_fuel: Option<u64>,
    command_fuel: Option<u64>,
    event_window: Option<String>,
    snapshot_entries: Option<u64>,
    snapshot_log_bytes: Option<String>,
    catch_up_entries: Option<u64>,
    snapshot_dir: Option<PathBuf>,
    snapshot_cap: Option<String>,
}

/// Default hours between two scrubs.
const SCRUB_HOURS: u64 = 24;
/// Lowest `snapshot-rate`, bytes per second: a block then takes half of the time after which a
/// transfer counts as stalled.
const SNAPSHOT_RATE_MIN: u64 = 64 << 10;

impl NodeConfig {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let fail = |why: String| ConfigError { file: file.to_owned(), why };
        let text = std::fs::read_to_string(file).map_err(|e| fail(e.to_string()))?;
        let base = file.parent().unwrap_or(Path::new("."));
        Self::parse(&text, base).map_err(fail)
    }

    /// Checks the text of a configuration; relative paths in it are relative to `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let raw: RawNode = toml::from_str(text).map_err(|e| e.to_string())?;
        name_is_plain("cluster", &raw.cluster)?;
        let node = node_id(raw.node)?;
        let nodes = cluster_nodes(&raw.nodes)?;
        let own = nodes.get(&node).ok_or_else(|| {
            format!("[nodes] has no entry for this node, {node}: add {node} = \"host:port\"")
        })?;
        let listen = raw.listen.clone().unwrap_or_else(|| own.clone());
        check_address("listen", &listen)?;
        let log_segment_bytes = match &raw.log_segment {
            None => limits::LOG_SEGMENT_BYTES,
            Some(size) => parse_size("log-segment", size)?,
        };
        if log_segment_bytes < limits::LOG_SEGMENT_BYTES_MIN {
            return Err(format!(
                "log-segment: {log_segment_bytes} bytes is below the minimum of {}",
                limits::LOG_SEGMENT_BYTES_MIN
            ));
        }
        let budget = raw.snapshot_budget.as_deref();
        let snapshot_budget = budget.map(|s| parse_share("snapshot-budget", s)).transpose()?;
        let rate_text = raw.snapshot_rate.as_deref();
        let rate = rate_text.map(|s| parse_size("snapshot-rate", s)).transpose()?;
        if rate.is_some_and(|rate| (1..SNAPSHOT_RATE_MIN).contains(&rate)) {
            return Err(format!(
                "snapshot-rate: below {SNAPSHOT_RATE_MIN} bytes a second, transfers would count as \
                 stalled: use at least that, or 0 for no limit"
            ));
        }
        if let Some(address) = &raw.metrics_listen {
            check_address("metrics-listen", address)?;
            if Place::of(address) == Place::of(&listen) {
                return Err(format!(
                    "metrics-listen: this node already listens on {address}: give metrics a port \
                     of their own"
                ));
            }
        }
        let memory = raw.client_memory.as_deref();
        let clients = clients::settings(raw.connections, memory, &raw.advertise, &nodes)?;
        let home = format!("{}-{node}", raw.cluster);
        let groups = groups(raw.groups, node, &nodes, base, &home)?;
        Ok(Self {
            cluster: raw.cluster,
            node,
            data_dir: base.join(raw.data_dir),
            listen,
            nodes,
            log_segment_bytes,
            snapshot_budget,
            snapshot_rate_bytes: rate.unwrap_or(0),
            scrub_seconds: raw.scrub_hours.unwrap_or(SCRUB_HOURS).saturating_mul(3600),
            metrics_listen: raw.metrics_listen,
            clients,
            groups,
            clock_offset_ms: raw.test_clock_offset_ms,
        })
    }

    /// The cluster's id on the wire and on disk: the head of the BLAKE3 digest of its name.
    pub fn cluster_id(&self) -> [u8; 16] {
        let digest = blake3::hash(format!("lockstep cluster {}", self.cluster).as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_bytes()[..16]);
        id
    }
}

/// Checks the table `[nodes]`: valid ids and addresses, and no address twice.
fn cluster_nodes(raw: &BTreeMap<String, String>) -> Result<BTreeMap<NodeId, String>, String> {
    let mut nodes: BTreeMap<NodeId, String> = BTreeMap::new();
    for (id, address) in raw {
        let number: u16 =
            id.parse().map_err(|_| format!("[nodes]: {id:?} is not a node id (1 to 65535)"))?;
        let id = node_id(number)?;
        check_address(&format!("[nodes] {id}"), address)?;
        let same = nodes.iter().find(|(_, have)| Place::of(have) == Place::of(address));
        if let Some((other, have)) = same {
            return Err(if have == address {
                format!("[nodes]: nodes {other} and {id} share the address {address}")
            } else {
                format!(
                    "[nodes]: {have} of node {other} and {address} of node {id} are the same \
                     address"
                )
            });
        }
        if nodes.insert(id, address.clone()).is_some() {
            return Err(format!("[nodes]: node {id} is listed twice"));
        }
    }
    Ok(nodes)
}

fn groups(
    raw: Vec<RawGroup>,
    node: NodeId,
    nodes: &BTreeMap<NodeId, String>,
    base: &Path,
    home: &str,
) -> Result<Vec<GroupSpec>, String> {
    if raw.is_empty() {
        return Err(
            "no group is configured: add a [[groups]] table with name and module".to_owned()
        );
    }
    let mut specs: Vec<GroupSpec> = Vec::new();
    let mut names = BTreeSet::new();
    for group in raw {
        let name = group.name;
        name_is_plain("group name", &name)?;
        if !names.insert(name.clone()) {
            return Err(format!("group {name:?} is configured twice"));
        }
        let members = members(&name, group.nodes, nodes)?;
        if !members.contains(&node) {
            continue;
        }
        let default = SnapshotPolicy::default();
        let log_size = group.snapshot_log_bytes.as_deref();
        let log_bytes = log_size.map(|size| parse_size("snapshot-log-bytes", size)).transpose()?;
        let entries = group.snapshot_entries.unwrap_or(default.entries);
        let of_group = |why: String| format!("group {name:?}: {why}");
        for (key, value) in [("entries", Some(entries)), ("log-bytes", log_bytes)] {
            if value == Some(0) {
                return Err(of_group(format!("snapshot-{key} must be at least 1")));
            }
        }
        let cap = group.snapshot_cap.as_deref();
        let snapshot_cap = cap.map(|s| parse_share("snapshot-cap", s)).transpose()?;
        let config = guest::config(&group.config).map_err(of_group)?;
        let written = Written {
            memory: group.memory.as_deref(),
            entry_fuel: group.entry_fuel,
            command_fuel: group.command_fuel,
            event_window: group.event_window.as_deref(),
        };
        let limits = GuestLimits::parse(written).map_err(of_group)?;
        specs.push(GroupSpec {
            module: match group.module.strip_prefix("native:") {
                Some(native) => ModuleSource::Native(native.to_owned()),
                None => ModuleSource::File(base.join(group.module)),
            },
            lineage: group.lineage.as_deref().map(parse_lineage).transpose()?,
            nodes: members,
            config,
            limits,
            snapshot_policy: SnapshotPolicy {
                entries,
                log_bytes: log_bytes.unwrap_or(default.log_bytes),
                catch_up: group.catch_up_entries.unwrap_or(default.catch_up),
            },
            // Groups, nodes and clusters may share a `snapshot-dir`: each gets its own part of it.
            snapshot_dir: group
                .snapshot_dir
                .map(|dir| snapshot_dir_of(&base.join(dir).join(home).join(&name))),
            snapshot_cap,
            name,
        });
    }
    if specs.is_empty() {
        return Err(format!("no group is hosted on node {node}"));
    }
    Ok(specs)
}

/// The nodes that host a group.
fn members(
    name: &str,
    listed: Option<Vec<u16>>,
    nodes: &BTreeMap<NodeId, String>,
) -> Result<BTreeSet<NodeId>, String> {
    let members: BTreeSet<NodeId> = match listed {
        None => nodes.keys().copied().collect(),
        Some(ids) => ids.into_iter().map(node_id).collect::<Result<_, _>>()?,
    };
    if let Some(stranger) = members.iter().find(|id| !nodes.contains_key(id)) {
        return Err(format!("group {name:?}: node {stranger} is not in [nodes]"));
    }
    let (count, most) = (members.len(), limits::REPLICAS_MAX);
    if count > most {
        return Err(format!(
            "group {name:?}: {count} nodes are configured to host it, the limit is {most}: list \
             fewer in `nodes`"
        ));
    }
    Ok(members)
}

fn node_id(number: u16) -> Result<NodeId, String> {
    match number {
        0 => Err("node ids are 1 to 65535; 0 is not one".to_owned()),
        id => Ok(NodeId(id)),
    }
}

fn name_is_plain(what: &str, name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > limits::GROUP_NAME_BYTES_MAX || !name.chars().all(plain) {
        return Err(format!(
            "{what} {name:?}: use 1 to {} characters of a-z, 0-9, - and _",
            limits::GROUP_NAME_BYTES_MAX
        ));
    }
    Ok(())
}

/// Reads a lineage: 32 hexadecimal digits, as `lockstep status` shows them.
fn parse_lineage(text: &str) -> Result<Lineage, String> {
    let bad = || {
        format!("lineage: {text:?} is not valid: write the 32 digits that `lockstep status` shows")
    };
    match unhex(text) {
        Some(lineage) if lineage != [0; 16] => Ok(Lineage(lineage)),
        Some(_) | None => Err(bad()),
    }
}

/// Reads a share: a size, or a part of the filesystem like `60%`.
fn parse_share(what: &str, text: &str) -> Result<Share, String> {
    let Some(percent) = text.trim().strip_suffix('%') else {
        return parse_size(what, text).map(Share::Bytes);
    };
    match percent.trim().parse() {
        Ok(percent @ 1..=100) => Ok(Share::Percent(percent)),
        _other => Err(format!("{what}: {text:?} is not a share: write a size, or a part like 60%")),
    }
}

/// Reads a size: bytes, or a whole number of KiB, MiB or GiB.
pub(crate) fn parse_size(what: &str, text: &str) -> Result<u64, String> {
    let bad = || format!("{what}: {text:?} is not a size: write a number of bytes, 64MiB or 2GiB");
    let text = text.trim();
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| bad())?;
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _other => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "demo"
        node = 1
        data-dir = "d"
        [nodes]
        1 = "127.0.0.1:7101"
        2 = "127.0.0.1:7102"
        [[groups]]
        name = "kv"
        module = "kv.wasm"
    "#;

    #[test]
    fn a_small_file_gets_defaults() {
        let config = NodeConfig::parse(GOOD, Path::new("/etc/lockstep")).expect("it is good");
        assert_eq!(config.data_dir, Path::new("/etc/lockstep/d"));
        assert_eq!(config.listen, "127.0.0.1:7101");
        assert_eq!(config.groups[0].nodes.len(), 2);
        assert_eq!(config.log_segment_bytes, limits::LOG_SEGMENT_BYTES);
    }

    /// The keys of a table, as the error about an unknown key lists them.
    fn keys_known_to<T: serde::de::DeserializeOwned>() -> Vec<String> {
        let error = toml::from_str::<T>("no-key = 1").map(drop).expect_err("it knows no such key");
        let (_, known) = error.message().split_once("expected one of ").expect("it lists them");
        known.split(", ").map(|key| key.trim_matches('`').to_owned()).collect()
    }

    #[test]
    fn the_reference_has_every_key_and_no_other() {
        let page = include_str!("../../docs/operating/reference.md");
        let (_, section) = page.split_once("## node.toml\n").expect("it has the section");
        let (section, _) = section.split_once("\n## ").expect("another one follows");
        let rows = section.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next());
        let bare = |key: &str| key.trim_matches(['[', ']']).to_owned();
        let documented: BTreeSet<String> = rows.map(bare).collect();
        let mut known = keys_known_to::<RawNode>();
        known.extend(keys_known_to::<RawGroup>());
        assert_eq!(documented, known.into_iter().collect());
    }

    #[test]
    fn what_is_wrong_is_named() {
        // The text to replace in the good file, its replacement, and what the error must say.
        let rows = [
            ("cluster =", "clutser =", "clutser"),
            ("node = 1", "node = 0", "1 to 65535"),
            ("node = 1", "node = 9", "no entry for this node, 9"),
            ("127.0.0.1:7102", "127.0.0.1", "not host:port"),
            ("127.0.0.1:7102", "http://127.0.0.1:7102", "not host:port"),
            ("127.0.0.1:7102", "two words:7102", "not host:port"),
            ("127.0.0.1:7102", "::1:7102", "not host:port"),
            ("127.0.0.1:7102", "127.0.0.1:7101", "share the address"),
            ("data-dir", "metrics-listen = \"127.0.0.1:7101\"\ndata-dir", "a port of their own"),
            ("2 = \"127", "x = \"127", "is not a node id"),
            ("2 = \"127", "01 = \"127", "listed twice"),
            ("\"kv\"", "\"K V\"", "use 1 to 64 characters of a-z"),
            ("\"kv.wasm\"", "\"kv.wasm\"\nnodes = [1, 7]", "node 7 is not in [nodes]"),
            ("\"kv.wasm\"", "\"kv.wasm\"\nnodes = [2]", "no group is hosted on node 1"),
            (
                "\"kv.wasm\"",
                "\"kv.wasm\"\n[[groups]]\nname=\"kv\"\nmodule=\"x\"",
                "configured twice",
            ),
            ("\"kv.wasm\"", "\"kv.wasm\"\nsnapshot-log-bytes = \"1 MB\"", "is not a size"),
            ("\"kv.wasm\"", "\"kv.wasm\"\nsnapshot-log-bytes = \"0\"", "must be at least 1"),
            ("\"kv.wasm\"", "\"kv.wasm\"\nsnapshot-cap = \"0%\"", "is not a share"),
            ("data-dir", "snapshot-budget = \"101%\"\ndata-dir", "is not a share"),
            ("data-dir", "metrics-listen = \"9101\"\ndata-dir", "not host:port"),
            (
                "\"kv.wasm\"",
                "\"kv.wasm\"\n[[groups]]\nname=\"kv\"\nmodule=\"x\"\nnodes = [2]",
                "configured twice",
            ),
            ("\"kv.wasm\"", "\"kv.wasm\"\nlineage = \"5f0a\"", "lineage: \"5f0a\" is not valid"),
            ("data-dir", "log-segment = \"1KiB\"\ndata-dir", "below the minimum"),
        ];
        for (from, to, want) in rows {
            let text = GOOD.replacen(from, to, 1);
            let error = NodeConfig::parse(&text, Path::new(".")).expect_err(want);
            assert!(error.contains(want), "{to}: {error}");
        }
    }

    #[test]
    fn nodes_do_not_share_an_address_in_two_spellings() {
        let both = |one: &str, other: &str| {
            let text = GOOD.replacen("127.0.0.1:7101", one, 1).replacen("127.0.0.1:7102", other, 1);
            NodeConfig::parse(&text, Path::new("."))
        };
        let error = both("[::1]:7101", "[0:0:0:0:0:0:0:1]:7101").expect_err("they are one");
        let says = "[::1]:7101 of node 1 and [0:0:0:0:0:0:0:1]:7101 of node 2 are the same address";
        assert!(error.contains(says), "{error}");
        assert!(both("node-1:7101", "Node-1:7101").is_err());
        assert!(both("node-1:7101", "node-2:7101").is_ok());
    }

    #[test]
    fn one_snapshot_dir_serves_many_and_mixes_nothing() {
        let text = GOOD.replacen("\"kv.wasm\"", "\"kv.wasm\"\nsnapshot-dir = \"/mnt\"", 1);
        let more = "\n[[groups]]\nname = \"b\"\nmodule = \"kv.wasm\"\nsnapshot-dir = \"/mnt\"";
        let config = NodeConfig::parse(&(text + more), Path::new(".")).expect("it is good");
        let dirs: Vec<_> = config.groups.iter().map(|group| group.snapshot_dir.clone()).collect();
        let dir = |group: &str| Some(PathBuf::from(format!("/mnt/demo-1/{group}/snap")));
        assert_eq!(dirs, [dir("kv"), dir("b")]);
    }

    #[test]
    fn a_group_has_a_bounded_number_of_nodes() {
        let nodes = |count: u16| {
            let line = |node| format!("{node} = \"127.0.0.1:{}\"\n", 7100 + node);
            let lines: String = (3..=count).map(line).collect();
            GOOD.replacen("[[groups]]", &format!("{lines}[[groups]]"), 1)
        };
        let most = limits::REPLICAS_MAX as u16;
        assert!(NodeConfig::parse(&nodes(most), Path::new(".")).is_ok());
        let error = NodeConfig::parse(&nodes(most + 1), Path::new(".")).expect_err("too many");
        assert!(error.contains("33 nodes are configured to host it, the limit is 32"), "{error}");
    }

    #[test]
    fn a_lineage_reads_as_it_is_shown() {
        let lineage = Lineage(std::array::from_fn(|place| place as u8 * 17));
        assert_eq!(parse_lineage(&lineage.to_string()), Ok(lineage));
        assert!(parse_lineage(&"0".repeat(32)).is_err(), "it would mean none");
        assert!(parse_lineage(&format!("+{}", "1".repeat(31))).is_err());
    }

    #[test]
    fn shares_are_absolute_or_of_the_filesystem() {
        assert_eq!(parse_share("x", "2MiB").map(|share| share.of(1000)), Ok(2 << 20));
        assert_eq!(parse_share("x", "60%").map(|share| share.of(1000)), Ok(600));
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("x", "3MiB"), Ok(3 << 20));
        assert_eq!(parse_size("x", "17"), Ok(17));
        assert!(parse_size("x", "99999999999GiB").is_err());
    }
}
