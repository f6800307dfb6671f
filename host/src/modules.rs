//! The components that this node has: those that its file names, those that operators staged, and
//! those that it got from other nodes.
//!
//! - They lie in `modules` in the data directory, each under the SHA-256 of its bytes, and are read
//!   only if they have it. A group names its module by that, so it does not matter from where the
//!   bytes came.
//! - A component that comes is checked and compiled before it is kept, one at a time.
//! - One that is lacking is asked for at the other nodes ([`Fetch`]).
//! - At most [`MODULES_MAX`] are kept. A new one takes the place of those that no group, no
//!   snapshot and no file of this node names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lockstep_core::ids::{ModuleId, hex, unhex};
use lockstep_core::limits::MODULE_BYTES_MAX;
use sha2::{Digest as _, Sha256};

use crate::fs::{Fs, create_dirs, read_exact_at, write_durably};
use crate::guest::check::Report;
use crate::guest::{Lack, Module, Modules};
use crate::node::{compile_component, read_component};

/// Components that a node keeps on its disk.
pub const MODULES_MAX: usize = 32;
/// Compiled components that a node keeps in memory, beside those that its groups run.
const COMPILED_MAX: usize = 4;
/// Largest piece in which a component is sent, bytes.
pub const PIECE_BYTES_MAX: usize = 512 << 10;

/// Asks the other nodes for a module, in the background, unless that is under way. Returns how
/// often all of them were asked in vain.
pub type Fetch = Box<dyn Fn(ModuleId) -> u32 + Send + Sync>;

/// The components of a node.
pub struct ModuleStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// Those that this node's file names.
    configured: BTreeMap<ModuleId, Module>,
    /// The last that were compiled.
    compiled: Mutex<VecDeque<Module>>,
    /// Held while one that came is checked, compiled and written; and while one is compiled that a
    /// group needs, which waits for none that came.
    taking: Mutex<()>,
    loading: Mutex<()>,
    arriving: Mutex<Option<Arriving>>,
    fetch: OnceLock<Fetch>,
}

/// A component of which a part has arrived.
struct Arriving {
    id: ModuleId,
    total: usize,
    bytes: Vec<u8>,
}

/// A piece of a component.
pub struct Piece<'a> {
    pub id: ModuleId,
    /// Bytes of the whole component.
    pub total: u64,
    pub offset: u64,
    pub bytes: &'a [u8],
}

impl ModuleStore {
    /// The store in this data directory. What the node's file names is written to it, so that other
    /// nodes can get it from here, and so that it is there when the file names another one.
    pub fn open(
        fs: Arc<dyn Fs>,
        data: &Path,
        configured: impl IntoIterator<Item = (Module, Option<Vec<u8>>)>,
    ) -> Self {
        let mut store = Self {
            fs,
            dir: data.join("modules"),
            configured: BTreeMap::new(),
            compiled: Mutex::default(),
            taking: Mutex::default(),
            loading: Mutex::default(),
            arriving: Mutex::default(),
            fetch: OnceLock::new(),
        };
        for (module, bytes) in configured {
            let id = module.id();
            if let Some(Err(error)) = bytes.map(|bytes| store.write(id, &bytes)) {
                tracing::warn!(module = %id, %error, "the component is not kept");
            }
            store.configured.insert(id, module);
        }
        store
    }

    /// From now on, this asks other nodes for what is lacking.
    pub fn fetch_with(&self, fetch: Fetch) {
        let _ = self.fetch.set(fetch);
    }

    /// Takes a piece of a component; pieces come in their order. With the last one, the component
    /// is complete, and this returns it; [`Self::take`] comes next.
    pub fn arrives(&self, piece: &Piece<'_>) -> Result<Option<Vec<u8>>, String> {
        let Piece { id, total, offset, bytes } = *piece;
        if total == 0 || total > MODULE_BYTES_MAX as u64 {
            return Err(format!("{total} bytes are no component of 1 to {MODULE_BYTES_MAX} bytes"));
        }
        if bytes.is_empty() || bytes.len() > PIECE_BYTES_MAX {
            return Err(format!("{} bytes are no piece of 1 to {PIECE_BYTES_MAX}", bytes.len()));
        }
        let mut arriving = lock(&self.arriving);
        if offset == 0 {
            *arriving = Some(Arriving { id, total: total as usize, bytes: Vec::new() });
        }
        let fits = |it: &&mut Arriving| {
            (it.id, it.total as u64, it.bytes.len() as u64) == (id, total, offset)
        };
        let Some(part) = arriving.as_mut().filter(fits) else {
            return Err(format!(
                "this piece of module {id} does not follow the last one: another component is \
                 being sent; begin again"
            ));
        };
        part.bytes.extend_from_slice(bytes);
        if part.bytes.len() > part.total {
            *arriving = None;
            return Err(format!("the pieces of module {id} have more than {total} bytes"));
        }
        let whole = part.bytes.len() == part.total;
        Ok(arriving.take_if(|_| whole).map(|part| part.bytes))
    }

    /// Checks, compiles and keeps a component; `Err` says why it is refused. `named` are those that
    /// must be kept. Takes as long as compiling does.
    pub fn take(
        &self,
        id: ModuleId,
        bytes: &[u8],
        named: &BTreeSet<ModuleId>,
    ) -> Result<Report, String> {
        let have = ModuleId(Sha256::digest(bytes).into());
        if have != id {
            return Err(format!("the bytes are those of module {have}, not of {id}"));
        }
        let _taking = lock(&self.taking);
        let module = compile_component(bytes).map_err(|why| why.to_string())?;
        let report = module.report().clone();
        self.make_place(id, named)?;
        let kept = self.write(id, bytes);
        kept.map_err(|error| format!("module {id} is not kept: {error}"))?;
        tracing::info!(module = %id, name = report.info.name, version = report.info.version,
            "module is here");
        self.compiled(Arc::new(module));
        Ok(report)
    }

    /// At most [`PIECE_BYTES_MAX`] bytes of a component from `offset` on, and how many it has.
    pub fn read(&self, id: ModuleId, offset: u64) -> std::io::Result<(Vec<u8>, u64)> {
        let file = self.fs.open(&self.path(id), false)?;
        let total = file.len()?;
        let mut piece = vec![0; total.saturating_sub(offset).min(PIECE_BYTES_MAX as u64) as usize];
        read_exact_at(&*file, &mut piece, offset)?;
        Ok((piece, total))
    }

    fn path(&self, id: ModuleId) -> PathBuf {
        self.dir.join(format!("{}.wasm", hex(&id.0)))
    }

    fn has(&self, id: ModuleId) -> bool {
        matches!(self.fs.exists(&self.path(id)), Ok(true))
    }

    fn write(&self, id: ModuleId, bytes: &[u8]) -> std::io::Result<()> {
        if self.has(id) {
            return Ok(());
        }
        create_dirs(&*self.fs, &self.dir)?;
        write_durably(&*self.fs, &self.path(id), bytes)
    }

    /// Deletes components that nobody names until there is place for one more.
    fn make_place(&self, id: ModuleId, named: &BTreeSet<ModuleId>) -> Result<(), String> {
        let mut here: BTreeSet<ModuleId> = self.list();
        here.remove(&id);
        let recent: BTreeSet<ModuleId> = lock(&self.compiled).iter().map(|it| it.id()).collect();
        let free = |id: &ModuleId| !named.contains(id) && !self.configured.contains_key(id);
        let (last, first): (Vec<ModuleId>, Vec<ModuleId>) =
            here.iter().filter(|id| free(id)).partition(|id| recent.contains(*id));
        let mut left = here.len();
        for id in first.into_iter().chain(last) {
            if left < MODULES_MAX {
                break;
            }
            match self.fs.remove(&self.path(id)) {
                Ok(()) => left -= 1,
                Err(error) => tracing::warn!(module = %id, %error, "the component is not deleted"),
            }
        }
        if left < MODULES_MAX {
            return Ok(());
        }
        Err(format!("this node has {left} modules, and groups or snapshots name each of them"))
    }

    fn list(&self) -> BTreeSet<ModuleId> {
        let names = self.fs.list(&self.dir).unwrap_or_default();
        let id = |name: &String| unhex(name.strip_suffix(".wasm")?).map(ModuleId);
        names.iter().filter_map(id).collect()
    }

    fn compiled(&self, module: Module) {
        let mut compiled = lock(&self.compiled);
        compiled.retain(|other| other.id() != module.id());
        compiled.push_back(module);
        if compiled.len() > COMPILED_MAX {
            compiled.pop_front();
        }
    }

    /// Reads a component from the disk and compiles it.
    fn load(&self, id: ModuleId) -> Result<Module, Lack> {
        let unusable = |why: String| Lack::Unusable(format!("{}: {why}", self.path(id).display()));
        let read = read_component(&*self.fs, &self.path(id));
        let bytes = read.map_err(|error| unusable(error.to_string()))?;
        let bytes = bytes.map_err(|why| unusable(why.to_string()))?;
        if ModuleId(Sha256::digest(&bytes).into()) != id {
            // Whatever it is, it is not that module: another one takes its place.
            let removed = self.fs.remove(&self.path(id));
            tracing::error!(module = %id, ?removed, "the component is damaged, and deleted");
            return Err(Lack::Absent { asked: 0 });
        }
        let module = compile_component(&bytes).map_err(|why| unusable(why.to_string()))?;
        Ok(Arc::new(module))
    }
}

impl Modules for ModuleStore {
    fn find(&self, id: ModuleId) -> Result<Module, Lack> {
        let known = || {
            let compiled = lock(&self.compiled).iter().find(|it| it.id() == id).cloned();
            self.configured.get(&id).cloned().or(compiled)
        };
        if let Some(module) = known() {
            return Ok(module);
        }
        let _loading = lock(&self.loading);
        // Another thread may have compiled it meanwhile.
        if let Some(module) = known() {
            return Ok(module);
        }
        let loaded = if self.has(id) { self.load(id) } else { Err(Lack::Absent { asked: 0 }) };
        match loaded {
            Ok(module) => {
                self.compiled(Arc::clone(&module));
                Ok(module)
            }
            Err(Lack::Absent { .. }) => {
                Err(Lack::Absent { asked: self.fetch.get().map_or(0, |fetch| fetch(id)) })
            }
            Err(unusable) => Err(unusable),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::mem::MemFs;

    const DATA: &str = "/data";

    fn store(fs: &MemFs) -> ModuleStore {
        ModuleStore::open(Arc::new(fs.clone()), Path::new(DATA), [])
    }

    fn id_of(bytes: &[u8]) -> ModuleId {
        ModuleId(Sha256::digest(bytes).into())
    }

    fn piece(id: ModuleId, total: u64, offset: u64, bytes: &[u8]) -> Piece<'_> {
        Piece { id, total, offset, bytes }
    }

    #[test]
    fn pieces_are_taken_in_their_order() {
        let store = store(&MemFs::with_dir(Path::new(DATA)));
        let (one, two) = (ModuleId([1; 32]), ModuleId([2; 32]));
        let check = |piece: Piece<'_>, expect: Result<Option<&[u8]>, &str>| match (
            store.arrives(&piece),
            expect,
        ) {
            (Ok(got), Ok(expect)) => assert_eq!(got.as_deref(), expect),
            (Err(why), Err(expect)) => assert!(why.contains(expect), "{why}"),
            (other, expect) => panic!("{other:?}, not {expect:?}"),
        };
        check(piece(one, 5, 0, b"abc"), Ok(None));
        check(piece(one, 5, 3, b"de"), Ok(Some(b"abcde")));
        check(piece(one, 5, 3, b"de"), Err("begin again"));
        check(piece(one, 5, 0, b"abc"), Ok(None));
        check(piece(one, 5, 2, b"c"), Err("does not follow the last one"));
        check(piece(two, 5, 3, b"de"), Err("another component is being sent"));
        check(piece(one, 6, 3, b"de"), Err("begin again"));
        check(piece(one, 5, 3, b"def"), Err("more than 5 bytes"));
        check(piece(one, 5, 3, b"de"), Err("begin again"));
        check(piece(one, 5, 0, b""), Err("no piece of 1 to"));
        check(piece(one, 0, 0, b"a"), Err("are no component of 1 to"));
        check(piece(one, u64::MAX, 0, b"a"), Err("are no component of 1 to"));
        check(piece(one, 5, 0, &vec![0; PIECE_BYTES_MAX + 1]), Err("no piece of 1 to"));
        check(piece(one, 5, u64::MAX, b"a"), Err("begin again"));
    }

    #[test]
    fn what_is_no_component_is_refused_and_not_kept() {
        let fs = MemFs::with_dir(Path::new(DATA));
        let store = store(&fs);
        let (bytes, named) = (b"(component)", BTreeSet::new());
        let why = store.take(id_of(bytes), bytes, &named).expect_err("it is text");
        assert!(why.contains("text form"), "{why}");
        let why = store.take(ModuleId([3; 32]), bytes, &named).expect_err("it has another id");
        assert!(why.starts_with("the bytes are those of module "), "{why}");
        assert_eq!(store.list(), BTreeSet::new());
    }

    /// What lies under a module's name and is another one is deleted: another node has it.
    #[test]
    fn a_damaged_component_is_as_good_as_none() {
        let fs = MemFs::with_dir(Path::new(DATA));
        let store = store(&fs);
        let id = ModuleId([4; 32]);
        store.write(id, b"something else").expect("there is space");
        assert_eq!(store.find(id).err(), Some(Lack::Absent { asked: 0 }));
        assert_eq!(store.list(), BTreeSet::new());
        // Other nodes are asked each time that it is wanted.
        store.fetch_with(Box::new(|_| 7));
        assert_eq!(store.find(id).err(), Some(Lack::Absent { asked: 7 }));
    }

    #[test]
    fn the_oldest_that_nobody_names_makes_place() {
        let store = store(&MemFs::with_dir(Path::new(DATA)));
        let module = |number: usize| ModuleId([number as u8; 32]);
        for number in 0..MODULES_MAX {
            store.write(module(number), &[1]).expect("there is space");
        }
        let all: BTreeSet<ModuleId> = (0..MODULES_MAX).map(module).collect();
        assert_eq!(store.list(), all);
        let new = module(MODULES_MAX);
        let why = store.make_place(new, &all).expect_err("each is named");
        assert!(why.contains("name each of them"), "{why}");
        // One that is here already needs no place.
        store.make_place(module(0), &all).expect("it is here");
        let named: BTreeSet<ModuleId> = all.iter().copied().filter(|id| *id != module(9)).collect();
        store.make_place(new, &named).expect("one can go");
        assert_eq!(store.list(), named);
    }
}
