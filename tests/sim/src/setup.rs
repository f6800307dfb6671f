//! What a seed draws before anything happens: the cluster, its groups, and their limits.

use lockstep_core::entry::Profile;
use lockstep_core::group::SnapshotPolicy;
use lockstep_host::fs::mem::LateFull;

use crate::rng::Rng;

/// Bytes of memory that a growing guest takes for each byte of a command.
const GROWTH_BYTES: u64 = 8;

/// The configuration that all nodes of a run share.
#[derive(Clone)]
pub struct Setup {
    pub nodes: u16,
    pub groups: Vec<String>,
    pub segment_bytes: u64,
    pub policy: SnapshotPolicy,
    pub ballast: usize,
    /// Bytes of each command, at least.
    pub command_bytes: usize,
    /// Bytes of a guest's memory that each command takes.
    pub grows: u64,
    /// Some commands emit events and set the guest's timer.
    pub emits: bool,
    /// How many states go astray.
    pub strays: u64,
    /// A guest's limit of memory.
    pub memory_bytes: u64,
    pub budget_bytes: u64,
    /// The most of the budget that one group may take.
    pub cap_bytes: u64,
    /// How many groups of a node may take a snapshot at once, and how many may restore one.
    pub places: usize,
    pub disk_bytes: u64,
    /// Snapshots lie on a filesystem of their own.
    pub apart: bool,
    /// Nodes 1 to this are the initial voters of the groups; the others join later.
    pub initial_voters: u16,
    /// Which operations fail on a full disk, beside those that need space.
    pub late: LateFull,
}

impl Setup {
    /// The setup that this seed draws.
    pub fn drawn(seed: u64, rng: &mut Rng) -> Self {
        let mut setup = setup(rng);
        let mut more = Rng::new(!seed);
        cap(&mut setup, &mut more);
        grow(&mut setup, &mut more);
        crowd(&mut setup, &mut more);
        setup.places = if more.percent(50) { 1 } else { 2 };
        setup.emits = more.percent(70);
        setup.strays = if more.percent(15) { more.between(1, 3) } else { 0 };
        setup
    }
}

fn setup(rng: &mut Rng) -> Setup {
    let nodes = *rng.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5]);
    let big = rng.percent(25);
    let segment_bytes = 64 << 10;
    let ballast = if big { (2 << 20) + 4096 * rng.below(300) as usize } else { 0 };
    let object = ballast as u64 + (64 << 10);
    let tight = rng.percent(50);
    // The first snapshot of a guest reserves the size of its memory and one block.
    let first = ballast as u64 + (1 << 20) + (64 << 10);
    let two = rng.percent(30);
    let groups: &[&str] = if two { &["a", "b"] } else { &["a"] };
    // One recovery point for each group, and one incoming snapshot.
    let least = object * (10 * groups.len() as u64 + 13) / 10;
    let budget_bytes = if tight { least.max(first) } else { first * 8 };
    let entries = rng.between(40, 200);
    // A disk that holds little more than two snapshots, so that the log must leave space for the
    // next one.
    let narrow = big && !two && rng.percent(50);
    let log_bytes = if narrow { 3 << 10 } else { 64 << 10 };
    let catch_up = rng.below(100);
    Setup {
        nodes,
        groups: groups.iter().map(|name| (*name).to_owned()).collect(),
        segment_bytes,
        policy: SnapshotPolicy { entries, log_bytes, catch_up },
        ballast,
        command_bytes: 0,
        grows: 0,
        emits: false,
        strays: 0,
        memory_bytes: Profile::default().memory_bytes,
        budget_bytes,
        cap_bytes: u64::MAX,
        places: 2,
        disk_bytes: if narrow {
            object * 23 / 10 + 10 * segment_bytes
        } else {
            2 * budget_bytes + 64 * segment_bytes
        },
        apart: rng.percent(20),
        initial_voters: if rng.percent(40) { rng.between(1, nodes.into()) as u16 } else { nodes },
        late: if rng.percent(50) { *rng.pick(&LateFull::EACH) } else { LateFull::default() },
    }
}

/// Sometimes guests grow until they are near their limit of memory, if budget and disk can hold
/// snapshots of that size.
fn grow(setup: &mut Setup, rng: &mut Rng) {
    let first = setup.ballast as u64 + (1 << 20) + (64 << 10);
    let ample = setup.budget_bytes >= 8 * first && setup.disk_bytes >= 2 * setup.budget_bytes;
    if rng.percent(25) && ample && setup.cap_bytes == u64::MAX {
        setup.command_bytes = 1 << 10;
        setup.grows = GROWTH_BYTES * setup.command_bytes as u64;
        setup.memory_bytes = setup.ballast as u64 * 4 / 3 + (1 << 20);
    }
}

/// Sometimes many groups share a disk, each with a log of many segments.
fn crowd(setup: &mut Setup, rng: &mut Rng) {
    let ample = setup.disk_bytes >= 2 * setup.budget_bytes && setup.grows == 0;
    if rng.percent(8) && ample {
        let names = ["a", "b", "c", "d", "e", "f"];
        let count = rng.between(4, 6);
        setup.groups = names.iter().take(count as usize).map(|name| (*name).to_owned()).collect();
        setup.command_bytes = 4 << 10;
        setup.policy.log_bytes = 256 << 10;
        let first = setup.ballast as u64 + (1 << 20) + (64 << 10);
        setup.budget_bytes = setup.budget_bytes.max((count + 2) * 2 * first);
        // More than all that the groups may keep of their logs.
        setup.disk_bytes = 2 * setup.budget_bytes + (64 + count * 16) * setup.segment_bytes;
    }
}

/// Sometimes each group has a cap, a little more than two snapshots need.
fn cap(setup: &mut Setup, rng: &mut Rng) {
    if rng.percent(30) {
        let object = setup.ballast as u64 + (64 << 10);
        let first = setup.ballast as u64 + (1 << 20) + (64 << 10);
        setup.cap_bytes = (object * 23 / 10).max(first);
    }
}
