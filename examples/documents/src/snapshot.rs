//! The snapshot, format 1.
//!
//! ```text
//! u64 collections, then for each: block name, u64 documents, then for each:
//!     block ID, u64 REV, block JSON
//! ```
//!
//! Names ascend strictly, so that equal states are equal bytes. What is read is checked to be a
//! state that commands can lead to, but for the JSON: to read all of it would cost many times the
//! rest.

use lockstep_guest::{DetMap, Failure, SnapshotReader, SnapshotWriter};

use crate::store::Document;
use crate::{DOCUMENT_BYTES_MAX, Documents, NAME_BYTES_MAX, command};

pub(crate) fn write(documents: &Documents, out: &mut SnapshotWriter) -> Result<(), Failure> {
    out.write_u64(documents.collections.len() as u64)?;
    for (collection, ids) in &documents.collections {
        out.write_block(collection.as_bytes())?;
        out.write_u64(ids.len() as u64)?;
        for (id, document) in ids {
            out.write_block(id.as_bytes())?;
            out.write_u64(document.rev)?;
            out.write_block(&document.json)?;
        }
    }
    Ok(())
}

pub(crate) fn read(from: &mut SnapshotReader) -> Result<Documents, Failure> {
    let mut documents = Documents::default();
    for _ in 0..from.read_u64()? {
        let collection = name(from)?;
        check_order(documents.collections.last_key_value(), &collection)?;
        let mut ids = DetMap::new();
        for _ in 0..from.read_u64()? {
            let id = name(from)?;
            check_order(ids.last_key_value(), &id)?;
            let (rev, json) = (from.read_u64()?, from.read_block(DOCUMENT_BYTES_MAX)?);
            if rev == 0 || json.is_empty() {
                return Err(Failure::Corrupt(format!("{id} was never written")));
            }
            documents.documents += 1;
            documents.bytes += json.len() as u64;
            ids.insert(id, Document { rev, json });
        }
        if ids.is_empty() {
            return Err(Failure::Corrupt(format!("{collection} is empty")));
        }
        documents.collections.insert(collection, ids);
    }
    Ok(documents)
}

/// Names come after the last one; this also finds repeated ones.
fn check_order<T>(last: Option<(&String, &T)>, name: &str) -> Result<(), Failure> {
    match last {
        Some((last, _)) if last.as_str() >= name => {
            Err(Failure::Corrupt(format!("{name} is out of order")))
        }
        Some(_) | None => Ok(()),
    }
}

fn name(from: &mut SnapshotReader) -> Result<String, Failure> {
    let bytes = from.read_block(NAME_BYTES_MAX)?;
    let name = String::from_utf8(bytes).map_err(|why| Failure::Corrupt(why.to_string()))?;
    match command::name("name", &name) {
        Ok(_) if !name.contains(' ') => Ok(name),
        Ok(_) => Err(Failure::Corrupt(format!("{name:?} has a space"))),
        Err(why) => Err(Failure::Corrupt(why)),
    }
}
