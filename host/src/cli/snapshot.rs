//! `lockstep snapshot`: what lies in a data directory, read without touching it.

use std::path::PathBuf;

use crate::cli::format::{size, table};
use crate::cli::{Failure, Outcome};
use crate::fs::DiskFs;
use crate::store::{ObjectFile, list_objects};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List every snapshot object of a data directory; the node may be running or stopped.
    #[command(after_help = "Example: lockstep snapshot list --data-dir data/1")]
    List {
        /// The node's data directory.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: &Command) -> Outcome {
    let Command::List { data_dir, json } = command;
    let objects = list_objects(&DiskFs, data_dir)
        .map_err(|e| Failure::Failed(format!("{}: {e}", data_dir.display())))?;
    if *json {
        objects.iter().for_each(|object| println!("{}", as_json(object)));
        return Ok(());
    }
    if objects.is_empty() {
        println!("no snapshots in {}", data_dir.display());
        return Ok(());
    }
    let heading = ["GROUP", "TERM", "INDEX", "SIZE", "DIGEST", "MODULE", "FILE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(objects.iter().map(as_row));
    print!("{}", table(&rows));
    Ok(())
}

fn as_row(object: &ObjectFile) -> Vec<String> {
    match &object.content {
        Ok(content) => vec![
            object.group.clone(),
            content.term.to_string(),
            content.index.to_string(),
            size(object.bytes),
            content.digest.to_string()[..16].to_owned(),
            content.module.to_string()[..12].to_owned(),
            object.file.clone(),
        ],
        Err(why) => vec![
            object.group.clone(),
            "?".to_owned(),
            "?".to_owned(),
            size(object.bytes),
            format!("bad: {why}"),
            "?".to_owned(),
            object.file.clone(),
        ],
    }
}

fn as_json(object: &ObjectFile) -> serde_json::Value {
    match &object.content {
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
    }
}
