//! Once the cluster has come to rest, every file on a disk is needed. Planted: `leak_unlisted`,
//! `leak_parts`.

use lockstep_host::fs::Fs as _;
use lockstep_host::store::layout::part_dir;

use super::{Checked, violated};
use crate::node::{Node, Replica};

/// At rest the only files are those of listed and promised objects, and of one suspended transfer.
pub fn none(node: &Node, name: &str, replica: &Replica, receives: bool) -> Checked {
    let (objects, staged) = replica.store.peek(|store| (store.list(), store.usage().staged));
    let needless = objects.iter().find(|object| !object.listed && !object.promised);
    if let Some(object) = needless {
        let what = format!("node {}: {} is not needed, and was not deleted", node.id, object.file);
        return violated(
            "leaks",
            format!("{what}: {:?}", replica.store.peek(|store| store.report())),
        );
    }
    let writes = receives || replica.sealing > 0;
    if staged > 0 && !writes {
        let parts = node.fs.list(&part_dir(&node.snapshots(name)));
        let what = format!(
            "node {}: {staged} bytes are staged, but nothing is being written: {parts:?}",
            node.id
        );
        return violated("leaks", what);
    }
    let dir = node.snapshots(name);
    let objects_there =
        node.fs.list(&dir).unwrap_or_default().iter().filter(|f| f.ends_with("snap")).count();
    let parts = node.fs.list(&part_dir(&dir)).unwrap_or_default().len();
    if objects_there <= objects.len() && (parts <= 1 || writes) {
        Ok(())
    } else {
        violated("leaks", format!("{objects_there} objects and {parts} parts are on the disk"))
    }
}
