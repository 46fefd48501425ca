//! Output: text or JSON goes to standard output, errors and progress go to standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, StdoutLock, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::advice::in_flags;
use crate::error::Error;

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// How text is highlighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
}

pub(super) struct Terminal {
    json: bool,
    color: bool,
    error_color: bool,
    progress: bool,
    /// The command's flag that selects columns.
    columns: Option<&'static str>,
}

/// What a progress bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    Things,
}

impl Terminal {
    pub(super) fn new(json: bool, color: Color, quiet: bool) -> Self {
        let wanted = |is_terminal: bool| match color {
            Color::Auto => is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
            Color::Always => true,
            Color::Never => false,
        };
        Self {
            json,
            color: !json && wanted(io::stdout().is_terminal()),
            error_color: wanted(io::stderr().is_terminal()),
            progress: !quiet && io::stderr().is_terminal(),
            columns: None,
        }
    }

    /// Sets the flag that errors name when columns should be selected.
    pub(super) fn picking_columns_by(self, columns: Option<&'static str>) -> Self {
        Self { columns, ..self }
    }

    /// Returns whether the result should be JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns the writer for results.
    pub(super) fn out(&self) -> io::BufWriter<StdoutLock<'static>> {
        io::BufWriter::new(io::stdout().lock())
    }

    /// Prints one JSON object on a line.
    pub(super) fn print_json(&self, value: &impl Serialize) -> Result<(), super::Failure> {
        let mut out = self.out();
        serde_json::to_writer(&mut out, value)?;
        writeln!(out)?;
        out.flush()?;
        Ok(())
    }

    /// Returns text with its highlighting, if colours are on.
    pub(super) fn mark(&self, mark: Mark, text: impl std::fmt::Display) -> String {
        if self.color { paint(mark, text) } else { text.to_string() }
    }

    /// Writes columns under their headings, with numbers aligned right.
    pub(super) fn table(&self, head: &[&str], rows: &[Vec<String>], out: &mut impl Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(head[column].chars().count())
        };
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let right: Vec<bool> = (0..head.len()).map(|c| rows.iter().all(|row| is_number(&row[c]))).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((cell, &width), &right) in cells.zip(&widths).zip(&right) {
                let gap = if line.is_empty() { "" } else { "  " };
                _ = if right { write!(line, "{gap}{cell:>width$}") } else { write!(line, "{gap}{cell:width$}") };
            }
            line.truncate(line.trim_end().len());
            line
        };
        writeln!(out, "{}", self.mark(Mark::Bold, line(&mut head.iter().copied())))?;
        rows.iter().try_for_each(|row| writeln!(out, "{}", line(&mut row.iter().map(String::as_str))))
    }

    /// Creates a progress bar on standard error; a hidden one if progress is not shown. `total` is 0 if it is not known.
    pub(super) fn progress(&self, what: &str, total: u64, unit: Unit) -> ProgressBar {
        let target = if self.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let counts = match unit {
            Unit::Bytes => "{bytes} of {total_bytes}, {bytes_per_sec}",
            Unit::Things => "{human_pos} of {human_len}, {per_sec}",
        };
        let style = format!("{{prefix}} [{{wide_bar}}] {counts}, {{eta}} left {{msg}}");
        let style = ProgressStyle::with_template(&style).expect("a template of ours").progress_chars("=> ");
        ProgressBar::with_draw_target(Some(total), target).with_style(style).with_prefix(what.to_owned())
    }

    /// Prints an error to standard error: text, or one JSON object.
    pub(super) fn error(&self, error: &Error) {
        let text = in_flags(&error.to_string(), self.columns);
        if self.json {
            let place = error.place();
            let object = serde_json::json!({"error": {
                "kind": format!("{:?}", error.kind()), "message": text, "url": place.url.as_deref(),
                "record": place.record, "offset": place.byte_offset, "column": place.column.as_deref(),
            }});
            // Where nobody reads errors, the exit code is left to say so.
            _ = writeln!(io::stderr(), "{object}");
            return;
        }
        let label = if self.error_color { paint(Mark::Bad, "error:") } else { "error:".into() };
        _ = writeln!(io::stderr(), "{label} {text}");
    }

    /// Prints a remark to standard error, even with JSON output: then as one object per line.
    pub(super) fn remark(&self, text: impl std::fmt::Display) {
        match self.json {
            true => _ = writeln!(io::stderr(), "{}", serde_json::json!({ "note": text.to_string() })),
            false => self.note(text),
        }
    }

    /// Prints a remark to standard error, unless the JSON output contains it too.
    pub(super) fn note(&self, text: impl std::fmt::Display) {
        if !self.json {
            let text = in_flags(&text.to_string(), self.columns);
            let label = if self.error_color { paint(Mark::Bold, "note:") } else { "note:".into() };
            _ = writeln!(io::stderr(), "{label} {text}");
        }
    }
}

fn paint(mark: Mark, text: impl std::fmt::Display) -> String {
    let code = match mark {
        Mark::Plain => return text.to_string(),
        Mark::Bold => "1",
        Mark::Dim => "2",
        Mark::Good => "32",
        Mark::Bad => "1;31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
