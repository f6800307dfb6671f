//! Whether the locks kept their promises: judged by their events, and by what holders were told.
//!
//! - The events of a lock are grants and ends by turns; an end names the grant before it.
//! - Each grant has a higher token than all before it, of whatever lock.
//! - A lease expires at its end or later, by the log's time, and is never released after its end.
//! - What a holder was told, a grant or a release, is among the events.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::Event;

use super::lateness::Timer;

pub(super) const TOPIC: &str = "lock/";

/// A lease as its holder knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease {
    pub(super) lock: String,
    pub(super) owner: String,
    pub(super) token: u64,
    /// The end that the last renewal was told, ms; 0 if there was none.
    pub(super) until_ms: u64,
    /// Whether a renewal had no answer, so that the end is unknown.
    pub(super) renewed_perhaps: bool,
    /// Whether the holder was told that the lock is released.
    pub(super) released: bool,
}

/// What the events show.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks {
    /// The lock and the owner of each token.
    pub(super) granted: BTreeMap<u64, (String, String)>,
    pub(super) released: u64,
    pub(super) expired: u64,
    /// The leases that expired, but for those whose end is unknown.
    pub(super) timers: Vec<Timer>,
}

/// What an event says of a lock.
#[derive(Debug)]
enum Said {
    Granted { until_ms: u64 },
    Released,
    Expired,
}

/// A lock that is held, as the events have it.
struct Held<'a> {
    owner: &'a str,
    token: u64,
    until_ms: u64,
}

/// Checks all events of the locks, in order, against what holders know. In the end all are free.
pub(super) fn check(events: &[Event], leases: &[Lease]) -> Result<Locks> {
    let known: BTreeMap<u64, &Lease> = leases.iter().map(|lease| (lease.token, lease)).collect();
    let mut held: BTreeMap<&str, Held<'_>> = BTreeMap::new();
    let (mut seen, mut last_token) = (Locks::default(), 0);
    for event in events {
        let (lock, owner, token, said) = parse(event)?;
        let at = format!("event {} `{}`", event.position, text(event));
        if let Said::Granted { until_ms } = said {
            ensure!(token > last_token, "{at} of {lock}: token {last_token} was granted before it");
            last_token = token;
            let before = held.insert(lock, Held { owner, token, until_ms });
            if let Some(Held { owner, token, .. }) = before {
                bail!("{at}: lock {lock} is held by {owner} with token {token}, hence twice");
            }
            seen.granted.insert(token, (lock.to_owned(), owner.to_owned()));
            continue;
        }
        let ended = held.remove(lock).with_context(|| format!("{at}: lock {lock} is free"))?;
        ensure!(
            (ended.owner, ended.token) == (owner, token),
            "{at}: lock {lock} is held by {} with token {}",
            ended.owner,
            ended.token
        );
        let lease = known.get(&token).copied();
        end(&mut seen, &said, ended.until_ms, event.time_ms, lease).context(at)?;
    }
    if let Some((lock, Held { owner, token, .. })) = held.first_key_value() {
        bail!("lock {lock} is held by {owner} with token {token} to the end");
    }
    told(leases, &seen.granted, events)?;
    Ok(seen)
}

/// Checks when a lease ended.
fn end(
    seen: &mut Locks,
    said: &Said,
    granted_until_ms: u64,
    at_ms: u64,
    lease: Option<&Lease>,
) -> Result<()> {
    let until_ms = lease.map_or(0, |lease| lease.until_ms).max(granted_until_ms);
    let certain = lease.is_none_or(|lease| !lease.renewed_perhaps);
    match said {
        Said::Expired => {
            ensure!(at_ms >= until_ms, "it expired {} ms early", until_ms - at_ms);
            seen.expired += 1;
            if certain {
                seen.timers.push(Timer { deadline_ms: until_ms, at_ms });
            }
        }
        Said::Released => {
            let late = certain && at_ms >= until_ms;
            ensure!(!late, "it was released when its lease was over, which ended at {until_ms}");
            seen.released += 1;
        }
        Said::Granted { .. } => unreachable!("a grant ends nothing"),
    }
    Ok(())
}

/// Checks that all that holders were told is among the events.
fn told(
    leases: &[Lease],
    granted: &BTreeMap<u64, (String, String)>,
    events: &[Event],
) -> Result<()> {
    let released: BTreeMap<u64, &Event> = events
        .iter()
        .filter(|event| event.payload.starts_with(b"released "))
        .map(|event| Ok((parse(event)?.2, event)))
        .collect::<Result<_>>()?;
    for Lease { lock, owner, token, released: was_released, .. } in leases {
        let to = granted.get(token);
        ensure!(
            to.is_some_and(|to| (&to.0, &to.1) == (lock, owner)),
            "{owner} was granted lock {lock} with token {token}; the events have {to:?}"
        );
        ensure!(
            !was_released || released.contains_key(token),
            "{owner} was told that lock {lock}, token {token}, is released; no event says so"
        );
    }
    Ok(())
}

fn parse(event: &Event) -> Result<(&str, &str, u64, Said)> {
    let parsed = || {
        let lock = event.topic.strip_prefix(TOPIC)?;
        let words: Vec<&str> = str::from_utf8(&event.payload).ok()?.split(' ').collect();
        let (owner, token, said) = match words[..] {
            ["granted", owner, token, until] => {
                (owner, token, Said::Granted { until_ms: until.parse().ok()? })
            }
            ["released", owner, token] => (owner, token, Said::Released),
            ["expired", owner, token] => (owner, token, Said::Expired),
            _ => return None,
        };
        Some((lock, owner, token.parse().ok()?, said))
    };
    parsed().with_context(|| format!("an event of {} says `{}`", event.topic, text(event)))
}

fn text(event: &Event) -> String {
    String::from_utf8_lossy(&event.payload).into_owned()
}

/// The owner and the token, if the event grants a lock.
pub(super) fn grant(event: &Event) -> Option<(&str, u64)> {
    match parse(event).ok()? {
        (_, owner, token, Said::Granted { .. }) => Some((owner, token)),
        (_, _, _, Said::Released | Said::Expired) => None,
    }
}

#[cfg(test)]
mod tests {
    use lockstep_client::Position;

    use super::*;

    /// Checks events written as `TIME LOCK WHAT…`; the error, if there is one, contains `expect`.
    fn check_text(events: &[&str], leases: &[Lease], expect: Option<&str>) {
        let event = |(index, line): (usize, &&str)| {
            let (time, rest) = line.split_once(' ').expect("a time");
            let (lock, payload) = rest.split_once(' ').expect("a lock");
            Event {
                position: Position { index: index as u64, number: 0 },
                time_ms: time.parse().expect("a number"),
                topic: format!("{TOPIC}{lock}"),
                payload: payload.to_owned().into(),
            }
        };
        let events: Vec<Event> = events.iter().enumerate().map(event).collect();
        let found = check(&events, leases).err().map(|error| format!("{error:#}"));
        let good = match (&found, expect) {
            (None, None) => true,
            (Some(found), Some(expect)) => found.contains(expect),
            _ => false,
        };
        assert!(good, "{events:?}: found {found:?}, expected {expect:?}");
    }

    fn lease(token: u64, until_ms: u64) -> Lease {
        let (lock, owner) = ("a".to_owned(), "ann".to_owned());
        Lease { lock, owner, token, until_ms, ..Lease::default() }
    }

    #[test]
    fn a_proper_history_is_good() {
        check_text(&[], &[], None);
        let events = [
            "10 a granted ann 1 1010",
            "20 b granted bob 2 1020",
            "500 a released ann 1",
            "500 a granted cyd 3 1500",
            "1100 b expired bob 2",
            "1500 a expired cyd 3",
        ];
        check_text(&events, &[Lease { released: true, ..lease(1, 0) }], None);
    }

    #[test]
    fn a_lock_that_is_held_twice_is_found() {
        let events = ["10 a granted ann 1 1010", "20 a granted bob 2 1020"];
        check_text(&events, &[], Some("lock a is held by ann with token 1, hence twice"));
        check_text(&["10 a expired ann 1"], &[], Some("lock a is free"));
        let events = ["10 a granted ann 1 1010", "20 a released bob 1"];
        check_text(&events, &[], Some("lock a is held by ann with token 1"));
        check_text(&["10 a granted ann 1 1010"], &[], Some("token 1 to the end"));
    }

    #[test]
    fn a_token_that_does_not_rise_is_found() {
        for token in [1, 2] {
            let events = ["10 a granted ann 2 1010", &format!("20 b granted bob {token} 1020")];
            check_text(&events, &[], Some("token 2 was granted before it"));
        }
    }

    #[test]
    fn an_end_at_a_wrong_time_is_found() {
        check_text(&["10 a granted ann 1 1010", "1009 a expired ann 1"], &[], Some("1 ms early"));
        let events = ["10 a granted ann 1 1010", "1500 a expired ann 1"];
        check_text(&events, &[lease(1, 1_500)], None);
        check_text(&events, &[lease(1, 1_600)], Some("100 ms early"));
        let events = ["10 a granted ann 1 1010", "1010 a released ann 1"];
        check_text(&events, &[], Some("released when its lease was over"));
        check_text(&events, &[Lease { renewed_perhaps: true, ..lease(1, 0) }], None);
    }

    #[test]
    fn what_a_holder_was_told_and_no_event_says_is_found() {
        let events = ["10 a granted ann 1 1010", "1010 a expired ann 1"];
        check_text(&events, &[lease(2, 0)], Some("the events have None"));
        let lied = Lease { released: true, ..lease(1, 0) };
        check_text(&events, &[lied], Some("no event says so"));
        check_text(&["10 a seized ann 1"], &[], Some("an event of lock/a says `seized ann 1`"));
    }
}
