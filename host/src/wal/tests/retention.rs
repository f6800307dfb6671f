//! Segments are deleted as soon as they may be; a full disk is survived.

use super::*;

fn append(wal: &mut Wal, group: u64, first: u64, index: u64) -> Result<(), WalError> {
    let previous = if first == 1 { 0 } else { 1 };
    let add = entries(index..index + 1, 1, 500);
    wal.append_and_tidy(&[job(group, state(first, previous, index - 1), add)]).map(drop)
}

/// Covers F8.
#[test]
fn a_busy_group_that_truncates_keeps_few_segments() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    for index in 1..100_u64 {
        append(&mut wal, 1, index.saturating_sub(4).max(1), index).expect("there is space");
        assert!(wal.stats().segments <= 3, "{:?}", wal.stats());
    }
    assert_eq!(wal_files(&wal).len() as u64, wal.stats().segments);
}

#[test]
fn an_idle_group_pins_nothing_and_keeps_its_entries() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    wal.append_and_tidy(&[job(2, state(1, 0, 0), entries(1..4, 1, 30))]).expect("there is space");
    let mut highest = 0;
    for index in 1..100_u64 {
        append(&mut wal, 1, index.saturating_sub(4).max(1), index).expect("there is space");
        highest = highest.max(wal.stats().segments);
        if index % 25 == 0 {
            drop(wal);
            wal = open_well(&fs).0;
        }
    }
    assert!(highest <= 3, "{highest} segments");
    assert!(!wal.shared.segments().contains_key(&1));
    let read = wal.reader().entries(GroupId(2), 1, 4, u64::MAX).expect("they were moved");
    assert_eq!(read, entries(1..4, 1, 30));
    drop(wal);
    let (wal, found) = open_well(&fs);
    assert_eq!(found[&GroupId(2)].last_index, 3);
    assert_eq!(wal.reader().entries(GroupId(2), 1, 4, 9999).expect("there").len(), 3);
}

#[test]
fn much_live_data_pins_its_segment_and_says_whose_it_is() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let pins = RecoveryState { group: "pins".to_owned(), ..state(1, 0, 0) };
    wal.append_and_tidy(&[job(2, pins, entries(1..5, 1, 600))]).expect("there is space");
    let mut index = 1_u64;
    while wal.stats().segments == 1 {
        append(&mut wal, 1, index.saturating_sub(4).max(1), index).expect("there is space");
        index += 1;
    }
    assert_eq!(wal.stats().pinned_by.as_deref(), Some("pins"));
    assert!(wal.shared.segments().contains_key(&1));
    wal.append_and_tidy(&[job(2, state(5, 1, 4), vec![])]).expect("there is space");
    for index in index..index + 8 {
        append(&mut wal, 1, index.saturating_sub(4).max(1), index).expect("there is space");
    }
    assert!(!wal.shared.segments().contains_key(&1));
    assert!(wal.stats().segments <= 3);
}

#[test]
fn a_full_disk_refuses_the_next_segment_and_truncation_frees_it() {
    let fs = disk();
    fs.set_capacity(4 * SEGMENT_BYTES);
    let (mut wal, _none) = open_well(&fs);
    let mut index = 1;
    let error = loop {
        match append(&mut wal, 1, 1, index) {
            Ok(()) => index += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, WalError::Full { .. }), "{error}");
    assert!(!wal.stats().reserve && wal.stats().segments == 4);
    let full = wal.resume(&mut |_| {});
    assert!(matches!(full, Err(WalError::Full { .. })), "still full, and not poisoned: {full:?}");
    wal.ensure_reserve().expect("a full disk is no failure");
    assert!(wal.is_stalled() && wal.shortage().is_some());
    assert!(!wal.seal_idle().expect("what waits comes first"));
    fs.set_capacity(6 * SEGMENT_BYTES);
    wal.resume(&mut |_| {}).expect("what waited is written");
    assert!(!wal.is_stalled());
    wal.append_and_tidy(&[job(1, state(index, 1, index), vec![])]).expect("it fits in the rest");
    assert!(wal.stats().reserve && wal.stats().segments < 4);
    append(&mut wal, 1, index, index + 1).expect("there is space again");
    assert_eq!(wal.shortage(), None);
    drop(wal);
    assert_eq!(open_well(&fs).1[&GroupId(1)].last_index, index + 1);
}

/// A shortage is reported while a segment and a spare are left, and truncation ends it.
#[test]
fn a_shortage_is_told_before_the_log_is_full_and_ends() {
    let fs = disk();
    fs.set_capacity(6 * SEGMENT_BYTES);
    let with_spares = WalOptions { spares: 2, ..options() };
    let open = || Wal::open(Arc::new(fs.clone()), &dir(), with_spares).expect("it opens").0;
    let mut wal = open();
    let mut index = 1;
    while wal.shortage().is_none() {
        append(&mut wal, 1, 1, index).expect("there is space");
        index += 1;
    }
    let stats = wal.stats();
    assert!(stats.reserve && stats.left > SEGMENT_BYTES / 2, "{stats:?}");
    let short = lockstep_core::fault::Shortage::Disk { need: SEGMENT_BYTES, have: 0 };
    assert_eq!(wal.shortage(), Some(short));
    // Everything under way fits: in a whole segment and the spare.
    let (mut left, begun) = (stats.left, stats.segments);
    while left > 1_000 {
        append(&mut wal, 1, 1, index).expect("it was promised");
        (index, left) = (index + 1, wal.stats().left);
        assert_eq!(wal.stats().segments, begun);
    }
    drop(wal);
    let mut wal = open();
    assert!(wal.shortage().is_some(), "a restart makes no space");
    wal.append_and_tidy(&[job(1, state(index - 1, 1, index - 1), vec![])])
        .expect("a truncation fits");
    wal.ensure_reserve().expect("there is space");
    assert_eq!(wal.shortage(), None);
    assert_eq!(wal.spares.len(), 2);
}

/// An idle group pins the log only until the log takes more than twice the space of its live
/// entries: then the group's entries are moved, in parts.
#[test]
fn an_idle_group_does_not_pin_the_log_without_end() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let idle = entries(1..30, 1, 100);
    wal.append_and_tidy(&[job(2, state(1, 0, 0), idle.clone())]).expect("there is space");
    for index in 1..200 {
        append(&mut wal, 1, index.max(3) - 2, index).expect("there is space");
        let stats = wal.stats();
        assert!(stats.segments * SEGMENT_BYTES <= 2 * stats.live + 3 * SEGMENT_BYTES, "{stats:?}");
    }
    let read = wal.reader().entries(GroupId(2), 1, 30, u64::MAX).expect("they moved");
    assert_eq!(read, idle);
    drop(wal);
    let (wal, groups) = open_well(&fs);
    assert_eq!(groups[&GroupId(2)].last_index, 29);
    assert_eq!(wal.reader().entries(GroupId(2), 1, 30, u64::MAX).expect("they moved"), idle);
}

/// A dropped group is gone for good and from every segment; the other groups stay.
#[test]
fn a_dropped_group_does_not_come_back() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    wal.append_and_tidy(&[job(2, state(1, 0, 0), entries(1..5, 1, 400))]).expect("there is space");
    append(&mut wal, 1, 1, 1).expect("there is space");
    wal.drop_group(GroupId(2)).expect("it is there");
    assert!(matches!(wal.drop_group(GroupId(2)), Err(WalError::UnknownGroup { .. })));
    drop(wal);
    let (mut wal, groups) = open_well(&fs);
    assert_eq!(groups.keys().collect::<Vec<_>>(), [&GroupId(1)]);
    for index in 2..60 {
        append(&mut wal, 1, index - 1, index).expect("there is space");
    }
    drop(wal);
    assert_eq!(open_well(&fs).1.len(), 1);
}

#[test]
fn the_reserve_is_ready_before_it_is_needed() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    for index in 1..40 {
        assert!(wal.spares.iter().all(|file| file.length == SEGMENT_BYTES));
        assert!(!wal.spares.is_empty());
        append(&mut wal, 1, 1, index).expect("there is space");
    }
}

/// The file of a deleted segment holds a later one: in the long run no file is created or removed,
/// and a segment costs one sync.
#[test]
fn files_are_used_again() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let mut index = 0;
    let mut append_some = |wal: &mut Wal| {
        for _ in 0..100 {
            index += 1;
            append(wal, 1, index.max(5) - 4, index).expect("there is space");
        }
    };
    append_some(&mut wal);
    let (files, before, ops) = (all_files(&fs), wal.stats(), fs.ops());
    append_some(&mut wal);
    let after = wal.stats();
    let batches = after.batches - before.batches;
    assert_eq!(all_files(&fs), files);
    assert_eq!(after.fsyncs - before.fsyncs, batches, "one sync each");
    assert_eq!(fs.ops() - ops, 2 * batches, "a write and a sync each, and nothing else");
    assert!(batches > 110, "segments began: {batches}");
}

/// A reader that still uses a deleted segment reads what was written, and finds no damage.
#[test]
fn a_file_that_is_read_is_not_used_again() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    for index in 1..20 {
        append(&mut wal, 1, 1, index).expect("there is space");
    }
    let oldest = wal.shared.segments().values().next().map(Arc::clone).expect("there is one");
    let number = oldest.number();
    let first = wal.shared.groups()[&GroupId(1)].extents().in_segment(number).next();
    let (from, extent) = first.expect("it holds something");
    for index in 20..60 {
        append(&mut wal, 1, index - 2, index).expect("there is space");
    }
    assert!(!wal.shared.segments().contains_key(&number));
    let read = oldest.entries(GroupId(1), &extent.place).expect("it was not written over");
    assert_eq!(read, entries(from..extent.end, 1, 500));
    assert!(!fs.exists(oldest.path()).expect("the disk works"), "its file is not used again");
}
