//! What a raft entry of a group carries, byte for byte.
//!
//! ```text
//! entry          = version u8 (2) · kind u8 · body
//! bootstrap  (1) = module 32 · config bytes · cluster seed 16 · limits · initial voters
//! commands   (2) = time ms u64 · count u32 · calls
//! call           = session u64 · sequence u64 · lowest unanswered u64 · payload bytes
//! open       (3) = time ms u64 · nonce u64
//! checkpoint (4) = time ms u64 · reason u8
//! close      (5) = time ms u64 · session u64
//! wake       (6) = time ms u64 · set by u64
//! skip       (7) = time ms u64 · index u64
//! limits     (8) = time ms u64 · fuel of an entry u64 · fuel of a command u64 · memory bytes u64,
//!                each 0 if it stays as it is
//! freeze     (9) = time ms u64 · frozen u8
//! on fault  (10) = time ms u64 · skip u8
//! verdict   (11) = time ms u64 · index u64 · count u32 · replicas u64
//! upgrade   (12) = time ms u64 · module 32 · resume at u64, 0 if it is this entry
//! ```
//! An entry without data is raft's own (a new leader's first). Integers are little-endian; `bytes`
//! is prefixed by a u32 length.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Write};
use crate::ids::{ModuleId, ReplicaId};
use crate::limits;

const VERSION: u8 = 2;
const KIND_BOOTSTRAP: u8 = 1;
const KIND_COMMANDS: u8 = 2;
const KIND_OPEN: u8 = 3;
const KIND_CHECKPOINT: u8 = 4;
const KIND_CLOSE: u8 = 5;
const KIND_WAKE: u8 = 6;
const KIND_SKIP: u8 = 7;
const KIND_LIMITS: u8 = 8;
const KIND_FREEZE: u8 = 9;
const KIND_ON_FAULT: u8 = 10;
const KIND_VERDICT: u8 = 11;
const KIND_UPGRADE: u8 = 12;

/// One decoded entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryBody {
    /// An entry of raft's own: a new leader's first one, or one that replaces a refused change of
    /// configuration.
    Empty,
    /// Entry 1 of every group: everything besides commands that decides outcomes.
    Bootstrap(Bootstrap),
    Commands(Commands),
    /// Opens a session; the client drew the nonce, and the session's id depends on it.
    Open {
        time_ms: u64,
        nonce: u64,
    },
    /// Closes a session, and with it forgets its kept answers.
    Close {
        time_ms: u64,
        session: u64,
    },
    /// Every replica takes a snapshot at this index, or counts why it did not.
    Checkpoint {
        time_ms: u64,
        reason: CheckpointReason,
    },
    /// Calls the guest if the deadline that the entry at index `set_by` set is pending and reached.
    Wake {
        time_ms: u64,
        set_by: u64,
    },
    /// The entry at `index`, which is an earlier one, does not reach the guest:
    /// [`crate::amendment`].
    Skip {
        time_ms: u64,
        index: u64,
    },
    /// The group has these limits from now on: [`crate::amendment`].
    Limits {
        time_ms: u64,
        limits: Limits,
    },
    /// While the group is frozen, no command and no wake-up reaches the guest.
    Freeze {
        time_ms: u64,
        frozen: bool,
    },
    /// Says what becomes of an entry at which every voter halts.
    OnFault {
        time_ms: u64,
        on_fault: OnFault,
    },
    /// A majority of the voters took equal snapshots at `index`, and these replicas took others:
    /// their states have diverged.
    Verdict {
        time_ms: u64,
        index: u64,
        against: BTreeSet<ReplicaId>,
    },
    /// The guest's state moves into one of this module, which applies all that follows. If
    /// `resume_at` is not 0, it does so before the entry at that index, which is an earlier one:
    /// [`crate::amendment`].
    Upgrade {
        time_ms: u64,
        module: ModuleId,
        resume_at: u64,
    },
}

/// What becomes of an entry at which every voter halts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum OnFault {
    /// The group stays halted until an operator acts.
    #[default]
    Halt,
    /// The leader skips the entry.
    Skip,
}

/// A change of a group's limits; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// As in [`Profile`].
    pub fuel_entry: Option<u64>,
    pub fuel_command: Option<u64>,
    pub memory_bytes: Option<u64>,
}

/// The bootstrap record. Limits that decide outcomes come from here, never from a node's
/// configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bootstrap {
    pub module: ModuleId,
    /// Handed to the guest's `init` and `restore`.
    pub config: Bytes,
    /// The root from which every entry's `seed` is derived.
    pub seed: [u8; 16],
    pub profile: Profile,
    /// The voters of the first configuration.
    pub initial_voters: Vec<ReplicaId>,
}

/// The limits and versions on which outcomes depend. A replica that cannot honour them applies
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Fuel for applying an entry, plus [`Profile::fuel_command`] for each command in it.
    pub fuel_entry: u64,
    pub fuel_command: u64,
    /// Most bytes that all the guest's linear memories have together.
    pub memory_bytes: u64,
    /// Longest outcome of a command, bytes; at most [`limits::OUTCOME_BYTES_MAX`], because sessions
    /// keep no longer ones.
    pub outcome_bytes: u32,
    /// Most bytes of events that the group keeps; at most [`limits::EVENT_WINDOW_BYTES_MAX`].
    pub event_window_bytes: u32,
    /// The table of fuel costs by which all replicas count.
    pub fuel_table: u32,
    /// The major version of wasmtime; 0 for a native guest.
    pub engine_major: u32,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            fuel_entry: 5_000_000_000,
            fuel_command: 50_000_000,
            memory_bytes: 1 << 30,
            outcome_bytes: limits::OUTCOME_BYTES_MAX as u32,
            event_window_bytes: limits::EVENT_WINDOW_BYTES,
            fuel_table: 2,
            engine_major: 48,
        }
    }
}

impl Profile {
    /// The same profile with these limits.
    pub fn with(&self, limits: &Limits) -> Self {
        Self {
            fuel_entry: limits.fuel_entry.unwrap_or(self.fuel_entry),
            fuel_command: limits.fuel_command.unwrap_or(self.fuel_command),
            memory_bytes: limits.memory_bytes.unwrap_or(self.memory_bytes),
            ..*self
        }
    }

    /// The same profile with those of these limits that are higher.
    pub fn raised_to(&self, limits: &Limits) -> Self {
        let changed = self.with(limits);
        Self {
            fuel_entry: self.fuel_entry.max(changed.fuel_entry),
            fuel_command: self.fuel_command.max(changed.fuel_command),
            memory_bytes: self.memory_bytes.max(changed.memory_bytes),
            ..*self
        }
    }
}

/// Commands that the leader put into one entry; one guest call applies them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commands {
    /// The leader's wall clock, milliseconds since 1970; clamped at apply.
    pub time_ms: u64,
    pub calls: Vec<Call>,
}

/// One command, with what makes retrying it safe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// 0: outside of any session, so the command is applied each time it is committed.
    pub session: u64,
    pub sequence: u64,
    /// The client has the answers below this sequence: they need not be kept.
    pub lowest_unanswered: u64,
    pub payload: Bytes,
}

/// Why a checkpoint was proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckpointReason {
    Entries,
    LogBytes,
    Learner,
    Operator,
    /// A replica's memory is high: the snapshot shows how much memory a rebuild would free.
    Memory,
}

/// Bytes that an entry counts against the limits of windows and queues.
pub fn footprint(entry: &raft::eraftpb::Entry) -> usize {
    entry.data.len() + entry.context.len() + 48
}

/// Whether an entry's data is a checkpoint. Cheap enough for every entry.
pub fn is_checkpoint(data: &[u8]) -> bool {
    matches!(data, [VERSION, KIND_CHECKPOINT, ..])
}

/// Whether an entry is held back while the disk is full: it carries commands, opens or closes a
/// session, or wakes the guest.
pub fn waits_for_space(data: &[u8]) -> bool {
    matches!(data, [VERSION, KIND_COMMANDS | KIND_OPEN | KIND_CLOSE | KIND_WAKE, ..])
}

/// Whether an entry is an operator's order. Cheap enough for every entry.
pub fn is_order(data: &[u8]) -> bool {
    matches!(data, [VERSION, KIND_SKIP..=KIND_ON_FAULT | KIND_UPGRADE, ..])
}

/// Whether an entry says that replicas have diverged. Cheap enough for every entry.
pub fn is_verdict(data: &[u8]) -> bool {
    matches!(data, [VERSION, KIND_VERDICT, ..])
}

/// Whether an entry calls the guest, and so may change its state.
pub fn calls_guest(data: &[u8]) -> bool {
    matches!(data, [VERSION, KIND_COMMANDS | KIND_WAKE, ..])
}

impl EntryBody {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_hint());
        match self {
            Self::Empty => return out,
            Self::Bootstrap(bootstrap) => {
                out.put_raw(&[VERSION, KIND_BOOTSTRAP]);
                bootstrap.encode(&mut out);
            }
            Self::Commands(commands) => {
                begin(&mut out, KIND_COMMANDS, commands.time_ms);
                out.put_count_within(commands.calls.len(), limits::ENTRY_COMMANDS_MAX);
                for call in &commands.calls {
                    out.put_u64(call.session);
                    out.put_u64(call.sequence);
                    out.put_u64(call.lowest_unanswered);
                    out.put_bytes_within(&call.payload, limits::COMMAND_BYTES_MAX);
                }
            }
            Self::Open { time_ms, nonce } => {
                begin(&mut out, KIND_OPEN, *time_ms);
                out.put_u64(*nonce);
            }
            Self::Close { time_ms, session } => {
                begin(&mut out, KIND_CLOSE, *time_ms);
                out.put_u64(*session);
            }
            Self::Checkpoint { time_ms, reason } => {
                begin(&mut out, KIND_CHECKPOINT, *time_ms);
                out.put_u8(*reason as u8);
            }
            Self::Wake { time_ms, set_by } => {
                begin(&mut out, KIND_WAKE, *time_ms);
                out.put_u64(*set_by);
            }
            Self::Verdict { time_ms, index, against } => {
                begin(&mut out, KIND_VERDICT, *time_ms);
                out.put_u64(*index);
                out.put_count_within(against.len(), limits::REPLICAS_MAX);
                against.iter().for_each(|replica| out.put_u64(replica.0));
            }
            Self::Skip { time_ms, index } => {
                begin(&mut out, KIND_SKIP, *time_ms);
                out.put_u64(*index);
            }
            Self::Limits { time_ms, limits } => {
                begin(&mut out, KIND_LIMITS, *time_ms);
                limits.encode(&mut out);
            }
            Self::Freeze { time_ms, frozen } => {
                begin(&mut out, KIND_FREEZE, *time_ms);
                out.put_u8(u8::from(*frozen));
            }
            Self::OnFault { time_ms, on_fault } => {
                begin(&mut out, KIND_ON_FAULT, *time_ms);
                on_fault.encode(&mut out);
            }
            Self::Upgrade { time_ms, module, resume_at } => {
                begin(&mut out, KIND_UPGRADE, *time_ms);
                out.put_raw(&module.0);
                out.put_u64(*resume_at);
            }
        }
        out
    }

    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self::Empty);
        }
        let mut reader = Reader::new(bytes, "raft entry");
        reader.version(VERSION)?;
        let body = match reader.u8()? {
            KIND_BOOTSTRAP => Self::Bootstrap(Bootstrap::decode(&mut reader)?),
            KIND_COMMANDS => Self::Commands(decode_commands(&mut reader)?),
            KIND_OPEN => Self::Open { time_ms: reader.u64()?, nonce: reader.u64()? },
            KIND_CLOSE => Self::Close { time_ms: reader.u64()?, session: reader.u64()? },
            KIND_CHECKPOINT => {
                Self::Checkpoint { time_ms: reader.u64()?, reason: decode_reason(&mut reader)? }
            }
            KIND_WAKE => Self::Wake { time_ms: reader.u64()?, set_by: reader.u64()? },
            KIND_SKIP => Self::Skip { time_ms: reader.u64()?, index: reader.u64()? },
            KIND_LIMITS => {
                Self::Limits { time_ms: reader.u64()?, limits: Limits::decode(&mut reader)? }
            }
            KIND_FREEZE => Self::Freeze { time_ms: reader.u64()?, frozen: reader.flag()? },
            KIND_ON_FAULT => {
                let time_ms = reader.u64()?;
                Self::OnFault { time_ms, on_fault: OnFault::decode(&mut reader)? }
            }
            KIND_VERDICT => {
                let (time_ms, index) = (reader.u64()?, reader.u64()?);
                let count = reader.count(limits::REPLICAS_MAX)?;
                let against = (0..count).map(|_| reader.u64().map(ReplicaId));
                Self::Verdict { time_ms, index, against: against.collect::<Result<_, _>>()? }
            }
            KIND_UPGRADE => Self::Upgrade {
                time_ms: reader.u64()?,
                module: ModuleId(reader.array()?),
                resume_at: reader.u64()?,
            },
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.finish()?;
        Ok(body)
    }

    fn encoded_hint(&self) -> usize {
        match self {
            Self::Commands(commands) => {
                16 + commands.calls.iter().map(|c| c.payload.len() + 28).sum::<usize>()
            }
            _other => 256,
        }
    }
}

/// All entries but the first begin with their kind and the leader's time.
fn begin(out: &mut Vec<u8>, kind: u8, time_ms: u64) {
    out.put_raw(&[VERSION, kind]);
    out.put_u64(time_ms);
}

fn decode_commands(reader: &mut Reader) -> Result<Commands, DecodeError> {
    let time_ms = reader.u64()?;
    let count = reader.count(limits::ENTRY_COMMANDS_MAX)?;
    let mut calls = Vec::with_capacity(count);
    for _ in 0..count {
        calls.push(Call {
            session: reader.u64()?,
            sequence: reader.u64()?,
            lowest_unanswered: reader.u64()?,
            payload: reader.bytes(limits::COMMAND_BYTES_MAX)?,
        });
    }
    Ok(Commands { time_ms, calls })
}

fn decode_reason(reader: &mut Reader) -> Result<CheckpointReason, DecodeError> {
    Ok(match reader.u8()? {
        0 => CheckpointReason::Entries,
        1 => CheckpointReason::LogBytes,
        2 => CheckpointReason::Learner,
        3 => CheckpointReason::Operator,
        4 => CheckpointReason::Memory,
        other => return Err(reader.unknown(u64::from(other))),
    })
}

impl OnFault {
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self == Self::Skip));
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(if reader.flag()? { Self::Skip } else { Self::Halt })
    }
}

impl Limits {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { fuel_entry, fuel_command, memory_bytes } = *self;
        for limit in [fuel_entry, fuel_command, memory_bytes] {
            out.put_u64(limit.unwrap_or(0));
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut limit = || reader.u64().map(|limit| Some(limit).filter(|limit| *limit > 0));
        Ok(Self { fuel_entry: limit()?, fuel_command: limit()?, memory_bytes: limit()? })
    }
}

impl Bootstrap {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_raw(&self.module.0);
        out.put_bytes_within(&self.config, limits::GUEST_CONFIG_BYTES_MAX);
        out.put_raw(&self.seed);
        self.profile.encode(out);
        out.put_count_within(self.initial_voters.len(), limits::REPLICAS_MAX);
        for voter in &self.initial_voters {
            out.put_u64(voter.0);
        }
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let module = ModuleId(reader.array()?);
        let config = reader.bytes(limits::GUEST_CONFIG_BYTES_MAX)?;
        let seed = reader.array()?;
        let profile = Profile::decode(reader)?;
        let count = reader.count(limits::REPLICAS_MAX)?;
        let initial_voters =
            (0..count).map(|_| reader.u64().map(ReplicaId)).collect::<Result<_, _>>()?;
        Ok(Self { module, config, seed, profile, initial_voters })
    }
}

impl Profile {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.fuel_entry);
        out.put_u64(self.fuel_command);
        out.put_u64(self.memory_bytes);
        out.put_number_within(self.outcome_bytes, limits::OUTCOME_BYTES_MAX as u32);
        out.put_number_within(self.event_window_bytes, limits::EVENT_WINDOW_BYTES_MAX);
        out.put_u32(self.fuel_table);
        out.put_u32(self.engine_major);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            fuel_entry: reader.u64()?,
            fuel_command: reader.u64()?,
            memory_bytes: reader.u64()?,
            outcome_bytes: reader.number(limits::OUTCOME_BYTES_MAX as u32)?,
            event_window_bytes: reader.number(limits::EVENT_WINDOW_BYTES_MAX)?,
            fuel_table: reader.u32()?,
            engine_major: reader.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: EntryBody) {
        let bytes = Bytes::from(body.encode());
        assert_eq!(EntryBody::decode(bytes.clone()), Ok(body.clone()));
        for cut in 1..bytes.len() {
            assert!(EntryBody::decode(bytes.slice(..cut)).is_err(), "cut at {cut} of {body:?}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(EntryBody::decode(longer.into()).is_err(), "a byte too many in {body:?}");
    }

    #[test]
    fn bodies_survive_the_wire_and_cuts_are_refused() {
        let call = |sequence| Call {
            session: 7,
            sequence,
            lowest_unanswered: 2,
            payload: Bytes::from_static(b"set a b"),
        };
        check(EntryBody::Commands(Commands { time_ms: 12, calls: vec![call(3), call(4)] }));
        check(EntryBody::Open { time_ms: 1, nonce: 2 });
        check(EntryBody::Close { time_ms: 1, session: 2 });
        check(EntryBody::Wake { time_ms: 1, set_by: 2 });
        check(EntryBody::Skip { time_ms: 1, index: 2 });
        let against = BTreeSet::from([ReplicaId(3), ReplicaId(4)]);
        check(EntryBody::Verdict { time_ms: 1, index: 2, against });
        check(EntryBody::Upgrade { time_ms: 1, module: ModuleId([2; 32]), resume_at: 3 });
        check(EntryBody::Limits {
            time_ms: 1,
            limits: Limits { memory_bytes: Some(9), ..Limits::default() },
        });
        check(EntryBody::Freeze { time_ms: 1, frozen: true });
        check(EntryBody::OnFault { time_ms: 1, on_fault: OnFault::Skip });
        check(EntryBody::Checkpoint { time_ms: 1, reason: CheckpointReason::Learner });
        check(EntryBody::Checkpoint { time_ms: 1, reason: CheckpointReason::Memory });
        check(EntryBody::Bootstrap(Bootstrap {
            module: ModuleId([3; 32]),
            config: Bytes::from_static(b"cfg"),
            seed: [9; 16],
            profile: Profile::default(),
            initial_voters: vec![ReplicaId(1), ReplicaId(2)],
        }));
    }

    fn bootstrap(outcome_bytes: u32) -> EntryBody {
        EntryBody::Bootstrap(Bootstrap {
            module: ModuleId([3; 32]),
            config: Bytes::new(),
            seed: [9; 16],
            profile: Profile { outcome_bytes, ..Profile::default() },
            initial_voters: vec![ReplicaId(1)],
        })
    }

    /// If a profile allowed longer outcomes, sessions would keep them, and a snapshot that holds
    /// one could not be restored.
    #[test]
    fn longer_outcomes_than_sessions_keep_are_not_agreed_on() {
        let most = limits::OUTCOME_BYTES_MAX as u32;
        check(bootstrap(most));
        let mut bytes = bootstrap(most).encode();
        let place = bytes.windows(4).position(|bytes| *bytes == most.to_le_bytes());
        bytes[place.expect("the encoding contains the limit")] += 1;
        assert!(matches!(EntryBody::decode(bytes.into()), Err(DecodeError::TooLarge { .. })));
    }

    #[test]
    #[should_panic(expected = "65537 exceeds the limit of 65536")]
    fn longer_outcomes_than_sessions_keep_are_not_written() {
        bootstrap(limits::OUTCOME_BYTES_MAX as u32 + 1).encode();
    }

    #[test]
    fn the_bytes_of_an_open_entry_are_golden() {
        let bytes = EntryBody::Open { time_ms: 0x0102, nonce: 3 }.encode();
        assert_eq!(bytes, [2, 3, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }
}
