//! The tests that a component brings along: its export `self-test`.
//!
//! One instance answers all calls, so that making up a command costs no instantiation.

use bytes::Bytes;
use lockstep_core::fault::GuestFault;

use super::instance::{Instance, Recipe};
use super::trap::Call;
use super::world::MadeUp;
use super::{Claims, SelfTest, engine};

/// An instance, neither initialised nor restored, that makes up commands and queries.
pub(super) struct ComponentSelfTest(Instance);

impl ComponentSelfTest {
    /// The component must export `self-test`.
    pub(super) fn new(recipe: &Recipe) -> Result<Self, GuestFault> {
        recipe.make().map(Self)
    }

    fn made_up(&mut self, what: MadeUp, number: u64) -> Result<Bytes, GuestFault> {
        let name = match what {
            MadeUp::Command => "command",
            MadeUp::Query => "query",
        };
        let call = Call::anywhere(name);
        self.0
            .enter(call, engine::QUERY_FUEL, |store, machine| machine.made_up(store, what, number))
    }
}

impl SelfTest for ComponentSelfTest {
    fn claims(&mut self) -> Result<Claims, GuestFault> {
        let call = Call::anywhere("claim");
        let claimed =
            self.0.enter(call, engine::QUERY_FUEL, |store, machine| machine.claim(store))?;
        Ok(Claims { independent_of_packing: claimed })
    }

    fn command(&mut self, number: u64) -> Result<Bytes, GuestFault> {
        self.made_up(MadeUp::Command, number)
    }

    fn query(&mut self, number: u64) -> Result<Bytes, GuestFault> {
        self.made_up(MadeUp::Query, number)
    }
}
