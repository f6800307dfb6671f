//! The fuel that a guest pays for what the host does for it.

use lockstep_core::fault::FaultClass;
use lockstep_host::guest::Guest as _;
use lockstep_host::guest::component::ComponentGuest;

use super::{ample, at, commands, header, hostile, snapshot, unused};

/// The fuel that `work` takes.
fn fuel(guest: &mut ComponentGuest, work: impl FnOnce(&mut ComponentGuest)) -> u64 {
    let before = guest.fuel_used();
    work(guest);
    guest.fuel_used() - before
}

fn fuel_of(guest: &mut ComponentGuest, deed: &str) -> u64 {
    fuel(guest, |guest| {
        guest.apply(at(2), &commands(&[deed])).expect("the limits allow it");
    })
}

/// A call to log costs fuel, and so does every byte handed over, even those that are cut off.
#[test]
fn words_are_paid_for() {
    let mut guest = ample(hostile());
    let one = fuel_of(&mut guest, "say-long 1");
    let many = fuel_of(&mut guest, "say-long 101");
    assert!(many - one >= 100 << 20, "a byte costs at least one: {one} and {many}");
    let one = fuel_of(&mut guest, "say-often 1");
    let many = fuel_of(&mut guest, "say-often 101");
    assert!(many - one >= 100 * 50_000, "a line costs at least fifty thousand: {one} and {many}");
}

/// A guest that logs in an endless loop runs out of fuel, as in any other loop.
#[test]
fn endless_words_end() {
    for deed in ["say-long 100000", "say-often 100000000"] {
        let mut guest = ample(hostile());
        let fault = guest.apply(at(2), &commands(&[deed])).expect_err("it has no fuel for it");
        assert_eq!(fault.class, FaultClass::OutOfFuel, "{deed}: {fault}");
    }
}

/// A guest pays for the bytes and for the chunks of a snapshot, in both directions.
#[test]
fn chunks_are_paid_for() {
    let mut guest = ample(hostile());
    guest.apply(at(2), &commands(&["fill 4000000"])).expect("the limits allow it");
    let mut bytes = Vec::new();
    let whole = fuel(&mut guest, |guest| bytes = snapshot(guest));
    guest.apply(at(3), &commands(&["snapshot chunks 1000"])).expect("it only takes the order");
    let chopped = fuel(&mut guest, |guest| bytes = snapshot(guest));
    assert!(whole >= 4_000_000, "{whole}");
    assert!(chopped - whole >= 3_900 * 50_000, "{whole} and {chopped}");
    let mut restored = unused(hostile());
    let read = fuel(&mut restored, |guest| {
        guest.restore(&header(hostile(), 3), b"", &mut &bytes[..]).expect("it is whole");
    });
    // Forty chunks of 100,000.
    assert!(read >= 4_000_000 + 40 * 50_000, "{read}");
}
