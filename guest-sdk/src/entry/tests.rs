//! Columns: what goes in comes out, and long answers are counted.

use std::io::Write as _;

use super::*;

fn at(index: u64) -> Context {
    Context { index, position: 0, time_ms: 7, seed: (1, 2) }
}

/// Empty commands, also first and last, are commands.
#[test]
fn commands_are_slices() {
    let commands = Commands::new(&[0, 2, 2, 5, 5], b"abcde");
    let expect: [&[u8]; 5] = [b"", b"ab", b"", b"cde", b""];
    assert_eq!(commands.iter().collect::<Vec<_>>(), expect);
    assert_eq!(commands.into_iter().len(), 5);
    for (position, command) in expect.into_iter().enumerate() {
        assert_eq!(commands.get(position), Some(command));
    }
    assert_eq!(commands.get(5), None);
    let positions: Vec<u32> = commands.with_contexts(&at(3)).map(|(ctx, _)| ctx.position).collect();
    assert_eq!(positions, [0, 1, 2, 3, 4]);
    assert!(Commands::new(&[], b"").is_empty());
}

#[test]
fn answers_are_columns() {
    let mut answers = Answers::default();
    answers.ok(b"a");
    answers.push(Outcome::rejected("why"));
    let mut answer = answers.begin();
    write!(answer, "{}", 42).expect("it takes everything");
    answer.ok();
    drop(answers.begin());
    let mut dropped = answers.begin();
    dropped.write_all(b"never mind").expect("it takes everything");
    drop(dropped);
    answers.append(|into| {
        into.extend(b"half");
        Err("no form".to_owned())
    });
    answers.ok(b"");
    assert_eq!(answers.data, b"awhy42no form");
    assert_eq!(answers.ends, [1, 4, 6, 13, 13]);
    assert_eq!(answers.rejected, [1, 3]);
    assert_eq!(answers.omitted, []);
    let outcomes: Vec<String> = answers.outcomes().iter().map(Outcome::to_string).collect();
    assert_eq!(outcomes, ["ok a", "rejected why", "ok 42", "rejected no form", "ok "]);
}

/// The limit is exact, in whichever way an answer is given, and a long answer leaves no bytes.
#[test]
fn of_a_long_answer_the_length_is_told() {
    let longest = vec![b'a'; OUTCOME_BYTES_MAX];
    let long = vec![b'a'; OUTCOME_BYTES_MAX + 1];
    let mut answers = Answers::default();
    answers.ok(&longest);
    answers.rejected(&long);
    answers.push(Outcome::Ok(long.clone()));
    answers.push(Outcome::Rejected(longest.clone()));
    let mut answer = answers.begin();
    for _ in 0..3 {
        answer.write_all(&longest).expect("it takes everything");
    }
    answer.ok();
    answers.append(|into| {
        into.extend(&long);
        Ok(())
    });
    assert_eq!(answers.data.len(), 2 * OUTCOME_BYTES_MAX);
    assert_eq!(answers.rejected, [1, 3]);
    let length = OUTCOME_BYTES_MAX as u64;
    let omitted = [(1, length + 1), (2, length + 1), (4, 3 * length), (5, length + 1)];
    assert_eq!(answers.omitted, omitted);
    assert_eq!(answers.outcomes()[4], Outcome::TooLong { bytes: 3 * length });
}

/// A vector of many answers has little more space than it needs.
#[test]
fn many_answers_waste_little() {
    let mut answers = Answers::default();
    let longest = vec![b'a'; OUTCOME_BYTES_MAX];
    for _ in 0..1024 {
        answers.ok(&longest);
        let (length, space) = (answers.data.len(), answers.data.capacity());
        assert!(space <= length + length / 8 + (2 << 20), "{space} for {length}");
    }
}
