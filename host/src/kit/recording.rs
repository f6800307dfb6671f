//! A recording: the log that a case becomes, and what the first instance made of it.
//!
//! The first instance is given entries and nothing else: no query, and no snapshot but at the end.
//! All other instances are compared with it.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::Entry;

use super::case::{Case, Step};
use super::player::{Looks, Maker, Player, Trace};
use super::property::{Broken, Stop};

/// The log's time before the first step, ms: some time in 2023.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// Most wakes in one step: a guest that always sets its timer anew would be woken for ever.
const WAKES_MAX: usize = 16;
/// Least time between two wakes, ms: a leader looks ten times a second.
const WAKE_MS: u64 = 100;

/// What a case became.
pub struct Recording {
    pub items: Vec<Item>,
    /// The snapshot at the end.
    pub snapshot: Vec<u8>,
    pub digest: Option<Bytes>,
    pub memory_bytes: u64,
}

/// A piece of the log, or something that happens between entries.
pub struct Item {
    /// The number of the step from which it came, from 1 on; 0 is `init`.
    pub step: usize,
    pub kind: Kind,
}

#[expect(clippy::large_enum_variant, reason = "most items are entries")]
pub enum Kind {
    Entry { entry: Entry, made: Made, trace: Trace },
    Query(Bytes),
    Snapshot,
    Kill,
}

/// What an entry was made of.
pub enum Made {
    Init,
    Commands { time_ms: u64, commands: Vec<Bytes> },
    Wake { time_ms: u64 },
}

impl Recording {
    /// Has a first instance carry out a case.
    pub fn make(maker: &Arc<Maker>, case: &Case) -> Result<Self, Stop> {
        let mut recorder = Recorder {
            player: Player::new(maker, Looks::AsServer),
            now_ms: BEGIN_MS,
            step: 0,
            items: Vec::new(),
        };
        recorder.play(maker.first_entry(), Made::Init)?;
        for (step, number) in case.steps.iter().zip(1..) {
            recorder.step = number;
            recorder.carry_out(step)?;
        }
        let Recorder { mut player, items, step, .. } = recorder;
        let failed = |fault| Broken::fault(step, "the first instance", fault);
        let snapshot = player.snapshot().map_err(failed)?;
        let digest = player.digest().map_err(failed)?;
        Ok(Self { items, snapshot, digest, memory_bytes: player.memory_bytes() })
    }
}

struct Recorder {
    player: Player,
    now_ms: u64,
    step: usize,
    items: Vec<Item>,
}

impl Recorder {
    fn carry_out(&mut self, step: &Step) -> Result<(), Stop> {
        match step {
            Step::Entry { after_ms, commands } => {
                self.now_ms += after_ms;
                let (time_ms, commands) = (self.now_ms, commands.clone());
                let entry = self.player.entry_of(time_ms, &commands);
                self.play(entry, Made::Commands { time_ms, commands })
            }
            Step::Query(request) => {
                self.note(Kind::Query(request.clone()));
                Ok(())
            }
            Step::Wait { ms } => self.wait(self.now_ms + ms),
            Step::Due => match self.player.deadline() {
                Some(deadline) => self.wait(deadline.at_ms.clamp(self.now_ms, self.later())),
                None => Ok(()),
            },
            Step::Snapshot => {
                self.note(Kind::Snapshot);
                Ok(())
            }
            Step::Kill => {
                self.note(Kind::Kill);
                Ok(())
            }
        }
    }

    /// The latest time up to which a case waits: a deadline may be set to the end of time.
    fn later(&self) -> u64 {
        const YEARS_MS: u64 = 100 * 365 * 86_400_000;
        self.now_ms.max(BEGIN_MS + YEARS_MS)
    }

    /// Lets time pass, and wakes the guest at each deadline on the way, as a leader does.
    fn wait(&mut self, until_ms: u64) -> Result<(), Stop> {
        for _ in 0..WAKES_MAX {
            let Some(deadline) = self.player.deadline().filter(|it| it.at_ms <= until_ms) else {
                break;
            };
            self.now_ms = self.now_ms.max(deadline.at_ms);
            let time_ms = self.now_ms;
            let Some(entry) = self.player.wake_entry(time_ms) else { break };
            self.play(entry, Made::Wake { time_ms })?;
            self.now_ms += WAKE_MS;
        }
        self.now_ms = self.now_ms.max(until_ms);
        Ok(())
    }

    fn play(&mut self, entry: Entry, made: Made) -> Result<(), Stop> {
        let trace = self.player.play(&entry);
        let trace = trace.map_err(|f| Broken::fault(self.step, "the first instance", f))?;
        self.note(Kind::Entry { entry, made, trace });
        Ok(())
    }

    fn note(&mut self, kind: Kind) {
        self.items.push(Item { step: self.step, kind });
    }
}
