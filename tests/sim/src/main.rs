//! The program `sim`: runs the simulator's seeds and reports what they did. See `--help`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_sim::counters::Counters;
use lockstep_sim::world::{ACKNOWLEDGED_MIN, EVENTS_MIN};
use lockstep_sim::{Run, points, run};

const USAGE: &str = "\
usage: sim [--seed S] [--seeds N] [--minutes M] [--twice] [--verbose] [--counters]
       sim [--seed S] --points

  --seed S      run this seed, or start with it; without it the first seed comes from the clock
  --seeds N     run N seeds (1 unless --minutes is given)
  --minutes M   run seeds for M minutes
  --twice       run each seed twice and compare the traces
  --verbose     print every action
  --counters    print how often each event took place; go on after a failure, and fail if an
                event that must happen never did
  --points      run one story again and again, each time with a crash or a failure at another
                operation of one node's disk

Exit codes: 0 every property held; 1 one did not, and the last lines say how to run that seed again;
2 the command line is wrong.";

struct Options {
    seed: u64,
    seeds: u64,
    time: Option<Duration>,
    twice: bool,
    verbose: bool,
    counters: bool,
    points: bool,
}

fn options() -> Result<Options, String> {
    let began = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_secs());
    let mut options = Options {
        seed: began.wrapping_mul(1_000_003) % 1_000_000_000,
        seeds: 0,
        time: None,
        twice: false,
        verbose: false,
        counters: false,
        points: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().ok_or(format!("{word} needs a number"))?;
            text.parse::<f64>().map_err(|_| format!("{word} takes a number, not {text:?}"))
        };
        match word.as_str() {
            "--seed" => options.seed = number()? as u64,
            "--seeds" => options.seeds = number()? as u64,
            "--minutes" => options.time = Some(Duration::from_secs_f64(number()? * 60.0)),
            "--twice" => options.twice = true,
            "--verbose" => options.verbose = true,
            "--counters" => options.counters = true,
            "--points" => options.points = true,
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("unknown option {other}")),
        }
    }
    if options.seeds == 0 && options.time.is_none() {
        options.seeds = 1;
    }
    Ok(options)
}

fn report_points(struck: Result<(u64, u64), String>, took: Duration) -> ExitCode {
    match struck {
        Ok((ops, reads)) => {
            let (ways, took) = (points::STRIKES.len() - 1, took.as_secs_f64());
            println!(
                "{ops} disk operations of one node, each struck in {ways} ways, and {reads} reads, \
                 each made to fail, in {took:.1} s"
            );
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The sum over the seeds of all threads.
#[derive(Default)]
struct Sum {
    counters: Counters,
    seeds: u64,
    events: u64,
    acknowledged: u64,
    seconds: u64,
    failed: Vec<u64>,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(if why.is_empty() { 0 } else { 2 });
        }
    };
    // `tell` reports panics with their seed, like any other violation.
    if !options.verbose {
        std::panic::set_hook(Box::new(|_| ()));
    }
    println!("sim: seed {}", options.seed);
    let began = Instant::now();
    if options.points {
        return report_points(points::every_point(options.seed), began.elapsed());
    }
    let (next, stop) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&options, began, &next, &stop, &sum));
        }
    });
    let sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report(&options, &sum, began.elapsed())
}

fn work(options: &Options, began: Instant, next: &AtomicU64, stop: &AtomicBool, sum: &Mutex<Sum>) {
    while !stop.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        let out_of_seeds = options.seeds > 0 && seed >= options.seed + options.seeds;
        let out_of_time = options.time.is_some_and(|time| began.elapsed() >= time);
        if out_of_seeds || out_of_time {
            return;
        }
        let done = run(seed, options.verbose);
        let again = options.twice.then(|| run(seed, false).trace);
        let differs = again.is_some_and(|trace| trace != done.trace);
        let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if differs {
            println!("seed {seed}: two runs differ");
        }
        if tell(&done) || differs {
            sum.failed.push(seed);
            stop.store(!options.counters, Ordering::Relaxed);
        }
        sum.seeds += 1;
        sum.events += done.events;
        sum.acknowledged += done.acknowledged;
        sum.seconds += done.seconds;
        sum.counters.merge(&done.counters);
    }
}

/// Reports what a seed violated, or that too little happened in it. False if all was well.
fn tell(done: &Run) -> bool {
    if let Some(violation) = &done.violation {
        println!("seed {}: {}: {}", done.seed, violation.checker, violation.what);
        return true;
    }
    if done.events < EVENTS_MIN || done.acknowledged < ACKNOWLEDGED_MIN {
        println!("seed {}: too little happened for it to count", done.seed);
        return true;
    }
    false
}

fn report(options: &Options, sum: &Sum, took: Duration) -> ExitCode {
    let per_second = sum.events as f64 / took.as_secs_f64();
    println!(
        "{} seeds, {} events ({per_second:.0} a second), {} acknowledged operations, {:.1} \
         simulated hours in {:.1} s ({:.1} hours an hour)",
        sum.seeds,
        sum.events,
        sum.acknowledged,
        sum.seconds as f64 / 3600.0,
        took.as_secs_f64(),
        sum.seconds as f64 / took.as_secs_f64(),
    );
    let mut failed = !sum.failed.is_empty();
    if options.counters {
        print!("{}", sum.counters);
        let missing = sum.counters.missing();
        if !missing.is_empty() {
            println!("never happened: {}", missing.join(", "));
            failed = true;
        }
    }
    for seed in &sum.failed {
        println!("to see it again: cargo xtask sim --seed {seed}");
    }
    println!("{} passed, {} failed", sum.seeds - sum.failed.len() as u64, sum.failed.len());
    ExitCode::from(u8::from(failed))
}
