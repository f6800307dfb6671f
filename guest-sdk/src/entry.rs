//! The commands of one entry and their answers, in the columns in which they cross the boundary.
//!
//! * A command is a slice of the bytes that the host wrote: nothing is copied or allocated for it.
//! * Answers are gathered in one vector, in the order of their commands.
//! * An answer over [`OUTCOME_BYTES_MAX`] is counted and not kept, so that an entry of long answers
//!   takes no more memory than one of short ones.

use std::io;

use crate::{Context, OUTCOME_BYTES_MAX, Outcome};

/// What is reserved for each answer before there is any, in bytes: enough for a number or a word.
const ANSWER_BYTES_LIKELY: usize = 16;

/// Up to so many bytes the answers' vector doubles when it is full; beyond, it grows by an eighth,
/// because an entry may have 64 MiB of answers, and a doubled vector would waste as much again.
const DOUBLING_BYTES_MAX: usize = 1 << 20;

/// The commands of one entry, in order.
///
/// ```
/// # use lockstep_guest::*;
/// fn bytes_of(commands: Commands<'_>) -> usize {
///     commands.iter().map(|command| command.len()).sum()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Commands<'a> {
    /// For each command, where it ends in `data`.
    ends: &'a [u32],
    /// The bytes of all commands.
    data: &'a [u8],
}

impl<'a> Commands<'a> {
    /// The commands in these columns, as the world defines them.
    pub(crate) fn new(ends: &'a [u32], data: &'a [u8]) -> Self {
        Self { ends, data }
    }

    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The command at a position, the first one being at 0.
    pub fn get(&self, position: usize) -> Option<&'a [u8]> {
        let &end = self.ends.get(position)?;
        let start = position.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(slice(self.data, start, end))
    }

    /// The commands, in order.
    pub fn iter(&self) -> CommandsIter<'a> {
        CommandsIter { ends: self.ends.iter(), start: 0, data: self.data }
    }

    /// The commands, in order, each with its own context: that of the entry, with the command's
    /// position.
    pub fn with_contexts(
        &self,
        ctx: &Context,
    ) -> impl ExactSizeIterator<Item = (Context, &'a [u8])> + use<'a> {
        let mut next = Context { position: 0, ..*ctx };
        self.iter().map(move |command| {
            let own = next;
            next.position += 1;
            (own, command)
        })
    }
}

impl<'a> IntoIterator for Commands<'a> {
    type Item = &'a [u8];
    type IntoIter = CommandsIter<'a>;

    fn into_iter(self) -> CommandsIter<'a> {
        self.iter()
    }
}

/// Iterates over [`Commands`].
#[derive(Clone, Debug)]
pub struct CommandsIter<'a> {
    ends: std::slice::Iter<'a, u32>,
    /// Where the next command begins.
    start: u32,
    data: &'a [u8],
}

impl<'a> Iterator for CommandsIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let &end = self.ends.next()?;
        let start = std::mem::replace(&mut self.start, end);
        Some(slice(self.data, start, end))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.ends.size_hint()
    }
}

impl ExactSizeIterator for CommandsIter<'_> {}

fn slice(data: &[u8], start: u32, end: u32) -> &[u8] {
    data.get(start as usize..end as usize).expect("the host's ends ascend and are within data")
}

/// The answers to the commands of one entry: as many as there are commands, in their order.
///
/// Bytes that lie somewhere already are answered with [`ok`](Answers::ok) and
/// [`rejected`](Answers::rejected); an answer that is made piece by piece is written into place,
/// without an allocation of its own:
///
/// ```
/// # use lockstep_guest::*;
/// use std::io::Write;
///
/// fn answer(sum: u64, answers: &mut Answers) {
///     let mut answer = answers.begin();
///     write!(answer, "{sum}").expect("an answer takes everything");
///     answer.ok();
/// }
/// ```
#[derive(Debug, Default)]
pub struct Answers {
    /// The bytes of all answers, without those of omitted ones.
    pub(crate) data: Vec<u8>,
    /// For each answer, where it ends in `data`.
    pub(crate) ends: Vec<u32>,
    /// The positions of the commands that were refused.
    pub(crate) rejected: Vec<u32>,
    /// The positions and lengths of answers that are too long.
    pub(crate) omitted: Vec<(u32, u64)>,
}

impl Answers {
    /// No answers yet, with space for those to these commands: a machine often answers with as many
    /// bytes as it was sent, and what is too much is given back.
    pub(crate) fn to(commands: Commands<'_>) -> Self {
        let likely = commands.len() * ANSWER_BYTES_LIKELY;
        Self {
            data: Vec::with_capacity(likely.max(commands.data.len())),
            ends: Vec::with_capacity(commands.len()),
            ..Self::default()
        }
    }

    /// How many commands were answered.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none was answered yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Answers the next command: it was executed.
    pub fn ok(&mut self, answer: &[u8]) {
        self.next(false, answer);
    }

    /// Answers the next command: the rules refuse it, for this reason.
    pub fn rejected(&mut self, reason: &[u8]) {
        self.next(true, reason);
    }

    /// Answers the next command.
    pub fn push(&mut self, outcome: Outcome) {
        let (rejected, bytes) = match outcome {
            Outcome::Ok(answer) => (false, answer),
            Outcome::Rejected(reason) => (true, reason),
            Outcome::TooLong { bytes } => return self.omit(false, bytes),
        };
        self.next(rejected, &bytes);
    }

    /// Begins to write the answer to the next command.
    pub fn begin(&mut self) -> Answer<'_> {
        Answer { start: self.data.len(), omitted: 0, answers: self }
    }

    /// Answers the next command with what `encode` appends; its error is a rejection.
    pub(crate) fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) {
        let start = self.data.len();
        let done = encode(&mut self.data);
        let length = self.data.len() - start;
        match done {
            Ok(()) if length <= OUTCOME_BYTES_MAX => self.end(false),
            Ok(()) => {
                self.data.truncate(start);
                self.omit(false, length as u64);
            }
            Err(why) => {
                self.data.truncate(start);
                self.rejected(why.as_bytes());
            }
        }
    }

    fn next(&mut self, rejected: bool, bytes: &[u8]) {
        if bytes.len() > OUTCOME_BYTES_MAX {
            return self.omit(rejected, bytes.len() as u64);
        }
        self.add(bytes);
        self.end(rejected);
    }

    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        if self.data.capacity() - self.data.len() < bytes.len() {
            self.grow(bytes.len());
        }
        self.data.extend_from_slice(bytes);
    }

    #[cold]
    fn grow(&mut self, additional: usize) {
        match self.data.len() {
            ..=DOUBLING_BYTES_MAX => self.data.reserve(additional),
            length => self.data.reserve_exact(additional.max(length / 8)),
        }
    }

    fn omit(&mut self, rejected: bool, bytes: u64) {
        self.omitted.push((self.position(), bytes));
        self.end(rejected);
    }

    fn end(&mut self, rejected: bool) {
        if rejected {
            self.rejected.push(self.position());
        }
        self.ends.push(u32::try_from(self.data.len()).expect("an entry has 64 MiB of answers"));
    }

    /// The position of the next command.
    fn position(&self) -> u32 {
        u32::try_from(self.ends.len()).expect("an entry has 1,024 commands")
    }

    /// Each answer for itself.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let bytes = CommandsIter { ends: self.ends.iter(), start: 0, data: &self.data };
        let outcome = |(position, bytes): (u32, &[u8])| {
            let place = self.omitted.binary_search_by_key(&position, |&(position, _)| position);
            match place {
                Ok(place) => Outcome::TooLong { bytes: self.omitted[place].1 },
                Err(_) if self.rejected.binary_search(&position).is_ok() => {
                    Outcome::Rejected(bytes.to_vec())
                }
                Err(_) => Outcome::Ok(bytes.to_vec()),
            }
        };
        (0..).zip(bytes).map(outcome).collect()
    }
}

/// An answer that is being written. End it with [`ok`](Answer::ok) or
/// [`rejected`](Answer::rejected); if it is dropped instead, nothing was answered.
///
/// It takes any number of bytes, but beyond [`OUTCOME_BYTES_MAX`] it only counts them.
#[must_use = "an answer counts only if it ends with `ok` or `rejected`"]
#[derive(Debug)]
pub struct Answer<'a> {
    answers: &'a mut Answers,
    /// Where it begins in `answers.data`.
    start: usize,
    /// Its length if it is too long and its bytes are gone, otherwise 0.
    omitted: u64,
}

impl Answer<'_> {
    /// The command was executed.
    pub fn ok(self) {
        self.finish(false);
    }

    /// The rules refuse the command; what was written says why.
    pub fn rejected(self) {
        self.finish(true);
    }

    fn finish(mut self, rejected: bool) {
        match self.omitted {
            0 => self.answers.end(rejected),
            bytes => self.answers.omit(rejected, bytes),
        }
        self.start = self.answers.data.len();
    }
}

impl io::Write for Answer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.omitted {
            0 => self.answers.data.len() - self.start,
            omitted => usize::try_from(omitted).unwrap_or(usize::MAX),
        };
        if written + bytes.len() > OUTCOME_BYTES_MAX {
            self.answers.data.truncate(self.start);
            self.omitted = (written + bytes.len()) as u64;
        } else {
            self.answers.add(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.answers.data.truncate(self.start);
    }
}

#[cfg(test)]
mod tests;
