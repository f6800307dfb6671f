//! What the commands of the author's kit share: the component, and where commands come from.

use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::guest::GuestModule;
use crate::guest::component::ComponentModule;
use crate::kit::source::{Source, SourceError};
use crate::kit::templates::Templates;
use crate::node::load_component;

/// Largest file of templates, bytes.
const TEMPLATES_BYTES_MAX: usize = 1 << 20;

/// What `--help` says about templates.
pub(super) const TEMPLATES_HELP: &str = "\
Commands come from the component's export `self-test`, or from a file of templates:

  # a comment
  #! independent-of-packing      claims it, as `claim` does
  set {word} {0..99}             a word (one of a few), a number
  put {a|b|c} {bytes 0..64}      one of these texts, bytes of any value
  {{\"op\": \"add\", \"by\": {1..9}}}  {{ and }} are braces
  ?get {word}                    a query";

/// Where commands and queries come from.
#[derive(clap::Args)]
pub(super) struct SourceArgs {
    /// Templates of commands and queries; by default the component's `self-test` makes them up.
    #[arg(long, value_name = "FILE")]
    pub commands: Option<PathBuf>,
    /// Configuration passed to the state machine's `init` and `restore`.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub config: String,
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

    /// The options with which to repeat what was done.
    pub(super) fn repeated(&self) -> String {
        let mut text = String::new();
        if let Some(file) = &self.commands {
            text.push_str(&format!(" --commands {}", quoted(&file.display().to_string())));
        }
        if !self.config.is_empty() {
            text.push_str(&format!(" --config {}", quoted(&self.config)));
        }
        text
    }
}

/// Loads a component as a node would.
pub(super) fn component(path: &Path) -> Result<ComponentModule, Failure> {
    let shown = path.display();
    let module = load_component(path).map_err(|e| {
        Failure::Failed(format!("{shown}: {e}; give the path of the .wasm that the build produced"))
    })?;
    module.map_err(|why| Failure::Failed(format!("{shown}: {why}")))
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
