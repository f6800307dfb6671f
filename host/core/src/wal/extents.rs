//! Where a group's live entries stand, and how many bytes of which segment they take.
//!
//! - A record of entries takes 16 bytes of memory here; records that follow each other both in a
//!   segment and in the group's log share a [`Run`].
//! - Live bytes are counted by segment with every change, so that asking for them reads no record.
//! - A record that is partly live counts with that part of its bytes, rounded up: live entries
//!   never count as nothing.

use std::collections::BTreeMap;

use crate::wal::replay::Place;

/// The live part of one record of entries; functions return its first index beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The index after the last live entry.
    pub end: u64,
    pub place: Place,
}

/// The live parts of a group's records.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Extents {
    /// Runs by their first live index; they do not overlap.
    runs: BTreeMap<u64, Run>,
    /// Live bytes of each segment that has any.
    live: BTreeMap<u64, u64>,
    /// Live bytes of all segments.
    total: u64,
}

/// Records of one segment that hold consecutive entries.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    segment: u64,
    /// The first record's first index, live or not; records store their indexes relative to it.
    base: u64,
    /// The index after the last record's last entry, live or not.
    top: u64,
    /// The index after the last live entry.
    end: u64,
    /// Live bytes.
    bytes: u64,
    records: Vec<Record>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Record {
    offset: u64,
    /// The record's first index, relative to the run's base.
    first: u32,
    length: u32,
}

impl Extent {
    /// About how many bytes of the log the live part takes, if it begins at `from`.
    pub fn live_bytes(&self, from: u64) -> u64 {
        let Place { length, count, .. } = self.place;
        (u64::from(length) * (self.end - from)).div_ceil(u64::from(count))
    }
}

impl Extents {
    /// Adds entries from `first` on; all that stood at `first` and above are no longer live.
    pub fn append(&mut self, first: u64, place: Place) {
        self.cut_behind(first);
        self.add(first, place);
    }

    /// Adds entries from `first` on in place of those at the same indexes; those above stay live.
    pub fn replace(&mut self, first: u64, place: Place) {
        let end = first + u64::from(place.count);
        self.split(first);
        self.split(end);
        let gone: Vec<u64> = self.runs.range(first..end).map(|(from, _)| *from).collect();
        gone.into_iter().for_each(|from| drop(self.take(from)));
        self.add(first, place);
    }

    /// Entries below `first` are no longer live.
    pub fn cut_before(&mut self, first: u64) {
        self.split(first);
        while let Some((from, _)) = self.runs.first_key_value().filter(|(from, _)| **from < first) {
            let from = *from;
            self.take(from);
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The live parts of all records in order: first index and extent.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Extent)> + '_ {
        self.runs.iter().flat_map(|(from, run)| run.extents(*from))
    }

    /// The live parts that hold entries from `index` on; the first one is cut to begin there.
    pub fn from(&self, index: u64) -> impl Iterator<Item = (u64, Extent)> + '_ {
        let across = self.runs.range(..index).next_back().filter(|(_, run)| run.end > index);
        let before = across.map(|(_, run)| run.extents(index));
        let behind = self.runs.range(index..).flat_map(|(from, run)| run.extents(*from));
        before.into_iter().flatten().chain(behind)
    }

    /// The live parts in one segment.
    pub fn in_segment(&self, segment: u64) -> impl Iterator<Item = (u64, Extent)> + '_ {
        let here = self.live.contains_key(&segment);
        let runs = self.runs.iter().filter(move |(_, run)| here && run.segment == segment);
        runs.flat_map(|(from, run)| run.extents(*from))
    }

    /// Whether the entry is live.
    pub fn holds(&self, index: u64) -> bool {
        self.runs.range(..=index).next_back().is_some_and(|(_, run)| run.end > index)
    }

    /// Live bytes in one segment.
    pub fn live_in(&self, segment: u64) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// Live bytes in all segments.
    pub fn live(&self) -> u64 {
        self.total
    }

    /// The index after the last live entry in segments up to this one; `None` if they have none.
    pub fn end_up_to(&self, segment: u64) -> Option<u64> {
        self.live.range(..=segment).next()?;
        let here = self.runs.values().filter(|run| run.segment <= segment);
        here.map(|run| run.end).max()
    }

    fn cut_behind(&mut self, first: u64) {
        self.split(first);
        while let Some((from, _)) = self.runs.last_key_value().filter(|(from, _)| **from >= first) {
            let from = *from;
            self.take(from);
        }
    }

    /// Adds a record at indexes where none is live, to the run before it if it continues that.
    fn add(&mut self, first: u64, place: Place) {
        let Place { segment, offset, length, count } = place;
        let (end, bytes) = (first + u64::from(count), u64::from(length));
        self.count(segment, bytes);
        if let Some((_, run)) = self.runs.range_mut(..first).next_back()
            && (run.segment, run.end, run.top) == (segment, first, first)
            && let Ok(delta) = u32::try_from(first - run.base)
        {
            run.records.push(Record { offset, first: delta, length });
            (run.top, run.end, run.bytes) = (end, end, run.bytes + bytes);
            return;
        }
        let records = vec![Record { offset, first: 0, length }];
        self.runs.insert(first, Run { segment, base: first, top: end, end, bytes, records });
    }

    /// Splits the run that reaches across `index`, if there is one, so that its second part begins
    /// there.
    fn split(&mut self, index: u64) {
        let across = self.runs.range(..index).next_back().filter(|(_, run)| run.end > index);
        let Some(from) = across.map(|(from, _)| *from) else { return };
        let run = self.take(from);
        for (from, part) in [(from, run.part(from, index)), (index, run.part(index, run.end))] {
            self.count(part.segment, part.bytes);
            self.runs.insert(from, part);
        }
    }

    fn count(&mut self, segment: u64, bytes: u64) {
        *self.live.entry(segment).or_default() += bytes;
        self.total += bytes;
    }

    fn take(&mut self, from: u64) -> Run {
        let run = self.runs.remove(&from).expect("the run was just found");
        let live = self.live.get_mut(&run.segment).expect("a run is counted in its segment");
        *live -= run.bytes;
        self.total -= run.bytes;
        if *live == 0 {
            self.live.remove(&run.segment);
        }
        run
    }
}

impl Run {
    /// The live parts of the run's records from index `from` on.
    fn extents(&self, from: u64) -> impl Iterator<Item = (u64, Extent)> + '_ {
        let begin = self.records.partition_point(|record| self.first(record) <= from) - 1;
        let parts = (begin..self.records.len()).map(move |at| {
            let Record { offset, length, .. } = self.records[at];
            let first = self.first(&self.records[at]);
            let top = self.records.get(at + 1).map_or(self.top, |next| self.first(next));
            let count = u32::try_from(top - first).expect("a record counts its entries in a u32");
            let place = Place { segment: self.segment, offset, length, count };
            (first.max(from), Extent { end: top.min(self.end), place })
        });
        parts.take_while(|(first, extent)| *first < extent.end)
    }

    fn first(&self, record: &Record) -> u64 {
        self.base + u64::from(record.first)
    }

    /// The run of those records that have live entries in `from..end`.
    fn part(&self, from: u64, end: u64) -> Self {
        let begin = self.records.partition_point(|record| self.first(record) <= from) - 1;
        let behind = self.records.partition_point(|record| self.first(record) < end);
        let base = self.first(&self.records[begin]);
        let top = self.records.get(behind).map_or(self.top, |next| self.first(next));
        let skipped = self.records[begin].first;
        let rebased = |record: &Record| Record { first: record.first - skipped, ..*record };
        let records = self.records[begin..behind].iter().map(rebased).collect();
        let part = Self { segment: self.segment, base, top, end, bytes: 0, records };
        let bytes = part.extents(from).map(|(first, extent)| extent.live_bytes(first)).sum();
        Self { bytes, ..part }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every live index, with the first index and the place of its record.
    type Naive = BTreeMap<u64, (u64, Place)>;

    fn check(extents: &Extents, naive: &Naive) {
        let mut found = Naive::new();
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for (from, extent) in extents.iter() {
            assert!(from < extent.end, "an extent is not empty");
            *live.entry(extent.place.segment).or_default() += extent.live_bytes(from);
            for index in from..extent.end {
                let first = naive.get(&index).expect("the index is live").0;
                assert_eq!(found.insert(index, (first, extent.place)), None, "it is live once");
            }
        }
        assert_eq!(&found, naive);
        assert_eq!(extents.live, live, "live bytes are those of live entries");
        assert_eq!(extents.live(), live.values().sum::<u64>());
        for index in 0..60 {
            assert_eq!(extents.holds(index), naive.contains_key(&index));
            let from: Vec<u64> = extents.from(index).flat_map(|(at, e)| at..e.end).collect();
            assert_eq!(from, naive.range(index..).map(|(at, _)| *at).collect::<Vec<_>>());
        }
        for segment in 0..8 {
            let here = extents.in_segment(segment).flat_map(|(from, extent)| from..extent.end);
            let expected = naive.iter().filter(|(_, (_, place))| place.segment == segment);
            assert_eq!(here.collect::<Vec<_>>(), expected.map(|(at, _)| *at).collect::<Vec<_>>());
            let up_to = naive.iter().filter(|(_, (_, place))| place.segment <= segment);
            assert_eq!(extents.end_up_to(segment), up_to.map(|(at, _)| at + 1).max());
        }
    }

    #[test]
    fn random_changes_agree_with_a_map_of_every_entry() {
        for life in 0..300_u64 {
            println!("life {life}");
            let mut chance = life;
            let mut below = |bound: u64| {
                chance =
                    chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (chance >> 33) % bound
            };
            let (mut extents, mut naive) = (Extents::default(), Naive::new());
            let (mut segment, mut offset) = (0, 0);
            for _step in 0..40 {
                let (low, high) = match (naive.first_key_value(), naive.last_key_value()) {
                    (Some((low, _)), Some((high, _))) => (*low, *high + 1),
                    _empty => (below(5), 0),
                };
                let first = low + below(high.saturating_sub(low) + 1);
                let at_end = if high > low { high } else { low };
                let count = 1 + below(6) as u32;
                let length = 1 + below(100) as u32 + count;
                offset += 100;
                if below(6) == 0 && segment < 7 {
                    (segment, offset) = (segment + 1, 0);
                }
                let place = Place { segment, offset, length, count };
                let fill = |naive: &mut Naive, first: u64| {
                    naive.extend((first..first + u64::from(count)).map(|at| (at, (first, place))));
                };
                match below(10) {
                    0 => {
                        extents.cut_before(first);
                        naive = naive.split_off(&first);
                    }
                    1 => {
                        extents.append(first, place);
                        naive.split_off(&first);
                        fill(&mut naive, first);
                    }
                    2 | 3 => {
                        extents.replace(first, place);
                        fill(&mut naive, first);
                    }
                    _more => {
                        extents.append(at_end, place);
                        fill(&mut naive, at_end);
                    }
                }
                check(&extents, &naive);
            }
            extents.clear();
            check(&extents, &Naive::new());
        }
    }

    /// The memory that a busy group takes: a run for each segment, and 16 bytes for each batch.
    #[test]
    fn records_that_follow_each_other_share_a_run() {
        let mut extents = Extents::default();
        for batch in 0..10_000_u64 {
            let (segment, offset) = (batch / 5_000, batch % 5_000 * 4096);
            extents.append(1 + batch * 3, Place { segment, offset, length: 900, count: 3 });
        }
        assert_eq!(extents.runs.len(), 2);
        assert_eq!(size_of::<Record>(), 16);
        assert_eq!(extents.live_in(1), 5_000 * 900);
        extents.cut_before(1 + 3 * 4_000 + 1);
        assert_eq!(extents.runs.len(), 2);
        assert_eq!(extents.live_in(0), 999 * 900 + 600);
    }
}
