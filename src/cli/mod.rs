//! The command `forebay`: one file per subcommand.
//!
//! Results go to standard output, as text or, with `--json`, as JSON whose keys are a contract. Progress and errors go to standard error. Exit codes:
//! 0 good, 1 the data is bad, 2 usage, 3 it could not be read.

mod advice;
mod bench;
mod blocks;
mod convert;
mod count;
mod explain;
mod format;
mod head;
mod index;
mod inspect;
mod ledger;
mod look;
mod opened;
mod replay;
mod save;
mod scan;
mod shards;
mod terminal;
mod text;
mod value;
mod verify;
mod walk;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::{Error, ErrorKind};
use terminal::{Color, Terminal};

/// Inspects, checks and creates shards of training data.
#[derive(Parser)]
#[command(name = "forebay", version, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
    /// Show no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 good, 1 the data is bad, 2 usage, 3 it could not be read or written.";

#[derive(Subcommand)]
enum Command {
    /// Describe what shards hold: format, records, bytes, columns.
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Show some records as they are.
    #[command(after_help = head::EXAMPLES)]
    Head(head::HeadArgs),
    /// Verify every checksum and every record or block, and on request images.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Write or check the indexes of shards.
    #[command(after_help = index::EXAMPLES)]
    Index(index::IndexingArgs),
    /// Compare or add up what runs have delivered.
    #[command(after_help = ledger::EXAMPLES)]
    Ledger(ledger::LedgerArgs),
    /// Print the graph of a data set without reading any of it.
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::ExplainArgs),
    /// Measure a whole loader, compared with what the machine can do at all.
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// List which samples a step of a run held, and where they are stored.
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Create shards from a folder of images, or from shards of another format, size, compression or order.
    Convert(Box<convert::ConvertArgs>),
    /// Print a shell completion script.
    #[command(after_help = "Example: forebay completions bash > ~/.local/share/bash-completion/completions/forebay")]
    Completions {
        /// The shell for which to print it.
        shell: clap_complete::Shell,
    },
}

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// The data is bad; the errors have been printed.
    Bad,
}

/// Why a command ended early.
#[derive(Debug)]
enum Failure {
    Error(Error),
    /// The reader of standard output has closed it (`forebay head … | head -1`).
    Closed,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Converts an error of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Closed;
        }
        Self::Error(Error::new(ErrorKind::Transfer, "cannot write to standard output").because(error))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        io::Error::from(error).into()
    }
}

/// Ignores that the reader of standard output has gone, where the exit code still has to report what was found.
fn read_or_not(printed: Result<(), Failure>) -> Result<(), Failure> {
    if matches!(printed, Err(Failure::Closed)) { Ok(()) } else { printed }
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are errors to clap; it knows where each goes, and that usage exits with 2.
        Err(error) => {
            _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let columns = match &cli.command {
        Command::Head(_) => Some("--column"),
        Command::Convert(_) | Command::Explain(_) => Some("--columns"),
        Command::Bench(_) => Some("--image and --label"),
        _ => None,
    };
    let terminal = Terminal::new(cli.json, cli.color, cli.quiet).picking_columns_by(columns);
    match run(cli.command, &terminal) {
        Ok(Verdict::Good) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(Failure::Error(error)) => {
            terminal.error(&error);
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

fn run(command: Command, terminal: &Terminal) -> Result<Verdict, Failure> {
    match command {
        Command::Inspect(args) => inspect::run(&args, terminal),
        Command::Head(args) => head::run(&args, terminal),
        Command::Verify(args) => verify::run(&args, terminal),
        Command::Index(args) => index::run(&args, terminal),
        Command::Ledger(args) => ledger::run(&args, terminal),
        Command::Explain(args) => explain::run(&args, terminal),
        Command::Bench(args) => bench::run(&args, terminal),
        Command::Replay(args) => replay::run(&args, terminal),
        Command::Convert(args) => convert::run(&args, terminal),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut script);
            io::Write::write_all(&mut terminal.out(), &script)?;
            Ok(Verdict::Good)
        }
    }
}

fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Corrupt | ErrorKind::Schema | ErrorKind::Transform | ErrorKind::Panicked => 1,
        ErrorKind::Config | ErrorKind::Memory | ErrorKind::Device => 2,
        ErrorKind::NotFound | ErrorKind::Access | ErrorKind::Transfer => 3,
    }
}
