//! Linear memories that a second instance may look into.
//!
//! A live guest's memory is a file in memory, mapped shared. A *mirror* of it is the memory of
//! another instance of the same component: it maps the same file privately, so that it sees every
//! byte and keeps what it writes to itself, a page at a time. [`Mirrored::forget`] gives those
//! pages back; then it sees the live memory again.
//!
//! - Whoever writes the live memory while a mirror is read gives it a torn view: the two are
//!   entered by turns, which is the owner's business.
//! - While the second instance is made its memory is its own, all zero, as its start wants it.
//! - Where the kernel grants no such files a guest's memory is anonymous, and there is no mirror.
//!
//! wasmtime asks for the memories of a new instance one after the other, in an order that is the
//! component's, without a word on whose they are: [`making`] says it for the present thread.

use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_core::mutant::planted;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// What the memories that the present thread makes are for.
enum Making {
    /// Nobody looks into them.
    Plain,
    /// A guest that may be mirrored.
    Live(Vec<Arc<Space>>),
    /// The mirrors of these, in order.
    Mirrors { of: Vec<Arc<Space>>, made: Vec<Arc<Space>> },
}

thread_local! {
    static MAKING: RefCell<Making> = const { RefCell::new(Making::Plain) };
}

/// The memories of one live guest.
#[derive(Default)]
pub(crate) struct Memories(Vec<Arc<Space>>);

/// An instance whose memories mirror a live guest's. Whoever has it at hand has it alone.
pub(crate) struct Mirrored<T> {
    instance: T,
    mirrors: Vec<Arc<Space>>,
    of: Vec<Arc<Space>>,
}

/// A piece of address space: one linear memory, the room for its growth, and its guard.
struct Space {
    base: NonNull<u8>,
    /// Bytes of address space; what of it may not be touched faults.
    reserved: usize,
    /// Bytes that may be touched.
    size: AtomicUsize,
    /// What a live memory's bytes are in.
    file: Option<OwnedFd>,
}

// SAFETY: the pointer is to a mapping that lives as long as this value and belongs to no thread;
// what is done with it here are system calls.
unsafe impl Send for Space {}
// SAFETY: as above; `size` is atomic, the rest never changes.
unsafe impl Sync for Space {}

/// Makes an instance whose memories may be mirrored.
pub(crate) fn live<R>(instantiate: impl FnOnce() -> R) -> (R, Memories) {
    let (made, memories) = making(Making::Live(Vec::new()), instantiate);
    (made, Memories(memories))
}

/// Makes an instance as told, and says what memories it got.
fn making<R>(what: Making, instantiate: impl FnOnce() -> R) -> (R, Vec<Arc<Space>>) {
    /// Nothing stays, whatever happens while the instance is made.
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            MAKING.set(Making::Plain);
        }
    }
    let done = Done;
    MAKING.set(what);
    let instance = instantiate();
    let memories = match MAKING.replace(Making::Plain) {
        Making::Plain => Vec::new(),
        Making::Live(made) | Making::Mirrors { made, .. } => made,
    };
    drop(done);
    (instance, memories)
}

impl Memories {
    /// Whether all of them can be mirrored.
    pub(crate) fn have_files(&self) -> bool {
        self.0.iter().all(|space| space.file.is_some())
    }

    /// Makes an instance of the same component, of the present size, and lets it see these.
    pub(crate) fn mirror<T, E>(
        &self,
        instantiate: impl FnOnce() -> Result<T, E>,
    ) -> Result<io::Result<Mirrored<T>>, E> {
        let plan = Making::Mirrors { of: self.0.clone(), made: Vec::new() };
        let (instance, mirrors) = making(plan, instantiate);
        let mut mirrored = Mirrored { instance: instance?, mirrors, of: self.0.clone() };
        Ok(mirrored.look().map(|()| mirrored))
    }
}

impl<T> Mirrored<T> {
    /// The instance, to be entered.
    pub(crate) fn instance(&mut self) -> &mut T {
        &mut self.instance
    }

    /// Whether it is still of the live memories' size.
    pub(crate) fn fits(&self) -> bool {
        self.mirrors.iter().zip(&self.of).all(|(mirror, live)| mirror.size() == live.size())
    }

    /// Gives back what the instance wrote.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        for mirror in &self.mirrors {
            if mirror.size() == 0 || planted("mirrors_remember") {
                continue;
            }
            // SAFETY: the range is this mapping's. Nobody runs in the instance and nobody holds a
            // reference into its memory, for it is borrowed here for writing. Its pages are of a
            // private mapping of a file: they are read from there again.
            unsafe { madvise(mirror.start(0), mirror.size(), Advice::LinuxDontNeed) }?;
        }
        Ok(())
    }

    /// Puts the live memories in the place of those that the instance began with.
    fn look(&mut self) -> io::Result<()> {
        if self.mirrors.len() != self.of.len() || !self.fits() {
            return Err(io::Error::other("the second instance has other memories"));
        }
        for (mirror, live) in self.mirrors.iter().zip(&self.of) {
            let Some(file) = live.file.as_ref().filter(|_| live.size() > 0) else { continue };
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            let flags = flags | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: the range lies in the mirror's own reservation, whose size is that of the
            // file, and is replaced there. Nobody runs in the instance and nobody holds a reference
            // into its memory, for it is borrowed here for writing.
            unsafe { mmap(mirror.start(0), live.size(), access, flags, file, 0) }?;
        }
        Ok(())
    }
}

impl Space {
    /// Reserves address space and makes the first `size` bytes of it usable, all zero.
    fn new(size: usize, reserved: usize, file: Option<OwnedFd>) -> io::Result<Arc<Self>> {
        let none = ProtFlags::empty();
        let base = match &file {
            Some(file) => {
                ftruncate(file, size as u64)?;
                let flags = MapFlags::SHARED | MapFlags::NORESERVE;
                // SAFETY: a new mapping, wherever the kernel finds place for it.
                unsafe { mmap(null_mut(), reserved, none, flags, file, 0) }?
            }
            None => {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                // SAFETY: as above.
                unsafe { mmap_anonymous(null_mut(), reserved, none, flags) }?
            }
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let space = Self { base, reserved, size: AtomicUsize::new(0), file };
        space.open(size)?;
        Ok(Arc::new(space))
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// The address of a byte of the reservation.
    fn start(&self, offset: usize) -> *mut c_void {
        assert!(offset <= self.reserved, "an offset lies in the reservation");
        // SAFETY: it does, so that the result is in the mapping or just behind it.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// Lets bytes up to `size` be touched.
    fn open(&self, size: usize) -> io::Result<()> {
        let before = self.size();
        if size > before {
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            // SAFETY: the range lies in this mapping, and was out of bounds until now.
            unsafe { mprotect(self.start(before), size - before, access) }?;
            self.size.store(size, Ordering::Relaxed);
        }
        Ok(())
    }

    fn grow(&self, size: usize) -> io::Result<()> {
        if let Some(file) = &self.file {
            ftruncate(file, size as u64)?;
        }
        self.open(size)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and whoever used it is gone: they held it.
        let unmapped = unsafe { munmap(self.start(0), self.reserved) };
        debug_assert!(unmapped.is_ok(), "a mapping can be given back");
    }
}

/// What wasmtime is given of a [`Space`].
struct Linear {
    space: Arc<Space>,
    /// Bytes that it may grow to; behind them is the guard.
    capacity: usize,
}

// SAFETY: the base never moves; `byte_size` bytes behind it can be read and written, the rest of
// the reservation, guard included, faults; all of it stays mapped as long as this value lives.
unsafe impl LinearMemory for Linear {
    fn byte_size(&self) -> usize {
        self.space.size()
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        if size > self.capacity {
            wasmtime::bail!("a memory of {size} bytes is beyond its address space");
        }
        Ok(self.space.grow(size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.space.base.as_ptr()
    }
}

/// Makes all linear memories of the engine.
pub(crate) struct Creator;

// SAFETY: a memory is zero, has the reservation and the guard that were asked for, and is used by
// none but its instance: a mirror is changed here only while its instance is borrowed for writing.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let made = MAKING.with_borrow_mut(|making| {
            let (size, file) = match &*making {
                Making::Plain => (minimum, None),
                Making::Live(_) => (minimum, memfd_create("guest", MemfdFlags::CLOEXEC).ok()),
                Making::Mirrors { of, made } => {
                    (of.get(made.len()).map_or(minimum, |m| m.size()), None)
                }
            };
            let size = size.max(minimum);
            let capacity = reserved.unwrap_or(0).max(size);
            let space = Space::new(size, capacity + guard, file)?;
            match making {
                Making::Plain => {}
                Making::Live(made) | Making::Mirrors { made, .. } => made.push(Arc::clone(&space)),
            }
            io::Result::Ok(Linear { space, capacity })
        });
        made.map(|linear| Box::new(linear) as Box<dyn LinearMemory>)
            .map_err(|error| format!("no address space for a memory: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    fn made(size: usize) -> Box<dyn LinearMemory> {
        let ty = MemoryType::new(1, None);
        Creator.new_memory(ty, size, None, Some(16 * PAGE), PAGE).expect("there is room")
    }

    fn byte(memory: &dyn LinearMemory, at: usize) -> *mut u8 {
        assert!(at < memory.byte_size());
        // SAFETY: it is in bounds.
        unsafe { memory.as_ptr().add(at) }
    }

    fn put(memory: &dyn LinearMemory, at: usize, value: u8) {
        // SAFETY: in bounds, and this thread alone uses it.
        unsafe { byte(memory, at).write(value) }
    }

    fn get(memory: &dyn LinearMemory, at: usize) -> u8 {
        // SAFETY: in bounds, and this thread alone uses it.
        unsafe { byte(memory, at).read() }
    }

    /// A mirror sees what is there, keeps what it writes to itself, and forgets it.
    #[test]
    fn a_mirror_sees_all_and_changes_nothing() {
        let (mut live, memories) = live(|| made(PAGE));
        assert!(memories.have_files());
        put(&*live, 10, 1);
        live.grow_to(3 * PAGE).expect("there is room");
        put(&*live, 2 * PAGE, 2);

        let mirror = memories.mirror(|| {
            let memory = made(PAGE);
            assert_eq!((memory.byte_size(), get(&*memory, 10)), (3 * PAGE, 0), "it begins empty");
            put(&*memory, 10, 9);
            Ok::<_, ()>(memory)
        });
        let mut mirror = mirror.expect("it is made").expect("it is mapped");
        assert_eq!(get(&**mirror.instance(), 10), 1);
        assert_eq!(get(&**mirror.instance(), 2 * PAGE), 2);

        put(&**mirror.instance(), 10, 7);
        put(&*live, 11, 3);
        assert_eq!((get(&*live, 10), get(&**mirror.instance(), 11)), (1, 0), "the page is its own");
        mirror.forget().expect("the pages go");
        assert_eq!((get(&**mirror.instance(), 10), get(&**mirror.instance(), 11)), (1, 3));

        assert!(mirror.fits());
        live.grow_to(4 * PAGE).expect("there is room");
        assert!(!mirror.fits(), "the live one has grown");
    }

    /// A mirror that grew sees what lies behind as its own, too.
    #[test]
    fn a_mirror_grows_by_itself() {
        let (live, memories) = live(|| made(PAGE));
        let mirror = memories.mirror(|| Ok::<_, ()>(made(PAGE)));
        let mut mirror = mirror.expect("it is made").expect("it is mapped");
        mirror.instance().grow_to(2 * PAGE).expect("there is room");
        put(&**mirror.instance(), PAGE, 5);
        assert!(!mirror.fits());
        assert_eq!(live.byte_size(), PAGE);
        mirror.instance().grow_to(17 * PAGE).expect_err("it is beyond the reservation");
    }
}
