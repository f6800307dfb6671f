//! What a broken transfer left behind, how it is resumed and when it is deleted.

use super::*;

/// A host on which a transfer of these bytes broke after two blocks.
fn suspended(bytes: &[u8]) -> Host {
    let host = Host::new();
    let mut script = Script::new(frames(bytes)[..2].to_vec(), false);
    host.receive(&offer(&desc(10, bytes)), &mut script);
    host
}

/// Whatever happened to the suspended file, the transfer resumes at the first block that is missing
/// or bad.
/// Covers I3 X1.
#[test]
fn a_suspended_file_is_taken_up_at_the_first_block_that_is_missing_or_bad() {
    let bytes = payload(3 * BLOCK);
    let part = |host: &Host| {
        let names = host.fs.image();
        names.keys().next().expect("it is suspended").clone()
    };
    type Damage<'a> = &'a dyn Fn(&Host);
    let damage: [(Damage, usize); 5] = [
        (&|_| (), 2),
        (&|host| host.fs.corrupt(&part(host), 200).expect("it is there"), 0),
        (&|host| host.fs.corrupt(&part(host), BLOCK as u64 + 500).expect("it is there"), 1),
        // The header is no longer that of this object: nothing of the file is used.
        (&|host| host.fs.corrupt(&part(host), 9).expect("it is there"), 0),
        (&|host| host.fs.crash(), 2),
    ];
    for (number, (damage, from)) in damage.into_iter().enumerate() {
        let host = suspended(&bytes);
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

/// The sender of another object is asked to prefer the suspended one, unless it insists or the
/// suspended one is below the receiver's commit index.
/// Covers I2.
#[test]
fn another_offer_yields_to_what_is_suspended_or_displaces_it() {
    let (bytes, other) = (payload(3 * BLOCK), payload(40));
    let desc = desc(11, &other);
    for (insist, commit, displaces) in [(false, 0, false), (true, 0, true), (false, 11, true)] {
        let host = suspended(&bytes);
        let offer = Offer { insist, ..offer(&desc) };
        let expected = Expected { commit, ..expected() };
        let mut script = Script::new(frames_of(11, &other), true);
        let mut judge = Says::new(|verified| host.list(verified));
        receive(&offer, &expected, &host.lane, &mut script, &mut judge);
        let last = script.told.last().expect("it was answered").clone();
        let preferred = BulkReply::Prefer(ObjectRef::of(&crate::store::tests::desc(10, &bytes)));
        assert_eq!(last, if displaces { BulkReply::Accepted } else { preferred });
        assert_eq!(files(&host.fs).len(), 1, "one or the other is there");
    }
}

/// A suspended file is deleted after its time, or at once if its space is needed.
/// Covers C5 C1.
#[test]
fn what_is_suspended_goes_with_time_and_for_space() {
    let bytes = payload(3 * BLOCK);
    let host = suspended(&bytes);
    // Its time starts when it is suspended, however long the transfer took.
    let suspended_at = 10 * limits::SUSPEND_MS;
    on_lane(&host.lane, move |store| store.tend(suspended_at));
    on_lane(&host.lane, move |store| store.tend(suspended_at + limits::SUSPEND_MS - 1));
    assert_eq!(files(&host.fs).len(), 1);
    on_lane(&host.lane, move |store| store.tend(suspended_at + limits::SUSPEND_MS));
    host.assert_empty("it was suspended too long");

    // Its time starts again after a restart.
    let host = suspended(&bytes);
    let host = Host::of(Bed::reopen(host.fs, &state(&[])));
    on_lane(&host.lane, |store| store.tend(5_000));
    assert_eq!(files(&host.fs).len(), 1);
    on_lane(&host.lane, |store| store.tend(5_000 + limits::SUSPEND_MS));
    host.assert_empty("it was suspended for its whole time after the restart");

    let need = crate::store::layout::object_bytes(bytes.len() as u64).expect("it has a size");
    let fs = MemFs::with_dir(Path::new("/data"));
    let host = Host::of(Bed::with_limits(fs, &state(&[]), need + 10, 0));
    let mut script = Script::new(frames(&bytes)[..1].to_vec(), false);
    host.receive(&offer(&desc(10, &bytes)), &mut script);
    assert_eq!(files(&host.fs).len(), 1, "it is suspended");
    let local = crate::store::tests::local(20, 100, false);
    let reserved = on_lane(&host.lane, move |store| store.reserve_local(local));
    assert!(reserved.expect("the lane runs").is_ok(), "the suspended file gave up its space");
    let reclaimed = on_lane(&host.lane, |store| store.tally().reclaimed["local"]);
    assert_eq!(reclaimed, Some(1), "it is counted for the local snapshot");
    assert_eq!(files(&host.fs), [""; 0]);
}

/// If another group of the host finds no space, a suspended file is deleted for it.
/// Covers C1.
#[test]
fn what_is_suspended_gives_way_to_another_group() {
    let bytes = payload(3 * BLOCK);
    let need = crate::store::layout::object_bytes(bytes.len() as u64).expect("it has a size");
    let fs = MemFs::with_dir(Path::new("/data"));
    let bed = Bed::with_limits(fs, &state(&[]), 2 * need + 10, 0);
    let mut other = crate::store::tests::neighbour(&bed);
    let host = Host::of(bed);
    let mut script = Script::new(frames(&bytes)[..1].to_vec(), false);
    host.receive(&offer(&desc(10, &bytes)), &mut script);
    assert_eq!(files(&host.fs).len(), 1, "it is suspended");
    let first = crate::store::tests::take(&mut other, 10, &bytes).expect("there is space for one");
    other.list_durable(std::slice::from_ref(&first.desc), &[]);
    drop(first);

    let next = || crate::store::tests::local(20, bytes.len() as u64, false);
    let refused = other.reserve_local(next()).expect_err("the suspended file has the space");
    assert!(matches!(refused, SnapshotRefusal::NoSpace { .. }), "{refused:?}");
    assert_eq!(on_lane(&host.lane, |store| store.tend(0)), Some(None), "nothing is unlisted");
    assert_eq!(files(&host.fs).len(), 1, "what is listed is kept");
    drop(other.reserve_local(next()).expect("the suspended file gave up its space"));
}

/// Space is taken from a suspended file while the disk is struck at each operation: a start then
/// finds one file or none, and every byte on the disk is counted.
/// Covers C1 K1.
#[test]
fn every_crash_point_of_reclaiming_what_is_suspended() {
    let bytes = payload(3 * BLOCK);
    let need = crate::store::layout::object_bytes(bytes.len() as u64).expect("it has a size");
    let reclaim = |strike: Option<u64>| {
        let fs = MemFs::with_dir(Path::new("/data"));
        let host = Host::of(Bed::with_limits(fs.clone(), &state(&[]), need + 10, 0));
        let mut script = Script::new(frames(&bytes)[..1].to_vec(), false);
        host.receive(&offer(&desc(10, &bytes)), &mut script);
        assert_eq!(files(&fs).len(), 1, "it is suspended");
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
            let counted = usage.listed + usage.unlisted + usage.staged + usage.suspended;
            let lies: u64 = fs.image().values().map(|bytes| bytes.len() as u64).sum();
            let point = format!("operation {op}, keeping {keep:?}: {there:?}");
            assert!(lies <= counted, "{point}: {lies} bytes, {counted} are counted");
            assert!(there.len() <= 1, "{point}");
            assert_eq!(bed.budget.used(), counted, "{point}");
        }
    }
}
