//! The exports of the world of `wit/fsm.wit`: the values that the host passes to a guest, and the
//! values that it takes back, each with its bound.
//!
//! - Names and types are compared with a component's when it is loaded: a component that does not
//!   match is refused then, instead of trapping later.
//! - Commands and outcomes cross in columns ([`EntryFunc`], [`Columns`]): two allocations in the
//!   guest for an entry, instead of one for each command.
//! - Values from a guest are cut as they come in ([`lift`](super::lift)): so no length is a fault,
//!   and the host copies at most [`limits::HOSTCALL_BYTES_MAX`] in one call.
//!
//! The imports are in [`imports`](super::imports).

use std::cell::OnceCell;

use bytes::Bytes;
use lockstep_core::limits;
use wasmtime::Store;
use wasmtime::component::{
    ComponentExportIndex, ComponentNamedList, ComponentType, Func, InstancePre, Lift, Lower,
    TypedFunc,
};

use super::check::{DIGEST, EXPORT, SELF_TEST, WAKE, interface};
use super::imports::HostState;
use super::lift::{AtMost, Columns, Cut, EntryFunc, Text};
use super::{GuestInfo, NoAnswer, SnapshotHeader};

/// Longest text of a failure, bytes; the rest is cut off.
pub(crate) const FAILURE_BYTES_MAX: usize = 2 << 10;
/// Bytes that are read of a name and of a version: far more than either may have.
const INFO_BYTES_MAX: usize = 256;

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

type Reply = AtMost<{ limits::QUERY_ANSWER_BYTES_MAX }>;
type Replied = Result<Cut<Reply>, Cut<Reply>>;

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

/// The most bytes of a guest's digest; a longer one is a fault.
pub(crate) const DIGEST_BYTES_MAX: usize = 64;
type Digested = Cut<AtMost<DIGEST_BYTES_MAX>>;

#[derive(ComponentType, Lift)]
#[component(record)]
struct Claims {
    #[component(name = "independent-of-packing")]
    independent_of_packing: bool,
}

type Init<'a> = (Context, &'a [u8]);
type Apply = EntryFunc<Context, (Columns,)>;
type Query<'a> = (Context, &'a [u8]);
type Restore<'a> = (Header<'a>, &'a [u8]);
type Done = (Result<(), Failure>,);

/// The exports of the world, found in a component.
#[derive(Clone)]
pub(crate) struct MachinePre {
    pre: InstancePre<HostState>,
    exports: Exports<ComponentExportIndex>,
}

/// The exports of a live instance.
pub(crate) struct Machine {
    exports: Exports<Func>,
    /// `apply`, once its types have been compared.
    apply: OnceCell<Apply>,
}

/// The functions that a component exports, each as an `F`.
#[derive(Clone, Copy)]
struct Exports<F> {
    describe: F,
    init: F,
    apply: F,
    query: F,
    snapshot: F,
    restore: F,
    wake: Option<F>,
    digest: Option<F>,
    self_test: Option<SelfTest<F>>,
}

#[derive(Clone, Copy)]
struct SelfTest<F> {
    claim: F,
    command: F,
    query: F,
}

impl<F> Exports<F> {
    /// Finds every function by its name; an interface that is optional is searched only if `has`
    /// finds it.
    fn find<I>(
        has: impl Fn(&str) -> Option<I>,
        mut function: impl FnMut(&I, &str) -> wasmtime::Result<F>,
    ) -> wasmtime::Result<Self> {
        let none = || wasmtime::Error::msg(format!("it exports no `{EXPORT}`"));
        let machine = has(EXPORT).ok_or_else(none)?;
        let mut one = |interface: &str, name: &str| {
            has(interface).map(|found| function(&found, name)).transpose()
        };
        let (wake, digest) = (one(WAKE, "wake")?, one(DIGEST, "digest")?);
        let self_test = match has(SELF_TEST) {
            Some(found) => Some(SelfTest {
                claim: function(&found, "claim")?,
                command: function(&found, "command")?,
                query: function(&found, "query")?,
            }),
            None => None,
        };
        Ok(Self {
            describe: function(&machine, "describe")?,
            init: function(&machine, "init")?,
            apply: function(&machine, "apply")?,
            query: function(&machine, "query")?,
            snapshot: function(&machine, "snapshot")?,
            restore: function(&machine, "restore")?,
            wake,
            digest,
            self_test,
        })
    }
}

impl MachinePre {
    pub(crate) fn new(pre: InstancePre<HostState>) -> wasmtime::Result<Self> {
        let component = pre.component();
        let has = |name: &str| component.get_export_index(None, interface(name));
        let exports = Exports::find(has, |found: &ComponentExportIndex, name| {
            let missing = || wasmtime::Error::msg(format!("it exports no `{name}`"));
            component.get_export_index(Some(found), name).ok_or_else(missing)
        })?;
        Ok(Self { pre, exports })
    }

    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        self.pre.engine()
    }

    pub(crate) fn wakes(&self) -> bool {
        self.exports.wake.is_some()
    }

    pub(crate) fn has_self_test(&self) -> bool {
        self.exports.self_test.is_some()
    }

    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Machine> {
        let instance = self.pre.instantiate(&mut *store)?;
        let mut function = |at: ComponentExportIndex, name: &str| {
            let not_one = || wasmtime::Error::msg(format!("`{name}` is not a function"));
            instance.get_func(&mut *store, at).ok_or_else(not_one)
        };
        let found = self.exports;
        let self_test = match found.self_test {
            Some(SelfTest { claim, command, query }) => Some(SelfTest {
                claim: function(claim, "claim")?,
                command: function(command, "command")?,
                query: function(query, "query")?,
            }),
            None => None,
        };
        let exports = Exports {
            describe: function(found.describe, "describe")?,
            init: function(found.init, "init")?,
            apply: function(found.apply, "apply")?,
            query: function(found.query, "query")?,
            snapshot: function(found.snapshot, "snapshot")?,
            restore: function(found.restore, "restore")?,
            wake: found.wake.map(|at| function(at, "wake")).transpose()?,
            digest: found.digest.map(|at| function(at, "digest")).transpose()?,
            self_test,
        };
        Ok(Machine { exports, apply: OnceCell::new() })
    }
}

impl Machine {
    /// Whether every function has the world's type.
    pub(crate) fn check(&self, store: &mut Store<HostState>) -> wasmtime::Result<()> {
        let exports = &self.exports;
        typed::<(), (Info,)>(store, exports.describe, "describe")?;
        typed::<Init<'_>, Done>(store, exports.init, "init")?;
        self.typed_apply(store)?;
        typed::<Query<'_>, (Replied,)>(store, exports.query, "query")?;
        typed::<(), Done>(store, exports.snapshot, "snapshot")?;
        typed::<Restore<'_>, Done>(store, exports.restore, "restore")?;
        if let Some(wake) = exports.wake {
            typed::<(Context,), ()>(store, wake, "wake")?;
        }
        if let Some(digest) = exports.digest {
            typed::<(), (Digested,)>(store, digest, "digest")?;
        }
        if let Some(SelfTest { claim, command, query }) = exports.self_test {
            typed::<(), (Claims,)>(store, claim, "claim")?;
            typed::<(u64,), (Cut<Reply>,)>(store, command, "command")?;
            typed::<(u64,), (Cut<Reply>,)>(store, query, "query")?;
        }
        Ok(())
    }

    pub(crate) fn describe(&self, store: &mut Store<HostState>) -> wasmtime::Result<GuestInfo> {
        let function = typed::<(), (Info,)>(store, self.exports.describe, "describe")?;
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
        let function = typed::<Init<'_>, Done>(store, self.exports.init, "init")?;
        Ok(function.call(store, (ctx.into(), config))?.0)
    }

    pub(crate) fn apply(
        &self,
        store: &mut Store<HostState>,
        ctx: super::Context,
        commands: &[Bytes],
    ) -> wasmtime::Result<Columns> {
        let (columns,) = self.typed_apply(store)?.call(store, ctx.into(), commands)?;
        Ok(columns)
    }

    fn typed_apply(&self, store: &mut Store<HostState>) -> wasmtime::Result<&Apply> {
        if let Some(apply) = self.apply.get() {
            return Ok(apply);
        }
        let apply = Apply::new(self.exports.apply, store)
            .map_err(|error| error.context("function `apply`"))?;
        Ok(self.apply.get_or_init(|| apply))
    }

    /// Calls the guest's `wake`; a guest without it cannot set its timer.
    pub(crate) fn wake(
        &self,
        store: &mut Store<HostState>,
        ctx: super::Context,
    ) -> wasmtime::Result<()> {
        let wake = self.exports.wake.ok_or_else(|| wasmtime::Error::msg("it exports no `wake`"))?;
        typed::<(Context,), ()>(store, wake, "wake")?.call(store, (ctx.into(),))
    }

    /// The guest's digest of its state, if it has one.
    pub(crate) fn digest(&self, store: &mut Store<HostState>) -> wasmtime::Result<Option<Bytes>> {
        let Some(digest) = self.exports.digest else { return Ok(None) };
        let function = typed::<(), (Digested,)>(store, digest, "digest")?;
        match function.call(store, ())?.0 {
            Cut(AtMost::Whole(bytes)) => Ok(Some(bytes.into())),
            Cut(AtMost::TooLong(bytes)) => Err(wasmtime::Error::msg(format!(
                "the guest's digest has {bytes} bytes, the limit is {DIGEST_BYTES_MAX}"
            ))),
        }
    }

    /// Whether the guest claims that packing does not matter; false without a self-test.
    pub(crate) fn claim(&self, store: &mut Store<HostState>) -> wasmtime::Result<bool> {
        let Some(self_test) = self.exports.self_test else { return Ok(false) };
        let function = typed::<(), (Claims,)>(store, self_test.claim, "claim")?;
        Ok(function.call(store, ())?.0.independent_of_packing)
    }

    /// A command, or a query, that the guest made up for its test; nothing without a self-test.
    pub(crate) fn made_up(
        &self,
        store: &mut Store<HostState>,
        what: MadeUp,
        number: u64,
    ) -> wasmtime::Result<Bytes> {
        let Some(self_test) = self.exports.self_test else { return Ok(Bytes::new()) };
        let (function, name) = match what {
            MadeUp::Command => (self_test.command, "command"),
            MadeUp::Query => (self_test.query, "query"),
        };
        let function = typed::<(u64,), (Cut<Reply>,)>(store, function, name)?;
        match function.call(store, (number,))?.0 {
            Cut(AtMost::Whole(bytes)) => Ok(bytes.into()),
            Cut(AtMost::TooLong(bytes)) => Err(wasmtime::Error::msg(format!(
                "the guest made up {bytes} bytes, the limit is {}",
                limits::QUERY_ANSWER_BYTES_MAX
            ))),
        }
    }

    pub(crate) fn query(
        &self,
        store: &mut Store<HostState>,
        ctx: super::Context,
        request: &[u8],
    ) -> wasmtime::Result<Result<Bytes, NoAnswer>> {
        let function = typed::<Query<'_>, (Replied,)>(store, self.exports.query, "query")?;
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
        let function = typed::<(), Done>(store, self.exports.snapshot, "snapshot")?;
        Ok(function.call(store, ())?.0)
    }

    pub(crate) fn restore(
        &self,
        store: &mut Store<HostState>,
        header: &SnapshotHeader,
        config: &[u8],
    ) -> wasmtime::Result<Result<(), Failure>> {
        let function = typed::<Restore<'_>, Done>(store, self.exports.restore, "restore")?;
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

/// What a guest makes up for its test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MadeUp {
    Command,
    Query,
}

const _: () =
    assert!(limits::HOSTCALL_BYTES_MAX >= limits::ENTRY_COMMANDS_MAX * limits::OUTCOME_BYTES_MAX);
const _: () = assert!(limits::HOSTCALL_BYTES_MAX >= limits::QUERY_ANSWER_BYTES_MAX);
