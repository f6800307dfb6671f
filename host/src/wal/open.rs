//! Opens a log: examines all of it, and changes something only if all of it is sound.
//!
//! Before the log is read, its newest segment is synced and its pages are dropped from the system's
//! cache. So what is read is what the disk has, not what a failed sync of an earlier process left
//! visible.
//!
//! - The file whose head names the highest segment is the active one. Each head names the previous
//!   segment; the chain ends at the oldest segment that counted when the last batch was written, or
//!   where no file has the previous one. The replay then finds out whether entries are missing.
//! - A segment ends before the batch whose number the next segment's head has. Anything that
//!   follows there is left of a write that found no space, and was never acknowledged.
//! - The last segment ends before the first batch that is not complete, and the log continues
//!   there. If the header of a later batch follows, complete or not, that is corruption: a batch is
//!   begun only when the one before it is durable.
//! - All other files are spares: they hold no segment, a deleted one, or one whose head was never
//!   completed. A file without a head, but with batches of a segment newer than the chain's, has
//!   lost its head: that is corruption.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::codec::DecodeError;
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::wal::record::{
    self, BATCH_HEADER_BYTES, BatchHeader, BatchPlace, FILE_HEADER_BYTES, FileHeader, HeaderError,
};
use lockstep_core::wal::replay::{GroupLog, Replay};

use super::files::Files;
use super::segment::{self, LogFile, Segment};
use super::shared::Shared;
use super::window::Window;
use super::{Counters, Wal, WalError, WalOptions, WalReader};
use crate::fs::{Fs, create_dirs};

/// The content of a log's files.
struct Found {
    /// The log's segments, oldest first; empty if none was ever begun.
    segments: Vec<Arc<Segment>>,
    groups: BTreeMap<GroupId, GroupLog>,
    end: End,
    spares: Vec<LogFile>,
    /// The number of the segment before the last one.
    previous: u64,
    /// Higher than the number of any segment that a head names.
    next_segment: u64,
}

/// How often a log that another process may be writing is read, at most, until it looks sound.
const INSPECTIONS_MAX: usize = 3;

/// Where a segment ends.
struct End {
    /// The end of the last complete batch.
    offset: u64,
    next_batch: u64,
    /// Whether the last batch is empty, or is the segment's head.
    sealed: bool,
}

/// What a file holds at an offset where a batch should be.
enum Look {
    Whole {
        header: BatchHeader,
        body: Bytes,
    },
    /// The header of a batch without the body that it describes.
    Torn {
        header: BatchHeader,
    },
    Nothing,
}

/// The files that hold segments, oldest segment first, and the other files.
struct Chain {
    files: Vec<(LogFile, BatchPlace)>,
    spares: Vec<LogFile>,
    next_segment: u64,
    /// Set if the chain ended too early: the number of the segment whose head is missing, and the
    /// file, if there is one, that has no head but holds batches of that segment.
    broken: Option<(u64, Option<std::path::PathBuf>)>,
}

pub(super) fn open(fs: Arc<dyn Fs>, dir: &Path, options: WalOptions) -> Result<Wal, WalError> {
    let numbers = if fs.exists(dir).map_err(WalError::io("look for", dir))? {
        file_numbers(&*fs, dir)?
    } else {
        Vec::new()
    };
    let files = open_files(&*fs, dir, &numbers, &options, true)?;
    settle(&files)?;
    let found = read_log(files, false)?;
    // From here on the log is known to be sound, and the directory may be changed.
    if found.segments.is_empty() {
        // An earlier process may have created the directory without making it durable.
        create_dirs(&*fs, dir).map_err(WalError::io("create directory", dir))?;
    }
    let next_file = numbers.last().map_or(1, |last| last + 1);
    let mut files = Files::open(fs, dir, options, next_file)?;
    let Found { segments, groups, mut end, mut spares, previous, next_segment } = found;
    let mut counters = Counters::default();
    let active = match segments.last() {
        Some(last) => Arc::clone(last),
        None => {
            let (first, offset) = begin_log(&mut files, &mut spares, next_segment)?;
            end = End { offset, next_batch: 2, sealed: true };
            counters = Counters { fsyncs: 1, batches: 1, written_bytes: offset, moved_bytes: 0 };
            Arc::new(first)
        }
    };
    let next_segment = next_segment.max(active.number() + 1);
    let mut all = BTreeMap::from([(active.number(), Arc::clone(&active))]);
    all.extend(segments.into_iter().map(|segment| (segment.number(), segment)));
    let mut wal = Wal {
        options,
        files,
        shared: Arc::new(Shared::new(groups, all)),
        active,
        end: end.offset,
        given_up: false,
        previous,
        next_segment,
        next_batch: end.next_batch,
        sealed: end.sealed,
        spares: Vec::new(),
        lacking: None,
        pending: VecDeque::new(),
        credit: 0,
        poisoned: None,
        untidy: true,
        buffer: Vec::new(),
        counters,
        syncs: crate::metrics::seconds_histogram(),
    };
    wal.take_over(spares)?;
    while wal.housekeep()? {}
    Ok(wal)
}

impl Wal {
    /// Keeps the spares of an earlier process that have the usual size, as many as are useful, and
    /// removes the others.
    fn take_over(&mut self, spares: Vec<LogFile>) -> Result<(), WalError> {
        for file in spares {
            if self.is_usual(&file) && self.spares.len() < self.spares_max() {
                self.spares.push(file);
            } else {
                self.files.remove(file.path)?;
            }
        }
        Ok(())
    }
}

/// Reads a log without changing it, for tools: its owner, and what it holds of each group. A node
/// may be writing the log meanwhile. Its changes may look like damage, so a read that fails is
/// repeated.
pub fn inspect(
    fs: &dyn Fs,
    dir: &Path,
) -> Result<(WalOptions, BTreeMap<GroupId, GroupLog>), WalError> {
    let again = (1..INSPECTIONS_MAX).find_map(|_| inspect_once(fs, dir).ok());
    again.map_or_else(|| inspect_once(fs, dir), Ok)
}

fn inspect_once(
    fs: &dyn Fs,
    dir: &Path,
) -> Result<(WalOptions, BTreeMap<GroupId, GroupLog>), WalError> {
    let (options, found) = find(fs, dir, true)?;
    Ok((options, found.groups))
}

/// Opens the log of a stopped node to read it, and changes nothing: its owner, and its entries. No
/// other process may write the log meanwhile.
pub fn open_to_read(fs: &dyn Fs, dir: &Path) -> Result<(WalOptions, WalReader), WalError> {
    let (options, Found { segments, groups, .. }) = find(fs, dir, false)?;
    let segments = segments.into_iter().map(|segment| (segment.number(), segment)).collect();
    Ok((options, WalReader::new(Arc::new(Shared::new(groups, segments)))))
}

/// Reads a log of any owner. `written` says that another process may be writing it meanwhile.
fn find(fs: &dyn Fs, dir: &Path, written: bool) -> Result<(WalOptions, Found), WalError> {
    let numbers = file_numbers(fs, dir)?;
    let Some(first) = numbers.first() else {
        return Err(WalError::corrupt(dir, 0, "there is no log file"));
    };
    let path = dir.join(segment::file_name(*first));
    let file = fs.open(&path, false).map_err(WalError::io("open", &path))?;
    let header = read_header(&*file, &path)?;
    let options = WalOptions::new(header.cluster, header.node, header.length, 0);
    let files = open_files(fs, dir, &numbers, &options, false)?;
    Ok((options, read_log(files, written)?))
}

/// Begins the first segment of a new log; returns it and where it ends.
fn begin_log(
    files: &mut Files,
    spares: &mut Vec<LogFile>,
    segment: u64,
) -> Result<(Segment, u64), WalError> {
    let length = files.options().segment_bytes;
    let file = match spares.pop() {
        Some(spare) => files.settle_names().map(|()| spare)?,
        None => files.make(length)?,
    };
    let place = BatchPlace { number: 1, segment, previous: 0, oldest: segment };
    let (head, at) = (file.head(place, &[]), file.header.head_offset());
    file.write(&head, at).map_err(WalError::io("write", &file.path))?;
    file.sync().map_err(WalError::io("sync", &file.path))?;
    Ok((Segment::new(file, place), at + head.len() as u64))
}

/// The numbers of all log files, ascending.
fn file_numbers(fs: &dyn Fs, dir: &Path) -> Result<Vec<u64>, WalError> {
    let names = fs.list(dir).map_err(WalError::io("list", dir))?;
    Ok(names.iter().filter_map(|name| segment::parse_name(name)).collect())
}

fn open_files(
    fs: &dyn Fs,
    dir: &Path,
    numbers: &[u64],
    options: &WalOptions,
    write: bool,
) -> Result<Vec<LogFile>, WalError> {
    let open = |number: &u64| {
        let path = dir.join(segment::file_name(*number));
        let file = fs.open(&path, write).map_err(WalError::io("open", &path))?;
        let length = file.len().map_err(WalError::io("measure", &path))?;
        file.drop_cache();
        let header = read_header(&*file, &path)?;
        check_header(&header, *number, length, &path, options)?;
        // How much of the file was ever written is unknown, so all of it counts as written.
        Ok(LogFile::new(header, path, file, length, length))
    };
    numbers.iter().map(open).collect()
}

fn read_header(file: &dyn crate::fs::File, path: &Path) -> Result<FileHeader, WalError> {
    let mut bytes = [0; FILE_HEADER_BYTES];
    match crate::fs::read_exact_at(file, &mut bytes, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(WalError::corrupt(path, 0, "the file ends within its header"));
        }
        read => read.map_err(WalError::io("read", path))?,
    }
    FileHeader::decode(&bytes).map_err(|error| match error {
        HeaderError::Newer { found } => WalError::Newer { path: path.to_owned(), found },
        HeaderError::Damaged(reason) => WalError::corrupt(path, 0, reason),
    })
}

fn check_header(
    header: &FileHeader,
    number: u64,
    length: u64,
    path: &Path,
    options: &WalOptions,
) -> Result<(), WalError> {
    if (header.cluster, header.node) != (options.cluster, options.node) {
        return Err(WalError::Foreign {
            path: path.to_owned(),
            found_cluster: header.cluster,
            found_node: header.node,
            cluster: options.cluster,
            node: options.node,
        });
    }
    if header.file != number {
        let reason = format!("its header is that of {}", segment::file_name(header.file));
        return Err(WalError::corrupt(path, 0, reason));
    }
    if length < header.length {
        let reason = format!("the file was truncated: it had {} bytes", header.length);
        return Err(WalError::corrupt(path, length, reason));
    }
    Ok(())
}

/// Syncs the newest segment and reads its head again, until the newest segment is one that was
/// synced here. The last writes of an earlier process may be in the system's cache only, and its
/// failed sync may have left bytes there that are not on the disk.
fn settle(files: &[LogFile]) -> Result<(), WalError> {
    let mut heads = files.iter().map(read_head).collect::<Result<Vec<_>, _>>()?;
    let mut settled = vec![false; files.len()];
    let newest = |heads: &[Option<BatchHeader>]| {
        let numbers = heads.iter().enumerate().filter_map(|(at, head)| Some((head.as_ref()?, at)));
        numbers.max_by_key(|(head, _)| head.place.segment).map(|(_, at)| at)
    };
    while let Some(at) = newest(&heads).filter(|at| !settled[*at]) {
        let file = &files[at];
        file.sync().map_err(WalError::io("sync", &file.path))?;
        file.file.drop_cache();
        heads[at] = read_head(file)?;
        settled[at] = true;
    }
    Ok(())
}

/// The header of the file's head, if the head is complete. Nothing after the head is read: in a
/// spare, unreadable bytes there do no harm.
fn read_head(file: &LogFile) -> Result<Option<BatchHeader>, WalError> {
    match look(file, &mut Window::exact(file), file.header.head_offset())? {
        Look::Whole { header, .. } => Ok(Some(header)),
        Look::Torn { .. } | Look::Nothing => Ok(None),
    }
}

/// Reads every batch of every segment of the log. `written` says that another process may be
/// writing the log meanwhile.
fn read_log(files: Vec<LogFile>, written: bool) -> Result<Found, WalError> {
    let Chain { files, spares, next_segment, broken } = chain(files)?;
    let segments: Vec<_> =
        files.into_iter().map(|(file, head)| (Arc::new(Segment::new(file, head)), head)).collect();
    let mut replay = Replay::default();
    let mut end = End { offset: 0, next_batch: 1, sealed: true };
    for (at, (segment, _)) in segments.iter().enumerate() {
        let next = segments.get(at + 1).map(|(next, _)| next.first_batch);
        end = read_segment(segment, next, &mut replay, written)?;
    }
    let groups = replay.finish().map_err(|why| missing(&segments, end.offset, broken, why))?;
    let previous = segments.last().map_or(0, |(_, head)| head.previous);
    let segments = segments.into_iter().map(|(segment, _)| segment).collect();
    Ok(Found { segments, groups, end, spares, previous, next_segment })
}

/// The error for missing entries: names the file that lost them, if there is one.
fn missing(
    segments: &[(Arc<Segment>, BatchPlace)],
    offset: u64,
    broken: Option<(u64, Option<std::path::PathBuf>)>,
    why: String,
) -> WalError {
    let newest = segments.last().map(|(segment, _)| segment.path());
    let last = newest.unwrap_or(Path::new("")).to_owned();
    match broken {
        None => WalError::corrupt(&last, offset, why),
        Some((segment, None)) => {
            let reason = format!("segment {segment} before this one is missing: {why}");
            let first = segments.first().map_or(&*last, |(first, _)| first.path());
            WalError::corrupt(first, 0, reason)
        }
        Some((segment, Some(path))) => {
            let reason = format!("the head of segment {segment} in this file is damaged: {why}");
            WalError::corrupt(&path, 0, reason)
        }
    }
}

/// Finds the segments that belong to the log, and the spares.
fn chain(files: Vec<LogFile>) -> Result<Chain, WalError> {
    let mut by_segment: BTreeMap<u64, (LogFile, BatchPlace)> = BTreeMap::new();
    let mut headless = Vec::new();
    for mut file in files {
        match read_head(&file)? {
            None => {
                file.take_for_new();
                headless.push(file);
            }
            Some(BatchHeader { place, .. }) => {
                if let Some((other, _)) = by_segment.get(&place.segment) {
                    let (segment, other) = (place.segment, other.path.display());
                    let reason = format!("segment {segment} is also in {other}");
                    return Err(file.corrupt(file.header.head_offset(), reason));
                }
                by_segment.insert(place.segment, (file, place));
            }
        }
    }
    let newest = by_segment.last_key_value().map_or(0, |(segment, _)| *segment);
    let mut files = Vec::new();
    let (mut next, mut oldest) = (newest, u64::MAX);
    if let Some((file, place)) = by_segment.get(&newest) {
        oldest = last_oldest(file, place)?;
    }
    while next >= oldest
        && let Some((file, place)) = by_segment.remove(&next)
    {
        next = place.previous;
        files.push((file, place));
    }
    let is_broken = !files.is_empty() && next >= oldest && next > 0;
    files.reverse();
    let mut lost = None;
    for file in &headless {
        for BatchPlace { segment, number, .. } in batches_behind(file, file.header.head_offset())? {
            if segment > newest {
                let reason = format!(
                    "the head of segment {segment} is damaged, but its batch {number} was begun"
                );
                return Err(file.corrupt(file.header.head_offset(), reason));
            }
            if segment == next {
                lost = Some(file.path.clone());
            }
        }
    }
    // The last spare is taken first. It should be a file that was written before, whose syncs are
    // faster.
    let ended = by_segment.into_values().map(|(file, _)| file);
    let spares = headless.into_iter().chain(ended).collect();
    let broken = is_broken.then_some((next, lost));
    Ok(Chain { files, spares, next_segment: newest + 1, broken })
}

/// The oldest segment that counted when the last batch in this file was begun.
fn last_oldest(file: &LogFile, head: &BatchPlace) -> Result<u64, WalError> {
    let mut window = Window::new(file);
    let (mut offset, mut expected, mut oldest) = (file.header.head_offset(), head.number, 0);
    while let Some(header) = look_at_header(file, &mut window, offset)?
        && (header.place.segment, header.place.number) == (head.segment, expected)
    {
        oldest = header.place.oldest;
        expected += 1;
        offset += header.size(file.header.block_bytes);
    }
    Ok(oldest)
}

/// The places of all batches, of any segment, whose headers lie after `offset`.
fn batches_behind(file: &LogFile, offset: u64) -> Result<Vec<BatchPlace>, WalError> {
    let mut window = Window::new(file);
    let block = u64::from(file.header.block_bytes);
    let mut found = Vec::new();
    let mut at = offset + block;
    while at < file.length {
        let header = look_at_header(file, &mut window, at)?;
        found.extend(header.map(|header| header.place));
        at += block;
    }
    Ok(found)
}

/// Checks a segment that is followed by another one: its header, every batch, and that none is
/// missing.
pub(super) fn check_sealed(segment: &Segment, next: &Segment) -> Result<(), WalError> {
    let file = &segment.file;
    file.file.drop_cache();
    if read_header(&*file.file, &file.path)? != file.header {
        return Err(file.corrupt(0, "its header is damaged"));
    }
    let mut window = Window::new(file);
    let (mut offset, mut batch) = (file.header.head_offset(), segment.first_batch);
    while batch < next.first_batch {
        match look(file, &mut window, offset)? {
            Look::Whole { header, .. }
                if (header.place.segment, header.place.number) == (segment.number, batch) =>
            {
                offset += header.size(file.header.block_bytes);
                batch += 1;
            }
            Look::Whole { .. } | Look::Torn { .. } | Look::Nothing => {
                return Err(file.corrupt(offset, format!("batch {batch} is damaged")));
            }
        }
    }
    Ok(())
}

/// Reads the batches of one segment: up to the one with which the next segment begins, or, in the
/// last segment, up to the first that is absent or incomplete.
fn read_segment(
    segment: &Segment,
    next: Option<u64>,
    replay: &mut Replay,
    written: bool,
) -> Result<End, WalError> {
    let (file, first) = (&segment.file, segment.first_batch);
    file.file.drop_cache();
    let mut end = End { offset: file.header.head_offset(), next_batch: first, sealed: true };
    let (mut window, mut renewed) = (Window::new(file), false);
    while next != Some(end.next_batch) {
        let (header, body) = match look(file, &mut window, end.offset)? {
            Look::Whole { header, body } if header.place.segment == segment.number => {
                (header, body)
            }
            _old if written && !std::mem::replace(&mut renewed, true) => {
                // The writer may have written this batch after the window was read.
                window = Window::new(file);
                continue;
            }
            found => {
                check_end(segment, &end, next, &found)?;
                break;
            }
        };
        let corrupt = |why: String| file.corrupt(end.offset, why);
        if header.place.number != end.next_batch {
            let (is, should) = (header.place.number, end.next_batch);
            return Err(corrupt(format!("batch {is} is where batch {should} should be")));
        }
        let records = record::decode_body(segment.salt(), &header, body);
        let records = records.map_err(|why| match why {
            DecodeError::Newer { what, version, known } => {
                let path = file.path.clone();
                WalError::NewerRecord { path, what, found: version, known }
            }
            why => corrupt(why.to_string()),
        })?;
        end.sealed = header.place.number == first || records.is_empty();
        let body_at = end.offset + BATCH_HEADER_BYTES as u64;
        for record in records {
            replay.record(record, segment.number, body_at).map_err(corrupt)?;
        }
        end.offset += header.size(file.header.block_bytes);
        end.next_batch += 1;
        renewed = false;
    }
    Ok(end)
}

/// Called if a segment has no complete batch at `end`. If the next segment's head or the header of
/// a later batch shows that this batch was durable, that is corruption; otherwise the log ends
/// here.
fn check_end(
    segment: &Segment,
    end: &End,
    next: Option<u64>,
    found: &Look,
) -> Result<(), WalError> {
    let (file, batch) = (&segment.file, end.next_batch);
    if let Some(next) = next {
        let reason =
            format!("batch {batch} is damaged, but batches up to {} were written", next - 1);
        return Err(file.corrupt(end.offset, reason));
    }
    for BatchPlace { segment: of, number, .. } in batches_behind(file, end.offset)? {
        if of == segment.number && number > batch && !planted("rot_is_a_tear") {
            let reason = format!(
                "batch {batch} is damaged, and not torn: batch {number} was begun after it"
            );
            return Err(file.corrupt(end.offset, reason));
        }
    }
    if let Look::Torn { header } = found
        && header.place.segment == segment.number
    {
        let (segment, offset) = (segment.number, end.offset);
        tracing::warn!(
            segment,
            offset,
            batch,
            "the log has a torn tail, which was never acknowledged: the next batch overwrites it"
        );
    }
    Ok(())
}

fn look_at_header(
    file: &LogFile,
    window: &mut Window<'_>,
    offset: u64,
) -> Result<Option<BatchHeader>, WalError> {
    let Some(bytes) = window.get(offset, BATCH_HEADER_BYTES as u64)? else { return Ok(None) };
    if !BatchHeader::looks_like_one(bytes) {
        return Ok(None);
    }
    let bytes = bytes.try_into().expect("as many bytes were asked for");
    Ok(BatchHeader::decode(&file.header, bytes))
}

fn look(file: &LogFile, window: &mut Window<'_>, offset: u64) -> Result<Look, WalError> {
    let Some(header) = look_at_header(file, window, offset)? else { return Ok(Look::Nothing) };
    let behind = BATCH_HEADER_BYTES as u64;
    let rest = window.get(offset + behind, header.size(file.header.block_bytes) - behind)?;
    Ok(match rest.and_then(|rest| header.body(&file.header, rest)) {
        Some(body) => Look::Whole { header, body: Bytes::copy_from_slice(body) },
        None => Look::Torn { header },
    })
}
