//! Headings, times and the summary at the end.

use std::fmt;
use std::time::{Duration, Instant};

use crate::shell::Failure;

/// The steps of one run, in order.
pub(crate) struct Steps {
    done: Vec<Step>,
    begun: Instant,
}

struct Step {
    name: String,
    took: Duration,
    ok: bool,
    notes: Vec<String>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { done: Vec::new(), begun: Instant::now() }
    }

    /// Runs one step; prints a heading before and the elapsed time after it. A failure is returned with the step's name.
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        self.run_with_notes(name, || (Vec::new(), work()))
    }

    /// Like [`Steps::run`]; the notes are printed again below the step's line in the summary.
    pub(crate) fn run_with_notes(
        &mut self,
        name: &str,
        work: impl FnOnce() -> (Vec<String>, Result<(), Failure>),
    ) -> Result<(), Failure> {
        eprintln!("\n==> {name}");
        let begun = Instant::now();
        let (notes, result) = work();
        let took = begun.elapsed();
        let ok = result.is_ok();
        eprintln!("==> {name}: {} after {}", if ok { "done" } else { "FAILED" }, Seconds(took));
        self.done.push(Step { name: name.to_owned(), took, ok, notes });
        result.map_err(|failure| Failure {
            message: format!("step `{name}` failed (exit code {}): {failure}", failure.code),
            ..failure
        })
    }

    pub(crate) fn print_summary(&self) {
        // One step has said all of this itself.
        if self.done.len() > 1 {
            eprint!("\n{self}");
        }
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.done.iter().map(|step| step.name.len()).max().unwrap_or(0);
        for step in &self.done {
            let verdict = if step.ok { "ok" } else { "FAILED" };
            writeln!(f, "{:width$}  {:>9}  {verdict}", step.name, Seconds(step.took).to_string())?;
            for note in &step.notes {
                writeln!(f, "    {note}")?;
            }
        }
        let verdict = if self.done.iter().all(|step| step.ok) { "ok" } else { "FAILED" };
        writeln!(f, "{:width$}  {:>9}  {verdict}", "in all", Seconds(self.begun.elapsed()).to_string())
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 100.0 {
            write!(f, "{seconds:.1} s")
        } else {
            write!(f, "{} min {:02} s", seconds as u64 / 60, seconds as u64 % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_step_is_named_with_its_code() {
        let mut steps = Steps::new();
        steps.run("first", || Ok(())).unwrap();
        let result = steps.run_with_notes("second", || {
            (vec!["test result: FAILED".into()], Err(Failure { message: "`cargo test`: broken".into(), code: 101 }))
        });
        let failure = result.unwrap_err();
        assert_eq!(failure.code, 101);
        assert!(failure.message.starts_with("step `second` failed (exit code 101): `cargo test`"), "{failure}");
        let summary = steps.to_string();
        let lines: Vec<&str> = summary.lines().collect();
        assert!(lines[0].starts_with("first ") && lines[0].ends_with(" ok"));
        assert!(lines[1].starts_with("second ") && lines[1].ends_with(" FAILED"));
        assert_eq!(lines[2].trim(), "test result: FAILED");
        assert!(lines[3].starts_with("in all") && lines[3].ends_with(" FAILED"));
    }

    #[test]
    fn long_times_are_minutes() {
        assert_eq!(Seconds(Duration::from_millis(1_234)).to_string(), "1.2 s");
        assert_eq!(Seconds(Duration::from_secs(605)).to_string(), "10 min 05 s");
    }
}
