//! What clients do: one request, one answer, one timeout at a time.

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::fault::Refusal;
use lockstep_core::group::Event;
use lockstep_core::ids::{GroupId, NodeId, Ticket};
use lockstep_host::group::QueryAnswer;

use crate::check::durable::{self, View};
use crate::client::Request;
use crate::guest::{ENDLESS_KEY, FATAL_KEY, lock};
use crate::node::{Replica, Waiter};
use crate::starting::view;
use crate::world::{Action, MS, SECOND, World};

/// How long a client waits for an answer before it tries another node.
const PATIENCE_US: u64 = 3 * SECOND;

impl World {
    pub(crate) fn client_step(&mut self, client: usize) {
        let now = self.now;
        let Some(request) = self.clients[client].next(now, &mut self.records) else { return };
        let (group, target) = (self.clients[client].group, self.clients[client].target);
        let attempt = self.clients[client].attempt;
        self.after(PATIENCE_US, Action::Timeout { client, attempt });
        if self.is_paused(target) {
            return;
        }
        let Some(process) = self.nodes.get_mut(&target).and_then(|n| n.process.as_mut()) else {
            return;
        };
        let Some(replica) = process.replicas.get_mut(&group) else { return };
        if matches!(request, Request::Write { relief: true, .. }) {
            self.counters.add("commands that free memory");
        }
        // As on a real node, what its earlier attempts asked of this one is waited for no more.
        let earlier = replica.tickets.iter().filter(|(_, waiter)| waiter.client == client);
        let gone = Event::Gone { tickets: earlier.map(|(ticket, _)| *ticket).collect() };
        let event = ticketed(replica, Waiter { client, attempt }, request);
        self.event(target, group, vec![gone, event]);
    }

    pub(crate) fn client_timeout(&mut self, client: usize, attempt: u64) {
        if self.clients[client].attempt != attempt {
            return;
        }
        if self.clients[client].is_idle() && self.clients[client].done {
            return;
        }
        self.clients[client].give_up(&self.records);
        let ids = self.member_ids();
        self.clients[client].target = *self.rng.pick(&ids);
        self.client_step(client);
    }

    /// A node answers a command, or the opening or closing of a session.
    pub(crate) fn answer(
        &mut self,
        waiter: Waiter,
        node: NodeId,
        group: GroupId,
        answer: Result<Answer, Refusal>,
    ) {
        let Waiter { client, attempt } = waiter;
        if let Err(refusal) = &answer {
            if *refusal == Refusal::Lost {
                self.counters.add("commands lost");
            }
            if self.clients[client].told(attempt, refusal, &mut self.records) {
                self.counters.add("commands refused for good");
            }
        }
        if self.clients[client].attempt != attempt {
            return;
        }
        let record = self.clients[client].record();
        if answer.is_ok() && self.clients[client].is_closing() {
            self.counters.add("sessions closed");
        }
        if let (Ok(Answer::Ok(_)), Some(record)) = (&answer, record) {
            if self.records[record].tries > 1 {
                self.counters.add("retried commands acknowledged");
            }
            self.acknowledge(node, group, self.records[record].id);
        }
        let now = self.now;
        let ended = self.clients[client].answered(answer, now, &mut self.records);
        self.next_attempt(client, ended);
    }

    /// A caller outside the simulated clients sends a query that the guest cannot answer.
    pub(crate) fn ask_badly(&mut self, node: NodeId) {
        let names = self.setup.groups.clone();
        let group = GroupId::of_name(self.rng.pick::<String>(&names));
        let key = *self.rng.pick(&[FATAL_KEY, ENDLESS_KEY]);
        let process = self.nodes.get_mut(&node).and_then(|node| node.process.as_mut());
        let Some(replica) = process.and_then(|process| process.replicas.get_mut(&group)) else {
            return;
        };
        replica.next_ticket += 1;
        let ticket = Ticket(replica.next_ticket);
        // No two of these queries are equal, because a group refuses a query that failed its guest
        // before.
        let request = [key, self.ids, ticket.0].iter().flat_map(|n| n.to_le_bytes()).collect();
        self.event(node, group, vec![Event::Query { ticket, request, linearizable: false }]);
    }

    pub(crate) fn queried(&mut self, waiter: Waiter, answer: Result<QueryAnswer, Refusal>) {
        let Waiter { client, attempt } = waiter;
        if self.clients[client].attempt != attempt {
            return;
        }
        let ended = answer.is_ok();
        let record = self.clients[client].record();
        let local = record.is_some_and(|record| self.records[record].local);
        if let Ok(QueryAnswer { result, applied, .. }) = answer {
            let value: Bytes = result.unwrap_or_default();
            let now = self.now;
            self.clients[client].read(&value, applied, now, &mut self.records);
            self.counters.add("acknowledged");
            if local {
                self.counters.add("local reads");
            }
        }
        self.next_attempt(client, ended);
    }

    fn next_attempt(&mut self, client: usize, ended: bool) {
        // With a new attempt number, the timeout of the old attempt does nothing.
        self.clients[client].attempt += 1;
        let delay =
            if ended { self.rng.below(250 * MS) } else { self.rng.between(30 * MS, 300 * MS) };
        if !(ended && self.clients[client].done && self.clients[client].is_idle()) {
            self.after(delay, Action::Client { client });
        }
    }

    fn acknowledge(&mut self, node: NodeId, group: GroupId, operation: u64) {
        self.counters.add("acknowledged");
        let index = {
            let observed = lock(&self.observed);
            let applied = observed.group(group);
            applied.and_then(|applied| {
                let has = |(_, done): &(&u64, &Vec<crate::guest::Operation>)| {
                    done.iter().any(|one| one.id == operation)
                };
                applied.operations.iter().rev().find(has).map(|(index, _)| *index)
            })
        };
        let Some(index) = index else {
            let what = format!("operation {operation} was acknowledged but applied nowhere");
            return self.check(crate::check::violated("histories", what));
        };
        let process = self.nodes[&node].process.as_ref().expect("it answers");
        let state = process.replicas[&group].group.recovery_state();
        // An earlier configuration may have committed it.
        if state.configuration_index > index {
            return;
        }
        let configurations = self.checks.configurations.of(group, state.configuration_index);
        let Some(term) = process.reader.term(group, index) else { return };
        let views: Vec<View> = self.views(group);
        let durable = durable::acknowledged(index, term, &configurations, &views);
        self.check(durable);
    }

    fn views(&self, group: GroupId) -> Vec<View> {
        let lost = self.checks.lost.iter().filter(|(of, _)| *of == group);
        let lost = lost.map(|(_, view)| view.clone());
        let down = self.checks.down.values().filter_map(|views| views.get(&group).cloned());
        // The log of an old copy does not count.
        let sound = self.nodes.values().filter(|node| node.copy.is_none());
        let up = sound.filter_map(|node| node.process.as_ref());
        up.filter_map(|process| view(process, group)).chain(down).chain(lost).collect()
    }
}

fn ticketed(replica: &mut Replica, waiter: Waiter, request: Request) -> Event {
    replica.next_ticket += 1;
    let ticket = Ticket(replica.next_ticket);
    replica.tickets.insert(ticket, waiter);
    match request {
        Request::Open { nonce } => Event::OpenSession { ticket, nonce },
        Request::Close { session } => Event::CloseSession { ticket, session },
        Request::Write { call, relief } => Event::Propose { ticket, call, relief },
        Request::Read { request, linearizable } => Event::Query { ticket, request, linearizable },
    }
}
