//! A crash after each operation of a scripted life, and a failure of each: everything that was
//! acknowledged is found again.

use super::*;
use crate::fs::mem::DiskFault;

/// How many operations the whole scenario takes.
fn operations(steps: &[Step]) -> u64 {
    let fs = disk();
    let (done, _wal, error) = run(&fs, steps);
    assert!(error.is_none(), "step {done}: {error:?}");
    fs.ops()
}

/// Opens the log, checks that it is as after `done` steps or one step more, and runs the remaining
/// steps.
fn check(fs: &MemFs, steps: &[Step], done: usize, story: &str) {
    let models = models(steps);
    let (wal, recovered) = match open(fs) {
        Ok(opened) => opened,
        Err(error) => panic!("{story}: {error}"),
    };
    let found = Model::of(&wal, &recovered);
    drop(wal);
    let later = if models.get(done + 1) == Some(&found) { 1 } else { 0 };
    let (brief, wanted) = (found.brief(), models[done + later].brief());
    assert!(found == models[done + later], "{story}: step {done}: {brief}, not {wanted}");
    // The scenario continues on the log that was found.
    let (rest, _wal, error) = run(fs, &steps[done + later..]);
    assert!(error.is_none(), "{story}: going on, step {rest}: {error:?}");
    let (wal, recovered) = open(fs).unwrap_or_else(|error| panic!("{story}: at last: {error}"));
    let found = Model::of(&wal, &recovered);
    assert!(found == models[steps.len()], "{story}: at last: {}", found.brief());
}

#[test]
fn a_crash_behind_any_operation_loses_nothing_acknowledged() {
    let steps = scenario();
    for op in 0..operations(&steps) {
        let fs = disk();
        fs.halt_after(op);
        let (done, _wal, error) = run(&fs, &steps);
        assert!(error.is_some(), "the disk halted after operation {op}");
        fs.crash();
        check(&fs, &steps, done, &format!("crash after operation {op}"));
    }
}

#[test]
fn a_kinder_crash_that_keeps_some_sectors_loses_nothing_acknowledged() {
    let steps = scenario();
    for op in 0..operations(&steps) {
        for seed in 0..3 {
            let fs = disk();
            fs.halt_after(op);
            let (done, _wal, _error) = run(&fs, &steps);
            fs.crash_keeping(op * 3 + seed);
            check(&fs, &steps, done, &format!("crash after operation {op}, keeping {seed}"));
        }
    }
}

#[test]
fn any_operation_may_fail_and_the_log_is_poisoned_until_a_restart() {
    let steps = scenario();
    // The first operation syncs the name of a directory that existed before, so it does not count.
    for op in 2..=operations(&steps) {
        for power_lost in [false, true] {
            let fs = disk();
            fs.fail_op(op, DiskFault::Io);
            let (done, wal, error) = run(&fs, &steps);
            let error = error.unwrap_or_else(|| panic!("operation {op} failed unnoticed"));
            assert!(matches!(error, WalError::Io { .. }), "operation {op}: {error}");
            if let Some(mut wal) = wal {
                let (ops, cause) = (fs.ops(), error.to_string());
                for _again in 0..2 {
                    let again = wal.append_and_tidy(&[]).expect_err("it is poisoned");
                    assert!(matches!(&again, WalError::Poisoned { cause: c } if *c == cause));
                }
                assert!(wal.seal_idle().is_err() && wal.ensure_reserve().is_err());
                assert_eq!(fs.ops(), ops, "nothing is tried again");
            }
            if power_lost {
                fs.crash();
            }
            check(&fs, &steps, done, &format!("operation {op} failed, power {power_lost}"));
        }
    }
}

#[test]
fn any_operation_may_find_the_disk_full() {
    let steps = scenario();
    for op in 1..=operations(&steps) {
        let fs = disk();
        fs.fail_op(op, DiskFault::Full);
        let (done, _wal, _error) = run(&fs, &steps);
        check(&fs, &steps, done, &format!("disk full at operation {op}"));
    }
}

#[test]
fn a_read_that_fails_while_opening_is_an_error_and_changes_nothing() {
    let steps = scenario();
    let fs = disk();
    let (done, _wal, _error) = run(&fs, &steps);
    let image = fs.image();
    let mut failed = 0;
    loop {
        fs.fail_read(fs.reads() + failed + 1, DiskFault::Io);
        if open(&fs).is_ok() {
            break;
        }
        assert_eq!(fs.image(), image, "after failed read {failed}");
        fs.heal();
        failed += 1;
        assert!(failed < 1000, "opening ends in time");
    }
    fs.heal();
    assert!(failed > 3, "opening takes more reads than {failed}");
    check(&fs, &steps, done, "after failed reads");
}
