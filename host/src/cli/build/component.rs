//! From a core module to a component.

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use crate::cli::Failure;
use crate::cli::sdk;
use crate::guest::check::{OFFERS, interface};

/// The name of the world that [`world`] writes.
pub(super) const WORLD: &str = "machine";

/// The world of a state machine that exports these interfaces too.
pub(super) fn world(exports: &[&str]) -> String {
    let mut text = format!("package author:machine;\nworld {WORLD} {{\n");
    text.push_str(&format!("    include {};\n", interface("fsm")));
    for export in exports {
        text.push_str(&format!("    export {};\n", interface(export)));
    }
    text.push_str("}\n");
    text
}

/// Which of the interfaces that need not be exported a core module exports.
fn offers(module: &[u8]) -> Vec<&'static str> {
    let mut found = Vec::new();
    let exports = Parser::new(0).parse_all(module).filter_map(|payload| match payload {
        Ok(Payload::ExportSection(exports)) => Some(exports),
        Ok(_) | Err(_) => None,
    });
    for export in exports.flatten().flatten() {
        let Some((name, _)) = export.name.split_once('#') else { continue };
        found.extend(OFFERS.into_iter().filter(|offer| interface(offer) == name));
    }
    OFFERS.into_iter().filter(|offer| found.contains(offer)).collect()
}

/// Tells a core module the types of its functions, which a compiler that knows no worlds cannot.
pub(super) fn embed(module: &mut Vec<u8>) -> Result<(), Failure> {
    let world = world(&offers(module));
    let mut embedded = || -> Result<(), String> {
        let mut resolve = Resolve::default();
        resolve.push_str("fsm.wit", sdk::WIT).map_err(said)?;
        let package = resolve.push_str("world.wit", &world).map_err(said)?;
        let world = resolve.select_world(&[package], Some(WORLD)).map_err(said)?;
        wit_component::embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)
            .map_err(said)
    };
    embedded()
        .map_err(|why| Failure::Failed(format!("the module cannot be made a component: {why}")))
}

/// Makes a component of a core module that knows its types.
pub(super) fn encode(module: &[u8]) -> Result<Vec<u8>, Failure> {
    let encoded = ComponentEncoder::default()
        .module(module)
        .and_then(|encoder| encoder.validate(true).encode());
    encoded.map_err(|error| {
        Failure::Failed(format!("the module cannot be made a component: {}", said(error)))
    })
}

/// An error with all its causes.
fn said(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_offers_is_found() {
        let check = |exports: &[&str], expect: &[&str]| {
            let exports: String =
                exports.iter().map(|name| format!(r#"(export "{name}" (func 0))"#)).collect();
            let module = wat::parse_str(format!("(module (func) {exports})"));
            assert_eq!(offers(&module.expect("it is well formed")), expect);
        };
        check(&[], &[]);
        check(&["memory", "lockstep:fsm/state-machine@0.2.0#apply"], &[]);
        let test = ["claim", "command", "query"]
            .map(|name| format!("lockstep:fsm/self-test@0.2.0#{name}"));
        let test: Vec<&str> = test.iter().map(String::as_str).collect();
        check(&test, &["self-test"]);
        check(
            &["lockstep:fsm/digest@0.2.0#digest", "lockstep:fsm/wake@0.2.0#wake"],
            &["wake", "digest"],
        );
        check(&["lockstep:fsm/wake@0.1.0#wake", "wake"], &[]);
    }

    /// The world that is written is one, whatever is exported.
    #[test]
    fn worlds_are_well_formed() {
        let mut resolve = Resolve::default();
        resolve.push_str("fsm.wit", sdk::WIT).expect("it is well formed");
        let package = resolve.push_str("world.wit", &world(&OFFERS)).expect("it is well formed");
        let world = resolve.select_world(&[package], Some(WORLD)).expect("it is there");
        assert_eq!(resolve.worlds[world].exports.len(), 1 + OFFERS.len());
    }

    /// A module without the functions of the world is refused, with the name of one.
    #[test]
    fn a_module_that_is_no_state_machine_is_refused() {
        let mut module = wat::parse_str("(module)").expect("it is well formed");
        embed(&mut module).expect("only types are added");
        match encode(&module) {
            Err(Failure::Failed(why)) => assert!(why.contains("lockstep:fsm/"), "{why}"),
            other => panic!("it gives {other:?}"),
        }
    }
}
