//! Checks whether all that a component remembers between two calls lies in its linear memories.
//!
//! If so, a second instance that sees the same memories *is* the guest, as far as a query can tell.
//! The other places where an instance can remember something are globals, tables, and the set of
//! segments that it dropped. Toolchains of C, C++ and Rust keep nothing there but the stack
//! pointer, a global that has the same value whenever no call is under way. The code of a module
//! shows whether it sets another global, changes a table or drops a segment. A stack pointer whose
//! name was stripped is recognised by its initial value.

use wasmparser::{ConstExpr, KnownCustom, Name, Operator, Parser, Payload, TypeRef, ValType};

/// The name that LLVM's linker gives to the stack pointer.
const STACK_POINTER: &str = "__stack_pointer";
/// The least initial value of a stack pointer (a smaller stack is not plausible), and its
/// alignment.
const STACK_BYTES_MIN: i32 = 1024;
const STACK_ALIGNMENT: i32 = 16;

/// What is known of one core module so far.
#[derive(Default)]
struct Module {
    /// The initial value of each global.
    globals: Vec<Begins>,
    /// Globals that code sets.
    set: Vec<u32>,
    /// Names of globals, by index.
    names: Vec<(u32, String)>,
    /// What else the code changes outside of memory.
    changes: Option<&'static str>,
}

/// The initial value of a global.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// Imported, under the stack pointer's name or another.
    Imported { stack_pointer: bool },
    /// A constant of type i32.
    At(i32),
    /// Anything else.
    Otherwise,
}

/// `Err` says what a component keeps outside of its memories. The component must be valid.
pub(crate) fn keeps_all_in_memory(component: &[u8]) -> Result<(), &'static str> {
    const UNREADABLE: &str = "it cannot be read";
    let mut within: Vec<Option<Module>> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(|_| UNREADABLE)?;
        match payload {
            Payload::Version { encoding, .. } => {
                let module = encoding == wasmparser::Encoding::Module;
                within.push(module.then(Module::default));
            }
            Payload::End(_) => {
                if let Some(Some(module)) = within.pop() {
                    module.judge()?;
                }
            }
            other => {
                if let Some(Some(module)) = within.last_mut() {
                    module.read(other).map_err(|_| UNREADABLE)?;
                }
            }
        }
    }
    Ok(())
}

impl Module {
    fn read(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    if matches!(import.ty, TypeRef::Global(_)) {
                        let stack_pointer = import.name == STACK_POINTER;
                        self.globals.push(Begins::Imported { stack_pointer });
                    }
                }
            }
            Payload::GlobalSection(globals) => {
                for global in globals {
                    let global = global?;
                    let is_i32 = global.ty.content_type == ValType::I32;
                    let begins = constant(&global.init_expr).filter(|_| is_i32);
                    self.globals.push(begins.map_or(Begins::Otherwise, Begins::At));
                }
            }
            Payload::CodeSectionEntry(body) => {
                let mut operators = body.get_operators_reader()?;
                while !operators.eof() {
                    self.see(&operators.read()?);
                }
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Name(names) = section.as_known() {
                    // Validation ignores name sections: a name that cannot be read is no name.
                    for name in names.into_iter().map_while(Result::ok) {
                        if let Name::Global(map) = name {
                            let naming = map.into_iter().map_while(Result::ok);
                            self.names.extend(naming.map(|n| (n.index, n.name.to_owned())));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn see(&mut self, operator: &Operator<'_>) {
        match operator {
            Operator::GlobalSet { global_index } if !self.set.contains(global_index) => {
                self.set.push(*global_index);
            }
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. } => self.changes = Some("it changes a table"),
            Operator::DataDrop { .. } | Operator::ElemDrop { .. } => {
                self.changes = Some("it drops a segment");
            }
            _ => {}
        }
    }

    fn judge(&self) -> Result<(), &'static str> {
        if let Some(changes) = self.changes {
            return Err(changes);
        }
        if self.set.iter().all(|global| self.is_stack_pointer(*global)) {
            Ok(())
        } else {
            Err("it sets a global that is not its stack pointer")
        }
    }

    fn is_stack_pointer(&self, global: u32) -> bool {
        let named = self.names.iter().find(|(index, _)| *index == global);
        match (self.globals.get(global as usize), named) {
            (Some(Begins::Imported { stack_pointer }), _) => *stack_pointer,
            (Some(_), Some((_, name))) => name == STACK_POINTER,
            (Some(Begins::At(place)), None) => {
                *place >= STACK_BYTES_MIN && place % STACK_ALIGNMENT == 0 && self.set.len() == 1
            }
            (Some(Begins::Otherwise) | None, _) => false,
        }
    }
}

/// The value of an expression that is a single constant of type i32.
fn constant(expression: &ConstExpr<'_>) -> Option<i32> {
    let mut operators = expression.get_operators_reader();
    match (operators.read().ok()?, operators.read().ok()?) {
        (Operator::I32Const { value }, Operator::End) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(module: &str, expect: Result<(), &str>) {
        let text = format!("(component (core module {module}) (component (core module)))");
        let component = wat::parse_str(text).expect("the text is a component");
        match (keeps_all_in_memory(&component), expect) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(part)) => assert!(found.contains(part), "{module}: {found}"),
            (found, _) => panic!("{module} is judged {found:?}"),
        }
    }

    #[test]
    fn a_stack_pointer_is_told_from_state() {
        const SET: &str = "(func i32.const 1 global.set 0)";
        let global = |text: &str| format!("{text} {SET}");
        check("", Ok(()));
        check("(global (mut i32) i32.const 7)", Ok(()));
        check(&global("(global $__stack_pointer (mut i32) i32.const 1048576)"), Ok(()));
        check(&global("(global $__stack_pointer (mut i32) i32.const 7)"), Ok(()));
        check(&global("(import \"env\" \"__stack_pointer\" (global (mut i32)))"), Ok(()));
        check(&global("(global $counter (mut i32) i32.const 1048576)"), Err("sets a global"));
        check(&global("(import \"env\" \"counter\" (global (mut i32)))"), Err("sets a global"));
        // Stack pointers without a name.
        check(&global("(global (mut i32) i32.const 1048576)"), Ok(()));
        check(&global("(global (mut i32) i32.const 0)"), Err("sets a global"));
        check(&global("(global (mut i32) i32.const 1028)"), Err("sets a global"));
        let wide = "(global (mut i64) i64.const 1048576) (func i64.const 1 global.set 0)";
        check(wide, Err("sets a global"));
        let two = "(global (mut i32) i32.const 1048576) (global (mut i32) i32.const 1048576)
            (func i32.const 1 global.set 0 i32.const 1 global.set 1)";
        check(two, Err("sets a global"));
    }

    #[test]
    fn tables_and_segments_are_state() {
        let table = |body: &str| format!("(table 2 funcref) (func {body})");
        check(&table("i32.const 0 i32.const 0 call_indirect"), Ok(()));
        check(&table("i32.const 0 ref.null func table.set"), Err("a table"));
        check(&table("ref.null func i32.const 1 table.grow drop"), Err("a table"));
        check("(memory 1) (data $d \"x\") (func data.drop $d)", Err("a segment"));
    }
}
