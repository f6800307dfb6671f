//! Makes a failing sequence of steps short: takes away what does not matter (delta debugging).
//!
//! By hand and not with a library, because what fails is a list, and a list has to be shortened,
//! not its elements made simpler: commands are bytes that only the author understands.

/// Most sequences that are tried. Each costs a run.
const ATTEMPTS_MAX: usize = 1_000;

/// The shortest sequence that was found for which `fails` still holds, as it does for `steps`.
/// `smaller` proposes smaller forms of one step.
pub(super) fn shrink<S: Clone>(
    mut steps: Vec<S>,
    smaller: impl Fn(&S) -> Vec<S>,
    mut fails: impl FnMut(&[S]) -> bool,
) -> Vec<S> {
    let mut attempts = 0;
    let mut attempt = |steps: &[S]| {
        attempts += 1;
        attempts <= ATTEMPTS_MAX && fails(steps)
    };
    loop {
        let before = steps.len();
        remove_pieces(&mut steps, &mut attempt);
        let shrunk = shrink_steps(&mut steps, &smaller, &mut attempt);
        if steps.len() == before && !shrunk {
            return steps;
        }
    }
}

/// Removes pieces, first large ones, then single steps.
fn remove_pieces<S: Clone>(steps: &mut Vec<S>, attempt: &mut impl FnMut(&[S]) -> bool) {
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        // From the end on: what comes last depends on what comes first.
        let mut end = steps.len();
        while end > 0 {
            let start = end.saturating_sub(size);
            let without = [&steps[..start], &steps[end..]].concat();
            if attempt(&without) {
                *steps = without;
            }
            end = start;
        }
        size /= 2;
    }
}

/// Replaces steps with smaller forms; returns whether there were any.
fn shrink_steps<S: Clone>(
    steps: &mut [S],
    smaller: &impl Fn(&S) -> Vec<S>,
    attempt: &mut impl FnMut(&[S]) -> bool,
) -> bool {
    let mut shrunk = false;
    for place in 0..steps.len() {
        for form in smaller(&steps[place]) {
            let whole = std::mem::replace(&mut steps[place], form);
            if attempt(steps) {
                shrunk = true;
                break;
            }
            steps[place] = whole;
        }
    }
    shrunk
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the places of the two steps that matter, only they are left, as small as possible.
    #[test]
    fn only_what_matters_is_left() {
        for (first, second) in [(0, 1), (0, 99), (30, 70), (98, 99)] {
            let mut steps = vec![5; 100];
            (steps[first], steps[second]) = (12, 17);
            let fails = |steps: &[i32]| {
                let first = steps.iter().position(|&step| (10..15).contains(&step));
                first.is_some_and(|first| steps[first..].iter().any(|&step| step > 15))
            };
            let shrunk = shrink(steps, |&step| vec![step - 1], fails);
            assert_eq!(shrunk, [10, 16]);
        }
    }

    /// It ends, also if everything fails or only the whole does.
    #[test]
    fn it_ends() {
        assert_eq!(shrink(vec![1; 5_000], |_| vec![], |_| true), [0; 0]);
        let whole = shrink(vec![1; 50], |_| vec![0], |steps| steps == [1; 50]);
        assert_eq!(whole, [1; 50]);
        let endless = shrink(vec![1], |&step: &u64| vec![step + 1], |steps| !steps.is_empty());
        assert!(endless[0] > 1);
    }
}
