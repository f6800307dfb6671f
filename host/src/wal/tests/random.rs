//! Random jobs, crashes, failures and restarts, compared with the model.

use super::*;
use crate::fs::mem::DiskFault;
use crate::rng::Rng;

/// A job that fits the group's log, as raft might produce it.
fn random_job(rng: &mut Rng, model: &Model) -> LogJob {
    let group = 1 + rng.below(4);
    let Some((state_now, log)) = model.groups.get(&GroupId(group)) else {
        return job(group, state(1, 0, 0), vec![]);
    };
    let (first, mut previous) = (state_now.first_index, state_now.previous_term);
    let last = first - 1 + log.len() as u64;
    let term_at = |index: u64| log.get(&index).map_or(previous, |entry| entry.term);
    let last_term = term_at(last);
    let mut begin = first;
    match rng.below(12) {
        // Truncation at a snapshot.
        0 | 1 if last >= first => begin = first + 1 + rng.below(last + 1 - first),
        // A snapshot of another history, within the log or beyond its end.
        2 => {
            let begin = first + 1 + rng.below(last + 3 - first);
            return job(group, state(begin, last_term + 1, begin - 1), vec![]);
        }
        _append => {}
    }
    previous = if begin == first { previous } else { term_at(begin - 1) };
    let at = match rng.below(3) {
        0 => begin + rng.below(last + 2 - begin),
        _append => last + 1,
    };
    let count = rng.below(4);
    let term = last_term + rng.below(2);
    let bytes = if rng.below(8) == 0 { 400 } else { rng.below(60) as usize };
    let add = entries(at..at + count, term, bytes);
    let end = if count == 0 { last } else { at + count - 1 };
    let commit = (begin - 1) + rng.below(end + 2 - begin);
    let mut next = state(begin, previous, commit);
    next.replica = state_now.replica;
    next.boot = state_now.boot + 1;
    job(group, next, add)
}

fn life(seed: u64) {
    let mut rng = Rng::new(seed);
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let mut model = Model::default();
    for step in 0..120 {
        let story = || format!("SEED={seed}, step {step}");
        let mut next = model.clone();
        // Jobs that do not fit in one batch become durable one by one.
        let mut between = vec![model.clone()];
        let mut jobs = Vec::new();
        for _job in 0..=rng.below(2) {
            let job = random_job(&mut rng, &next);
            next.apply(std::slice::from_ref(&job));
            between.push(next.clone());
            jobs.push(job);
        }
        let trouble = rng.below(16);
        let at = fs.ops() + rng.below(8);
        match trouble {
            0 | 1 => fs.halt_after(at),
            2 => fs.fail_op(at + 1, DiskFault::Io),
            _none => {}
        }
        let done = wal
            .append_and_tidy(&jobs)
            .and_then(|_cost| if rng.below(4) == 0 { wal.seal_idle() } else { Ok(false) });
        let died = match (&done, trouble) {
            (Err(error), 3..) => panic!("{}: {error}", story()),
            (Err(_), _) | (Ok(_), 0..=4) => true,
            (Ok(_), _) => false,
        };
        if !died {
            model = next;
            continue;
        }
        drop(wal);
        match rng.below(3) {
            // The process died, but the machine did not.
            0 => fs.heal(),
            1 => fs.crash_keeping(rng.below(u64::MAX)),
            _hard => fs.crash(),
        }
        let opened = open(&fs).unwrap_or_else(|error| panic!("{}: {error}", story()));
        wal = opened.0;
        let found = Model::of(&wal, &opened.1);
        // A seal that fails after the append does not undo it.
        let allowed = found == next || done.is_err() && between.contains(&found);
        assert!(allowed, "{}: found {}, not {}", story(), found.brief(), next.brief());
        model = found;
    }
}

#[test]
fn random_lives_agree_with_the_model() {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = given.map_or(0..60, |seed: u64| seed..seed + 1);
    println!("seeds {seeds:?}");
    seeds.for_each(life);
}
