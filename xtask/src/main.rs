//! Set-up and checks of the repository: `cargo xtask demo`, `cargo xtask test`.
//!
//! Everything is written below `target/`, apart from system packages. Python's `pip` does the downloads, so that its configuration (indexes, proxies,
//! offline folders) applies here too.

mod checks;
mod emulators;
mod fuzz;
mod libtorch;
mod packages;
mod python;
mod shell;
mod steps;
mod wheels;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shell::Failure;
use steps::Steps;

const HELP: &str = "\
Set-up and checks of the forebay repository.

    cargo xtask demo [ARGS]   set up, then train on the images of examples/data; ARGS go to the example
    cargo xtask test          set up, then format, lints, tests, documentation and examples
    cargo xtask ci            the same for a clean machine: nothing incremental, Cargo.lock as it is
    cargo xtask libtorch      assemble target/libtorch (2.11.0, CPU) from three wheels of PyPI
    cargo xtask emulators     install the object-store emulators that the tests use
    cargo xtask fuzz [TARGET] [--seconds N]
                              fuzz one parser or each, 60 seconds unless told; --check runs the stored inputs only
    cargo xtask help          this text

A libtorch of yours is taken instead: set LIBTORCH to its folder, or LIBTORCH_USE_PYTORCH=1 for the PyTorch of
python3. Downloads go through `python3 -m pip` with your pip configuration, and are kept in target/downloads.
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Demo(Vec<String>),
    Test,
    Ci,
    Libtorch,
    Emulators,
    Fuzz(fuzz::Plan),
    Help,
}

fn main() -> ExitCode {
    let task = match parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(message) => {
            eprintln!("{message}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    if task == Task::Help {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let mut steps = Steps::new();
    let result = run(task, &repository(), &mut steps);
    steps.print_summary();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\n{failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Task, String> {
    let Some(name) = arguments.next() else { return Ok(Task::Help) };
    let task = match name.as_str() {
        "demo" => {
            let mut rest: Vec<String> = arguments.collect();
            if rest.first().is_some_and(|first| first == "--") {
                rest.remove(0);
            }
            return Ok(Task::Demo(rest));
        }
        "test" => Task::Test,
        "ci" => Task::Ci,
        "libtorch" => Task::Libtorch,
        "emulators" => Task::Emulators,
        "fuzz" => {
            let rest: Vec<String> = arguments.collect();
            let help = rest.iter().any(|word| word == "--help" || word == "-h");
            return if help { Ok(Task::Help) } else { fuzz::parse(rest.into_iter()).map(Task::Fuzz) };
        }
        "help" | "--help" | "-h" => Task::Help,
        other => return Err(format!("there is no `cargo xtask {other}`")),
    };
    match arguments.next() {
        None => Ok(task),
        Some(help) if help == "--help" || help == "-h" => Ok(Task::Help),
        Some(extra) => Err(format!("`cargo xtask {name}` takes no `{extra}`")),
    }
}

fn run(task: Task, root: &Path, steps: &mut Steps) -> Result<(), Failure> {
    match task {
        Task::Demo(arguments) => checks::demo(root, steps, &arguments),
        Task::Test => checks::test(root, steps, checks::Mode::Developer),
        Task::Ci => checks::test(root, steps, checks::Mode::Clean),
        Task::Libtorch => {
            if !libtorch::is_settled(root)? {
                steps.run("system packages", || packages::provide(&packages::FOR_WHEELS))?;
            }
            steps.run("libtorch", || libtorch::provide(root).map(drop))
        }
        Task::Emulators => {
            steps.run("system packages", || packages::provide(&packages::FOR_WHEELS))?;
            steps.run("emulators", || emulators::provide(root))
        }
        Task::Fuzz(plan) => fuzz::run(root, steps, &plan),
        Task::Help => Ok(()),
    }
}

/// Returns the repository's root. Cargo passes it to the running program; the compile-time path is for a program run by hand.
fn repository() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("xtask/ lies in the repository").to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Task, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn each_command_is_recognised() {
        assert_eq!(parsed("test"), Ok(Task::Test));
        assert_eq!(parsed("ci"), Ok(Task::Ci));
        assert_eq!(parsed("libtorch"), Ok(Task::Libtorch));
        assert_eq!(parsed("emulators"), Ok(Task::Emulators));
        for help in ["", "help", "-h", "--help", "test --help"] {
            assert_eq!(parsed(help), Ok(Task::Help), "{help}");
        }
    }

    #[test]
    fn arguments_of_demo_reach_the_example() {
        let expected = Task::Demo(vec!["--data".into(), "gs://b/*.tfrecord".into(), "--help".into()]);
        assert_eq!(parsed("demo --data gs://b/*.tfrecord --help").as_ref(), Ok(&expected));
        assert_eq!(parsed("demo -- --data gs://b/*.tfrecord --help").as_ref(), Ok(&expected));
    }

    #[test]
    fn unknown_words_are_refused_by_name() {
        assert!(parsed("tset").unwrap_err().contains("tset"));
        assert!(parsed("fuzz everything").unwrap_err().contains("everything"));
        assert!(parsed("test --fast").unwrap_err().contains("--fast"));
    }
}
