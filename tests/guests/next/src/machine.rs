//! The machine of both crates, which say which version they are.

use lockstep_guest::{
    Context, DetMap, Failure, Info, Outcome, SnapshotHeader, SnapshotReader, SnapshotWriter,
    StateMachine,
};

use crate::{NUMBER, VERSION};

const KEY_BYTES_MAX: usize = 1024;
const VALUE_BYTES_MAX: usize = 256 << 20;

pub struct Machine {
    pairs: DetMap<Vec<u8>, Vec<u8>>,
    /// How many versions the state came through.
    versions: u64,
}

impl StateMachine for Machine {
    const INFO: Info =
        Info { name: "kv", version: VERSION, snapshot_format: 2, oldest_readable_format: 1 };

    fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> {
        Ok(Self { pairs: DetMap::new(), versions: 1 })
    }

    fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
        let mut words = command.splitn(3, |byte| *byte == b' ');
        match (words.next(), words.next(), words.next()) {
            (Some(b"set"), Some(key), Some(value)) => {
                assert!(NUMBER > 2 || key != b"poison", "this version does not bear poison");
                let old = self.pairs.insert(key.to_vec(), value.to_vec());
                Outcome::Ok(old.unwrap_or_default())
            }
            (Some(b"incr"), Some(key), None) => {
                let text = self.pairs.get(key).map(|value| String::from_utf8_lossy(value));
                let number = text.map_or(Ok(0), |text| text.parse::<i64>());
                let Ok(number) = number else { return Outcome::rejected("no number") };
                let next = (number + 1).to_string().into_bytes();
                self.pairs.insert(key.to_vec(), next.clone());
                Outcome::Ok(next)
            }
            _other => Outcome::rejected("expected `set K V` or `incr K`"),
        }
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        match request.strip_prefix(b"get ") {
            Some(key) => self.pairs.get(key).cloned().ok_or_else(|| b"no such key".to_vec()),
            None => Ok(format!("{NUMBER} after {}", self.versions).into_bytes()),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        out.write_u64(self.versions)?;
        out.write_u64(self.pairs.len() as u64)?;
        for (key, value) in &self.pairs {
            out.write_block(key)?;
            out.write_block(value)?;
        }
        Ok(())
    }

    fn restore(
        header: &SnapshotHeader,
        _: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        let mut versions = if header.format > 1 { from.read_u64()? } else { 1 };
        versions += u64::from(header.writer_version != VERSION);
        let mut pairs = DetMap::new();
        for _ in 0..from.read_u64()? {
            let key = from.read_block(KEY_BYTES_MAX)?;
            pairs.insert(key, from.read_block(VALUE_BYTES_MAX)?);
        }
        let has = |key: &[u8]| pairs.contains_key(key);
        assert!(!has(b"trap-in-restore"), "told to");
        while has(b"endless-restore") {
            std::hint::black_box(&pairs);
        }
        if has(b"refuse-restore") {
            return Err(Failure::Corrupt("it cannot be taken over".to_owned()));
        }
        Ok(Self { pairs, versions })
    }
}
