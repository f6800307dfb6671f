//! Whether the queue kept its promises: judged by what producers and consumers were told, and by
//! what was left in the end.
//!
//! - What was sent and acknowledged was delivered, and was then acked or is dead.
//! - Nothing was sent twice, acked twice, or delivered after it was acked.
//! - A message's attempts rise with its receipts, and go no further than is allowed.
//! - The queue's own counters say the same.
//! - A timer that a prober knows leads to an event, and to none before its time.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lockstep_client::Event;

use super::lateness::Timer;
use crate::tell::{Teller, thousands};

pub(super) const TOPIC: &str = "queue/";

/// All that clients know of one queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) sends: Vec<Send>,
    pub(super) deliveries: Vec<Delivery>,
    /// The bodies of dead messages and how often each was delivered, by ID.
    pub(super) dead: BTreeMap<u64, (String, u64)>,
    pub(super) stats: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Send {
    /// Never sent in another message.
    pub(super) body: String,
    /// What it was answered; `None` if it was not.
    pub(super) id: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) id: u64,
    pub(super) receipt: u64,
    pub(super) attempt: u64,
    pub(super) body: String,
    pub(super) fate: Fate,
}

/// What its consumer did with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Acked,
    /// The ack, or the nack, was rejected: the message had been taken back.
    TooLate,
    Nacked,
    /// The ack or the nack has no answer.
    Unknown,
    /// The consumer died.
    Dropped,
}

/// The deadline of a delivery that a prober extended and dropped.
#[derive(Clone, Debug)]
pub(super) struct Deadline {
    pub(super) queue: String,
    /// The time from the extension to the deadline, ms.
    pub(super) after_ms: u64,
    pub(super) until_ms: u64,
}

/// What an account shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    pub sent: u64,
    /// Sent without an answer and found in the queue.
    pub sent_unanswered: u64,
    pub acked: u64,
    pub dead: u64,
    /// Deliveries that were not a message's first.
    pub redelivered: u64,
    /// Deliveries that died with their consumer.
    pub dropped: u64,
    pub nacked: u64,
    /// Deliveries whose message had been taken back when it was to be acked.
    pub too_late: u64,
}

/// Checks the account of a queue in which nothing is ready or in flight any more.
pub(super) fn check(account: &Account, attempts_max: u64) -> Result<Messages> {
    let deliveries = by_message(&account.deliveries)?;
    let mut seen = Messages::default();
    let mut bodies: BTreeMap<&str, u64> = BTreeMap::new();
    let found = deliveries.iter().map(|(id, them)| (*id, them[0].body.as_str()));
    for (id, body) in found.chain(account.dead.iter().map(|(id, (body, _))| (*id, body.as_str()))) {
        let other = *bodies.entry(body).or_insert(id);
        ensure!(other == id, "`{body}` was sent once and is in messages {other} and {id}");
    }
    for Send { body, id } in &account.sends {
        let found = bodies.remove(body.as_str());
        if let Some(id) = id {
            ensure!(
                found.is_some(),
                "message {id}, `{body}`, was acknowledged, and was neither delivered nor is it dead"
            );
            ensure!(found == Some(*id), "`{body}` was sent as message {id} and came as {found:?}");
            seen.sent += 1;
        } else if found.is_some() {
            seen.sent_unanswered += 1;
        }
    }
    ensure!(bodies.is_empty(), "messages were delivered that nobody sent: {bodies:?}");
    for (id, deliveries) in &deliveries {
        let dead = account.dead.get(id).map(|(_, attempts)| *attempts);
        message(deliveries, dead, attempts_max).with_context(|| format!("message {id}"))?;
    }
    let count = |fate| account.deliveries.iter().filter(|one| one.fate == fate).count() as u64;
    (seen.dropped, seen.nacked) = (count(Fate::Dropped), count(Fate::Nacked));
    (seen.acked, seen.too_late) = (count(Fate::Acked), count(Fate::TooLate));
    seen.dead = account.dead.len() as u64;
    counters(account, &mut seen)?;
    Ok(seen)
}

pub(super) fn tell(seen: &Messages, tell: &Teller) {
    tell.shown(format!(
        "{} messages sent, and {} more without an answer: {} acked, {} dead, none lost",
        thousands(seen.sent),
        seen.sent_unanswered,
        thousands(seen.acked),
        thousands(seen.dead)
    ));
    tell.shown(format!(
        "{} deliveries were not the first; {} died with their consumer, {} were refused, \
         {} settled too late",
        thousands(seen.redelivered),
        thousands(seen.dropped),
        thousands(seen.nacked),
        thousands(seen.too_late)
    ));
}

/// The deliveries of each message, in the order of their receipts, which are given once.
fn by_message(deliveries: &[Delivery]) -> Result<BTreeMap<u64, Vec<&Delivery>>> {
    let mut by_receipt: BTreeMap<u64, &Delivery> = BTreeMap::new();
    for delivery in deliveries {
        let Delivery { id, receipt, .. } = delivery;
        let other = by_receipt.insert(*receipt, delivery);
        ensure!(other.is_none(), "receipt {receipt} was given for {other:?} and for message {id}");
    }
    let mut by_message: BTreeMap<u64, Vec<&Delivery>> = BTreeMap::new();
    for delivery in by_receipt.into_values() {
        by_message.entry(delivery.id).or_default().push(delivery);
    }
    Ok(by_message)
}

/// Checks the way of one message. `dead` is how often it was delivered, if it is dead.
fn message(deliveries: &[&Delivery], dead: Option<u64>, attempts_max: u64) -> Result<()> {
    let mut before = 0;
    let mut acked = false;
    for Delivery { receipt, attempt, body, fate, .. } in deliveries {
        ensure!(!acked, "it was delivered with receipt {receipt} after it had been acked");
        ensure!(*attempt > before, "attempt {attempt} comes after attempt {before}");
        ensure!(*attempt <= attempts_max, "attempt {attempt}, of {attempts_max} allowed");
        ensure!(*body == deliveries[0].body, "its body changed to `{body}`");
        (before, acked) = (*attempt, *fate == Fate::Acked);
    }
    let perhaps = deliveries.iter().any(|delivery| delivery.fate == Fate::Unknown);
    match dead {
        Some(attempts) => {
            ensure!(!acked, "it was acked, and is dead");
            ensure!(attempts == attempts_max, "it is dead after {attempts} deliveries");
        }
        None => ensure!(acked || perhaps, "it is gone, and nobody acked it"),
    }
    Ok(())
}

/// Compares the queue's own counters.
fn counters(account: &Account, seen: &mut Messages) -> Result<()> {
    let stat = |name: &str| account.stats.get(name).copied().context(format!("no counter {name}"));
    balance(&account.stats)?;
    ensure!(stat("ready")? + stat("in-flight")? == 0, "the queue is not at rest");
    let (sent, known) = (stat("sent")?, seen.sent + seen.sent_unanswered);
    ensure!(sent == known, "the queue counts {sent} messages sent; clients know of {known}");
    ensure!(stat("dead")? == seen.dead, "{} are dead; the queue counts otherwise", seen.dead);
    let unknown = account.deliveries.iter().filter(|one| one.fate == Fate::Unknown).count() as u64;
    let acked = stat("acked")?;
    ensure!(
        (seen.acked..=seen.acked + unknown).contains(&acked),
        "the queue counts {acked} acked; consumers know of {}, and of {unknown} perhaps",
        seen.acked
    );
    let again = account.deliveries.iter().filter(|one| one.attempt > 1).count() as u64;
    seen.redelivered = stat("redelivered")?;
    ensure!(
        seen.redelivered >= again,
        "the queue counts {} deliveries that were not the first; consumers got {again}",
        seen.redelivered
    );
    Ok(())
}

/// Checks that what was sent is somewhere: acked, discarded, or in the queue.
pub(super) fn balance(stats: &BTreeMap<String, u64>) -> Result<()> {
    let sum = |names: &[&str]| -> u64 { names.iter().filter_map(|name| stats.get(*name)).sum() };
    let (sent, found) =
        (sum(&["sent"]), sum(&["acked", "discarded", "ready", "in-flight", "dead"]));
    ensure!(sent == found, "{sent} messages were sent, and {found} are accounted for: {stats:?}");
    Ok(())
}

/// The timers of these deadlines: each led to the first event of its queue that is not before it.
pub(super) fn timers(deadlines: &[Deadline], events: &[Event]) -> Result<Vec<Timer>> {
    let mut by_queue: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for event in events {
        let queue = event.topic.strip_prefix(TOPIC);
        let queue = queue.with_context(|| format!("an event of {}", event.topic))?;
        by_queue.entry(queue).or_default().push(event.time_ms);
    }
    let mut timers = Vec::new();
    for Deadline { queue, after_ms, until_ms } in deadlines {
        let times = by_queue.get(queue.as_str()).map_or(&[][..], Vec::as_slice);
        let early = times.iter().find(|time| (until_ms - after_ms + 1..*until_ms).contains(time));
        ensure!(
            early.is_none(),
            "queue {queue} took a message back at {early:?}, before its deadline {until_ms}"
        );
        let at_ms = times.iter().find(|time| *time >= until_ms);
        let at_ms = *at_ms.with_context(|| {
            format!("queue {queue} told of nothing after its deadline {until_ms}")
        })?;
        timers.push(Timer { deadline_ms: *until_ms, at_ms });
    }
    Ok(timers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(id: u64, receipt: u64, attempt: u64, fate: Fate) -> Delivery {
        Delivery { id, receipt, attempt, body: format!("m{id}"), fate }
    }

    /// Message 1 was acked, 2 after a death, 3 without an answer, 4 is dead, 5 has no answer to its
    /// sending.
    fn good() -> Account {
        let send = |id: u64| Send { body: format!("m{id}"), id: (id < 5).then_some(id) };
        let stats = [
            ("sent", 5),
            ("acked", 4),
            ("ready", 0),
            ("in-flight", 0),
            ("dead", 1),
            ("discarded", 0),
            ("redelivered", 2),
        ];
        Account {
            sends: (1..=6).map(send).collect(),
            deliveries: vec![
                delivery(1, 1, 1, Fate::Acked),
                delivery(2, 2, 1, Fate::Dropped),
                delivery(3, 3, 1, Fate::Unknown),
                delivery(2, 4, 2, Fate::Acked),
                delivery(4, 5, 1, Fate::Nacked),
                delivery(5, 6, 1, Fate::Acked),
            ],
            dead: [(4, ("m4".to_owned(), 2))].into(),
            stats: stats.map(|(name, number)| (name.to_owned(), number)).into(),
        }
    }

    /// A good account, broken by `break_it`: the error contains `expect`.
    fn check_found(break_it: impl FnOnce(&mut Account), expect: &str) {
        let mut account = good();
        break_it(&mut account);
        let found = format!("{:#}", check(&account, 2).expect_err("it is broken"));
        assert!(found.contains(expect), "{found}");
    }

    #[test]
    fn a_good_account_is_summed_up() {
        let seen = check(&good(), 2).expect("it is good");
        assert_eq!((seen.sent, seen.sent_unanswered, seen.acked, seen.dead), (4, 1, 3, 1));
        assert_eq!((seen.redelivered, seen.dropped, seen.nacked), (2, 1, 1));
    }

    #[test]
    fn a_lost_or_repeated_message_is_found() {
        check_found(|it| drop(it.deliveries.remove(0)), "was acknowledged, and was neither");
        check_found(|it| it.deliveries[0].fate = Fate::Dropped, "is gone, and nobody acked it");
        check_found(|it| it.deliveries[5].body = "m1".to_owned(), "is in messages 1 and 5");
        check_found(|it| it.deliveries[5].body = "m9".to_owned(), "that nobody sent");
        check_found(|it| it.sends[0].id = Some(9), "was sent as message 9 and came as Some(1)");
    }

    #[test]
    fn a_message_on_a_wrong_way_is_found() {
        let again = delivery(1, 9, 2, Fate::Dropped);
        check_found(|it| it.deliveries.push(again), "after it had been acked");
        check_found(|it| it.deliveries[3].attempt = 1, "attempt 1 comes after attempt 1");
        check_found(|it| it.deliveries[3].attempt = 3, "attempt 3, of 2 allowed");
        check_found(|it| it.deliveries[3].receipt = 3, "receipt 3 was given for");
        check_found(|it| it.deliveries[3].body = "m9".to_owned(), "its body changed");
        check_found(|it| it.deliveries[4].fate = Fate::Acked, "it was acked, and is dead");
        let dead = [(4, ("m4".to_owned(), 1))];
        check_found(|it| it.dead = dead.into(), "dead after 1 deliveries");
    }

    #[test]
    fn counters_that_differ_are_found() {
        let set = |name: &'static str, number| {
            move |it: &mut Account| it.stats.extend([(name.to_owned(), number)])
        };
        check_found(set("acked", 3), "5 messages were sent, and 4 are accounted for");
        check_found(set("redelivered", 0), "consumers got 1");
        let more = |it: &mut Account| {
            set("sent", 6)(it);
            set("acked", 5)(it);
        };
        check_found(more, "the queue counts 6 messages sent; clients know of 5");
        let ready = |it: &mut Account| {
            set("acked", 3)(it);
            set("ready", 1)(it);
        };
        check_found(ready, "not at rest");
    }

    #[test]
    fn timers_are_found_by_their_events() {
        let event = |time_ms: u64| Event {
            position: Default::default(),
            time_ms,
            topic: "queue/p".to_owned(),
            payload: "ready 1".into(),
        };
        let events = [event(1_000), event(2_050), event(4_000)];
        let deadline = |until_ms| Deadline { queue: "p".to_owned(), after_ms: 1_000, until_ms };
        let found = timers(&[deadline(2_000)], &events).expect("it is good");
        assert_eq!(found, [Timer { deadline_ms: 2_000, at_ms: 2_050 }]);
        let early = timers(&[deadline(2_900)], &events).expect_err("it came back at 2050");
        assert!(early.to_string().contains("took a message back at Some(2050)"), "{early}");
        let never = timers(&[deadline(5_500)], &events).expect_err("there is no event");
        assert!(never.to_string().contains("told of nothing after"), "{never}");
    }
}
