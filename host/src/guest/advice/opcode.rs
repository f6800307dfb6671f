//! The name of the instruction at a place in a function, as the text format writes it.

use wasmparser::{BinaryReader, FunctionBody, Operator};

/// What stands before the dot of instructions that have one.
const PREFIXES: [&str; 24] = [
    "i32", "i64", "f32", "f64", "v128", "i8x16", "i16x8", "i32x4", "i64x2", "f32x4", "f64x2",
    "memory", "table", "local", "global", "ref", "struct", "array", "i31", "any", "extern", "cont",
    "data", "elem",
];

macro_rules! visits {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })?
        => $visit:ident ($($ann:tt)*))*) => {
        /// The name of the method with which wasmparser visits it.
        fn visit(operator: &Operator<'_>) -> &'static str {
            match operator {
                $(Operator::$op { .. } => stringify!($visit),)*
                _unknown => "visit_unknown",
            }
        }
    };
}
wasmparser::for_each_operator!(visits);

/// The instruction at this byte of the file.
pub(super) fn at(body: &FunctionBody<'_>, byte: usize) -> Option<String> {
    // The reader of the body knows only the features that are on.
    let reader = BinaryReader::new(body.as_bytes(), body.range().start);
    let mut operators = FunctionBody::new(reader).get_operators_reader().ok()?;
    while !operators.eof() {
        let (operator, place) = operators.read_with_offset().ok()?;
        if place == byte {
            return Some(text(visit(&operator)));
        }
    }
    None
}

fn text(visit: &str) -> String {
    let name = visit.strip_prefix("visit_").unwrap_or(visit);
    if let Some((before, after)) = name.split_once("atomic_") {
        let rest = match after.strip_prefix("rmw").and_then(|rest| rest.split_once('_')) {
            Some((width, rest)) => format!("rmw{width}.{rest}"),
            None => after.to_owned(),
        };
        return format!("{}atomic.{rest}", before.replace('_', "."));
    }
    match name.split_once('_') {
        Some((prefix, rest)) if PREFIXES.contains(&prefix) => format!("{prefix}.{rest}"),
        Some(_) | None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_text_format() {
        let check = |visit, expect: &str| assert_eq!(text(visit), expect);
        check("visit_i32_atomic_rmw8_add_u", "i32.atomic.rmw8.add_u");
        check("visit_i64_atomic_rmw_cmpxchg", "i64.atomic.rmw.cmpxchg");
        check("visit_i32_atomic_load8_u", "i32.atomic.load8_u");
        check("visit_memory_atomic_wait32", "memory.atomic.wait32");
        check("visit_atomic_fence", "atomic.fence");
        check("visit_f32x4_relaxed_madd", "f32x4.relaxed_madd");
        check("visit_i64_add128", "i64.add128");
        check("visit_return_call_indirect", "return_call_indirect");
        check("visit_try_table", "try_table");
        check("visit_struct_new_default", "struct.new_default");
    }
}
