//! What is moved so that old segments can go: how much, when, and when not.

use super::*;

/// Everything there is to do while nobody appends.
fn rest(wal: &mut Wal) {
    while wal.housekeep().expect("the disk is well") {}
    while wal.seal_idle().expect("the disk is well") {
        while wal.housekeep().expect("the disk is well") {}
    }
}

fn assert_at_rest(fs: &MemFs, wal: &mut Wal) {
    let (ops, stats) = (fs.ops(), wal.stats());
    for _ in 0..100 {
        assert!(!wal.seal_idle().expect("the disk is well"));
        assert!(!wal.housekeep().expect("the disk is well"));
    }
    assert_eq!((fs.ops(), wal.stats()), (ops, stats), "it writes nothing at all");
}

/// A log whose segments all live comes to rest, one of which most has died does so, too, and
/// both stay as they are.
#[test]
fn an_idle_log_writes_nothing() {
    let fs = disk();
    let options = WalOptions { segment_bytes: 8 * SEGMENT_BYTES, ..options() };
    let (mut wal, _none) = Wal::open(Arc::new(fs.clone()), &dir(), options).expect("it opens");
    for index in 1..90 {
        let jobs = [1, 2, 3]
            .map(|group| job(group, state(1, 0, index - 1), entries(index..index + 1, 1, 3000)));
        wal.append_and_tidy(&jobs).expect("there is room");
    }
    assert!(wal.stats().segments >= 12);
    assert_eq!(wal.stats().moved_bytes, 0, "what lives is not moved for nothing");
    rest(&mut wal);
    assert_at_rest(&fs, &mut wal);
    let dying = [2, 3].map(|group| job(group, state(90, 1, 89), vec![]));
    wal.append_and_tidy(&dying).expect("there is room");
    rest(&mut wal);
    assert!(wal.stats().moved_bytes > 0, "a third of it pins the log");
    assert_at_rest(&fs, &mut wal);
    assert!(wal.stats().moved_bytes <= wal.stats().written_bytes / 5, "a quarter of the appended");
}

/// Random groups append; each keeps what it wrote last.
struct Load {
    chance: u64,
    /// Of each group its first index and its next one.
    groups: Vec<(u64, u64)>,
    /// A quarter of the groups appends seldom, and what that keeps pins old segments.
    uneven: bool,
    payload: u64,
}

const ENTRY_BYTES: usize = 8_000;

impl Load {
    fn below(&mut self, bound: u64) -> u64 {
        let next = self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d);
        self.chance = next.wrapping_add(0x1405_7b7e_f767_814f);
        (self.chance >> 33) % bound
    }

    /// Jobs of a round: an entry for each of a few groups.
    fn jobs(&mut self) -> Vec<LogJob> {
        let count = self.groups.len() as u64;
        let mut chosen = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let group = self.below(count);
            chosen.insert(if self.uneven { group.min(self.below(count)) } else { group });
        }
        chosen.into_iter().map(|group| self.job(group)).collect()
    }

    /// 64 entries stay at the least; from the 96th on, 32 are cut off.
    fn job(&mut self, group: u64) -> LogJob {
        let (first, next) = &mut self.groups[group as usize];
        let add = entries(*next..*next + 1, 1, ENTRY_BYTES);
        self.payload += ENTRY_BYTES as u64;
        *next += 1;
        if *next - *first >= 96 {
            *first += 32;
        }
        job(group, state(*first, u64::from(*first > 1), *next - 2), add)
    }
}

/// Many groups, small: 100 keep 512 kB and more each, in segments of 512 KiB. A round is a batch of
/// up to six jobs, padded to 512 bytes; a group's state takes 200 bytes or so in each job and in
/// each segment's head.
#[test]
fn a_log_of_many_groups_stays_within_its_bounds() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    for uneven in [false, true] {
        let load = Load { chance: seed, groups: vec![(1, 1); 100], uneven, payload: 0 };
        check_bounds(load);
    }
}

fn check_bounds(mut load: Load) {
    const SEGMENT: u64 = 512 << 10;
    let options = WalOptions { segment_bytes: SEGMENT, spares: 2, ..options() };
    let (mut wal, _none) = Wal::open(Arc::new(disk()), &dir(), options).expect("it opens");
    while load.payload < 200 << 20 {
        let jobs = load.jobs();
        let before = wal.stats();
        let appended = wal.append(&jobs, &mut |_| {}).expect("there is room");
        let after = wal.stats();
        assert_eq!(after.moved_bytes, before.moved_bytes, "no append moves anything");
        let heads = after.batches - before.batches - 1;
        assert!(heads <= 1 && appended.syncs == 1 + heads, "no append makes or removes a file");
        while wal.housekeep().expect("there is room") {}
        let stats = wal.stats();
        let most = 2 * stats.live + 4 * SEGMENT;
        assert!(stats.bytes <= most, "{} bytes of files, {} live", stats.bytes, stats.live);
    }
    let stats = wal.stats();
    let per_byte = stats.written_bytes as f64 / load.payload as f64;
    println!("uneven {}: {per_byte:.3} bytes written a byte, {stats:?}", load.uneven);
    assert!(per_byte <= 1.3, "{per_byte} bytes are written for a byte of payload: {stats:?}");
    assert!(stats.moved_bytes <= stats.written_bytes / 4);
    assert!(stats.live > 100 * SEGMENT, "{stats:?}");
}
