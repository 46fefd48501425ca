//! Fuzzing: the targets of `fuzz/` on libFuzzer, with a stable compiler.
//!
//! What `cargo fuzz` offers beyond this, the address sanitizer, needs a nightly compiler.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::checks;
use crate::shell::{self, Doing, Failure};
use crate::steps::Steps;

/// The targets, each with the maximum length of its inputs in bytes.
const TARGETS: [(&str, u32); 11] = [
    ("framing", 4096),
    ("example", 4096),
    ("sequence_example", 4096),
    ("index", 4096),
    ("image", 65_536),
    ("parquet", 4096),
    ("prune", 512),
    ("ipc", 4096),
    ("text", 1024),
    ("tar", 16_384),
    ("window", 16),
];

/// Counts edges, and shows libFuzzer the operands of comparisons.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What to fuzz.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// One target; if `None`, all of them, one after the other.
    target: Option<&'static str>,
    seconds: u32,
    /// Only runs the corpus, with an ordinary build, and does not fuzz.
    check: bool,
}

/// Reads `[TARGET] [--seconds N]` or `--check`.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Plan, String> {
    let mut plan = Plan { target: None, seconds: 60, check: false };
    while let Some(argument) = arguments.next() {
        let known = TARGETS.iter().find(|(target, _)| *target == argument);
        match (argument.as_str(), known) {
            (_, Some((target, _))) if plan.target.is_none() => plan.target = Some(target),
            ("--check", _) => plan.check = true,
            ("--seconds", _) => {
                let seconds = arguments.next().and_then(|seconds| seconds.parse().ok());
                plan.seconds = seconds.ok_or("`--seconds` wants a number")?;
            }
            _ => {
                let targets = TARGETS.map(|(target, _)| target).join(" ");
                return Err(format!("`cargo xtask fuzz` takes no `{argument}`; its targets are {targets}"));
            }
        }
    }
    Ok(plan)
}

/// Runs the corpus, or fuzzes. Findings go to `target/fuzz/artifacts`, new inputs to `target/fuzz/corpus`.
pub(crate) fn run(root: &Path, steps: &mut Steps, plan: &Plan) -> Result<(), Failure> {
    let work = root.join("target/fuzz");
    let cargo = |subcommand: &str| {
        let mut command = checks::cargo(root, subcommand);
        command.args(["--manifest-path", "fuzz/Cargo.toml", "--locked", "--target-dir"]).arg(&work);
        command
    };
    if plan.check {
        return steps.run("corpus", || shell::run(cargo("test").arg("--tests")));
    }
    let version = shell::output_of(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Failure::from("`rustc -vV` names no host".to_owned()))?;
    steps.run("compile", || {
        // With a target named, build scripts and macros are left as they are.
        shell::run(cargo("build").args(["--release", "--bins", "--target", host]).env("RUSTFLAGS", RUSTFLAGS))
    })?;
    for (target, max_bytes) in TARGETS.into_iter().filter(|(name, _)| plan.target.is_none_or(|only| only == *name)) {
        let [corpus, artifacts] = ["corpus", "artifacts"].map(|folder| work.join(folder).join(target));
        for folder in [&corpus, &artifacts] {
            fs::create_dir_all(folder).doing(folder.display())?;
        }
        let mut fuzz = Command::new(work.join(host).join("release").join(target));
        fuzz.arg(&corpus).arg(root.join("fuzz/corpus").join(target));
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        fuzz.args([format!("-max_total_time={}", plan.seconds), format!("-max_len={max_bytes}")]);
        fuzz.args(["-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"]);
        steps.run(target, || shell::run(&mut fuzz))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Plan, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn targets_and_times_are_recognised() {
        assert_eq!(parsed(""), Ok(Plan { target: None, seconds: 60, check: false }));
        assert_eq!(parsed("--seconds 5 index"), Ok(Plan { target: Some("index"), seconds: 5, check: false }));
        assert!(parsed("--check").is_ok_and(|plan| plan.check));
        assert!(parsed("indexes").unwrap_err().contains("its targets are framing"));
        assert!(parsed("--seconds soon").unwrap_err().contains("a number"));
    }

    #[test]
    fn each_target_has_a_file_and_a_corpus() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        for (target, _) in TARGETS {
            assert!(fuzz.join("fuzz_targets").join(target).with_extension("rs").is_file(), "{target}");
            assert!(fuzz.join("corpus").join(target).is_dir(), "{target}");
        }
        assert_eq!(fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count(), TARGETS.len());
    }
}
