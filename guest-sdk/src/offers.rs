//! What a plugin may offer beyond the state machine: to be woken, to be digested, to be tested.
//!
//! A plugin implements the trait and names it where it is exported:
//! `export!(Lock: wake, digest, self_test)`. What is not named is not part of the component.

use crate::{Context, StateMachine};

/// Is woken when the timer's time has come. A machine that sets the [`timer`](crate::timer)
/// implements it.
pub trait Wake: StateMachine {
    /// The timer's time has come; the timer is set to no time before the call. `ctx` is that of an
    /// entry of its own, and whatever holds for `apply` holds here.
    fn wake(&mut self, ctx: &Context);
}

/// Summarises the state at little cost, so that tests can compare replicas often: `lockstep test`,
/// and `testing::Harness`. No node calls it today.
pub trait Digest: StateMachine {
    /// Up to 64 bytes that are a function of the state alone: equal for equal states, and most
    /// likely different for different ones. It should cost much less than a snapshot; a checksum
    /// that `apply` keeps up to date is best.
    fn digest(&self) -> Vec<u8>;
}

/// Makes up commands and queries, for `lockstep test` and for `testing::Explore`.
pub trait SelfTest: StateMachine {
    /// Whether outcomes, events and state are the same if all commands of an entry come in entries
    /// of their own with the same time. Not so if an answer depends on `Context::index`,
    /// `Context::position` or a random number.
    const INDEPENDENT_OF_PACKING: bool;

    /// A command that is worth trying; every number gives another one, and always the same one.
    fn command(number: u64) -> Vec<u8>;

    /// A query that is worth trying; every number gives another one, and always the same one.
    fn query(number: u64) -> Vec<u8>;
}

/// What a component exports; [`export!`](crate::export!) implements it, and nobody else does.
#[doc(hidden)]
pub trait Exports: StateMachine {
    /// `Wake::wake`, if it is exported.
    const WAKE: Option<fn(&mut Self, &Context)> = None;
    /// `Digest::digest`, if it is exported.
    const DIGEST: Option<fn(&Self) -> Vec<u8>> = None;
    /// What `SelfTest` has, if it is exported.
    const SELF_TEST: Option<SelfTests> = None;
}

/// What a machine has to offer for its tests.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct SelfTests {
    /// [`SelfTest::INDEPENDENT_OF_PACKING`].
    pub independent_of_packing: bool,
    /// [`SelfTest::command`].
    pub command: fn(u64) -> Vec<u8>,
    /// [`SelfTest::query`].
    pub query: fn(u64) -> Vec<u8>,
}

impl SelfTests {
    /// Those of a machine.
    pub const fn of<M: SelfTest>() -> Self {
        Self {
            independent_of_packing: M::INDEPENDENT_OF_PACKING,
            command: M::command,
            query: <M as SelfTest>::query,
        }
    }
}
