//! Says why a component is not valid here: what it uses, where, why that is refused, and how to
//! build without it.
//!
//! - The place is a core module, a function and a byte of the file, as the tools of WebAssembly
//!   count them.
//! - Which feature is missing is found by trial: with it, validation gets past the place.
//! - The way out is that of the toolchain which the file says it was built with, or of all.
//!
//! The validator here has the features that the engine has ([`features::OURS`]). It runs only after
//! the engine refused a component, and what it does not explain keeps the engine's words.

mod built_with;
pub(crate) mod core_module;
mod features;
mod opcode;
#[cfg(test)]
mod tests;
pub(crate) mod wasi;

use std::fmt;

use wasmparser::{
    Encoding, FuncValidatorAllocations, KnownCustom, Name, Parser, Payload, ValidPayload,
    Validator, WasmFeatures,
};

use built_with::{BuiltWith, write_ways};
use features::{CLASSES, Class, OURS};

/// Longest name of a function that is shown, characters.
const NAME_CHARS_MAX: usize = 80;

/// A feature that a component uses and that is off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    class: &'static Class,
    /// What uses it: an instruction, or what the validator says of another part.
    what: String,
    place: Place,
    built_with: Vec<BuiltWith>,
}

/// Where something is in a component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// The number of the core module, in the order of the file.
    module: Option<u32>,
    function: Option<(u32, Option<String>)>,
    /// The byte of the file.
    byte: usize,
}

/// Why a component is refused, as far as is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Advice {
    Missing(Missing),
    /// It breaks the rules of WebAssembly itself.
    Broken {
        message: String,
        place: Place,
    },
    /// Nothing is wrong with it that the validator would see.
    Unknown,
}

/// The first thing that a validator does not like.
#[derive(Debug)]
struct Complaint {
    message: String,
    byte: usize,
    module: Option<u32>,
    function: Option<u32>,
    /// The instruction, if it is about one.
    opcode: Option<String>,
}

/// Finds out why the engine refused a component.
pub(crate) fn advise(component: &[u8]) -> Advice {
    let Some(complaint) = first_complaint(component, OURS) else { return Advice::Unknown };
    let Complaint { message, byte, module, function, opcode } = complaint;
    let name = |function| name_of(component, module, function);
    let place = Place { module, function: function.map(|it| (it, name(it))), byte };
    match missing(component, byte) {
        Some(class) => Advice::Missing(Missing {
            class,
            what: opcode.map_or(message, |opcode| format!("the instruction `{opcode}`")),
            place,
            built_with: BuiltWith::of(component),
        }),
        None => Advice::Broken { message, place },
    }
}

/// The feature without which validation does not get past this byte.
fn missing(component: &[u8], byte: usize) -> Option<&'static Class> {
    let all = CLASSES.iter().fold(OURS, |all, class| all.union(class.features));
    let stops = |features: WasmFeatures| {
        first_complaint(component, features).is_some_and(|complaint| complaint.byte <= byte)
    };
    if stops(all) {
        return None;
    }
    CLASSES.iter().find(|class| stops(all.difference(class.features.difference(OURS))))
}

fn first_complaint(component: &[u8], features: WasmFeatures) -> Option<Complaint> {
    let mut parser = Parser::new(0);
    parser.set_features(features);
    let mut validator = Validator::new_with_features(features);
    let mut allocations = FuncValidatorAllocations::default();
    let mut modules = Modules::default();
    for payload in parser.parse_all(component) {
        let module = modules.current();
        let complaint = |error: wasmparser::BinaryReaderError| Complaint {
            message: error.message().to_owned(),
            byte: error.offset(),
            module,
            function: None,
            opcode: None,
        };
        let payload = match payload {
            Ok(payload) => payload,
            Err(error) => return Some(complaint(error)),
        };
        modules.follow(&payload);
        match validator.payload(&payload) {
            Ok(ValidPayload::Func(function, body)) => {
                let index = function.index;
                let mut validator = function.into_validator(allocations);
                if let Err(error) = validator.validate(&body) {
                    let opcode = opcode::at(&body, error.offset());
                    return Some(Complaint { function: Some(index), opcode, ..complaint(error) });
                }
                allocations = validator.into_allocations();
            }
            Ok(ValidPayload::Ok | ValidPayload::Parser(_) | ValidPayload::End(_)) => {}
            Err(error) => return Some(complaint(error)),
        }
    }
    None
}

/// The name of a function, if the module has names.
fn name_of(component: &[u8], module: Option<u32>, function: u32) -> Option<String> {
    let mut modules = Modules::default();
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        modules.follow(&payload);
        let Payload::CustomSection(section) = payload else { continue };
        let KnownCustom::Name(names) = section.as_known() else { continue };
        if modules.current() != module {
            continue;
        }
        for name in names.into_iter().map_while(Result::ok) {
            let Name::Function(functions) = name else { continue };
            let mut functions = functions.into_iter().map_while(Result::ok);
            if let Some(found) = functions.find(|it| it.index == function) {
                return Some(found.name.chars().take(NAME_CHARS_MAX).collect());
            }
        }
    }
    None
}

/// Numbers the core modules of a file while it is read, in its order.
#[derive(Default)]
struct Modules {
    count: u32,
    /// What is open, the innermost last; `None` is a component.
    within: Vec<Option<u32>>,
}

impl Modules {
    fn follow(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::Version { encoding, .. } => {
                let is_module = *encoding == Encoding::Module;
                self.within.push(is_module.then_some(self.count));
                self.count += u32::from(is_module);
            }
            Payload::End(_) => drop(self.within.pop()),
            _other => {}
        }
    }

    /// The core module that is being read, if it is one.
    fn current(&self) -> Option<u32> {
        self.within.last().copied().flatten()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(module) = self.module {
            write!(f, "core module {module}, ")?;
        }
        match &self.function {
            Some((index, Some(name))) => write!(f, "function {index} `{name}`, ")?,
            Some((index, None)) => write!(f, "function {index}, ")?,
            None => {}
        }
        write!(f, "byte {:#x}", self.byte)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class: Class { name, why, ways, .. }, what, place, built_with } = self;
        write!(f, "the component uses {name} ({what}; {place}): {why}. ")?;
        write_ways(f, ways, built_with)
    }
}
