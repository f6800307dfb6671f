//! The budget is kept at all times; once all is quiet, nothing lies on the disk that nobody needs.
//! Planted: `forget_reservation`, `leak_unlisted`, `leak_parts`.

use lockstep_host::fs::Fs as _;
use lockstep_host::store::layout::part_dir;

use super::{Checked, violated};
use crate::node::{Node, Replica};

/// What the store believes it has, and what there is.
pub fn budget(node: &Node, limit: u64) -> Checked {
    let Some(process) = &node.process else { return Ok(()) };
    let used = process.budget.used();
    if used > limit {
        let mut what = format!("node {}: {used} bytes of a budget of {limit}:", node.id);
        for replica in process.replicas.values() {
            what += &format!(" {:?}", replica.with_store(|store| store.report()));
        }
        return violated("space", what);
    }
    Ok(())
}

/// The files of a group are those that its store accounts for.
pub fn accounted(node: &Node, name: &str, replica: &Replica) -> Checked {
    let dir = node.snapshots(name);
    let (mut bytes, mut files) = (0, Vec::new());
    for dir in [part_dir(&dir), dir] {
        for file in node.fs.list(&dir).unwrap_or_default() {
            let opened = node.fs.open(&dir.join(&file), false);
            bytes += opened.and_then(|file| file.len()).unwrap_or(0);
            files.push(file);
        }
    }
    let usage = replica.with_store(|store| store.usage());
    let counted = usage.listed + usage.unlisted + usage.staged + usage.parked;
    match bytes <= counted {
        true => Ok(()),
        false => violated(
            "space",
            format!(
                "node {}: {bytes} bytes lie there, {counted} are accounted for: {files:?} \
                 {usage:?} {:?}",
                node.id,
                replica.with_store(|store| store.list()),
            ),
        ),
    }
}

/// All is quiet: what lies there is listed, promised, or the one parked transfer.
pub fn nothing_leaks(node: &Node, name: &str, replica: &Replica, receives: bool) -> Checked {
    let (objects, staged) = replica.with_store(|store| {
        store.collect();
        (store.list(), store.usage().staged)
    });
    let needless = objects.iter().find(|object| !object.listed && !object.promised);
    if let Some(object) = needless {
        let what = format!("node {}: {} stays and nobody needs it", node.id, object.file);
        return violated(
            "space",
            format!("{what}: {:?}", replica.with_store(|store| store.report())),
        );
    }
    let writes = receives || replica.sealing > 0;
    if staged > 0 && !writes {
        let parts = node.fs.list(&part_dir(&node.snapshots(name)));
        let what = format!("node {}: {staged} bytes are staged for nothing: {parts:?}", node.id);
        return violated("space", what);
    }
    let dir = node.snapshots(name);
    let objects_there =
        node.fs.list(&dir).unwrap_or_default().iter().filter(|f| f.ends_with("snap")).count();
    let parts = node.fs.list(&part_dir(&dir)).unwrap_or_default().len();
    match objects_there <= objects.len() && (parts <= 1 || writes) {
        true => Ok(()),
        false => violated("space", format!("{objects_there} objects and {parts} parts lie there")),
    }
}
