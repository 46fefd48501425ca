//! Running other programs, with errors that carry their exit code.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Why a task ended, and the code with which the process exits.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { message, code: 1 }
    }
}

/// Adds to an I/O error a description of what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::from(format!("{what}: {error}")))
    }
}

/// Runs a program with our own input and output.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().doing(format_args!("cannot start `{}`", line(command)))?;
    ended(command, status)
}

/// Runs a program, passes on its standard output line by line, and returns the lines that `keep` selects.
pub(crate) fn run_keeping(command: &mut Command, keep: impl Fn(&str) -> bool) -> (Vec<String>, Result<(), Failure>) {
    let mut kept = Vec::new();
    let result = pass_on(command, &mut |line| {
        if keep(line) {
            kept.push(line.to_owned());
        }
    });
    (kept, result)
}

fn pass_on(command: &mut Command, seen: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let mut child = command.stdout(Stdio::piped()).spawn().doing(format_args!("cannot start `{}`", line(command)))?;
    let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut bytes = Vec::new();
    // A program may print anything, so lines are bytes here: read_line() would stop at the first that is not UTF-8.
    while output.read_until(b'\n', &mut bytes).doing("reading a program's output")? > 0 {
        io::stdout().write_all(&bytes).doing("writing to standard output")?;
        seen(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    let status = child.wait().doing(format_args!("waiting for `{}`", line(command)))?;
    ended(command, status)
}

/// Returns the standard output of a program that succeeds; `None` if it does not start or fails.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ended(command: &Command, status: std::process::ExitStatus) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(Failure { message: format!("`{}`: {status}", line(command)), code })
}

/// Returns a command as one would type it, without its environment.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn exit_code_of_a_program_becomes_ours() {
        let failure = run(&mut sh("exit 7")).unwrap_err();
        assert_eq!(failure.code, 7);
        assert!(failure.message.contains("exit 7"), "{failure}");
    }

    #[test]
    fn program_ended_by_a_signal_is_a_failure() {
        assert_eq!(run(&mut sh("kill -9 $$")).unwrap_err().code, 1);
    }

    #[test]
    fn missing_program_is_named() {
        assert!(run(&mut Command::new("no-such-program-anywhere")).unwrap_err().message.contains("no-such-program"));
    }

    #[test]
    fn lines_are_kept_when_the_program_fails() {
        let (kept, result) =
            run_keeping(&mut sh(r"printf 'a\nkeep 1\n\377\nkeep 2'; exit 3"), |l| l.starts_with("keep"));
        assert_eq!(kept, ["keep 1", "keep 2"]);
        assert_eq!(result.unwrap_err().code, 3);
    }
}
