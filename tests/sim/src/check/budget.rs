//! The budget and each group's cap are kept at all times, and every byte that lies there is counted
//! in them; no more groups take a snapshot or restore one at once than may; snapshots that have a
//! filesystem of their own disturb nobody by filling it. Planted: `forget_reservation`,
//! `forget_cap`, `places_without_bound`.

use lockstep_core::fault::Shortage;
use lockstep_host::fs::Fs as _;
use lockstep_host::store::Work;
use lockstep_host::store::layout::part_dir;

use super::{Checked, violated};
use crate::node::{Node, Replica};
use crate::setup::Setup;
use crate::world::SECOND;

/// What the store believes it has, and what there is.
pub fn kept(node: &Node, setup: &Setup) -> Checked {
    let Some(process) = &node.process else { return Ok(()) };
    let (used, limit) = (process.budget.used(), setup.budget_bytes);
    if used > limit {
        let mut what = format!("node {}: {used} bytes of a budget of {limit}:", node.id);
        for replica in process.replicas.values() {
            what += &format!(" {:?}", replica.store.peek(|store| store.report()));
        }
        return violated("budget", what);
    }
    for work in [Work::Capture, Work::Restore] {
        let (at_once, most) = (process.budget.places(work).0, setup.places);
        if at_once > most {
            let what = format!("node {}: {work:?} by {at_once} groups, of {most}", node.id);
            return violated("budget", what);
        }
    }
    for replica in process.replicas.values() {
        let (used, cap) = (counted(replica), setup.cap_bytes);
        if used > cap {
            let report = replica.store.peek(|store| store.report());
            let what = format!("node {}: {used} bytes of a cap of {cap}: {report:?}", node.id);
            return violated("budget", what);
        }
    }
    Ok(())
}

/// Bytes that a group's store accounts for.
fn counted(replica: &Replica) -> u64 {
    let usage = replica.store.peek(|store| store.usage());
    usage.listed + usage.unlisted + usage.staged + usage.parked
}

/// The files of a group are those that its store accounts for.
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
    match bytes <= counted {
        true => Ok(()),
        false => violated(
            "budget",
            format!(
                "node {}: {bytes} bytes lie there, {counted} are accounted for: {files:?} \
                 {:?}",
                node.id,
                replica.store.peek(|store| store.report()),
            ),
        ),
    }
}

/// Snapshots lie apart, and the log's own disk has room: commands are taken.
pub fn undisturbed(node: &Node, apart: bool, now: u64, shortage: Shortage) -> Checked {
    // The log looks now and then, and a replica that restores shows later what it was told: there
    // may be room since. Its own bound is another matter.
    let filled = node.log_filled || now < node.log_freed_at + 5 * SECOND;
    let lacks = matches!(shortage, Shortage::Disk { need, have } if have < need);
    match apart && !filled && !node.unreadable && lacks {
        true => violated("budget", format!("node {} is short, and its log has room", node.id)),
        false => Ok(()),
    }
}
