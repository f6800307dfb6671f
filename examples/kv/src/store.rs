//! The store: an ordered map, and its snapshot.
//!
//! A value is copied once, from the command into the map. A value that a command replaces is moved
//! into the answer.

use lockstep_guest::{
    Context, DetMap, Failure, Info, Key, Outcome, SnapshotHeader, SnapshotReader, SnapshotWriter,
    StateMachine,
};

use crate::command::{Command, KEY_BYTES_MAX, Query};
use crate::watch;

/// The longest value in a snapshot, in bytes: far more than the host accepts in a command, so that
/// only a damaged length exceeds it.
const VALUE_BYTES_MAX: usize = 256 << 20;

/// Keys and their values.
#[derive(Default)]
pub struct Kv {
    pairs: DetMap<Key, Vec<u8>>,
    /// Whether changes are told. Comes from the configuration, so it is not in the snapshot.
    watched: bool,
}

impl StateMachine for Kv {
    const INFO: Info = Info {
        name: "kv",
        version: env!("CARGO_PKG_VERSION"),
        snapshot_format: 1,
        oldest_readable_format: 1,
    };

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        Ok(Self { pairs: DetMap::new(), watched: watch::configured(config)? })
    }

    fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
        let done = Command::parse(command).and_then(|command| {
            if self.watched {
                watch::check_key(command.key())?;
            }
            match command {
                Command::Set { key, value } => Ok(self.set(key, value.to_vec())),
                Command::Del { key } => Ok(self.del(key)),
                Command::Cas { key, old, new } => self.cas(key, old, new),
                Command::Incr { key } => self.incr(key),
            }
        });
        done.map_or_else(Outcome::rejected, Outcome::Ok)
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        match Query::parse(request)? {
            Query::Get { key } => match self.pairs.get(&Key::new(key)) {
                Some(value) => Ok(value.clone()),
                None => Err([b"no key `", key, b"`"].concat()),
            },
            Query::Scan { prefix, limit } => Ok(self.scan(prefix, limit as usize)),
            Query::Len => Ok(self.pairs.len().to_string().into()),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        out.write_u64(self.pairs.len() as u64)?;
        for (key, value) in &self.pairs {
            out.write_block(&key.to_vec())?;
            out.write_block(value)?;
        }
        Ok(())
    }

    fn restore(
        _: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        let watched = watch::configured(config)?;
        let mut pairs = DetMap::new();
        for _ in 0..from.read_u64()? {
            let key = Key::new(&from.read_block(KEY_BYTES_MAX)?);
            let value = from.read_block(VALUE_BYTES_MAX)?;
            // Snapshots have the keys in order; this also finds repeated keys.
            if pairs.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Failure::Corrupt("its keys are out of order".to_owned()));
            }
            pairs.insert(key, value);
        }
        Ok(Self { pairs, watched })
    }
}

impl Kv {
    /// Stores a value; returns the previous one, or an empty one.
    fn set(&mut self, key: &[u8], value: Vec<u8>) -> Vec<u8> {
        if self.watched {
            watch::tell_set(key, &value);
        }
        self.pairs.insert(Key::new(key), value).unwrap_or_default()
    }

    /// Removes a key; returns its value, or an empty one.
    fn del(&mut self, key: &[u8]) -> Vec<u8> {
        let Some(value) = self.pairs.remove(&Key::new(key)) else {
            return Vec::new();
        };
        if self.watched {
            watch::tell_del(key);
        }
        value
    }

    fn cas(&mut self, key: &[u8], old: &[u8], new: &[u8]) -> Result<Vec<u8>, String> {
        match self.pairs.get(&Key::new(key)) {
            Some(value) if value == old => Ok(self.set(key, new.to_vec())),
            Some(_) => Err("the key holds another value".to_owned()),
            None if old.is_empty() => Ok(self.set(key, new.to_vec())),
            None => Err("there is no such key".to_owned()),
        }
    }

    fn incr(&mut self, key: &[u8]) -> Result<Vec<u8>, String> {
        let number = match self.pairs.get(&Key::new(key)) {
            None => 0,
            Some(value) => str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or("the key does not hold a 64-bit whole number")?,
        };
        let next = number.checked_add(1).ok_or("the number would exceed 64 bits")?.to_string();
        self.set(key, next.clone().into());
        Ok(next.into())
    }

    fn scan(&self, prefix: &[u8], limit: usize) -> Vec<u8> {
        let matching = self
            .pairs
            .range(Key::new(prefix)..)
            .map(|(key, value)| (key.to_vec(), value))
            .take_while(|(key, _)| key.starts_with(prefix));
        let mut lines = Vec::new();
        for (key, value) in matching.take(limit) {
            lines.extend_from_slice(&key);
            lines.push(b' ');
            for &byte in value {
                match byte {
                    b'\\' => lines.extend_from_slice(b"\\\\"),
                    b'\n' => lines.extend_from_slice(b"\\n"),
                    _ => lines.push(byte),
                }
            }
            lines.push(b'\n');
        }
        lines
    }
}
