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

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::cli::format::size;
use crate::cli::sdk::{self, Language};
use crate::cli::{Failure, Outcome};
use crate::guest::CodeCache;
use crate::guest::component::ComponentModule;
use crate::kit::inspect::report_to_json;
use crate::logging::out;
use project::Project;
use tools::Tools;

const EXAMPLES: &str = "\
Examples:
  lockstep build                            the project in this folder, to NAME.wasm
  lockstep build machines/tally -o tally.wasm

Languages: Rust (Cargo.toml), C, JavaScript and Python (lockstep.toml, or the only .c, .js or .py
files). `lockstep new` writes projects.";

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

pub(crate) fn run(args: &Args) -> Outcome {
    let project = Project::find(&args.dir)?;
    let tools = Tools::of_process();
    let scratch = tempfile::tempdir()?;
    say(format_args!("{}: building, in {}", project.name, project.language.name()));
    let component = match project.language {
        Language::Rust => rust::build(&project, &tools)?,
        Language::C => c::build(&project, &tools, scratch.path())?,
        Language::Js => js::build(&project, &tools, scratch.path())?,
        Language::Python => python::build(&project, &tools, scratch.path())?,
    };
    // What an interpreter brings along takes a node half a minute to compile, the first time.
    say(format_args!("{}: checking {}", project.name, size(component.len() as u64)));
    let module = ComponentModule::load_with(&component, CodeCache::of_user().as_ref())
        .map_err(|why| Failure::Failed(format!("{}: {why}", project.name)))?;
    let file = match &args.output {
        Some(file) => file.clone(),
        None => args.dir.join(format!("{}.wasm", project.name)),
    };
    replace(&file, &component)
        .map_err(|error| Failure::Failed(format!("{}: {error}; see -o", file.display())))?;
    if args.json {
        let mut told = report_to_json(module.report());
        told["file"] = file.display().to_string().into();
        told["language"] = project.language.name().into();
        out!("{told}");
    } else {
        out!("{}\n  file       {}", module.report(), file.display());
    }
    Ok(())
}

/// Says how far the build is, beside what the compilers say; standard output is for the result.
fn say(what: fmt::Arguments<'_>) {
    // A reader who has left does not end the build.
    let _ = writeln!(io::stderr(), "{what}");
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
