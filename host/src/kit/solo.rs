//! One node in memory, to play with: a replica whose time is the caller's.
//!
//! - A guest that fails is rebuilt as it was before the entry at which it failed, so one bad
//!   command ends nothing.
//! - A guest that fails when it is woken is not woken again before it took something else: it
//!   would fail again.
//! - The module can be exchanged; its state goes along as a snapshot. If the new one refuses it,
//!   the old one stays.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::apply::{KeptEvent, Position};
use lockstep_core::fault::GuestFault;
use raft::eraftpb::Entry;

use super::player::{Looks, Maker, Player, Saved, Trace};
use crate::guest::{Module, NoAnswer, Outcome};

/// Entries that are kept to rebuild a guest; then a snapshot takes their place.
const ENTRIES_KEPT_MAX: usize = 1024;
/// Least time between two wakes, ms, as on a server.
pub const WAKE_MS: u64 = 100;
/// Most wakes at once, when time is moved on: a guest that always sets its timer anew would be
/// woken for ever.
const WAKES_MAX: usize = 1000;

/// A replica without peers.
pub struct Solo {
    maker: Arc<Maker>,
    player: Player,
    /// What the guest is rebuilt from, and the entries after it.
    base: Option<Saved>,
    entries: Vec<Entry>,
    /// What the user saved.
    saved: Option<Saved>,
    /// The first event that was not told yet.
    untold: Position,
    /// When the guest may be woken next, ms; `None` while it would fail.
    wake_from_ms: Option<u64>,
}

/// A snapshot that was taken or restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    pub index: u64,
    pub bytes: u64,
}

/// Why a module was not exchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("the old one takes no snapshot: {0}")]
    Snapshot(GuestFault),
    #[error("the new one refuses the old one's snapshot: {0}")]
    Restore(GuestFault),
}

impl Solo {
    pub fn start(maker: Arc<Maker>) -> Result<Self, GuestFault> {
        let mut player = Player::new(&maker, Looks::AsServer);
        let first = maker.first_entry();
        player.play(&first)?;
        Ok(Self {
            maker,
            player,
            base: None,
            entries: vec![first],
            saved: None,
            untold: Position::default(),
            wake_from_ms: Some(0),
        })
    }

    pub fn index(&self) -> u64 {
        self.player.ledger().applied()
    }

    /// Whether the guest can be entered: if not, it could not be rebuilt.
    pub fn is_usable(&self) -> bool {
        self.player.is_usable()
    }

    /// Applies a command.
    pub fn apply(&mut self, time_ms: u64, command: Bytes) -> Result<Option<Outcome>, GuestFault> {
        let entry = self.player.entry_of(time_ms, &[command]);
        self.play(entry).map(|trace| trace.outcomes.into_iter().next())
    }

    pub fn query(&mut self, request: &[u8]) -> Result<Result<Bytes, NoAnswer>, GuestFault> {
        let answer = self.player.query(request);
        if !self.player.is_usable() {
            self.rebuild()?;
        }
        answer
    }

    /// When the guest is to be woken, ms; `None` if its timer is not set, or waking it failed.
    pub fn wakes_at_ms(&self) -> Option<u64> {
        Some(self.player.deadline()?.at_ms.max(self.wake_from_ms?))
    }

    /// Whether the guest's timer is due, but waking it failed and is not tried again yet.
    pub fn waking_failed(&self) -> bool {
        self.wake_from_ms.is_none() && self.player.deadline().is_some()
    }

    /// Wakes the guest if it is time, and returns whether it was.
    pub fn wake(&mut self, now_ms: u64) -> Result<bool, GuestFault> {
        if self.wakes_at_ms().is_none_or(|at_ms| at_ms > now_ms) {
            return Ok(false);
        }
        let Some(entry) = self.player.wake_entry(now_ms) else { return Ok(false) };
        self.wake_from_ms = None;
        self.play(entry)?;
        self.wake_from_ms = Some(now_ms.saturating_add(WAKE_MS));
        Ok(true)
    }

    /// Wakes the guest at each of its deadlines up to a time; returns how often.
    pub fn wake_until(&mut self, until_ms: u64) -> Result<usize, GuestFault> {
        for count in 0..WAKES_MAX {
            let Some(at_ms) = self.wakes_at_ms().filter(|at_ms| *at_ms <= until_ms) else {
                return Ok(count);
            };
            self.wake(at_ms.max(self.player.ledger().log_time_ms()))?;
        }
        Ok(WAKES_MAX)
    }

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<KeptEvent> {
        let events: Vec<_> = self.player.ledger().events().since(self.untold).cloned().collect();
        if let Some(last) = events.last() {
            self.untold = last.position.next();
        }
        events
    }

    /// Takes a snapshot and keeps it.
    pub fn snapshot(&mut self) -> Result<Snapshot, GuestFault> {
        let saved = self.save()?;
        let taken = Snapshot::of(&saved);
        self.saved = Some(saved);
        Ok(taken)
    }

    /// Goes back to the kept snapshot; `None` if there is none.
    pub fn restore(&mut self) -> Result<Option<Snapshot>, GuestFault> {
        let Some(saved) = self.saved.clone() else { return Ok(None) };
        let player = Player::restored(&self.maker, Looks::AsServer, &saved)?;
        let restored = self.go_on(player, saved);
        self.untold = Position::of_entry(restored.index + 1);
        Ok(Some(restored))
    }

    /// Goes on with another module.
    pub fn exchange(&mut self, module: Module) -> Result<Snapshot, ExchangeError> {
        let saved = self.save().map_err(ExchangeError::Snapshot)?;
        let maker = self.maker.exchanged(module);
        let restored = Player::restored(&maker, Looks::AsServer, &saved);
        let player = restored.map_err(ExchangeError::Restore)?;
        self.maker = maker;
        Ok(self.go_on(player, saved))
    }

    /// Goes on with a replica that restored a snapshot.
    fn go_on(&mut self, player: Player, saved: Saved) -> Snapshot {
        let restored = Snapshot::of(&saved);
        (self.player, self.base, self.entries) = (player, Some(saved), Vec::new());
        self.wake_from_ms.get_or_insert(0);
        restored
    }

    fn play(&mut self, entry: Entry) -> Result<Trace, GuestFault> {
        let played = self.player.play(&entry);
        if played.is_ok() {
            self.entries.push(entry);
            self.wake_from_ms.get_or_insert(0);
        } else {
            self.rebuild()?;
        }
        if self.entries.len() >= ENTRIES_KEPT_MAX {
            // Without a snapshot the guest is rebuilt from more entries; that is no reason to stop.
            if let Ok(saved) = self.save() {
                (self.base, self.entries) = (Some(saved), Vec::new());
            }
        }
        played
    }

    fn save(&mut self) -> Result<Saved, GuestFault> {
        let saved = self.player.save();
        if saved.is_err() && !self.player.is_usable() {
            self.rebuild()?;
        }
        saved
    }

    /// Makes the guest anew, as it was after the last entry that it took.
    fn rebuild(&mut self) -> Result<(), GuestFault> {
        let looks = Looks::AsServer;
        let mut player = match &self.base {
            Some(saved) => Player::restored(&self.maker, looks, saved)?,
            None => Player::new(&self.maker, looks),
        };
        for entry in &self.entries {
            player.play(entry)?;
        }
        self.player = player;
        Ok(())
    }
}

impl Snapshot {
    fn of(saved: &Saved) -> Self {
        Self { index: saved.index(), bytes: saved.bytes.len() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use lockstep_core::apply::{Emitted, Setting};

    use super::*;
    use crate::config::GuestLimits;
    use crate::guest::native::{NativeMachine, NativeModule};
    use crate::guest::{Context, GuestLog};

    fn start(module: NativeModule) -> Solo {
        let (limits, log) = (GuestLimits::default(), GuestLog::of_no_group());
        let maker = Maker::new(Arc::new(module), Bytes::new(), limits, 0, log);
        Solo::start(maker).expect("it needs nothing")
    }

    /// Applies commands one after another; each line is its answer, or why there is none.
    fn check(solo: &mut Solo, commands: &[(&'static str, &str)]) {
        for (command, expect) in commands {
            let said = match solo.apply(1000, Bytes::from_static(command.as_bytes())) {
                Ok(Some(Outcome::Ok(answer))) => String::from_utf8_lossy(&answer).into_owned(),
                Ok(other) => format!("{other:?}"),
                Err(fault) => fault.to_string(),
            };
            assert!(said.contains(expect), "{command}: {said}");
        }
    }

    #[test]
    fn a_fault_is_undone_and_a_module_is_exchanged() {
        let mut solo = start(NativeModule::register());
        check(&mut solo, &[("set k 1", ""), ("fault why", "why"), ("set k 2", "1")]);
        assert_eq!(solo.snapshot().map(|it| it.index), Ok(3));
        check(&mut solo, &[("set k 3", "2"), ("fault why", "why"), ("set k 4", "3")]);
        assert_eq!(solo.restore().map(|it| it.map(|it| it.index)), Ok(Some(3)));
        check(&mut solo, &[("set k 5", "2")]);
        let register = Arc::new(NativeModule::register());
        solo.exchange(register).expect("it reads its own snapshots");
        check(&mut solo, &[("fault why", "why"), ("set k 6", "5")]);
        let error = solo.exchange(Arc::new(NativeModule::hash_chain())).expect_err("it is another");
        assert!(error.to_string().contains("the new one refuses"), "{error}");
        check(&mut solo, &[("set k 7", "6")]);
        solo.query(b"fault why").expect_err("it was asked to");
        check(&mut solo, &[("set k 8", "7")]);
        for _ in 0..ENTRIES_KEPT_MAX {
            check(&mut solo, &[("set k 8", "8")]);
        }
        check(&mut solo, &[("fault why", "why"), ("set k 9", "8")]);
    }

    /// Every command sets its timer, and it fails when it is woken.
    struct Sleeper;

    impl NativeMachine for Sleeper {
        fn init(&mut self, _: Context, _: &[u8]) -> Result<(), String> {
            Ok(())
        }

        fn apply(&mut self, _: Context, _: &[u8]) -> Result<Outcome, String> {
            Ok(Outcome::Ok(Bytes::new()))
        }

        fn query(&self, _: Context, _: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
            Ok(Ok(Bytes::new()))
        }

        fn snapshot(&self, _: &mut dyn Write) -> io::Result<()> {
            Ok(())
        }

        fn restore(&mut self, _: &[u8], _: &mut dyn Read) -> io::Result<()> {
            Ok(())
        }

        fn memory_bytes(&self) -> u64 {
            0
        }

        fn wake(&mut self, _: Context) -> Result<(), String> {
            Err("let me sleep".to_owned())
        }

        fn emitted(&mut self) -> Emitted {
            let mut emitted = Emitted::default();
            emitted.timer = Some(Setting::At(2000));
            emitted
        }
    }

    #[test]
    fn a_wake_that_fails_is_told_once() {
        let mut solo = start(NativeModule::new("sleeper", || Sleeper));
        solo.snapshot().expect("it takes one");
        assert!(!solo.waking_failed(), "its timer is set, and not due");
        let fails = |solo: &mut Solo, now_ms| {
            let fault = solo.wake(now_ms).expect_err("it is due").to_string();
            assert!(fault.contains("let me sleep"), "{fault}");
            assert_eq!((solo.wakes_at_ms(), solo.wake(now_ms + 5000)), (None, Ok(false)));
            assert!(solo.waking_failed());
        };
        fails(&mut solo, 3000);
        check(&mut solo, &[("", "")]);
        assert!(!solo.waking_failed(), "it is tried again");
        fails(&mut solo, 4000);
        solo.restore().expect("it was saved");
        fails(&mut solo, 5000);
        let again = Arc::new(NativeModule::new("sleeper", || Sleeper));
        solo.exchange(again).expect("it reads everything");
        fails(&mut solo, 6000);
    }
}
