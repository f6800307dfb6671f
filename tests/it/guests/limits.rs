//! Input within the limits never causes a fault, even with everything at its limit at once.

use bytes::Bytes;
use lockstep_core::amendment::Amendments;
use lockstep_core::apply::{Answer, ENVELOPE_BYTES_MAX, Ledger, Work};
use lockstep_core::codec::DecodeError;
use lockstep_core::entry::{Bootstrap, Call, Commands, EntryBody};
use lockstep_core::fault::Rejection;
use lockstep_core::limits::{
    COMMAND_BYTES_MAX, COMMAND_OVERHEAD_BYTES_MAX, COMMANDS_ENTRY_BYTES_MAX, ENTRY_COMMANDS_MAX,
    GUEST_CONFIG_BYTES_MAX, OUTCOME_BYTES_MAX, QUERY_ANSWER_BYTES_MAX,
};
use lockstep_host::guest::component::{ComponentGuest, ComponentModule};
use lockstep_host::guest::{Guest as _, NoAnswer, Outcome};
use lockstep_tests::rng::{Rng, seed};
use raft::eraftpb::Entry;

use super::{Disk, ample, ample_bootstrap, at, header, hostile, load, unused};

const MEGABYTE: usize = 1_000_000;

fn too_long(bytes: usize) -> Outcome {
    Outcome::TooLong { bytes: bytes as u64 }
}

/// One entry deletes ninety long values. Each answer would be the deleted value, which is too long.
#[test]
fn long_answers_of_one_entry_are_no_fault() {
    let mut guest = ample(&load("kv"));
    let set = |key: usize| [format!("set {key} ").into_bytes(), vec![b'v'; MEGABYTE]].concat();
    for key in 0..90 {
        let outcomes =
            guest.apply(at(2 + key as u64), &[set(key).into()]).expect("it is legal").outcomes;
        assert_eq!(outcomes, [Outcome::Ok(Bytes::new())]);
    }
    let deletes: Vec<Bytes> = (0..90).map(|key| format!("del {key}").into()).collect();
    let outcomes = guest.apply(at(100), &deletes).expect("the limits allow it").outcomes;
    assert_eq!(outcomes, vec![too_long(MEGABYTE); 90]);
    assert_eq!(guest.query(at(100), b"len"), Ok(Ok("0".into())));
}

/// The limit on answers is exact, for a guest that cuts its answers and for one that does not.
#[test]
fn an_answer_may_have_so_many_bytes_and_not_one_more() {
    let mut kv = ample(&load("kv"));
    let mut foreign = ample(hostile());
    for (index, length) in (2..).step_by(2).zip([0, 1, OUTCOME_BYTES_MAX, OUTCOME_BYTES_MAX + 1]) {
        let expect = |case: fn(Bytes) -> Outcome, byte| match length {
            ..=OUTCOME_BYTES_MAX => case(vec![byte; length].into()),
            _ => too_long(length),
        };
        let value = [&b"set key "[..], &vec![b'v'; length]].concat();
        kv.apply(at(index), &[value.into()]).expect("it is legal");
        let deleted = kv.apply(at(index + 1), &["del key".into()]).expect("it is legal").outcomes;
        assert_eq!(deleted, [expect(Outcome::Ok, b'v')]);

        let deeds = [format!("answer {length}").into(), format!("reject {length}").into()];
        let outcomes = foreign.apply(at(index), &deeds).expect("it is legal").outcomes;
        assert_eq!(outcomes, [expect(Outcome::Ok, b'a'), expect(Outcome::Rejected, b'r')]);
    }
}

/// An entry with as many commands as it may have, each of which is answered with the longest answer
/// or the longest reason.
#[test]
fn the_longest_answers_of_a_full_entry_are_no_fault() {
    let mut guest = ample(hostile());
    for (index, deed) in [(2, "answer"), (3, "reject")] {
        let command = Bytes::from(format!("{deed} {OUTCOME_BYTES_MAX}"));
        let outcomes = guest.apply(at(index), &vec![command; ENTRY_COMMANDS_MAX]);
        let outcomes = outcomes.expect("the limits allow it").outcomes;
        let length = |outcome: &Outcome| match outcome {
            Outcome::Ok(bytes) | Outcome::Rejected(bytes) => bytes.len(),
            Outcome::TooLong { .. } => 0,
        };
        assert_eq!(outcomes.iter().map(length).sum::<usize>(), 64 << 20, "{deed}");
    }
}

/// An answer of 60 MiB costs the host nothing, and a million outcomes are counted, not read.
#[test]
fn what_is_too_long_is_not_copied() {
    let module = super::refusals::component(super::refusals::text("aliases"));
    let module = ComponentModule::load(&module).unwrap_or_else(|refusal| panic!("{refusal}"));
    let mut guest = ample(&module);
    let commands = vec![Bytes::new(); ENTRY_COMMANDS_MAX];
    let outcomes = guest.apply(at(2), &commands).expect("it is legal").outcomes;
    assert_eq!(outcomes[0], too_long(60 << 20));
    assert_eq!(outcomes[1..], vec![Outcome::Ok(Bytes::new()); ENTRY_COMMANDS_MAX - 1]);

    let answer = guest.query(at(2), b"").expect("it is legal").expect_err("it is too long");
    assert_eq!(answer, NoAnswer::TooLong { bytes: 60 << 20 });

    let fault = guest.apply(at(3), &["many".into()]).expect_err("it is not legal");
    assert!(fault.message.contains("guest returned 1000000 outcomes"), "{fault}");
}

/// Configurations, entries, sessions, outcomes, queries, snapshots, full disks and texts are drawn
/// at and around their limits, all at once.
#[test]
fn nothing_that_the_limits_allow_is_a_fault() {
    let mut rng = Rng::new(seed(10));
    for _ in 0..8 {
        Corners::of(Kind::Foreign, &mut rng).run(12);
        Corners::of(Kind::Kv, &mut rng).run(12);
    }
}

/// Which guest is tested, which decides the commands and queries.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Answers with the length that it is told, and does not cut its answers.
    Foreign,
    /// Made with the SDK: answers a command with the value that it replaces.
    Kv,
}

/// A guest, its ledger, and what the test knows of both.
struct Corners<'a> {
    kind: Kind,
    rng: &'a mut Rng,
    module: ComponentModule,
    guest: ComponentGuest,
    ledger: Ledger,
    config: Bytes,
    /// The session of all calls, or 0 for none.
    session: u64,
    /// How many calls were made.
    calls: u64,
    /// Lengths of the values that `kv` holds.
    values: Vec<usize>,
}

/// One command and the length that its answer will have.
struct Drawn {
    payload: Vec<u8>,
    answer: Result<usize, usize>,
}

impl<'a> Corners<'a> {
    fn of(kind: Kind, rng: &'a mut Rng) -> Self {
        let module = load(match kind {
            Kind::Foreign => "hostile",
            Kind::Kv => "kv",
        });
        let mut corners = Self {
            kind,
            rng,
            guest: unused(&module),
            module,
            ledger: Ledger::default(),
            config: Bytes::new(),
            session: 0,
            calls: 0,
            values: vec![0; 40],
        };
        corners.begin();
        corners
    }

    /// Applies entry 1 and opens a session, which half of all runs use: answers in a session are
    /// kept until the next entry.
    fn begin(&mut self) {
        let length = self.near(&[GUEST_CONFIG_BYTES_MAX], GUEST_CONFIG_BYTES_MAX);
        // `kv` has nothing to configure.
        let length = if self.kind == Kind::Foreign { length } else { 0 };
        self.config = vec![b' '; length].into();
        let bootstrap = Bootstrap { config: self.config.clone(), ..ample_bootstrap(&self.module) };
        let admitted = self.admit(1, &EntryBody::Bootstrap(bootstrap));
        admitted.expect("it was just encoded");
        self.guest.init(at(1), &self.config).expect("blanks configure nothing");
        let open = EntryBody::Open { time_ms: 1, nonce: 1 };
        let opened = self.admit(2, &open).expect("it was just encoded");
        let Work::Done(answers) = opened else { panic!("no guest is asked") };
        let [Answer::Opened(session)] = answers[..] else { panic!("no session was opened") };
        self.session = self.rng.below(2) * session;
    }

    fn admit(&mut self, index: u64, body: &EntryBody) -> Result<Work, DecodeError> {
        self.ledger.admit(&entry(index, body), &Amendments::default())
    }

    fn run(&mut self, entries: u64) {
        for index in 3..3 + entries {
            self.entry(index);
            match self.rng.below(4) {
                0 => self.query(index),
                1 => self.snapshot(index),
                _ => {}
            }
        }
    }

    /// A length at or next to one of the limits, or anything below it; never more than `most`.
    fn near(&mut self, limits: &[usize], most: usize) -> usize {
        let limit = limits[self.rng.below(limits.len() as u64) as usize];
        let length = match self.rng.below(4) {
            0 => limit,
            1 => limit.saturating_sub(1),
            2 => limit + 1,
            _ => self.rng.below(limit as u64 + 1) as usize,
        };
        length.min(most)
    }

    /// Applies one entry, full in bytes, in commands, or in neither.
    fn entry(&mut self, index: u64) {
        let count = match self.rng.below(4) {
            0 => ENTRY_COMMANDS_MAX,
            1 => 1,
            _ => 1 + self.rng.below(ENTRY_COMMANDS_MAX as u64) as usize,
        };
        let (mut drawn, mut space) = (Vec::new(), COMMANDS_ENTRY_BYTES_MAX);
        // All answers of an entry are in the foreign guest's memory at once: at most 600 MiB of its
        // 1 GiB.
        let mut memory = 600 << 20;
        while drawn.len() < count && space >= 1024 + COMMAND_OVERHEAD_BYTES_MAX {
            let most = (space - COMMAND_OVERHEAD_BYTES_MAX).min(COMMAND_BYTES_MAX);
            let command = self.command(most, &mut memory);
            space -= command.payload.len() + COMMAND_OVERHEAD_BYTES_MAX;
            drawn.push(command);
        }
        let (session, lowest_unanswered) = (self.session, self.calls + 1);
        let calls = drawn.iter().zip(lowest_unanswered..).map(|(command, sequence)| Call {
            session,
            sequence,
            lowest_unanswered,
            payload: command.payload.clone().into(),
        });
        let commands = Commands { time_ms: index, calls: calls.collect() };
        self.calls += drawn.len() as u64;
        let work = self.admit(index, &EntryBody::Commands(commands)).expect("it is legal");
        let Work::Apply(plan) = work else { panic!("commands are applied") };
        let outcomes = self.guest.apply(at(index), &plan.commands);
        let applied = outcomes.unwrap_or_else(|fault| panic!("{:?}: {fault}", self.kind));
        let told = applied.outcomes.into_iter().map(Into::into).collect();
        let answers = self.ledger.settle(plan, told).expect("one outcome a command");
        for (command, answer) in drawn.iter().zip(&answers) {
            let expect = command.answer;
            let found = match answer {
                Answer::Ok(bytes) => Ok(bytes.len()),
                Answer::Rejected(Rejection::Guest(bytes)) => Err(bytes.len()),
                Answer::Rejected(Rejection::AnswerTooLarge { bytes }) => {
                    assert!(*bytes > OUTCOME_BYTES_MAX as u64);
                    match expect {
                        Ok(_) => Ok(*bytes as usize),
                        Err(_) => Err(*bytes as usize),
                    }
                }
                other => panic!("a command was answered {other:?}"),
            };
            assert_eq!(found, expect, "{:?}", self.kind);
        }
    }

    fn command(&mut self, most: usize, memory: &mut usize) -> Drawn {
        let long = [1, OUTCOME_BYTES_MAX, MEGABYTE, 20 << 20];
        let length = self.near(&[64, OUTCOME_BYTES_MAX, COMMAND_BYTES_MAX], most).max(40);
        let padded =
            |text: String| [text.into_bytes(), vec![b' '; length]].concat()[..length].to_vec();
        match self.kind {
            Kind::Foreign => {
                let answer = self.near(&long, *memory);
                *memory -= answer;
                let (deed, number, answer) = match self.rng.below(3) {
                    0 => ("reject", answer, Err(answer)),
                    1 => ("answer", answer, Ok(answer)),
                    _ => ("say", self.near(&[1, 4096, MEGABYTE], MEGABYTE), Ok(0)),
                };
                Drawn { payload: padded(format!("{deed} {number} ")), answer }
            }
            Kind::Kv => {
                let key = self.rng.below(self.values.len() as u64) as usize;
                let before = self.values[key];
                let (payload, after) = match self.rng.below(3) {
                    0 => (format!("del {key}").into_bytes(), 0),
                    _ => {
                        let text = format!("set {key} ");
                        let value = length - text.len();
                        (padded(text), value)
                    }
                };
                self.values[key] = after;
                Drawn { payload, answer: Ok(before) }
            }
        }
    }

    fn query(&mut self, index: u64) {
        // A query may take 64 MiB beyond the memory of its guest.
        let length = self.near(&[1, QUERY_ANSWER_BYTES_MAX, 40 << 20], 40 << 20);
        let text = self.near(&[128, 1024, MEGABYTE], MEGABYTE);
        let told = length <= QUERY_ANSWER_BYTES_MAX;
        let (request, expect) = match (self.kind, self.rng.below(3)) {
            (Kind::Foreign, 0) => (format!("say {text}"), "an answer"),
            (Kind::Foreign, 1) if told => (format!("reject {length}"), "its own no"),
            (Kind::Foreign, _) if told => (format!("answer {length}"), "an answer"),
            (Kind::Foreign, 1) => (format!("reject {length}"), "too long"),
            (Kind::Foreign, _) => (format!("answer {length}"), "too long"),
            (Kind::Kv, _) => ("len".to_owned(), "an answer"),
        };
        let answer = self.guest.query(at(index), request.as_bytes());
        let answer = answer.unwrap_or_else(|fault| panic!("{:?}: {fault}", self.kind));
        let found = match answer {
            Ok(_) => "an answer",
            Err(NoAnswer::Rejected(_)) => "its own no",
            Err(NoAnswer::TooLong { .. }) => "too long",
        };
        assert_eq!(found, expect, "{:?}: {request}", self.kind);
    }

    /// Takes a snapshot in chunks of any legal length, also onto a disk that may be too small for
    /// it, and goes on with a guest restored from it. The ledger must survive its envelope.
    fn snapshot(&mut self, index: u64) {
        let foreign = self.kind == Kind::Foreign;
        let apply = |guest: &mut ComponentGuest, orders: &[Bytes]| {
            guest.apply(at(index), orders).expect("it only takes the order");
        };
        if foreign {
            let chunk = self.near(&[1 << 16, 4 << 20], 4 << 20).max(4096);
            let fill = self.near(&[1, 10 << 20], 10 << 20);
            let orders = [format!("fill {fill}").into(), format!("snapshot chunks {chunk}").into()];
            apply(&mut self.guest, &orders);
        }
        let bytes = super::snapshot(&mut self.guest);
        let space = self.near(&[8, bytes.len()], bytes.len());
        let kept = self.guest.snapshot(&mut Disk(space)).expect("a full disk is no fault");
        assert_eq!(kept.is_ok(), space == bytes.len(), "{space} of {}", bytes.len());
        let mut restored = unused(&self.module);
        let header = header(&self.module, index);
        restored.restore(&header, &self.config, &mut &bytes[..]).expect("it is whole");
        let envelope = self.ledger.encode_envelope();
        assert!(envelope.len() <= ENVELOPE_BYTES_MAX, "{} bytes", envelope.len());
        let ledger = Ledger::decode_envelope(Bytes::from(envelope).slice(4..), index);
        assert!(ledger.expect("it is whole") == self.ledger, "the ledger differs");
        assert!(super::snapshot(&mut restored) == bytes, "{:?}: the snapshot differs", self.kind);
        if foreign {
            let length = self.near(&[2048, MEGABYTE], MEGABYTE).max(1);
            apply(&mut restored, &[format!("snapshot fail {length}").into()]);
            let failed = restored.snapshot(&mut std::io::sink()).expect("it is no fault");
            let told = failed.expect_err("it was told to fail").to_string();
            assert!(told.len() <= 4096, "a reason of {} bytes", told.len());
            apply(&mut restored, &["snapshot nothing".into()]);
        }
        self.guest = restored;
    }
}

/// An entry as raft would deliver it.
fn entry(index: u64, body: &EntryBody) -> Entry {
    let mut entry = Entry::default();
    (entry.index, entry.term) = (index, 1);
    entry.data = body.encode().into();
    entry
}
