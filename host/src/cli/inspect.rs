//! `lockstep inspect`: shows what is in a component.

use serde_json::json;

use crate::cli::Outcome;
use crate::cli::format::size;
use crate::cli::kit::{ComponentArgs, compiled, read};
use crate::guest::component::ComponentModule;
use crate::kit::inspect::{Sizes, limits, optional_exports, report_to_json};
use crate::logging::out;

/// Show what is in a component: interfaces, sizes, snapshot formats, and the limits that apply.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep inspect target/guests/kv.wasm")]
pub(crate) struct Args {
    #[command(flatten)]
    of: ComponentArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let ComponentArgs { module: path, json } = &args.of;
    let bytes = read(path)?;
    let module = compiled(path, &bytes)?;
    let sizes = Sizes::of(&bytes);
    if *json {
        out!("{}", to_json(&module, &sizes));
    } else {
        print(&module, &sizes);
    }
    Ok(())
}

fn print(module: &ComponentModule, sizes: &Sizes) {
    let report = module.report();
    out!("{report}");
    for (name, there) in optional_exports(report) {
        out!("  {name:10} {}", if there { "exported" } else { "not exported" });
    }
    let Sizes { file_bytes, code_bytes, data_bytes, custom_bytes, .. } = sizes;
    out!(
        "  sizes      file {}, code {}, data {}, custom sections {}",
        size(*file_bytes),
        size(*code_bytes),
        size(*data_bytes),
        size(*custom_bytes)
    );
    let Sizes { functions, core_modules, named_functions, .. } = sizes;
    let names = match named_functions {
        0 => "without names: a trap tells only numbers, build without stripping names".to_owned(),
        _some => "with names".to_owned(),
    };
    out!("  functions  {functions} in {core_modules} core modules, {names}");
    out!("  limits     of a group with the default profile:");
    for limit in limits() {
        let value = match limit.unit {
            "bytes" => size(limit.value),
            unit => format!("{} {unit}", grouped(limit.value)),
        };
        out!("    {:22} {}", limit.name, value.trim_end());
    }
}

/// A number with a comma before every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn to_json(module: &ComponentModule, sizes: &Sizes) -> serde_json::Value {
    let report = module.report();
    let mut told = report_to_json(report);
    for (name, there) in optional_exports(report) {
        told["optional_exports"][name] = there.into();
    }
    told["sizes"] = json!({
        "file_bytes": sizes.file_bytes,
        "code_bytes": sizes.code_bytes,
        "data_bytes": sizes.data_bytes,
        "custom_bytes": sizes.custom_bytes,
    });
    told["functions"] = json!({
        "count": sizes.functions,
        "named": sizes.named_functions,
        "core_modules": sizes.core_modules,
    });
    let limits = limits();
    let limits =
        limits.iter().map(|it| json!({ "name": it.name, "value": it.value, "unit": it.unit }));
    told["limits"] = limits.collect();
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        let check = |number, expect: &str| assert_eq!(grouped(number), expect);
        check(0, "0");
        check(999, "999");
        check(1000, "1,000");
        check(2_000_000_000, "2,000,000,000");
    }
}
