//! A crash at each point, and a failure of each operation, while local snapshots are taken. (For
//! received snapshots see `bulk/tests.rs`.)

use super::*;

/// What the log durably lists after a run, and whether the run was completed.
struct Run {
    durable: Vec<SnapshotDesc>,
    done: bool,
}

fn short_and_long() -> [Vec<u8>; 3] {
    [payload(10), payload(BLOCK + 3), payload(0)]
}

/// Takes three local snapshots, the third of which unlists the first. Stops at the first failure.
fn run(fs: &MemFs) -> Run {
    let mut run = Run { durable: Vec::new(), done: false };
    let limits = limits_of(u64::MAX / 2, 0, 1);
    let Ok((mut store, _)) = open(fs, &Budget::new(limits), &state(&[])) else { return run };
    for (index, bytes) in (1..).zip(short_and_long()) {
        let Ok(mut verified) = take(&mut store, index * 10, &bytes) else { return run };
        // The log's batch is on another disk, so it happens between two operations of this one.
        verified.hold.disarm();
        run.durable.insert(0, verified.desc.clone());
        run.durable.truncate(limits::RECOVERY_POINTS);
        drop(verified);
        store.list_durable(&run.durable, &[]);
    }
    run.done = true;
    run
}

fn check_restart(fs: &MemFs, durable: &[SnapshotDesc], point: &str) {
    let mut bed = Bed::reopen(fs.clone(), &state(durable));
    for desc in durable {
        assert_eq!(bed.store.recoverable(desc), Ok(()), "{point}: index {}", desc.index);
    }
    assert_eq!(bed.files().len(), durable.len(), "{point}: {:?}", bed.files());
    assert_eq!(bed.budget.used(), bed.store.usage().listed, "{point}");
}

fn data() -> MemFs {
    MemFs::with_dir(Path::new("/data"))
}

/// After a crash at any point, the objects that the log lists are there and nothing else is.
/// Covers F1 F2 F3.
#[test]
fn every_crash_point_of_local_snapshots() {
    let whole = data();
    assert!(run(&whole).done);
    let ops = whole.ops();
    assert!(ops > 20, "{ops} operations");
    for op in 0..=ops {
        for seed in [None, Some(op), Some(op + 1_000)] {
            let fs = data();
            fs.halt_after(op);
            let run = run(&fs);
            match seed {
                None => fs.crash(),
                Some(seed) => fs.crash_keeping(seed),
            }
            check_restart(&fs, &run.durable, &format!("crash after op {op}, keeping {seed:?}"));
        }
    }
}

/// One failing operation fails one snapshot, which leaves nothing; the next attempt succeeds.
/// Covers U6 I3.
#[test]
fn every_failing_operation_of_local_snapshots() {
    let whole = data();
    assert!(run(&whole).done);
    let after_open = {
        let fs = data();
        Bed::reopen(fs.clone(), &state(&[]));
        fs.ops()
    };
    for op in after_open + 1..=whole.ops() {
        for fault in [DiskFault::Io, DiskFault::Full] {
            let point = format!("{fault:?} at op {op}");
            let mut bed = Bed::reopen(data(), &state(&[]));
            bed.fs.fail_op(op, fault);
            let mut durable: Vec<SnapshotDesc> = Vec::new();
            for (index, bytes) in (1..).zip(short_and_long()) {
                let first = take(&mut bed.store, index * 10, &bytes);
                let verified = first.or_else(|_| take(&mut bed.store, index * 10, &bytes));
                let verified = verified.unwrap_or_else(|e| panic!("{point}: a retry fails: {e}"));
                durable.insert(0, verified.desc.clone());
                durable.truncate(limits::RECOVERY_POINTS);
                bed.store.list_durable(&durable, &[]);
            }
            bed.store.collect();
            assert_eq!(bed.files().len(), durable.len(), "{point}: {:?}", bed.files());
            assert_eq!(bed.budget.used(), bed.store.usage().listed, "{point}");
            bed.fs.crash();
            check_restart(&bed.fs, &durable, &point);
        }
    }
}
