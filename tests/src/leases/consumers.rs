//! Producers, consumers and probers of queues.
//!
//! - Some consumers die with their deliveries, some say no; a poisoned message is never acked.
//! - A prober has a queue of its own with one message, of which it knows each deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lockstep_client::Client;
use tokio::time::{Instant, sleep};

use super::caller::{Answer, Caller};
use super::queue::{Deadline, Delivery, Fate, Send};
use crate::rng::Rng;

pub(super) const QUEUE: &str = "work";
/// Deliveries after which a message is dead: the queues' configuration.
pub(super) const ATTEMPTS_MAX: u64 = 4;
/// The end of the body of a message that no consumer can deal with.
const POISON: char = '!';
/// Messages that wait at most, so that a run does not end with hours of work.
const BACKLOG_MAX: u64 = 300;
/// How long a consumer rests when there is nothing.
const IDLE: Duration = Duration::from_millis(60);
/// Most messages that a consumer receives at once.
const RECEIVE_MAX: u64 = 4;

/// What producers and consumers share.
#[derive(Default)]
pub(super) struct Shared {
    /// Producers and probers stop.
    pub(super) stop: AtomicBool,
    /// Consumers no longer die.
    pub(super) calm: AtomicBool,
    /// Consumers stop.
    pub(super) drained: AtomicBool,
    pub(super) sent: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) redelivered: AtomicU64,
}

/// Sends until told to stop.
pub(super) async fn produce(
    number: u64,
    mut caller: Caller,
    mut rng: Rng,
    shared: Arc<Shared>,
) -> Result<Vec<Send>> {
    let mut sends = Vec::new();
    for message in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let waiting = shared.sent.load(Ordering::Relaxed) - shared.acked.load(Ordering::Relaxed);
        if waiting < BACKLOG_MAX {
            let poison = if rng.below(50) == 0 { POISON.to_string() } else { String::new() };
            let body = format!("p{number}-{message}{poison}");
            match caller.ask(format!("send {QUEUE} {body}")).await? {
                Answer::Ok(id) => {
                    let id = Some(id.parse().context("a sending is answered with an ID")?);
                    sends.push(Send { body, id });
                    // A poisoned message ends among the dead.
                    shared.sent.fetch_add(u64::from(poison.is_empty()), Ordering::Relaxed);
                }
                Answer::Unanswered => sends.push(Send { body, id: None }),
                Answer::Refused => {}
                Answer::Rejected(why) => bail!("a message was rejected: {why}"),
            }
        }
        sleep(Duration::from_millis(20 + rng.below(60))).await;
    }
    Ok(sends)
}

/// Receives until all is drained; returns what it received.
pub(super) async fn consume(
    number: u64,
    mut caller: Caller,
    mut rng: Rng,
    shared: Arc<Shared>,
) -> Result<Vec<Delivery>> {
    let mut deliveries = Vec::new();
    while !shared.drained.load(Ordering::Relaxed) {
        let (visible_ms, most) = (1_000 + rng.below(2_000), 1 + rng.below(RECEIVE_MAX));
        let command = format!("receive {QUEUE} c{number} {visible_ms} {most}");
        let Answer::Ok(listing) = caller.ask(command).await? else { continue };
        let received = received(&listing)?;
        if received.is_empty() {
            sleep(IDLE).await;
        }
        let calm = shared.calm.load(Ordering::Relaxed);
        // A consumer that dies takes the rest of what it received with it.
        let mut dead = false;
        for mut delivery in received {
            shared.redelivered.fetch_add(u64::from(delivery.attempt > 1), Ordering::Relaxed);
            dead |= !calm && rng.below(12) == 0;
            let nack = delivery.body.ends_with(POISON) || (!calm && rng.below(12) == 0);
            delivery.fate = match (dead, nack) {
                (true, _) => Fate::Dropped,
                (false, true) => settle(&mut caller, "nack", &delivery).await?,
                (false, false) => settle(&mut caller, "ack", &delivery).await?,
            };
            shared.acked.fetch_add(u64::from(delivery.fate == Fate::Acked), Ordering::Relaxed);
            deliveries.push(delivery);
        }
    }
    Ok(deliveries)
}

async fn settle(caller: &mut Caller, verb: &str, delivery: &Delivery) -> Result<Fate> {
    let Delivery { id, receipt, .. } = delivery;
    Ok(match caller.ask(format!("{verb} {QUEUE} {receipt}")).await? {
        Answer::Ok(answer) if verb == "ack" => {
            if answer != id.to_string() {
                bail!("receipt {receipt} is of message {id}, and its ack was answered {answer}");
            }
            Fate::Acked
        }
        Answer::Ok(_) => Fate::Nacked,
        Answer::Rejected(_) => Fate::TooLate,
        // It comes back by the timer.
        Answer::Refused => Fate::Dropped,
        Answer::Unanswered => Fate::Unknown,
    })
}

/// The messages of an answer to `receive`, for which no fate is known yet.
fn received(listing: &str) -> Result<Vec<Delivery>> {
    let delivery = |([id, receipt, attempt], body): ([u64; 3], String)| Delivery {
        id,
        receipt,
        attempt,
        body,
        fate: Fate::Dropped,
    };
    Ok(listed(listing)?.into_iter().map(delivery).collect())
}

/// The messages of a listing: numbers, the length, and on a line of its own the body.
fn listed<const N: usize>(listing: &str) -> Result<Vec<([u64; N], String)>> {
    let mut lines = listing.lines();
    let mut messages = Vec::new();
    while let Some(header) = lines.next() {
        let body = lines.next().with_context(|| format!("no body follows `{header}`"))?;
        let numbers: Option<Vec<u64>> = header.split(' ').map(|word| word.parse().ok()).collect();
        let (numbers, length) = numbers
            .as_deref()
            .and_then(|numbers| numbers.split_last_chunk::<1>())
            .with_context(|| format!("a listing has the header `{header}`"))?;
        let numbers = <[u64; N]>::try_from(numbers).context("the numbers of a listing")?;
        if length[0] != body.len() as u64 {
            bail!("`{header}` is followed by `{body}`");
        }
        messages.push((numbers, body.to_owned()));
    }
    Ok(messages)
}

/// Delivers one message after the other until it is dead, and notes when its visibility passes.
pub(super) async fn probe(
    number: u64,
    mut caller: Caller,
    mut rng: Rng,
    shared: Arc<Shared>,
) -> Result<Vec<Deadline>> {
    let mut deadlines = Vec::new();
    for message in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        // A queue for each message: one whose fate is unknown cannot be taken for the next.
        let queue = format!("probe-{number}-{message}");
        if matches!(caller.ask(format!("send {queue} x")).await?, Answer::Ok(_)) {
            probe_once(&queue, &mut caller, &mut rng, &mut deadlines).await?;
        }
    }
    Ok(deadlines)
}

/// Receives the message of a queue, extends its visibility and drops it, as often as is allowed.
/// Ends early when an answer is lacking.
async fn probe_once(
    queue: &str,
    caller: &mut Caller,
    rng: &mut Rng,
    deadlines: &mut Vec<Deadline>,
) -> Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        let delivery = loop {
            let listing = match caller.ask(format!("receive {queue} prober 5000")).await? {
                Answer::Ok(listing) => listing,
                Answer::Refused => continue,
                Answer::Unanswered | Answer::Rejected(_) => return Ok(()),
            };
            match received(&listing)?.pop() {
                Some(delivery) => break delivery,
                None => sleep(IDLE).await,
            }
        };
        let after_ms = 1_000 + rng.below(1_500);
        let command = format!("extend {queue} {} {after_ms}", delivery.receipt);
        let Answer::Ok(until) = caller.ask(command).await? else { return Ok(()) };
        let until_ms = until.parse().context("an extension is answered with a time")?;
        deadlines.push(Deadline { queue: queue.to_owned(), after_ms, until_ms });
        sleep(Duration::from_millis(after_ms)).await;
    }
    Ok(())
}

/// Waits until no message of any queue is in flight, and none of the consumers' is ready; returns
/// the names of all queues.
pub(super) async fn wait_drained(client: &Client, patience: Duration) -> Result<Vec<String>> {
    let until = Instant::now() + patience;
    loop {
        let listing = super::query(client, "queues  1000").await?;
        let lines: Option<Vec<_>> = listing.lines().map(queue_line).collect();
        let lines = lines.with_context(|| format!("queues are listed as `{listing}`"))?;
        let at_rest = |(name, [ready, in_flight, _]): &(&str, [u64; 3])| {
            *in_flight == 0 && (*name != QUEUE || *ready == 0)
        };
        if lines.iter().all(at_rest) {
            return Ok(lines.iter().map(|(name, _)| (*name).to_owned()).collect());
        }
        if Instant::now() >= until {
            bail!("queues are not at rest {patience:?} after the last message:\n{listing}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// The name of a queue, and how many messages are ready, in flight and dead.
fn queue_line(line: &str) -> Option<(&str, [u64; 3])> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
    Some((name, numbers?.try_into().ok()?))
}

pub(super) async fn stats(client: &Client, queue: &str) -> Result<BTreeMap<String, u64>> {
    let text = super::query(client, &format!("stats {queue}")).await?;
    let line = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    let stats: Option<_> = text.lines().map(line).collect();
    stats.with_context(|| format!("the counters of queue {queue} are `{text}`"))
}

/// Lists the dead messages of the queue, and discards them, for a listing has an end.
pub(super) async fn take_dead(client: &Client) -> Result<BTreeMap<u64, (String, u64)>> {
    let mut caller = Caller::new(client.clone());
    let mut dead = BTreeMap::new();
    loop {
        let page = super::query(client, &format!("dead {QUEUE} 1000")).await?;
        let page: Vec<([u64; 2], String)> = listed(&page)?;
        if page.is_empty() {
            return Ok(dead);
        }
        for ([id, attempts], body) in page {
            let answer = caller.ask(format!("discard {QUEUE} {id}")).await?;
            if answer != Answer::Ok("discarded".to_owned()) {
                bail!("message {id} is dead, and `discard` was answered {answer:?}");
            }
            dead.insert(id, (body, attempts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_taken_apart() {
        let listing = "7 12 1 5\nhello\n8 13 2 0\n\n";
        let found: Vec<([u64; 3], String)> = listed(listing).expect("it is good");
        assert_eq!(found, [([7, 12, 1], "hello".to_owned()), ([8, 13, 2], String::new())]);
        for bad in ["7 12 1 5\n", "7 12 1 4\nhello\n", "7 12 5\nhello\n", "x\ny\n"] {
            assert!(listed::<3>(bad).is_err(), "{bad}");
        }
    }
}
