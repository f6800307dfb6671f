//! Commands and queries for `kv`, drawn from a seed: what means something, and what only looks like
//! it.
//!
//! - Keys are few, so that commands meet what earlier ones left; some are no UTF-8, some are as
//!   long as they may be, and some are no keys.
//! - Values are any bytes, and often what one language takes for a number and another might not.
//! - With a prefix for keys, the commands of several clients do not meet.

use bytes::Bytes;
use lockstep_core::limits;
use lockstep_host::kit::player::entry_space;
use lockstep_tests::rng::Rng;

/// Keys of each kind.
const KEYS: u64 = 40;
/// Longest key of `kv`, bytes.
const KEY_BYTES_MAX: usize = 1024;
/// One value in this many is about as long as an answer may be.
const LONG_ONE_IN: u64 = 200;
/// Values of keys that `cas` is for: few, so that it often finds what it expects.
const SMALL: u64 = 3;

/// Whole numbers, and what is none, at the edges of what parsers take.
const NUMBERS: [&str; 24] = [
    "9223372036854775807",
    "9223372036854775806",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "00000000000000000000000000000001",
    "0000000000000000000000000000000",
    "007",
    "-1",
    "-0",
    "+5",
    "+",
    "-",
    "+-1",
    " 1",
    "1 ",
    "1\n",
    "1.0",
    "1e3",
    "0x1",
    "1_0",
    "\u{663}",
    "\u{ff11}",
];

/// Numbers for `scan`, where they end.
const COUNTS: [&str; 12] = [
    "0",
    "1",
    "7",
    "100",
    "4294967295",
    "4294967296",
    "00000000000000000000003",
    "+2",
    "-0",
    "-1",
    "",
    "2 ",
];

/// What is no command, in its verb or in the number of its words.
const MALFORMED: [&[u8]; 22] = [
    b"",
    b" ",
    b"  ",
    b"set",
    b"set ",
    b"set  v",
    b"set k",
    b"SET k v",
    b"set\tk v",
    b"set\n",
    b"del",
    b"del ",
    b"del a b",
    b"cas",
    b"cas k",
    b"cas k old",
    b"cas  old new",
    b"incr",
    b"incr ",
    b"incr a b",
    b"\xff\x00'\"\\\r\n\x7f\x1b x",
    "f\u{fc}nfunddrei\u{df}ig Zeichen und mehr, ohne Wort".as_bytes(),
];

/// Makes up commands and queries.
pub struct Commands {
    rng: Rng,
    prefix: String,
    /// Whether some values are so long that the answer with them is dropped.
    long: bool,
}

impl Commands {
    /// Commands for one machine that has them all.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), prefix: String::new(), long: true }
    }

    /// The commands of one of several clients.
    pub fn of_client(rng: Rng, client: u64) -> Self {
        Self { rng, prefix: format!("{client}/"), long: false }
    }

    /// The commands of one entry, `most` at most: often few, now and then as many as may be.
    pub fn entry(&mut self, most: u64) -> Vec<Bytes> {
        let length = match self.rng.below(8) {
            0 | 1 => 1,
            2..=5 => 1 + self.rng.below(32),
            6 => 1 + self.rng.below(200),
            _seventh => 1 + self.rng.below(limits::ENTRY_COMMANDS_MAX as u64),
        };
        let mut fits = entry_space();
        let commands = (0..length.min(most)).map(|_| self.command());
        commands.take_while(|command| fits(command)).collect()
    }

    pub fn command(&mut self) -> Bytes {
        let words: Vec<Vec<u8>> = match self.rng.below(32) {
            0..=8 => vec![b"set".to_vec(), self.key(), self.value()],
            9..=11 => vec![b"set".to_vec(), self.small_key(), self.small()],
            12..=15 => vec![b"del".to_vec(), self.any_key()],
            16..=21 => vec![b"cas".to_vec(), self.small_key(), self.small(), self.small()],
            22 | 23 => vec![b"cas".to_vec(), self.any_key(), Vec::new(), self.value()],
            24 => vec![b"cas".to_vec(), self.any_key(), self.number(), self.number()],
            25..=28 => vec![b"incr".to_vec(), self.number_key()],
            29 => vec![b"set".to_vec(), self.number_key(), self.number()],
            30 => vec![b"incr".to_vec(), self.any_key()],
            _thirty_first => return self.malformed(),
        };
        words.join(&b' ').into()
    }

    pub fn query(&mut self) -> Bytes {
        let words: Vec<Vec<u8>> = match self.rng.below(12) {
            0..=4 => vec![b"get".to_vec(), self.any_key()],
            5..=8 => {
                let (prefix, count) = (self.scanned(), self.pick(&COUNTS));
                vec![b"scan".to_vec(), prefix, count.as_bytes().to_vec()]
            }
            9 => vec![b"len".to_vec()],
            10 => {
                let last =
                    [&b"get"[..], b"get ", b"scan", b"scan a", b"len ", b"len 1", b"set a b"];
                vec![self.pick(&last).to_vec()]
            }
            _eleventh => return self.malformed(),
        };
        words.join(&b' ').into()
    }

    fn malformed(&mut self) -> Bytes {
        if self.rng.below(4) > 0 {
            return Bytes::from_static(self.pick(&MALFORMED));
        }
        // A verb around the length at which it is cut where it is quoted.
        let length = 30 + self.rng.below(6) as usize;
        let mut verb = self.bytes(length);
        verb.retain(|byte| *byte != b' ');
        verb.into()
    }

    /// A key, of any kind.
    fn any_key(&mut self) -> Vec<u8> {
        match self.rng.below(8) {
            0 => self.number_key(),
            1 | 2 => self.small_key(),
            _other => self.key(),
        }
    }

    /// A key for values of any kind, or what is no key.
    fn key(&mut self) -> Vec<u8> {
        let number = self.rng.below(KEYS);
        let text = match self.rng.below(48) {
            0 => return Vec::new(),
            1 => format!("tab\t{number}").into_bytes(),
            2 => format!("\u{7f}{number}").into_bytes(),
            3 => format!("nul\0{number}").into_bytes(),
            4 | 5 => return self.filled(KEY_BYTES_MAX - number as usize % 2),
            6 => return self.filled(KEY_BYTES_MAX + 1 + number as usize),
            7..=10 => vec![0x80 + number as u8, 0xff, b'k'],
            11..=14 => format!("\u{e9}\u{20ac}\u{1f600}{number}").into_bytes(),
            15..=18 => format!("\\{number}`\"'").into_bytes(),
            _most => format!("key-{number}").into_bytes(),
        };
        self.prefixed(&text)
    }

    /// A key whose value `incr` is for.
    fn number_key(&mut self) -> Vec<u8> {
        let number = self.rng.below(8);
        self.prefixed(format!("n{number}").as_bytes())
    }

    /// A key whose value `cas` is for.
    fn small_key(&mut self) -> Vec<u8> {
        let number = self.rng.below(8);
        self.prefixed(format!("s{number}").as_bytes())
    }

    fn prefixed(&self, key: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), key].concat()
    }

    /// A key of this length.
    fn filled(&mut self, length: usize) -> Vec<u8> {
        let first = b'a' + self.rng.below(4) as u8;
        let mut key = self.prefixed(&[first]);
        key.resize(length, b'x');
        key
    }

    fn value(&mut self) -> Vec<u8> {
        if self.long && self.rng.below(LONG_ONE_IN) == 0 {
            let length = limits::OUTCOME_BYTES_MAX - 8 + self.rng.below(16) as usize;
            return self.bytes(length);
        }
        match self.rng.below(10) {
            0 => Vec::new(),
            1 => self.number(),
            2 => b"two words, and a third".to_vec(),
            3 => b"lines\nand \\ more\\n\n".to_vec(),
            4 => self.rng.below(1000).to_string().into_bytes(),
            5 => "\u{fc}\u{e4}\u{1f600}".repeat(1 + self.rng.below(4) as usize).into_bytes(),
            6 | 7 => {
                let length = self.rng.below(64) as usize;
                self.bytes(length)
            }
            8 => {
                let length = self.rng.below(2048) as usize;
                self.bytes(length)
            }
            _ninth => b"plain".to_vec(),
        }
    }

    fn number(&mut self) -> Vec<u8> {
        self.pick(&NUMBERS).as_bytes().to_vec()
    }

    /// One of a few values, without spaces; sometimes none.
    fn small(&mut self) -> Vec<u8> {
        match self.rng.below(SMALL + 1) {
            0 => Vec::new(),
            number => number.to_string().into_bytes(),
        }
    }

    fn scanned(&mut self) -> Vec<u8> {
        let beginnings: [&[u8]; 8] =
            [b"", b"", b"key-", b"key-1", b"n", b"\\", b"\x80", "\u{e9}".as_bytes()];
        self.pick(&beginnings).to_vec()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.rng.next() as u8).collect()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.below(from.len() as u64) as usize]
    }
}
