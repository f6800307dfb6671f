//! Prepares a module for a trial: a worker, off the actor and the lane, waits until the module is
//! on this node and compiled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_core::group::Event;
use lockstep_core::group::trial::{Preparation, Stage};
use lockstep_core::ids::ModuleId;
use lockstep_core::limits;

use crate::group::GroupHandle;
use crate::group::apply_lane::readable;
use crate::guest::{Lack, Modules};

/// Time between two looks for a module that is not here yet.
const LOOK: Duration = Duration::from_millis(500);
/// How often all other nodes are asked for a module before it counts as lost.
const ASKED_MAX: u32 = 4;
/// After this time the leader has given up.
const LONGEST: Duration = Duration::from_millis(limits::UPGRADE_PREPARE_TICKS * limits::TICK_MS);

/// Prepares the modules of one group's trials, one at a time: a worker ends once there is a newer
/// one.
pub(crate) struct Preparer {
    modules: Arc<dyn Modules>,
    newest: Arc<AtomicU64>,
}

impl Preparer {
    pub(crate) fn new(modules: Arc<dyn Modules>) -> Self {
        Self { modules, newest: Arc::default() }
    }

    /// Raises [`Event::Tried`] once the module is ready, or cannot be, unless another one is begun.
    pub(crate) fn begin(&self, handle: &GroupHandle, wanted: Preparation) {
        let Preparation { trial, module, running } = wanted;
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        let (modules, newest, raise) =
            (Arc::clone(&self.modules), Arc::clone(&self.newest), handle.clone());
        let work = move || {
            let is_newest = || newest.load(Ordering::Relaxed) == number;
            // A worker that is not the newest any more has nothing to say: the same trial may have
            // been heard of again, and a newer worker be at it.
            if let Some(prepared) = prepare(&*modules, module, running, is_newest) {
                let stage = prepared.map_or_else(Stage::failed, |()| Stage::Prepared);
                raise.raise(Event::Tried { trial, stage });
            }
        };
        let started = std::thread::Builder::new().name("prepare".to_owned()).spawn(work);
        if let Err(error) = started {
            let stage = Stage::failed(format!("no thread could be started: {error}"));
            handle.raise(Event::Tried { trial, stage });
        }
    }
}

/// Waits until the module is ready, or cannot be; `None` if there is a newer worker.
fn prepare(
    modules: &dyn Modules,
    module: ModuleId,
    running: ModuleId,
    is_newest: impl Fn() -> bool,
) -> Option<Result<(), String>> {
    let (began, mut before) = (Instant::now(), None);
    let next = loop {
        match modules.find(module) {
            Ok(next) => break next,
            Err(Lack::Absent { asked }) if asked >= *before.get_or_insert(asked) + ASKED_MAX => {
                return Some(Err("no node has the module: stage it first".to_owned()));
            }
            Err(Lack::Absent { .. }) if !is_newest() => return None,
            Err(Lack::Absent { .. }) if began.elapsed() < LONGEST => std::thread::sleep(LOOK),
            Err(lack) => return Some(Err(lack.to_string())),
        }
    };
    let old = modules.find(running).map_err(|lack| format!("module {running}: {lack}"));
    Some(old.and_then(|old| readable(old.info(), next.info())))
}
