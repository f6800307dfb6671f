//! The budget and each group's cap are never exceeded, and count every byte on the disk. No more
//! groups than allowed take or restore a snapshot at once. Snapshots on a filesystem of their own
//! disturb no log by filling it. Planted: `forget_reservation`, `forget_cap`,
//! `places_without_bound`.

use lockstep_core::fault::Shortage;
use lockstep_host::fs::Fs as _;
use lockstep_host::store::Work;
use lockstep_host::store::layout::part_dir;

use super::{Checked, violated};
use crate::node::{Node, Replica};
use crate::setup::Setup;
use crate::world::SECOND;

/// A host's budget, places and caps are not exceeded.
pub fn kept(node: &Node, setup: &Setup) -> Checked {
    let Some(process) = &node.process else { return Ok(()) };
    let (used, limit) = (process.budget.used(), setup.budget_bytes);
    if used > limit {
        let mut what = format!("node {}: {used} bytes in a budget of {limit}:", node.id);
        for replica in process.replicas.values() {
            what += &format!(" {:?}", replica.store.peek(|store| store.report()));
        }
        return violated("budget", what);
    }
    for work in [Work::Capture, Work::Restore] {
        let (at_once, most) = (process.budget.places(work).0, setup.places);
        if at_once > most {
            let what =
                format!("node {}: {work:?} by {at_once} groups at once, where {most} may", node.id);
            return violated("budget", what);
        }
    }
    for replica in process.replicas.values() {
        let (used, cap) = (counted(replica), setup.cap_bytes);
        if used > cap {
            let report = replica.store.peek(|store| store.report());
            let what = format!("node {}: {used} bytes under a cap of {cap}: {report:?}", node.id);
            return violated("budget", what);
        }
    }
    Ok(())
}

/// The bytes that a group's store accounts for.
fn counted(replica: &Replica) -> u64 {
    let usage = replica.store.peek(|store| store.usage());
    usage.listed + usage.unlisted + usage.staged + usage.suspended
}

/// A group's files take no more than its store accounts for.
pub fn accounted(node: &Node, replica: &Replica) -> Checked {
    let dir = node.snapshots(&replica.group.recovery_state().group);
    let (mut bytes, mut files) = (0, Vec::new());
    for dir in [part_dir(&dir), dir] {
        for file in node.fs.list(&dir).unwrap_or_default() {
            let opened = node.fs.open(&dir.join(&file), false);
            bytes += opened.and_then(|file| file.len()).unwrap_or(0);
            files.push(file);
        }
    }
    let counted = counted(replica);
    if bytes <= counted {
        Ok(())
    } else {
        violated(
            "budget",
            format!(
                "node {}: {bytes} bytes on disk, {counted} accounted for: {files:?} \
                 {:?}",
                node.id,
                replica.store.peek(|store| store.report()),
            ),
        )
    }
}

/// With snapshots on a disk of their own, a replica is not short while the log's disk has space.
pub fn undisturbed(node: &Node, apart: bool, now: u64, shortage: Shortage) -> Checked {
    // The log checks only now and then, and a replica that restores shows late what it was told, so
    // space may have been freed since. A log at its own bound is short for another reason.
    let filled = node.log_filled || now < node.log_freed_at + 5 * SECOND;
    let lacks = matches!(shortage, Shortage::Disk { need, have } if have < need);
    if apart && !filled && !node.unreadable && lacks {
        violated("budget", format!("node {} reports a full log disk, which has space", node.id))
    } else {
        Ok(())
    }
}
