//! Every bound of the system, with its unit and reason. Constants that must agree are tied together
//! by the asserts at the foot.

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Largest command a client may send, bytes. The rest of a mebibyte is the pack's own framing.
pub const COMMAND_BYTES_MAX: usize = MIB - 4 * KIB;
/// Largest pack of commands in one raft entry, bytes.
pub const PACK_BYTES_MAX: usize = MIB;
/// Most commands in one raft entry; one guest call applies them all.
pub const PACK_COMMANDS_MAX: usize = 1024;
/// Bytes of framing a command takes in a pack, at most.
pub const PACK_OVERHEAD_BYTES_MAX: usize = 64;
/// Largest outcome of one command, bytes; a larger one becomes `Rejection::AnswerTooLarge`.
pub const OUTCOME_BYTES_MAX: usize = 64 * KIB;
/// Largest answer of a query, bytes.
pub const QUERY_ANSWER_BYTES_MAX: usize = MIB;
/// Bytes that the host copies of what a guest hands over in one call (wasmtime's hostcall fuel): a
/// full pack of full outcomes, and what each takes on the host's side. Never reached, because each
/// value is cut to its own limit before it is copied.
pub const HOSTCALL_BYTES_MAX: usize = PACK_COMMANDS_MAX * (OUTCOME_BYTES_MAX + 64);
/// Largest raft message on the wire, bytes.
pub const FRAME_BYTES_MAX: usize = 4 * MIB;
/// Entries raft puts in one append message, bytes.
pub const APPEND_BYTES_MAX: u64 = MIB as u64;
/// Appends in flight to one follower.
pub const APPEND_INFLIGHT_MAX: usize = 64;
/// Size of a snapshot block, bytes: the unit of checksums, of credit and of resumption.
pub const SNAPSHOT_BLOCK_BYTES: usize = MIB;
/// Largest gRPC message, bytes (tonic's default is 4 MiB).
pub const GRPC_MESSAGE_BYTES_MAX: usize = 8 * MIB;
/// Largest guest component, bytes.
pub const MODULE_BYTES_MAX: usize = 64 * MIB;

/// Commands waiting in one group to be packed, bytes; above it a command is `Refusal::Overloaded`.
pub const PROPOSALS_WAITING_BYTES_MAX: usize = 32 * MIB;
/// Commands waiting in one group to be packed.
pub const PROPOSALS_WAITING_MAX: usize = 65_536;
/// Packs proposed and not yet committed; while they are under way, waiting commands gather.
pub const PACKS_INFLIGHT_MAX: usize = 16;
/// Linearizable queries waiting in one group for their read index.
pub const READS_WAITING_MAX: usize = 65_536;
/// Entries kept in memory above what the floor demands, bytes.
pub const WINDOW_BYTES_MAX: usize = 16 * MIB;
/// Committed entries handed to the apply lane and not yet applied, bytes; the rest waits as ranges.
pub const APPLY_INFLIGHT_BYTES_MAX: usize = 8 * MIB;
/// Committed entries raft hands out at once, bytes.
pub const COMMITTED_BYTES_MAX: u64 = 4 * MIB as u64;
/// Entries proposed and not committed that a leader holds, bytes.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 * MIB as u64;

/// Of the memory that a guest may have, the part at which commands are refused. The quarter above
/// is for what is under way then: one pack of at most [`PACK_BYTES_MAX`], by the rule of
/// [`MEMORY_UNDER_WAY_PARTS`], which at the default of 1 GiB may take 256 times its size; for what
/// guests that grow a buffer by doubling it ask for at once; and for commands that make room.
pub const MEMORY_SOFT_PERCENT: u64 = 75;
/// The part at which commands that make room are refused, too.
pub const MEMORY_RELIEF_PERCENT: u64 = 87;
/// Of the soft bound, the part at which status, metrics and log warn.
pub const MEMORY_WARNING_PERCENT: u64 = 80;
/// Of what is left below the bound, no more than one such part is under way as commands; a single
/// pack always may be.
pub const MEMORY_UNDER_WAY_PARTS: u64 = 4;
/// A rebuild of a guest pays if it gives back at least one such part of what it may have: a rebuild
/// costs the replica its guest for as long as a start takes.
pub const REBUILD_GAIN_PARTS: u64 = 8;

/// Milliseconds of one tick.
pub const TICK_MS: u64 = 100;
/// Ticks between heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// Least ticks without a leader before a campaign.
pub const ELECTION_TICKS_MIN: usize = 10;
/// Most ticks without a leader before a campaign, exclusive.
pub const ELECTION_TICKS_MAX: usize = 20;
/// Milliseconds without a known leader after which status, health and the CLI say that there is
/// none: longer than an election takes.
pub const LEADERLESS_MS: u64 = 5_000;
/// A disk operation that takes longer, ms, is a stall: by then the group could have another leader.
pub const DISK_STALL_MS: u64 = ELECTION_TICKS_MIN as u64 * TICK_MS;
/// Times that a leader with a stalled disk tries to hand over before it steps down.
pub const STALLED_HAND_OVERS_MAX: u32 = 2;
/// Answers to raft messages that wait for batches to be durable; beyond it messages are dropped.
pub const PROMISES_WAITING_MAX: usize = 4_096;
/// Election timeouts that a reluctant replica waits without a leader before it campaigns.
pub const RELUCTANT_TIMEOUTS: usize = 10;
/// A clock further than this from the median of all nodes heard makes a replica reluctant, ms.
pub const CLOCK_SKEW_MS_MAX: u64 = 5_000;
/// Milliseconds of log time that a leader's stamps go ahead in a tick, at most: where clocks jump,
/// log time follows a hundred times as fast as time goes.
pub const LOG_TIME_TICK_MS_MAX: u64 = 100 * TICK_MS;
/// Ticks before an unanswered read index is asked for again under a new context.
pub const READ_RETRY_TICKS: u64 = 5;
/// Ticks before a waiting read is refused.
pub const READ_DEADLINE_TICKS: u64 = 50;
/// Ticks a leader waits without a word from a node's old replica before it replaces it: two
/// election timeouts.
pub const REPLACE_TICKS: u64 = 2 * ELECTION_TICKS_MAX as u64;
/// Ticks between two probes or join requests of a replica that is in no configuration.
pub const JOIN_RETRY_TICKS: u64 = 5;
/// A learner this close to the leader's last index is promoted, entries.
pub const PROMOTE_LAG_ENTRIES_MAX: u64 = 1_000;
/// Ticks between two lazy writes of a hard state that only moved its commit index.
pub const LAZY_STATE_TICKS: u64 = 10;

/// Open calls that one session may have.
pub const SESSION_OPEN_CALLS_MAX: usize = 1024;
/// Sessions of one group; of those that may go, the one that may go longest makes room.
pub const SESSIONS_MAX: usize = 4096;
/// Milliseconds of log time from its last call in which a session is not evicted; clients that
/// retry are long done.
pub const SESSION_KEPT_MS: u64 = 600_000;
/// The same, from its opening, for one in which no call was made: nothing is lost with it.
pub const SESSION_UNUSED_MS: u64 = 30_000;
/// What a kept answer counts beside its own bytes; in a snapshot it takes less.
pub const SESSION_ANSWER_OVERHEAD_BYTES: usize = 32;
/// Kept answers of one group that are lent to its sessions, bytes: enough for one that has all its
/// calls open with the longest answers, and half of it to spare, which stays for the others.
pub const SESSION_ANSWER_BYTES_MAX: usize = 130 * MIB;
/// Kept answers that a session may have whatever the others have, bytes: 64 MiB of all together.
pub const SESSION_OWN_ANSWER_BYTES: usize = 16 * KIB;

/// Recovery points kept while the budget allows.
pub const RECOVERY_POINTS: usize = 2;
/// A log is kept for followers and transfers up to so many times the bytes after which a snapshot
/// is due; whoever is further behind gets a snapshot.
pub const LOG_PIN_MARKS: u64 = 4;
/// Milliseconds that a broken transfer is kept at both ends, so that it can go on: time for a
/// restart of either.
pub const PARK_MS: u64 = 600_000;
/// Ticks that a replica whose log comes near the room of its next snapshot waits for a mark, before
/// it takes one where it is.
pub const OVERDUE_MARK_TICKS: u64 = 10;
/// Ticks between two snapshots that a replica tries where it is while it has too little room.
pub const SHORT_CAPTURE_TICKS: u64 = 100;
/// Ticks after a mark in which a replica waits there for a place among the captures of its host,
/// and applies nothing.
pub const MARK_PLACE_TICKS: u64 = 5;
/// Least ticks before one that found no place asks again, between marks; up to twice as many.
pub const PLACE_RETRY_TICKS: u64 = 10;
/// Marks that clients may ask for at once.
pub const MARK_REQUESTS_AT_ONCE: u32 = 8;
/// Ticks between two of them after that.
pub const MARK_REQUEST_TICKS: u64 = 20;
/// Requests that wait for a mark.
pub const MARK_REQUESTS_MAX: usize = 1_024;
/// Ticks after which a recovery point is read again before another is given up for it.
pub const PROOF_TICKS: u64 = 100;
/// Ticks between two requests for an object that this replica needs; doubled once all peers were
/// asked in vain.
pub const WANT_RETRY_TICKS: u64 = 20;
/// Doublings of that wait, at most: a minute.
pub const WANT_RETRY_DOUBLINGS_MAX: u32 = 5;
/// Ticks before a replica that its machine halted tries again; doubled each time.
pub const HALT_RETRY_TICKS: u64 = 100;
/// Doublings of that wait, at most: five minutes.
pub const HALT_RETRY_DOUBLINGS_MAX: u32 = 5;
/// While a follower is being sent a snapshot, the next one is due after so many times the usual.
pub const MARK_PATIENCE: u64 = 2;
/// Entries handed to the apply lane and not applied, above which a leader packs no more commands.
pub const APPLY_BACKLOG_ENTRIES_MAX: u64 = 65_536;
/// Bytes of such entries.
pub const APPLY_BACKLOG_BYTES_MAX: usize = 32 * MIB;
/// Answers that the apply lane gathers before it tells them, and that wait for the actor to take
/// them, bytes each; those of one entry may be more.
pub const APPLY_ANSWERS_BYTES_MAX: usize = 4 * MIB;
/// Bytes of log that a replica may have handed to its guest and not applied, once the log behind
/// its newest snapshot is at its bound: more than a leader's own may be behind, so that only a
/// replica that is slower than the group comes to it.
pub const APPLY_LAG_BYTES_MAX: u64 = 2 * APPLY_BACKLOG_BYTES_MAX as u64;
/// Entries kept behind the newest snapshot for followers that lag a little, unless configured.
pub const CATCH_UP_ENTRIES: u64 = 5_000;
/// Size of a log segment, bytes, unless configured.
pub const LOG_SEGMENT_BYTES: u64 = 64 * MIB as u64;
/// Smallest log segment that may be configured: two packs and a recovery state.
pub const LOG_SEGMENT_BYTES_MIN: u64 = 4 * MIB as u64;
/// Batches of the log begin at multiples of this, bytes: a page, which is what filesystems write at
/// once, so that no acknowledged byte is ever written again.
pub const LOG_BLOCK_BYTES: u32 = 4096;
/// Files that wait to be the next segments: one for what is under way when the other cannot be
/// replaced.
pub const LOG_SPARES: usize = 2;
/// Largest batch of the log, bytes.
pub const LOG_BATCH_BYTES_MAX: usize = 3 * MIB;
/// An idle log proves that its last batch is whole by an empty one after this time, ms.
pub const LOG_IDLE_SEAL_MS: u64 = 100;

/// Replicas in one configuration, learners included.
pub const REPLICAS_MAX: usize = 32;
/// Replicas whose process is remembered: members, those that were and those that will be.
pub const REPLICAS_SEEN_MAX: usize = 4 * REPLICAS_MAX;
/// Starts that a process may be ahead of another one of its replica: a day of a start each tenth of
/// a second. A count further ahead was never counted.
pub const BOOTS_AHEAD_MAX: u64 = 1 << 20;
/// Terms that a message may be ahead: an election each second for a century.
pub const TERMS_AHEAD_MAX: u64 = 1 << 32;
/// Group names: 1 to this many bytes of `[a-z0-9_-]`.
pub const GROUP_NAME_BYTES_MAX: usize = 64;
/// Configuration bytes handed to a guest's `init`.
pub const GUEST_CONFIG_BYTES_MAX: usize = 64 * KIB;

const _: () = assert!(
    2 * SESSION_OPEN_CALLS_MAX * (OUTCOME_BYTES_MAX + SESSION_ANSWER_OVERHEAD_BYTES)
        <= SESSION_ANSWER_BYTES_MAX
);
const _: () = assert!(COMMAND_BYTES_MAX + PACK_OVERHEAD_BYTES_MAX < PACK_BYTES_MAX);
const _: () = assert!(MEMORY_SOFT_PERCENT < MEMORY_RELIEF_PERCENT && MEMORY_RELIEF_PERCENT < 100);
const _: () = assert!(APPEND_BYTES_MAX as usize + PACK_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);
const _: () = assert!(SNAPSHOT_BLOCK_BYTES < GRPC_MESSAGE_BYTES_MAX);
const _: () = assert!(QUERY_ANSWER_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);
const _: () =
    assert!(HEARTBEAT_TICKS < ELECTION_TICKS_MIN && ELECTION_TICKS_MIN < ELECTION_TICKS_MAX);
const _: () = assert!(LEADERLESS_MS > 2 * ELECTION_TICKS_MAX as u64 * TICK_MS);
const _: () = assert!(LOG_BATCH_BYTES_MAX as u64 + 64 * 1024 < LOG_SEGMENT_BYTES_MIN);
const _: () = assert!(PACK_BYTES_MAX + MIB <= LOG_BATCH_BYTES_MAX);
