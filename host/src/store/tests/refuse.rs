//! Admission: every refusal, its reason and what it leaves behind.

use super::*;

fn frame_bytes(payload: u64) -> u64 {
    layout::object_bytes(payload).expect("a small payload")
}

/// Covers C4.
#[test]
fn one_inbound_and_one_local_per_group_and_a_bound_per_host() {
    let mut bed = Bed::new();
    let inbound = bed.store.reserve(&header(&desc(10, b"a"))).expect("the place is free");
    let _local = bed.store.reserve_local(local(10, 0, true)).expect("the place is free");
    let busy = bed.store.reserve(&header(&desc(11, b"b"))).expect_err("one at a time");
    assert!(matches!(busy, SnapshotRefusal::Busy { .. }), "{busy:?}");
    let busy = bed.store.reserve_local(local(11, 0, true)).expect_err("one at a time");
    assert!(matches!(busy, SnapshotRefusal::Busy { .. }), "{busy:?}");
    let refusals = &bed.store.tally().refusals;
    assert_eq!((refusals[&("received", "busy")], refusals[&("local", "busy")]), (1, 1), "V1");
    assert_eq!(bed.budget.inbound(), 1, "a refused transfer takes no place of the host's");
    drop(inbound);
    let _again = bed.store.reserve(&header(&desc(11, b"b"))).expect("the place is free again");

    let limits = limits_of(1 << 30, 0, 0);
    let (mut store, _) = open(&bed.fs, &Budget::new(limits), &state(&[])).expect("it opens");
    let busy = store.reserve(&header(&desc(11, b"b"))).expect_err("the host takes none");
    assert!(matches!(busy, SnapshotRefusal::Busy { .. }), "{busy:?}");
}

/// Covers M7 G4.
#[test]
fn a_local_snapshot_at_or_below_the_newest_is_stale_before_a_byte_is_written() {
    let mut bed = Bed::new();
    bed.take_listed(&[(10, b"x")]);
    let before = bed.fs.image();
    for index in [9, 10] {
        let stale = bed.store.reserve_local(local(index, 0, true)).expect_err("not newer");
        assert_eq!(stale, SnapshotRefusal::Stale);
    }
    assert_eq!(bed.fs.image(), before);
}

/// Covers P16.
#[test]
fn an_object_of_another_cluster_or_group_is_refused() {
    let mut bed = Bed::new();
    let limits = bed.budget.limits();
    let other = Identity { cluster: [8; 16], group: identity().group };
    let fs = Arc::new(bed.fs.clone());
    let (mut store, _) =
        SnapshotStore::open(fs, dir(), other, Budget::new(limits).quota(1 << 40), &state(&[]))
            .expect("it opens");
    let refusal = store.reserve(&header(&desc(10, b"a"))).expect_err("another cluster's");
    assert_eq!(refusal, SnapshotRefusal::WrongGroup);
    assert!(bed.store.reserve(&header(&desc(10, b"a"))).is_ok());
}

/// Covers C2 C3.
#[test]
fn space_is_refused_before_a_byte_is_written_and_the_headroom_stays() {
    let need = frame_bytes(1000);
    let offered = header(&desc(10, &payload(1000)));
    for (budget, disk, headroom, fits) in [
        (need, need, 0, true),
        (need - 1, need, 0, false),
        (need, need - 1, 0, false),
        (need, need + 500, 500, true),
        (need, need + 499, 500, false),
    ] {
        let fs = MemFs::with_dir(Path::new("/data"));
        fs.set_capacity(disk);
        let mut bed = Bed::with_limits(fs, &state(&[]), budget, headroom);
        let case = format!("budget {budget}, disk {disk}, headroom {headroom}");
        match bed.store.reserve(&offered) {
            Ok(reservation) => {
                assert!(fits, "{case}");
                let writer = bed.store.create(reservation).expect("the bytes are there");
                let image = bed.fs.image();
                let sizes: Vec<_> = image.values().map(|bytes| bytes.len() as u64).collect();
                assert_eq!(sizes, [need], "{case}: preallocated whole");
                drop(writer);
            }
            Err(SnapshotRefusal::NoSpace { need: needed, have }) => {
                assert!(!fits && needed == need && have < need, "{case}");
                assert!(bed.files().is_empty(), "{case}");
            }
            Err(other) => panic!("{case}: {other:?}"),
        }
        bed.store.collect();
        assert_eq!(bed.budget.used(), 0, "{case}");
    }
}

/// Bytes that are promised but not written yet are subtracted from what the disk reports as free.
#[test]
fn two_reservations_do_not_promise_the_same_free_bytes() {
    let need = frame_bytes(1000);
    let fs = MemFs::with_dir(Path::new("/data"));
    fs.set_capacity(2 * need - 1);
    let mut bed = Bed::with_limits(fs, &state(&[]), u64::MAX / 2, 0);
    let first = bed.store.reserve(&header(&desc(10, &payload(1000)))).expect("space for one");
    let second = bed.store.reserve_local(local(10, 1000, false)).expect_err("not for two");
    assert_eq!(second, SnapshotRefusal::NoSpace { need, have: need - 1 });
    drop(first);
    bed.store.reserve_local(local(10, 1000, false)).expect("space again");
}

/// Bytes that a writer has put on the disk no longer count as promised.
#[test]
fn written_bytes_are_counted_once() {
    let (block, rest) = (BLOCK as u64, 1000);
    let fs = MemFs::with_dir(Path::new("/data"));
    fs.set_capacity(frame_bytes(block + rest) + frame_bytes(rest));
    let mut bed = Bed::with_limits(fs, &state(&[]), u64::MAX / 2, 0);
    let reservation = bed.store.reserve_local(local(10, block + rest, false)).expect("it fits");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&payload(BLOCK)).expect("as reserved");
    let reservation = bed.store.reserve(&header(&desc(9, &payload(1000)))).expect("space for both");
    let _other = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&payload(1000)).expect("as reserved");
    writer.finish().expect("its space was kept");
}

/// Covers C1 K15.
#[test]
fn the_oldest_recovery_point_beyond_the_newest_gives_way() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), 3 * frame_bytes(1000) - 2, 0);
    let old = bed.take(10, &payload(1000)).desc;
    bed.store.list_durable(std::slice::from_ref(&old), &[]);
    let mut wanted = bed.take(20, &payload(999)).desc;
    bed.store.list_durable(&[wanted.clone(), old.clone()], &[]);
    wanted.index = 30;
    wanted.length = 1000;
    let refusal = bed.store.reserve(&header(&wanted)).expect_err("the budget holds two");
    assert_eq!(refusal, SnapshotRefusal::NeedsUnlist(Box::new(old.clone())));
    assert_eq!(bed.files().len(), 2, "what is listed is kept until the log unlists it");
    let newest = bed.store.listed()[0].clone();
    bed.store.list_durable(&[newest], &[]);
    bed.store.reserve(&header(&wanted)).expect("space was freed");
    // The store never asks to unlist the newest one.
    wanted.length = 4000;
    let refusal = bed.store.reserve(&header(&wanted)).expect_err("far too big");
    assert!(matches!(refusal, SnapshotRefusal::NoSpace { .. }), "{refusal:?}");
}

/// Space is freed, then reserved, and only then is a file created.
/// Covers P7 C1.
#[test]
fn what_nobody_needs_goes_before_a_name_is_made() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), frame_bytes(1000), 0);
    drop(bed.take(5, &payload(900)));
    assert_eq!(bed.files().len(), 1, "nothing needs it, but nothing was collected yet");
    let reservation = bed.store.reserve(&header(&desc(10, &payload(1000)))).expect("it is freed");
    assert_eq!(bed.files(), [""; 0], "there is space, but no name yet");
    assert_eq!(bed.store.tally().reclaimed["received"], 1);
    let _writer = bed.store.create(reservation).expect("a staging file");
    assert_eq!(bed.files().len(), 1);
}

/// Local and received objects pass the same admission, and a refused one is not written.
/// Covers P9 P10 V1.
#[test]
fn a_refusal_is_typed_counted_and_writes_nothing() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), 10, 0);
    let received = bed.store.reserve(&header(&desc(10, b"a"))).map(drop);
    let local = bed.store.reserve_local(local(10, 1, true)).map(drop);
    let need = frame_bytes(1);
    assert_eq!((&received, &local), (&local, &Err(SnapshotRefusal::NoSpace { need, have: 10 })));
    let refusals = &bed.store.tally().refusals;
    assert_eq!((refusals[&("received", "no_space")], refusals[&("local", "no_space")]), (1, 1));
    assert_eq!((bed.files().len(), bed.budget.used()), (0, 0));
}

/// Covers V2.
#[test]
fn a_refusal_is_a_warning_with_group_index_and_cause() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), 10, 0);
    let told = logged(|| drop(bed.store.reserve_local(local(77, 1, true)).err()));
    for part in
        ["WARN", "index=77", "producer=\"local\"", "no space", &identity().group.to_string()]
    {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}

/// Covers I7.
#[test]
fn outbound_transfers_are_bounded() {
    let bed = Bed::new();
    let most = bed.budget.limits().outbound;
    let disk = Arc::<SnapshotDisk>::default();
    let mut slots: Vec<_> = (0..most).map(|_| bed.budget.take_outbound(&disk)).collect();
    assert!(slots.iter().all(Option::is_some));
    assert!(bed.budget.take_outbound(&disk).is_none(), "{most} at once");
    slots.pop();
    assert!(bed.budget.take_outbound(&disk).is_some());
}

/// All places of the host are held by groups whose disk hangs. A group on another disk sends and
/// receives, and those whose disk hangs begin nothing more.
#[test]
fn transfers_that_a_disk_holds_are_missing_to_nobody() {
    let mut bed = Bed::new();
    let limits = bed.budget.limits();
    let slow = Arc::<SnapshotDisk>::default();
    let groups = (0..=limits.inbound).map(|_| bed.budget.quota_on(Arc::clone(&slow), u64::MAX));
    let groups: Vec<_> = groups.collect();
    let inbound: Vec<_> = groups.iter().map(|group| group.take_inbound()).collect();
    assert_eq!(inbound.iter().flatten().count(), limits.inbound);
    let outbound: Vec<_> = (0..limits.outbound).map(|_| bed.budget.take_outbound(&slow)).collect();
    assert!(outbound.iter().all(Option::is_some));
    let fine = Arc::<SnapshotDisk>::default();
    assert!(bed.budget.take_outbound(&fine).is_none(), "they may only be slow");
    bed.store.reserve(&header(&desc(10, b"a"))).expect_err("they may only be slow");

    let hang = slow.hang();
    assert!(bed.budget.take_outbound(&fine).is_some());
    bed.store.reserve(&header(&desc(10, b"a"))).expect("it has another disk");
    assert!(bed.budget.take_outbound(&slow).is_none());
    assert!(groups.iter().all(|group| group.take_inbound().is_none()));

    drop((hang, inbound, outbound));
    assert!(bed.budget.take_outbound(&slow).is_some());
    assert!(groups[0].take_inbound().is_some());
}

/// Two groups share space for three objects. The one that is refused gets what the other gives up,
/// although the other asks again at once.
/// Covers C1.
#[test]
fn space_that_a_group_claims_is_kept_for_it() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut seldom = Bed::with_limits(fs, &state(&[]), 3 * frame_bytes(1000) + 10, 0);
    let mut often = neighbour(&seldom);
    seldom.take_listed(&[(10, &payload(1000))]);
    let mut listed = Vec::new();
    for index in [10, 20] {
        let verified = take(&mut often, index, &payload(1000)).expect("there is space");
        listed.insert(0, verified.desc.clone());
        often.list_durable(&listed, &[]);
    }
    let space = |store: &mut SnapshotStore, index| store.reserve_local(local(index, 1000, false));
    let refused = space(&mut seldom.store, 20).expect_err("there are three objects");
    assert!(matches!(refused, SnapshotRefusal::NoSpace { .. }), "{refused:?}");
    assert_eq!(seldom.store.tend(0), None, "it has none to spare");
    assert_eq!(often.tend(0), Some(listed[1].clone()), "the other is asked for one");
    assert_eq!(often.tend(0), None, "but only for one");
    listed.truncate(1);
    often.list_durable(&listed, &[]);
    let refused = space(&mut often, 30).expect_err("what it gave up is claimed");
    assert!(matches!(refused, SnapshotRefusal::NoSpace { .. }), "{refused:?}");
    drop(space(&mut seldom.store, 20).expect("it was kept for the claimant"));
    seldom.store.collect();
    drop(space(&mut often, 30).expect("the claim is over once it was met"));
}

/// A claim expires after a minute if its group does not take the space.
/// Covers C1.
#[test]
fn a_claim_ends_with_time() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), 2 * frame_bytes(1000) + 10, 0);
    let mut other = neighbour(&bed);
    bed.take_listed(&[(10, &payload(1000))]);
    let held = take(&mut other, 10, &payload(1000)).expect("there is space");
    let space = |store: &mut SnapshotStore| store.reserve_local(local(20, 1000, false));
    space(&mut bed.store).expect_err("there are two objects");
    drop(held);
    other.collect();
    space(&mut other).expect_err("it is claimed");
    other.tend(1_000);
    other.tend(60_999);
    space(&mut other).expect_err("the claim stands for a minute");
    other.tend(61_000);
    drop(space(&mut other).expect("it is over"));
}

/// A claim asks only groups that have some of what is short. It expires although it is repeated at
/// each tick.
/// Covers C1.
#[test]
fn a_claim_disturbs_nobody_who_cannot_help() {
    let fs = MemFs::with_dir(Path::new("/data"));
    fs.mount(&dir(), 2 * frame_bytes(1000) + 10);
    let mut bed = Bed::with_limits(fs, &state(&[]), 100 * frame_bytes(1000), 0);
    let mut elsewhere = neighbour(&bed);
    let mut listed = Vec::new();
    for index in [10, 20] {
        let verified = take(&mut elsewhere, index, &payload(1000)).expect("there is space");
        listed.insert(0, verified.desc.clone());
        elsewhere.list_durable(&listed, &[]);
    }
    bed.take_listed(&[(10, &payload(1000))]);
    bed.fs.mount(&dir(), frame_bytes(1000) + 10);
    let space = bed.store.next_space().expect("it is short");
    assert!(!space.fits() && space.have < space.need && space.quota > space.need, "{space:?}");
    assert_eq!(elsewhere.tend(0), None, "another filesystem is short, not the budget");
    drop(
        elsewhere.reserve_local(local(30, 1000, false)).expect("nothing is taken from its budget"),
    );

    // A claim of the budget that is repeated again and again still expires after a minute.
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), 2 * frame_bytes(1000) + 300, 0);
    let mut other = neighbour(&bed);
    bed.take_listed(&[(10, &payload(1000))]);
    let held = take(&mut other, 10, &payload(1000)).expect("there is space");
    other.tend(1_000);
    assert!(bed.store.next_space().is_some_and(|space| space.quota < space.need));
    drop(held);
    other.collect();
    let mut refused_until = 1_000;
    for now in (1_000..200_000).step_by(1_000) {
        other.tend(now);
        let _claims = bed.store.next_space();
        match other.reserve_local(local(20, 1000, false)) {
            Ok(_) => break,
            Err(_) => refused_until = now,
        }
    }
    assert!((30_000..=62_000).contains(&refused_until), "{refused_until}");
}

/// Covers P13.
#[test]
fn a_payload_is_capped_by_what_was_reserved() {
    let mut bed = Bed::new();
    let reservation = bed.store.reserve_local(local(10, 100, false)).expect("there is space");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&payload(100)).expect("as reserved");
    let error = writer.write_all(b"x").expect_err("one byte too many");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    // Once failed, the writer stays failed.
    assert!(writer.write_all(b"").is_ok());
    assert!(matches!(writer.finish(), Err(SnapshotRefusal::NoSpace { .. })));

    let mut huge = desc(10, b"");
    huge.length = u64::MAX;
    let refusal = bed.store.reserve(&header(&huge)).expect_err("no such size");
    assert!(matches!(refusal, SnapshotRefusal::NoSpace { .. }), "{refusal:?}");
}

/// Covers C2.
#[test]
fn a_growing_snapshot_asks_for_space_as_it_grows_and_fails_alone() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let limit = frame_bytes(16 * BLOCK as u64);
    let mut bed = Bed::with_limits(fs, &state(&[]), limit, 0);
    let reservation = bed.store.reserve_local(local(10, 0, true)).expect("there is space");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&payload(16 * BLOCK)).expect("within the budget");
    assert_eq!(bed.budget.used(), limit);
    let error = writer.write_all(&payload(1)).expect_err("beyond the budget");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    drop(writer);
    bed.store.collect();
    assert_eq!((bed.budget.used(), bed.files().len()), (0, 0));
}

/// Covers P17.
#[test]
fn bytes_that_are_not_the_declared_ones_are_not_finished() {
    let declared = payload(100);
    let mut flipped = declared.clone();
    flipped[50] ^= 1;
    for written in [&flipped[..], &declared[..99]] {
        let mut bed = Bed::new();
        let reservation = bed.store.reserve(&header(&desc(10, &declared))).expect("there is space");
        let mut writer = bed.store.create(reservation).expect("a staging file");
        writer.write_all(written).expect("it writes");
        assert_eq!(writer.finish().err(), Some(SnapshotRefusal::Corrupt));
        bed.store.collect();
        assert!(bed.files().is_empty());
    }
}

/// A group's own cap holds whatever the host's budget has left.
/// Covers C4.
#[test]
fn a_groups_cap_is_its_own() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let budget = Budget::new(limits_of(1 << 40, 0, 4));
    let quota = budget.quota(frame_bytes(1000) + frame_bytes(500));
    let open = |fs: MemFs| {
        SnapshotStore::open(Arc::new(fs), dir(), identity(), quota.clone(), &state(&[]))
    };
    let (mut store, _) = open(fs).expect("it opens");
    let first = store.reserve_local(local(10, 1000, false)).expect("space for one");
    let refusal = store.reserve(&header(&desc(10, &payload(501)))).expect_err("over the cap");
    let (need, have) = (frame_bytes(501), frame_bytes(500));
    assert_eq!(refusal, SnapshotRefusal::NoSpace { need, have });
    store.reserve(&header(&desc(10, &payload(500)))).expect("within the cap");
    drop(first);
    store.collect();
    store.reserve(&header(&desc(10, &payload(1000)))).expect("returned bytes can be taken again");
}

/// Promised bytes, and the log's headroom, count on their own filesystem only.
/// Covers C2.
#[test]
fn another_filesystem_is_not_disturbed() {
    let fs = MemFs::with_dir(Path::new("/data"));
    fs.mount(&dir(), 1 << 20);
    fs.set_capacity(10);
    let limits = BudgetLimits { log_device: Some(0), ..limits_of(1 << 40, 1 << 30, 4) };
    let (mut store, _) = open(&fs, &Budget::new(limits), &state(&[])).expect("it opens");
    let need = frame_bytes(1000);
    let _first = store.reserve_local(local(10, 1000, false)).expect("the log's disk is another");
    let have = (1 << 20) - need;
    let refusal = store.reserve(&header(&desc(10, &payload(1 << 20)))).expect_err("too much");
    assert!(matches!(refusal, SnapshotRefusal::NoSpace { have: left, .. } if left == have));
}

/// An object that is being sent, or was promised, frees no space now: the snapshot is postponed.
/// Covers C1 U6.
#[test]
fn space_that_is_in_use_postpones() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut bed = Bed::with_limits(fs, &state(&[]), 2 * frame_bytes(1000) + 5, 0);
    let listed = bed.take_listed(&[(10, &payload(1000)), (20, &payload(999))]);
    let (new, old) = (listed[0].clone(), listed[1].clone());
    let reader = bed.store.open_object(&old, Use::Sending(replica(2))).expect("it opens");
    let held = SnapshotRefusal::Held { bytes: frame_bytes(1000) };
    let refused = |bed: &mut Bed| bed.store.reserve_local(local(30, 1000, false)).err();
    assert_eq!(refused(&mut bed), Some(held.clone()), "it is being sent");
    let status = bed.store.list().into_iter().find(|object| object.index == 10);
    assert_eq!(status.map(|object| object.uses), Some(vec![Use::Sending(replica(2))]));
    drop(reader);
    assert_eq!(refused(&mut bed), Some(SnapshotRefusal::NeedsUnlist(Box::new(old.clone()))));
    bed.store.list_durable(std::slice::from_ref(&new), std::slice::from_ref(&old));
    assert_eq!(refused(&mut bed), Some(held), "it is unlisted, but promised");
    assert_eq!(bed.files().len(), 2);
    bed.store.list_durable(&[new], &[]);
    assert_eq!(bed.files().len(), 1);
    assert_eq!(refused(&mut bed), None);
}

/// Of a listed name the log's descriptor counts, not a peer's: an object of that name with another
/// format replaces neither a good object nor a damaged one.
#[test]
fn a_peers_descriptor_does_not_decide_what_a_listed_name_holds() {
    let bytes = payload(1000);
    for damaged in [false, true] {
        let mut bed = Bed::new();
        let listed = bed.take_listed(&[(10, &bytes)]).remove(0);
        if damaged {
            bed.fs.corrupt(&bed.path(&listed), 200).expect("the file is there");
        }
        let (before, used) = (bed.fs.image(), bed.budget.used());
        let other = SnapshotDesc { format: 2, ..listed.clone() };
        let header = offer(&other).validate(&expected()).expect("the offer is in order");
        let reservation = bed.store.reserve(&header).expect("there is space");
        let mut writer = bed.store.create(reservation).expect("a staging file");
        writer.write_all(&bytes).expect("it writes");
        let sealed = bed.store.seal(writer.finish().expect("it is whole"));
        let refusal = sealed.expect_err("the log lists another");
        assert!(matches!(refusal, SnapshotRefusal::Incompatible { .. }), "{refusal}");
        assert!(bed.fs.image() == before, "damaged: {damaged}");
        assert_eq!(bed.budget.used(), used, "damaged: {damaged}");
    }
}
