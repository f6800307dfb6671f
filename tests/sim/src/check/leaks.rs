//! Once all is quiet, nothing lies on the disk that nobody needs. Planted: `leak_unlisted`,
//! `leak_parts`.

use lockstep_host::fs::Fs as _;
use lockstep_host::store::layout::part_dir;

use super::{Checked, violated};
use crate::node::{Node, Replica};

/// All is quiet: what lies there is listed, promised, or the one parked transfer.
pub fn none(node: &Node, name: &str, replica: &Replica, receives: bool) -> Checked {
    let (objects, staged) = replica.store.peek(|store| (store.list(), store.usage().staged));
    let needless = objects.iter().find(|object| !object.listed && !object.promised);
    if let Some(object) = needless {
        let what = format!("node {}: {} stays and nobody needs it", node.id, object.file);
        return violated(
            "leaks",
            format!("{what}: {:?}", replica.store.peek(|store| store.report())),
        );
    }
    let writes = receives || replica.sealing > 0;
    if staged > 0 && !writes {
        let parts = node.fs.list(&part_dir(&node.snapshots(name)));
        let what = format!("node {}: {staged} bytes are staged for nothing: {parts:?}", node.id);
        return violated("leaks", what);
    }
    let dir = node.snapshots(name);
    let objects_there =
        node.fs.list(&dir).unwrap_or_default().iter().filter(|f| f.ends_with("snap")).count();
    let parts = node.fs.list(&part_dir(&dir)).unwrap_or_default().len();
    match objects_there <= objects.len() && (parts <= 1 || writes) {
        true => Ok(()),
        false => violated("leaks", format!("{objects_there} objects and {parts} parts lie there")),
    }
}
