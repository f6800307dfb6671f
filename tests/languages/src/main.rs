//! `cargo xtask languages`: see `lockstep_languages`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use lockstep_languages::agree::{Comparison, Machine, Plan, Seen};
use lockstep_languages::build::{Built, Language, Place};
use lockstep_languages::{group, measure};
use lockstep_tests::cli::{self, Options};
use lockstep_tests::rng;
use lockstep_tests::tell::{Teller, seconds, thousands};

const HELP: &str = "\
usage: cargo xtask languages [--commands N] [--grouped N] [--cases N] [--seed N]
                             [--rust] [--c] [--js] [--python] [--release]

The example kv in Rust, C, JavaScript and Python: built by `lockstep build`, tested, given the same
commands in one process and in groups of three processes whose leaders are killed. Answers, texts of
refusals and snapshots must be equal, and each language must restore the snapshots of the others.

  --commands N  commands in one process (100000); 0: none
  --grouped N   commands for each group (3000); 0: no groups
  --cases N     cases of `lockstep test` (200)
  --seed N      seed of all random choices (1); SEED=N does the same
  --rust, --c, --js, --python
                only these, two or more
  --release     with a release build, for figures";

const NUMBERS: [(&str, u64); 4] =
    [("commands", 100_000), ("grouped", 3_000), ("cases", 200), ("seed", 1)];
const FLAGS: [&str; 4] = ["rust", "c", "js", "python"];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &FLAGS, run)
}

async fn run(options: Options) -> Result<()> {
    let mut tell = Teller::new("One state machine in several languages");
    let seed = rng::seed(options.number("seed"));
    let any = FLAGS.iter().any(|flag| options.flag(flag));
    let languages = Language::ALL.into_iter().filter(|it| !any || options.flag(it.short()));
    let place = Place::of_run()?;
    let built = build_all(&place, languages.collect(), &mut tell).await?;

    tell.step("Look for what breaks the contract, in each component");
    for one in &built {
        let cases = options.number("cases");
        let said = tokio::task::block_in_place(|| place.test(one, cases, seed))?;
        let said = said.lines().find(|line| line.contains("cases hold")).unwrap_or_default();
        tell.shown(format!("{}: {}", one.language.name(), said.trim()));
    }

    let machines: Vec<Machine> = built.iter().map(Built::machine).collect();
    if options.number("commands") > 0 {
        compare(&machines, Plan { commands: options.number("commands"), seed }, &mut tell).await?;
    }
    if options.number("grouped") > 0 {
        let measure = machines.first().context("there is no machine")?;
        let grouped = options.number("grouped");
        let course = tokio::task::block_in_place(|| group::Course::draw(measure, grouped, seed))?;
        for one in &built {
            let others: Vec<&Built> =
                built.iter().filter(|other| other.language != one.language).collect();
            group::run_group(&place, one, &others, &course, &mut tell).await?;
        }
    }

    tell.step("What each language costs");
    let table = tokio::task::block_in_place(|| measure::table(&built))?;
    println!("\n{table}");
    Ok(())
}

async fn build_all(
    place: &Place,
    languages: Vec<Language>,
    tell: &mut Teller,
) -> Result<Vec<Built>> {
    tell.step("Build each component with `lockstep build`, and load it twice");
    let mut all = Vec::new();
    for language in languages {
        let built = tokio::task::block_in_place(|| place.build(language));
        let built = built.with_context(|| language.name())?;
        tell.shown(format!(
            "{}: {} bytes, built in {}, compiled in {}, loaded from the cache in {}",
            language.name(),
            thousands(built.bytes),
            seconds(built.built),
            seconds(built.compiled),
            seconds(built.cached)
        ));
        all.push(built);
        tokio::task::yield_now().await;
    }
    Ok(all)
}

async fn compare(machines: &[Machine], plan: Plan, tell: &mut Teller) -> Result<()> {
    tell.step(&format!("{} commands in one process", thousands(plan.commands)));
    let mut comparison = Comparison::begin(machines, plan)?;
    let seen = loop {
        if let Some(seen) = tokio::task::block_in_place(|| comparison.step())? {
            break seen;
        }
        // Ctrl-C is looked at here.
        tokio::task::yield_now().await;
    };
    seen.enough()?;
    report(seen, tell);
    Ok(())
}

fn report(seen: &Seen, tell: &Teller) {
    let verbs = seen.verbs.iter().map(|(verb, (accepted, refused))| {
        format!("{verb} {} and {}", thousands(*accepted), thousands(*refused))
    });
    tell.say(format!("accepted and refused: {}", verbs.collect::<Vec<_>>().join(", ")));
    tell.shown(format!(
        "{} commands in {} entries of up to {}: equal outcomes, {} texts of refusals among them; \
         {} \
         answers over the limit",
        thousands(seen.commands),
        thousands(seen.entries),
        thousands(seen.longest_entry),
        thousands(seen.refusals.len() as u64),
        thousands(seen.too_long)
    ));
    tell.shown(format!(
        "{} queries with equal answers, {} of them refusals",
        thousands(seen.queries),
        thousands(seen.queries_refused)
    ));
    tell.shown(format!(
        "{} machines restored the snapshot of another language and went on beside the others",
        seen.restored
    ));
    tell.shown(format!(
        "{} comparisons of snapshots, equal to the last of {} bytes",
        thousands(seen.snapshots),
        thousands(seen.snapshot_bytes)
    ));
    let (refused, taken) = seen.damaged;
    tell.shown(format!("{refused} damaged snapshots were refused by all, {taken} taken by all"));
}
