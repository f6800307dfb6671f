//! The store on a disk that loses what was not synced.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::ids::{Digest, GroupId, ModuleId, NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::chunk::{Expected, Offer, Purpose, ValidatedHeader};
use lockstep_core::snapshot::{Configuration, SnapshotDesc, Verified};

use self::holding::{At, reach};
use super::*;
use crate::fs::mem::{DiskFault, MemFs};

mod crash;
mod holding;
mod opening;
mod places;
mod refuse;

pub(crate) const CLUSTER: [u8; 16] = [7; 16];
pub(crate) const GROUP: &str = "g";
pub(crate) const BLOCK: usize = limits::SNAPSHOT_BLOCK_BYTES;
/// Payload lengths: empty, short, around one block, several blocks and a rest.
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

    /// Takes these snapshots and lists them; returns them newest first.
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
    BudgetLimits {
        bytes,
        headroom_bytes,
        log_device: None,
        inbound,
        outbound: 4,
        captures: 2,
        restores: 2,
    }
}

/// A group's share of a host without limits.
pub(crate) fn quota() -> Arc<Quota> {
    Budget::new(limits_of(u64::MAX, 0, 4)).quota(u64::MAX)
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
    let mut state = RecoveryState::blank(GROUP, replica(1));
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
    LocalHeader { term: 2, index, module, format: 1, configuration, estimate, growable, gain: 0 }
}

pub(crate) fn take(
    store: &mut SnapshotStore,
    index: u64,
    payload: &[u8],
) -> Result<Verified, SnapshotRefusal> {
    let reservation = store.reserve_local(local(index, 0, true))?;
    let mut writer = store.create(reservation)?;
    // Pieces that do not align with blocks.
    for piece in payload.chunks(300_007) {
        // `finish` reports a failure again.
        let _failed = writer.write_all(piece);
    }
    let staged = store.seal(writer.finish()?)?;
    staged.verify(&mut || ()).map_err(|e| SnapshotRefusal::Disk(e.to_string()))
}

pub(crate) fn payload(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

thread_local! {
    /// What is logged on this thread while [`logged`] runs.
    static LINES: std::cell::RefCell<Option<Vec<u8>>> = const { std::cell::RefCell::new(None) };
}

/// Writes to [`LINES`]. One subscriber serves all threads, since subscribers that come and go with
/// a thread make other threads miss lines.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.iter_mut().for_each(|lines| lines.extend(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What this thread logs during `run`.
pub(crate) fn logged(run: impl FnOnce()) -> String {
    static SUBSCRIBER: std::sync::Once = std::sync::Once::new();
    SUBSCRIBER.call_once(|| {
        tracing_subscriber::fmt().with_writer(|| Lines).with_ansi(false).init();
    });
    LINES.set(Some(Vec::new()));
    run();
    let lines = LINES.take().expect("it was set above");
    String::from_utf8(lines).expect("logs are text")
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
        commit: 0,
        wanted: None,
    }
}

pub(crate) fn header(desc: &SnapshotDesc) -> ValidatedHeader {
    offer(desc).validate(&expected()).expect("the offer is in order")
}

/// A store of another group on the same budget.
pub(crate) fn neighbour(bed: &Bed) -> SnapshotStore {
    let name = "h";
    let identity = Identity { cluster: CLUSTER, group: GroupId::of_name(name) };
    let mut state = state(&[]);
    state.group = name.to_owned();
    let dir = layout::snapshot_dir(Path::new("/data"), name);
    let quota = bed.budget.quota(u64::MAX);
    let opened = SnapshotStore::open(Arc::new(bed.fs.clone()), dir, identity, quota, &state);
    opened.expect("the store opens").0
}

/// Covers P14.
#[test]
fn every_length_is_written_read_and_verified() {
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

/// No digest stands for "unchecked": zero is compared like any other digest, and here it is wrong.
/// Covers K7.
#[test]
fn no_digest_means_unchecked() {
    let bytes = payload(100);
    let mut bed = Bed::new();
    let mut zero = bed.take_listed(&[(10, &bytes)]).remove(0);
    zero.digest = Digest([0; 32]);
    assert!(matches!(bed.store.recoverable(&zero), Err(OpenError::Missing { .. })));
    zero.index = 20;
    let reservation = bed.store.reserve(&header(&zero)).expect("there is space");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&bytes).expect("it writes");
    assert_eq!(writer.finish().err(), Some(SnapshotRefusal::Corrupt));
    // An empty payload has a digest too.
    let empty = bed.take(30, b"").desc;
    assert_ne!(empty.digest, Digest([0; 32]));
}

/// A staging file is below the directory of its final name, and so on the same filesystem.
/// Covers P11.
#[test]
fn staging_lies_on_the_filesystem_of_the_object() {
    let fs = MemFs::with_dir(Path::new("/data"));
    fs.mount(&dir(), 4 << 20);
    let mut bed = Bed::reopen(fs, &state(&[]));
    let elsewhere = bed.fs.used(Path::new("/data"));
    let writer = reach(&mut bed.store, At::HalfWritten, true);
    assert!(bed.fs.used(&dir()) > BLOCK as u64);
    assert_eq!(bed.fs.used(Path::new("/data")), elsewhere);
    drop(writer);
}

/// Covers K3 K4.
#[test]
fn any_flipped_bit_or_missing_byte_is_found() {
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

/// An object opens only with the descriptor that denotes it.
/// Covers K5 K6 K9.
#[test]
fn a_descriptor_that_says_anything_else_does_not_open() {
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

/// A reader that meets a corrupt last block never reports a clean end.
/// Covers K4 U3.
#[test]
fn rot_is_found_while_reading() {
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

/// Blocks in the wrong order have good checksums; only the digest shows it.
#[test]
fn blocks_that_changed_places_are_found_by_the_digest() {
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
fn a_corrupt_listed_object_is_repaired_by_equal_bytes() {
    let bytes = payload(BLOCK + 1);
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, &bytes)]);
    for corrupt in [true, false] {
        let used = bed.budget.used();
        if corrupt {
            bed.fs.corrupt(&bed.path(&listed[0]), 200).expect("the file is there");
        }
        let reservation = bed.store.reserve(&header(&listed[0])).expect("there is space");
        let mut writer = bed.store.create(reservation).expect("a staging file");
        writer.write_all(&bytes).expect("it writes");
        let staged = bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed");
        let verified = staged.verify(&mut || ()).expect("it is good");
        drop(verified);
        bed.store.collect();
        assert_eq!(bed.store.recoverable(&listed[0]), Ok(()), "corrupt: {corrupt}");
        assert_eq!(bed.files().len(), 1, "corrupt: {corrupt}");
        assert_eq!(bed.budget.used(), used, "corrupt: {corrupt}");
    }
}

/// A truncated object takes less from the budget; once repaired, it takes its whole size.
#[test]
fn a_repaired_object_takes_its_whole_size_from_the_budget() {
    let bytes = payload(5000);
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, &bytes)]);
    let whole = bed.budget.used();
    bed.fs.cut(&bed.path(&listed[0]), 100).expect("the file is there");
    let mut bed = Bed::reopen(bed.fs, &state(&listed));
    assert_eq!(bed.budget.used(), 100);
    let reservation = bed.store.reserve(&header(&listed[0])).expect("there is space");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&bytes).expect("it writes");
    drop(bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed"));
    bed.store.collect();
    assert_eq!(bed.budget.used(), whole);
}

/// A deleted file does not return at the next power loss.
/// Covers F4.
#[test]
fn deletions_are_durable() {
    let mut bed = Bed::new();
    let mut listed = bed.take_listed(&[(10, b"old"), (20, b"new")]);
    listed.truncate(1);
    drop(reach(&mut bed.store, At::Created, true));
    bed.store.list_durable(&listed, &[]);
    bed.fs.crash();
    assert_eq!(bed.files(), [ObjectName::of(&listed[0]).file()]);
}

/// Covers V4.
#[test]
fn objects_are_listed_with_what_they_say_of_themselves() {
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
