//! Watchers, and whether what they saw is one sequence.
//!
//! - Each watcher sees every event once and in order; all see the same ones.
//! - A watcher may miss events only if it was away for longer than the window reaches back, and if
//!   it was told so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::{Client, Error, Event, Position};
use lockstep_core::limits::EVENT_OVERHEAD_BYTES;
use tokio::sync::watch;

use super::holders::Shared;
use super::locks;
use crate::rng::Rng;
use crate::tell::{Teller, thousands};

/// How long to rest when no node goes on with a watch.
const REST: Duration = Duration::from_millis(200);

/// A watcher at work.
pub(super) struct Watcher {
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) client: Client,
    /// The longest that it is away, if it goes away now and then.
    pub(super) away: Option<(Rng, Duration)>,
    pub(super) shared: Arc<Shared>,
    pub(super) newest: Arc<Newest>,
}

/// The newest position that any watcher of a group has seen.
#[derive(Default)]
pub(super) struct Newest(Mutex<Position>);

/// What a watcher saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) events: Vec<Event>,
    pub(super) gaps: Vec<Gap>,
    /// How often no node went on with the watch in time.
    pub(super) searches: u64,
    /// How often it went away and came back.
    pub(super) aways: u64,
}

/// What a watcher missed and was told that it missed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    from: Position,
    begin: Position,
    /// The newest position that any watcher had seen.
    newest: Position,
}

impl Newest {
    fn raise(&self, to: Position) -> Position {
        let mut newest = self.0.lock().expect("no holder of this lock panics");
        *newest = to.max(*newest);
        *newest
    }
}

impl Watcher {
    /// Watches until everything up to the entry that `goal` names was seen.
    pub(super) async fn run(mut self, goal: watch::Receiver<Option<u64>>) -> Result<Account> {
        let (name, prefix) = (self.name.clone(), self.prefix.clone());
        let mut account = Account { name, prefix, ..Account::default() };
        let mut position = Position::default();
        let mut until_away = self.draw_away();
        let mut events = self.client.watch(&self.prefix, Some(position));
        loop {
            match events.next().await {
                Ok(batch) => {
                    let seen = batch.events.iter().filter_map(locks::grant);
                    self.shared.grants.add(seen);
                    position = batch.next;
                    self.newest.raise(position);
                    account.events.extend(batch.events);
                    if let Some(goal) = goal.borrow().filter(|goal| batch.applied_index >= *goal) {
                        // Others may see no further.
                        account.events.retain(|event| event.position.index <= goal);
                        return Ok(account);
                    }
                }
                Err(Error::Compacted { begin, .. }) => {
                    let newest = self.newest.raise(begin);
                    account.gaps.push(Gap { from: position, begin, newest });
                    position = begin;
                    events = self.client.watch(&self.prefix, Some(position));
                }
                Err(Error::Refused { .. } | Error::FromFuture { .. }) => {
                    account.searches += 1;
                    tokio::time::sleep(REST).await;
                    events = self.client.watch(&self.prefix, Some(position));
                }
                Err(other) => bail!("watcher {}, at {position}: {other}", self.name),
            }
            if account.events.len() >= until_away && goal.borrow().is_none() {
                drop(events);
                self.go_away(goal.clone()).await;
                account.aways += 1;
                until_away = account.events.len() + self.draw_away();
                events = self.client.watch(&self.prefix, Some(position));
            }
        }
    }

    /// How many events it sees before it goes away.
    fn draw_away(&mut self) -> usize {
        self.away.as_mut().map_or(usize::MAX, |(rng, _)| 1 + rng.below(200) as usize)
    }

    async fn go_away(&mut self, mut goal: watch::Receiver<Option<u64>>) {
        let Some((rng, longest)) = &mut self.away else { return };
        let time = Duration::from_millis(rng.below(longest.as_millis() as u64 + 1));
        let over = goal.wait_for(Option::is_some);
        // In the end it comes back at once.
        let _ = tokio::time::timeout(time, over).await;
    }
}

/// Checks that all accounts are of one sequence of events, and returns that.
pub(super) fn check(accounts: &[Account], window_bytes: usize) -> Result<Vec<Event>> {
    let mut all: BTreeMap<Position, &Event> = BTreeMap::new();
    for Account { name, events, .. } in accounts {
        for pair in events.windows(2) {
            let [one, next] = [&pair[0], &pair[1]].map(|event| (event.position, event.time_ms));
            ensure!(one.0 < next.0, "watcher {name} saw event {} after {}", next.0, one.0);
            ensure!(one.1 <= next.1, "watcher {name}: time goes back at event {}", next.0);
        }
        for event in events {
            let first = *all.entry(event.position).or_insert(event);
            ensure!(first == event, "watcher {name} saw {event:?} where another saw {first:?}");
        }
    }
    let all: Vec<Event> = all.into_values().cloned().collect();
    for account in accounts {
        complete(account, &all).with_context(|| format!("watcher {}", account.name))?;
        for gap in &account.gaps {
            excused(gap, &all, window_bytes)
                .with_context(|| format!("watcher {}", account.name))?;
        }
    }
    Ok(all)
}

pub(super) fn tell(accounts: &[Account], events: usize, tell: &Teller) {
    let sum = |of: fn(&Account) -> u64| -> u64 { accounts.iter().map(of).sum() };
    let group = accounts.first().and_then(|one| one.name.split('/').next()).unwrap_or_default();
    tell.shown(format!(
        "{} events of {group}: {} watchers saw each once and in order; away {} times, {} times \
         without a node that answered, {} times told that events are gone, as they were",
        thousands(events as u64),
        accounts.len(),
        sum(|account| account.aways),
        sum(|account| account.searches),
        sum(|account| account.gaps.len() as u64),
    ));
}

/// Checks that a watcher saw every event of its prefix, but for its gaps.
fn complete(account: &Account, all: &[Event]) -> Result<()> {
    let missed = |at: Position| account.gaps.iter().any(|gap| gap.from <= at && at < gap.begin);
    let due = all
        .iter()
        .filter(|event| event.topic.starts_with(&account.prefix) && !missed(event.position));
    let mut seen = account.events.iter().map(|event| event.position);
    for event in due {
        let at = event.position;
        let next = seen.next();
        ensure!(next == Some(at), "event {at} is missing; the next one it saw is {next:?}");
    }
    match seen.next() {
        Some(more) => bail!("event {more} is not one of those that it was to see"),
        None => Ok(()),
    }
}

/// Checks that the window could not reach back to where the gap begins.
fn excused(gap: &Gap, all: &[Event], window_bytes: usize) -> Result<()> {
    let since = all.iter().filter(|event| (gap.from..gap.newest).contains(&event.position));
    let bytes: usize =
        since.map(|event| event.topic.len() + event.payload.len() + EVENT_OVERHEAD_BYTES).sum();
    // Watchers learn of the newest events a little after the node that refused.
    ensure!(
        bytes >= window_bytes / 10 * 9,
        "it was told that events from {} on are gone, but only {bytes} bytes of them followed, and \
         the window has {window_bytes}",
        gap.from
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Position {
        Position { index, number: 0 }
    }

    fn event(index: u64) -> Event {
        let topic = if index.is_multiple_of(2) { "x/even" } else { "x/odd" }.to_owned();
        let payload = index.to_string().into();
        Event { position: at(index), time_ms: 1_000 + index, topic, payload }
    }

    fn account(prefix: &str, indices: &[u64]) -> Account {
        let events = indices.iter().copied().map(event).collect();
        Account { name: "w".to_owned(), prefix: prefix.to_owned(), events, ..Account::default() }
    }

    fn check_found(accounts: &[Account], expect: &str) {
        let found = check(accounts, 100).expect_err("it is broken");
        let found = format!("{found:#}");
        assert!(found.contains(expect), "{found}");
    }

    #[test]
    fn equal_sequences_are_good() {
        let all = account("x/", &[1, 2, 3, 4, 5]);
        let gap = Gap { from: at(2), begin: at(4), newest: at(5) };
        let gapped = Account { gaps: vec![gap], ..account("x/", &[1, 4, 5]) };
        let accounts = [all, account("x/even", &[2, 4]), gapped];
        assert_eq!(check(&accounts, 100).expect("it is good").len(), 5);
    }

    #[test]
    fn what_is_repeated_missed_or_swapped_is_found() {
        let all = account("x/", &[1, 2, 3]);
        check_found(&[account("x/", &[1, 2, 2])], "saw event 2.0 after 2.0");
        check_found(&[account("x/", &[2, 1])], "saw event 1.0 after 2.0");
        check_found(&[all.clone(), account("x/", &[1, 3])], "event 2.0 is missing; the next");
        check_found(&[all.clone(), account("x/", &[1, 2])], "event 3.0 is missing; the next");
        check_found(&[all.clone(), account("x/even", &[1, 2])], "event 2.0 is missing; the next");
        check_found(&[all.clone(), account("x/even", &[2, 3])], "event 3.0 is not one of those");
        let mut other = all.clone();
        other.events[1].payload = "two".into();
        check_found(&[all.clone(), other], "where another saw");
        let mut back = all;
        back.events[1].time_ms = 0;
        check_found(&[back], "time goes back at event 2.0");
    }

    #[test]
    fn a_gap_within_the_window_is_found() {
        let all = account("x/", &[1, 2, 3, 4]);
        let gap = Gap { from: at(2), begin: at(3), newest: at(3) };
        let gapped = Account { gaps: vec![gap], ..account("x/", &[1, 3, 4]) };
        check_found(&[all, gapped], "told that events from 2.0 on are gone, but only 71 bytes");
    }
}
