//! `lockstep snapshot`: lists and checks the snapshots in a data directory, and changes nothing.
//!
//! A snapshot that the log lists has a row even if its file is missing. Only the running node knows
//! what holds an object; the command asks it if its configuration or its address is given.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_client::{Client, Options};
use lockstep_core::ids::GroupId;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::wal::replay::GroupLog;

use crate::cli::format::{size, table};
use crate::cli::{Failure, Outcome};
use crate::config::NodeConfig;
use crate::fs::DiskFs;
use crate::logging::out;
use crate::store::layout::{ObjectName, snapshot_dir};
use crate::store::{
    Identity, ObjectContent, ObjectFile, list_directory, list_objects, verify_object,
};
use crate::wal;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List every snapshot object; the node may be running or stopped.
    #[command(after_help = "Example: lockstep snapshot list --data-dir data/1")]
    List(Args),
    /// Read every object from end to end; exit with 1 if any is bad.
    #[command(after_help = "Example: lockstep snapshot verify --config node.toml")]
    Verify(Args),
    /// Say for each object of a stopped node whether the node would start from it, or why not.
    #[command(after_help = "Example: lockstep snapshot why --data-dir data/1")]
    Why(Args),
}

/// The node whose objects to look at.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node's data directory.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    data_dir: Option<PathBuf>,
    /// The node's configuration; with it, snapshots outside the data directory are found too.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    config: Option<PathBuf>,
    /// The running node, asked what holds each object; by default the one that --config names.
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// The objects found on the disk, and the node to ask what holds them.
struct Found {
    data: PathBuf,
    objects: Vec<ObjectFile>,
    endpoint: Option<String>,
    /// The configured groups, if a configuration was given.
    configured: Option<BTreeSet<String>>,
}

/// What holds each object, by group and file, as the running node says.
type Holders = BTreeMap<(String, String), String>;

/// The node's log of each group, or why the log cannot be read.
type Logs = Result<BTreeMap<GroupId, GroupLog>, String>;

/// An object and what is known of it.
struct Row {
    object: ObjectFile,
    listed: Option<bool>,
    /// What holds it; `None` if no node answered.
    held: Option<String>,
    /// What `verify` or `why` found; `None` if the object was only listed.
    verdict: Option<Result<(), String>>,
}

/// How long to wait for the node's answer: a running node answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) async fn run(command: &Command) -> Outcome {
    let (Command::List(args) | Command::Verify(args) | Command::Why(args)) = command;
    let Found { data, objects, endpoint, configured } = find(args)?;
    let logs: Logs = wal::inspect(&DiskFs, &data.join("wal"))
        .map(|(_, groups)| groups)
        .map_err(|error| error.to_string());
    if let Err(why) = &logs {
        note(&format!("cannot tell which snapshots are listed: {why}\n"));
    }
    let holders = match &endpoint {
        Some(endpoint) => holders(endpoint).await,
        None => None,
    };
    let missing = missing(&data, &objects, &logs);
    let mut rows = Vec::new();
    for object in objects {
        let verdict = match command {
            Command::List(_) => None,
            Command::Verify(_) => Some(read(&object)),
            Command::Why(_) => Some(why(&object, &logs, configured.as_ref())),
        };
        let listed = listed(&object, &logs);
        let name = (object.group.clone(), object.file.clone());
        let held = holders.as_ref().map(|all| all.get(&name).cloned().unwrap_or_default());
        rows.push(Row { object, listed, held, verdict });
    }
    rows.extend(missing);
    print(&rows, args.json);
    let bad = rows.iter().filter(|row| matches!(row.verdict, Some(Err(_)))).count();
    match (bad, command) {
        (0, _) | (_, Command::List(_) | Command::Why(_)) => Ok(()),
        (bad, Command::Verify(_)) => Err(Failure::Failed(format!("bad objects: {bad}"))),
    }
}

fn find(args: &Args) -> Result<Found, Failure> {
    let fail = |dir: &Path, e: std::io::Error| {
        Failure::Failed(format!("{}: {e}; give a node's data directory", dir.display()))
    };
    let mut elsewhere = Vec::new();
    let mut endpoint = args.endpoint.clone();
    let mut configured = None;
    let data = match (&args.data_dir, &args.config) {
        (Some(data), _) => data.clone(),
        (None, Some(file)) => {
            let mut config = NodeConfig::load(file).map_err(|e| Failure::Usage(e.to_string()))?;
            endpoint = endpoint.or_else(|| config.nodes.remove(&config.node));
            configured = Some(config.groups.iter().map(|group| group.name.clone()).collect());
            let dirs = config.groups.into_iter();
            elsewhere.extend(dirs.filter_map(|group| Some((group.name, group.snapshot_dir?))));
            config.data_dir
        }
        (None, None) => return Err(Failure::Usage("give --data-dir or --config".to_owned())),
    };
    let mut objects = list_objects(&DiskFs, &data).map_err(|e| fail(&data, e))?;
    for (group, dir) in elsewhere {
        objects.extend(list_directory(&DiskFs, &group, &dir).map_err(|e| fail(&dir, e))?);
    }
    Ok(Found { data, objects, endpoint, configured })
}

/// Asks the node at `endpoint` what holds each object; `None` if it does not answer.
async fn holders(endpoint: &str) -> Option<Holders> {
    let options = Options { deadline: PATIENCE, ..Options::default() };
    let client = Client::connect([endpoint], options).ok()?;
    let answer = tokio::time::timeout(PATIENCE, client.status(endpoint)).await.ok()?.ok()?;
    let objects = answer.groups.into_iter().flat_map(|group| {
        let name = group.name;
        group.objects.into_iter().map(move |object| {
            let held = if object.held.is_empty() { "-".to_owned() } else { object.held.join(", ") };
            ((name.clone(), object.file), held)
        })
    });
    Some(objects.collect())
}

/// Rows for the snapshots that the log lists but whose files are missing.
fn missing(data: &Path, objects: &[ObjectFile], logs: &Logs) -> Vec<Row> {
    let Ok(logs) = logs else { return Vec::new() };
    let mut rows = Vec::new();
    for (id, log) in logs {
        let state = &log.tail.state;
        for desc in &state.snapshots {
            let file = ObjectName::of(desc).file();
            let is_it = |object: &&ObjectFile| {
                GroupId::of_name(&object.group) == *id && object.file == file
            };
            if objects.iter().any(|object| is_it(&object)) {
                continue;
            }
            let dir = snapshot_dir(data, &state.group);
            let content = Ok(content_of(*id, desc));
            let object = ObjectFile { group: state.group.clone(), dir, file, bytes: 0, content };
            let why =
                "its file is missing; if the group has a snapshot-dir, give --config".to_owned();
            let (listed, held) = (Some(true), None);
            rows.push(Row { object, listed, held, verdict: Some(Err(why)) });
        }
    }
    rows
}

fn content_of(group: GroupId, desc: &SnapshotDesc) -> ObjectContent {
    ObjectContent {
        identity: Identity { cluster: [0; 16], group },
        term: desc.term,
        index: desc.index,
        module: desc.module,
        format: desc.format,
        length: desc.length,
        digest: desc.digest,
    }
}

/// Reads an object from end to end; shows the progress if standard error is a terminal.
fn read(object: &ObjectFile) -> Result<(), String> {
    let shows = std::io::stderr().is_terminal();
    let (mut blocks, all) = (0_u64, object.bytes);
    let result = verify_object(&DiskFs, object, &mut || {
        blocks += 1;
        if shows {
            let done = (blocks << 20).min(all);
            note(&format!("\r{} {} of {}  ", object.file, size(done), size(all)));
        }
    });
    if shows {
        note("\r\x1b[K");
    }
    result
}

/// Writes a note to standard error; a note that cannot be written is dropped.
fn note(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn listed(object: &ObjectFile, logs: &Logs) -> Option<bool> {
    let content = object.content.as_ref().ok()?;
    let log = logs.as_ref().ok()?.get(&content.identity.group);
    let names = |desc: &SnapshotDesc| {
        (desc.term, desc.index, desc.digest) == (content.term, content.index, content.digest)
    };
    Some(log.is_some_and(|log| log.tail.state.snapshots.iter().any(names)))
}

/// Whether the node would start from the object; `Err` says why not.
fn why(
    object: &ObjectFile,
    logs: &Logs,
    configured: Option<&BTreeSet<String>>,
) -> Result<(), String> {
    let content = object.content.as_ref().map_err(Clone::clone)?;
    let logs = logs.as_ref().map_err(|error| format!("the log cannot be read: {error}"))?;
    if content.identity.group != GroupId::of_name(&object.group) {
        return Err("its header names another group: the node would not touch it".to_owned());
    }
    let Some(log) = logs.get(&content.identity.group) else {
        return Err(format!(
            "the log does not know group {:?}: the node would touch nothing here; start it with \
             the log that belongs to these files, or delete them by hand",
            object.group
        ));
    };
    if configured.is_some_and(|groups| !groups.contains(&object.group)) {
        return Err(format!(
            "group {:?} is not configured: the node keeps it and does not run it; configure it, \
             or delete it with `lockstep group drop`",
            object.group
        ));
    }
    if listed(object, &Ok(logs.clone())) != Some(true) {
        return Err("the log does not list it: the next start deletes it".to_owned());
    }
    let (first, last) = (log.tail.state.first_index, log.tail.last_index);
    if content.index + 1 < first {
        return Err(format!("the log begins at {first}, after a gap"));
    }
    if content.index > last {
        return Err(format!("the log ends at {last}, before it"));
    }
    read(object)
}

fn print(rows: &[Row], json: bool) {
    if json {
        rows.iter().for_each(|row| out!("{}", as_json(row)));
        return;
    }
    if rows.is_empty() {
        return out!("no snapshots");
    }
    let heading =
        ["GROUP", "TERM", "INDEX", "SIZE", "DIGEST", "MODULE", "LISTED", "HELD", "FILE", ""];
    let mut all = vec![heading.map(str::to_owned).to_vec()];
    all.extend(rows.iter().map(as_row));
    out!("{}", table(&all).trim_end());
}

fn as_row(row: &Row) -> Vec<String> {
    let object = &row.object;
    let unknown = || "?".to_owned();
    let (term, index, digest, module) = match &object.content {
        Ok(content) => (
            content.term.to_string(),
            content.index.to_string(),
            content.digest.to_string()[..16].to_owned(),
            content.module.to_string()[..12].to_owned(),
        ),
        Err(why) => (unknown(), unknown(), format!("bad: {why}"), unknown()),
    };
    let listed = row.listed.map_or("?", |listed| if listed { "yes" } else { "no" });
    let verdict = match &row.verdict {
        None => String::new(),
        Some(Ok(())) => "good".to_owned(),
        Some(Err(why)) => why.clone(),
    };
    let (group, file) = (object.group.clone(), object.file.clone());
    let bytes = size(object.bytes);
    let held = row.held.clone().unwrap_or_else(unknown);
    vec![group, term, index, bytes, digest, module, listed.to_owned(), held, file, verdict]
}

fn as_json(row: &Row) -> serde_json::Value {
    let object = &row.object;
    let mut json = match &object.content {
        Ok(content) => serde_json::json!({
            "group": object.group,
            "file": object.file,
            "bytes": object.bytes,
            "term": content.term,
            "index": content.index,
            "length": content.length,
            "digest": content.digest.to_string(),
            "module": content.module.to_string(),
            "format": content.format,
        }),
        Err(why) => serde_json::json!({
            "group": object.group, "file": object.file, "bytes": object.bytes, "bad": why,
        }),
    };
    json["listed"] = row.listed.into();
    json["held"] = row.held.clone().into();
    if let Some(verdict) = &row.verdict {
        json["good"] = verdict.is_ok().into();
        json["why"] = verdict.as_ref().err().cloned().into();
    }
    json
}

#[cfg(test)]
mod tests {
    use lockstep_core::ids::{Digest, ModuleId, ReplicaId};
    use lockstep_core::recovery_state::RecoveryState;

    use super::*;

    /// An object whose header and trailer are taken to be good.
    fn object(group: &str) -> ObjectFile {
        let desc = SnapshotDesc {
            term: 1,
            index: 9,
            length: 0,
            digest: Digest([1; 32]),
            module: ModuleId([2; 32]),
            format: 1,
            configuration: Default::default(),
        };
        let (id, file) = (GroupId::of_name(group), ObjectName::of(&desc).file());
        let (group, dir) = (group.to_owned(), PathBuf::from("/d"));
        ObjectFile { group, dir, file, bytes: 0, content: Ok(content_of(id, &desc)) }
    }

    /// A group that the log or the configuration does not know is named, with the way out.
    #[test]
    fn an_object_of_a_group_that_is_not_run_says_what_to_do() {
        let old = object("old");
        let unknown = why(&old, &Ok(BTreeMap::new()), None).expect_err("the log is empty");
        assert!(unknown.contains("group \"old\"") && unknown.contains("by hand"), "{unknown}");

        let log = GroupLog::new(RecoveryState::blank("old", ReplicaId(7)));
        let logs = Ok(BTreeMap::from([(GroupId::of_name("old"), log)]));
        let kv = BTreeSet::from(["kv".to_owned()]);
        let left = why(&old, &logs, Some(&kv)).expect_err("it is not configured");
        assert!(left.contains("group \"old\" is not configured"), "{left}");
        assert!(left.contains("`lockstep group drop`"), "{left}");
    }
}
