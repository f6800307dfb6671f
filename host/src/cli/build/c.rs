//! C: a compiler and a linker for WebAssembly, without a libc; the types are added here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::component;
use super::project::{Project, sources};
use super::sdk_folder;
use super::tools::{Program, Tools};
use crate::cli::Failure;
use crate::cli::sdk::Language;

const COMPILE: [&str; 7] =
    ["-O2", "-std=c11", "-Wall", "-Wextra", "-ffreestanding", "-mbulk-memory", "-c"];
/// A megabyte of stack, below the data: a recursion without an end traps instead of writing there.
const LINK: [&str; 5] =
    ["--no-entry", "--stack-first", "-z", "stack-size=1048576", "--strip-debug"];

const NO_COMPILER: &str = "no C compiler for WebAssembly: install clang and lld \
    (`apt-get install clang lld`), or `pip install ziglang==0.17.1`";
const NO_LINKER: &str = "no wasm-ld: install lld (`apt-get install lld`), or a Rust toolchain, \
    whose rust-lld serves as well";

/// What compiles, and what links.
#[derive(PartialEq, Eq, Debug)]
struct Toolchain {
    compiler: Program,
    /// How the compiler is told what to compile for.
    target: &'static [&'static str],
    linker: Program,
}

pub(super) fn build(project: &Project, tools: &Tools, scratch: &Path) -> Result<Vec<u8>, Failure> {
    let mut files = sources(&project.sources, Language::C);
    if files.is_empty() {
        let shown = project.sources.display();
        return Err(Failure::Usage(format!("{shown}: no .c file is there; see `source`")));
    }
    let toolchain = Toolchain::find(tools, &project.dir)?;
    let include = sdk_folder(project, scratch)?;
    files.push(include.join("lockstep.c"));
    let mut objects = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let object = scratch.join(format!("{number}.o"));
        tools.run(&mut toolchain.compile(&include, file, &object))?;
        objects.push(object);
    }
    let module = scratch.join("core.wasm");
    tools.run(&mut toolchain.link(&objects, &module))?;
    let mut module = fs::read(module)?;
    component::embed(&mut module)?;
    component::encode(&module)
}

impl Toolchain {
    fn find(tools: &Tools, dir: &Path) -> Result<Self, Failure> {
        const CLANG: &[&str] = &["--target=wasm32"];
        const ZIG: &[&str] = &["-target", "wasm32-freestanding", "-g0"];
        let zig = || tools.find_zig();
        let (compiler, target) = if let Some(asked) = asked_for(tools) {
            let target = if is_zig(&asked) { ZIG } else { CLANG };
            (asked, target)
        } else if let Some(clang) = tools.find_of_llvm("clang") {
            (clang, CLANG)
        } else if let Some(zig) = zig() {
            (zig.with(["cc"]), ZIG)
        } else {
            return Err(Failure::Failed(NO_COMPILER.to_owned()));
        };
        let linker = tools
            .find_of_llvm("wasm-ld")
            .or_else(|| Some(tools.find_rust_lld(dir)?.with(["-flavor", "wasm"])))
            .or_else(|| zig().map(|zig| zig.with(["wasm-ld"])))
            .ok_or_else(|| Failure::Failed(NO_LINKER.to_owned()))?;
        Ok(Self { compiler, target, linker })
    }

    fn compile(&self, include: &Path, file: &Path, object: &Path) -> Command {
        let mut command = self.compiler.command();
        command.args(self.target).args(COMPILE).arg(file);
        command.arg("-I").arg(include).arg("-o").arg(object);
        command
    }

    fn link(&self, objects: &[PathBuf], module: &Path) -> Command {
        let mut command = self.linker.command();
        command.args(LINK).args(objects).arg("-o").arg(module);
        command
    }
}

/// The compiler that `$CC` names, if it can have WebAssembly as its target: gcc, which many set it
/// to, cannot.
fn asked_for(tools: &Tools) -> Option<Program> {
    let words: Vec<String> =
        tools.variable("CC")?.to_str()?.split_whitespace().map(str::to_owned).collect();
    let able = words.iter().any(|word| word.contains("clang") || word.contains("zig"));
    let (first, rest) = words.split_first().filter(|_| able)?;
    Some(rest.iter().fold(Program::at(first), |program, word| program.with([word])))
}

fn is_zig(program: &Program) -> bool {
    program.shown().contains("zig")
}

#[cfg(test)]
mod tests {
    use super::super::tools::tests::{stubs, why};
    use super::*;

    /// The compiler's and the linker's words, with `BIN` for the folder of the stubs.
    fn check(programs: &[(&str, &str)], cc: &str, expect: Result<[&str; 2], &str>) {
        let dir = tempfile::tempdir().expect("there is space");
        let bin = dir.path().display().to_string();
        let rust_lld = dir.path().join("lib/rustlib/host/bin/rust-lld");
        if programs.iter().any(|(name, _)| *name == "rustc") {
            fs::create_dir_all(rust_lld.parent().expect("it has one")).expect("it is ours");
            fs::write(&rust_lld, "").expect("there is space");
        }
        let programs: Vec<(&str, &str)> = programs
            .iter()
            .map(|(name, prints)| (*name, if *prints == "BIN" { &bin } else { *prints }))
            .collect();
        let tools = stubs(dir.path(), &programs).with("CC", cc);
        match (Toolchain::find(&tools, dir.path()), expect) {
            (Ok(found), Ok(expect)) => {
                let compile = found.compile(Path::new("I"), Path::new("F"), Path::new("O"));
                let words: Vec<_> = std::iter::once(compile.get_program())
                    .chain(compile.get_args())
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                let compile = words.join(" ");
                let (before, after) = compile.split_once(" -O2 ").expect("it is optimised");
                assert!(after.ends_with("-ffreestanding -mbulk-memory -c F -I I -o O"), "{after}");
                let told = [before, &found.linker.shown()].map(|it| it.replace(&bin, "BIN"));
                assert_eq!(told, expect);
            }
            (Err(failure), Err(expect)) => assert!(why::<()>(Err(failure)).contains(expect)),
            (found, _) => panic!("{programs:?} gives {found:?}"),
        }
    }

    #[test]
    fn any_compiler_and_any_linker_will_do() {
        const CLANG: &str = "BIN/clang --target=wasm32";
        check(&[("clang", ""), ("wasm-ld", "")], "", Ok([CLANG, "BIN/wasm-ld"]));
        check(&[("clang", ""), ("wasm-ld-16", "")], "gcc", Ok([CLANG, "BIN/wasm-ld-16"]));
        let lld = "BIN/lib/rustlib/host/bin/rust-lld -flavor wasm";
        check(&[("clang", ""), ("rustc", "BIN")], "", Ok([CLANG, lld]));
        let zig = "BIN/zig cc -target wasm32-freestanding -g0";
        check(&[("zig", "")], "", Ok([zig, "BIN/zig wasm-ld"]));
        let python = "BIN/python3 -m ziglang cc -target wasm32-freestanding -g0";
        check(&[("python3", "0.17.1")], "", Ok([python, "BIN/python3 -m ziglang wasm-ld"]));
        let asked = ["/opt/clang --target=wasm32", "BIN/wasm-ld"];
        check(&[("clang", ""), ("wasm-ld", "")], "/opt/clang", Ok(asked));
        let asked = ["/opt/zig cc -target wasm32-freestanding -g0", "BIN/wasm-ld"];
        check(&[("wasm-ld", "")], "/opt/zig cc", Ok(asked));
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&[], "", Err("apt-get install clang lld"));
        check(&[("wasm-ld", "")], "cc", Err("pip install ziglang==0.17.1"));
        check(&[("clang", "")], "", Err("no wasm-ld: install lld"));
    }
}
