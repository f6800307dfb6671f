//! The project's own commands, run as `cargo xtask COMMAND` from anywhere in the checkout.
//!
//! One file for each command. Exit codes: 0, 1 (what was asked for failed), 2 (usage).

mod bench;
mod checkout;
mod demo;
mod fuzz;
mod guests;
mod languages;
mod lint;
mod mutants;
mod planted;
mod protos;
mod sim;
mod steps;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  guests           build the examples to WebAssembly components, into target/guests
  demo [--keep]    watch three processes replicate a key-value store, lose a leader and a disk
  chaos            kill leaders under load and account for every transfer (--help for options)
  killloop         kill one node again and again (--help for options)
  leases           kill and pause leaders, account for locks, messages and events (--help)
  transfer         measure the memory that a snapshot transfer takes (--help for options)
  tight            take snapshots on disks hardly larger than two of them, then fill the disks
  stall            freeze the disks of running nodes (--help for options); needs root
  breaks           send a snapshot through broken transfers (--help for options)
  crowd            connect two thousand clients to three nodes (--help for options)
  languages        compare kv in Rust, C, JavaScript and Python (--help); needs npm and python3
  bench            measure Lockstep beside etcd, in a release build (--help for options)
  bench log        append to a log of 200 groups that keep [MIB] each
  bench guest      what WebAssembly costs: kv beside the same code natively [SIZE BATCH]
  bench snapshots  write and restore snapshots beside dd and a plain read [MIB]; needs root
  test [FILTER]    run all tests, or those whose names contain FILTER
  sim [--seed S]   run a whole cluster in one thread, from a seed (--help for options)
  soak --minutes M run fresh seeds for M minutes, and keep those that fail
  mutants [NAME]   run with each planted bug and report what catches it [--all] [--seeds N]
  mutants drawn    draw mistakes for the core, count those scripts catch [--seed N] [--count N]
  fuzz [TARGET]    feed the decoders arbitrary bytes, on nightly [--seconds N]
  protos           generate the wire types again, after a change of the protos
  lint             check format, clippy, docs and the project's own rules; change nothing
  tidy [--fix]     check only the project's own rules; with --fix, format and wrap first
  fix              format and wrap, and repair what clippy can
";

fn main() -> ExitCode {
    if guests::is_rustc() {
        return guests::run_rustc();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["guests"] => guests::build().map(drop),
        [
            program @ ("demo" | "chaos" | "killloop" | "leases" | "transfer" | "tight" | "stall"
            | "breaks" | "crowd"),
            ref arguments @ ..,
        ] => demo::run(program, arguments),
        ["languages", ref arguments @ ..] => languages::run(arguments),
        ["bench", ref arguments @ ..] => bench::run(arguments),
        ["test", ref filter @ ..] => test::test(filter),
        ["fuzz", ref arguments @ ..] => fuzz::run(arguments),
        ["sim", ref arguments @ ..] => sim::sim(arguments),
        ["soak", ref arguments @ ..] => sim::soak(arguments),
        ["mutants", "drawn", ref arguments @ ..] => mutants::run(arguments),
        ["mutants", ref arguments @ ..] => planted::run(arguments),
        ["protos"] => protos::run(),
        ["lint"] => lint::lint(),
        ["tidy"] => lint::tidy(),
        ["tidy", "--fix"] => lint::tidy_up(),
        ["fix"] => lint::fix(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [] => return usage_error("no command given"),
        [command, ..] => return usage_error(&format!("unknown command or arguments: `{command}`")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage_error(why: &str) -> ExitCode {
    eprint!("error: {why}\n\n{USAGE}");
    ExitCode::from(2)
}
