//! Opens a log: looks at everything, and changes something only if all of it is well.
//!
//! Before it is read, the last segment is synced, and pages are dropped from the system's memory:
//! what is read is what the disk has, and not what a failed sync of an earlier process left
//! visible.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::codec::DecodeError;
use lockstep_core::ids::GroupId;
use lockstep_core::wal::record::{
    self, BATCH_ALIGN, BATCH_HEADER_BYTES, BatchHeader, HeaderError, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use lockstep_core::wal::replay::{GroupLog, Replay};

use super::segment::{self, RESERVE_NAME, Reserve, Segment};
use super::shared::Shared;
use super::window::Window;
use super::{Counters, Started, Wal, WalError, WalOptions};
use crate::fs::{Fs, make_durable};

/// How the whole log was found.
struct Found {
    segments: Vec<Arc<Segment>>,
    groups: BTreeMap<GroupId, GroupLog>,
    end: End,
}

/// How a segment ends.
struct End {
    /// Behind the last whole batch.
    offset: u64,
    next_batch: u64,
    /// Whether something that is not a batch stands there.
    torn: bool,
    /// Whether the last batch is empty, or the segment's head.
    sealed: bool,
}

/// One look at where a batch should be.
enum Look {
    Whole { header: BatchHeader, body: Bytes },
    Bad,
}

pub(super) fn open(fs: Arc<dyn Fs>, dir: &Path, options: WalOptions) -> Result<Wal, WalError> {
    fs.create_dir_all(dir).map_err(WalError::io("create directory", dir))?;
    make_durable(&*fs, dir).map_err(WalError::io("sync the parent of", dir))?;
    let names = fs.list(dir).map_err(WalError::io("list", dir))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    if numbers.is_empty() {
        let reserve = take_up_reserve(&*fs, dir, &names, options.segment_bytes)?;
        return begin_log(fs, dir, options, reserve);
    }
    let segments = open_segments(&*fs, dir, &numbers, &options, true)?;
    let last = segments.last().expect("there is a segment");
    last.sync()?;
    make_durable(&*fs, &last.path).map_err(WalError::io("sync the directory of", &last.path))?;
    let found = read_segments(segments)?;
    // From here on the log is well, and the directory may be changed.
    let reserve = take_up_reserve(&*fs, dir, &names, options.segment_bytes)?;
    let ballast = segment::has_ballast(&*fs, dir, &names, options.ballast_bytes)?;
    let last = Arc::clone(found.segments.last().expect("there is a segment"));
    let segments = found.segments.into_iter().map(|segment| (segment.number(), segment)).collect();
    let mut wal = Wal {
        fs,
        dir: dir.to_owned(),
        options,
        shared: Arc::new(Shared::new(found.groups, segments)),
        active: last,
        end: found.end.offset,
        next_batch: found.end.next_batch,
        sealed: found.end.sealed,
        reserve,
        ballast,
        pending: VecDeque::new(),
        poisoned: None,
        untidy: true,
        buffer: Vec::new(),
        counters: Counters::default(),
    };
    if found.end.torn {
        let segment = wal.active.number();
        tracing::warn!(segment, offset = wal.end, "the log has a torn tail and goes on behind it");
        wal.roll(0)?;
    }
    wal.tidy()?;
    Ok(wal)
}

/// Reads a log without touching it: whose it is, and what it holds of each group. For tools.
pub fn inspect(
    fs: &dyn Fs,
    dir: &Path,
) -> Result<(WalOptions, BTreeMap<GroupId, GroupLog>), WalError> {
    let names = fs.list(dir).map_err(WalError::io("list", dir))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    let Some(first) = numbers.first() else {
        return Err(WalError::corrupt(dir, 0, "there is no log segment"));
    };
    let path = dir.join(segment::file_name(*first));
    let mut head = [0; SEGMENT_HEADER_BYTES];
    let file = fs.open(&path, false).map_err(WalError::io("open", &path))?;
    crate::fs::read_exact_at(&*file, &mut head, 0).map_err(WalError::io("read", &path))?;
    let header = SegmentHeader::decode(&head).map_err(|error| match error {
        HeaderError::Newer { found } => WalError::Newer { path: path.clone(), found },
        HeaderError::Damaged(reason) => WalError::corrupt(&path, 0, reason),
    })?;
    let options = WalOptions {
        cluster: header.cluster,
        node: header.node,
        segment_bytes: header.file_length,
        ballast_bytes: 0,
    };
    let segments = open_segments(fs, dir, &numbers, &options, false)?;
    Ok((options, read_segments(segments)?.groups))
}

/// The first segment of a new log.
fn begin_log(
    fs: Arc<dyn Fs>,
    dir: &Path,
    options: WalOptions,
    reserve: Option<Reserve>,
) -> Result<Wal, WalError> {
    let reserve = match reserve {
        Some(reserve) => reserve,
        None => segment::create_reserve(&*fs, dir, options.segment_bytes)?,
    };
    let started = Started::first(&options, reserve.length);
    let named = segment::name(&*fs, dir, reserve, started.header, &started.bytes)?;
    let active = Arc::new(named);
    let segments = BTreeMap::from([(active.number(), Arc::clone(&active))]);
    let written_bytes = started.bytes.len() as u64;
    let mut wal = Wal {
        fs,
        dir: dir.to_owned(),
        options,
        shared: Arc::new(Shared::new(BTreeMap::new(), segments)),
        active,
        end: written_bytes,
        next_batch: started.header.first_batch + 1,
        sealed: true,
        reserve: None,
        ballast: false,
        pending: VecDeque::new(),
        poisoned: None,
        untidy: false,
        buffer: Vec::new(),
        counters: Counters { fsyncs: 2, batches: 1, written_bytes },
    };
    wal.ensure_reserve()?;
    Ok(wal)
}

/// Takes an earlier process's reserve if it is as good as a new one, or removes it.
fn take_up_reserve(
    fs: &dyn Fs,
    dir: &Path,
    names: &[String],
    bytes: u64,
) -> Result<Option<Reserve>, WalError> {
    if !names.iter().any(|name| name == RESERVE_NAME) {
        return Ok(None);
    }
    // It may have been on its way to becoming a segment. Zeros behind the last batch are what
    // tells a clean end from a torn one, so a used reserve is not used again.
    let path = dir.join(RESERVE_NAME);
    fs.remove(&path).map_err(WalError::io("remove", &path))?;
    match segment::create_reserve(fs, dir, bytes) {
        Ok(reserve) => Ok(Some(reserve)),
        Err(WalError::Full { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_segments(
    fs: &dyn Fs,
    dir: &Path,
    numbers: &[u64],
    options: &WalOptions,
    write: bool,
) -> Result<Vec<Arc<Segment>>, WalError> {
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    for number in numbers {
        let path = dir.join(segment::file_name(*number));
        let file = fs.open(&path, write).map_err(WalError::io("open", &path))?;
        let length = file.len().map_err(WalError::io("measure", &path))?;
        let header = SegmentHeader { segment: *number, ..no_header(options) };
        let mut segment = Segment { header, path, file, length };
        segment.header = check_header(&segment, options)?;
        if let Some(before) = segments.last().filter(|s| s.number() + 1 != *number) {
            let missing = segment::file_name(before.number() + 1);
            let reason = format!("the segment before it, {missing}, is missing");
            return Err(WalError::corrupt(&segment.path, 0, reason));
        }
        segments.push(Arc::new(segment));
    }
    Ok(segments)
}

fn no_header(options: &WalOptions) -> SegmentHeader {
    let WalOptions { cluster, node, .. } = *options;
    SegmentHeader { cluster, node, segment: 0, first_batch: 0, file_length: 0 }
}

fn check_header(segment: &Segment, options: &WalOptions) -> Result<SegmentHeader, WalError> {
    let path = &segment.path;
    let mut window = Window::new(segment);
    let Some(bytes) = window.get(0, SEGMENT_HEADER_BYTES as u64)? else {
        return Err(WalError::corrupt(path, segment.length, "the file ends in its header"));
    };
    let bytes = bytes.try_into().expect("as many bytes were asked for");
    let header = match SegmentHeader::decode(bytes) {
        Ok(header) => header,
        Err(HeaderError::Newer { found }) => {
            return Err(WalError::Newer { path: path.clone(), found });
        }
        Err(HeaderError::Damaged(reason)) => return Err(WalError::corrupt(path, 0, reason)),
    };
    if (header.cluster, header.node) != (options.cluster, options.node) {
        return Err(WalError::Foreign {
            path: path.clone(),
            found_cluster: header.cluster,
            found_node: header.node,
            cluster: options.cluster,
            node: options.node,
        });
    }
    if header.segment != segment.number() {
        let reason = format!("it says it is {}", segment::file_name(header.segment));
        return Err(WalError::corrupt(path, 0, reason));
    }
    if segment.length < header.file_length {
        let reason = format!("the file was cut, it had {} bytes", header.file_length);
        return Err(WalError::corrupt(path, segment.length, reason));
    }
    Ok(header)
}

/// Reads every batch of every segment. The segments are in order and not empty.
fn read_segments(segments: Vec<Arc<Segment>>) -> Result<Found, WalError> {
    let mut replay = Replay::default();
    let mut end = End { offset: 0, next_batch: 0, torn: false, sealed: false };
    for (at, segment) in segments.iter().enumerate() {
        segment.file.drop_cache();
        end = read_segment(segment, &mut replay)?;
        match segments.get(at + 1).map(|next| next.header.first_batch) {
            Some(next) if next == end.next_batch => {}
            Some(next) => {
                let reason = format!(
                    "batch {} should begin here, up to {} were written",
                    end.next_batch,
                    next.saturating_sub(1)
                );
                return Err(WalError::corrupt(&segment.path, end.offset, reason));
            }
            None => end.torn = look_behind(segment, &end)?,
        }
    }
    let last = segments.last().expect("there is a segment");
    let groups = replay.finish();
    let groups = groups.map_err(|why| WalError::corrupt(&last.path, end.offset, why))?;
    Ok(Found { segments, groups, end })
}

/// Checks a segment that another one follows: header, every batch, and that none is missing.
pub(super) fn check_sealed(segment: &Segment, next: &Segment) -> Result<(), WalError> {
    segment.file.drop_cache();
    let mut head = [0; SEGMENT_HEADER_BYTES];
    crate::fs::read_exact_at(&*segment.file, &mut head, 0)
        .map_err(WalError::io("read", &segment.path))?;
    if SegmentHeader::decode(&head).ok() != Some(segment.header) {
        return Err(WalError::corrupt(&segment.path, 0, "its header is damaged"));
    }
    let first = segment.header.first_batch;
    let mut window = Window::new(segment);
    let (mut offset, mut batch) = (SEGMENT_HEADER_BYTES as u64, first);
    while let Look::Whole { header, .. } = look(segment, &mut window, offset)? {
        offset += header.size();
        batch += 1;
    }
    match batch == next.header.first_batch {
        true => Ok(()),
        false => Err(WalError::corrupt(&segment.path, offset, format!("batch {batch} is damaged"))),
    }
}

/// Reads the batches of one segment up to what is none, or not whole.
fn read_segment(segment: &Segment, replay: &mut Replay) -> Result<End, WalError> {
    let first = segment.header.first_batch;
    let begin = SEGMENT_HEADER_BYTES as u64;
    let mut end = End { offset: begin, next_batch: first, torn: false, sealed: true };
    let mut window = Window::new(segment);
    while let Look::Whole { header, body } = look(segment, &mut window, end.offset)? {
        let corrupt = |why: String| WalError::corrupt(&segment.path, end.offset, why);
        if header.number != end.next_batch {
            let (is, should) = (header.number, end.next_batch);
            return Err(corrupt(format!("batch {is} stands where {should} should")));
        }
        let records = record::decode_body(segment.salt(), &header, body);
        let records = records.map_err(|why| match why {
            DecodeError::Newer { what, version, known } => {
                let path = segment.path.clone();
                WalError::NewerRecord { path, what, found: version, known }
            }
            why => corrupt(why.to_string()),
        })?;
        end.sealed = header.number == first || records.is_empty();
        let body_at = end.offset + BATCH_HEADER_BYTES as u64;
        for record in records {
            replay.record(record, segment.number(), body_at).map_err(corrupt)?;
        }
        end.offset += header.size();
        end.next_batch += 1;
    }
    if end.next_batch == first {
        // It was durable before the segment got its name.
        return Err(WalError::corrupt(&segment.path, begin, "the segment's head is damaged"));
    }
    Ok(end)
}

fn look(segment: &Segment, window: &mut Window<'_>, offset: u64) -> Result<Look, WalError> {
    let Some(bytes) = window.get(offset, BATCH_HEADER_BYTES as u64)? else {
        return Ok(Look::Bad);
    };
    if !BatchHeader::looks_like_one(bytes) {
        return Ok(Look::Bad);
    }
    let bytes = bytes.try_into().expect("as many bytes were asked for");
    let Some(header) = BatchHeader::decode(segment.salt(), bytes) else {
        return Ok(Look::Bad);
    };
    let behind = BATCH_HEADER_BYTES as u64;
    let rest = window.get(offset + behind, header.size() - behind)?;
    match rest.and_then(|rest| header.body(segment.salt(), rest)) {
        Some(body) => Ok(Look::Whole { header, body: Bytes::copy_from_slice(body) }),
        None => Ok(Look::Bad),
    }
}

/// Whether the last segment has a torn tail. A whole batch behind the place where one is missing
/// was written after that one was durable: then it is corruption.
fn look_behind(segment: &Segment, end: &End) -> Result<bool, WalError> {
    let mut window = Window::new(segment);
    let mut offset = end.offset;
    let mut torn = false;
    while let Some(found) = window.first_non_zero(offset)? {
        torn = true;
        // Batches begin at multiples of `BATCH_ALIGN`, and none begins with a zero.
        offset = found.next_multiple_of(BATCH_ALIGN);
        if let Look::Whole { header, .. } = look(segment, &mut window, offset)?
            && header.number > end.next_batch
        {
            let reason = format!(
                "batch {} is damaged, but batch {} behind it, at offset {offset}, is whole",
                end.next_batch, header.number
            );
            return Err(WalError::corrupt(&segment.path, end.offset, reason));
        }
        if found == offset {
            offset += BATCH_ALIGN;
        }
    }
    Ok(torn)
}

impl Started {
    fn first(options: &WalOptions, file_length: u64) -> Self {
        let header =
            SegmentHeader { segment: 1, first_batch: 1, file_length, ..no_header(options) };
        let mut bytes = header.encode().to_vec();
        bytes.extend(record::BatchBuilder::new(header.salt(), header.first_batch).finish());
        Self { header, bytes }
    }
}
