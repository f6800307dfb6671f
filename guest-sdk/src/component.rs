//! The glue between the generated bindings and a plugin's traits; WebAssembly only.
//!
//! * An instance has one machine, made by `init` or `restore`, that lasts as long as the instance.
//! * Each optional export has bindings of its own, so that a component has what it names and no
//!   more.
//! * A panic becomes a message in the host's log and then a trap.
//!
//! Public for [`export!`](crate::export!) only; plugins do not use this module.

use std::any::Any;
use std::cell::RefCell;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::sync::Once;

use bindings::exports::lockstep::fsm::state_machine as wit;
use bindings::lockstep::fsm::snapshot_io;
use bindings::lockstep::fsm::types::Omission;
use digest_bindings::exports::lockstep::fsm::digest as wit_digest;
use self_test_bindings::exports::lockstep::fsm::self_test as wit_self_test;
use wake_bindings::exports::lockstep::fsm::wake as wit_wake;

use crate::snapshot::{CHUNK_BYTES_MAX, ChunkSource};
use crate::{
    Answers, Commands, Context, Digest, Failure, Info, Level, SelfTest, SnapshotHeader,
    SnapshotReader, StateMachine, Wake, machine,
};

/// The bindings that `wit-bindgen` generates from `wit/fsm.wit`.
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "fsm",
        pub_export_macro: true,
        export_macro_name: "__export_fsm",
    });
}

/// Those of the optional export `wake`.
pub mod wake_bindings {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package lockstep:sdk-wake; world wake { export lockstep:fsm/wake@0.2.0; }",
        with: { "lockstep:fsm/types@0.2.0": super::bindings::lockstep::fsm::types },
        pub_export_macro: true,
        export_macro_name: "__export_wake",
    });
}

/// Those of the optional export `digest`.
pub mod digest_bindings {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package lockstep:sdk-digest; world digest { export lockstep:fsm/digest@0.2.0; }",
        pub_export_macro: true,
        export_macro_name: "__export_digest",
    });
}

/// Those of the optional export `self-test`.
pub mod self_test_bindings {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package lockstep:sdk-test; world test { export lockstep:fsm/self-test@0.2.0; }",
        pub_export_macro: true,
        export_macro_name: "__export_self_test",
    });
}

thread_local! {
    /// The machine of this instance; `None` until `init` or `restore` made it.
    static MACHINE: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Implements the generated traits for a plugin.
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

    fn apply(ctx: wit::Context, commands: wit::Commands) -> wit::Outcomes {
        with_machine(|machine: &mut M| {
            let commands = Commands::new(&commands.ends, &commands.data);
            machine::apply_entry(machine, &ctx.into(), commands).into()
        })
    }

    fn query(ctx: wit::Context, request: Vec<u8>) -> Result<Vec<u8>, Vec<u8>> {
        with_machine(|machine: &mut M| machine.query(&ctx.into(), &request))
    }

    fn snapshot() -> Result<(), wit::Failure> {
        with_machine(|machine: &mut M| Ok(machine::snapshot(machine, &mut HostSink)?))
    }

    fn restore(header: wit::SnapshotHeader, config: Vec<u8>) -> Result<(), wit::Failure> {
        report_panics();
        let mut from = SnapshotReader::from_chunks(HostSource);
        let machine: M = machine::restore(&header.into(), &config, &mut from)?;
        MACHINE.set(Some(Box::new(machine)));
        Ok(())
    }
}

impl<M: Wake> wit_wake::Guest for Exported<M> {
    fn wake(ctx: wit::Context) {
        with_machine(|machine: &mut M| machine.wake(&ctx.into()));
    }
}

impl<M: Digest> wit_digest::Guest for Exported<M> {
    fn digest() -> Vec<u8> {
        with_machine(|machine: &mut M| machine.digest())
    }
}

impl<M: SelfTest> wit_self_test::Guest for Exported<M> {
    fn claim() -> wit_self_test::Claims {
        wit_self_test::Claims { independent_of_packing: M::INDEPENDENT_OF_PACKING }
    }

    fn command(number: u64) -> Vec<u8> {
        report_panics();
        M::command(number)
    }

    fn query(number: u64) -> Vec<u8> {
        report_panics();
        <M as SelfTest>::query(number)
    }
}

fn with_machine<M: StateMachine, R>(work: impl FnOnce(&mut M) -> R) -> R {
    MACHINE.with_borrow_mut(|machine| match machine {
        Some(machine) => work(machine.downcast_mut().expect("a component exports one machine")),
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

impl From<Answers> for wit::Outcomes {
    fn from(answers: Answers) -> Self {
        let omission = |(position, bytes)| Omission { position, bytes };
        Self {
            ends: answers.ends,
            data: answers.data,
            rejected: answers.rejected,
            omitted: answers.omitted.into_iter().map(omission).collect(),
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
