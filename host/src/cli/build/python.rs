//! Python: componentize-py, a package of PyPI, puts the sources into a component with CPython.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::component::WORLD;
use super::project::Project;
use super::tools::{Program, Tools};
use super::{sdk_folder, write_world};
use crate::cli::Failure;

/// What compiled modules are kept in, which the tool leaves among the sources.
const CACHE: &str = "__pycache__";

const MISSING: &str = "Python needs componentize-py: `pip install componentize-py==0.25.1`, in a \
    virtual environment (`python3 -m venv .venv`, then `.venv/bin/pip`)";

pub(super) fn build(project: &Project, tools: &Tools, scratch: &Path) -> Result<Vec<u8>, Failure> {
    let tool = find(project, tools)?;
    let (world, module) = (scratch.join("wit"), scratch.join("machine.wasm"));
    write_world(&world, &project.exports)?;
    let sdk = sdk_folder(project, scratch)?;
    let cache = project.sources.join(CACHE);
    let was_there = cache.exists();
    let ran = tools.run(&mut componentize(&tool, project, &sdk, &world, &module));
    if !was_there {
        // It is of no use, and its absence no harm.
        let _ = fs::remove_dir_all(cache);
    }
    ran?;
    Ok(fs::read(module)?)
}

fn find(project: &Project, tools: &Tools) -> Result<Program, Failure> {
    tools
        .find_near(&project.dir.join(".venv/bin"), "componentize-py")
        .ok_or_else(|| Failure::Failed(MISSING.to_owned()))
}

fn componentize(
    tool: &Program,
    project: &Project,
    sdk: &Path,
    world: &Path,
    module: &Path,
) -> Command {
    let mut command = tool.command();
    command.current_dir(&project.dir).arg("-q").arg("-d").arg(world).args(["-w", WORLD]);
    command.args(["componentize", "--stub-wasi", "-p"]).arg(&project.sources);
    if *sdk != project.sources {
        command.arg("-p").arg(sdk);
    }
    command.arg(project.main.trim_end_matches(".py")).arg("-o").arg(module);
    command
}

#[cfg(test)]
mod tests {
    use super::super::tools::tests::{stubs, why};
    use super::*;
    use crate::cli::sdk::Language;

    #[test]
    fn the_tool_is_looked_for() {
        let (dir, bin) = (tempfile::tempdir(), tempfile::tempdir());
        let (dir, bin) = (dir.expect("there is space"), bin.expect("there is space"));
        let project = Project {
            language: Language::Python,
            name: "t".to_owned(),
            dir: dir.path().to_owned(),
            sources: dir.path().join("src"),
            main: "my_t.py".to_owned(),
            exports: Vec::new(),
        };
        let none = why(find(&project, &stubs(bin.path(), &[])));
        assert!(none.contains("pip install componentize-py==0.25.1"), "{none}");

        let tools = stubs(bin.path(), &[("componentize-py", "")]);
        let on_path = find(&project, &tools).expect("it is on the path");
        assert_eq!(on_path, Program::at(bin.path().join("componentize-py")));
        let command = componentize(&on_path, &project, "S".as_ref(), "W".as_ref(), "M".as_ref());
        let words: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
        let words = words.join(" ").replace(&dir.path().display().to_string(), "DIR");
        assert_eq!(words, "-q -d W -w machine componentize --stub-wasi -p DIR/src -p S my_t -o M");

        let near = dir.path().join(".venv/bin");
        fs::create_dir_all(&near).expect("there is space");
        stubs(&near, &[("componentize-py", "")]);
        let found = find(&project, &tools).expect("it is in the environment");
        assert_eq!(found, Program::at(near.join("componentize-py")));
    }
}
