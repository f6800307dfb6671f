//! [`Agenda`]: what the apply lane does next. Commands and queries share its thread by time.
//!
//! - Work that changes the guest is done in order of arrival. Queries are asked in between, each
//!   once the guest has applied what its answer must reflect.
//! - While both wait, work and queries get half of the time each: the side that has had less time
//!   goes next. A side that was idle gets credit for the other side's last piece, because its work
//!   may have arrived during that piece. So a command waits for one query at most, however many
//!   pieces the work comes in; and a query waits for one piece of work, or as long as the last
//!   query took.
//! - Callers share the queries' half in the same way: one that asks often, or asks expensive
//!   queries, delays each of the others by one query at most.
//! - A query whose caller left is dropped unasked.
//!
//! The agenda has no clock: its owner tells it how long each piece took.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::group::ApplyJob;
use lockstep_core::mutant::planted;

use crate::group::askers::{Asked, Asker};

/// A query for the guest, and its caller.
pub(crate) struct Query {
    pub request: Bytes,
    /// The index that the guest must have applied before it is asked.
    pub index: u64,
    pub asked: Asked,
}

pub(crate) enum Next {
    Work(ApplyJob),
    Ask(Query),
}

#[derive(Default)]
pub(crate) struct Agenda {
    work: VecDeque<ApplyJob>,
    work_time: Share,
    query_time: Share,
    /// Callers with queries, and some idle callers that have had more time than the others.
    lines: BTreeMap<Asker, Line>,
    /// Callers with queries, ordered by the time that they have had.
    order: BTreeSet<(Duration, Asker)>,
    /// Queries in all lines.
    queries: usize,
    /// The time of the line served last, as of when its turn began: a line that begins to wait
    /// starts with at least this much.
    lines_time: Duration,
    /// Queries taken since the agenda last dropped the queries of callers that left.
    taken: usize,
}

/// Time that work, or queries, have had so far; only the difference between the two counts.
#[derive(Default)]
struct Share {
    had: Duration,
    /// What `had` was before the last piece of work, or the last query.
    before: Duration,
}

/// The queries of one caller, and the time that they have had.
#[derive(Default)]
struct Line {
    time: Duration,
    queries: VecDeque<Query>,
}

/// Lines without queries that are kept in addition to those with queries.
const IDLE_LINES_MAX: usize = 256;

impl Share {
    fn took(&mut self, time: Duration) {
        self.before = self.had;
        self.had += time;
    }

    /// Call this when an idle side has something to do again. It starts level with the other side;
    /// if the other side has something to do as well, level with what that had before its last
    /// piece, during which this side's work may have arrived.
    fn wait_beside(&mut self, other: &Self, other_waits: bool) {
        self.had = self.had.max(if other_waits { other.before } else { other.had });
    }
}

impl Agenda {
    pub(crate) fn is_empty(&self) -> bool {
        self.work.is_empty() && self.queries == 0
    }

    pub(crate) fn add_work(&mut self, job: ApplyJob) {
        if self.work.is_empty() {
            self.work_time.wait_beside(&self.query_time, self.queries > 0);
        }
        self.work.push_back(job);
    }

    /// Puts back what is left of a piece of work; it is the next piece of work.
    pub(crate) fn give_back(&mut self, job: ApplyJob) {
        self.work.push_front(job);
    }

    pub(crate) fn add_query(&mut self, query: Query) {
        if self.queries == 0 {
            self.query_time.wait_beside(&self.work_time, !self.work.is_empty());
        }
        self.queries += 1;
        let asker = query.asked.asker;
        let line = self.lines.entry(asker).or_default();
        if line.queries.is_empty() {
            line.time = line.time.max(self.lines_time);
            self.order.insert((line.time, asker));
        }
        line.queries.push_back(query);
    }

    /// Takes what is to be done next, if anything; the guest has applied everything up to
    /// `applied`.
    pub(crate) fn next(&mut self, applied: u64) -> Option<Next> {
        // Amortized: once as many queries were taken as still wait, all of them are checked.
        if self.taken > self.queries {
            self.taken = 0;
            self.forget_the_gone();
        }
        loop {
            let first = self.first_line(applied);
            let work_first = if planted("queries_first") {
                first.is_none()
            } else {
                self.work_time.had <= self.query_time.had
            };
            let work = self.work.front().is_some_and(|_| work_first || first.is_none());
            match first.filter(|_| !work) {
                None => return self.work.pop_front().map(Next::Work),
                Some((time, asker)) => {
                    if let Some(query) = self.take(time, asker) {
                        return Some(Next::Ask(query));
                    }
                }
            }
        }
    }

    /// Records how long the last piece of work took.
    pub(crate) fn worked(&mut self, took: Duration) {
        self.work_time.took(took);
    }

    /// Records how long the last query, one of `asker`, took.
    pub(crate) fn asked(&mut self, asker: Asker, took: Duration) {
        self.query_time.took(took);
        let Some(line) = self.lines.get_mut(&asker) else { return };
        let listed = self.order.remove(&(line.time, asker));
        line.time += took;
        if listed {
            self.order.insert((line.time, asker));
        }
        if self.lines.len() > self.order.len() + IDLE_LINES_MAX {
            let now = self.lines_time;
            self.lines.retain(|_, line| !line.queries.is_empty() || line.time > now);
        }
    }

    /// Of the lines whose first query may be asked, the one that has had the least time.
    fn first_line(&self, applied: u64) -> Option<(Duration, Asker)> {
        let ready = |(_, asker): &&(Duration, Asker)| {
            let first = self.lines.get(asker).and_then(|line| line.queries.front());
            // Without work nothing more will be applied: the lane refuses a query that it cannot
            // answer.
            first.is_some_and(|query| query.index <= applied || self.work.is_empty())
        };
        self.order.iter().find(ready).copied()
    }

    /// Takes the first query whose caller still waits from the line of `asker`, which has had
    /// `time`, and drops those before it.
    fn take(&mut self, time: Duration, asker: Asker) -> Option<Query> {
        let line = self.lines.get_mut(&asker)?;
        self.lines_time = self.lines_time.max(time);
        let mut found = None;
        while found.is_none()
            && let Some(query) = line.queries.pop_front()
        {
            self.queries -= 1;
            self.taken += 1;
            found = Some(query).filter(is_waited_for);
        }
        if line.queries.is_empty() {
            self.order.remove(&(time, asker));
        }
        found
    }

    fn forget_the_gone(&mut self) {
        for (asker, line) in &mut self.lines {
            let before = line.queries.len();
            line.queries.retain(is_waited_for);
            self.queries -= before - line.queries.len();
            if before > 0 && line.queries.is_empty() {
                self.order.remove(&(line.time, *asker));
            }
        }
    }
}

fn is_waited_for(query: &Query) -> bool {
    query.asked.waits() || planted("ask_for_nobody")
}

#[cfg(test)]
mod tests {
    use lockstep_core::fault::Refusal;
    use tokio::sync::oneshot::{Receiver, channel};

    use super::*;
    use crate::group::QueryAnswer;
    use crate::group::askers::Places;

    const MS: Duration = Duration::from_millis(1);

    /// An agenda whose pieces of work and queries say how long they take.
    #[derive(Default)]
    struct Story {
        agenda: Agenda,
        places: Places,
        waiting: Vec<Receiver<Result<QueryAnswer, Refusal>>>,
        now: Duration,
    }

    impl Story {
        /// Adds a piece of work that takes `ms` milliseconds.
        fn work(&mut self, ms: u32) {
            let (first, last, bytes, entries) = (u64::from(ms), 0, 0, Vec::new());
            let awaited = BTreeSet::new();
            self.agenda.add_work(ApplyJob::Range { first, last, bytes, entries, awaited });
        }

        /// Adds a query that takes `ms` milliseconds and needs entry `index` to be applied.
        fn ask_behind(&mut self, asker: u64, ms: u32, index: u64) {
            let request = Bytes::from(ms.to_string());
            let place = self.places.take(Asker(asker), request.len()).expect("there is a place");
            let (answer, waiting) = channel();
            let asked = Asked { asker: Asker(asker), answer, _place: place };
            self.agenda.add_query(Query { request, index, asked });
            self.waiting.push(waiting);
        }

        fn ask(&mut self, asker: u64, ms: u32) {
            self.ask_behind(asker, ms, 0);
        }

        /// Does what is next and names it: `w` for work, its caller's number for a query.
        fn step(&mut self, applied: u64) -> Option<String> {
            Some(match self.agenda.next(applied)? {
                Next::Work(ApplyJob::Range { first, .. }) => {
                    let took = MS * u32::try_from(first).expect("it is short");
                    self.agenda.worked(took);
                    self.now += took;
                    "w".to_owned()
                }
                Next::Work(other) => panic!("nobody asked for {other:?}"),
                Next::Ask(query) => {
                    let ms: u32 = str::from_utf8(&query.request)
                        .expect("a number")
                        .parse()
                        .expect("a number");
                    self.agenda.asked(query.asked.asker, MS * ms);
                    self.now += MS * ms;
                    query.asked.asker.0.to_string()
                }
            })
        }

        fn all(&mut self) -> String {
            std::iter::from_fn(|| self.step(0)).collect::<Vec<_>>().join("")
        }
    }

    /// However many queries wait, a new command goes next: it waits for one query at most.
    #[test]
    fn work_that_comes_among_queries_is_next() {
        let mut story = Story::default();
        (0..1_000).for_each(|_| story.ask(1, 15));
        for _ in 0..100 {
            story.step(0);
            story.work(1);
            assert_eq!(story.step(0).as_deref(), Some("w"));
        }
    }

    /// Work that arrives in several pieces waits for one query in all, not for one before each
    /// piece.
    #[test]
    fn work_that_comes_in_pieces_waits_for_one_query() {
        let mut story = Story::default();
        (0..1_000).for_each(|_| story.ask(1, 15));
        for _ in 0..100 {
            assert_eq!(story.step(0).as_deref(), Some("1"));
            (0..10).for_each(|_| story.work(1));
            let order: String = (0..10).filter_map(|_| story.step(0)).collect();
            assert_eq!(order, "wwwwwwwwww");
        }
    }

    /// While both wait, work and queries get half of the time each, not half of the turns.
    #[test]
    fn work_and_queries_have_the_same_time() {
        let mut story = Story::default();
        (0..10).for_each(|_| story.ask(1, 15));
        (0..200).for_each(|_| story.work(1));
        let order: String = (0..64).filter_map(|_| story.step(0)).collect();
        assert_eq!(order.matches('1').count(), 4, "{order}");
        assert!(!order.contains("wwwwwwwwwwwwwwwww"), "{order}");
        assert!(!order.contains("11"), "{order}");
    }

    /// A query waits for one long piece of work, but not for the next.
    #[test]
    fn a_query_waits_for_one_piece_of_work() {
        let mut story = Story::default();
        (0..100).for_each(|_| story.work(20));
        story.step(0);
        for _ in 0..20 {
            story.ask(1, 1);
            let order: String = (0..2).filter_map(|_| story.step(0)).collect();
            assert!(order.contains('1'), "{order}");
        }
    }

    /// A side that was idle for long does not get that time back.
    #[test]
    fn idle_time_is_not_saved() {
        let mut story = Story::default();
        (0..100).for_each(|_| story.ask(1, 10));
        story.all();
        (0..10).for_each(|_| story.work(1));
        (0..10).for_each(|_| story.ask(1, 1));
        assert_eq!(story.all(), "w1w1w1w1w1w1w1w1w1w1");
    }

    /// A caller with many queries, or with expensive ones, gets no more time than the others.
    #[test]
    fn callers_share_the_time_of_queries() {
        let mut story = Story::default();
        (0..1_000).for_each(|_| story.ask(1, 15));
        story.step(0);
        story.ask(2, 1);
        assert_eq!(story.step(0).as_deref(), Some("2"), "it has had nothing yet");
        // Two callers that ask again as soon as they are answered, one of them expensive queries.
        let mut story = Story::default();
        story.ask(1, 100);
        story.ask(2, 1);
        let mut order = String::new();
        for _ in 0..200 {
            let who = story.step(0).expect("both always ask");
            story.ask(who.parse().expect("a number"), if who == "1" { 100 } else { 1 });
            order.push_str(&who);
        }
        assert!(order.matches('1').count() <= 3, "{order}");
    }

    /// A query whose caller left takes no time and holds no place.
    #[test]
    fn what_nobody_waits_for_is_not_asked() {
        let mut story = Story::default();
        (0..100).for_each(|_| story.ask(1, 15));
        story.ask(2, 15);
        (0..50).for_each(|_| story.ask(3, 15));
        story.waiting.drain(..100);
        story.waiting.drain(1..);
        assert_eq!(story.all(), "2");
        assert!(story.agenda.is_empty());
        assert_eq!(story.places.taken(), (0, 0));
    }

    /// Queries whose callers left give their places back, even if their turn never comes.
    #[test]
    fn places_of_those_who_left_are_free_soon() {
        let mut story = Story::default();
        (0..100).for_each(|_| story.ask(1, 1_000));
        story.step(0);
        story.waiting.clear();
        (0..200).for_each(|_| story.ask(2, 1));
        for _ in 0..190 {
            assert_eq!(story.step(0).as_deref(), Some("2"));
        }
        assert_eq!(story.places.taken().0, 10, "no query of the first caller is left");
    }

    /// A query is asked once the guest has applied what was committed when the query arrived.
    #[test]
    fn a_query_waits_for_what_it_must_see() {
        let mut story = Story::default();
        story.ask_behind(1, 1, 7);
        (0..3).for_each(|_| story.work(50));
        story.ask(2, 500);
        let order: Vec<_> =
            [0, 0, 0, 6, 7].map(|applied| story.step(applied)).into_iter().flatten().collect();
        assert_eq!(order.join(""), "w2ww1");
    }
}
