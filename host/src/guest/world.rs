//! The exports of the world of `wit/fsm.wit`: the values that the host passes to a guest, and the
//! values that it takes back, each with its bound.
//!
//! - Names and types are compared with a component's when it is loaded: a component that does not
//!   match is refused then, instead of trapping later.
//! - Commands are passed to the guest from the buffers in which they arrived.
//! - Values from a guest are cut as they come in ([`lift`](super::lift)): so no length is a fault,
//!   and the host copies at most [`limits::HOSTCALL_BYTES_MAX`] in one call.
//!
//! The imports are in [`imports`](super::imports).

use bytes::Bytes;
use lockstep_core::limits;
use wasmtime::Store;
use wasmtime::component::{
    ComponentExportIndex, ComponentNamedList, ComponentType, Func, InstancePre, Lift, Lower,
    TypedFunc,
};

use super::check::{EXPORT, interface};
use super::imports::HostState;
use super::lift::{AtMost, Cut, ListOf, Text};
use super::{GuestInfo, NoAnswer, Outcome, SnapshotHeader};

/// Longest text of a failure, bytes; the rest is cut off.
pub(crate) const FAILURE_BYTES_MAX: usize = 2 << 10;
/// Bytes that are read of a name and of a version: far more than either may have.
const INFO_BYTES_MAX: usize = 256;

/// A guest sends these bytes, followed by a length as a u64, in place of an answer that is too long
/// to be passed on. The guest's SDK has the same bytes.
const TOO_LONG_MARKER: [u8; 16] = [
    0xd3, 0x1e, 0x9a, 0x47, 0x05, 0xc8, 0x6b, 0xf2, 0x7d, 0x30, 0xb4, 0x8c, 0xe9, 0x51, 0x26, 0xaf,
];

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
struct Context {
    index: u64,
    #[component(name = "time-ms")]
    time_ms: u64,
    seed: (u64, u64),
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
struct Command<'a> {
    payload: &'a [u8],
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
struct Header<'a> {
    #[component(name = "writer-name")]
    writer_name: &'a str,
    #[component(name = "writer-version")]
    writer_version: &'a str,
    format: u32,
    index: u64,
    #[component(name = "time-ms")]
    time_ms: u64,
}

type Answer = Cut<AtMost<{ limits::OUTCOME_BYTES_MAX }>>;
type Reply = AtMost<{ limits::QUERY_ANSWER_BYTES_MAX }>;
type Replied = Result<Cut<Reply>, Cut<Reply>>;

#[derive(ComponentType, Lift)]
#[component(variant)]
enum Told {
    #[component(name = "ok")]
    Ok(Answer),
    #[component(name = "rejected")]
    Rejected(Answer),
}

type Words = Cut<Text<FAILURE_BYTES_MAX>>;

/// Why `init`, `snapshot` or `restore` could not do what was asked.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Failure {
    #[component(name = "invalid-config")]
    InvalidConfig(Words),
    #[component(name = "unsupported-format")]
    UnsupportedFormat(u32),
    #[component(name = "corrupt")]
    Corrupt(Words),
    #[component(name = "other")]
    Other(Words),
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct Info {
    name: Cut<Text<INFO_BYTES_MAX>>,
    version: Cut<Text<INFO_BYTES_MAX>>,
    #[component(name = "snapshot-format")]
    snapshot_format: u32,
    #[component(name = "oldest-readable-format")]
    oldest_readable_format: u32,
}

type Outcomes = Cut<ListOf<Told, { limits::ENTRY_COMMANDS_MAX }>>;

type Init<'a> = (Context, &'a [u8]);
type Apply<'a> = (Context, &'a [Command<'a>]);
type Query<'a> = (Context, &'a [u8]);
type Restore<'a> = (Header<'a>, &'a [u8]);
type Done = (Result<(), Failure>,);

/// The exports of the world, found in a component.
#[derive(Clone)]
pub(crate) struct MachinePre {
    pre: InstancePre<HostState>,
    exports: [ComponentExportIndex; FUNCTIONS.len()],
}

/// The names of the world's functions, in the order of [`Machine`]'s fields.
const FUNCTIONS: [&str; 6] = ["describe", "init", "apply", "query", "snapshot", "restore"];

/// The exports of a live instance.
pub(crate) struct Machine {
    describe: Func,
    init: Func,
    apply: Func,
    query: Func,
    snapshot: Func,
    restore: Func,
}

impl MachinePre {
    pub(crate) fn new(pre: InstancePre<HostState>) -> wasmtime::Result<Self> {
        let component = pre.component();
        let missing = |what: &str| wasmtime::Error::msg(format!("it exports no `{what}`"));
        let machine = component.get_export_index(None, interface(EXPORT));
        let machine = machine.ok_or_else(|| missing(EXPORT))?;
        let function = |name: &str| {
            let found = component.get_export_index(Some(&machine), name);
            found.ok_or_else(|| missing(name))
        };
        let [a, b, c, d, e, f] = FUNCTIONS.map(function);
        let exports = [a?, b?, c?, d?, e?, f?];
        Ok(Self { pre, exports })
    }

    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        self.pre.engine()
    }

    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Machine> {
        let instance = self.pre.instantiate(&mut *store)?;
        let mut function = |at: usize| {
            let not_one = || wasmtime::Error::msg(format!("`{}` is not a function", FUNCTIONS[at]));
            instance.get_func(&mut *store, self.exports[at]).ok_or_else(not_one)
        };
        Ok(Machine {
            describe: function(0)?,
            init: function(1)?,
            apply: function(2)?,
            query: function(3)?,
            snapshot: function(4)?,
            restore: function(5)?,
        })
    }
}

impl Machine {
    /// Whether every function has the world's type.
    pub(crate) fn check(&self, store: &mut Store<HostState>) -> wasmtime::Result<()> {
        typed::<(), (Info,)>(store, self.describe, "describe")?;
        typed::<Init<'_>, Done>(store, self.init, "init")?;
        typed::<Apply<'_>, (Outcomes,)>(store, self.apply, "apply")?;
        typed::<Query<'_>, (Replied,)>(store, self.query, "query")?;
        typed::<(), Done>(store, self.snapshot, "snapshot")?;
        typed::<Restore<'_>, Done>(store, self.restore, "restore")?;
        Ok(())
    }

    pub(crate) fn describe(&self, store: &mut Store<HostState>) -> wasmtime::Result<GuestInfo> {
        let function = typed::<(), (Info,)>(store, self.describe, "describe")?;
        let (info,) = function.call(store, ())?;
        Ok(GuestInfo {
            name: info.name.0.text,
            version: info.version.0.text,
            snapshot_format: info.snapshot_format,
            oldest_readable_format: info.oldest_readable_format,
        })
    }

    pub(crate) fn init(
        &self,
        store: &mut Store<HostState>,
        ctx: super::Context,
        config: &[u8],
    ) -> wasmtime::Result<Result<(), Failure>> {
        let function = typed::<Init<'_>, Done>(store, self.init, "init")?;
        Ok(function.call(store, (ctx.into(), config))?.0)
    }

    /// The outcomes; `Err` has their number if it exceeds the most commands that an entry may have.
    pub(crate) fn apply(
        &self,
        store: &mut Store<HostState>,
        ctx: super::Context,
        commands: &[Bytes],
    ) -> wasmtime::Result<Result<Vec<Outcome>, usize>> {
        let lent: Vec<_> = commands.iter().map(|payload| Command { payload }).collect();
        let function = typed::<Apply<'_>, (Outcomes,)>(store, self.apply, "apply")?;
        let (Cut(outcomes),) = function.call(store, (ctx.into(), &lent))?;
        Ok(match outcomes {
            ListOf::Whole(told) => Ok(told.into_iter().map(Outcome::from).collect()),
            ListOf::TooLong(count) => Err(count),
        })
    }

    pub(crate) fn query(
        &self,
        store: &mut Store<HostState>,
        ctx: super::Context,
        request: &[u8],
    ) -> wasmtime::Result<Result<Bytes, NoAnswer>> {
        let function = typed::<Query<'_>, (Replied,)>(store, self.query, "query")?;
        Ok(match function.call(store, (ctx.into(), request))?.0 {
            Ok(Cut(Reply::Whole(answer))) => Ok(answer.into()),
            Err(Cut(Reply::Whole(reason))) => Err(NoAnswer::Rejected(reason.into())),
            Ok(Cut(Reply::TooLong(bytes))) | Err(Cut(Reply::TooLong(bytes))) => {
                Err(NoAnswer::TooLong { bytes: bytes as u64 })
            }
        })
    }

    pub(crate) fn snapshot(
        &self,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<Result<(), Failure>> {
        let function = typed::<(), Done>(store, self.snapshot, "snapshot")?;
        Ok(function.call(store, ())?.0)
    }

    pub(crate) fn restore(
        &self,
        store: &mut Store<HostState>,
        header: &SnapshotHeader,
        config: &[u8],
    ) -> wasmtime::Result<Result<(), Failure>> {
        let function = typed::<Restore<'_>, Done>(store, self.restore, "restore")?;
        let header = Header {
            writer_name: &header.writer_name,
            writer_version: &header.writer_version,
            format: header.format,
            index: header.index,
            time_ms: header.time_ms,
        };
        Ok(function.call(store, (header, config))?.0)
    }
}

/// The function with its types, which are compared anew at each call: the type of the parameters
/// contains the lifetime of what they borrow.
fn typed<Parameters, Results>(
    store: &mut Store<HostState>,
    function: Func,
    name: &str,
) -> wasmtime::Result<TypedFunc<Parameters, Results>>
where
    Parameters: ComponentNamedList + Lower,
    Results: ComponentNamedList + Lift,
{
    function.typed(store).map_err(|error| error.context(format!("function `{name}`")))
}

impl From<super::Context> for Context {
    fn from(ctx: super::Context) -> Self {
        Self { index: ctx.index, time_ms: ctx.time_ms, seed: ctx.seed }
    }
}

impl From<Told> for Outcome {
    fn from(told: Told) -> Self {
        match told {
            Told::Ok(Cut(AtMost::Whole(answer))) => Self::Ok(answer.into()),
            Told::Rejected(Cut(AtMost::Whole(reason))) => match told_length(&reason) {
                Some(bytes) => Self::TooLong { bytes },
                None => Self::Rejected(reason.into()),
            },
            Told::Ok(Cut(AtMost::TooLong(bytes))) | Told::Rejected(Cut(AtMost::TooLong(bytes))) => {
                Self::TooLong { bytes: bytes as u64 }
            }
        }
    }
}

/// If the reason is the marker with a length: that length, of an answer that was too long for the
/// guest to pass. A length within the limit does not count: such a reason is the guest's own.
fn told_length(reason: &[u8]) -> Option<u64> {
    let length = reason.strip_prefix(&TOO_LONG_MARKER)?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    (length > limits::OUTCOME_BYTES_MAX as u64).then_some(length)
}

impl Failure {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::InvalidConfig(why) => format!("invalid configuration: {}", why.0.text),
            Self::UnsupportedFormat(format) => {
                format!("it does not read snapshots of format {format}")
            }
            Self::Corrupt(why) => format!("corrupt snapshot: {}", why.0.text),
            Self::Other(why) => why.0.text.clone(),
        }
    }
}

const _: () = assert!(
    limits::HOSTCALL_BYTES_MAX
        >= limits::ENTRY_COMMANDS_MAX * (limits::OUTCOME_BYTES_MAX + size_of::<Told>())
);
const _: () = assert!(limits::HOSTCALL_BYTES_MAX >= limits::QUERY_ANSWER_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// The marker stands for an answer that is too long, and for nothing else.
    #[test]
    fn a_length_is_told_by_the_marker_alone() {
        let check = |length: usize, behind: &[u8], expect: Option<u64>| {
            let told = [&TOO_LONG_MARKER[..], &(length as u64).to_le_bytes(), behind].concat();
            assert_eq!(told_length(&told), expect, "{length} and {} bytes", behind.len());
        };
        check(limits::OUTCOME_BYTES_MAX + 1, b"", Some(65_537));
        check(usize::MAX, b"", Some(u64::MAX));
        check(limits::OUTCOME_BYTES_MAX, b"", None);
        check(1 << 20, b".", None);
        assert_eq!(told_length(&TOO_LONG_MARKER), None);
        assert_eq!(told_length(b"not that"), None);
    }
}
