//! The guest of the scripts: a few registers, and commands that make it do what guests may do.
//!
//! `set KEY VALUE` answers the old value, `no` is rejected, `time` answers the entry's log time,
//! `dice` answers its random seed, `big BYTES` answers that many bytes, `trap` traps on every
//! replica. `hold KEY BYTES` keeps that many bytes and `free KEY` drops them: the machine's memory
//! grows with what it keeps, and never shrinks. `wake-in MS` sets the timer, `no-wake` sets it to
//! never; `woken` holds how often it was woken, and when last. `emit TOPIC TEXT` emits an event.
//! `which` answers the number of the module that applies it, and module 8 does not trap.
//! A machine that a script leads astray has something in its snapshots that no other one has.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::apply::{Emitted, GuestEvent, Moment, Outcome, Setting};

#[derive(Clone, Default, Debug)]
pub(crate) struct Machine {
    registers: BTreeMap<String, String>,
    /// Its memory: the most bytes that it ever kept.
    memory: usize,
    /// The number of its module.
    pub(crate) module: u8,
    /// What a script led it astray with.
    pub(crate) astray: Option<String>,
}

/// The memory of a machine that keeps nothing.
const EMPTY_BYTES: usize = 1_000;

impl Machine {
    /// Applies a command; `None` is a trap.
    pub(crate) fn apply(
        &mut self,
        moment: Moment,
        command: &[u8],
        emitted: &mut Emitted,
    ) -> Option<Outcome> {
        let text = String::from_utf8_lossy(command.trim_ascii_end()).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        Some(match words.as_slice() {
            ["set", key, value] => {
                let old = self.registers.insert((*key).to_owned(), (*value).to_owned());
                Outcome::Ok(Bytes::from(old.unwrap_or_else(|| "-".to_owned())))
            }
            ["no"] => Outcome::Rejected(Bytes::from_static(b"no")),
            ["time"] => Outcome::Ok(Bytes::from(moment.time_ms.to_string())),
            ["dice"] => Outcome::Ok(Bytes::from(format!("{:x?}", moment.seed))),
            ["big", bytes, ..] => {
                Outcome::Ok(Bytes::from(vec![b'x'; bytes.parse().expect("big BYTES")]))
            }
            ["hold", key, bytes] => {
                let value = "x".repeat(bytes.parse().expect("hold KEY BYTES"));
                self.registers.insert((*key).to_owned(), value);
                self.grow();
                Outcome::Ok(Bytes::new())
            }
            ["free", key] => {
                self.registers.remove(*key);
                Outcome::Ok(Bytes::new())
            }
            ["wake-in", ms] => {
                let at_ms = moment.time_ms + ms.parse::<u64>().expect("wake-in MS");
                self.registers.insert("due".to_owned(), at_ms.to_string());
                emitted.timer = Some(Setting::At(at_ms));
                Outcome::Ok(Bytes::from(at_ms.to_string()))
            }
            ["no-wake"] => {
                self.registers.remove("due");
                emitted.timer = Some(Setting::Never);
                Outcome::Ok(Bytes::new())
            }
            ["emit", topic, payload] => {
                let payload = Bytes::from((*payload).to_owned());
                emitted.emit(GuestEvent { topic: (*topic).into(), payload }, usize::MAX);
                Outcome::Ok(Bytes::new())
            }
            ["which"] => Outcome::Ok(Bytes::from(self.module.to_string())),
            ["trap"] if self.module != 8 => return None,
            _other => Outcome::Ok(Bytes::new()),
        })
    }

    /// The time to which the timer was set has come.
    pub(crate) fn wake(&mut self, moment: Moment) {
        let due = self.registers.remove("due").expect("a machine whose timer is not set is woken");
        let due: u64 = due.parse().expect("the machine wrote it");
        assert!(due <= moment.time_ms, "woken at {}, before {due}", moment.time_ms);
        let before = self.registers.get("woken").and_then(|woken| woken.split(' ').next());
        let times: u64 = before.map_or(0, |times| times.parse().expect("the machine wrote it"));
        self.registers.insert("woken".to_owned(), format!("{} at {}", times + 1, moment.time_ms));
    }

    fn grow(&mut self) {
        let keeps: usize = self.registers.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.memory = self.memory.max(EMPTY_BYTES + keeps);
    }

    pub(crate) fn memory(&self) -> u64 {
        self.memory.max(EMPTY_BYTES) as u64
    }

    pub(crate) fn query(&self, key: &[u8]) -> String {
        let key = String::from_utf8_lossy(key).into_owned();
        self.registers.get(&key).cloned().unwrap_or_else(|| "-".to_owned())
    }

    /// Its snapshot.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let astray = self.astray.iter().flat_map(|with| format!("astray={with}\n").into_bytes());
        self.encode().into_iter().chain(astray).collect()
    }

    /// What commands made of it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.registers
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect::<String>()
            .into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let mut registers: BTreeMap<String, String> =
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let astray = registers.remove("astray");
        let mut machine = Self { registers, memory: 0, module: 0, astray };
        machine.grow();
        machine
    }
}
