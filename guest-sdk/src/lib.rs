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
//! A node calls `init` once, `apply` for each command in the log's order, and `query` for each
//! question; it takes snapshots, and restores them where a replica begins or begins again.
//! Commands, answers and snapshots are bytes, and what they mean is up to you. That a client's
//! retried command is applied once is up to the host.
//!
//! The crate compiles natively as well as to WebAssembly (`wasm32-unknown-unknown`), so that a
//! plugin's unit tests run natively.
//!
//! # What you promise
//!
//! The host relies on this, and [`testing::Harness`](testing) checks it:
//!
//! * the same in, the same out: state, outcomes and events are a function of the entries applied.
//!   Time, index and randomness arrive in [`Context`], equal on every replica;
//! * a restored machine behaves in every respect like the one that wrote the snapshot;
//! * equal states write equal snapshots, however they came about;
//! * a query changes nothing.
//!
//! To refuse a command, answer [`Outcome::Rejected`]: that is a normal, replicated answer. A panic
//! is something else. It stops the replica, and every other one as well, because it comes to the
//! same command.
//!
//! # Typed commands
//!
//! Instead of bytes, a machine may take values: it implements [`Typed`], names a codec (`Json`,
//! `Postcard`, `Prost` or its own; each is a feature of this crate), and is exported as any other.
//! `?` makes a rejection of every error that can be printed. A command that cannot be read is
//! rejected with a sentence, and `apply` never sees it.
//!
//! ```
//! use lockstep_guest::*;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default)]
//! struct Accounts(DetMap<String, u64>);
//!
//! #[derive(Serialize, Deserialize)]
//! enum Command {
//!     Deposit { account: String, amount: u64 },
//!     Withdraw { account: String, amount: u64 },
//! }
//!
//! impl Typed for Accounts {
//!     const INFO: Info = Info::new("accounts", env!("CARGO_PKG_VERSION"));
//!     type Codec = Json;
//!     type Command = Command;
//!     type Answer = u64;
//!     type Query = String;
//!     type Reply = Option<u64>;
//!
//!     fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> {
//!         Ok(Self::default())
//!     }
//!     fn apply(&mut self, _: &Context, command: Command) -> Result<u64, Rejection> {
//!         match command {
//!             Command::Deposit { account, amount } => {
//!                 let balance = self.0.entry(account).or_default();
//!                 *balance = balance.checked_add(amount).ok_or("too much")?;
//!                 Ok(*balance)
//!             }
//!             Command::Withdraw { account, amount } => {
//!                 let balance = self.0.get_mut(&account).ok_or("no such account")?;
//!                 *balance = balance
//!                     .checked_sub(amount)
//!                     .ok_or_else(|| format!("{account} holds {balance}"))?;
//!                 Ok(*balance)
//!             }
//!         }
//!     }
//!     fn query(&self, _: &Context, account: String) -> Result<Option<u64>, Rejection> {
//!         Ok(self.0.get(&account).copied())
//!     }
//!     fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
//!         Ok(out.write_items::<Postcard, _>(&self.0)?)
//!     }
//!     fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader)
//!     -> Result<Self, Failure> {
//!         Ok(Self(from.read_map::<Postcard, _, _>()?))
//!     }
//! }
//!
//! lockstep_guest::export!(Accounts);
//!
//! # fn main() {
//! use lockstep_guest::testing::Harness;
//!
//! let mut accounts = Harness::<Accounts>::new();
//! accounts.check(r#"{"Deposit":{"account":"ann","amount":5}}"#, "ok 5");
//! accounts.check(r#"{"Withdraw":{"account":"ann","amount":9}}"#, "rejected ann holds 5");
//! assert_eq!(accounts.ask("ann".to_owned()), Ok(Some(5)));
//! accounts.verify();
//! # }
//! ```
//!
//! # Events
//!
//! [`emit`] tells clients that watch, from `apply` and `wake`. The group keeps the newest events,
//! replicated and in order, and a client may ask for those that it missed. Nothing flows back.
//!
//! ```
//! # use lockstep_guest::*;
//! fn fill(order: u64, price: u64) {
//!     emit(&format!("orders/{order}/filled"), price.to_string().as_bytes());
//! }
//! ```
//!
//! # The timer
//!
//! A machine has no clock, but it can ask to be called when the log's time has come: it sets the
//! [`timer`], implements [`Wake`], and names `wake` where it is exported. Deadlines are times of
//! the log; [`Context::after`] computes one. There is one timer. [`Deadlines`] keeps many deadlines
//! on it, and is part of your state.
//!
//! A wake is an entry of its own, as a rule within 200 ms, and later if there is no leader: a
//! command may come first and find the deadline passed. If that matters, `apply` looks at the
//! deadlines, too.
//!
//! ```
//! use std::time::Duration;
//! use lockstep_guest::*;
//!
//! /// Says when nobody has called for ten seconds.
//! struct Watchdog;
//!
//! impl StateMachine for Watchdog {
//!     const INFO: Info = Info::new("watchdog", "0.1.0");
//!
//!     fn apply(&mut self, ctx: &Context, _: &[u8]) -> Outcome {
//!         timer::wake_at(ctx.after(Duration::from_secs(10)));
//!         Outcome::ok("good dog")
//!     }
//!     // The others as above; there is no state, and the host keeps the timer.
//! #   fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> { Ok(Self) }
//! #   fn query(&self, _: &Context, _: &[u8]) -> Result<Vec<u8>, Vec<u8>> { Ok(vec![]) }
//! #   fn snapshot(&self, _: &mut SnapshotWriter) -> Result<(), Failure> { Ok(()) }
//! #   fn restore(_: &SnapshotHeader, _: &[u8], _: &mut SnapshotReader)
//! #   -> Result<Self, Failure> { Ok(Self) }
//! }
//!
//! impl Wake for Watchdog {
//!     fn wake(&mut self, _: &Context) {
//!         emit("alarm", b"nobody called");
//!     }
//! }
//!
//! lockstep_guest::export!(Watchdog: wake);
//!
//! # fn main() {
//! use lockstep_guest::testing::Harness;
//!
//! let mut dog = Harness::<Watchdog>::new();
//! dog.check("call", "ok good dog");
//! dog.advance(9_999);
//! dog.check_events(&[]);
//! dog.advance(1);
//! dog.check_events(&["alarm nobody called"]);
//! dog.verify();
//! # }
//! ```
//!
//! # Snapshots
//!
//! [`SnapshotWriter`] is `io::Write` and [`SnapshotReader`] is `io::Read`. Both buffer, so write in
//! pieces as small as you like, and never build the whole snapshot in memory: `apply` stands still
//! meanwhile, and memory is bounded. [`write_items`](SnapshotWriter::write_items) and
//! [`read_items`](SnapshotReader::read_items) stream values through a codec, one after another;
//! [`read_map`](SnapshotReader::read_map) also checks their order;
//! [`write_block`](SnapshotWriter::write_block) and [`write_u64`](SnapshotWriter::write_u64) are
//! for formats made by hand. Postcard suits snapshots whatever the commands are.
//!
//! Raise [`Info::snapshot_format`] when the format changes, and read the older ones down to
//! [`Info::oldest_readable_format`].
//!
//! # Tests
//!
//! [`testing::Harness`](testing) plays the cluster. It applies commands, moves the clock, wakes,
//! and records events; `verify` replays everything, restores on the way, and compares all that can
//! be seen. End every test with it. `testing::Explore` makes up sequences of commands, and prints
//! the shortest that fails:
//!
//! ```
//! # use lockstep_guest::*;
//! use lockstep_guest::testing::{Explore, Harness};
//!
//! # struct Longest(Vec<u8>);
//! # impl StateMachine for Longest {
//! #     const INFO: Info = Info::new("longest", "0.1.0");
//! #     fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> { Ok(Self(Vec::new())) }
//! #     fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
//! #         if command.len() <= self.0.len() {
//! #             return Outcome::rejected("not longer than what is there");
//! #         }
//! #         self.0 = command.to_vec();
//! #         Outcome::ok("the longest so far")
//! #     }
//! #     fn query(&self, _: &Context, _: &[u8]) -> Result<Vec<u8>, Vec<u8>> { Ok(self.0.clone()) }
//! #     fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
//! #         Ok(out.write_block(&self.0)?)
//! #     }
//! #     fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader)
//! #     -> Result<Self, Failure> {
//! #         Ok(Self(from.read_block(1 << 20)?))
//! #     }
//! # }
//! # lockstep_guest::export!(Longest);
//! # fn main() {
//! let mut longest = Harness::<Longest>::new();
//! longest.check("ab", "ok the longest so far");
//! longest.check("c", "rejected not longer than what is there");
//! longest.check_query("", "ok ab");
//! longest.verify();
//!
//! Explore::<Longest>::new().commands(|rng| vec![b'x'; rng.below(9) as usize]).run();
//! # }
//! ```
//!
//! A machine that exports [`SelfTest`] needs no `commands`, and can be tested as a component as
//! well, by `lockstep test`. One that exports [`Digest`] lets its replicas be compared often.
//!
//! # Many commands at once
//!
//! Commands come in entries of up to 1,024. A machine that wants to do for all of them what need
//! not be done for each overrides [`StateMachine::apply_batch`]; [`Answers`] takes answers without
//! an allocation for each.
//!
//! # What makes replicas differ
//!
//! What breaks the promises in practice: iterating over a `HashMap` (use [`DetMap`] and
//! [`DetSet`]); a cache that changes answers; a static or a thread-local; capacities or addresses
//! in answers; floating point whose last bits matter; a snapshot that forgets a field; a dependency
//! that reads a clock or draws random numbers ([`Context::rng`] makes some that are equal
//! everywhere).

mod codec;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod component;
mod deadlines;
mod entry;
mod events;
mod key;
mod log;
mod machine;
#[cfg(any(test, target_arch = "wasm32"))]
mod memory;
#[cfg(not(target_arch = "wasm32"))]
mod native;
mod offers;
mod rng;
mod snapshot;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod timer;
mod typed;

#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "postcard")]
pub use codec::Postcard;
#[cfg(feature = "prost")]
pub use codec::Prost;
pub use codec::{Decode, Encode};
pub use deadlines::Deadlines;
pub use entry::{Answer, Answers, Commands, CommandsIter};
pub use events::{PAYLOAD_BYTES_MAX, TOPIC_BYTES_MAX, emit};
pub use key::Key;
pub use log::{Level, log};
pub use machine::{
    Context, Failure, Info, OUTCOME_BYTES_MAX, Outcome, SnapshotHeader, StateMachine,
};
pub use offers::{Digest, SelfTest, Wake};
#[doc(hidden)]
pub use offers::{Exports, SelfTests};
pub use rng::Rng;
pub use snapshot::{CHUNK_BYTES_MAX, ITEM_BYTES_MAX, SnapshotReader, SnapshotWriter};
pub use typed::{Rejection, Typed};

/// A map whose order is that of its keys, on every replica and after every restore.
pub type DetMap<K, V> = std::collections::BTreeMap<K, V>;

/// A set whose order is that of its elements, on every replica and after every restore.
pub type DetSet<T> = std::collections::BTreeSet<T>;

/// Exports a state machine from this component, and what it offers beyond that: `export!(Lock)`, or
/// `export!(Lock: wake, digest, self_test)` with any of the three. Use it once in a plugin, in the
/// crate that defines the type.
///
/// On native targets it checks that the type has the traits, and tells the harness what is
/// exported.
#[macro_export]
macro_rules! export {
    ($machine:ty $(: $($offer:ident),+ $(,)?)?) => {
        impl $crate::Exports for $machine {
            $($($crate::__export_offer!(native $offer);)+)?
        }

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::component::Exported<$machine>;
            $crate::component::bindings::__export_fsm!(
                Exported with_types_in $crate::component::bindings
            );
            $($($crate::__export_offer!(component $offer Exported);)+)?
        };
    };
}

/// What [`export!`] makes of each offer.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_offer {
    (native wake) => {
        const WAKE: ::core::option::Option<fn(&mut Self, &$crate::Context)> =
            ::core::option::Option::Some(<Self as $crate::Wake>::wake);
    };
    (native digest) => {
        const DIGEST: ::core::option::Option<fn(&Self) -> ::std::vec::Vec<u8>> =
            ::core::option::Option::Some(<Self as $crate::Digest>::digest);
    };
    (native self_test) => {
        const SELF_TEST: ::core::option::Option<$crate::SelfTests> =
            ::core::option::Option::Some($crate::SelfTests::of::<Self>());
    };
    (component wake $exported:ident) => {
        $crate::component::wake_bindings::__export_wake!(
            $exported with_types_in $crate::component::wake_bindings
        );
    };
    (component digest $exported:ident) => {
        $crate::component::digest_bindings::__export_digest!(
            $exported with_types_in $crate::component::digest_bindings
        );
    };
    (component self_test $exported:ident) => {
        $crate::component::self_test_bindings::__export_self_test!(
            $exported with_types_in $crate::component::self_test_bindings
        );
    };
}
