//! What the commands of the author's kit share: the component, the group that it is to run in, and
//! where commands come from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::limits::LimitArgs;
use crate::config::{GuestLimits, guest};
use crate::fs::DiskFs;
use crate::guest::component::ComponentModule;
use crate::guest::{GuestLog, GuestModule, Module};
use crate::kit::player::Maker;
use crate::kit::source::{Source, SourceError};
use crate::kit::templates::Templates;
use crate::node::{compile_component, read_component};

/// Largest file of templates, bytes.
const TEMPLATES_BYTES_MAX: usize = 1 << 20;

/// What `--help` says about templates.
pub(super) const TEMPLATES_HELP: &str = "\
Commands come from the component's export `self-test`, or from a file of templates:

  # a comment
  #! independent-of-packing      claims it, as `claim` does
  set {word} {0..99}             a word (one of a few), a number (both ends included)
  put {a|b|c} {bytes 0..64}      one of these texts, bytes of any value
  {{\"op\": \"add\", \"by\": {1..9}}}  {{ and }} are braces
  ?get {word}                    a query";

/// What is looked at, and how it is told.
#[derive(clap::Args)]
pub(super) struct ComponentArgs {
    /// The component.
    #[arg(value_name = "FSM.wasm")]
    pub module: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What a new group would record of its state machine.
#[derive(clap::Args)]
pub(super) struct GroupArgs {
    /// Configuration passed to the state machine's `init` and `restore`.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        value_parser = guest::config
    )]
    pub config: String,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Where commands and queries come from.
#[derive(clap::Args)]
pub(super) struct SourceArgs {
    /// Templates of commands and queries; by default the component's `self-test` makes them up.
    #[arg(long, value_name = "FILE")]
    commands: Option<PathBuf>,
}

impl GroupArgs {
    pub(super) fn limits(&self) -> Result<GuestLimits, Failure> {
        self.limits.limits()
    }

    /// Makes replicas of a module in such a group.
    pub(super) fn maker(&self, module: Module, seed: u64) -> Result<Arc<Maker>, Failure> {
        let config = self.config.clone().into();
        Ok(Maker::new(module, config, self.limits()?, seed, GuestLog::of_no_group()))
    }

    /// The options with which to repeat what was done.
    pub(super) fn repeated(&self) -> String {
        let Self { config, limits } = self;
        let config = [("config", Some(config.clone()).filter(|it| !it.is_empty()))];
        let given = config.into_iter().chain(limits.given());
        let given = given.filter_map(|(name, value)| Some((name, value?)));
        given.map(|(name, value)| format!(" --{name} {}", quoted(&value))).collect()
    }
}

impl SourceArgs {
    pub(super) fn source(&self, module: &dyn GuestModule) -> Result<Source, Failure> {
        let templates = self.commands.as_deref().map(templates).transpose()?;
        Source::of(module, templates).map_err(|error| match error {
            SourceError::None => Failure::Usage(error.to_string()),
            SourceError::SelfTest(_) | SourceError::TooLong { .. } => {
                Failure::Failed(error.to_string())
            }
        })
    }

    /// The option with which to repeat what was done.
    pub(super) fn repeated(&self) -> String {
        let Some(file) = &self.commands else { return String::new() };
        format!(" --commands {}", quoted(&file.display().to_string()))
    }
}

/// Loads a component as a node would.
pub(super) fn component(path: &Path) -> Result<ComponentModule, Failure> {
    compiled(path, &read(path)?)
}

/// Reads a component as a node would.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = read_component(&DiskFs, path).map_err(|error| {
        refused(path, format!("{error}; give the path of the .wasm that the build produced"))
    })?;
    bytes.map_err(|why| refused(path, why))
}

/// Compiles what was read from there.
pub(super) fn compiled(path: &Path, component: &[u8]) -> Result<ComponentModule, Failure> {
    compile_component(component).map_err(|why| refused(path, why))
}

fn refused(path: &Path, why: impl fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {why}", path.display()))
}

fn templates(path: &Path) -> Result<Templates, Failure> {
    let shown = path.display();
    let refuse = |why: String| Failure::Usage(format!("{shown}: {why}"));
    let bytes = std::fs::read(path)
        .map_err(|error| refuse(format!("{error}; give a file of templates, see --help")))?;
    if bytes.len() > TEMPLATES_BYTES_MAX {
        let length = bytes.len();
        return Err(refuse(format!(
            "it has {length} bytes, the limit is {TEMPLATES_BYTES_MAX}: a template stands for \
             many commands, see --help"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..place].iter().filter(|byte| **byte == b'\n').count();
        refuse(format!("line {line}: it is not UTF-8; write other bytes as {{bytes 0..64}}"))
    })?;
    Templates::parse(&text).map_err(|error| refuse(error.to_string()))
}

/// A word of a shell's command line.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let check = |word, expect: &str| assert_eq!(quoted(word), expect);
        check("target/kv.wasm", "target/kv.wasm");
        check("a b", "'a b'");
        check("it's", r"'it'\''s'");
        check("", "''");
    }
}
