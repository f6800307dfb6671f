//! Queries: when the guest may be asked, and how a query that destroys the guest is handled.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use lockstep_core::fault::{FaultClass, Refusal};
use lockstep_core::limits;
use lockstep_core::mutant::planted;

use super::{ApplyLane, Output};
use crate::group::QueryAnswer;
use crate::group::askers::Asker;
use crate::guest::NoAnswer;

impl ApplyLane {
    /// Asks the guest, or refuses if it has not applied `index` yet. Returns the answer, and other
    /// outputs.
    pub fn ask(
        &mut self,
        asker: Asker,
        request: &[u8],
        index: u64,
    ) -> (Result<QueryAnswer, Refusal>, Vec<Output>) {
        if let Some(refusal) = self.query_refusal(index) {
            return (Err(refusal), Vec::new());
        }
        let answer = self.query(asker, request);
        (answer, self.end([]))
    }

    /// The reason why the guest cannot be asked now; `None` if it can.
    fn query_refusal(&self, index: u64) -> Option<Refusal> {
        let restoring =
            |cause: &str| Refusal::NotServing { state: "restoring", cause: cause.to_owned() };
        match &self.fault {
            Some(fault) => self.halted_refusal(fault, index),
            None if self.overtaken || self.waiting => {
                Some(restoring("a snapshot is being installed"))
            }
            None if self.live.is_none() => Some(restoring("there is no guest yet")),
            None if self.applied() < index && !planted("read_before_applied") => {
                Some(restoring("it has not yet applied what the query must see"))
            }
            None => None,
        }
    }

    fn query(&mut self, asker: Asker, request: &[u8]) -> Result<QueryAnswer, Refusal> {
        let now = self.tools.clock.running();
        if let Some(cause) = self.query_guard.refusal(now, asker, request) {
            return Err(Refusal::QueriesRefused { cause });
        }
        let moment = self.ledger.moment();
        let live = self.live.as_mut().expect("without a guest the query was refused");
        match live.guest.query(moment.into(), request) {
            Ok(result) => {
                self.query_guard.answered(now, asker);
                let halted = self.halted_at();
                Ok(QueryAnswer { result: answered(result)?, applied: moment.index, halted })
            }
            Err(fault) => {
                if self.rebuild_if_lost() {
                    let after = self.tools.clock.running();
                    self.query_guard.note(after, asker, request, after.saturating_sub(now));
                }
                let (group, cause) = (&self.tools.group, fault.to_string());
                match fault.class {
                    // This is no fault of the guest: any client can send a query that needs too
                    // much.
                    FaultClass::OutOfFuel | FaultClass::OutOfMemory => {
                        tracing::debug!(%group, cause, "a query asked for too much");
                        Err(Refusal::QueryTooMuch { cause })
                    }
                    FaultClass::Trap
                    | FaultClass::StackOverflow
                    | FaultClass::Refused
                    | FaultClass::Host => {
                        self.tools.gauges.guest_faults.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(%group, cause, "a query faulted");
                        Err(Refusal::QueryFaulted { cause })
                    }
                }
            }
        }
    }
}

/// A rejection by the guest is an answer; an answer that is too long becomes a refusal by this
/// node.
fn answered(result: Result<Bytes, NoAnswer>) -> Result<Result<Bytes, Bytes>, Refusal> {
    match result {
        Ok(answer) => Ok(Ok(answer)),
        Err(NoAnswer::Rejected(reason)) => Ok(Err(reason)),
        Err(NoAnswer::TooLong { bytes }) => {
            let limit = limits::QUERY_ANSWER_BYTES_MAX;
            let cause = format!("an answer of {bytes} bytes is over the limit of {limit}");
            Err(Refusal::QueryTooMuch { cause })
        }
    }
}
