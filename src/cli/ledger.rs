//! `forebay ledger`: shows, adds up and compares saved ledgers.

use std::io::Write;

use serde::Serialize;

use super::terminal::{Mark, Terminal};
use super::text::count;
use super::{Failure, Verdict, read_or_not};
use crate::engine::Scheduler;
use crate::engine::io::Io;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Difference, Ledger, Property, Sums};
use crate::store::StoreOptions;

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay ledger rank0.json                       # what was delivered, epoch by epoch
  forebay ledger before.json after.json           # is it the same?
  forebay ledger --sum rank*.json --json > a.json # all ranks, or all parts of a run that was continued, as one
  forebay ledger a.json b.json --epoch 3

Exit codes: 0 the same, 1 they differ, 2 usage (or ledgers that do not add up), 3 a ledger could not be read.";

/// Arguments of `forebay ledger`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct LedgerArgs {
    /// Ledgers as JSON: paths or URLs. Each is compared with the first.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Add the ledgers up instead of comparing them; with --json this prints a ledger.
    #[arg(long)]
    sum: bool,
    /// Only look at this epoch.
    #[arg(long, value_name = "E")]
    epoch: Option<u64>,
}

/// The JSON output of a comparison: a contract.
#[derive(Serialize)]
struct Compared<'a> {
    /// Whether all ledgers agree with the first.
    same: bool,
    first: &'a str,
    others: Vec<Other<'a>>,
}

#[derive(Serialize)]
struct Other<'a> {
    url: &'a str,
    same: bool,
    /// Settings in which the runs differ; this alone does not count as a difference.
    settings: Vec<String>,
    differences: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    epoch: u64,
    property: Property,
    message: String,
    first: Sums,
    other: Sums,
}

impl From<Difference> for Found {
    fn from(difference: Difference) -> Self {
        let message = difference.to_string();
        let Difference { epoch, property, sums: [first, other] } = difference;
        Self { epoch, property, message, first, other }
    }
}

pub(super) fn run(args: &LedgerArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let mut ledgers = read(&args.urls)?;
    if let Some(epoch) = args.epoch {
        ledgers.iter_mut().for_each(|ledger| ledger.epochs.retain(|&of, _| of == epoch));
    }
    if args.sum || ledgers.len() == 1 {
        show(&Ledger::sum(&ledgers)?, terminal)?;
        return Ok(Verdict::Good);
    }
    let first = &ledgers[0];
    let others = args.urls.iter().zip(&ledgers).skip(1).map(|(url, ledger)| {
        let differences: Vec<Found> = first.compare(ledger).into_iter().map(Found::from).collect();
        Other { url, same: differences.is_empty(), settings: first.settings_unlike(ledger), differences }
    });
    let others: Vec<Other> = others.collect();
    let compared = Compared { same: others.iter().all(|other| other.same), first: &args.urls[0], others };
    read_or_not(if terminal.is_json() { terminal.print_json(&compared) } else { print(&compared, first, terminal) })?;
    Ok(if compared.same { Verdict::Good } else { Verdict::Bad })
}

fn read(urls: &[String]) -> Result<Vec<Ledger>> {
    let io = Io::new(Scheduler::threads(1))?;
    let store = StoreOptions::new().build();
    let ledgers = urls.iter().map(|url| {
        let (store, of) = (store.clone(), url.clone());
        let bytes = io.wait(async move {
            let object = store.head(&of).await?;
            store.read(&object, 0..object.size).await
        })?;
        let ledger: Ledger = serde_json::from_slice(&bytes).map_err(|e| {
            let error = Error::new(ErrorKind::NotFound, "no ledger is in this file").because(e).url(url.as_str());
            error.advice("save loader.ledger() with serde_json")
        })?;
        ledger.check_version().map_err(|e| e.url(url.as_str()))?;
        Ok(ledger)
    });
    ledgers.collect()
}

fn show(ledger: &Ledger, terminal: &Terminal) -> Result<(), Failure> {
    if terminal.is_json() {
        return terminal.print_json(ledger);
    }
    let mut out = terminal.out();
    let Ledger { fingerprint, seed, streams, .. } = ledger;
    writeln!(out, "data set and graph {fingerprint:016x}, seed {seed}, {streams} streams")?;
    let hex = |sum: u128| format!("{sum:032x}");
    let rows = ledger.epochs.iter().map(|(epoch, sums)| {
        let counts = [epoch.to_string(), count(sums.samples), count(sums.left_out)];
        counts.into_iter().chain([sums.ids, sums.order, sums.payloads].map(hex)).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    terminal.table(&["epoch", "samples", "left out", "ids", "order", "payloads"], &rows, &mut out)?;
    out.flush()?;
    Ok(())
}

fn print(compared: &Compared<'_>, first: &Ledger, terminal: &Terminal) -> Result<(), Failure> {
    let mut out = terminal.out();
    let samples: u64 = first.epochs.values().map(|sums| sums.samples).sum();
    for other in &compared.others {
        let verdict = match other.same {
            true => {
                let epochs = match first.epochs.len() {
                    1 => "1 epoch".to_owned(),
                    epochs => format!("{epochs} epochs"),
                };
                let text = format!("the same {} samples in {epochs}, order and bytes", count(samples));
                terminal.mark(Mark::Good, text)
            }
            false => terminal.mark(Mark::Bad, "not the same"),
        };
        writeln!(out, "{}, {}: {verdict}", compared.first, terminal.mark(Mark::Bold, other.url))?;
        for found in &other.differences {
            writeln!(out, "  {}", found.message)?;
        }
        if !other.settings.is_empty() {
            writeln!(out, "  {}", terminal.mark(Mark::Dim, format!("set up with: {}", other.settings.join("; "))))?;
        }
    }
    out.flush()?;
    Ok(())
}
