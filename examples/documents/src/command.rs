//! Reads commands, and decides what a document may be.
//!
//! * What is read keeps every bound: nothing that follows can need more memory, stack or fuel than
//!   a command has.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

/// The longest name of a collection or a document, in bytes: two of them fit into a topic.
pub const NAME_BYTES_MAX: usize = 100;

/// The longest document, in bytes of compact JSON. To read, change and write one of this length
/// takes about half of the fuel that an entry gets for each command, 50 million, whatever is in it.
pub const DOCUMENT_BYTES_MAX: usize = 32 << 10;

/// How deep lists and objects may be nested: reading and writing them calls itself that often.
pub const DEPTH_MAX: usize = 32;

/// The operations of one patch: each may touch all of the largest document.
pub const OPERATIONS_MAX: usize = 16;

/// A command.
pub(crate) struct Command<'a> {
    /// The collection.
    pub(crate) collection: &'a str,
    /// The document's ID in it.
    pub(crate) id: &'a str,
    /// What happens to the document.
    pub(crate) change: Change,
}

/// What happens to a document.
pub(crate) enum Change {
    /// It has this value, whether or not there was one.
    Put(Value),
    /// It has this value, and there was none.
    Insert(Value),
    /// These operations are done, or none of them.
    Patch(Patch),
    /// This is merged into it.
    Merge(Value),
    /// It is gone.
    Delete,
}

impl<'a> Command<'a> {
    /// Reads a command; the error is a sentence.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|why| format!("not UTF-8: {why}"))?;
        let (verb, rest) = word(text);
        let (collection, rest) = word(rest);
        let (id, json) = word(rest);
        let change = match verb {
            "put" => Change::Put(value(json)?),
            "insert" => Change::Insert(value(json)?),
            "merge" => Change::Merge(value(json)?),
            "patch" => Change::Patch(patch(json)?),
            "delete" if json.is_empty() => Change::Delete,
            "delete" => return Err("`delete COLLECTION ID` has nothing behind the ID".to_owned()),
            _ => {
                let known = "put, insert, patch, merge and delete";
                return Err(format!("no command {verb:?}; there are {known}"));
            }
        };
        Ok(Self { collection: name("collection", collection)?, id: name("ID", id)?, change })
    }
}

/// The first word, and what follows the space behind it.
pub(crate) fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// A name, if it may be one.
pub(crate) fn name<'a>(what: &str, name: &'a str) -> Result<&'a str, String> {
    if name.is_empty() {
        return Err(format!("the {what} is missing; words have exactly one space between them"));
    }
    if name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
        let rule = format!("at most {NAME_BYTES_MAX} bytes and no control character");
        return Err(format!("the {what} has to have {rule}"));
    }
    Ok(name)
}

fn value(json: &str) -> Result<Value, String> {
    serde_json::from_str(json).map_err(|why| format!("no JSON: {why}"))
}

fn patch(json: &str) -> Result<Patch, String> {
    let patch: Patch = serde_json::from_str(json).map_err(|why| format!("no JSON Patch: {why}"))?;
    if patch.0.len() > OPERATIONS_MAX {
        return Err(format!("{} operations; at most {OPERATIONS_MAX} are allowed", patch.0.len()));
    }
    let copies = patch.0.iter().filter(|operation| matches!(operation, PatchOperation::Copy(_)));
    match copies.count() {
        0 | 1 => Ok(patch),
        _ => Err("a patch may `copy` once, for each could double the document".to_owned()),
    }
}

/// The compact JSON of a document, if it is not too large and not too deep.
pub(crate) fn document(value: &Value) -> Result<Vec<u8>, String> {
    check_depth(value)?;
    let json = value.to_string().into_bytes();
    if json.len() > DOCUMENT_BYTES_MAX {
        let bytes = json.len();
        return Err(format!("the document would have {bytes} bytes; {DOCUMENT_BYTES_MAX} may be"));
    }
    Ok(json)
}

/// Refuses what is too deep: after each operation of a patch, for the next one could double it.
pub(crate) fn check_depth(value: &Value) -> Result<(), String> {
    if is_deeper(value, DEPTH_MAX) {
        return Err(format!("the document would be nested more than {DEPTH_MAX} deep"));
    }
    Ok(())
}

/// Whether lists and objects are nested more than `levels` deep. Calls itself `levels` times.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let inner = |value: &Value| is_deeper(value, levels.saturating_sub(1));
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(inner),
        Value::Object(fields) => levels == 0 || fields.values().any(inner),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
