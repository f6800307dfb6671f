//! One machine and what the host keeps for it, which makes every call as the host does.

use super::Work;
use crate::native::{Call, Effects, during};
use crate::{
    Commands, Context, Exports, Failure, Outcome, SnapshotHeader, SnapshotReader, machine,
};

/// The longest digest, in bytes.
const DIGEST_BYTES_MAX: usize = 64;

/// A machine and its timer.
pub(super) struct Replica<M> {
    pub(super) machine: M,
    /// The time of the log that the timer is set to.
    pub(super) timer: Option<u64>,
}

/// Everything that can be seen of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// As many as there were commands.
    pub(super) outcomes: Vec<Outcome>,
    /// Topics and payloads.
    pub(super) events: Vec<(String, Vec<u8>)>,
    /// What the timer is set to afterwards.
    pub(super) timer: Option<u64>,
    /// The digest of the state afterwards, if the machine has one.
    pub(super) digest: Option<Vec<u8>>,
}

impl<M: Exports> Replica<M> {
    pub(super) fn init(ctx: &Context, config: &[u8]) -> Result<(Self, Done), Failure> {
        let (machine, effects) = during(Call::Init, None, || M::init(ctx, config));
        let mut replica = Self { machine: machine?, timer: None };
        let done = replica.ended(Vec::new(), effects);
        Ok((replica, done))
    }

    /// A replica restored from these bytes, as if they had been written at `at`.
    pub(super) fn restore(
        at: &Context,
        timer: Option<u64>,
        config: &[u8],
        mut bytes: &[u8],
    ) -> Result<Self, Failure> {
        let info = M::describe();
        let header = SnapshotHeader {
            writer_name: info.name.to_owned(),
            writer_version: info.version.to_owned(),
            format: info.snapshot_format,
            index: at.index,
            time_ms: at.time_ms,
        };
        let mut from = SnapshotReader::new(&mut bytes);
        let restore = || machine::restore(&header, config, &mut from);
        let (machine, _) = during(Call::Restore, timer, restore);
        Ok(Self { machine: machine?, timer })
    }

    #[track_caller]
    pub(super) fn execute(&mut self, ctx: &Context, work: &Work) -> Done {
        let machine = &mut self.machine;
        match work {
            Work::Commands(commands) => {
                let data = commands.concat();
                let mut end = 0;
                let ends: Vec<u32> = commands
                    .iter()
                    .map(|command| {
                        end += u32::try_from(command.len()).expect("a command has 1 MiB at most");
                        end
                    })
                    .collect();
                let apply = || machine::apply_entry(machine, ctx, Commands::new(&ends, &data));
                let (answers, effects) = during(Call::Apply, self.timer, apply);
                self.ended(answers.outcomes(), effects)
            }
            Work::Wake => {
                let wake = M::WAKE.expect("a timer is set only if `wake` is exported");
                let ((), effects) = during(Call::Wake, None, || wake(machine, ctx));
                self.ended(Vec::new(), effects)
            }
        }
    }

    pub(super) fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        during(Call::Query, self.timer, || self.machine.query(ctx, request)).0
    }

    #[track_caller]
    pub(super) fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let write = || machine::snapshot(&self.machine, &mut bytes);
        during(Call::Snapshot, self.timer, write).0.expect("a machine writes its state");
        bytes
    }

    #[track_caller]
    pub(super) fn digest(&self) -> Option<Vec<u8>> {
        let digest = M::DIGEST?;
        let bytes = during(Call::Digest, self.timer, || digest(&self.machine)).0;
        let length = bytes.len();
        assert!(length <= DIGEST_BYTES_MAX, "a digest of {length} bytes; the limit is 64");
        Some(bytes)
    }

    #[track_caller]
    fn ended(&mut self, outcomes: Vec<Outcome>, effects: Effects) -> Done {
        let Effects { events, timer } = effects;
        assert!(
            timer.is_none() || M::WAKE.is_some(),
            "the machine sets the timer and exports no `wake`: implement `Wake`, and write \
             `export!({}: wake)`",
            std::any::type_name::<M>(),
        );
        self.timer = timer;
        Done { outcomes, events, timer, digest: self.digest() }
    }
}
