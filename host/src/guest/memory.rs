//! Linear memories that a second instance may look into.
//!
//! The memory of a live guest is a file in memory (memfd), mapped shared. A *mirror* is the memory
//! of a second instance of the same component. It maps the same file privately: it sees every byte
//! of the live memory, and what it writes stays in pages of its own. [`Mirrored::forget`] gives
//! those pages back, after which the mirror sees the live memory again.
//!
//! - A write to the live memory while its mirror is read would give the mirror a torn view: the
//!   owner must enter the two instances by turns.
//! - While the second instance is being made, its memory is its own and all zero, as the start of
//!   an instance requires.
//! - If the kernel grants no such file, a guest's memory is anonymous and has no mirror.
//!
//! wasmtime asks for the memories of a new instance one by one, in an order that the component
//! fixes, but does not say which instance they are for. [`making`] notes that for the present
//! thread.

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

/// What the memories that the current thread makes are for.
enum Making {
    /// An instance that is never mirrored.
    Plain,
    /// A live guest, which may be mirrored: the memories made so far.
    Live(Vec<Arc<Space>>),
    /// Mirrors of the memories `of`, in the same order.
    Mirrors { of: Vec<Arc<Space>>, made: Vec<Arc<Space>> },
}

thread_local! {
    static MAKING: RefCell<Making> = const { RefCell::new(Making::Plain) };
}

/// The memories of one live guest.
#[derive(Default)]
pub(crate) struct Memories(Vec<Arc<Space>>);

/// An instance whose memories mirror a live guest's.
pub(crate) struct Mirrored<T> {
    instance: T,
    mirrors: Vec<Arc<Space>>,
    of: Vec<Arc<Space>>,
}

/// A reservation of address space: one linear memory, space for its growth, and its guard.
struct Space {
    base: NonNull<u8>,
    /// Bytes of address space. An access beyond `size` faults.
    reserved: usize,
    /// Bytes that may be accessed.
    size: AtomicUsize,
    /// The file that holds the bytes of a live guest's memory.
    file: Option<OwnedFd>,
}

// SAFETY: the pointer is to a mapping that lives as long as this value and belongs to no thread; it
// is only passed to system calls here.
unsafe impl Send for Space {}
// SAFETY: as above; `size` is atomic, the rest never changes.
unsafe impl Sync for Space {}

/// Makes an instance whose memories may be mirrored.
pub(crate) fn live<R>(instantiate: impl FnOnce() -> R) -> (R, Memories) {
    let (made, memories) = making(Making::Live(Vec::new()), instantiate);
    (made, Memories(memories))
}

/// Makes an instance for the given purpose, and returns it with its memories.
fn making<R>(what: Making, instantiate: impl FnOnce() -> R) -> (R, Vec<Arc<Space>>) {
    /// Resets the thread's note, even if making the instance panics.
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

    /// Makes a second instance of the same component whose memories mirror these, at their present
    /// size.
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
    /// The second instance, to be entered.
    pub(crate) fn instance(&mut self) -> &mut T {
        &mut self.instance
    }

    /// Whether the mirrors still have the size of the live memories.
    pub(crate) fn fits(&self) -> bool {
        self.mirrors.iter().zip(&self.of).all(|(mirror, live)| mirror.size() == live.size())
    }

    /// Gives back the pages that the instance wrote, so that it sees the live memories again.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        for mirror in &self.mirrors {
            if mirror.size() == 0 || planted("mirrors_remember") {
                continue;
            }
            // SAFETY: the range is this mapping's. The instance is borrowed mutably here, so no
            // code runs in it and no reference into its memory is alive. Its pages are of a private
            // mapping of a file, and are read from the file again.
            unsafe { madvise(mirror.start(0), mirror.size(), Advice::LinuxDontNeed) }?;
        }
        Ok(())
    }

    /// Maps the live memories over those that the instance was made with.
    fn look(&mut self) -> io::Result<()> {
        if self.mirrors.len() != self.of.len() || !self.fits() {
            return Err(io::Error::other("the memories of the second instance differ"));
        }
        for (mirror, live) in self.mirrors.iter().zip(&self.of) {
            let Some(file) = live.file.as_ref().filter(|_| live.size() > 0) else { continue };
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            let flags = flags | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: the range lies in the mirror's own reservation, whose size is that of the
            // file, and is replaced there. The instance is borrowed mutably here, so no code runs
            // in it and no reference into its memory is alive.
            unsafe { mmap(mirror.start(0), live.size(), access, flags, file, 0) }?;
        }
        Ok(())
    }
}

impl Space {
    /// Reserves address space, and makes its first `size` bytes accessible, all zero.
    fn new(size: usize, reserved: usize, file: Option<OwnedFd>) -> io::Result<Arc<Self>> {
        let none = ProtFlags::empty();
        let base = match &file {
            Some(file) => {
                ftruncate(file, size as u64)?;
                let flags = MapFlags::SHARED | MapFlags::NORESERVE;
                // SAFETY: this is a new mapping, at an address that the kernel chooses.
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
        // SAFETY: as asserted, the result lies in the mapping or just past its end.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// Makes the bytes up to `size` accessible.
    fn open(&self, size: usize) -> io::Result<()> {
        let before = self.size();
        if size > before {
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            // SAFETY: the range lies in this mapping, and was inaccessible until now.
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
        // SAFETY: this value owns the mapping, and all that used it held this value and are gone.
        let unmapped = unsafe { munmap(self.start(0), self.reserved) };
        debug_assert!(unmapped.is_ok(), "a mapping can be given back");
    }
}

/// A [`Space`] as wasmtime uses it.
struct Linear {
    space: Arc<Space>,
    /// Bytes that the memory may grow to; the guard follows them.
    capacity: usize,
}

// SAFETY: the base never moves. The `byte_size` bytes from it on can be read and written; the rest
// of the reservation, guard included, faults. All of it stays mapped as long as this value lives.
unsafe impl LinearMemory for Linear {
    fn byte_size(&self) -> usize {
        self.space.size()
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        if size > self.capacity {
            wasmtime::bail!("a memory of {size} bytes exceeds its address space");
        }
        Ok(self.space.grow(size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.space.base.as_ptr()
    }
}

/// Makes all linear memories of the engine.
pub(crate) struct Creator;

// SAFETY: a new memory is all zero, has the reservation and the guard that were asked for, and is
// used by its instance only: a mirror is changed here only while its instance is borrowed mutably.
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
        Creator.new_memory(ty, size, None, Some(16 * PAGE), PAGE).expect("there is space")
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

    /// A mirror sees the live memory, keeps its writes to itself, and forgets them.
    #[test]
    fn a_mirror_sees_all_and_changes_nothing() {
        let (mut live, memories) = live(|| made(PAGE));
        assert!(memories.have_files());
        put(&*live, 10, 1);
        live.grow_to(3 * PAGE).expect("there is space");
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
        live.grow_to(4 * PAGE).expect("there is space");
        assert!(!mirror.fits(), "the live one has grown");
    }

    /// A mirror that grows has the added pages to itself.
    #[test]
    fn a_mirror_grows_by_itself() {
        let (live, memories) = live(|| made(PAGE));
        let mirror = memories.mirror(|| Ok::<_, ()>(made(PAGE)));
        let mut mirror = mirror.expect("it is made").expect("it is mapped");
        mirror.instance().grow_to(2 * PAGE).expect("there is space");
        put(&**mirror.instance(), PAGE, 5);
        assert!(!mirror.fits());
        assert_eq!(live.byte_size(), PAGE);
        mirror.instance().grow_to(17 * PAGE).expect_err("it is beyond the reservation");
    }
}
