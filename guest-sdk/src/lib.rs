//! Write a replicated state machine for Lockstep in Rust.
//!
//! A plugin is a type that implements [`StateMachine`], exported once with [`export!`]:
//!
//! ```
//! use lockstep_guest::*;
//!
//! struct Longest(Vec<u8>);
//!
//! impl StateMachine for Longest {
//!     const INFO: Info = Info::new("longest", "0.1.0");
//!
//!     fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> {
//!         Ok(Self(Vec::new()))
//!     }
//!     fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
//!         if command.len() <= self.0.len() {
//!             return Outcome::rejected("not longer than what is there");
//!         }
//!         self.0 = command.to_vec();
//!         Outcome::ok("the longest so far")
//!     }
//!     fn query(&self, _: &Context, _: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
//!         Ok(self.0.clone())
//!     }
//!     fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
//!         Ok(out.write_block(&self.0)?)
//!     }
//!     fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader)
//!     -> Result<Self, Failure> {
//!         Ok(Self(from.read_block(1 << 20)?))
//!     }
//! }
//!
//! lockstep_guest::export!(Longest);
//! ```
//!
//! What the author promises, and what the host relies on:
//!
//! * the state and the outcomes are a function of the entries applied: no clock, no entropy, no
//!   `HashMap` order. Time, randomness and index arrive in [`Context`]; [`DetMap`] has an order;
//! * a restored machine behaves in every respect like the one that wrote the snapshot;
//! * equal states write equal snapshots.
//!
//! `testing::Harness` checks these natively, in the plugin's own unit tests.
//!
//! The crate compiles natively as well as to WebAssembly. What the bytes of commands, answers and
//! snapshots mean is up to the author; that retried commands are applied once is up to the host.

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod component;
mod log;
mod machine;
mod rng;
mod snapshot;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use log::{Level, log};
pub use machine::{
    Context, Failure, Info, OUTCOME_BYTES_MAX, Outcome, SnapshotHeader, StateMachine, apply_entry,
    restore, snapshot,
};
pub use rng::Rng;
pub use snapshot::{CHUNK_BYTES_MAX, SnapshotReader, SnapshotWriter};

/// A map whose order is that of its keys, on every replica and after every restore.
pub type DetMap<K, V> = std::collections::BTreeMap<K, V>;

/// A set whose order is that of its elements, on every replica and after every restore.
pub type DetSet<T> = std::collections::BTreeSet<T>;

/// Exports a [`StateMachine`] from this component. Use it once in a plugin, at the crate's root.
///
/// On native targets it only checks that the type is a state machine.
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::component::Exported<$machine>;
            $crate::component::bindings::__export_fsm!(
                Exported with_types_in $crate::component::bindings
            );
        };

        #[cfg(not(target_arch = "wasm32"))]
        const _: $crate::Info = <$machine as $crate::StateMachine>::INFO;
    };
}
