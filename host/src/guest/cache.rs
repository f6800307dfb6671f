//! The cache of compiled code: what the compiler made of a component, kept from one start to the
//! next.
//!
//! - Compiled code is run as it is, so it is never taken from outside: only from a directory that
//!   belongs to this user and that nobody else can write or read, and only if the file is whole,
//!   was written for this very module, engine, settings and processor.
//! - Whatever is damaged or foreign is compiled anew, said, and replaced. A cache that cannot be
//!   used at all costs time, never an error.
//! - The cache keeps at most [`FILES_MAX`] files.
//!
//! `file = magic 8 · key 32 · SHA-256 of the code 32 · code`

use std::ffi::OsString;
use std::hash::{Hash as _, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use lockstep_core::ids::{ModuleId, hex};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::fs::{DiskFs, Fs, read_exact_at};

const MAGIC: [u8; 8] = *b"lsc-code";
const HEAD_BYTES: usize = 8 + 32 + 32;
/// Largest file that is read, bytes: a component of the largest size has less code than this.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Most files that a cache keeps. Those of an author who builds again and again soon go.
const FILES_MAX: usize = 16;

/// Names the directory of the cache; empty means that there is none.
const ENV: &str = "LOCKSTEP_CACHE_DIR";

/// A directory with compiled code.
#[derive(Clone, Debug)]
pub struct CodeCache {
    dir: PathBuf,
}

/// What became of looking for a module's code.
enum Found {
    Code(Component),
    Nothing,
    /// There is a file that cannot be used, and this is why.
    Unusable(String),
}

impl CodeCache {
    /// The cache in this directory, which is created if it is missing. `Err` if it cannot be
    /// trusted or made.
    pub fn in_dir(dir: &Path) -> io::Result<Self> {
        DiskFs.create_private_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// This user's cache, if there is a place for it; [`ENV`] names another one, or none. A cache
    /// that cannot be used is said, and done without.
    pub fn of_user() -> Option<Self> {
        let dir = place(|name| std::env::var_os(name))?;
        Self::in_dir(&dir)
            .inspect_err(|error| tracing::warn!(%error, "compiled code is not kept"))
            .ok()
    }

    /// The module's code, if it is there.
    pub(super) fn find(&self, engine: &Engine, module: ModuleId) -> Option<Component> {
        let key = key(engine, module);
        let path = self.path(&key);
        match Self::read(engine, &path, &key) {
            Found::Code(component) => Some(component),
            Found::Nothing => None,
            Found::Unusable(why) => {
                tracing::warn!(file = %path.display(), why, "compiled code is not used: compiling");
                None
            }
        }
    }

    /// Keeps the module's code.
    pub(super) fn keep(&self, engine: &Engine, module: ModuleId, component: &Component) {
        let key = key(engine, module);
        let path = self.path(&key);
        if let Err(error) = self.write(component, &path, &key) {
            tracing::warn!(file = %path.display(), %error, "compiled code is not kept");
        }
    }

    fn path(&self, key: &[u8; 32]) -> PathBuf {
        self.dir.join(format!("{}.code", hex(key)))
    }

    fn read(engine: &Engine, path: &Path, key: &[u8; 32]) -> Found {
        let file = match read(path) {
            Ok(Some(file)) => file,
            Ok(None) => return Found::Nothing,
            Err(error) => return Found::Unusable(error.to_string()),
        };
        let code = match code_of(&file, key) {
            Ok(code) => code,
            Err(why) => return Found::Unusable(why.to_owned()),
        };
        // SAFETY: the code was written by `write` of this program, for this engine: the directory
        // is this user's alone, and the file names the key and has the digest of the code. Who can
        // write such a file can also replace this program.
        match unsafe { Component::deserialize(engine, code) } {
            Ok(component) => Found::Code(component),
            Err(error) => Found::Unusable(format!("{error:#}")),
        }
    }

    fn write(&self, component: &Component, path: &Path, key: &[u8; 32]) -> io::Result<()> {
        let code = component.serialize().map_err(|error| io::Error::other(format!("{error:#}")))?;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + code.len());
        bytes.extend(MAGIC);
        bytes.extend(key);
        bytes.extend(Sha256::digest(&code));
        bytes.extend(&code);
        // Another process may write the same code at the same time: each has a name of its own.
        let staged = path.with_extension(format!("{}.new", std::process::id()));
        let _ = DiskFs.remove(&staged);
        let written =
            DiskFs.create(&staged).and_then(|file| file.write_at(&bytes, 0)).and_then(|()| {
                self.make_space(&[path, &staged])?;
                DiskFs.rename(&staged, path)
            });
        if written.is_err() {
            let _ = DiskFs.remove(&staged);
        }
        written
    }

    /// Deletes other files until there are fewer than may be kept: also what processes left that
    /// were killed while they wrote.
    fn make_space(&self, new: &[&Path]) -> io::Result<()> {
        let names = DiskFs.list(&self.dir)?;
        let ours = |path: &PathBuf| {
            let extension = path.extension().unwrap_or_default();
            (extension == "code" || extension == "new") && !new.contains(&&**path)
        };
        let others: Vec<_> = names.iter().map(|name| self.dir.join(name)).filter(ours).collect();
        for path in others.iter().skip(FILES_MAX - 1) {
            DiskFs.remove(path)?;
        }
        Ok(())
    }
}

/// Where this user's cache lies: where [`ENV`] says (nowhere, if it is empty), where systemd says,
/// or below the directory that programs keep their caches in.
fn place(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(told) = variable(ENV) {
        return Some(PathBuf::from(told)).filter(|dir| !dir.as_os_str().is_empty());
    }
    let set = |name: &str| variable(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    set("CACHE_DIRECTORY")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("lockstep")))
        .or_else(|| set("HOME").map(|home| home.join(".cache").join("lockstep")))
}

/// What the code depends on: the module, the engine with its settings, and the processor.
fn key(engine: &Engine, module: ModuleId) -> [u8; 32] {
    let mut digest = Digested(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut digest);
    digest.write(env!("CARGO_PKG_VERSION").as_bytes());
    digest.write(&module.0);
    digest.0.finalize().into()
}

/// Feeds what is hashed to SHA-256, which is the same in every process.
struct Digested(Sha256);

impl Hasher for Digested {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// The file's bytes; `None` if there is no file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if !DiskFs.exists(path)? {
        return Ok(None);
    }
    let file = DiskFs.open(path, false)?;
    let length = file.len()?;
    if length > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has {length} bytes, too many for code")));
    }
    let mut bytes = vec![0; length as usize];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(Some(bytes))
}

/// The code in a file, if the file is whole and was written for this key.
fn code_of<'a>(file: &'a [u8], key: &[u8; 32]) -> Result<&'a [u8], &'static str> {
    let (head, code) = file.split_at_checked(HEAD_BYTES).ok_or("it is cut off")?;
    if head[..8] != MAGIC || head[8..40] != *key {
        return Err("it was written for something else");
    }
    if head[40..] != *Sha256::digest(code) {
        return Err("it is damaged");
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::engine;

    const MODULE: ModuleId = ModuleId([7; 32]);

    fn compile() -> Component {
        let engine = engine::shared().expect("the engine starts");
        let bytes = wat::parse_str("(component)").expect("it is well formed");
        Component::new(engine, bytes).expect("it is a component")
    }

    /// Spoils the file of a kept module; then it is not used, and keeping it again mends that.
    fn check(spoil: impl Fn(&mut Vec<u8>)) {
        let engine = engine::shared().expect("the engine starts");
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CodeCache::in_dir(&dir.path().join("code")).expect("it can be made");
        assert!(cache.find(engine, MODULE).is_none());
        cache.keep(engine, MODULE, &compile());
        assert!(cache.find(engine, MODULE).is_some(), "it was kept");
        assert!(cache.find(engine, ModuleId([8; 32])).is_none(), "another module");
        let path = cache.path(&key(engine, MODULE));
        let mut bytes = read(&path).expect("it can be read").expect("it is there");
        spoil(&mut bytes);
        DiskFs.remove(&path).expect("it is there");
        DiskFs.create(&path).and_then(|file| file.write_at(&bytes, 0)).expect("it is written");
        assert!(cache.find(engine, MODULE).is_none(), "it is not what it was");
        cache.keep(engine, MODULE, &compile());
        assert!(cache.find(engine, MODULE).is_some(), "it was kept again");
    }

    #[test]
    fn what_is_damaged_or_foreign_is_not_run() {
        check(|bytes| *bytes.last_mut().expect("it has bytes") ^= 1);
        check(|bytes| bytes.truncate(40));
        check(|bytes| bytes.truncate(bytes.len() - 1));
        check(|bytes| bytes.clear());
        check(|bytes| bytes[0] ^= 1);
        // The file of another module or engine, under this one's name.
        check(|bytes| bytes[8] ^= 1);
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let open = dir.path().join("open");
        DiskFs.create_dir_all(&open).expect("it can be made");
        let refused = CodeCache::in_dir(&open).expect_err("its group may read it");
        assert!(refused.to_string().contains("set its mode to 0700"), "{refused}");
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&open, mode).expect("it is ours");
        CodeCache::in_dir(&open).expect("it is nobody else's now");
    }

    #[test]
    fn a_cache_is_bounded() {
        let engine = engine::shared().expect("the engine starts");
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CodeCache::in_dir(&dir.path().join("code")).expect("it can be made");
        let component = compile();
        for module in 0..2 * FILES_MAX as u8 {
            cache.keep(engine, ModuleId([module; 32]), &component);
            assert!(cache.find(engine, ModuleId([module; 32])).is_some(), "the newest is kept");
        }
        let names = DiskFs.list(&cache.dir).expect("it can be read");
        assert_eq!(names.len(), FILES_MAX);
    }

    #[test]
    fn the_place_of_the_cache() {
        let check = |set: &[(&str, &str)], expect: Option<&str>| {
            let variable = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            assert_eq!(place(variable), expect.map(PathBuf::from), "{set:?}");
        };
        check(&[], None);
        check(&[("HOME", "/home/a")], Some("/home/a/.cache/lockstep"));
        check(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")], Some("/c/lockstep"));
        check(&[("HOME", "/home/a"), ("CACHE_DIRECTORY", "/var/cache/x")], Some("/var/cache/x"));
        check(&[("HOME", "/home/a"), (ENV, "")], None);
        check(&[("HOME", "relative")], None);
        check(&[("HOME", "/home/a"), (ENV, "mine")], Some("mine"));
    }
}
