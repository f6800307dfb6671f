//! Moving live entries so that old segments can be deleted: how much, when, and when not.

use super::*;

/// Runs housekeeping and seals until nothing is left to do.
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

/// A log whose segments all hold live entries comes to rest. So does one in which most entries are
/// obsolete. Then both write nothing more.
#[test]
fn an_idle_log_writes_nothing() {
    let fs = disk();
    let options = WalOptions { segment_bytes: 8 * SEGMENT_BYTES, ..options() };
    let (mut wal, _none) = Wal::open(Arc::new(fs.clone()), &dir(), options).expect("it opens");
    for index in 1..90 {
        let jobs = [1, 2, 3]
            .map(|group| job(group, state(1, 0, index - 1), entries(index..index + 1, 1, 3000)));
        wal.append_and_tidy(&jobs).expect("there is space");
    }
    assert!(wal.stats().segments >= 12);
    assert_eq!(wal.stats().moved_bytes, 0, "what lives is not moved for nothing");
    rest(&mut wal);
    assert_at_rest(&fs, &mut wal);
    let dying = [2, 3].map(|group| job(group, state(90, 1, 89), vec![]));
    wal.append_and_tidy(&dying).expect("there is space");
    rest(&mut wal);
    assert!(wal.stats().moved_bytes > 0, "a third of it pins the log");
    assert_at_rest(&fs, &mut wal);
    assert!(wal.stats().moved_bytes <= wal.stats().written_bytes / 5, "a quarter of the appended");
}

/// A load of random groups that append and keep only their latest entries.
struct Load {
    chance: u64,
    /// The first and the next index of each group.
    groups: Vec<(u64, u64)>,
    /// A quarter of the groups append rarely, and the entries they keep pin old segments.
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

    /// The jobs of a round: an entry for each of a few groups.
    fn jobs(&mut self) -> Vec<LogJob> {
        let count = self.groups.len() as u64;
        let mut chosen = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let group = self.below(count);
            chosen.insert(if self.uneven { group.min(self.below(count)) } else { group });
        }
        chosen.into_iter().map(|group| self.job(group)).collect()
    }

    /// Keeps at least 64 entries: once there are 96, 32 are cut off.
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

/// Many small groups: each of 200 keeps 512 kB or more, in segments of 512 KiB. A round is a batch
/// of up to six jobs, padded to 512 bytes; a group's state takes about 200 bytes in each job and in
/// each segment's head.
#[test]
fn a_log_of_many_groups_stays_within_its_bounds() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    for uneven in [false, true] {
        let load = Load { chance: seed, groups: vec![(1, 1); 200], uneven, payload: 0 };
        check_bounds(load);
    }
}

fn check_bounds(mut load: Load) {
    const SEGMENT: u64 = 512 << 10;
    let options = WalOptions { segment_bytes: SEGMENT, spares: 2, ..options() };
    let (mut wal, _none) = Wal::open(Arc::new(disk()), &dir(), options).expect("it opens");
    while load.payload < 400 << 20 {
        let jobs = load.jobs();
        let before = wal.stats();
        let appended = wal.append(&jobs, &mut |_| {}).expect("there is space");
        let after = wal.stats();
        assert_eq!(after.moved_bytes, before.moved_bytes, "no append moves anything");
        let heads = after.batches - before.batches - 1;
        assert!(heads <= 1 && appended.syncs == 1 + heads, "no append makes or removes a file");
        while wal.housekeep().expect("there is space") {}
        let stats = wal.stats();
        let most = 2 * stats.live + 4 * SEGMENT;
        assert!(stats.bytes <= most, "{} bytes of files, {} live", stats.bytes, stats.live);
    }
    let stats = wal.stats();
    let per_byte = stats.written_bytes as f64 / load.payload as f64;
    println!("uneven {}: {per_byte:.3} bytes written a byte, {stats:?}", load.uneven);
    assert!(per_byte <= 1.3, "{per_byte} bytes are written for a byte of payload: {stats:?}");
    assert!(stats.moved_bytes <= stats.written_bytes / 4);
    assert!(stats.live > 200 * SEGMENT, "{stats:?}");
}
