//! The store on a disk that loses what was not synced.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::ids::{Digest, GroupId, ModuleId, NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::chunk::{Expected, Offer, Purpose, ValidatedHeader};
use lockstep_core::snapshot::{Configuration, SnapshotDesc, Verified};

use super::*;
use crate::fs::mem::{DiskFault, MemFs};

mod crash;
mod refuse;

pub(crate) const CLUSTER: [u8; 16] = [7; 16];
pub(crate) const GROUP: &str = "g";
pub(crate) const BLOCK: usize = limits::SNAPSHOT_BLOCK_BYTES;
/// Empty, short, around one block, several with a rest (P14).
pub(crate) const LENGTHS: [usize; 7] = [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 6 * BLOCK + 77];

/// A store on a disk of its own.
pub(crate) struct Bed {
    pub(crate) fs: MemFs,
    pub(crate) budget: Arc<Budget>,
    pub(crate) store: SnapshotStore,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::reopen(MemFs::with_dir(Path::new("/data")), &state(&[]))
    }

    pub(crate) fn reopen(fs: MemFs, state: &RecoveryState) -> Self {
        Self::with_limits(fs, state, u64::MAX / 2, 0)
    }

    pub(crate) fn with_limits(fs: MemFs, state: &RecoveryState, bytes: u64, headroom: u64) -> Self {
        let limits = limits_of(bytes, headroom, 4);
        let budget = Budget::new(limits);
        let (store, _) = open(&fs, &budget, state).expect("the store opens");
        Self { fs, budget, store }
    }

    /// Takes, seals and reads back a local snapshot.
    pub(crate) fn take(&mut self, index: u64, payload: &[u8]) -> Verified {
        take(&mut self.store, index, payload).expect("the snapshot is taken")
    }

    /// Takes snapshots and lists them, newest first.
    pub(crate) fn take_listed(&mut self, snapshots: &[(u64, &[u8])]) -> Vec<SnapshotDesc> {
        let mut listed: Vec<SnapshotDesc> = Vec::new();
        for (index, payload) in snapshots {
            let verified = self.take(*index, payload);
            listed.insert(0, verified.desc.clone());
            self.store.list_durable(&listed, &[]);
        }
        listed
    }

    pub(crate) fn path(&self, desc: &SnapshotDesc) -> PathBuf {
        dir().join(ObjectName::of(desc).file())
    }

    pub(crate) fn files(&self) -> Vec<String> {
        files(&self.fs)
    }
}

pub(crate) fn limits_of(bytes: u64, headroom_bytes: u64, inbound: usize) -> BudgetLimits {
    BudgetLimits { bytes, headroom_bytes, log_device: None, inbound, outbound: 4 }
}

pub(crate) fn dir() -> PathBuf {
    layout::snapshot_dir(Path::new("/data"), GROUP)
}

/// Every file of the disk, by name.
pub(crate) fn files(fs: &MemFs) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    fs.image().keys().filter_map(name).collect()
}

pub(crate) fn identity() -> Identity {
    Identity { cluster: CLUSTER, group: GroupId::of_name(GROUP) }
}

pub(crate) fn replica(node: u16) -> ReplicaId {
    ReplicaId::new(NodeId(node), 1 << 20)
}

pub(crate) fn configuration() -> Configuration {
    Configuration::of_voters([replica(1), replica(2)])
}

pub(crate) fn state(snapshots: &[SnapshotDesc]) -> RecoveryState {
    let mut state = RecoveryState::unfounded(GROUP, replica(1));
    state.commit = snapshots.first().map_or(0, |desc| desc.index);
    state.snapshots = snapshots.to_vec();
    state
}

pub(crate) fn open(
    fs: &MemFs,
    budget: &Arc<Budget>,
    state: &RecoveryState,
) -> io::Result<(SnapshotStore, Swept)> {
    let quota = budget.quota(u64::MAX);
    SnapshotStore::open(Arc::new(fs.clone()), dir(), identity(), quota, state)
}

pub(crate) fn local(index: u64, estimate: u64, growable: bool) -> LocalHeader {
    let module = ModuleId([5; 32]);
    let configuration = configuration();
    LocalHeader { term: 2, index, module, format: 1, configuration, estimate, growable }
}

pub(crate) fn take(
    store: &mut SnapshotStore,
    index: u64,
    payload: &[u8],
) -> Result<Verified, SnapshotRefusal> {
    let reservation = store.reserve_local(local(index, 0, true))?;
    let mut writer = store.create(reservation)?;
    // Pieces that fit no block.
    for piece in payload.chunks(300_007) {
        writer.write_all(piece).map_err(|e| SnapshotRefusal::Disk(e.to_string()))?;
    }
    let staged = store.seal(writer.finish()?)?;
    staged.verify(&mut || ()).map_err(|e| SnapshotRefusal::Disk(e.to_string()))
}

pub(crate) fn payload(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The descriptor that an object of this payload has.
pub(crate) fn desc(index: u64, payload: &[u8]) -> SnapshotDesc {
    SnapshotDesc {
        term: 2,
        index,
        length: payload.len() as u64,
        digest: Digest(*blake3::hash(payload).as_bytes()),
        module: ModuleId([5; 32]),
        format: 1,
        configuration: configuration(),
    }
}

pub(crate) fn offer(desc: &SnapshotDesc) -> Offer {
    let group = identity().group;
    let (from, to) = (replica(1), replica(2));
    let (desc, purpose) = (desc.clone(), Purpose::Follow);
    Offer { cluster: CLUSTER, group, from, to, term: 3, desc, purpose, insist: false }
}

pub(crate) fn expected() -> Expected {
    Expected {
        cluster: CLUSTER,
        group: identity().group,
        replica: replica(2),
        module: ModuleId([5; 32]),
        formats: 1..=1,
        commit: 0,
        wanted: None,
    }
}

pub(crate) fn header(desc: &SnapshotDesc) -> ValidatedHeader {
    offer(desc).validate(&expected()).expect("the offer is in order")
}

#[test]
fn p14_every_length_is_written_read_and_verified() {
    for length in LENGTHS {
        let mut bed = Bed::new();
        let bytes = payload(length);
        let verified = bed.take(10, &bytes);
        assert_eq!(verified.desc, desc(10, &bytes), "length {length}");
        bed.store.list_durable(std::slice::from_ref(&verified.desc), &[]);
        let mut read = Vec::new();
        let mut reader = bed.store.open_object(&verified.desc, Use::Verifying).expect("it opens");
        reader.read_to_end(&mut read).expect("it reads");
        assert!(read == bytes, "length {length}");
        let size = layout::object_bytes(length as u64).expect("it has a size");
        assert_eq!(bed.budget.used(), size, "length {length}");
        assert_eq!(bed.store.usage(), Usage { listed: size, ..Usage::default() });
    }
}

/// The stages of a snapshot, in order.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
enum At {
    Reserved,
    Created,
    HalfWritten,
    Finished,
    Staged,
    Verified,
}

const STAGES: [At; 6] =
    [At::Reserved, At::Created, At::HalfWritten, At::Finished, At::Staged, At::Verified];

/// A value of one stage.
fn reach(store: &mut SnapshotStore, at: At, received: bool) -> Box<dyn std::any::Any + Send> {
    let bytes = payload(BLOCK + 5);
    let reservation = match received {
        true => store.reserve(&header(&desc(10, &bytes))),
        false => store.reserve_local(local(10, 0, true)),
    };
    let reservation = reservation.expect("there is room");
    if at == At::Reserved {
        return Box::new(reservation);
    }
    let mut writer = store.create(reservation).expect("a staging file");
    if at == At::Created {
        return Box::new(writer);
    }
    let count = if at == At::HalfWritten { BLOCK + 1 } else { bytes.len() };
    writer.write_all(&bytes[..count]).expect("it writes");
    if at == At::HalfWritten {
        return Box::new(writer);
    }
    let finished = writer.finish().expect("it is whole");
    if at == At::Finished {
        return Box::new(finished);
    }
    let staged = store.seal(finished).expect("it is sealed");
    if at == At::Staged {
        return Box::new(staged);
    }
    Box::new(staged.verify(&mut || ()).expect("it is good"))
}

/// By intent: a value dropped at any stage leaves no object and returns its bytes.
#[test]
fn g1_g7_x1_x2_x15_dropped_at_any_stage_nothing_is_left() {
    for (at, received) in STAGES.into_iter().flat_map(|at| [(at, true), (at, false)]) {
        let mut bed = Bed::new();
        let value = reach(&mut bed.store, at, received);
        assert!(bed.budget.used() > 0, "{at:?} holds bytes");
        bed.store.collect();
        let kept = usize::from(at > At::Reserved);
        assert_eq!(bed.files().len(), kept, "{at:?} keeps its name while it lives");
        // Another thread only lets go; the unlink is the lane's.
        std::thread::spawn(move || drop(value)).join().expect("a drop does not panic");
        assert_eq!(bed.files().len(), kept, "{at:?}: no other thread unlinks");
        bed.store.collect();
        assert_eq!(bed.files(), [""; 0], "{at:?} left a name");
        assert_eq!(bed.budget.used(), 0, "{at:?} left bytes");
        assert_eq!(bed.budget.inbound(), 0, "{at:?} left its place taken");
        // I3: a later attempt at the same index finds nothing in its way.
        reach(&mut bed.store, At::Verified, received);
    }
}

/// N10: a value that is forgotten costs space until the next start, never more.
#[test]
fn n10_x16_what_is_forgotten_goes_at_the_next_start() {
    for at in STAGES {
        let mut bed = Bed::new();
        let listed = bed.take_listed(&[(5, b"old")]);
        std::mem::forget(reach(&mut bed.store, at, true));
        bed.store.collect();
        let mut bed = Bed::reopen(bed.fs, &state(&listed));
        // What of a transfer can be gone on with is parked, not leaked: it goes when it must.
        bed.store.abandon();
        assert_eq!(bed.files().len(), 1, "{at:?}");
        assert_eq!(bed.store.recoverable(&listed[0]), Ok(()), "{at:?}");
    }
}

#[test]
fn k3_k4_w24_any_flipped_bit_or_missing_byte_is_found() {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, &payload(50))]);
    let path = bed.path(&listed[0]);
    let size = bed.fs.image()[&path].len() as u64;
    for offset in 0..size {
        bed.fs.corrupt(&path, offset).expect("the file is there");
        let bad = bed.store.recoverable(&listed[0]);
        assert!(matches!(bad, Err(OpenError::Bad { .. })), "byte {offset}: {bad:?}");
        bed.fs.corrupt(&path, offset).expect("flipped back");
        assert_eq!(bed.store.recoverable(&listed[0]), Ok(()), "byte {offset}");
    }
    for length in (0..size).rev() {
        bed.fs.cut(&path, length).expect("the file is there");
        let bad = bed.store.recoverable(&listed[0]);
        assert!(matches!(bad, Err(OpenError::Bad { .. })), "cut to {length}: {bad:?}");
    }
}

/// K5, K6, N3: an object serves only the descriptor that denotes it.
#[test]
fn k5_k6_k9_a_descriptor_that_says_anything_else_does_not_open() {
    let mut bed = Bed::new();
    let good = bed.take_listed(&[(10, b"payload")]).remove(0);
    let mut others = vec![good.clone(); 6];
    others[0].term += 1;
    others[1].index += 1;
    others[2].length += 1;
    others[3].digest.0[31] ^= 1;
    others[4].module.0[0] ^= 1;
    others[5].format += 1;
    for other in others {
        assert!(bed.store.open_object(&other, Use::Verifying).is_err(), "{other:?}");
    }
    assert_eq!(bed.store.recoverable(&good), Ok(()));
}

/// A reader that meets rot in the last block never reports a clean end.
#[test]
fn k4_u3_rot_is_found_while_reading() {
    let mut bed = Bed::new();
    let good = bed.take_listed(&[(10, &payload(2 * BLOCK + 9))]).remove(0);
    bed.fs.corrupt(&bed.path(&good), layout::block_position(2) + 3).expect("the file is there");
    let mut reader =
        bed.store.open_object(&good, Use::Verifying).expect("header and trailer are good");
    let mut read = Vec::new();
    let error = reader.read_to_end(&mut read).expect_err("the third block is bad");
    assert!(error.to_string().contains("block 2"), "{error}");
    assert_eq!(read.len(), 2 * BLOCK, "what came before was good");
}

/// Equal blocks in another order have good checksums; the digest tells.
#[test]
fn n14_blocks_that_changed_places_are_found_by_the_digest() {
    let mut bed = Bed::new();
    let good = bed.take_listed(&[(10, &payload(2 * BLOCK))]).remove(0);
    let path = bed.path(&good);
    let image = bed.fs.image().remove(&path).expect("the file is there");
    let (first, second) = (layout::block_position(0), layout::block_position(1));
    let file = Fs::open(&bed.fs, &path, true).expect("it opens");
    let block = |at: u64| &image[at as usize..(at + second - first) as usize];
    file.write_at(block(second), first).expect("it writes");
    file.write_at(block(first), second).expect("it writes");
    file.sync().expect("it syncs");
    let bad = bed.store.recoverable(&good).expect_err("the order is wrong");
    assert!(bad.to_string().contains("digest"), "{bad}");
}

#[test]
fn n2_n3_a_rotten_listed_object_is_repaired_by_equal_bytes() {
    let bytes = payload(BLOCK + 1);
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, &bytes)]);
    for rotten in [true, false] {
        let used = bed.budget.used();
        if rotten {
            bed.fs.corrupt(&bed.path(&listed[0]), 200).expect("the file is there");
        }
        let reservation = bed.store.reserve(&header(&listed[0])).expect("there is room");
        let mut writer = bed.store.create(reservation).expect("a staging file");
        writer.write_all(&bytes).expect("it writes");
        let staged = bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed");
        let verified = staged.verify(&mut || ()).expect("it is good");
        drop(verified);
        bed.store.collect();
        assert_eq!(bed.store.recoverable(&listed[0]), Ok(()), "rotten: {rotten}");
        assert_eq!(bed.files().len(), 1, "rotten: {rotten}");
        assert_eq!(bed.budget.used(), used, "rotten: {rotten}");
    }
}

/// A truncated object took less; repaired, it takes what it has.
#[test]
fn n9_a_repaired_object_takes_its_whole_size_from_the_budget() {
    let bytes = payload(5000);
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, &bytes)]);
    let whole = bed.budget.used();
    bed.fs.cut(&bed.path(&listed[0]), 100).expect("the file is there");
    let mut bed = Bed::reopen(bed.fs, &state(&listed));
    assert_eq!(bed.budget.used(), 100);
    let reservation = bed.store.reserve(&header(&listed[0])).expect("there is room");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&bytes).expect("it writes");
    drop(bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed"));
    bed.store.collect();
    assert_eq!(bed.budget.used(), whole);
}

/// F4: what was deleted does not come back with the next power loss.
#[test]
fn f4_deletions_are_durable() {
    let mut bed = Bed::new();
    let mut listed = bed.take_listed(&[(10, b"old"), (20, b"new")]);
    listed.truncate(1);
    drop(reach(&mut bed.store, At::Created, true));
    bed.store.list_durable(&listed, &[]);
    bed.fs.crash();
    assert_eq!(bed.files(), [ObjectName::of(&listed[0]).file()]);
}

#[test]
fn n7_m4_a_lease_keeps_an_unlisted_object_until_it_is_dropped() {
    let mut bed = Bed::new();
    let old = bed.take_listed(&[(10, b"old")]).remove(0);
    let mut reader = bed.store.open_object(&old, Use::Verifying).expect("it opens");
    let new = bed.take(20, b"new").desc;
    bed.store.list_durable(std::slice::from_ref(&new), &[]);
    assert!(bed.store.list().iter().any(|object| !object.listed && object.leased));
    let mut read = Vec::new();
    reader.read_to_end(&mut read).expect("unlisting does not hurt a reader");
    assert_eq!(read, b"old");
    drop(reader);
    bed.store.collect();
    assert_eq!(bed.files(), [ObjectName::of(&new).file()]);
}

#[test]
fn n7_k1_deleting_spares_what_is_listed_leased_or_on_its_way_to_the_log() {
    let mut bed = Bed::new();
    let first = bed.take_listed(&[(10, b"first")]).remove(0);
    let mut second = bed.take(20, b"second");
    let reader = bed.store.open_object(&first, Use::Verifying).expect("it opens");
    // An answer about an older batch: the second is not in it yet, but a batch with it is under
    // way.
    second.hold.disarm();
    let second_desc = second.desc.clone();
    drop(second);
    bed.store.list_durable(std::slice::from_ref(&first), &[]);
    assert_eq!(bed.files().len(), 2, "dropping after disarm discards nothing");
    bed.store.list_durable(std::slice::from_ref(&second_desc), &[]);
    assert_eq!(bed.files().len(), 2, "the first is unlisted, but leased");
    drop(reader);
    bed.store.list_durable(std::slice::from_ref(&second_desc), &[]);
    assert_eq!(bed.files(), [ObjectName::of(&second_desc).file()]);
    // Listed once, it is like any other: unlisting deletes it.
    let collected = bed.store.list_durable(&[], &[]);
    assert_eq!(collected.removed, [ObjectName::of(&second_desc).file()]);
}

#[test]
fn k17_one_failing_deletion_does_not_stop_the_rest() {
    let mut bed = Bed::new();
    bed.take_listed(&[(10, b"a"), (20, b"b")]);
    bed.fs.fail_op(bed.fs.ops() + 1, DiskFault::Io);
    let collected = bed.store.list_durable(&[], &[]);
    assert_eq!((collected.removed.len(), collected.errors.len()), (1, 1), "{collected:?}");
    // It is tried again at the next call, and only then are its bytes given back.
    assert!(bed.budget.used() > 0);
    bed.store.collect();
    assert_eq!((bed.files().len(), bed.budget.used()), (0, 0));
}

#[test]
fn o1_o2_o3_o6_o7_opening_removes_what_is_unlisted_and_nothing_else() {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, b"listed")]);
    std::mem::forget(reach(&mut bed.store, At::Staged, true));
    std::mem::forget(bed.store.reserve_local(local(30, 9, true)).and_then(|r| bed.store.create(r)));
    for foreign in ["notes.txt", "part/x.tmp", "part/README.in"] {
        Fs::create(&bed.fs, &dir().join(foreign)).expect("a file of somebody else's");
    }
    let (_, swept) = open(&bed.fs, &bed.budget, &state(&listed)).expect("the store opens");
    assert_eq!((swept.removed.len(), swept.errors.len()), (2, 0), "{swept:?}");
    assert_eq!(swept.foreign, ["notes.txt", "README.in", "x.tmp"]);
    assert_eq!(swept.missing, []);
    assert_eq!(bed.files().len(), 1 + 3);
    // O3: with nothing listed, everything of ours goes.
    let (_, swept) = open(&bed.fs, &bed.budget, &state(&[])).expect("the store opens");
    assert_eq!(swept.removed.len(), 1);
    assert_eq!(bed.files().len(), 3);
}

#[test]
fn n20_o8_without_this_groups_own_state_nothing_is_touched() {
    let mut bed = Bed::new();
    bed.take_listed(&[(10, b"precious")]);
    let before = bed.fs.image();
    let mut foreign = state(&[]);
    foreign.group = "another".into();
    let error = open(&bed.fs, &bed.budget, &foreign).err().expect("another group's state");
    assert!(error.to_string().contains("another"), "{error}");
    let listed = list_objects(&bed.fs, Path::new("/data")).expect("it lists");
    assert_eq!(listed.len(), 1);
    assert_eq!(bed.fs.image(), before);
}

#[test]
fn k2_a_listed_snapshot_without_an_object_is_reported_and_not_recoverable() {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, b"x")]);
    Fs::remove(&bed.fs, &bed.path(&listed[0])).expect("it was there");
    let (mut store, swept) = open(&bed.fs, &bed.budget, &state(&listed)).expect("the store opens");
    assert_eq!(swept.missing, listed);
    assert!(matches!(store.recoverable(&listed[0]), Err(OpenError::Missing { .. })));
}

#[test]
fn v4_objects_are_listed_with_what_they_say_of_themselves() {
    let mut bed = Bed::new();
    let descs = bed.take_listed(&[(10, b"a"), (20, b"bb")]);
    bed.fs.cut(&bed.path(&descs[0]), 60).expect("the file is there");
    let objects = list_objects(&bed.fs, Path::new("/data")).expect("it lists");
    let [good, bad] = &objects[..] else { panic!("two objects: {objects:?}") };
    let content = good.content.as_ref().expect("the older one is good");
    assert_eq!((good.group.as_str(), content.index, content.length), (GROUP, 10, 1));
    assert_eq!((content.digest, content.identity), (descs[1].digest, identity()));
    assert_eq!((bad.bytes, bad.content.is_err()), (60, true));
    assert!(list_objects(&bed.fs, Path::new("/nowhere")).is_err(), "no such directory");
}
