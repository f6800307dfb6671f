//! JSON documents in collections, changed by JSON Patch and asked with jq filters.
//!
//! Two engines do the work: `json-patch` changes documents (RFC 6902 and RFC 7396), and `jaq`,
//! which is jq in pure Rust, answers queries. Commands never run a filter: a filter may run for
//! ever, which costs a query an error, but would stop every replica at the same command.
//!
//! Names of collections and documents have 1 to [`NAME_BYTES_MAX`] bytes of UTF-8, none of them a
//! space or a control character. Words are separated by exactly one space; JSON and FILTER are the
//! rest of the text.
//!
//! Commands and their answers, where REV is how often the document was written since it was made:
//!
//! * `put COLLECTION ID JSON`: ok, REV;
//! * `insert COLLECTION ID JSON`: ok, `1`; rejected if there is such a document;
//! * `patch COLLECTION ID JSON`: ok, REV; JSON is a list of operations of RFC 6902, of which all
//!   are done or none. `test` among them makes a change conditional;
//! * `merge COLLECTION ID JSON`: ok, REV; JSON is a merge patch of RFC 7396;
//! * `delete COLLECTION ID`: ok, `deleted`; rejected if there is no such document.
//!
//! A command that is rejected has changed nothing.
//!
//! Queries:
//!
//! * `get COLLECTION ID`: the document; an error if there is none;
//! * `count COLLECTION`: how many documents it has;
//! * `collections`: a line `COLLECTION DOCUMENTS BYTES` for each, in order;
//! * `each COLLECTION FILTER`: what the filter gives for each document, in the order of the IDs, a
//!   line each. `$id` is the ID, `$rev` the REV;
//! * `all COLLECTION FILTER`: what it gives for the whole collection, an object of documents by ID;
//! * `whole FILTER`: what it gives for everything, an object of such objects by collection.
//!
//! In a filter `$now` is the time of the log, in seconds. `now`, `localtime`, `strflocaltime` and
//! `env` would differ between replicas, and `halt` and `debug` would leave the query: an error says
//! so.
//!
//! Events, with the topic `documents/COLLECTION/ID`: `put REV` and `delete`.
//!
//! The snapshot is canonical: collections and documents are in order, and so are the keys in
//! documents, which are kept as compact JSON.

mod command;
mod filter;
mod self_test;
mod snapshot;
mod store;

pub use command::{DEPTH_MAX, DOCUMENT_BYTES_MAX, NAME_BYTES_MAX, OPERATIONS_MAX};
pub use filter::{ANSWER_BYTES_MAX, FILTER_BYTES_MAX};
pub use store::{BYTES_MAX, DOCUMENTS_MAX, Documents};

lockstep_guest::export!(Documents: self_test);

#[cfg(test)]
mod tests;
