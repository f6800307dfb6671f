//! The bank's promises: it rejects what it should, conserves the total, and counts every transfer.

use lockstep_guest::Failure;
use lockstep_guest::testing::{Explore, Harness};

use crate::Bank;

fn opened() -> Harness<Bank> {
    let mut bank = Harness::<Bank>::new();
    bank.check("open ann 100", "ok 100");
    bank.check("open bob 0", "ok 0");
    bank
}

#[test]
fn transfers_move_money() {
    let mut bank = opened();
    bank.check("transfer t1 ann bob 30", "ok 70 30");
    bank.check("transfer t2 bob ann 5", "ok 25 75");
    bank.check_query("balance ann", "ok 75");
    bank.check_query("balance bob", "ok 25");
    bank.check_query("total", "ok 100");
    bank.check_query("transfers", "ok 2");
    bank.check_query("duplicates", "ok 0");
    bank.verify();
}

/// A transfer that arrives twice is executed twice, and shows as a duplicate.
#[test]
fn duplicates_are_executed_and_counted() {
    let mut bank = opened();
    bank.check("transfer t1 ann bob 30", "ok 70 30");
    bank.check("transfer t1 ann bob 30", "ok 40 60");
    bank.check("transfer t2 ann bob 1", "ok 39 61");
    bank.check_query("count t1", "ok 2");
    bank.check_query("count t2", "ok 1");
    bank.check_query("count t3", "ok 0");
    bank.check_query("duplicates", "ok 1");
    bank.check_query("transfers", "ok 2");
    bank.verify();
}

/// A rejected transfer moves nothing, but counts.
#[test]
fn refused_transfers_count_too() {
    let mut bank = opened();
    bank.check("transfer t1 ann bob 101", "rejected account ann holds 100, less than 101");
    bank.check("transfer t2 ann eve 1", "rejected no account eve");
    bank.check("transfer t3 eve ann 1", "rejected no account eve");
    bank.check("transfer t4 ann ann 1", "rejected both accounts are the same");
    bank.check("transfer t5 ann bob 0", "rejected a transfer moves at least 1");
    bank.check_query("transfers", "ok 5");
    bank.check_query("count t1", "ok 1");
    bank.check_query("balance ann", "ok 100");
    bank.check_query("total", "ok 100");
    bank.verify();
}

/// A malformed command has no trustworthy id, and counts nowhere.
#[test]
fn malformed_commands_count_nowhere() {
    let mut bank = opened();
    let expected = "rejected expected `open A AMOUNT` or `transfer ID FROM TO AMOUNT`";
    bank.check("close ann", expected);
    bank.check("transfer t1 ann bob", expected);
    bank.check("transfer t1 ann bob -1", "rejected expected an amount instead of `-1`");
    bank.check("transfer  ann bob 1", "rejected expected words with one space between them");
    bank.check("", "rejected expected words with one space between them");
    let long = "x".repeat(129);
    bank.check(&format!("open {long} 1"), "rejected a word has 129 bytes, the limit is 128");
    assert_eq!(bank.apply(b"\xff").to_string(), "rejected expected text in UTF-8");
    bank.check_query("transfers", "ok 0");
    let queries = "`balance A`, `total`, `count ID`, `duplicates` or `transfers`";
    bank.check_query("count", &format!("rejected expected {queries}"));
    bank.check_query("balance eve", "rejected no account eve");
    assert!(Harness::<Bank>::with_config(b"x").is_err());
    bank.verify();
}

#[test]
fn accounts_open_once_and_the_total_fits() {
    let mut bank = opened();
    bank.check("open ann 1", "rejected account ann already exists");
    bank.check("open max 18446744073709551615", "rejected the total would exceed 64 bits");
    bank.check("open max 18446744073709551515", "ok 18446744073709551515");
    bank.check("transfer t1 ann max 100", "ok 0 18446744073709551615");
    bank.check_query("total", "ok 18446744073709551615");
    bank.verify();
}

/// The bytes of a snapshot depend on the balances and counts alone.
#[test]
fn the_snapshot_is_canonical() {
    let mut bank = Harness::<Bank>::new();
    for command in ["open b 1", "open a 2", "transfer t a b 1"] {
        bank.apply(command);
    }
    let mut golden = vec![2, 0, 0, 0, 0, 0, 0, 0];
    golden.extend(b"\x01\0\0\0a\x01\0\0\0\0\0\0\0\x01\0\0\0b\x02\0\0\0\0\0\0\0");
    golden.extend(b"\x01\0\0\0\0\0\0\0\x01\0\0\0t\x01\0\0\0\0\0\0\0");
    assert_eq!(bank.snapshot(), golden);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut bank = opened();
    bank.apply("transfer t ann bob 1");
    let whole = bank.snapshot();
    for length in 0..whole.len() {
        let error = bank.restore(&whole[..length]).err().expect("it is cut short");
        assert!(matches!(error, Failure::Corrupt(_)), "{length}: {error}");
    }
    let swapped: Vec<u8> =
        whole.iter().map(|&byte| if byte == b'n' { b'\xff' } else { byte }).collect();
    assert!(matches!(bank.restore(&swapped), Err(Failure::Corrupt(_))));
}

/// Whatever is sent, each account brings 10 and nothing else changes the total.
#[test]
fn whatever_is_sent_the_total_is_conserved() {
    Explore::<Bank>::new()
        .commands(|rng| match rng.below(4) {
            0 => format!("open a{} 10", rng.below(3)).into(),
            _ => {
                let (id, from, to) = (rng.below(20), rng.below(3), rng.below(3));
                format!("transfer t{id} a{from} a{to} {}", rng.below(12)).into()
            }
        })
        .check(|bank| {
            let opened = bank.machine().accounts.len();
            bank.check_query("total", &format!("ok {}", 10 * opened));
        })
        .run();
}
