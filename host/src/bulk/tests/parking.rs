//! What a broken transfer left, and when it goes.

use super::*;

/// A host on which a transfer of these bytes broke behind two blocks.
fn parked(bytes: &[u8]) -> Host {
    let host = Host::new();
    let mut script = Script::new(frames(bytes)[..2].to_vec(), false);
    host.receive(&offer(&desc(10, bytes)), &mut script);
    host
}

/// Whatever happened to the parked file, the transfer goes on at the first block that is not right.
/// Covers I3 X1.
#[test]
fn a_parked_file_is_taken_up_at_the_first_block_that_is_missing_or_bad() {
    let bytes = payload(3 * BLOCK);
    let part = |host: &Host| {
        let names = host.fs.image();
        names.keys().next().expect("it is parked").clone()
    };
    type Damage<'a> = &'a dyn Fn(&Host);
    let damage: [(Damage, usize); 5] = [
        (&|_| (), 2),
        (&|host| host.fs.corrupt(&part(host), 200).expect("it is there"), 0),
        (&|host| host.fs.corrupt(&part(host), BLOCK as u64 + 500).expect("it is there"), 1),
        // Not the header of this object any more: nothing of it is used.
        (&|host| host.fs.corrupt(&part(host), 9).expect("it is there"), 0),
        (&|host| host.fs.crash(), 2),
    ];
    for (number, (damage, from)) in damage.into_iter().enumerate() {
        let host = parked(&bytes);
        damage(&host);
        let host = match number {
            4 => Host::of(Bed::reopen(host.fs, &state(&[]))),
            _ => host,
        };
        let mut script = Script::new(frames(&bytes)[from..].to_vec(), true);
        let received = host.receive(&offer(&desc(10, &bytes)), &mut script);
        assert_eq!(received.end, ReceiveEnd::Answered(BulkReply::Accepted), "case {number}");
        assert_eq!(received.resumed_bytes, (from * BLOCK) as u64, "case {number}");
        assert!(host.read(&desc(10, &bytes)) == bytes, "case {number}");
        assert_eq!(files(&host.fs).len(), 1, "case {number}");
    }
}

/// An offer of another object is asked to prefer the parked one, unless it insists or the parked
/// one is behind.
/// Covers I2.
#[test]
fn another_offer_yields_to_what_is_parked_or_displaces_it() {
    let (bytes, other) = (payload(3 * BLOCK), payload(40));
    let desc = desc(11, &other);
    for (insist, commit, displaces) in [(false, 0, false), (true, 0, true), (false, 11, true)] {
        let host = parked(&bytes);
        let offer = Offer { insist, ..offer(&desc) };
        let expected = Expected { commit, ..expected() };
        let mut script = Script::new(frames_of(11, &other), true);
        let mut judge = Says::new(|verified| host.list(verified));
        receive(&offer, &expected, &host.lane, &mut script, &mut judge);
        let last = script.told.last().expect("it was answered").clone();
        let preferred = BulkReply::Prefer(ObjectRef::of(&crate::store::tests::desc(10, &bytes)));
        match displaces {
            true => assert_eq!(last, BulkReply::Accepted),
            false => assert_eq!(last, preferred),
        }
        assert_eq!(files(&host.fs).len(), 1, "one or the other is there");
    }
}

/// What is parked too long goes, and at once where its room is needed.
/// Covers C5 C1.
#[test]
fn what_is_parked_goes_with_time_and_for_room() {
    let bytes = payload(3 * BLOCK);
    let host = parked(&bytes);
    // Its time begins when it is parked, however long the transfer took.
    let parked_at = 10 * limits::PARK_MS;
    on_lane(&host.lane, move |store| store.tend(parked_at));
    on_lane(&host.lane, move |store| store.tend(parked_at + limits::PARK_MS - 1));
    assert_eq!(files(&host.fs).len(), 1);
    on_lane(&host.lane, move |store| store.tend(parked_at + limits::PARK_MS));
    host.assert_empty("it was parked too long");

    // After a restart its time begins anew.
    let host = parked(&bytes);
    let host = Host::of(Bed::reopen(host.fs, &state(&[])));
    on_lane(&host.lane, |store| store.tend(5_000));
    assert_eq!(files(&host.fs).len(), 1);
    on_lane(&host.lane, |store| store.tend(5_000 + limits::PARK_MS));
    host.assert_empty("a whole parking time passed");

    let need = crate::store::layout::object_bytes(bytes.len() as u64).expect("it has a size");
    let fs = MemFs::with_dir(Path::new("/data"));
    let host = Host::of(Bed::with_limits(fs, &state(&[]), need + 10, 0));
    let mut script = Script::new(frames(&bytes)[..1].to_vec(), false);
    host.receive(&offer(&desc(10, &bytes)), &mut script);
    assert_eq!(files(&host.fs).len(), 1, "it is parked");
    let local = crate::store::tests::local(20, 100, false);
    let reserved = on_lane(&host.lane, move |store| store.reserve_local(local));
    assert!(reserved.expect("the lane runs").is_ok(), "the parked file gave its room");
    let reclaimed = on_lane(&host.lane, |store| store.tally().reclaimed["local"]);
    assert_eq!(reclaimed, Some(1), "it is counted for whom it went");
    assert_eq!(files(&host.fs), [""; 0]);
}

/// Another group of the host that finds no room is given that of a parked file.
/// Covers C1.
#[test]
fn what_is_parked_makes_room_for_another_group() {
    let bytes = payload(3 * BLOCK);
    let need = crate::store::layout::object_bytes(bytes.len() as u64).expect("it has a size");
    let fs = MemFs::with_dir(Path::new("/data"));
    let bed = Bed::with_limits(fs, &state(&[]), 2 * need + 10, 0);
    let mut other = crate::store::tests::neighbour(&bed);
    let host = Host::of(bed);
    let mut script = Script::new(frames(&bytes)[..1].to_vec(), false);
    host.receive(&offer(&desc(10, &bytes)), &mut script);
    assert_eq!(files(&host.fs).len(), 1, "it is parked");
    let first = crate::store::tests::take(&mut other, 10, &bytes).expect("there is room for one");
    other.list_durable(std::slice::from_ref(&first.desc), &[]);
    drop(first);

    let next = || crate::store::tests::local(20, bytes.len() as u64, false);
    let refused = other.reserve_local(next()).expect_err("what is parked has its room");
    assert!(matches!(refused, SnapshotRefusal::NoSpace { .. }), "{refused:?}");
    assert_eq!(on_lane(&host.lane, |store| store.tend(0)), Some(None), "nothing is unlisted");
    assert_eq!(files(&host.fs).len(), 1, "what is listed stays");
    drop(other.reserve_local(next()).expect("the parked file gave its room"));
}

/// Room that is taken from a parked file, with the disk struck at each operation: a start finds one
/// snapshot or none, and nothing that nobody counts.
/// Covers C1 K1.
#[test]
fn every_crash_point_of_reclaiming_what_is_parked() {
    let bytes = payload(3 * BLOCK);
    let need = crate::store::layout::object_bytes(bytes.len() as u64).expect("it has a size");
    let reclaim = |strike: Option<u64>| {
        let fs = MemFs::with_dir(Path::new("/data"));
        let host = Host::of(Bed::with_limits(fs.clone(), &state(&[]), need + 10, 0));
        let mut script = Script::new(frames(&bytes)[..1].to_vec(), false);
        host.receive(&offer(&desc(10, &bytes)), &mut script);
        assert_eq!(files(&fs).len(), 1, "it is parked");
        let base = fs.ops();
        if let Some(op) = strike {
            fs.halt_after(base + op);
        }
        let local = crate::store::tests::local(20, 100, false);
        let taken = on_lane(&host.lane, move |store| {
            let reservation = store.reserve_local(local)?;
            let mut writer = store.create(reservation)?;
            std::io::Write::write_all(&mut writer, b"small")
                .map_err(|e| SnapshotRefusal::Disk(e.to_string()))?;
            store.seal(writer.finish()?)
        });
        (fs.clone(), fs.ops() - base, taken.expect("the lane runs").is_ok())
    };
    let (_fs, ops, taken) = reclaim(None);
    assert!(taken && ops > 5, "{ops} operations");
    for op in 0..=ops {
        for keep in [None, Some(op), Some(op + 1_000), Some(op + 2_000)] {
            let (fs, _ops, _taken) = reclaim(Some(op));
            match keep {
                None => fs.crash(),
                Some(seed) => fs.crash_keeping(seed),
            }
            let bed = Bed::with_limits(fs.clone(), &state(&[]), need + 10, 0);
            let (usage, there) = (bed.store.usage(), files(&fs));
            let counted = usage.listed + usage.unlisted + usage.staged + usage.parked;
            let lies: u64 = fs.image().values().map(|bytes| bytes.len() as u64).sum();
            let point = format!("operation {op}, keeping {keep:?}: {there:?}");
            assert!(lies <= counted, "{point}: {lies} bytes, {counted} are counted");
            assert!(there.len() <= 1, "{point}");
            assert_eq!(bed.budget.used(), counted, "{point}");
        }
    }
}
