//! Bounds that more than one file uses, each with its unit and reason. Constants that must agree
//! are tied together by the asserts at the foot.

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Largest command a client may send, bytes. The rest of the mebibyte is for the entry's framing.
pub const COMMAND_BYTES_MAX: usize = MIB - 4 * KIB;
/// Largest commands entry, bytes.
pub const COMMANDS_ENTRY_BYTES_MAX: usize = MIB;
/// Most commands in one entry; one guest call applies them all.
pub const ENTRY_COMMANDS_MAX: usize = 1024;
/// Most bytes of framing that a command takes in an entry.
pub const COMMAND_OVERHEAD_BYTES_MAX: usize = 64;
/// Largest outcome of one command, bytes; a larger one becomes `Rejection::AnswerTooLarge`.
pub const OUTCOME_BYTES_MAX: usize = 64 * KIB;
/// Largest answer of a query, bytes.
pub const QUERY_ANSWER_BYTES_MAX: usize = MIB;
/// Most bytes that the host copies from a guest in one call (wasmtime's hostcall fuel): a full
/// entry of outcomes of the largest size, plus the host's overhead for each. Never reached, because
/// each value is cut to its own limit before it is copied.
pub const HOSTCALL_BYTES_MAX: usize = ENTRY_COMMANDS_MAX * (OUTCOME_BYTES_MAX + 64);
/// Largest raft message on the wire, bytes.
pub const FRAME_BYTES_MAX: usize = 4 * MIB;
/// Bytes of entries that raft puts into one append message.
pub const APPEND_BYTES_MAX: u64 = MIB as u64;
/// Append messages in flight to one follower.
pub const APPEND_INFLIGHT_MAX: usize = 64;
/// Size of a snapshot block, bytes: the unit of checksums, of credit and of resumption.
pub const SNAPSHOT_BLOCK_BYTES: usize = MIB;
/// Largest gRPC message, bytes (tonic's default is 4 MiB).
pub const GRPC_MESSAGE_BYTES_MAX: usize = 8 * MIB;
/// Largest guest component, bytes.
pub const MODULE_BYTES_MAX: usize = 64 * MIB;

/// Bytes of commands that wait in one group to be proposed; beyond it a command is refused as
/// `Refusal::Overloaded`.
pub const PROPOSALS_WAITING_BYTES_MAX: usize = 32 * MIB;
/// Commands that wait in one group to be proposed.
pub const PROPOSALS_WAITING_MAX: usize = 65_536;
/// Commands entries proposed and not yet committed. While that many are in flight, waiting commands
/// gather for the next one.
pub const ENTRIES_INFLIGHT_MAX: usize = 16;
/// Linearizable queries that wait in one group for their read index.
pub const READS_WAITING_MAX: usize = 65_536;
/// Bytes of the window of entries that raft reads from memory; entries above the floor stay in it
/// in any case. The entries that wait for the apply lane have the same bound.
pub const WINDOW_BYTES_MAX: usize = 16 * MIB;
/// Bytes of committed entries that the apply lane was given and has not applied; what follows waits
/// in the core.
pub const APPLY_INFLIGHT_BYTES_MAX: usize = 8 * MIB;
/// Bytes of committed entries that raft hands out at once.
pub const COMMITTED_BYTES_MAX: u64 = 4 * MIB as u64;
/// Bytes of proposed and uncommitted entries that a leader holds.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 * MIB as u64;

/// The soft bound: at this percentage of a guest's memory limit, commands are refused. The quarter
/// above it is for what is under way by then (by the rule of [`MEMORY_UNDER_WAY_PARTS`] one entry
/// of at most [`COMMANDS_ENTRY_BYTES_MAX`] and its answers, which may take 8 times its size at the
/// least limit of 32 MiB and 256 times at the default one of 1 GiB), for guests that grow a buffer
/// by doubling it, and for commands that free memory.
pub const MEMORY_SOFT_PERCENT: u64 = 75;
/// At this percentage of a guest's memory limit, commands that free memory are refused, too.
pub const MEMORY_RELIEF_PERCENT: u64 = 87;
/// At this percentage of the soft bound, status, metrics and log warn.
pub const MEMORY_WARNING_PERCENT: u64 = 80;
/// Commands in flight may have as many bytes as the memory left below the bound, divided by this. A
/// single entry is always allowed.
pub const MEMORY_UNDER_WAY_PARTS: u64 = 4;
/// A rebuild of a guest pays if it frees at least the guest's memory limit divided by this. The
/// replica has no guest during a rebuild, which takes as long as a start.
pub const REBUILD_GAIN_PARTS: u64 = 8;

/// Amendments that a leader has proposed since its oldest recovery point before it refuses more:
/// the next checkpoints take them in.
pub const AMENDMENTS_PENDING_MAX: usize = 64;
/// Amendments that a replica keeps: those of a leader, and of many checkpoints of which it took no
/// snapshot itself.
pub const AMENDMENTS_MAX: usize = 1024;
/// Orders of operators that one group has in its log and not committed yet.
pub const ORDERS_MAX: usize = 64;
/// Ticks within which every replica has to have a module ready that is to be tried: it is fetched
/// from a peer and compiled.
pub const UPGRADE_PREPARE_TICKS: u64 = 6_000;
/// Ticks within which every replica has to have moved its state into the new module. The leader
/// holds commands back meanwhile.
pub const UPGRADE_MOVE_TICKS: u64 = 600;
/// A memory limit is lowered to no less than what the group's largest guest uses, and this
/// percentage of the new limit has to suffice for that.
pub const LOWERED_MEMORY_PERCENT: u64 = 80;

/// Ticks after which a capture that has not ended counts as failed, though it may still end: a
/// quarter of an hour, in which a slow disk syncs and reads a state of some 50 GiB.
pub const CAPTURE_TICKS_MAX: u64 = 9_000;

/// Length of a tick, ms.
pub const TICK_MS: u64 = 100;
/// Ticks between heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// Least ticks without a leader before a replica campaigns.
pub const ELECTION_TICKS_MIN: usize = 10;
/// Most ticks without a leader before a replica campaigns, exclusive.
pub const ELECTION_TICKS_MAX: usize = 20;
/// Status, health and the CLI report a group as leaderless after this time without a known leader,
/// ms: longer than an election takes.
pub const LEADERLESS_MS: u64 = 5_000;
/// A disk operation that takes longer than this is a stall, ms: by then the group could have
/// another leader.
pub const DISK_STALL_MS: u64 = ELECTION_TICKS_MIN as u64 * TICK_MS;
/// Attempts of a leader with a stalled disk to hand leadership over before it steps down.
pub const STALLED_HAND_OVERS_MAX: u32 = 2;
/// Raft messages that wait for a log batch to become durable; beyond it, incoming messages are
/// dropped.
pub const PROMISES_WAITING_MAX: usize = 4_096;
/// Election timeouts without a leader after which a reluctant replica campaigns all the same.
pub const RELUCTANT_TIMEOUTS: usize = 10;
/// Most by which a node's clock may differ from the median of its group's clocks before its replica
/// is reluctant to lead, and from the voters' clock before a leader stamps that one instead, ms.
pub const CLOCK_SKEW_MS_MAX: u64 = 5_000;
/// Most milliseconds by which a leader's stamps advance in a tick: when clocks jump ahead, log time
/// follows at a hundred times the speed of real time.
pub const LOG_TIME_TICK_MS_MAX: u64 = 100 * TICK_MS;
/// Ticks after which an unanswered read index is requested again under a new context.
pub const READ_RETRY_TICKS: u64 = 5;
/// Ticks after which a waiting read is refused.
pub const READ_DEADLINE_TICKS: u64 = 50;
/// Ticks of silence after which a leader may replace a node's old replica: two election timeouts.
pub const REPLACE_TICKS: u64 = 2 * ELECTION_TICKS_MAX as u64;
/// Ticks between two probes or join requests of a replica that no configuration contains.
pub const JOIN_RETRY_TICKS: u64 = 5;
/// Most entries that a learner may lack when it is promoted to a voter.
pub const PROMOTE_LAG_ENTRIES_MAX: u64 = 1_000;
/// Ticks after which the log writes a hard state in which only the commit index moved.
pub const LAZY_STATE_TICKS: u64 = 10;

/// Unanswered calls that one session may have.
pub const SESSION_OPEN_CALLS_MAX: usize = 1024;
/// Sessions of one group. Beyond it, opening one evicts the session that expired first, if any.
pub const SESSIONS_MAX: usize = 4096;
/// Log time from a session's last call until it may be evicted, ms; by then its client has long
/// stopped retrying.
pub const SESSION_KEPT_MS: u64 = 600_000;
/// Log time from a session's opening until it may be evicted, ms, as long as no call was made in
/// it: nothing is lost with it.
pub const SESSION_UNUSED_MS: u64 = 30_000;
/// Bytes that a kept answer counts beside its own; in a snapshot it takes less.
pub const SESSION_ANSWER_OVERHEAD_BYTES: usize = 32;
/// Bytes of kept answers that a group lends to its sessions: twice what a session needs that has
/// all its calls open with the longest answers. A session is never lent more than what remains for
/// the others.
pub const SESSION_ANSWER_BYTES_MAX: usize = 130 * MIB;
/// Bytes of kept answers that each session may have whatever the others have: 64 MiB for all
/// sessions together.
pub const SESSION_OWN_ANSWER_BYTES: usize = 16 * KIB;

/// Longest topic of an event, bytes.
pub const EVENT_TOPIC_BYTES_MAX: usize = 256;
/// Largest payload of an event, bytes.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 64 * KIB;
/// Bytes that a kept event counts beside its topic and payload.
pub const EVENT_OVERHEAD_BYTES: usize = 64;
/// Bytes of events that a group keeps, unless configured when it is bootstrapped.
pub const EVENT_WINDOW_BYTES: u32 = 8 * MIB as u32;
/// The least and the most that may be configured, bytes: some events of the largest size; what a
/// snapshot carries in addition, and every replica keeps in memory.
pub const EVENT_WINDOW_BYTES_MIN: u32 = MIB as u32;
pub const EVENT_WINDOW_BYTES_MAX: u32 = 64 * MIB as u32;
/// Most events that such a window can hold.
pub const EVENTS_MAX: usize = EVENT_WINDOW_BYTES_MAX as usize / EVENT_OVERHEAD_BYTES;

/// Recovery points kept while the budget allows.
pub const RECOVERY_POINTS: usize = 2;
/// Log is kept for followers and transfers up to this many times the bytes after which a snapshot
/// is due; a follower further behind gets a snapshot.
pub const LOG_PIN_CHECKPOINTS: u64 = 4;
/// Both ends keep a broken transfer for this time, ms, so that it can resume after either of them
/// restarted.
pub const SUSPEND_MS: u64 = 600_000;
/// Ticks that a replica whose snapshot is overdue, because its log is beyond its bound or near the
/// space that the next snapshot needs, waits for a checkpoint before it takes a snapshot without
/// one.
pub const OVERDUE_CHECKPOINT_TICKS: u64 = 10;
/// Ticks between two attempts of a replica that is short of space to take a snapshot without a
/// checkpoint.
pub const SHORT_CAPTURE_TICKS: u64 = 100;
/// Ticks for which a replica waits at a checkpoint for one of its host's places for captures; it
/// applies nothing meanwhile.
pub const CHECKPOINT_PLACE_TICKS: u64 = 5;
/// Least ticks after which a replica that got no place at a checkpoint asks again, between
/// checkpoints; the wait is random, up to twice as long.
pub const PLACE_RETRY_TICKS: u64 = 10;
/// Checkpoints that clients may request in a burst.
pub const CHECKPOINT_REQUESTS_AT_ONCE: u32 = 8;
/// Ticks after which clients may request one more checkpoint after such a burst.
pub const CHECKPOINT_REQUEST_TICKS: u64 = 20;
/// If captures take long, one request is granted in this many times the duration of the last
/// capture.
pub const CHECKPOINT_REQUEST_PARTS: u64 = 4;
/// Clients' requests that wait for a checkpoint.
pub const CHECKPOINT_REQUESTS_MAX: usize = 1_024;
/// Ticks for which a recovery point that was read counts as whole; after that it is read again
/// before an older one is given up.
pub const PROOF_TICKS: u64 = 100;
/// Ticks between two requests for an object that a replica needs from its peers; doubled each time
/// all of them were asked in vain.
pub const WANT_RETRY_TICKS: u64 = 20;
/// Most doublings of [`WANT_RETRY_TICKS`]: to about a minute.
pub const WANT_RETRY_DOUBLINGS_MAX: u32 = 5;
/// Ticks after which a replica tries again to build a guest, if its machine lacked a resource or
/// its disk could not be read; doubled each time.
pub const BUILD_RETRY_TICKS: u64 = 100;
/// Most doublings of [`BUILD_RETRY_TICKS`]: to about five minutes.
pub const BUILD_RETRY_DOUBLINGS_MAX: u32 = 5;
/// While a leader sends a snapshot to a follower, its next checkpoint is due after this many times
/// the usual entries or bytes.
pub const CHECKPOINT_PATIENCE: u64 = 2;
/// Entries handed to the apply lane and not yet applied, beyond which a leader proposes no more
/// commands.
pub const APPLY_BACKLOG_ENTRIES_MAX: u64 = 65_536;
/// Bytes of entries handed to the apply lane and not yet applied, beyond which a leader proposes no
/// more commands.
pub const APPLY_BACKLOG_BYTES_MAX: usize = 32 * MIB;
/// Bytes of answers that the apply lane gathers before it reports them, and as many that wait for
/// the actor; the answers of a single entry may exceed it.
pub const APPLY_ANSWERS_BYTES_MAX: usize = 4 * MIB;
/// Once the log since its newest snapshot is at its bound, a replica appends no more while this
/// many bytes of log are handed to its guest and not yet applied. A leader stops proposing commands
/// at half of that backlog, so only a replica that is slower than its group reaches this bound.
pub const APPLY_LAG_BYTES_MAX: u64 = 2 * APPLY_BACKLOG_BYTES_MAX as u64;
/// Trailing entries, unless configured: kept before the newest snapshot for followers that lag a
/// little.
pub const CATCH_UP_ENTRIES: u64 = 5_000;
/// Size of a log segment, bytes, unless configured.
pub const LOG_SEGMENT_BYTES: u64 = 64 * MIB as u64;
/// Smallest log segment that may be configured, bytes: two commands entries and a recovery state.
pub const LOG_SEGMENT_BYTES_MIN: u64 = 4 * MIB as u64;
/// Batches of the log begin at multiples of this, bytes: a page, the unit that filesystems write,
/// so that no acknowledged byte is ever written again.
pub const LOG_BLOCK_BYTES: u32 = 4096;
/// Preallocated files for the next segments: one to become the next segment, and one for what is
/// under way when the disk has no space to replace the first.
pub const LOG_SPARES: usize = 2;
/// Largest batch of the log, bytes.
pub const LOG_BATCH_BYTES_MAX: usize = 3 * MIB;
/// After this time, ms, an idle log writes an empty batch, which proves its last batch whole.
pub const LOG_IDLE_SEAL_MS: u64 = 100;

/// Most replicas in one configuration, learners included.
pub const REPLICAS_MAX: usize = 32;
/// Most replicas whose last known process a replica remembers: members, former and future ones.
pub const REPLICAS_SEEN_MAX: usize = 4 * REPLICAS_MAX;
/// Most by which a frame's boot count may differ from the last one known of its replica: a day of
/// ten starts a second. A larger difference cannot come from counting starts.
pub const BOOTS_AHEAD_MAX: u64 = 1 << 20;
/// Most terms by which a message may be ahead of a replica: an election each second for a century.
pub const TERMS_AHEAD_MAX: u64 = 1 << 32;
/// Longest group name, bytes. Names are not empty and consist of `[a-z0-9_-]`.
pub const GROUP_NAME_BYTES_MAX: usize = 64;
/// Largest configuration handed to a guest's `init`, bytes.
pub const GUEST_CONFIG_BYTES_MAX: usize = 64 * KIB;

const _: () = assert!(
    2 * SESSION_OPEN_CALLS_MAX * (OUTCOME_BYTES_MAX + SESSION_ANSWER_OVERHEAD_BYTES)
        <= SESSION_ANSWER_BYTES_MAX
);
const _: () = assert!(COMMAND_BYTES_MAX + COMMAND_OVERHEAD_BYTES_MAX < COMMANDS_ENTRY_BYTES_MAX);
const _: () = assert!(MEMORY_SOFT_PERCENT < MEMORY_RELIEF_PERCENT && MEMORY_RELIEF_PERCENT < 100);
const _: () = assert!(APPEND_BYTES_MAX as usize + COMMANDS_ENTRY_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);
const _: () = assert!(SNAPSHOT_BLOCK_BYTES < GRPC_MESSAGE_BYTES_MAX);
const _: () = assert!(QUERY_ANSWER_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);
const _: () =
    assert!(HEARTBEAT_TICKS < ELECTION_TICKS_MIN && ELECTION_TICKS_MIN < ELECTION_TICKS_MAX);
const _: () = assert!(LEADERLESS_MS > 2 * ELECTION_TICKS_MAX as u64 * TICK_MS);
const _: () = assert!(LOG_BATCH_BYTES_MAX as u64 + 64 * 1024 < LOG_SEGMENT_BYTES_MIN);
const _: () = assert!(COMMANDS_ENTRY_BYTES_MAX + MIB <= LOG_BATCH_BYTES_MAX);
