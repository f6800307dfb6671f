//! An export: an excerpt of a group's log in one file, so that somebody else can replay it.
//!
//! - It begins with entry 1, or with a snapshot and the entry after it. The bootstrap record is
//!   entry 1, or in the snapshot's envelope.
//! - It names all the snapshots that the log lists from there on, so that a replay can be compared
//!   with their digests; only the first one's bytes are in it.
//!
//! ```text
//! export = magic "LSTPEXPO" · version u8 (1 or 2) · group bytes · replica u64 · commit u64 ·
//!          begins u8 (0 with entry 1, 1 with a snapshot) · count u32 · descs, newest first ·
//!          amendments (not in version 1, which is written if there are none) ·
//!          payload of the last desc, if it begins with a snapshot ·
//!          first index u64 · count u64 · entries · BLAKE3-256 of everything before 32
//! entry  = type u8 (0 normal, 1 a change of members, 2 one of the second kind) · term u64 ·
//!          data bytes
//! ```
//! The indexes of entries follow on each other. Integers are little-endian; `bytes` is prefixed by
//! a u32 length. A desc is that of `lockstep_core::snapshot`.

use std::io;
use std::path::Path;

use bytes::Bytes;
use lockstep_core::amendment::Amendments;
use lockstep_core::codec::{DecodeError, Reader, Write as _};
use lockstep_core::ids::{Digest, ReplicaId};
use lockstep_core::limits;
use lockstep_core::snapshot::SnapshotDesc;
use raft::eraftpb::{Entry, EntryType};

use super::hashing::Hashing;
use super::past::{Facts, Past};
use super::replay::{Plan, ReplayError, Span};
use crate::fs::{Fs, read_exact_at};

const MAGIC: [u8; 8] = *b"LSTPEXPO";
const VERSION: u8 = 2;
const VERSION_WITHOUT_AMENDMENTS: u8 = 1;
const WHAT: &str = "export";
const DIGEST_BYTES: usize = 32;
/// Most snapshots that an export names; a log lists a few.
const LISTED_MAX: usize = 16;
/// Largest export that is read, bytes: it is read into memory.
const EXPORT_BYTES_MAX: u64 = 16 << 30;
/// Entries that are handed out at once.
const ENTRIES_AT_ONCE: usize = 1024;

/// An export that was read.
#[derive(Debug)]
pub struct Export {
    facts: Facts,
    /// The payload of the snapshot with which it begins.
    payload: Option<Bytes>,
    entries: Vec<Entry>,
}

/// What was exported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exported {
    /// The index of the snapshot with which it begins; `None` if it begins with entry 1.
    pub snapshot: Option<u64>,
    /// Snapshots that could not be read, and why.
    pub passed: Vec<(u64, String)>,
    /// The first and the last entry; the last is before the first if there is none.
    pub first: u64,
    pub last: u64,
    /// How many entries of the log come after that.
    pub left: u64,
    pub bytes: u64,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("snapshot at {index}: {source}; try again, or begin with another --from-snapshot")]
    Snapshot { index: u64, source: io::Error },
    #[error("the export cannot be written: {0}")]
    Write(io::Error),
    #[error("the export cannot be read: {0}")]
    Read(io::Error),
    #[error("the export has {bytes} bytes, and at most {EXPORT_BYTES_MAX} are read")]
    TooLarge { bytes: u64 },
    #[error("{0}; get the file again from where it was made")]
    Decode(#[from] DecodeError),
}

/// Writes what a plan comes to. Without a snapshot or an entry to look at, it is all that there is.
pub fn write(
    past: &dyn Past,
    plan: &Plan,
    out: &mut dyn io::Write,
) -> Result<Exported, ExportError> {
    let facts = past.facts();
    let Span { mut snapshots, from_first, until, left } = plan.span(facts)?;
    if plan.from_snapshot.is_none() && plan.look.is_none() {
        snapshots.reverse();
        if from_first {
            snapshots.clear();
        }
    }
    let mut passed = Vec::new();
    let mut begins = None;
    for desc in snapshots {
        match past.verify(&desc).and_then(|()| past.open(&desc)) {
            Ok(payload) => {
                begins = Some((desc, payload));
                break;
            }
            Err(why) => passed.push((desc.index, why)),
        }
    }
    if begins.is_none() && !from_first {
        return Err(ReplayError::no_beginning(&passed).into());
    }
    let snapshot = begins.as_ref().map(|(desc, _)| desc.index);
    let first = snapshot.map_or(1, |index| index + 1);
    let mut out = Hashing::new(out);
    put(&mut out, &head(facts, snapshot, until))?;
    if let Some((desc, mut payload)) = begins {
        let copied = io::copy(&mut payload, &mut out);
        copied.map_err(|source| ExportError::Snapshot { index: desc.index, source })?;
    }
    write_entries(past, first, until, &mut out)?;
    let digest = out.digest().0;
    put(&mut out, &digest)?;
    io::Write::flush(&mut out).map_err(ExportError::Write)?;
    Ok(Exported { snapshot, passed, first, last: until, left, bytes: out.bytes })
}

/// All that comes before the payload.
fn head(facts: &Facts, snapshot: Option<u64>, until: u64) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    let amended = !facts.amendments.is_empty();
    head.put_u8(if amended { VERSION } else { VERSION_WITHOUT_AMENDMENTS });
    head.put_bytes_within(facts.group.as_bytes(), limits::GROUP_NAME_BYTES_MAX);
    head.put_u64(facts.replica.0);
    head.put_u64(facts.commit);
    head.put_u8(u8::from(snapshot.is_some()));
    let within = |desc: &&SnapshotDesc| {
        desc.index <= until && snapshot.is_none_or(|first| first <= desc.index)
    };
    let listed: Vec<_> = facts.listed.iter().filter(within).collect();
    head.put_count_within(listed.len(), LISTED_MAX);
    listed.iter().for_each(|desc| desc.encode(&mut head));
    if amended {
        facts.amendments.encode(&mut head);
    }
    head
}

fn write_entries(
    past: &dyn Past,
    first: u64,
    until: u64,
    out: &mut dyn io::Write,
) -> Result<(), ExportError> {
    let mut counts = Vec::new();
    counts.put_u64(first);
    counts.put_u64(until + 1 - first);
    put(out, &counts)?;
    let mut next = first;
    while next <= until {
        let unread = |why: String| ReplayError::Entry { index: next, why };
        let entries = past.entries(next, until + 1).map_err(unread)?;
        if entries.is_empty() {
            return Err(unread("it is missing".to_owned()).into());
        }
        for entry in entries {
            let mut bytes = Vec::with_capacity(entry.data.len() + 13);
            bytes.put_u8(match entry.get_entry_type() {
                EntryType::EntryNormal => 0,
                EntryType::EntryConfChange => 1,
                EntryType::EntryConfChangeV2 => 2,
            });
            bytes.put_u64(entry.term);
            bytes.put_bytes_within(&entry.data, limits::LOG_BATCH_BYTES_MAX);
            put(out, &bytes)?;
            next = entry.index + 1;
        }
    }
    Ok(())
}

fn put(out: &mut dyn io::Write, bytes: &[u8]) -> Result<(), ExportError> {
    out.write_all(bytes).map_err(ExportError::Write)
}

impl Export {
    /// Reads and checks a file.
    pub fn open(fs: &dyn Fs, path: &Path) -> Result<Self, ExportError> {
        let file = fs.open(path, false).map_err(ExportError::Read)?;
        let bytes = file.len().map_err(ExportError::Read)?;
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= EXPORT_BYTES_MAX);
        let length = length.ok_or(ExportError::TooLarge { bytes })?;
        let mut all = vec![0; length];
        read_exact_at(&*file, &mut all, 0).map_err(ExportError::Read)?;
        Ok(Self::decode(all.into())?)
    }

    /// Decodes an export; the payload's own digest is checked when it is opened.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes.clone(), WHAT);
        if reader.array()? != MAGIC {
            return Err(reader.invalid("it does not begin with the magic bytes of an export"));
        }
        let version = reader.version_from(VERSION_WITHOUT_AMENDMENTS, VERSION)?;
        let place = bytes.len().checked_sub(DIGEST_BYTES);
        let place = place.ok_or(DecodeError::Short { what: WHAT })?;
        if blake3::hash(&bytes[..place]).as_bytes()[..] != bytes[place..] {
            return Err(reader.invalid("it is cut or changed: its digest is wrong"));
        }
        let group = reader.string(limits::GROUP_NAME_BYTES_MAX)?;
        let (replica, commit) = (ReplicaId(reader.u64()?), reader.u64()?);
        let begins = reader.u8()?;
        let count = reader.count(LISTED_MAX)?;
        let listed: Vec<SnapshotDesc> =
            (0..count).map(|_| SnapshotDesc::decode(&mut reader)).collect::<Result<_, _>>()?;
        let amendments = match version {
            VERSION_WITHOUT_AMENDMENTS => Amendments::default(),
            _newer => Amendments::decode(&mut reader)?,
        };
        let snapshots = match begins {
            0 => Vec::new(),
            1 => listed.last().cloned().into_iter().collect(),
            other => return Err(reader.unknown(u64::from(other))),
        };
        if snapshots.len() != usize::from(begins) {
            return Err(reader.invalid("it names no snapshot, and begins with one"));
        }
        let payload = match snapshots.first() {
            Some(desc) => {
                let length = usize::try_from(desc.length).unwrap_or(usize::MAX);
                Some(reader.take(length)?)
            }
            None => None,
        };
        let (first_index, entries) = decode_entries(&mut reader)?;
        let begin = snapshots.first().map_or(Some(1), |desc| desc.index.checked_add(1));
        if begin != Some(first_index) {
            return Err(reader.invalid("its entries do not follow on its beginning"));
        }
        let digest: [u8; DIGEST_BYTES] = reader.array()?;
        debug_assert_eq!(digest[..], bytes[place..], "it was compared above");
        reader.finish()?;
        let last_index = first_index - 1 + entries.len() as u64;
        let facts = Facts {
            group,
            replica,
            commit,
            first_index,
            last_index,
            snapshots,
            listed,
            amendments,
        };
        Ok(Self { facts, payload, entries })
    }
}

/// The index of the first entry, and the entries.
fn decode_entries(reader: &mut Reader) -> Result<(u64, Vec<Entry>), DecodeError> {
    let (first, count) = (reader.u64()?, reader.u64()?);
    let end = first.checked_add(count).filter(|end| *end < u64::MAX && first > 0);
    let end = end.ok_or_else(|| reader.invalid(format!("{count} entries from {first} on")))?;
    // Not reserved in advance: the count is not to be believed.
    let mut entries = Vec::new();
    for index in first..end {
        let kind = match reader.u8()? {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            other => return Err(reader.unknown(u64::from(other))),
        };
        let term = reader.u64()?;
        let data = reader.bytes(limits::LOG_BATCH_BYTES_MAX)?;
        let mut entry = Entry { index, term, data, ..Entry::default() };
        entry.set_entry_type(kind);
        entries.push(entry);
    }
    Ok((first, entries))
}

impl Past for Export {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn entries(&self, from: u64, to_exclusive: u64) -> Result<Vec<Entry>, String> {
        let place = |index: u64| {
            let place = index.checked_sub(self.facts.first_index)?;
            usize::try_from(place).ok().filter(|place| *place <= self.entries.len())
        };
        let (Some(from), Some(to)) = (place(from), place(to_exclusive)) else {
            let (first, last) = (self.facts.first_index, self.facts.last_index);
            return Err(format!("the export has the entries {first} to {last}"));
        };
        let found = self.entries.get(from..to).unwrap_or_default();
        Ok(found[..found.len().min(ENTRIES_AT_ONCE)].to_vec())
    }

    fn verify(&self, snapshot: &SnapshotDesc) -> Result<(), String> {
        let digest = blake3::hash(self.payload_of(snapshot)?);
        if Digest(*digest.as_bytes()) != snapshot.digest {
            return Err("its payload does not match its digest".to_owned());
        }
        Ok(())
    }

    fn open(&self, snapshot: &SnapshotDesc) -> Result<Box<dyn io::Read + '_>, String> {
        Ok(Box::new(self.payload_of(snapshot)?))
    }
}

impl Export {
    fn payload_of(&self, snapshot: &SnapshotDesc) -> Result<&[u8], String> {
        let ours = self.facts.snapshots.first() == Some(snapshot);
        let payload = self.payload.as_deref().filter(|_| ours);
        payload.ok_or_else(|| "its bytes are not in the export".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::amendment::{Amendment, Change};
    use lockstep_core::ids::{ModuleId, hex};

    use super::*;

    /// An export with everything in it.
    fn whole() -> Export {
        let payload = Bytes::from_static(b"state");
        let desc = SnapshotDesc {
            term: 2,
            index: 7,
            length: payload.len() as u64,
            digest: Digest(*blake3::hash(&payload).as_bytes()),
            module: ModuleId([4; 32]),
            format: 1,
            configuration: Default::default(),
        };
        let later = SnapshotDesc { index: 9, digest: Digest([8; 32]), ..desc.clone() };
        let entry = |index, kind| {
            let mut entry = Entry { index, term: 2, data: "ab".into(), ..Entry::default() };
            entry.set_entry_type(kind);
            entry
        };
        let facts = Facts {
            group: "kv".into(),
            replica: ReplicaId(5),
            commit: 9,
            first_index: 8,
            last_index: 9,
            snapshots: vec![desc.clone()],
            listed: vec![later, desc],
            amendments: Amendments::default(),
        };
        let entries =
            vec![entry(8, EntryType::EntryNormal), entry(9, EntryType::EntryConfChangeV2)];
        Export { facts, payload: Some(payload), entries }
    }

    fn bytes_of(export: &Export) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written = write(export, &Plan::default(), &mut bytes).expect("a vector takes it");
        assert_eq!(written.bytes, bytes.len() as u64);
        assert_eq!((written.snapshot, written.first, written.last), (Some(7), 8, 9));
        bytes
    }

    #[test]
    fn the_bytes_of_an_export_are_golden() {
        let bytes = bytes_of(&whole());
        let desc = |index: &str, digest: &str| {
            let module = "04".repeat(32);
            let nobody = "00".repeat(17);
            format!("010200000000000000{index}0500000000000000{digest}{module}01000000{nobody}")
        };
        let digest = hex(blake3::hash(b"state").as_bytes());
        let later = desc("0900000000000000", &"08".repeat(32));
        let begin = desc("0700000000000000", &digest);
        let expect = format!(
            "4c5354504558504f\
             01\
             020000006b76\
             0500000000000000\
             0900000000000000\
             01\
             02000000{later}{begin}\
             7374617465\
             0800000000000000\
             0200000000000000\
             000200000000000000020000006162\
             020200000000000000020000006162"
        );
        assert_eq!(hex(&bytes[..bytes.len() - DIGEST_BYTES]), expect);
        let digest = blake3::hash(&bytes[..bytes.len() - DIGEST_BYTES]);
        assert_eq!(bytes[bytes.len() - DIGEST_BYTES..], digest.as_bytes()[..]);
    }

    #[test]
    fn an_export_with_amendments_is_of_version_2() {
        let mut amended = whole();
        amended.facts.amendments.add(Amendment { at: 9, change: Change::Skip { index: 8 } });
        let (plain, bytes) = (hex(&bytes_of(&whole())), hex(&bytes_of(&amended)));
        assert_eq!((&plain[16..18], &bytes[16..18]), ("01", "02"));
        let amendments = "01000000090000000000000000\
                          0800000000000000";
        let payload = hex(b"state");
        let expect = plain.replacen(&payload, &format!("{amendments}{payload}"), 1);
        let end = bytes.len() - 2 * DIGEST_BYTES;
        assert_eq!(bytes[18..end], expect[18..expect.len() - 2 * DIGEST_BYTES]);
    }

    #[test]
    fn an_export_reads_back_and_a_changed_one_is_refused() {
        let mut amended = whole();
        amended.facts.amendments.add(Amendment { at: 9, change: Change::Skip { index: 8 } });
        reads_back(&whole());
        reads_back(&amended);
    }

    fn reads_back(whole: &Export) {
        let bytes = bytes_of(whole);
        let again = Export::decode(bytes.clone().into()).expect("it was just written");
        let Export { facts, payload, entries } = &again;
        assert_eq!((facts, payload, entries), (&whole.facts, &whole.payload, &whole.entries));
        assert_eq!(bytes_of(&again), bytes);
        for cut in 0..bytes.len() {
            assert!(Export::decode(Bytes::copy_from_slice(&bytes[..cut])).is_err(), "{cut}");
        }
        for place in 0..bytes.len() {
            let mut other = bytes.clone();
            other[place] ^= 1;
            assert!(Export::decode(other.into()).is_err(), "{place}");
        }
        let mut newer = bytes;
        newer[8] = VERSION + 1;
        let why = Export::decode(newer.into()).expect_err("it is newer").to_string();
        assert!(why.contains("newer than this program"), "{why}");
    }
}
