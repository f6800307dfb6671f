//! The snapshot, format 1.
//!
//! ```text
//! u64 collections, then for each: block name, u64 documents, then for each:
//!     block ID, u64 REV, block JSON
//! ```
//!
//! Names ascend strictly, so that equal states are equal bytes; anything else is corrupt.

use lockstep_guest::{Failure, SnapshotReader, SnapshotWriter};

use crate::store::Document;
use crate::{DOCUMENT_BYTES_MAX, Documents, NAME_BYTES_MAX};

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
    let mut last = None;
    for _ in 0..from.read_u64()? {
        let collection = name(from)?;
        for _ in 0..from.read_u64()? {
            let key = (collection.clone(), name(from)?);
            if last.as_ref().is_some_and(|last| *last >= key) {
                return Err(Failure::Corrupt(format!("{} is out of order", key.1)));
            }
            let document =
                Document { rev: from.read_u64()?, json: from.read_block(DOCUMENT_BYTES_MAX)? };
            documents.insert(key.0.clone(), key.1.clone(), document);
            last = Some(key);
        }
    }
    Ok(documents)
}

fn name(from: &mut SnapshotReader) -> Result<String, Failure> {
    let bytes = from.read_block(NAME_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|why| Failure::Corrupt(why.to_string()))
}
