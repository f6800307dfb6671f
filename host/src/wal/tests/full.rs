//! Running out of space, at whichever operation it shows: nothing is lost, the log does not end,
//! and it continues once there is space.

use super::*;
use crate::fs::mem::{DiskFault, LateFull};

/// Takes one step of a life; returns whether something was lacking. If so, `relieved` is called and
/// the step continues in the same process.
fn survive(fs: &MemFs, wal: &mut Wal, step: &Step, relieved: &dyn Fn(&mut Wal)) -> bool {
    let done = match step {
        Step::Append(jobs) => wal.append_and_tidy(jobs).map(drop),
        Step::Seal => wal.seal_idle().map(drop),
        Step::Reopen => open(fs).map(|(opened, _recovered)| *wal = opened),
    };
    match (done, step) {
        (Ok(()), _) => false,
        (Err(error), Step::Reopen) => {
            assert!(error.is_short(), "a start fails only for a lack: {error}");
            relieved(wal);
            *wal = open_well(fs).0;
            true
        }
        (Err(WalError::Full { .. }), _) => {
            assert!(wal.is_stalled() && wal.shortage().is_some(), "it waits and says so");
            relieved(wal);
            go_on(wal).expect("there is space");
            assert!(!wal.is_stalled() && wal.shortage().is_none(), "nothing waits any more");
            true
        }
        (Err(other), _) => panic!("{other}"),
    }
}

/// A whole life in which operation `op` fails; returns how often something was lacking.
fn life_with(op: u64, fault: DiskFault) -> (MemFs, usize) {
    let (steps, fs) = (scenario(), disk());
    fs.fail_op(op, fault);
    let mut short = 0;
    let mut wal = match open(&fs) {
        Ok((wal, _)) => wal,
        Err(error) => {
            assert!(error.is_short(), "operation {op}: {error}");
            short += 1;
            open_well(&fs).0
        }
    };
    for step in &steps {
        short += usize::from(survive(&fs, &mut wal, step, &|_| ()));
    }
    (fs, short)
}

#[test]
fn any_operation_may_find_no_space_and_the_same_process_goes_on() {
    let steps = scenario();
    let (undisturbed, _) = life_with(u64::MAX, DiskFault::Full);
    let mut short = 0;
    for op in 1..=undisturbed.ops() {
        let (fs, times) = life_with(op, DiskFault::Full);
        short += times;
        for seed in [None, Some(op), Some(op + 1_000_003)] {
            match seed {
                None => fs.crash(),
                Some(seed) => fs.crash_keeping(seed),
            }
            let (wal, recovered) = open_well(&fs);
            let found = Model::of(&wal, &recovered);
            assert!(found == models(&steps)[steps.len()], "operation {op}: {}", found.brief());
        }
    }
    // Most writes go on at once, in the next segment.
    assert!(short > 10, "{short}");
}

/// Descriptors and memory become available again as space does. Only a sync that fails for lack of
/// them ends the log.
#[test]
fn an_operation_that_lacks_a_descriptor_waits_as_for_space() {
    let (undisturbed, _) = life_with(u64::MAX, DiskFault::Full);
    let mut waited = 0;
    for op in 1..=undisturbed.ops() {
        let steps = scenario();
        let fs = disk();
        fs.fail_op(op, DiskFault::Descriptors);
        let (_, wal, error) = run(&fs, &steps);
        match error {
            Some(WalError::Full { .. }) => {
                if let Some(mut wal) = wal {
                    go_on(&mut wal).expect("it came back");
                }
                waited += 1;
            }
            Some(error) if error.is_short() => waited += 1,
            Some(error) => assert!(error.to_string().contains("sync"), "operation {op}: {error}"),
            // A spare that could not be created is created later.
            None => {}
        }
    }
    assert!(waited > 20, "{waited}");
}

/// A disk that is full from some step on, on filesystems that report it at each kind of operation.
/// What is acknowledged meanwhile is kept, even over restarts on the full disk, and everything
/// continues once there is space.
#[test]
fn a_filesystem_may_say_late_that_it_is_full() {
    let steps = scenario();
    for late in LateFull::EACH {
        for (full_from, restart) in (0..steps.len()).flat_map(|at| [(at, false), (at, true)]) {
            let story = format!("{late:?}, full from step {full_from}, restart {restart}");
            let fs = disk();
            let mut wal = open_well(&fs).0;
            for step in &steps[..full_from] {
                assert!(!survive(&fs, &mut wal, step, &|_| ()), "{story}");
            }
            fs.set_capacity(fs.used(&dir()));
            fs.set_late_full(late);
            let mut model = models(&steps)[full_from].clone();
            for (at, step) in steps.iter().enumerate().skip(full_from) {
                let relieved = |wal: &mut Wal| {
                    for _ in 0..5 {
                        let again = go_on(wal);
                        let full = matches!(again, Err(WalError::Full { .. })) || again.is_ok();
                        assert!(full, "{story}, step {at}: {again:?}");
                    }
                    fs.set_capacity(1 << 50);
                };
                if restart && at > full_from {
                    // A start finds what was acknowledged, whatever the disk lacks.
                    drop(wal);
                    let (opened, recovered) = match open(&fs) {
                        // It is unknown how much of the last batch is on the disk, so the start
                        // waits.
                        Err(error) if late.sync && error.is_short() => {
                            fs.set_capacity(1 << 50);
                            open_well(&fs)
                        }
                        opened => opened.unwrap_or_else(|error| panic!("{story}: {error}")),
                    };
                    let found = Model::of(&opened, &recovered);
                    assert!(found == model, "{story}, step {at}: {}", found.brief());
                    wal = opened;
                }
                survive(&fs, &mut wal, step, &relieved);
                model = models(&steps)[at + 1].clone();
            }
            drop(wal);
            fs.set_capacity(1 << 50);
            let (wal, recovered) = open_well(&fs);
            assert!(Model::of(&wal, &recovered) == model, "{story}: in the end");
        }
    }
}

/// Where blocks are written in place, everything under way fits on a full disk, in a segment and
/// the spares, without a new name, a removal or a sync of the directory.
#[test]
fn a_full_disk_takes_what_the_files_hold() {
    let fs = disk();
    let with_spares = WalOptions { spares: 2, ..options() };
    let mut wal = Wal::open(Arc::new(fs.clone()), &dir(), with_spares).expect("it opens").0;
    fs.set_capacity(fs.used(&dir()));
    fs.set_late_full(LateFull { name: true, remove: true, sync_dir: true, ..LateFull::default() });
    let mut index = 1;
    let mut write = |wal: &mut Wal| {
        let add = entries(index..index + 1, 1, 700);
        index += 1;
        wal.append_and_tidy(&[job(1, state(1, 0, index - 2), add)]).map(drop)
    };
    let before = (all_files(&fs), wal.stats().segments);
    while wal.stats().segments < before.1 + 2 {
        write(&mut wal).expect("the spares are there");
        let short = wal.stats().segments > before.1;
        assert_eq!(
            wal.shortage().is_some(),
            short,
            "reported while there is a spare: {:?}",
            wal.stats()
        );
    }
    while wal.stats().left >= 1024 {
        write(&mut wal).expect("the last of them");
    }
    assert!(matches!(write(&mut wal), Err(WalError::Full { .. })), "now it is full");
    assert_eq!(all_files(&fs), before.0, "no name was needed");
    drop(wal);
    let opened = Wal::open(Arc::new(fs.clone()), &dir(), with_spares);
    let (mut wal, found) = opened.expect("a start needs no space");
    assert_eq!(found[&GroupId(1)].last_index + 1, index - 1);
    let cut = wal.append_and_tidy(&[job(1, state(index - 2, 1, index - 2), vec![])]);
    assert!(matches!(cut, Err(WalError::Full { .. })), "not even that fits: {cut:?}");
}

/// A head that could not be synced may be on the disk nevertheless, and the removed name of its
/// file may come back after a power loss. It must not end a segment that a later process went on
/// writing.
#[test]
fn a_head_that_was_given_up_does_not_come_back() {
    for op in 0..40 {
        let fs = disk();
        for _ in 0..op {
            // The number of the operation decides what reaches the disk before it is full.
            fs.lock(Path::new("/d/turn")).expect("nobody holds it");
        }
        let mut wal = open_well(&fs).0;
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(1..2, 1, 3500))]).expect("space");
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(2..3, 1, 1500))]).expect("space");
        fs.set_capacity(fs.used(&dir()));
        fs.set_late_full(LateFull { sync: true, ..LateFull::default() });
        let large = job(1, state(1, 0, 2), entries(3..4, 1, 3500));
        let full = wal.append_and_tidy(&[large]);
        assert!(matches!(full, Err(WalError::Full { .. })), "no head was synced: {full:?}");
        drop(wal);
        // Something else takes the space that this freed.
        fs.set_capacity(fs.used(&dir()));
        fs.set_late_full(LateFull::default());
        let mut wal = open_well(&fs).0;
        wal.append_and_tidy(&[job(1, state(1, 0, 2), entries(3..4, 2, 10))]).expect("space");
        drop(wal);
        fs.crash();
        let (_wal, found) = open_well(&fs);
        assert_eq!(found[&GroupId(1)].last_index, 3, "op {op}: an acknowledged entry");
    }
}

/// What a full disk left at the end of a segment was never acknowledged, whether it is complete,
/// torn or absent: the next segment's head says where the segment ends.
#[test]
fn what_a_given_up_segment_has_behind_its_end_does_not_count() {
    let mut kept = std::collections::BTreeSet::new();
    for op in 0..40 {
        let fs = disk();
        for _ in 0..op {
            // The number of the operation decides what reaches the disk before it is full.
            fs.lock(Path::new("/d/turn")).expect("nobody holds it");
        }
        let (mut wal, _none) = open_well(&fs);
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(1..3, 1, 700))])
            .expect("there is space");
        fs.fail_op(fs.ops() + 2, DiskFault::Full);
        let end = wal.end;
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(3..5, 1, 900))])
            .expect("in the next one");
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(5..6, 1, 9))])
            .expect("there is space");
        assert_eq!(wal.stats().segments, 2, "the next segment has it");
        let first = wal_files(&wal)[0].clone();
        drop(wal);
        fs.crash();
        let left = fs.image()[&first][end as usize..].to_vec();
        kept.insert((left[..512].iter().any(|b| *b > 0), left[1024..].iter().any(|b| *b > 0)));
        let (wal, found) = open_well(&fs);
        assert_eq!(found[&GroupId(1)].last_index, 5);
        let read = wal.reader().entries(GroupId(1), 3, 5, u64::MAX).expect("they are there");
        assert_eq!(read, entries(3..5, 1, 900));
        assert!(wal.reader().scrub(&mut |_| ()).is_empty(), "nor for the scrubber");
    }
    assert_eq!(kept.len(), 4, "whole, torn and absent: {kept:?}");
}
