//! State machines in Rust behind the door `Guest`, for tests and measurements.
//!
//! - A [`NativeMachine`] keeps the contract of `wit/fsm.wit`, but nothing enforces it: it has no
//!   fuel and no isolation. It returns `Err` where a component would trap. Its use of memory is
//!   what the machine itself reports; the host checks it after each call.
//! - A module's id is the SHA-256 of its name, so that a name is the same module everywhere.
//! - The machines provided are a chain of hashes (any difference in what was applied shows for
//!   ever), a register of keys and values (to test clients with), and ballast (a state of any size
//!   that streams in constant memory).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::apply::Emitted;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::ids::{ModuleId, hex};
use lockstep_core::limits;
use sha2::{Digest as _, Sha256};

use super::trap::Call;
use super::{
    Applied, Context, Guest, GuestInfo, GuestLog, GuestModule, NoAnswer, Outcome, SnapshotHeader,
};

/// A state machine in Rust. An `Err` of `init`, `apply`, `query` and `restore` is a fault.
pub trait NativeMachine: Send {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<(), String>;
    fn apply(&mut self, ctx: Context, command: &[u8]) -> Result<Outcome, String>;
    fn query(&self, ctx: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, String>;
    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()>;
    fn restore(&mut self, config: &[u8], input: &mut dyn Read) -> io::Result<()>;
    /// Bytes of state, roughly.
    fn memory_bytes(&self) -> u64;
    /// The time to which the machine set its timer has come.
    fn wake(&mut self, _: Context) -> Result<(), String> {
        Ok(())
    }
    /// Hands over what was emitted since the last call.
    fn emitted(&mut self) -> Emitted {
        Emitted::default()
    }
}

/// Makes machines of one kind.
pub struct NativeModule {
    id: ModuleId,
    info: GuestInfo,
    make: Arc<dyn Fn() -> Box<dyn NativeMachine> + Send + Sync>,
}

impl NativeModule {
    pub fn new<M: NativeMachine + 'static>(
        name: &str,
        make: impl Fn() -> M + Send + Sync + 'static,
    ) -> Self {
        let info = GuestInfo {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            snapshot_format: 1,
            oldest_readable_format: 1,
        };
        let id = ModuleId(Sha256::digest(name.as_bytes()).into());
        Self { id, info, make: Arc::new(move || Box::new(make())) }
    }

    /// Counts commands and chains their hashes. It answers a command and the query `chain` with the
    /// value of the chain, and the query `count` with the number of commands, as text.
    pub fn hash_chain() -> Self {
        Self::new("native-hash-chain", HashChain::default)
    }

    /// Maps keys to values, all of them words. Commands: `set K V` (answers the previous value),
    /// `cas K OLD NEW` (rejected unless K holds OLD), `fault WHY` (faults). Queries: `get K`,
    /// `len`, `fault WHY`.
    pub fn register() -> Self {
        Self::new("native-register", Register::default)
    }

    /// Holds a state of this many bytes, drawn from the seed at `init`. A command changes some of
    /// them and is answered with the number of commands so far; the query `digest` answers with
    /// their SHA-256.
    pub fn ballast(bytes: usize) -> Self {
        Self::new(&format!("native-ballast-{bytes}"), move || Ballast {
            applied: 0,
            state: Vec::new(),
            bytes,
        })
    }
}

impl GuestModule for NativeModule {
    fn id(&self) -> ModuleId {
        self.id
    }

    fn info(&self) -> &GuestInfo {
        &self.info
    }

    fn engine_major(&self) -> u32 {
        0
    }

    fn instantiate(
        &self,
        bootstrap: &Bootstrap,
        _: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault> {
        let (machine, most) = ((self.make)(), bootstrap.profile.memory_bytes);
        Ok(Box::new(NativeGuest { machine, faulted: false, memory: 0, most }))
    }
}

/// A machine behind the door `Guest`.
struct NativeGuest {
    machine: Box<dyn NativeMachine>,
    faulted: bool,
    /// The most memory that the machine had so far, bytes: like linear memory, it never shrinks.
    memory: u64,
    /// The most memory that the machine may have, bytes.
    most: u64,
}

impl NativeGuest {
    /// Makes one call. As with a component, no other call follows one that failed.
    fn enter<R>(
        &mut self,
        call: Call,
        class: FaultClass,
        work: impl FnOnce(&mut dyn NativeMachine) -> Result<R, String>,
    ) -> Result<R, GuestFault> {
        if self.faulted {
            return Err(call.fault(FaultClass::Host, "the guest was entered after a fault"));
        }
        let done = work(&mut *self.machine).map_err(|why| {
            self.faulted = true;
            call.fault(class, why)
        })?;
        self.memory = self.memory.max(self.machine.memory_bytes());
        if self.memory > self.most {
            self.faulted = true;
            let why =
                format!("the guest has {} bytes of memory and may have {}", self.memory, self.most);
            return Err(call.fault(FaultClass::OutOfMemory, why));
        }
        Ok(done)
    }
}

impl Guest for NativeGuest {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<Emitted, GuestFault> {
        let call = Call::at("init", ctx.index);
        self.enter(call, FaultClass::Refused, |machine| {
            machine.init(ctx, config).map(|()| machine.emitted())
        })
    }

    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Applied, GuestFault> {
        self.enter(Call::at("apply", ctx.index), FaultClass::Trap, |machine| {
            let outcomes = commands.iter().map(|command| machine.apply(ctx, command));
            let outcomes = outcomes.collect::<Result<_, _>>()?;
            Ok(Applied { outcomes, emitted: machine.emitted() })
        })
    }

    fn wake(&mut self, ctx: Context) -> Result<Emitted, GuestFault> {
        self.enter(Call::at("wake", ctx.index), FaultClass::Trap, |machine| {
            machine.wake(ctx).map(|()| machine.emitted())
        })
    }

    fn query(
        &mut self,
        ctx: Context,
        request: &[u8],
    ) -> Result<Result<Bytes, NoAnswer>, GuestFault> {
        let call = Call::at("query", ctx.index);
        let answer = self.enter(call, FaultClass::Trap, |machine| machine.query(ctx, request))?;
        Ok(match answer {
            Ok(bytes) | Err(bytes) if bytes.len() > limits::QUERY_ANSWER_BYTES_MAX => {
                Err(NoAnswer::TooLong { bytes: bytes.len() as u64 })
            }
            answer => answer.map_err(NoAnswer::Rejected),
        })
    }

    fn snapshot(&mut self, out: &mut dyn Write) -> Result<io::Result<()>, GuestFault> {
        let call = Call::anywhere("snapshot");
        self.enter(call, FaultClass::Trap, |machine| Ok(machine.snapshot(out)))
    }

    fn restore(
        &mut self,
        header: &SnapshotHeader,
        config: &[u8],
        input: &mut dyn Read,
    ) -> Result<(), GuestFault> {
        self.enter(Call::at("restore", header.index), FaultClass::Refused, |machine| {
            machine.restore(config, input).map_err(|error| error.to_string())
        })
    }

    fn digest(&mut self) -> Result<Option<Bytes>, GuestFault> {
        Ok(None)
    }

    fn limit(&mut self, profile: &Profile) {
        self.most = profile.memory_bytes;
    }

    fn memory_bytes(&self) -> u64 {
        self.memory
    }

    fn is_usable(&self) -> bool {
        !self.faulted
    }
}

/// `chain = sha256(chain ‖ index ‖ time ‖ seed ‖ command)`.
#[derive(Default)]
struct HashChain {
    count: u64,
    chain: [u8; 32],
}

impl NativeMachine for HashChain {
    fn init(&mut self, _: Context, config: &[u8]) -> Result<(), String> {
        self.chain = Sha256::digest(config).into();
        Ok(())
    }

    fn apply(&mut self, ctx: Context, command: &[u8]) -> Result<Outcome, String> {
        let mut hash = Sha256::new_with_prefix(self.chain);
        for number in [ctx.index, ctx.time_ms, ctx.seed.0, ctx.seed.1] {
            hash.update(number.to_le_bytes());
        }
        hash.update(command);
        self.chain = hash.finalize().into();
        self.count += 1;
        Ok(Outcome::Ok(hex(&self.chain).into()))
    }

    fn query(&self, _: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        Ok(match request {
            b"chain" => Ok(hex(&self.chain).into()),
            b"count" => Ok(self.count.to_string().into()),
            _unknown => Err(Bytes::from_static(b"queries are: chain, count")),
        })
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.count.to_le_bytes())?;
        out.write_all(&self.chain)
    }

    fn restore(&mut self, _: &[u8], input: &mut dyn Read) -> io::Result<()> {
        self.count = read_u64(input)?;
        input.read_exact(&mut self.chain)?;
        expect_end(input)
    }

    fn memory_bytes(&self) -> u64 {
        size_of::<Self>() as u64
    }
}

/// A map with text commands.
#[derive(Default)]
struct Register {
    values: BTreeMap<String, String>,
    /// Bytes of all keys and values.
    bytes: usize,
}

impl Register {
    fn put(&mut self, key: &str, value: &str) -> Option<String> {
        let before = self.values.insert(key.to_owned(), value.to_owned());
        let gone = before.as_ref().map_or(0, |before| key.len() + before.len());
        self.bytes = self.bytes + key.len() + value.len() - gone;
        before
    }
}

impl NativeMachine for Register {
    fn init(&mut self, _: Context, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn apply(&mut self, _: Context, command: &[u8]) -> Result<Outcome, String> {
        Ok(match words(command)[..] {
            ["set", key, value] => Outcome::Ok(self.put(key, value).unwrap_or_default().into()),
            ["cas", key, old, new] => match self.values.get(key) {
                Some(value) if value == old => {
                    self.put(key, new);
                    Outcome::Ok(old.to_owned().into())
                }
                held => {
                    let held = held.map_or("nothing", |value| value);
                    Outcome::Rejected(format!("{key} holds {held}").into())
                }
            },
            ["fault", why] => return Err(why.to_owned()),
            _ => Outcome::Rejected("commands are: set K V, cas K OLD NEW, fault WHY".into()),
        })
    }

    fn query(&self, _: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        Ok(match words(request)[..] {
            ["get", key] => match self.values.get(key) {
                Some(value) => Ok(value.clone().into()),
                None => Err(format!("there is no {key}").into()),
            },
            ["len"] => Ok(self.values.len().to_string().into()),
            ["fault", why] => return Err(why.to_owned()),
            _ => Err("queries are: get K, len, fault WHY".into()),
        })
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        for (key, value) in &self.values {
            writeln!(out, "{key} {value}")?;
        }
        Ok(())
    }

    fn restore(&mut self, _: &[u8], input: &mut dyn Read) -> io::Result<()> {
        for line in io::read_to_string(input)?.lines() {
            let (key, value) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
            self.put(key, value);
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// One buffer: taking and restoring its snapshot needs no other memory.
struct Ballast {
    applied: u64,
    state: Vec<u8>,
    bytes: usize,
}

impl NativeMachine for Ballast {
    fn init(&mut self, ctx: Context, _: &[u8]) -> Result<(), String> {
        let mut random = ctx.seed.0 | 1;
        self.state = Vec::with_capacity(self.bytes);
        while self.state.len() < self.bytes {
            // Xorshift: bytes that do not compress, the same ones everywhere.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let take = (self.bytes - self.state.len()).min(8);
            self.state.extend_from_slice(&random.to_le_bytes()[..take]);
        }
        Ok(())
    }

    fn apply(&mut self, ctx: Context, command: &[u8]) -> Result<Outcome, String> {
        self.applied += 1;
        let hash =
            Sha256::new_with_prefix(ctx.index.to_le_bytes()).chain_update(command).finalize();
        let (place, change) = hash.split_at(8);
        let place = u64::from_le_bytes(place.try_into().expect("eight bytes were split off"));
        if let Some(space) = (self.bytes as u64).checked_sub(change.len() as u64) {
            let place = (place % (space + 1)) as usize;
            self.state[place..place + change.len()].copy_from_slice(change);
        }
        Ok(Outcome::Ok(self.applied.to_string().into()))
    }

    fn query(&self, _: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        Ok(match request {
            b"digest" => Ok(hex(&Sha256::digest(&self.state)).into()),
            _unknown => Err(Bytes::from_static(b"queries are: digest")),
        })
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        const CHUNK_BYTES: usize = 256 << 10;
        out.write_all(&self.applied.to_le_bytes())?;
        out.write_all(&(self.state.len() as u64).to_le_bytes())?;
        self.state.chunks(CHUNK_BYTES).try_for_each(|chunk| out.write_all(chunk))
    }

    fn restore(&mut self, _: &[u8], input: &mut dyn Read) -> io::Result<()> {
        self.applied = read_u64(input)?;
        let length = read_u64(input)?;
        if length != self.bytes as u64 {
            let message = format!("the state has {length} bytes instead of {}", self.bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.state = vec![0; self.bytes];
        input.read_exact(&mut self.state)?;
        expect_end(input)
    }

    fn memory_bytes(&self) -> u64 {
        self.state.capacity() as u64
    }
}

/// The words of a command; none if it is not text.
fn words(text: &[u8]) -> Vec<&str> {
    str::from_utf8(text).map(|text| text.split_whitespace().collect()).unwrap_or_default()
}

fn read_u64(input: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn expect_end(input: &mut dyn Read) -> io::Result<()> {
    match input.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes are left over at the end")),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::entry::Profile;

    use super::*;

    fn fresh(module: &NativeModule) -> Box<dyn Guest> {
        let bootstrap = Bootstrap {
            module: module.id(),
            config: Bytes::new(),
            seed: [7; 16],
            profile: Profile { engine_major: 0, ..Profile::default() },
            initial_voters: Vec::new(),
        };
        module
            .instantiate(&bootstrap, &GuestLog::of_no_group())
            .expect("a native guest needs nothing")
    }

    fn at(index: u64) -> Context {
        Context { index, time_ms: 1000 + index, seed: (index, 9) }
    }

    fn apply(guest: &mut dyn Guest, index: u64, command: &'static str) -> String {
        let applied = guest.apply(at(index), &[Bytes::from_static(command.as_bytes())]);
        match &applied.expect("the command is no fault").outcomes[..] {
            [Outcome::Ok(text)] => format!("ok {}", String::from_utf8_lossy(text)),
            [Outcome::Rejected(text)] => format!("rejected {}", String::from_utf8_lossy(text)),
            other => panic!("one command was answered by {other:?}"),
        }
    }

    fn snapshot(guest: &mut dyn Guest) -> Vec<u8> {
        let mut bytes = Vec::new();
        guest.snapshot(&mut bytes).expect("no fault").expect("a vector takes everything");
        bytes
    }

    fn header(index: u64) -> SnapshotHeader {
        SnapshotHeader {
            writer_name: "native".to_owned(),
            writer_version: "1".to_owned(),
            format: 1,
            index,
            time_ms: 0,
        }
    }

    /// A restored machine goes on like the one that wrote the snapshot; a truncated one is refused.
    #[test]
    fn every_machine_survives_its_own_snapshot() {
        for make in
            [NativeModule::hash_chain, NativeModule::register, || NativeModule::ballast(999)]
        {
            let module = make();
            let mut one = fresh(&module);
            one.init(at(1), b"").expect("it needs no configuration");
            apply(&mut *one, 2, "set a b");
            let bytes = snapshot(&mut *one);

            let mut other = fresh(&module);
            other.restore(&header(2), b"", &mut &bytes[..]).expect("it was just written");
            let continued = (apply(&mut *one, 3, "set a c"), apply(&mut *other, 3, "set a c"));
            assert_eq!(continued.0, continued.1, "{}", module.info().name);
            assert_eq!(snapshot(&mut *one), snapshot(&mut *other), "{}", module.info().name);

            let cut = &bytes[..bytes.len() - 3];
            let cut = fresh(&module).restore(&header(2), b"", &mut &cut[..]);
            if module.id() != NativeModule::register().id() {
                assert_eq!(cut.expect_err("it was cut short").class, FaultClass::Refused);
            }
        }
    }

    #[test]
    fn a_register_compares_and_faults() {
        let mut guest = fresh(&NativeModule::register());
        let mut check = |command, expect: &str| assert_eq!(apply(&mut *guest, 5, command), expect);
        check("set k 1", "ok ");
        check("set k 2", "ok 1");
        check("cas k 1 3", "rejected k holds 2");
        check("cas k 2 3", "ok 2");
        check("cas x 2 3", "rejected x holds nothing");
        check("what", "rejected commands are: set K V, cas K OLD NEW, fault WHY");
        assert_eq!(guest.query(at(5), b"get k"), Ok(Ok(Bytes::from_static(b"3"))));

        let fault = guest.apply(at(6), &[Bytes::from_static(b"fault on-purpose")]);
        let fault = fault.expect_err("it was asked to");
        assert_eq!(fault.to_string(), "trap in apply at index 6: on-purpose");
        let after = guest.query(at(6), b"len").expect_err("it is unusable");
        assert_eq!(after.class, FaultClass::Host);
    }

    #[test]
    fn a_chain_shows_every_difference() {
        let mut chains = [("a", 2), ("b", 2), ("a", 3)].map(|(command, index)| {
            let mut guest = fresh(&NativeModule::hash_chain());
            apply(&mut *guest, index, command)
        });
        chains.sort();
        assert!(chains.windows(2).all(|pair| pair[0] != pair[1]), "{chains:?}");
    }
}
