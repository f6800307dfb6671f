//! The glue between the generated bindings and a [`StateMachine`]; WebAssembly only.
//!
//! * An instance has one machine, made by `init` or `restore`, that lasts as long as the instance.
//! * A panic becomes a message in the host's log and then a trap.
//!
//! Public for [`export!`](crate::export!) only; plugins do not use this module.

use std::cell::RefCell;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::sync::Once;

use bindings::exports::lockstep::fsm::state_machine as wit;
use bindings::lockstep::fsm::snapshot_io;

use crate::snapshot::{CHUNK_BYTES_MAX, ChunkSource};
use crate::{
    Context, Failure, Info, Level, Outcome, SnapshotHeader, SnapshotReader, StateMachine, machine,
};

/// The bindings that `wit-bindgen` generates from `wit/fsm.wit`.
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "fsm",
        pub_export_macro: true,
        export_macro_name: "__export_fsm",
    });
}

thread_local! {
    /// The machine of this instance; `None` until `init` or `restore` made it.
    static MACHINE: RefCell<Option<Box<dyn Running>>> = const { RefCell::new(None) };
}

/// Implements the generated trait for a state machine.
pub struct Exported<M>(PhantomData<M>);

impl<M: StateMachine> wit::Guest for Exported<M> {
    fn describe() -> wit::Info {
        report_panics();
        M::describe().into()
    }

    fn init(ctx: wit::Context, config: Vec<u8>) -> Result<(), wit::Failure> {
        report_panics();
        let machine = M::init(&ctx.into(), &config)?;
        MACHINE.set(Some(Box::new(machine)));
        Ok(())
    }

    fn apply(ctx: wit::Context, commands: Vec<wit::Command>) -> Vec<wit::Outcome> {
        with_machine(|machine| machine.apply(&ctx.into(), &commands))
    }

    fn query(ctx: wit::Context, request: Vec<u8>) -> Result<Vec<u8>, Vec<u8>> {
        with_machine(|machine| machine.query(&ctx.into(), &request))
    }

    fn snapshot() -> Result<(), wit::Failure> {
        with_machine(|machine| Ok(machine.snapshot()?))
    }

    fn restore(header: wit::SnapshotHeader, config: Vec<u8>) -> Result<(), wit::Failure> {
        report_panics();
        let mut from = SnapshotReader::from_chunks(HostSource);
        let machine: M = machine::restore_from(&header.into(), &config, &mut from)?;
        MACHINE.set(Some(Box::new(machine)));
        Ok(())
    }
}

/// A state machine with its type erased, so that one static serves every plugin.
trait Running {
    fn apply(&mut self, ctx: &Context, commands: &[wit::Command]) -> Vec<wit::Outcome>;
    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>>;
    fn snapshot(&self) -> Result<(), Failure>;
}

impl<M: StateMachine> Running for M {
    fn apply(&mut self, ctx: &Context, commands: &[wit::Command]) -> Vec<wit::Outcome> {
        let payloads = commands.iter().map(|command| command.payload.as_slice());
        machine::apply_each(self, ctx, payloads).map(|outcome| outcome.told().into()).collect()
    }

    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        StateMachine::query(self, ctx, request)
    }

    fn snapshot(&self) -> Result<(), Failure> {
        machine::snapshot(self, &mut HostSink)
    }
}

fn with_machine<R>(work: impl FnOnce(&mut dyn Running) -> R) -> R {
    MACHINE.with_borrow_mut(|machine| match machine {
        Some(machine) => work(machine.as_mut()),
        None => {
            report_panics();
            panic!("the host calls init or restore first");
        }
    })
}

/// Makes panics write a message to the host's log before they trap. Every export that may be the
/// first to be called in an instance calls this.
fn report_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            crate::log(Level::Error, "panic", &panic.to_string());
        }));
    });
}

/// The snapshot being taken.
struct HostSink;

impl Write for HostSink {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        snapshot_io::write(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The snapshot being restored.
struct HostSource;

impl ChunkSource for HostSource {
    fn next_chunk(&mut self, spent: Vec<u8>) -> io::Result<Vec<u8>> {
        // The host allocates the next chunk in this instance's memory: free the last one first.
        drop(spent);
        const BYTES_MAX: u32 = CHUNK_BYTES_MAX as u32;
        Ok(snapshot_io::read(BYTES_MAX))
    }
}

impl From<wit::Context> for Context {
    fn from(ctx: wit::Context) -> Self {
        Self { index: ctx.index, position: 0, time_ms: ctx.time_ms, seed: ctx.seed }
    }
}

impl From<wit::SnapshotHeader> for SnapshotHeader {
    fn from(header: wit::SnapshotHeader) -> Self {
        Self {
            writer_name: header.writer_name,
            writer_version: header.writer_version,
            format: header.format,
            index: header.index,
            time_ms: header.time_ms,
        }
    }
}

impl From<Info> for wit::Info {
    fn from(info: Info) -> Self {
        Self {
            name: info.name.to_owned(),
            version: info.version.to_owned(),
            snapshot_format: info.snapshot_format,
            oldest_readable_format: info.oldest_readable_format,
        }
    }
}

impl From<Outcome> for wit::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok(answer) => Self::Ok(answer),
            Outcome::Rejected(reason) => Self::Rejected(reason),
        }
    }
}

impl From<Failure> for wit::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InvalidConfig(why) => Self::InvalidConfig(why),
            Failure::UnsupportedFormat(format) => Self::UnsupportedFormat(format),
            Failure::Corrupt(why) => Self::Corrupt(why),
            Failure::Other(why) => Self::Other(why),
        }
    }
}
