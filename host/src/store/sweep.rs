//! Cleans up a group's snapshot directory when its store opens, and lists the objects on a disk.
//!
//! - `sweep` takes an intact `RecoveryState` of this replica: only that tells which files may be
//!   deleted.
//! - A file is left alone and reported if its name is not one that a store gives, or if its header
//!   names another cluster or group.
//! - Of the staging files of received objects, the one with the highest index is kept as suspended,
//!   so that its transfer can resume.
//! - [`list_objects`] only reads: it serves `lockstep snapshot list`, beside a running node or
//!   without one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use lockstep_core::ids::{Digest, ModuleId};
use lockstep_core::mutant::planted;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::{Configuration, SnapshotDesc};

use super::layout::{self, Identity, ObjectName};
use super::reader::{self, SnapshotReader};
use crate::fs::{Fs, is_short, make_durable};

/// What the sweep of a snapshot directory removed, kept and found missing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Files that were removed: unlisted objects and staging files.
    pub removed: Vec<String>,
    /// Files that do not belong to this group; they were left alone.
    pub foreign: Vec<String>,
    /// Snapshots that the log lists, but whose objects are missing.
    pub missing: Vec<SnapshotDesc>,
    /// The staging file that is kept, since its transfer may resume.
    pub suspended: Option<String>,
    /// Failures to read or remove a file or to sync a directory; the sweep went on after each.
    pub errors: Vec<String>,
}

/// What one object's file says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectFile {
    /// The group's directory name.
    pub group: String,
    pub dir: PathBuf,
    pub file: String,
    pub bytes: u64,
    /// Header and trailer, or what is wrong with them. The payload is not read.
    pub content: Result<ObjectContent, String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectContent {
    pub identity: Identity,
    pub term: u64,
    pub index: u64,
    pub module: ModuleId,
    pub format: u32,
    pub length: u64,
    pub digest: Digest,
}

/// Lists every object under `groups/*/snap/` of a data directory, sorted by group and name. Only
/// reads.
pub fn list_objects(fs: &dyn Fs, data: &Path) -> io::Result<Vec<ObjectFile>> {
    fs.list(data)?;
    let groups = layout::groups_dir(data);
    let mut found = Vec::new();
    for group in names(fs, &groups)? {
        let dir = layout::snapshot_dir_of(&groups.join(&group));
        found.extend(list_directory(fs, &group, &dir)?);
    }
    Ok(found)
}

/// Every object in the snapshot directory of `group`; none if the directory does not exist.
pub fn list_directory(fs: &dyn Fs, group: &str, dir: &Path) -> io::Result<Vec<ObjectFile>> {
    let mut found = Vec::new();
    for file in names(fs, dir)? {
        if ObjectName::parse(&file).is_some() {
            let (bytes, content) = read_object(fs, dir, &file);
            let (group, dir) = (group.to_owned(), dir.to_owned());
            found.push(ObjectFile { group, dir, file, bytes, content });
        }
    }
    Ok(found)
}

/// Reads the whole object, calling `progress` after each block; the error says what is wrong.
pub fn verify_object(
    fs: &dyn Fs,
    object: &ObjectFile,
    progress: &mut dyn FnMut(),
) -> Result<(), String> {
    let content = object.content.as_ref().map_err(Clone::clone)?;
    let desc = SnapshotDesc {
        term: content.term,
        index: content.index,
        length: content.length,
        digest: content.digest,
        module: content.module,
        format: content.format,
        configuration: Configuration::default(),
    };
    let file = fs.open(&object.dir.join(&object.file), false).map_err(|e| e.to_string())?;
    let reader = SnapshotReader::open(file, content.identity, &desc, None);
    reader.and_then(|reader| reader.verify(progress)).map_err(|e| e.to_string())
}

/// The sizes of the files that a sweep left in place, except the suspended staging file.
#[derive(Default)]
pub(crate) struct Stays {
    /// Listed objects, and unlisted ones that could not be removed.
    pub objects: BTreeMap<ObjectName, u64>,
    /// Unneeded staging files that could not be removed.
    pub parts: BTreeMap<String, u64>,
}

/// Removes the objects that `state` does not list, and all staging files except the suspended one.
pub(crate) fn sweep(
    fs: &dyn Fs,
    dir: &Path,
    identity: Identity,
    state: &RecoveryState,
) -> io::Result<(Stays, Swept)> {
    let mut swept = Swept::default();
    let mut stays = Stays::default();
    let listed: Vec<_> = state.snapshots.iter().map(ObjectName::of).collect();
    let newest = state.newest().map_or(u64::MAX, |desc| desc.index);
    for file in names(fs, dir)? {
        match ObjectName::parse(&file) {
            Some(name) if planted("sweep_below_newest") && name.index > newest => {}
            Some(_) if planted("sweep_if_listed") && listed.is_empty() => {}
            Some(name) if listed.contains(&name) => {
                let measured = fs.open(&dir.join(&file), false).and_then(|open| open.len());
                // A listed object that cannot be opened is charged with the size that it should
                // have; a later reader finds out what is wrong with it.
                let length = measured.unwrap_or_else(|error| {
                    swept.errors.push(format!("{file}: {error}"));
                    let of = state.snapshots.iter().find(|desc| ObjectName::of(desc) == name);
                    of.and_then(|desc| layout::object_bytes(desc.length)).unwrap_or(0)
                });
                stays.objects.insert(name, length);
            }
            Some(_) if is_foreign(fs, &dir.join(&file), identity) => swept.foreign.push(file),
            Some(name) => {
                let left = remove(fs, dir, file, &mut swept);
                stays.objects.extend(left.map(|bytes| (name, bytes)));
            }
            None if layout::is_part_dir(&file) => {}
            None => swept.foreign.push(file),
        }
    }
    let part = layout::part_dir(dir);
    let parts = names(fs, &part)?;
    swept.suspended = furthest(fs, &part, &parts, identity, &stays.objects);
    for file in parts {
        if !layout::is_part_name(&file) {
            swept.foreign.push(file);
        } else if swept.suspended.as_ref() != Some(&file) {
            let left = remove(fs, &part, file.clone(), &mut swept);
            stays.parts.extend(left.map(|bytes| (file, bytes)));
        }
    }
    if !swept.removed.is_empty() {
        for dir in [dir, &part] {
            if let Err(error) = make_durable(fs, &dir.join("*")) {
                swept.errors.push(format!("{}: {error}", dir.display()));
            }
        }
    }
    let has = |desc: &SnapshotDesc| stays.objects.contains_key(&ObjectName::of(desc));
    swept.missing = state.snapshots.iter().filter(|desc| !has(desc)).cloned().collect();
    Ok((stays, swept))
}

/// Whether an object belongs to another cluster or group. An object that cannot be read for lack of
/// descriptors or memory might, so it is left alone until the next start.
fn is_foreign(fs: &dyn Fs, path: &Path, identity: Identity) -> bool {
    match fs.open(path, false).and_then(|file| reader::read_header(&*file)) {
        Ok(header) => header.identity != identity,
        Err(error) => is_short(&error) && !planted("short_is_corrupt"),
    }
}

/// Of the received staging files whose transfers can resume, the one with the highest index. A file
/// whose object is sealed already is not needed.
fn furthest(
    fs: &dyn Fs,
    dir: &Path,
    parts: &[String],
    identity: Identity,
    kept: &BTreeMap<ObjectName, u64>,
) -> Option<String> {
    let usable = |name: &&String| {
        let (object, length) = layout::parse_part_in(name)?;
        if kept.contains_key(&object) {
            return None;
        }
        let file = match fs.open(&dir.join(name), false) {
            // A file that cannot be opened for lack of descriptors or memory is checked when its
            // transfer resumes.
            Err(error) if is_short(&error) => return Some((object.index, object.term)),
            opened => opened.ok()?,
        };
        let header = reader::read_header(&*file).ok()?;
        let fits = (header.identity, header.term, header.index)
            == (identity, object.term, object.index)
            && Some(file.len().ok()?) == layout::object_bytes(length);
        fits.then_some((object.index, object.term))
    };
    parts.iter().filter(|name| usable(name).is_some()).max_by_key(usable).cloned()
}

/// Removes a file; returns its size if it could not be removed.
fn remove(fs: &dyn Fs, dir: &Path, file: String, swept: &mut Swept) -> Option<u64> {
    let path = dir.join(&file);
    match fs.remove(&path) {
        Ok(()) => {
            swept.removed.push(file);
            None
        }
        Err(error) => {
            swept.errors.push(format!("{file}: {error}"));
            Some(fs.open(&path, false).and_then(|file| file.len()).unwrap_or(0))
        }
    }
}

/// Names in a directory; none if it does not exist.
fn names(fs: &dyn Fs, dir: &Path) -> io::Result<Vec<String>> {
    match fs.list(dir) {
        Err(error) if is_no_dir(&error) => Ok(Vec::new()),
        other => other,
    }
}

fn is_no_dir(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read_object(fs: &dyn Fs, dir: &Path, file: &str) -> (u64, Result<ObjectContent, String>) {
    let open = || {
        let open = fs.open(&dir.join(file), false)?;
        Ok::<_, io::Error>((open.len()?, open))
    };
    let (bytes, open) = match open() {
        Ok(found) => found,
        Err(error) => return (0, Err(error.to_string())),
    };
    let content = reader::read_frame(&*open).map_err(|e| e.to_string()).and_then(|frame| {
        let (header, trailer) = (frame.header, frame.trailer);
        let name = ObjectName::new(header.term, header.index, trailer.digest);
        if name.file() != file {
            return Err(format!("its name is {file}, but its content is that of {}", name.file()));
        }
        Ok(ObjectContent {
            identity: header.identity,
            term: header.term,
            index: header.index,
            module: header.module,
            format: header.format,
            length: trailer.length,
            digest: trailer.digest,
        })
    });
    (bytes, content)
}
