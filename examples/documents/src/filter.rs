//! Answers queries, most of them with a jq filter.
//!
//! * An answer depends on the documents, the time of the log and the request alone: what jq offers
//!   beyond that is replaced by an error.
//! * The answer is bounded; a filter that gives results for ever ends there. One that gives none
//!   for ever is ended by the fuel of a query.

use std::io::Write as _;

use jaq_core::box_iter::box_once;
use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Error, Exn, Filter, RunPtr, Vars, data, native, unwrap_valr};
use jaq_json::{Val, read};
use lockstep_guest::Context;

use crate::Documents;
use crate::command::{name, word};
use crate::store::Document;

/// The longest answer to a query, in bytes; a node refuses longer ones.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The longest filter, in bytes: enough for those that people write.
pub const FILTER_BYTES_MAX: usize = 8 << 10;

/// What is told of a filter's error, in characters: it may quote a whole collection.
pub(crate) const REASON_CHARS_MAX: usize = 500;

/// How deep brackets in a filter may be nested, those in its strings included: the parser calls
/// itself that often. What else it calls itself for ends with a trap, as a query that calls itself
/// too deep does.
const BRACKETS_MAX: usize = 64;

/// What is bound in a filter beside its input.
const VARIABLES: [&str; 3] = ["$now", "$id", "$rev"];

type Data = data::JustLut<Val>;

/// Answers a query; the error is a sentence.
pub(crate) fn query(
    documents: &Documents,
    ctx: &Context,
    request: &[u8],
) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(request).map_err(|why| format!("not UTF-8: {why}"))?;
    let (verb, rest) = word(text);
    let mut answer = Answer::default();
    match verb {
        "get" => {
            let (collection, id) = word(rest);
            let document = documents.known(name("collection", collection)?, name("ID", id)?)?;
            return Ok(document.json.clone());
        }
        "count" => {
            let ids = documents.collections.get(name("collection", rest)?);
            answer.line(ids.map_or(0, |ids| ids.len()).to_string().as_bytes())?;
        }
        "collections" if rest.is_empty() => {
            for (collection, ids) in &documents.collections {
                let bytes: usize = ids.values().map(|document| document.json.len()).sum();
                answer.line(format!("{collection} {} {bytes}", ids.len()).as_bytes())?;
            }
        }
        "each" => {
            let (collection, filter) = word(rest);
            let filter = Program::compile(filter)?;
            let ids = documents.collections.get(name("collection", collection)?);
            for (id, document) in ids.into_iter().flatten() {
                let about = (text_value(id), number(document.rev));
                filter.run(ctx, about, parsed(document)?, &mut answer)?;
            }
        }
        "all" => {
            let (collection, filter) = word(rest);
            let filter = Program::compile(filter)?;
            let ids = documents.collections.get(name("collection", collection)?);
            let input = object(ids.into_iter().flatten())?;
            filter.run(ctx, (Val::Null, Val::Null), input, &mut answer)?;
        }
        "whole" => {
            let filter = Program::compile(rest)?;
            let collections = documents.collections.iter();
            let input = collections
                .map(|(collection, ids)| Ok((text_value(collection), object(ids)?)))
                .collect::<Result<_, String>>()?;
            filter.run(ctx, (Val::Null, Val::Null), Val::obj(input), &mut answer)?;
        }
        _ => {
            let known = "get, count, collections, each, all and whole";
            return Err(format!("no query {verb:?}; there are {known}"));
        }
    }
    Ok(answer.0)
}

/// Lines, up to the bound of an answer.
#[derive(Default)]
struct Answer(Vec<u8>);

impl Answer {
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        if self.0.len() + line.len() + 1 > ANSWER_BYTES_MAX {
            let way_out = "select less, or use `limit` or `first`";
            return Err(format!(
                "the answer would have more than {ANSWER_BYTES_MAX} bytes; {way_out}"
            ));
        }
        self.0.extend_from_slice(line);
        self.0.push(b'\n');
        Ok(())
    }
}

/// A filter that is ready to run.
struct Program(Filter<Data>);

impl Program {
    fn compile(code: &str) -> Result<Self, String> {
        check(code)?;
        let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let funs = jaq_core::funs::<Data>().chain(jaq_std::funs()).chain(jaq_json::funs()).map(
            |(name, arity, fun)| match refused(name) {
                Some(refuse) => native::run::<Data>((name, arity, refuse)),
                None => (name, arity, fun),
            },
        );
        let arena = Arena::default();
        let loaded = Loader::new(defs).load(&arena, File { code, path: () });
        let modules = loaded.map_err(|errors| {
            let what = errors.into_iter().next().map_or_else(String::new, |(_, why)| shown(why));
            format!("the filter cannot be read: {what}")
        })?;
        let compiler = Compiler::default().with_funs(funs).with_global_vars(VARIABLES);
        let filter = compiler.compile(modules).map_err(|errors| {
            let first = errors.into_iter().flat_map(|(_, undefined)| undefined).next();
            let what = first.map(|(name, kind)| format!("{} {name}", kind.as_str()));
            format!("the filter uses an undefined {}", what.unwrap_or_default())
        })?;
        Ok(Self(filter))
    }

    fn run(
        &self,
        ctx: &Context,
        (id, rev): (Val, Val),
        input: Val,
        answer: &mut Answer,
    ) -> Result<(), String> {
        let now = Val::from(ctx.time_ms as f64 / 1_000.0);
        let ctx = Ctx::<Data>::new(&self.0.lut, Vars::new([now, id, rev]));
        let mut line = Vec::new();
        for value in self.0.id.run((ctx, input)).map(unwrap_valr) {
            let value = value.map_err(|why| format!("the filter failed: {}", raw(why)))?;
            line.clear();
            write!(line, "{value}").map_err(|why| why.to_string())?;
            answer.line(&line)?;
        }
        Ok(())
    }
}

/// Bounds what the parser has to do.
fn check(code: &str) -> Result<(), String> {
    if code.is_empty() || code.len() > FILTER_BYTES_MAX {
        return Err(format!("a filter has 1 to {FILTER_BYTES_MAX} bytes"));
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in code.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > BRACKETS_MAX {
        return Err(format!("brackets in a filter may be nested {BRACKETS_MAX} deep"));
    }
    Ok(())
}

/// What jq offers and a replica must not do.
fn refused(name: &str) -> Option<RunPtr<Data>> {
    match name {
        "now" => Some(|_| refusal("`now` differs between replicas; the log's time is `$now`")),
        "localtime" | "strflocaltime" => {
            Some(|_| refusal("replicas have no common time zone; use `gmtime` or `strftime`"))
        }
        "env" => Some(|_| refusal("`env` differs between replicas, and is not there")),
        "halt" => Some(|_| refusal("`halt` would end the query; use `error`")),
        "debug_empty" | "stderr_empty" => {
            Some(|_| refusal("a query writes nothing but its answer; leave `debug` out"))
        }
        _ => None,
    }
}

fn refusal<'a>(why: &str) -> jaq_core::val::ValXs<'a, Val> {
    box_once(Err(Exn::from(Error::str(why))))
}

/// The first thing that is wrong with a filter.
fn shown(why: load::Error<&str>) -> String {
    let (expected, found) = match why {
        load::Error::Io(errors) => {
            let file = errors.first().map_or("", |(file, _)| file);
            return format!("there is no module {file}");
        }
        load::Error::Lex(errors) => {
            errors.first().map_or(("", ""), |(expected, found)| (expected.as_str(), found))
        }
        load::Error::Parse(errors) => {
            errors.first().map_or(("", ""), |(expected, found)| (expected.as_str(), found))
        }
    };
    let found: String = found.chars().take(40).collect();
    match found.is_empty() {
        true => format!("it ends where {expected} is expected"),
        false => format!("{expected} is expected at {found:?}"),
    }
}

/// An error of a filter: a text without quotes, or another value as JSON.
fn raw(why: Error<Val>) -> String {
    let text = match why.into_val() {
        Val::TStr(text) => String::from_utf8_lossy(&text).into_owned(),
        other => other.to_string(),
    };
    text.chars().take(REASON_CHARS_MAX).collect()
}

fn object<'a>(ids: impl IntoIterator<Item = (&'a String, &'a Document)>) -> Result<Val, String> {
    let fields = ids.into_iter().map(|(id, document)| Ok((text_value(id), parsed(document)?)));
    Ok(Val::obj(fields.collect::<Result<_, String>>()?))
}

fn parsed(document: &Document) -> Result<Val, String> {
    read::parse_single(&document.json).map_err(|why| format!("the document is damaged: {why}"))
}

fn text_value(text: &str) -> Val {
    Val::from(text.to_owned())
}

fn number(number: u64) -> Val {
    usize::try_from(number).map_or(Val::Null, Val::from)
}
