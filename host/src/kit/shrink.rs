//! Makes a failing case small: fewer steps, fewer commands, smaller numbers.
//!
//! A smaller case is taken if it fails in the same way. The number of tries is bounded, and nothing
//! depends on the clock: a case shrinks to the same one every time.

use bytes::Bytes;

use super::case::{Case, Step};

/// Most tries for one case.
const TRIES_MAX: usize = 2000;

/// Shrinks a case for which `fails` is true.
pub fn shrink(case: Case, fails: impl FnMut(&Case) -> bool) -> Case {
    let mut shrinker = Shrinker { case, fails, tries: 0 };
    loop {
        let before = shrinker.case.clone();
        shrinker.drop_steps();
        shrinker.drop_commands();
        shrinker.lower_times();
        shrinker.lower_numbers();
        if shrinker.case == before || shrinker.tries >= TRIES_MAX {
            return shrinker.case;
        }
    }
}

struct Shrinker<F> {
    case: Case,
    fails: F,
    tries: usize,
}

impl<F: FnMut(&Case) -> bool> Shrinker<F> {
    /// Takes the smaller case if it fails, too.
    fn take(&mut self, smaller: Case) -> bool {
        if self.tries >= TRIES_MAX || smaller == self.case {
            return false;
        }
        self.tries += 1;
        let fails = (self.fails)(&smaller);
        if fails {
            self.case = smaller;
        }
        fails
    }

    /// Drops ranges of steps, long ones first.
    fn drop_steps(&mut self) {
        let mut length = self.case.steps.len();
        while length > 0 {
            let mut place = 0;
            while place < self.case.steps.len() {
                let mut smaller = self.case.clone();
                let end = (place + length).min(smaller.steps.len());
                smaller.steps.drain(place..end);
                if !self.take(smaller) {
                    place += length;
                }
            }
            length /= 2;
        }
    }

    /// Drops ranges of commands within their entries.
    fn drop_commands(&mut self) {
        for place in 0..self.case.steps.len() {
            let mut length = self.commands(place).len();
            while length > 0 {
                let mut from = 0;
                while from < self.commands(place).len() && self.commands(place).len() > 1 {
                    let mut commands = self.commands(place).to_vec();
                    let end = (from + length).min(commands.len());
                    commands.drain(from..end);
                    if commands.is_empty() || !self.take_commands(place, commands) {
                        from += length;
                    }
                }
                length /= 2;
            }
        }
    }

    fn lower_times(&mut self) {
        for place in 0..self.case.steps.len() {
            let (Step::Entry { after_ms: ms, .. } | Step::Wait { ms }) = self.case.steps[place]
            else {
                continue;
            };
            for lower in [0, 1, 1000, ms / 2] {
                let mut smaller = self.case.clone();
                match &mut smaller.steps[place] {
                    Step::Entry { after_ms: ms, .. } | Step::Wait { ms } if lower < *ms => {
                        *ms = lower;
                    }
                    _other => continue,
                }
                if self.take(smaller) {
                    break;
                }
            }
        }
    }

    /// Lowers the numbers in commands that are text.
    fn lower_numbers(&mut self) {
        for place in 0..self.case.steps.len() {
            for position in 0..self.commands(place).len() {
                let mut from = 0;
                while let Some((begin, end)) = digits(&self.commands(place)[position], from) {
                    from = self.lower_number(place, position, begin, end);
                }
            }
        }
    }

    /// Lowers one number, and returns where the command goes on after it.
    fn lower_number(&mut self, place: usize, position: usize, begin: usize, end: usize) -> usize {
        let command = self.commands(place)[position].clone();
        let number = str::from_utf8(&command[begin..end]).ok().and_then(|it| it.parse().ok());
        let number: u64 = number.unwrap_or(0);
        for lower in [0, 1, 2, number / 2] {
            if lower >= number {
                continue;
            }
            let digits = lower.to_string();
            let parts = [&command[..begin], digits.as_bytes(), &command[end..]];
            let mut commands = self.commands(place).to_vec();
            commands[position] = Bytes::from(parts.concat());
            if self.take_commands(place, commands) {
                return begin + digits.len();
            }
        }
        end
    }

    fn commands(&self, place: usize) -> &[Bytes] {
        match self.case.steps.get(place) {
            Some(Step::Entry { commands, .. }) => commands,
            Some(Step::Query(_) | Step::Wait { .. } | Step::Due | Step::Snapshot | Step::Kill)
            | None => &[],
        }
    }

    fn take_commands(&mut self, place: usize, new: Vec<Bytes>) -> bool {
        let mut smaller = self.case.clone();
        if let Some(Step::Entry { commands, .. }) = smaller.steps.get_mut(place) {
            *commands = new;
        }
        self.take(smaller)
    }
}

/// The next run of digits in a text; none if the command is not text.
fn digits(command: &[u8], from: usize) -> Option<(usize, usize)> {
    str::from_utf8(command).ok()?;
    let begin = from + command.get(from..)?.iter().position(u8::is_ascii_digit)?;
    let length = command[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some((begin, begin + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shrinks entries of these commands, while a case fails that has all of `needed`.
    fn check(entries: &[&[&'static str]], needed: &[&str], expect: &[&[&str]]) {
        let entry = |commands: &&[&'static str]| Step::Entry {
            after_ms: 7,
            commands: commands.iter().map(|it| Bytes::from_static(it.as_bytes())).collect(),
        };
        let case = Case { steps: entries.iter().map(entry).collect() };
        let has = |case: &Case, needed: &str| {
            case.steps.iter().any(|step| match step {
                Step::Entry { commands, .. } => {
                    commands.iter().any(|it| it.starts_with(needed.as_bytes()))
                }
                _other => false,
            })
        };
        let small = shrink(case, |case| needed.iter().all(|needed| has(case, needed)));
        let entry = |commands: &&[&str]| Step::Entry {
            after_ms: 0,
            commands: commands.iter().map(|it| Bytes::copy_from_slice(it.as_bytes())).collect(),
        };
        assert_eq!(small.steps, expect.iter().map(entry).collect::<Vec<_>>());
    }

    #[test]
    fn what_does_not_matter_goes() {
        check(&[&["a"], &["b", "c", "d"], &["e"], &["f"]], &["c"], &[&["c"]]);
        check(&[&["a"], &["b", "c", "d"], &["e"], &["f"]], &["a", "d"], &[&["a"], &["d"]]);
        check(&[&["a 17"], &["b"]], &["a 1"], &[&["a 1"]]);
        check(&[&["a 17 99"], &["b"]], &["a"], &[&["a 0 0"]]);
        check(&[&["a"]], &[], &[]);
    }
}
