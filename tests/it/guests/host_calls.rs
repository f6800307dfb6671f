//! The fuel that a guest pays for what the host does for it.

use lockstep_core::apply::{GuestEvent, Setting};
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

/// An event costs fuel, and so does every byte of it.
#[test]
fn events_are_paid_for() {
    let mut guest = ample(hostile());
    let one = fuel_of(&mut guest, "emit-full 1");
    let many = fuel_of(&mut guest, "emit-full 101");
    let least = 100 * (50_000 + 65_536);
    assert!(many - one >= least, "an event costs a call and its bytes: {one} and {many}");
    let one = fuel_of(&mut guest, "wake-at-often 1");
    let many = fuel_of(&mut guest, "wake-at-often 101");
    assert!(many - one >= 100 * 50_000, "a setting costs a call: {one} and {many}");
}

/// Of an entry that emits more than its group keeps, the newest events are kept; the last setting
/// of the timer holds; and a call that ends with a fault has emitted nothing.
#[test]
fn what_is_emitted_has_a_bound() {
    let mut guest = ample(hostile());
    let mut apply = |deeds: &[&str]| {
        let emitted = guest.apply(at(2), &commands(deeds)).expect("the limits allow it").emitted;
        let bytes: usize = emitted.events().map(GuestEvent::cost).sum();
        (emitted.events().count(), bytes, emitted.timer)
    };
    assert_eq!(apply(&["emit-full 3", "wake-at 7"]), (3, 3 * 65_856, Some(Setting::At(7))));
    assert_eq!(apply(&["wake-at 7", "cancel"]), (0, 0, Some(Setting::Never)));
    assert_eq!(apply(&["nothing"]), (0, 0, None));
    let (count, bytes, _) = apply(&["emit-full 1000", "emit-often 10"]);
    assert_eq!(count, 10 + (8 << 20) / 65_856);
    assert!(bytes <= 8 << 20, "{bytes}");

    guest.apply(at(3), &commands(&["emit 1", "panic"])).expect_err("it panics");
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
