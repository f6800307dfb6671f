//! A model of the locks that knows only what clients see: commands, outcomes and events. It shares
//! no code with the state machine.

use std::fmt::Write;

use lockstep_guest::testing::{Applied, Harness};
use lockstep_guest::{DetMap, Outcome};

use crate::{Locks, TTL_MS_MAX, TTL_MS_MIN};

#[derive(Default)]
struct Model {
    /// The owner and the token of each lock that is held.
    held: DetMap<String, (String, u64)>,
    /// The end of each lease that there ever was, by token.
    ends: DetMap<u64, u64>,
}

/// Follows everything that was applied, and compares where it led to.
pub(super) fn check(lock: &mut Harness<Locks>) {
    let mut model = Model::default();
    for entry in lock.history() {
        model.follow(&entry);
    }
    let mut list = String::new();
    for (name, (owner, token)) in &model.held {
        let waiters = lock.query(format!("waiters {name}")).expect("it is a name");
        let waiters = waiters.iter().filter(|&&byte| byte == b'\n').count();
        let until = model.ends[token];
        writeln!(list, "{name} {owner} {token} {until} {waiters}").expect("it is a string");
    }
    lock.check_query("list  1000", &format!("ok {list}"));
    let earliest = model.held.values().map(|(_, token)| model.ends[token]).min();
    assert_eq!(lock.timer(), earliest, "the timer is at the end of a lease");
}

impl Model {
    fn follow(&mut self, entry: &Applied<'_>) {
        let now_ms = entry.ctx.time_ms;
        // An end of a lease that a command of this entry moved is in the future, and only commands
        // of later entries can see it pass: so events come first.
        for (topic, payload) in entry.events {
            let name = topic.strip_prefix("lock/").expect("all topics begin so");
            let payload = str::from_utf8(payload).expect("payloads are text");
            self.event(now_ms, name, &payload.split(' ').collect::<Vec<_>>());
        }
        for (command, outcome) in entry.commands.iter().zip(entry.outcomes) {
            if let Outcome::Ok(answer) = outcome {
                let command = str::from_utf8(command).expect("what was accepted is text");
                let answer = str::from_utf8(answer).expect("answers are text");
                self.executed(now_ms, command, answer, entry.events);
            }
        }
    }

    fn event(&mut self, now_ms: u64, name: &str, words: &[&str]) {
        let token = words[2].parse().expect("a token");
        match *words {
            ["granted", owner, _, until] => {
                let until = until.parse().expect("a time");
                assert!((TTL_MS_MIN..=TTL_MS_MAX).contains(&(until - now_ms)));
                let last = self.ends.last_key_value().map_or(0, |(&last, _)| last);
                assert!(token > last, "token {token} follows {last}");
                self.ends.insert(token, until);
                let before = self.held.insert(name.to_owned(), (owner.to_owned(), token));
                assert_eq!(before, None, "lock {name} was granted and is held");
            }
            [how @ ("expired" | "released"), owner, _] => {
                let before = self.held.remove(name);
                assert_eq!(before, Some((owner.to_owned(), token)), "{how} lock {name}");
                let is_over = now_ms >= self.ends[&token];
                assert_eq!(how == "expired", is_over, "token {token} of lock {name} {how}");
            }
            _ => panic!("unknown event {words:?}"),
        }
    }

    fn executed(&mut self, now_ms: u64, command: &str, answer: &str, events: &[(String, Vec<u8>)]) {
        let happened = |name: &str, what: &str| {
            let same = events.iter().any(|(topic, payload)| {
                *topic == format!("lock/{name}") && payload.starts_with(what.as_bytes())
            });
            assert!(same, "`{command}` was answered `{answer}` and no event says {what}");
        };
        let answer: Vec<&str> = answer.split(' ').collect();
        match (command.split(' ').collect::<Vec<_>>()[..].as_ref(), &answer[..]) {
            (["acquire", name, owner, ttl], [token])
            | (["wait", name, owner, ttl], ["granted", token]) => {
                let until = now_ms + ttl.parse::<u64>().expect("a time");
                happened(name, &format!("granted {owner} {token} {until}"));
            }
            (["renew", _, token, ttl], [until]) => {
                let until = until.parse().expect("a time");
                assert_eq!(until, now_ms + ttl.parse::<u64>().expect("a time"));
                let end = self.ends.get_mut(&token.parse().expect("a token"));
                let end = end.expect("it was granted");
                assert!(*end > now_ms, "`{command}` renewed a lease that was over");
                *end = until;
            }
            (["release", name, token], ["released"]) => {
                let released = |payload: &[u8]| {
                    payload.starts_with(b"released ")
                        && payload.ends_with(format!(" {token}").as_bytes())
                };
                assert!(events.iter().any(|(topic, payload)| {
                    *topic == format!("lock/{name}") && released(payload)
                }));
            }
            (["wait", ..], ["waiting", _]) | (["cancel", ..], ["cancelled"]) => {}
            _ => panic!("`{command}` was answered {answer:?}"),
        }
    }
}
