//! The guest of the scripts: a few registers, and commands that provoke what a guest may do.
//!
//! `set KEY VALUE` answers the old value, `no` rejects, `time` answers the entry's log time,
//! `dice` answers its chance, `big BYTES` answers that many bytes, `trap` traps on every replica.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::apply::{Moment, Outcome};

#[derive(Clone, Default, Debug)]
pub(crate) struct Machine {
    registers: BTreeMap<String, String>,
}

impl Machine {
    /// `None` is a trap.
    pub(crate) fn apply(&mut self, moment: Moment, command: &[u8]) -> Option<Outcome> {
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
            ["trap"] => return None,
            _other => Outcome::Ok(Bytes::new()),
        })
    }

    pub(crate) fn query(&self, key: &[u8]) -> String {
        let key = String::from_utf8_lossy(key).into_owned();
        self.registers.get(&key).cloned().unwrap_or_else(|| "-".to_owned())
    }

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
        Self { registers: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect() }
    }
}
