//! `lockstep build`: makes a component of a project's sources, and checks it as a node would.
//!
//! - The compiler is the language's own; what makes a component of its output is in this program.
//! - Names of functions stay in the component, for backtraces.
//! - A component that a node would refuse is not written; the one of the build before stays.
//! - What is missing is named, together with the command that brings it.

mod c;
mod component;
mod js;
mod project;
mod python;
mod rust;
mod tools;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::format::size;
use crate::cli::sdk::{self, Language};
use crate::cli::{Failure, Outcome};
use crate::guest::component::ComponentModule;
use crate::kit::inspect::report_to_json;
use crate::logging::out;
use crate::node::compile_component;
use project::Project;
pub(super) use tools::Progress;
use tools::Tools;

const EXAMPLES: &str = "\
Examples:
  lockstep build                            the project in this folder, to NAME.wasm
  lockstep build machines/tally -o tally.wasm

Languages: Rust (Cargo.toml), JavaScript (package.json), C and Python (.c or .py files, or what
lockstep.toml says). `lockstep new` writes projects.";

/// Build a state machine's component, and check it with the engine that nodes use.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Folder of the project.
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// File to write; by default NAME.wasm in the project's folder.
    #[arg(short, long, value_name = "FSM.wasm")]
    output: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A component that a node would accept.
pub(super) struct Built {
    name: String,
    language: Language,
    component: Vec<u8>,
    pub(super) module: ComponentModule,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let Built { name, language, component, module } = build(&args.dir, Progress::Shown)?;
    let file = match &args.output {
        Some(file) => file.clone(),
        None => args.dir.join(format!("{name}.wasm")),
    };
    replace(&file, &component)
        .map_err(|error| Failure::Failed(format!("{}: {error}; see -o", file.display())))?;
    if args.json {
        let mut told = report_to_json(module.report());
        told["file"] = file.display().to_string().into();
        told["language"] = language.name().into();
        out!("{told}");
    } else {
        out!("{}\n  file       {}", module.report(), file.display());
    }
    Ok(())
}

/// Builds the project in a folder.
pub(super) fn build(dir: &Path, progress: Progress) -> Result<Built, Failure> {
    let (project, tools) = (Project::find(dir)?, Tools::of_process(progress));
    let scratch = tempfile::tempdir()?;
    let Project { name, language, .. } = &project;
    tools.say(format_args!("{name}: building, in {}", language.name()));
    let component = match language {
        Language::Rust => rust::build(&project, &tools)?,
        Language::C => c::build(&project, &tools, scratch.path())?,
        Language::Js => js::build(&project, &tools, scratch.path())?,
        Language::Python => python::build(&project, &tools, scratch.path())?,
    };
    // What an interpreter brings along takes a node half a minute to compile, the first time.
    tools.say(format_args!("{name}: checking {}", size(component.len() as u64)));
    let module =
        compile_component(&component).map_err(|why| Failure::Failed(format!("{name}: {why}")))?;
    Ok(Built { name: project.name, language: project.language, component, module })
}

/// The folder with the SDK: the project's own copy, or else that of this program. In JavaScript the
/// copy is imported by its path, so it has to be the project's.
fn sdk_folder(project: &Project, scratch: &Path) -> io::Result<PathBuf> {
    let files = project.language.sdk();
    if files.iter().all(|(name, _)| project.sources.join(name).is_file()) {
        return Ok(project.sources.clone());
    }
    let folder = scratch.join("sdk");
    fs::create_dir(&folder)?;
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
    }
    Ok(folder)
}

/// Writes a file at once: `lockstep run` may be watching it.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, bytes)?;
    fs::rename(&partial, file)
}

/// Writes the world of a state machine that exports these interfaces too, for tools that read
/// worlds from a folder.
fn write_world(folder: &Path, exports: &[&str]) -> io::Result<()> {
    let package = folder.join("deps/fsm");
    fs::create_dir_all(&package)?;
    fs::write(package.join("fsm.wit"), sdk::WIT)?;
    fs::write(folder.join("world.wit"), component::world(exports))
}
