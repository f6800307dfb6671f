//! Entry points of the fuzzers: one function for each decoder of untrusted bytes.
//!
//! - No function may panic, hang or take more memory than a small multiple of its input and the
//!   limits of [`lockstep_core::limits`]. A decoded value, encoded and decoded again, must be
//!   equal.
//! - Where a checksum guards a decoder, the input is wrapped in a correct one; otherwise hardly any
//!   input would reach the decoder.
//! - `tests/fuzz/` has the programs and a corpus; the tests here run the corpus.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::apply::Ledger;
use lockstep_core::entry::EntryBody;
use lockstep_core::ids::{Digest, GroupId, ModuleId, NodeId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::record::{BatchBuilder, BatchPlace, FileHeader};
use raft::eraftpb::Entry;

use crate::config::NodeConfig;
use crate::fs::Fs;
use crate::fs::mem::MemFs;
use crate::guest::native::NativeModule;
use crate::guest::{GuestLog, Module};
use crate::kit::export::{self, Export};
use crate::kit::replay::{Plan, Replay};
pub use crate::rpc::fuzz::{client, peer};
use crate::store::layout::{self, Header, Identity, ObjectName, Trailer};
use crate::store::{list_directory, verify_object};
use crate::wal::{Wal, WalOptions};

pub(crate) const CLUSTER: [u8; 16] = [3; 16];
const NODE: NodeId = NodeId(1);
/// As large as a file's header, so that no padding comes between it and the head.
const BLOCK: u32 = 64;

/// Decodes a log: the input is a file, or records that are put into valid batches.
pub fn log(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let _ = RecoveryState::decode(Bytes::copy_from_slice(rest));
    entry(rest);
    let _ = Ledger::decode_envelope(Bytes::copy_from_slice(rest), 7);
    let file = match mode % 2 {
        0 => rest.to_vec(),
        _ => segment(rest),
    };
    let fs = MemFs::with_dir(Path::new("/wal"));
    let name = crate::wal::first_file_name();
    let written = fs.create(&Path::new("/wal").join(name)).and_then(|open| {
        open.write_at(&file, 0)?;
        open.sync()
    });
    written.expect("a disk in memory takes it");
    let options = WalOptions { block_bytes: BLOCK, ..WalOptions::new(CLUSTER, NODE, 1 << 16, 1) };
    let doors: Arc<dyn Fs> = Arc::new(fs);
    let Ok((wal, groups)) = Wal::open(doors, Path::new("/wal"), options) else { return };
    let reader = wal.reader();
    for (group, recovered) in groups {
        let (first, last) = (recovered.state.first_index, recovered.last_index);
        if first <= last {
            let _ = reader.entries(group, first, last + 1, 1 << 20);
        }
    }
}

/// A segment of valid batches, with the records that the input describes: a byte for the kind, one
/// for the group, two for the length, and that much payload.
fn segment(mut input: &[u8]) -> Vec<u8> {
    let (cluster, node, block_bytes) = (CLUSTER, NODE, BLOCK);
    let mut header = FileHeader { cluster, node, block_bytes, file: 1, nonce: 1, length: 0 };
    let mut place = BatchPlace { number: 1, segment: 1, previous: 0, oldest: 1 };
    let mut batches = Vec::new();
    let mut batch = BatchBuilder::new(&header, place);
    while let Some((head, rest)) = input.split_at_checked(4) {
        let length = usize::from(u16::from_le_bytes([head[2], head[3]])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        input = rest;
        let group = GroupId(u64::from(head[1] % 4));
        match head[0] % 6 {
            kind @ (0 | 1) => drop(batch.state(group, payload, kind == 1)),
            kind @ (2 | 3) => {
                let entries = entries(payload);
                if !entries.is_empty() {
                    batch.entries(group, &entries, kind == 3);
                }
            }
            4 => batch.any(head[0] / 6, group, payload),
            _end => {
                place.number += 1;
                let next = BatchBuilder::new(&header, place);
                batches.extend(std::mem::replace(&mut batch, next).finish());
            }
        }
    }
    batches.extend(batch.finish());
    header.length = (BLOCK as usize + batches.len()) as u64;
    [&header.encode()[..], &batches[..]].concat()
}

/// Entries of consecutive indexes: a byte for the first index, one for the term, the rest as data.
fn entries(payload: &[u8]) -> Vec<Entry> {
    let Some((head, data)) = payload.split_at_checked(2) else { return Vec::new() };
    let entry = |(number, data): (usize, &[u8])| Entry {
        index: u64::from(head[0]) + number as u64,
        term: u64::from(head[1]),
        data: Bytes::copy_from_slice(data),
        ..Entry::default()
    };
    data.chunks(16).enumerate().map(entry).collect()
}

pub(crate) fn entry(bytes: &[u8]) {
    if let Ok(body) = EntryBody::decode(Bytes::copy_from_slice(bytes)) {
        let again = EntryBody::decode(body.encode().into()).expect("what was encoded decodes");
        assert_eq!(again, body);
    }
}

/// Decodes a snapshot object: the input is a file, or a payload that gets a valid header and
/// whatever trailer the input asks for.
pub fn object(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let identity = Identity { cluster: CLUSTER, group: GroupId(5) };
    let header = Header { identity, term: 2, index: 9, module: ModuleId([4; 32]), format: 1 };
    let (digest, file) = match mode % 2 {
        0 => (Digest([0; 32]), rest.to_vec()),
        _ => {
            let Some((tail, blocks)) = rest.split_at_checked(40) else { return };
            let length = u64::from_le_bytes(tail[..8].try_into().expect("eight bytes"));
            let digest = Digest(tail[8..].try_into().expect("thirty-two bytes"));
            let head = header.encode();
            let trailer = Trailer { length, digest }.encode(&head);
            (digest, [&head[..], blocks, &trailer[..]].concat())
        }
    };
    let dir = PathBuf::from("/snap");
    let fs = MemFs::with_dir(&dir);
    let name = ObjectName::new(header.term, header.index, digest).file();
    let open = fs.create(&dir.join(name)).expect("a disk in memory takes it");
    open.write_at(&file, 0).expect("a disk in memory takes it");
    for found in list_directory(&fs, "g", &dir).expect("the folder is there") {
        let _ = verify_object(&fs, &found, &mut || ());
        if let Ok(content) = &found.content {
            assert_eq!(layout::object_bytes(content.length), Some(found.bytes));
        }
    }
}

/// Decodes an export, and replays it: the input is a file, or one that lacks its digest.
pub fn export(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let file = match mode % 2 {
        0 => rest.to_vec(),
        _ => [rest, &blake3::hash(rest).as_bytes()[..]].concat(),
    };
    let Ok(export) = Export::decode(file.into()) else { return };
    let module: Module = Arc::new(NativeModule::register());
    let plan = Plan { uncommitted: true, ..Plan::default() };
    let log = GuestLog::of_no_group();
    if let Ok(replay) = Replay::begin(&export, &module, None, &plan, &log) {
        let _ = replay.run(&mut drop);
    }
    let mut again = Vec::new();
    if export::write(&export, &plan, &mut again).is_ok() {
        Export::decode(again.into()).expect("what was written decodes");
    }
}

/// Parses a node's configuration.
pub fn configuration(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = NodeConfig::parse(text, Path::new("/base"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs every file of a target's corpus; there must be some.
    fn corpus(target: &str, run: fn(&[u8])) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies in a checkout");
        let dir = root.join("tests/fuzz/corpus").join(target);
        let files: Vec<_> = std::fs::read_dir(&dir).expect("there is a corpus").collect();
        assert!(files.len() >= 3, "{} has {} files", dir.display(), files.len());
        for file in files {
            run(&std::fs::read(file.expect("it is listed").path()).expect("it is read"));
        }
    }

    #[test]
    fn the_corpus_of_logs_passes() {
        corpus("log", log);
    }

    #[test]
    fn the_corpus_of_objects_passes() {
        corpus("object", object);
    }

    #[test]
    fn the_corpus_of_exports_passes() {
        corpus("export", export);
    }

    #[test]
    fn the_corpus_of_peers_passes() {
        corpus("peer", peer);
    }

    #[test]
    fn the_corpus_of_clients_passes() {
        corpus("client", client);
    }

    #[test]
    fn the_corpus_of_configurations_passes() {
        corpus("configuration", configuration);
    }
}
