//! Crash points: one story, run once for each operation of one node's disk, with that operation
//! struck.
//!
//! The story makes that node do all that touches its disk: it falls behind, is sent a snapshot
//! whose transfer breaks and resumes, installs it, appends, begins new log segments, captures,
//! unlists an older recovery point to free space, cuts its log, deletes segments, and restarts.
//! Nothing else goes wrong. Afterwards the cluster must converge, and every checker runs.
//!
//! Either the disk halts at the operation, and unsynced writes are lost or kept in part, or the
//! operation fails, or a read fails.

use lockstep_core::entry::Profile;
use lockstep_core::group::SnapshotPolicy;
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_host::fs::mem::{DiskFault, LateFull, MemFs};

use crate::check::{Checked, Violation, violated};
use crate::counters::Counters;
use crate::setup::Setup;
use crate::transfer::Transfer;
use crate::world::{Action, CONVERGE_TICKS, MS, World};

const VICTIM: NodeId = NodeId(3);
const GROUP: &str = "a";
const BALLAST: usize = (2 << 20) + 777;

/// What goes wrong at the operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strike {
    /// The power fails: unsynced writes are lost, or kept in part, drawn from this number.
    Crash(Option<u64>),
    /// The operation fails.
    Fail(DiskFault),
    /// A read fails; reads are counted apart from the other operations.
    FailRead,
}

/// Every way in which an operation is struck.
pub const STRIKES: [Strike; 8] = [
    Strike::Crash(None),
    Strike::Crash(Some(1)),
    Strike::Crash(Some(2)),
    Strike::Crash(Some(3)),
    Strike::Crash(Some(4)),
    Strike::Fail(DiskFault::Io),
    Strike::Fail(DiskFault::Full),
    Strike::FailRead,
];

/// The counters of what the story must contain.
const CHAPTERS: [&str; 8] = [
    "suspended transfers",
    "resumed transfers",
    "installs",
    "local snapshots",
    "recovery points unlisted for space",
    "segments rolled",
    "segments deleted",
    "starts",
];

/// The result of a story.
pub struct Told {
    /// How many operations could be struck.
    pub ops: u64,
    /// What took place.
    pub counters: Counters,
}

/// Runs the story, with its `op`th operation struck in this way; the first is 1.
pub fn story(seed: u64, strike: Strike, op: Option<u64>) -> Result<Told, Violation> {
    let mut world = World::with_setup(seed, setup());
    world.calm = true;
    world.keep = strike.keeps(op.unwrap_or(0));
    let ops = world.tell(strike, op)?;
    world.converge()?;
    world.finish()?;
    Ok(Told { ops, counters: world.counters })
}

fn setup() -> Setup {
    let object = BALLAST as u64 + (64 << 10);
    let segment_bytes = 32 << 10;
    // Enough for two snapshots and a little. The first one reserves more than it turns out to need.
    let budget_bytes = (object * 23 / 10).max(BALLAST as u64 + (1 << 20) + (64 << 10));
    Setup {
        nodes: 3,
        groups: vec![GROUP.to_owned()],
        segment_bytes,
        policy: SnapshotPolicy { entries: 60, log_bytes: 64 << 10, catch_up: 5 },
        ballast: BALLAST,
        command_bytes: 0,
        grows: 0,
        emits: true,
        strays: 0,
        memory_bytes: Profile::default().memory_bytes,
        budget_bytes,
        cap_bytes: budget_bytes,
        places: 2,
        disk_bytes: 2 * budget_bytes + 64 * segment_bytes,
        apart: false,
        initial_voters: 3,
        late: LateFull::default(),
    }
}

impl Strike {
    /// What a crash at this operation keeps of unsynced writes, for [`World::keep`]; not the same
    /// at each operation.
    fn keeps(self, op: u64) -> Option<Option<u64>> {
        match self {
            Self::Crash(keep) => Some(keep.map(|number| number * 1_000_003 + op)),
            Self::Fail(_) | Self::FailRead => None,
        }
    }

    /// How many operations of the kind that this strike hits have taken place.
    fn count(self, fs: &MemFs) -> u64 {
        match self {
            Self::Crash(_) | Self::Fail(_) => fs.ops(),
            Self::FailRead => fs.reads(),
        }
    }

    /// Strikes the disk's operation number `at`, unless that has already taken place.
    fn arm(self, fs: &MemFs, at: u64) {
        if at <= self.count(fs) {
            return;
        }
        match self {
            Self::Crash(_) => fs.halt_after(at - 1),
            Self::Fail(fault) => fs.fail_op(at, fault),
            Self::FailRead => fs.fail_read(at, DiskFault::Io),
        }
    }
}

impl World {
    fn tell(&mut self, strike: Strike, op: Option<u64>) -> Result<u64, Violation> {
        self.until("sixty commands", |world| world.acknowledged() >= 60)?;
        for other in [NodeId(1), NodeId(2)] {
            self.network.cut.extend([(other, VICTIM), (VICTIM, other)]);
        }
        let before = self.acknowledged();
        self.until("two checkpoints", |world| world.acknowledged() >= before + 200)?;
        let fs = self.nodes[&VICTIM].fs.clone();
        let base = strike.count(&fs);
        let arm = || op.into_iter().for_each(|op| strike.arm(&fs, base + op));
        arm();
        // The read that fails may be a checker's.
        let unreadable = strike == Strike::FailRead;
        self.nodes.get_mut(&VICTIM).expect("the third").unreadable = unreadable;
        self.network.cut.clear();
        let coming = |world: &Self| {
            let is_half = |transfer: &Transfer| {
                let receiving = transfer.receiving.as_ref();
                transfer.to.0 == VICTIM && receiving.is_some_and(|half| half.bytes() > 0)
            };
            world.transfers.iter().find(|(_, transfer)| is_half(transfer)).map(|(id, _)| *id)
        };
        // When struck, the node may get all of the snapshot, or catch up by the log, before the
        // test sees a part of it.
        self.until("part of a snapshot", |world| {
            coming(world).is_some() || op.is_some() && world.serves_with(1)
        })?;
        if let Some(id) = coming(self) {
            self.cut_transfer(id);
        }
        self.until("victim that has caught up", |world| world.serves_with(1))?;
        let before = self.acknowledged();
        self.until("checkpoints of the victim", |world| {
            world.acknowledged() >= before + 150 && world.serves_with(2)
        })?;
        if self.nodes[&VICTIM].process.is_some() {
            // What this crash keeps does not depend on the operation that is struck.
            let keep = std::mem::replace(&mut self.keep, strike.keeps(0));
            self.fall(VICTIM, false);
            self.keep = keep;
            self.after(100 * MS, Action::Start { node: VICTIM });
        }
        // The crash disarmed a strike that had not happened yet: arm it again, so that it may hit
        // the start.
        arm();
        self.nodes.get_mut(&VICTIM).expect("the third").unreadable = unreadable;
        self.until("victim that serves again", |world| world.serves_with(1))?;
        self.nodes.get_mut(&VICTIM).expect("the third").unreadable = false;
        let ops = strike.count(&fs) - base;
        // Up to the strike the story equals the one without a strike, so it must have that
        // operation.
        if let Some(op) = op.filter(|op| *op > ops) {
            return violated("points", format!("there were only {ops} operations, not {op}"));
        }
        let process = self.nodes[&VICTIM].process.as_ref();
        let oldest = process.and_then(|process| Some(process.reader.segments().first()?.0));
        self.counters.add_many("segments deleted", u64::from(oldest > Some(1)));
        Ok(ops)
    }

    /// Whether the victim serves, is close to the others' commit index, and has at least this many
    /// recovery points.
    fn serves_with(&self, recovery_points: usize) -> bool {
        let group = GroupId::of_name(GROUP);
        let status = |node: NodeId| {
            let process = self.nodes[&node].process.as_ref()?;
            Some(process.replicas.get(&group)?.group.status())
        };
        let (Some(it), Some(other)) = (status(VICTIM), status(NodeId(1))) else { return false };
        it.state.refusal().is_none()
            && it.applied + 20 >= other.commit
            && it.snapshots.len() >= recovery_points
    }

    /// Steps until `there` holds; a violation that names `what` if that takes too long.
    pub(crate) fn until(&mut self, what: &str, there: impl Fn(&Self) -> bool) -> Checked {
        let deadline = self.now + CONVERGE_TICKS * 100 * MS;
        while !there(self) {
            if self.now > deadline {
                return violated("liveness", format!("no {what} in time; {}", self.describe()));
            }
            self.step()?;
        }
        Ok(())
    }
}

/// Strikes every operation of the story in every way, on as many threads as there are cores.
/// Returns the number of operations and of reads, or what went wrong.
pub fn every_point(seed: u64) -> Result<(u64, u64), String> {
    let (mut points, mut most) = (Vec::new(), (0, 0));
    for strike in STRIKES {
        let undisturbed = story(seed, strike, None);
        let Told { ops, counters } =
            undisturbed.map_err(|v| format!("without a strike: {}: {}", v.checker, v.what))?;
        if let Some(missing) = CHAPTERS.iter().find(|chapter| counters.get(chapter) == 0) {
            return Err(format!("the story of seed {seed} contains no {missing}"));
        }
        match strike {
            Strike::FailRead => most.1 = ops,
            Strike::Crash(_) | Strike::Fail(_) => most.0 = ops.max(most.0),
        }
        points.extend((1..=ops).map(|op| (strike, op)));
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let strike_some = |first: usize| -> Result<(), String> {
        for (strike, op) in points.iter().copied().skip(first).step_by(threads) {
            let said = |v: Violation| format!("{strike:?} at {op}: {}: {}", v.checker, v.what);
            let told = std::panic::catch_unwind(|| story(seed, strike, Some(op)));
            let told = told.map_err(|_| format!("{strike:?} at {op}: a panic"))?;
            drop(told.map_err(said)?);
        }
        Ok(())
    };
    let strike_some = &strike_some;
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || strike_some(first))).collect();
        let results = workers.into_iter().map(|worker| worker.join().expect("panics are caught"));
        results.collect::<Result<Vec<()>, String>>()
    })?;
    Ok(most)
}
