//! The documents, and what commands do to them.
//!
//! * A command that is rejected has changed nothing: the new document is made and checked first.

use lockstep_guest::{
    Context, DetMap, Failure, Info, Outcome, SnapshotHeader, SnapshotReader, SnapshotWriter,
    StateMachine, TOPIC_BYTES_MAX, emit,
};
use serde_json::Value;

use crate::command::{self, Change, Command, NAME_BYTES_MAX};
use crate::{filter, snapshot};

/// All documents that there may be.
pub const DOCUMENTS_MAX: u64 = 100_000;

/// The bytes of all documents, as compact JSON: with what a map needs for each, half of the memory
/// that a group has by default.
pub const BYTES_MAX: u64 = 256 << 20;

// A topic names a collection and a document.
const _: () = assert!("documents//".len() + 2 * NAME_BYTES_MAX <= TOPIC_BYTES_MAX);

/// The state machine.
#[derive(Debug, Default)]
pub struct Documents {
    /// Documents by collection and ID. No collection is empty.
    pub(crate) collections: DetMap<String, DetMap<String, Document>>,
    /// How many documents there are.
    pub(crate) documents: u64,
    /// The bytes of all of them.
    pub(crate) bytes: u64,
}

/// A document.
#[derive(Debug)]
pub(crate) struct Document {
    /// How often it was written since it was made.
    pub(crate) rev: u64,
    /// Compact JSON, with sorted keys.
    pub(crate) json: Vec<u8>,
}

impl Documents {
    fn find(&self, collection: &str, id: &str) -> Option<&Document> {
        self.collections.get(collection)?.get(id)
    }

    pub(crate) fn known(&self, collection: &str, id: &str) -> Result<&Document, String> {
        let missing = || format!("there is no document {id} in {collection}");
        self.find(collection, id).ok_or_else(missing)
    }

    fn execute(&mut self, command: Command<'_>) -> Result<String, String> {
        let Command { collection, id, change } = command;
        let value = match change {
            Change::Put(value) => value,
            Change::Insert(_) if self.find(collection, id).is_some() => {
                return Err(format!("there is a document {id} in {collection} already"));
            }
            Change::Insert(value) => value,
            Change::Patch(patch) => {
                let mut value = parsed(self.known(collection, id)?)?;
                for (number, operation) in (1..).zip(&patch.0) {
                    json_patch::patch(&mut value, std::slice::from_ref(operation))
                        .map_err(|why| format!("operation {number}: {}", why.kind))?;
                    command::check_depth(&value)?;
                }
                value
            }
            Change::Merge(patch) => {
                let mut value = parsed(self.known(collection, id)?)?;
                json_patch::merge(&mut value, &patch);
                value
            }
            Change::Delete => {
                self.known(collection, id)?;
                self.remove(collection, id);
                emit(&topic(collection, id), b"delete");
                return Ok("deleted".to_owned());
            }
        };
        let json = command::document(&value)?;
        let rev = self.store(collection, id, json)?;
        emit(&topic(collection, id), format!("put {rev}").as_bytes());
        Ok(rev.to_string())
    }

    /// Keeps a document; returns how often it was written.
    fn store(&mut self, collection: &str, id: &str, json: Vec<u8>) -> Result<u64, String> {
        let before = self.find(collection, id);
        let rev = before.map_or(0, |document| document.rev) + 1;
        let replaced = before.map_or(0, |document| document.json.len() as u64);
        let documents = self.documents + u64::from(before.is_none());
        let bytes = self.bytes - replaced + json.len() as u64;
        if documents > DOCUMENTS_MAX {
            return Err(format!("there are {DOCUMENTS_MAX} documents; delete some first"));
        }
        if bytes > BYTES_MAX {
            return Err(format!("all documents may have {BYTES_MAX} bytes; delete some first"));
        }
        (self.documents, self.bytes) = (documents, bytes);
        let ids = self.collections.entry(collection.to_owned()).or_default();
        ids.insert(id.to_owned(), Document { rev, json });
        Ok(rev)
    }

    fn remove(&mut self, collection: &str, id: &str) {
        let Some(ids) = self.collections.get_mut(collection) else { return };
        if let Some(document) = ids.remove(id) {
            self.bytes -= document.json.len() as u64;
            self.documents -= 1;
        }
        if ids.is_empty() {
            self.collections.remove(collection);
        }
    }
}

fn parsed(document: &Document) -> Result<Value, String> {
    serde_json::from_slice(&document.json).map_err(|why| format!("the document is damaged: {why}"))
}

fn topic(collection: &str, id: &str) -> String {
    format!("documents/{collection}/{id}")
}

impl StateMachine for Documents {
    const INFO: Info = Info::new("documents", env!("CARGO_PKG_VERSION"));

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        if !config.is_empty() {
            let why = "documents has nothing to configure; leave it empty";
            return Err(Failure::InvalidConfig(why.to_owned()));
        }
        Ok(Self::default())
    }

    fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
        match Command::read(command).and_then(|command| self.execute(command)) {
            Ok(answer) => Outcome::ok(answer),
            Err(reason) => Outcome::rejected(reason),
        }
    }

    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        filter::query(self, ctx, request).map_err(String::into_bytes)
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        snapshot::write(self, out)
    }

    fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader) -> Result<Self, Failure> {
        snapshot::read(from)
    }
}
