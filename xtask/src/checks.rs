//! The checks of the repository, and the demonstration.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Doing, Failure};
use crate::steps::Steps;
use crate::{emulators, libtorch, packages, python};

/// For whom the checks run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A developer who will run them again: incremental compilation, and `Cargo.lock` may follow `Cargo.toml`.
    Developer,
    /// A machine that starts from nothing and keeps nothing.
    Clean,
}

/// Trains on the images of `examples/data`, or on what the arguments specify.
pub(crate) fn demo(root: &Path, steps: &mut Steps, arguments: &[String]) -> Result<(), Failure> {
    let libraries = set_up(root, steps, false)?;
    let cargo = Cargo { root, libraries: &libraries, mode: Mode::Developer };
    let example = ["--release", "--example", "train_images"];
    steps.run("compile", || shell::run(cargo.command("build").args(example)))?;
    steps.run("train", || shell::run(cargo.command("run").args(example).arg("--").args(arguments)))
}

/// Runs every check and stops at the first that fails.
///
/// All checks use the default features, so that `check`, `clippy` and `doc` share one compilation of the dependencies, and `test` shares another with
/// its examples and documentation tests. Without default features, the crate is checked but not linked.
pub(crate) fn test(root: &Path, steps: &mut Steps, mode: Mode) -> Result<(), Failure> {
    // What takes a second goes first: nobody should wait through a download for a blank in the wrong place.
    let cargo = Cargo { root, libraries: Path::new(""), mode };
    steps.run("format", || shell::run(cargo.bare("fmt").args(["--all", "--check"])))?;

    let libraries = set_up(root, steps, !emulators::are_ready(root))?;
    steps.run("emulators", || emulators::provide(root))?;
    let cargo = Cargo { libraries: &libraries, ..cargo };
    steps.run("check without default features", || {
        let check = ["--package", "forebay", "--no-default-features"];
        shell::run(cargo.command("check").args(check))?;
        shell::run(cargo.command("check").args(check).args(["--features", "cli"]))
    })?;
    // A workspace of its own, which the steps here do not compile.
    steps.run("lock file of the fuzzers", || {
        let mut update = cargo.bare("update");
        update.args(["--workspace", "--manifest-path", "fuzz/Cargo.toml"]);
        shell::run(if mode == Mode::Clean { update.arg("--locked") } else { &mut update })
    })?;
    steps.run("clippy", || {
        shell::run(cargo.command("clippy").args(["--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    steps.run("documentation", || {
        let flags = env::var("RUSTDOCFLAGS").unwrap_or_default();
        let flags = format!("{flags} -D warnings");
        let mut doc = cargo.command("doc");
        shell::run(doc.args(["--package", "forebay", "--no-deps"]).env("RUSTDOCFLAGS", flags.trim_start()))
    })?;
    steps.run_with_notes("tests", || {
        // Benches are compiled by clippy; they are not run here.
        run_tests(cargo.command("test").args(["--workspace", "--lib", "--bins", "--tests", "--examples"]))
    })?;
    steps.run_with_notes("documentation tests", || {
        run_tests(cargo.command("test").args(["--package", "forebay", "--doc"]))
    })?;
    // Not a default feature: its own compilation, of the library alone and without libtorch.
    steps.run_with_notes("tests with tokenizers", || {
        let features = ["--package", "forebay", "--lib", "--no-default-features", "--features", "tokenizers"];
        run_tests(cargo.command("test").args(features).arg("tokeniz"))
    })?;
    // Without libtorch, because a Python that has torch brings its own; with that feature, because the step above has compiled for it.
    steps.run("batches in Python", || {
        let features = ["--package", "forebay", "--no-default-features", "--features", "tokenizers"];
        shell::run(cargo.command("build").args(features).args(["--example", "dlpack"]))?;
        let library = format!("{}dlpack{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        let library = built_examples()?.join(library);
        shell::run(python::with_numpy(root)?.arg(root.join("examples/dlpack.py")).arg(library))
    })?;
    for example in examples(&root.join("examples"))? {
        steps.run(&format!("example {}", example.name), || {
            let mut run = cargo.command("run");
            shell::run(run.args(["--example", &example.name, "--"]).args(&example.arguments))
        })?;
    }
    Ok(())
}

/// Installs system packages and libtorch; returns the folder of libtorch's libraries.
fn set_up(root: &Path, steps: &mut Steps, needs_wheels: bool) -> Result<PathBuf, Failure> {
    let mut requirements = packages::FOR_COMPILING.to_vec();
    if needs_wheels || !libtorch::is_settled(root)? {
        requirements.extend(packages::FOR_WHEELS);
    }
    steps.run("system packages", || packages::provide(&requirements))?;
    let mut libraries = PathBuf::new();
    steps.run("libtorch", || {
        libraries = libtorch::provide(root)?;
        Ok(())
    })?;
    Ok(libraries)
}

/// Returns the folder where cargo puts examples: next to this program, which cargo has built and started.
fn built_examples() -> Result<PathBuf, Failure> {
    let program = env::current_exe().doing("the path of this program")?;
    Ok(program.with_file_name("examples"))
}

/// Creates a subcommand for another workspace of the repository, which does not use libtorch.
pub(crate) fn cargo(root: &Path, subcommand: &str) -> Command {
    Cargo { root, libraries: Path::new(""), mode: Mode::Developer }.bare(subcommand)
}

/// The way in which cargo is called.
#[derive(Clone, Copy)]
struct Cargo<'a> {
    root: &'a Path,
    libraries: &'a Path,
    mode: Mode,
}

impl Cargo<'_> {
    /// Creates a subcommand that compiles or runs something.
    fn command(&self, subcommand: &str) -> Command {
        let mut command = self.bare(subcommand);
        // Documentation tests get no link arguments from build.rs, so the rpath does not reach them.
        command.env("LD_LIBRARY_PATH", in_front(self.libraries, env::var_os("LD_LIBRARY_PATH")));
        if self.mode == Mode::Clean {
            command.arg("--locked").env("CARGO_INCREMENTAL", "0");
        }
        command
    }

    fn bare(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.arg(subcommand).current_dir(self.root);
        // Indexes of the shards that are read here stay here, too.
        command.env("FOREBAY_INDEX_DIR", self.root.join("target/index"));
        // What cargo told this program about its own package would be wrong for the programs below.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_of_this_package) {
                command.env_remove(name);
            }
        }
        command
    }
}

fn is_of_this_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_") || ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"].contains(&variable)
}

fn in_front(folder: &Path, rest: Option<OsString>) -> OsString {
    let rest = rest.unwrap_or_default();
    let rest = env::split_paths(&rest).filter(|path| !path.as_os_str().is_empty());
    let all = [folder.to_path_buf()].into_iter().filter(|path| !path.as_os_str().is_empty()).chain(rest);
    // Only a folder with a colon in its name cannot be said in such a list; then nothing is added to it.
    env::join_paths(all).unwrap_or_else(|_| env::var_os("LD_LIBRARY_PATH").unwrap_or_default())
}

/// Runs `cargo test`; the notes are the final lines of its test runners.
fn run_tests(command: &mut Command) -> (Vec<String>, Result<(), Failure>) {
    let (lines, result) = shell::run_keeping(command, |line| line.starts_with("test result:"));
    (closing(&lines), result)
}

/// Returns the final lines of the test runners that had a test, and their sum.
fn closing(lines: &[String]) -> Vec<String> {
    let count = |line: &str, what: &str| -> u64 {
        let words = line.split([';', '.']).map(str::trim);
        words.filter_map(|part| part.strip_suffix(what)).find_map(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    let sum = |what| lines.iter().map(|line| count(line, what)).sum::<u64>();
    let mut notes: Vec<String> = lines
        .iter()
        .filter(|line| ["passed", "failed", "ignored"].iter().any(|w| count(line, w) > 0))
        .cloned()
        .collect();
    notes.push(format!("in all: {} passed, {} failed, {} ignored", sum("passed"), sum("failed"), sum("ignored")));
    notes
}

/// An example that the checks run.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    name: String,
    arguments: Vec<String>,
}

/// Finds the examples with a line ``//! Checked with: `ARGUMENTS` `` at their top, in the order of their names.
fn examples(folder: &Path) -> Result<Vec<Example>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).doing(folder.display())? {
        let path = entry.doing(folder.display())?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).doing(path.display())?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.extend(checked_with(&text).map(|arguments| Example { name, arguments }));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn checked_with(source: &str) -> Option<Vec<String>> {
    let mut top = source.lines().take_while(|line| line.starts_with("//!"));
    let arguments = top.find_map(|line| line.strip_prefix("//! Checked with:"))?;
    Some(arguments.trim().trim_matches('`').split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_kept_and_added_up() {
        let lines = [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ]
        .map(str::to_owned);
        let notes = closing(&lines);
        assert_eq!(notes, [lines[0].as_str(), lines[2].as_str(), "in all: 15 passed, 2 failed, 1 ignored"]);
    }

    #[test]
    fn example_says_at_its_top_how_it_is_checked() {
        let words = |text: &str| checked_with(text).map(|words| words.join(" "));
        assert_eq!(
            words("//! Resumes.\n//!\n//! Checked with: `--epochs 1`\n\nfn main() {}"),
            Some("--epochs 1".into())
        );
        assert_eq!(words("//! Resumes.\n//! Checked with: ``\n"), Some(String::new()));
        assert_eq!(words("//! Needs a bucket.\nfn main() {}\n//! Checked with: `--epochs 1`\n"), None);
    }

    #[test]
    fn examples_are_found_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("two.rs", "//! Checked with: `--x`\n"), ("one.rs", "//! Checked with: ``\n"), ("no.rs", "")]
        {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let names: Vec<String> = examples(folder.path()).unwrap().into_iter().map(|example| example.name).collect();
        assert_eq!(names, ["one", "two"]);
    }

    #[test]
    fn libraries_go_in_front_of_the_search_path() {
        assert_eq!(in_front(Path::new("/lt/lib"), None), "/lt/lib");
        assert_eq!(in_front(Path::new("/lt/lib"), Some("/a:/b".into())), "/lt/lib:/a:/b");
        assert_eq!(in_front(Path::new(""), Some("/a".into())), "/a");
    }
}
