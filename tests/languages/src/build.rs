//! The components: built from the examples by the binary `lockstep`, checked, tested and loaded.
//!
//! - Compilers and tools are found on the path; `cargo xtask languages` puts them there.
//! - Nothing of an earlier run is used: the folder of a run is emptied at its beginning, compiled
//!   code included, so that times are those of a first build and a first start.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lockstep_host::guest::CodeCache;
use lockstep_host::guest::component::ComponentModule;
use lockstep_tests::cluster::binary;

use crate::agree::Machine;

/// In what the example `kv` is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    Rust,
    C,
    JavaScript,
    Python,
}

/// A component, and what it took to get it.
pub struct Built {
    pub language: Language,
    pub file: PathBuf,
    pub bytes: u64,
    /// What `lockstep build` took, its check of the component included.
    pub built: Duration,
    /// What a node takes to load it: compiled, and from the cache.
    pub compiled: Duration,
    pub cached: Duration,
    pub module: Arc<ComponentModule>,
}

/// Where a run keeps its files.
pub struct Place {
    root: PathBuf,
}

impl Language {
    pub const ALL: [Self; 4] = [Self::Rust, Self::C, Self::JavaScript, Self::Python];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::C => "C",
            Self::JavaScript => "JavaScript",
            Self::Python => "Python",
        }
    }

    /// A name for files and groups.
    pub fn short(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::JavaScript => "js",
            Self::Python => "python",
        }
    }
}

impl Built {
    pub fn machine(&self) -> Machine {
        Machine { name: self.language.name(), module: Arc::clone(&self.module) as _ }
    }
}

impl Place {
    /// The folder `languages/run` in cargo's target directory, emptied.
    pub fn of_run() -> Result<Self> {
        let this = std::env::current_exe().context("finding out where this program is")?;
        let target = this.ancestors().nth(2).context("this program is not in a target folder")?;
        let root = target.join("languages/run");
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
        }
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        Ok(Self { root })
    }

    /// Where compiled code is kept for this run's processes.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// The binary `lockstep`, with this run's compiled code.
    pub fn lockstep(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.env("LOCKSTEP_CACHE_DIR", self.cache()).stdin(Stdio::null());
        Ok(command)
    }

    /// Builds the example in a language, and loads it twice.
    pub fn build(&self, language: Language) -> Result<Built> {
        let file = self.root.join(language.short()).with_extension("wasm");
        let began = Instant::now();
        let mut command = self.lockstep()?;
        command.arg("build").arg(self.project(language)?).arg("-o").arg(&file);
        // Compiled code is kept by the first load below, and cargo builds from nothing.
        command.env("LOCKSTEP_CACHE_DIR", "").env("CARGO_TARGET_DIR", self.root.join("cargo"));
        run(&mut command)?;
        let built = began.elapsed();
        let component = read(&file)?;
        let cache = CodeCache::in_dir(&self.cache()).context("a place for compiled code")?;
        let load = || {
            let began = Instant::now();
            let module = ComponentModule::load_with(&component, Some(&cache));
            let module = module.map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
            anyhow::Ok((module, began.elapsed()))
        };
        let (first, compiled) = load()?;
        ensure!(first.report().compiled_in.is_some(), "it was compiled before");
        let (module, cached) = load()?;
        ensure!(module.report().compiled_in.is_none(), "its compiled code was not kept");
        let (bytes, module) = (component.len() as u64, Arc::new(module));
        Ok(Built { language, file, bytes, built, compiled, cached, module })
    }

    /// `lockstep check` and `lockstep test`; returns what the latter says.
    pub fn test(&self, built: &Built, cases: u64, seed: u64) -> Result<String> {
        run(self.lockstep()?.arg("check").arg(&built.file))?;
        let mut test = self.lockstep()?;
        test.arg("test").arg(&built.file).arg("--commands").arg(example("kv/commands.txt"));
        test.args(["--cases", &cases.to_string(), "--seed", &seed.to_string()]);
        run(&mut test)
    }

    /// The folder that `lockstep build` is given.
    fn project(&self, language: Language) -> Result<PathBuf> {
        match language {
            Language::Rust => Ok(example("kv")),
            Language::C => Ok(example("c/kv")),
            Language::Python => Ok(example("python/kv")),
            // A project in JavaScript has its own copy of the SDK; the example shares one.
            Language::JavaScript => {
                const SHARED: &str = "../../../guest-sdk/js/lockstep.js";
                let folder = self.root.join("kv");
                fs::create_dir_all(&folder).context("a folder for a project")?;
                let text = String::from_utf8(read(&example("js/kv/kv.js"))?)?;
                ensure!(text.contains(SHARED), "kv.js does not import {SHARED}");
                fs::write(folder.join("kv.js"), text.replace(SHARED, "./lockstep.js"))?;
                let sdk = read(&checkout().join("guest-sdk/js/lockstep.js"))?;
                fs::write(folder.join("lockstep.js"), sdk)?;
                let manifest = "language = \"js\"\nsource = \"kv.js\"\n";
                fs::write(folder.join("lockstep.toml"), manifest)?;
                Ok(folder)
            }
        }
    }
}

/// A file or folder of the examples.
pub fn example(path: &str) -> PathBuf {
    checkout().join("examples").join(path)
}

fn checkout() -> &'static Path {
    let languages = Path::new(env!("CARGO_MANIFEST_DIR"));
    languages.ancestors().nth(2).expect("it lies in the checkout")
}

/// Runs a program that must succeed; returns what it prints.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}
