//! How much padding do packing and bucketing leave, by algorithm and window? Prints the tables of `docs/tokens.md`; nothing is timed.
//!
//! Data: 60,000 documents in memory with log-normal lengths, like those of web pages (median 420 tokens, sigma 1.2, 8 to 100,000: a mean of some
//! 860), shuffled as a whole, in 8 streams unless the table says otherwise. Each case runs for one epoch.
//!
//! `cargo bench --bench padding --no-default-features`

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, ListArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use forebay::random::Key;
use forebay::{Batch, Buckets, Dataset, Pack, Result, Shuffle};
use rand::Rng;

const DOCUMENTS: usize = 60_000;
const ROW: usize = 2048;
const WINDOWS: [u64; 6] = [16, 64, 256, 1024, 4096, 7500];

/// Creates documents with lengths from the distribution, none longer than `longest`.
fn documents(longest: f64) -> Result<Dataset> {
    let mut rng = Key::new(0).with("padding").rng();
    let mut length = || {
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        (420.0 * (1.2 * normal).exp()).clamp(8.0, longest) as usize
    };
    let mut offsets = vec![0];
    for _ in 0..DOCUMENTS {
        offsets.push(offsets[offsets.len() - 1] + length() as i32);
    }
    let tokens = Int32Array::from(vec![1; offsets[DOCUMENTS] as usize]);
    let field = Arc::new(Field::new_list_field(DataType::Int32, false));
    let lists = ListArray::new(field, OffsetBuffer::new(ScalarBuffer::from(offsets)), Arc::new(tokens), None);
    let all = Dataset::from_columns([("tokens", Arc::new(lists) as ArrayRef)])?;
    Ok(all.shuffle(Shuffle::global()))
}

fn row(name: &str, cells: impl IntoIterator<Item = String>) {
    println!("| {name} | {} |", cells.into_iter().collect::<Vec<_>>().join(" | "));
}

fn head(name: &str, columns: impl IntoIterator<Item = String>) {
    let columns: Vec<String> = columns.into_iter().collect();
    let rule = vec!["--:"; columns.len()].join("|");
    row(name, columns);
    println!("|---|{rule}|");
}

/// Returns the share of padding in packed rows, and the segments per document.
fn packed(all: &Dataset, pack: Pack) -> Result<(f64, f64)> {
    let mut loader = all.pack(pack).batch(32).loader().streams(8).build()?;
    let (mut tokens, mut cells, mut segments) = (0, 0, 0);
    for batch in loader.epoch(0) {
        let batch = batch?;
        let ids = batch.values::<i64>("segment_ids")?;
        cells += ids.len();
        tokens += ids.iter().filter(|&&id| id > 0).count();
        segments += ids.chunks(ROW).map(|row| row.iter().max().copied().unwrap_or(0)).sum::<i64>();
    }
    Ok(((cells - tokens) as f64 / cells as f64, segments as f64 / DOCUMENTS as f64))
}

fn packing() -> Result<()> {
    let all = documents(100_000.0)?;
    println!("\nPadding share of rows of {ROW} tokens, by window (documents of a stream):\n");
    let windows = || WINDOWS.iter().map(ToString::to_string);
    head("", windows().chain(["segments a document at 256".into()]));
    type Make = fn() -> Pack;
    let algorithms: [(&str, Make); 7] = [
        ("`first_fit`", || Pack::first_fit(ROW)),
        ("`best_fit`", || Pack::best_fit(ROW)),
        ("`best_fit`, 32 open", || Pack::best_fit(ROW).open_bins(32)),
        ("`best_fit`, 4 open", || Pack::best_fit(ROW).open_bins(4)),
        ("`first_fit`, longest first", || Pack::first_fit(ROW).longest_first()),
        ("`best_fit`, longest first", || Pack::best_fit(ROW).longest_first()),
        ("`concat_then_split`", || Pack::concat_then_split(ROW)),
    ];
    for (name, make) in algorithms {
        let mut cells = Vec::new();
        let mut at_default = 0.0;
        for window in WINDOWS {
            let (padding, segments) = packed(&all, make().window(window))?;
            if window == 256 {
                at_default = segments;
            }
            cells.push(format!("{:.2} %", padding * 100.0));
        }
        cells.push(format!("{at_default:.3}"));
        row(name, cells);
    }
    Ok(())
}

/// Statistics of the batches of an epoch.
#[derive(Default)]
struct Seen {
    tokens: usize,
    cells: Vec<usize>,
    samples: usize,
}

impl Seen {
    fn take(&mut self, batch: &Batch) -> Result<()> {
        let lengths = batch.lengths("tokens")?;
        self.tokens += lengths.iter().sum::<i64>() as usize;
        self.cells.push(lengths.len() * lengths.iter().max().copied().unwrap_or(0) as usize);
        self.samples += lengths.len();
        Ok(())
    }

    fn of(graph: &Dataset, streams: usize) -> Result<Self> {
        let mut seen = Self::default();
        let mut loader = graph.loader().streams(streams).build()?;
        loader.epoch(0).try_for_each(|batch| seen.take(&batch?))?;
        Ok(seen)
    }

    fn padding(&self) -> f64 {
        let cells: usize = self.cells.iter().sum();
        (cells - self.tokens) as f64 / cells as f64
    }
}

fn bucketing() -> Result<()> {
    let all = documents(ROW as f64)?;
    println!("\nPadding share of batches, each padded to its longest, of documents cut to {ROW} tokens, by window:\n");
    head("", ["none".to_owned()].into_iter().chain(WINDOWS.iter().map(ToString::to_string)));
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let bounds = || (1..16).map(|i| i * 128);
    let plain = Seen::of(&all.batch(32), 8)?;
    let mut cells = vec![percent(plain.padding())];
    for window in WINDOWS {
        let graph = all.bucket_by_length("tokens", Buckets::boundaries(bounds()).window(window)).batch(32);
        cells.push(percent(Seen::of(&graph, 8)?.padding()));
    }
    row("`boundaries` every 128, batches of 32, 8 streams", cells);
    let budget = 32_768;
    for streams in [1, 8] {
        let mut cells = vec![String::new()];
        let mut note = String::new();
        for window in WINDOWS {
            let graph = all.bucket_by_length("tokens", Buckets::token_budget(budget).window(window)).batch(512);
            let seen = Seen::of(&graph, streams)?;
            cells.push(percent(seen.padding()));
            if window == 1024 {
                let over = seen.cells.iter().filter(|&&cells| cells as u64 > budget).count();
                let most = seen.cells.iter().max().copied().unwrap_or(0);
                note = format!(
                    "{streams} streams on one rank, window 1024: {:.1} samples a batch, {:.1} % of batches above the budget, the largest {most}",
                    seen.samples as f64 / seen.cells.len() as f64,
                    over as f64 / seen.cells.len() as f64 * 100.0
                );
            }
        }
        row(&format!("`token_budget({budget})`, {streams} streams"), cells);
        eprintln!("{note}");
    }
    Ok(())
}

fn main() -> Result<()> {
    packing()?;
    bucketing()
}
