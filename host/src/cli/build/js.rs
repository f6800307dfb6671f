//! JavaScript: componentize-qjs, an npm package, puts the sources into a component with QuickJS.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::component::WORLD;
use super::project::Project;
use super::tools::{Program, Tools, asked};
use super::write_world;
use crate::cli::Failure;

/// The package, in the version whose components were tried.
const PACKAGE: &str = "componentize-qjs@0.4.5";
const NODE_MAJOR_MIN: u32 = 18;

pub(super) fn build(project: &Project, tools: &Tools, scratch: &Path) -> Result<Vec<u8>, Failure> {
    let tool = find(project, tools)?;
    let (world, module) = (scratch.join("wit"), scratch.join("machine.wasm"));
    write_world(&world, &project.exports)?;
    tools.run(&mut componentize(&tool, project, &world, &module))?;
    Ok(fs::read(module)?)
}

fn find(project: &Project, tools: &Tools) -> Result<Program, Failure> {
    let missing = |found: &str| {
        Failure::Failed(format!(
            "JavaScript needs Node {NODE_MAJOR_MIN} or newer ({found}), and \
             `npm install --save-dev {PACKAGE}`"
        ))
    };
    let node = tools.find("node").ok_or_else(|| missing("there is none on the path"))?;
    let version = asked(node.command().arg("--version")).unwrap_or_default();
    let major = version.trim_start_matches('v').split('.').next().and_then(|it| it.parse().ok());
    if major.is_none_or(|major: u32| major < NODE_MAJOR_MIN) {
        return Err(missing(&format!("there is {version}")));
    }
    tools
        .find_near(&project.dir.join("node_modules/.bin"), "componentize-qjs")
        .or_else(|| tools.find("npx").map(|npx| npx.with(["--yes", PACKAGE])))
        .ok_or_else(|| missing(&format!("there is {version}, but no npx")))
}

fn componentize(tool: &Program, project: &Project, world: &Path, module: &Path) -> Command {
    let mut command = tool.command();
    command.current_dir(&project.dir).arg("--wit").arg(world).args(["--world", WORLD]);
    command.arg("--js").arg(project.sources.join(&project.main));
    command.arg("--module-root").arg(&project.sources);
    command.args(["--stub-wasi", "--sync", "-o"]).arg(module);
    command
}

#[cfg(test)]
mod tests {
    use super::super::tools::tests::{stubs, why};
    use super::*;
    use crate::cli::sdk::Language;

    fn check(programs: &[(&str, &str)], local: bool, expect: Result<&str, &str>) {
        let (dir, bin) = (tempfile::tempdir(), tempfile::tempdir());
        let (dir, bin) = (dir.expect("there is space"), bin.expect("there is space"));
        let project = Project {
            language: Language::Js,
            name: "t".to_owned(),
            dir: dir.path().to_owned(),
            sources: dir.path().join("src"),
            main: "t.js".to_owned(),
            exports: vec!["digest"],
        };
        if local {
            let local = dir.path().join("node_modules/.bin");
            fs::create_dir_all(&local).expect("there is space");
            stubs(&local, &[("componentize-qjs", "")]);
        }
        match (find(&project, &stubs(bin.path(), programs)), expect) {
            (Ok(found), Ok(expect)) => {
                let shown = found.shown().replace(&dir.path().display().to_string(), "DIR");
                assert_eq!(shown.replace(&bin.path().display().to_string(), "BIN"), expect);
                let command = componentize(&found, &project, Path::new("W"), Path::new("M"));
                let words: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
                let words = words.join(" ").replace(&dir.path().display().to_string(), "DIR");
                let last = "--wit W --world machine --js DIR/src/t.js --module-root DIR/src \
                            --stub-wasi --sync -o M";
                assert!(words.ends_with(last), "{words}");
            }
            (Err(failure), Err(expect)) => {
                let why = why::<()>(Err(failure));
                assert!(why.contains(expect), "{why}");
            }
            (found, _) => panic!("{programs:?} gives {found:?}"),
        }
    }

    #[test]
    fn the_tool_is_looked_for() {
        const NODE: (&str, &str) = ("node", "v20.20.2");
        check(&[NODE, ("npx", "")], true, Ok("DIR/node_modules/.bin/componentize-qjs"));
        check(&[NODE, ("componentize-qjs", "")], false, Ok("BIN/componentize-qjs"));
        check(&[NODE, ("npx", "")], false, Ok("BIN/npx --yes componentize-qjs@0.4.5"));
        check(&[("node", "v18.0.0")], false, Err("npm install --save-dev componentize-qjs@0.4.5"));
        check(&[("node", "v16.1.0")], true, Err("needs Node 18 or newer (there is v16.1.0)"));
        check(&[], true, Err("there is none on the path"));
    }
}
