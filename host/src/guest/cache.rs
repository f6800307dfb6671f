//! The cache of compiled code: what the compiler made of a component, kept from one start to the
//! next.
//!
//! - Compiled code is run as it is, so it is never taken from outside: only from a directory that
//!   belongs to this user and that nobody else can write or read, and only if the file is whole,
//!   was written for this very module, engine, settings and processor.
//! - Whatever is damaged or foreign is compiled anew, said, and replaced. A cache that cannot be
//!   used at all costs time, never an error.
//! - The cache is bounded: code of other engines goes when it is opened, and it keeps at most
//!   [`FILES_MAX`] files.
//!
//! `file = magic 8 · key 32 · SHA-256 of the code 32 · code`

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

    /// The module's code: from the cache, or compiled and put there. Returns whether it had to be
    /// compiled.
    pub(super) fn load(
        &self,
        engine: &Engine,
        module: ModuleId,
        compile: impl FnOnce() -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<(Component, bool)> {
        let key = key(engine, module);
        let path = self.dir.join(format!("{}.code", hex(&key)));
        match self.find(engine, &path, &key) {
            Found::Code(component) => return Ok((component, false)),
            Found::Nothing => {}
            Found::Unusable(why) => {
                tracing::warn!(file = %path.display(), why, "compiled code is not used: compiling");
            }
        }
        let component = compile()?;
        if let Err(error) = self.keep(&component, &path, &key) {
            tracing::warn!(file = %path.display(), %error, "compiled code is not kept");
        }
        Ok((component, true))
    }

    fn find(&self, engine: &Engine, path: &Path, key: &[u8; 32]) -> Found {
        let file = match read(path) {
            Ok(Some(file)) => file,
            Ok(None) => return Found::Nothing,
            Err(error) => return Found::Unusable(error.to_string()),
        };
        let code = match code_of(&file, key) {
            Ok(code) => code,
            Err(why) => return Found::Unusable(why.to_owned()),
        };
        // SAFETY: the code was written by `keep` of this program, for this engine: the directory is
        // this user's alone, and the file names the key and has the digest of the code. Who can
        // write such a file can also replace this program.
        match unsafe { Component::deserialize(engine, code) } {
            Ok(component) => Found::Code(component),
            Err(error) => Found::Unusable(format!("{error:#}")),
        }
    }

    fn keep(&self, component: &Component, path: &Path, key: &[u8; 32]) -> io::Result<()> {
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
                self.make_space(path)?;
                DiskFs.rename(&staged, path)
            });
        if written.is_err() {
            let _ = DiskFs.remove(&staged);
        }
        written
    }

    /// Deletes files until there are fewer than may be kept.
    fn make_space(&self, new: &Path) -> io::Result<()> {
        let names = DiskFs.list(&self.dir)?;
        let others = names.iter().map(|name| self.dir.join(name)).filter(|path| {
            path != new && path.extension().is_some_and(|extension| extension == "code")
        });
        let others: Vec<_> = others.collect();
        for path in others.iter().skip(FILES_MAX - 1) {
            DiskFs.remove(path)?;
        }
        Ok(())
    }
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
