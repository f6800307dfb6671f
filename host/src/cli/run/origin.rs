//! Where the module of `lockstep run` comes from: a file, or a project that is built.
//!
//! - A thread looks every second, and loads what changed and then stayed the same for a second: a
//!   compiler or an editor may still be writing it. The prompt goes on meanwhile.
//! - A project is what is in its folder, without what is hidden or generated.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use crate::cli::Failure;
use crate::cli::build::{Progress, build};
use crate::cli::kit::component;
use crate::guest::Module;

/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Most files of a project that are looked at.
const FILES_MAX: usize = 10_000;
/// Folders of what others wrote, beside those that cargo tags.
const NOT_OURS: [&str; 2] = ["node_modules", "__pycache__"];
/// Is in a folder that can be made again.
const CACHE_TAG: &str = "CACHEDIR.TAG";

/// A component's file, or the folder of a project.
#[derive(Clone)]
pub(super) enum Origin {
    File(PathBuf),
    Project(PathBuf),
}

/// A module that was loaded anew, or why there is none.
pub(super) type News = Result<Module, String>;

/// What files look like from outside: when each was written, in seconds and nanoseconds, and its
/// length.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp(BTreeMap<PathBuf, (i64, i64, u64)>);

impl Origin {
    pub(super) fn at(path: &Path) -> Self {
        let owned = path.to_owned();
        if path.is_dir() { Self::Project(owned) } else { Self::File(owned) }
    }

    /// What changes if there is news.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "the file",
            Self::Project(_) => "the source",
        }
    }

    /// Loads the module; a project is built.
    pub(super) fn load(&self, progress: Progress) -> Result<Module, Failure> {
        Ok(Arc::new(match self {
            Self::File(file) => component(file)?,
            Self::Project(dir) => build(dir, progress)?.module,
        }))
    }

    pub(super) fn stamp(&self) -> Stamp {
        let mut stamp = Stamp::default();
        match self {
            Self::File(file) => {
                if let Ok(metadata) = fs::metadata(file) {
                    stamp.add(file, &metadata);
                }
            }
            Self::Project(dir) => stamp.add_folder(dir),
        }
        stamp
    }

    /// Loads again whatever differs from this stamp, of which this was loaded.
    pub(super) fn watch(self, mut stamp: Stamp, module: &Module) -> io::Result<Receiver<News>> {
        let (sender, news) = sync_channel(1);
        let mut loaded = Some(module.id());
        let mut seen = stamp.clone();
        let look = move || {
            loop {
                thread::sleep(LOOK);
                let now = self.stamp();
                let settled = std::mem::replace(&mut seen, now.clone()) == now;
                if !settled || now == stamp || now == Stamp::default() {
                    continue;
                }
                stamp = now;
                let module = self.load(Progress::Kept).map_err(why);
                let id = module.as_ref().ok().map(|module| module.id());
                // A build writes files, too, and then gives the same again.
                let same = id.is_some() && id == loaded;
                loaded = id;
                if !same && sender.send(module).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("origin".to_owned()).spawn(look)?;
        Ok(news)
    }
}

impl Stamp {
    fn add(&mut self, file: &Path, metadata: &Metadata) {
        let stamp = (metadata.mtime(), metadata.mtime_nsec(), metadata.len());
        self.0.insert(file.to_owned(), stamp);
    }

    /// What cannot be read is not there.
    fn add_folder(&mut self, dir: &Path) {
        if dir.join(CACHE_TAG).exists() {
            return;
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            let generated = name.ends_with(".wasm") || NOT_OURS.contains(&&*name);
            if name.starts_with('.') || generated || self.0.len() >= FILES_MAX {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => self.add_folder(&path),
                Ok(metadata) => self.add(&path, &metadata),
                Err(_) => {}
            }
        }
    }
}

fn why(failure: Failure) -> String {
    match failure {
        Failure::Failed(why) | Failure::Usage(why) => why,
        Failure::Unwell(code) => format!("it failed with {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_what_its_author_writes() {
        let dir = tempfile::tempdir().expect("there is space");
        let write = |path: &str| {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().expect("it is in the folder")).expect("it is ours");
            fs::write(file, path).expect("there is space");
        };
        let origin = Origin::at(dir.path());
        let check = |path: &str, counts: bool| {
            let before = origin.stamp();
            write(path);
            assert_eq!(origin.stamp() != before, counts, "{path}");
        };
        check("src/lib.rs", true);
        check("lockstep.toml", true);
        check("target/CACHEDIR.TAG", false);
        check("target/release/x.d", false);
        check("tally.wasm", false);
        check(".git/index", false);
        check("node_modules/it/index.js", false);
        check("src/deep/er/x.rs", true);
    }
}
