//! Parts of a command: numbers, the rest of a line, links, and sides of a partition.

pub(crate) fn number(words: &[&str], default: usize) -> usize {
    words.first().map_or(default, |word| word.parse().expect("a number"))
}

/// The rest of a line after its first `count` words.
pub(crate) fn after(rest: &str, count: usize) -> &str {
    (0..count).fold(rest, |rest, _| rest.split_once(' ').map_or("", |(_, rest)| rest))
}

pub(crate) fn ends(link: &str) -> (String, String) {
    let (from, to) = link.split_once("->").expect("A->B");
    (from.to_owned(), to.to_owned())
}

/// Every ordered pair of names that are on different sides.
pub(crate) fn pairs(sides: &[Vec<&str>]) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (place, side) in sides.iter().enumerate() {
        let others = sides.iter().enumerate().filter(|(other, _)| *other != place);
        for right in others.flat_map(|(_, side)| side) {
            pairs.extend(side.iter().map(|left| ((*left).to_owned(), (*right).to_owned())));
        }
    }
    pairs
}
