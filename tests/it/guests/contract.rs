//! Determinism: the same entries give the same outcomes, snapshots and fuel.

use bytes::Bytes;
use lockstep_host::guest::component::{ComponentGuest, ComponentModule};
use lockstep_host::guest::{Guest as _, GuestModule as _, Outcome};

use super::{at, commands, fresh, header, load, snapshot, started};

const COUNTER: [&str; 4] = ["incr", "add 41", "nonsense", "incr"];
const KV: [&str; 8] = [
    "set a 1",
    "set b two words",
    "cas a 1 3",
    "cas a 1 4",
    "incr a",
    "incr b",
    "del b",
    "set c x",
];
const BANK: [&str; 7] = [
    "open ann 100",
    "open bob 5",
    "transfer t1 ann bob 30",
    "transfer t2 bob ann 999",
    "transfer t1 ann bob 30",
    "transfer t3 ann nobody 1",
    "nonsense",
];

/// Applies entries of three commands each, going through `texts` again and again.
fn run(guest: &mut ComponentGuest, texts: &[&str], indexes: std::ops::Range<u64>) -> Vec<Outcome> {
    let texts: Vec<&str> = texts.iter().copied().cycle().take(texts.len() * 3).collect();
    let batches: Vec<Vec<Bytes>> = texts.chunks(3).map(commands).collect();
    indexes
        .flat_map(|index| {
            let batch = &batches[index as usize % batches.len()];
            guest.apply(at(index), batch).expect("examples do not fault").outcomes
        })
        .collect()
}

fn check(name: &str, texts: &[&str], query: &str) {
    let module = load(name);
    let mut one = started(&module);
    let mut other = started(&module);
    assert_eq!(run(&mut one, texts, 2..40), run(&mut other, texts, 2..40), "{name}: outcomes");
    assert_eq!(one.fuel_used(), other.fuel_used(), "{name}: fuel");
    assert!(one.fuel_used() > 0);
    let bytes = snapshot(&mut one);
    assert_eq!(bytes, snapshot(&mut other), "{name}: snapshots");
    assert_eq!(one.fuel_used(), other.fuel_used(), "{name}: fuel of snapshots");

    restored_goes_on(&module, &bytes, &mut one, texts, query);
}

/// A restored guest writes the snapshot that it was restored from and goes on like the guest that
/// wrote it; a query changes nothing.
fn restored_goes_on(
    module: &ComponentModule,
    bytes: &[u8],
    writer: &mut ComponentGuest,
    texts: &[&str],
    query: &str,
) {
    let name = &module.info().name;
    let mut restored = fresh(module);
    restored.restore(&header(module, 39), b"", &mut &bytes[..]).expect("it was just written");
    assert_eq!(snapshot(&mut restored), bytes, "{name}: restored");
    let answer = writer.query(at(39), query.as_bytes()).expect("examples do not fault");
    assert!(answer.is_ok(), "{name}: {query} was answered {answer:?}");
    assert_eq!(restored.query(at(39), query.as_bytes()), Ok(answer), "{name}: {query}");
    assert_eq!(
        run(writer, texts, 40..60),
        run(&mut restored, texts, 40..60),
        "{name}: outcomes after restoring"
    );
    assert_eq!(snapshot(writer), snapshot(&mut restored), "{name}: snapshots after restoring");
}

#[test]
fn counter_is_deterministic() {
    check("counter", &COUNTER, "get");
}

#[test]
fn kv_is_deterministic() {
    check("kv", &KV, "scan  10");
}

#[test]
fn bank_is_deterministic() {
    check("bank", &BANK, "total");
}

/// Whatever sizes the reader returns its input in, the guest gets the same chunks and uses the same
/// fuel.
#[test]
fn a_restore_costs_the_same_from_any_reader() {
    struct Dribble<'a>(&'a [u8]);
    impl std::io::Read for Dribble<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let amount = into.len().min(1000);
            std::io::Read::read(&mut self.0, &mut into[..amount])
        }
    }
    let module = super::hostile();
    let mut writer = started(module);
    writer.apply(at(2), &commands(&["fill 1000000"])).expect("no fault");
    let bytes = snapshot(&mut writer);
    let fuel = |input: &mut dyn std::io::Read| {
        let mut guest = fresh(module);
        guest.restore(&header(module, 2), b"", input).expect("it was just written");
        assert!(snapshot(&mut guest) == bytes, "the state differs");
        guest.fuel_used()
    };
    assert_eq!(fuel(&mut &bytes[..]), fuel(&mut Dribble(&bytes)));
}
