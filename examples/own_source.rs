//! Implements a custom source: it reads a CSV file in blocks of lines, and feeds a loop that fits a straight line.
//!
//! The example makes its data, prints the graph, the fit after each epoch and the loader's report, and fails if the fit is wrong. It needs no libtorch: batches
//! are read as plain slices.
//!
//! Checked with: ``

use std::error::Error as StdError;
use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Float32Array, RecordBatch};
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::source::{Decoded, Source};
use forebay::{Column, Dataset, Error, ErrorKind, Result, Shuffle, float32};
use futures::future::BoxFuture;

/// Lines in a block. This gives reads of some 20 KB; a real file would use more lines.
const BLOCK_ROWS: u64 = 1000;

/// A CSV file with a heading, all numbers `f32`.
///
/// The catalog is the whole contract with the plan: which blocks there are, and how many rows each has. Opening the source takes one pass over the file, which
/// also finds where the blocks lie.
struct Csv {
    path: PathBuf,
    columns: Vec<Column>,
    catalog: Catalog,
    /// Where block i begins; has one more entry than there are blocks.
    offsets: Vec<u64>,
}

impl Csv {
    fn open(path: &Path) -> Result<Self> {
        let failed = |error| failed(path, error);
        let mut file = BufReader::new(fs::File::open(path).map_err(failed)?);
        let mut line = Vec::new();
        let mut offset = file.read_until(b'\n', &mut line).map_err(failed)? as u64;
        let columns = String::from_utf8_lossy(&line).trim().split(',').map(float32).collect();

        let mut catalog = Catalog::new();
        catalog.push_shard(path.display().to_string());
        let mut offsets = vec![offset];
        loop {
            let (mut rows, mut end) = (0, offset);
            while rows < BLOCK_ROWS {
                line.clear();
                match file.read_until(b'\n', &mut line).map_err(failed)? {
                    0 => break,
                    length => end += length as u64,
                }
                rows += 1;
            }
            if rows == 0 {
                return Ok(Self { path: path.to_owned(), columns, catalog, offsets });
            }
            catalog.push_block(rows, end - offset);
            offsets.push(end);
            offset = end;
        }
    }
}

impl Source for Csv {
    fn name(&self) -> String {
        format!("CSV {}", self.path.display())
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Reads the bytes of a block. This runs concurrently with the requests of other blocks, so blocking work goes to a thread for such work.
    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        let (path, range) = (self.path.clone(), self.offsets[block]..self.offsets[block + 1]);
        Some(Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut block = vec![0; (range.end - range.start) as usize];
                let read = fs::File::open(&path).and_then(|file| file.read_exact_at(&mut block, range.start));
                read.map(|()| vec![Bytes::from(block)]).map_err(|error| failed(&path, error))
            });
            read.await.map_err(|error| Error::new(ErrorKind::Panicked, "the read did not end").because(error))?
        }))
    }

    /// Decodes the numbers of a block. A row that is not numeric is a bad record by itself; the loop then gets its error, with the sample's place.
    fn decode(&self, _block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        let mut values = vec![Vec::new(); self.columns.len()];
        let mut bad = Vec::new();
        for (row, line) in fetched[0].split_inclusive(|&byte| byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let numbers: std::result::Result<Vec<f32>, _> = line.trim().split(',').map(str::parse).collect();
            let numbers = match numbers {
                Ok(numbers) if numbers.len() == values.len() => numbers,
                _ => {
                    let what = format!("{:?} is not {} numbers", line.trim(), values.len());
                    bad.push((row, Error::new(ErrorKind::Corrupt, what)));
                    vec![0.0; values.len()]
                }
            };
            values.iter_mut().zip(numbers).for_each(|(column, number)| column.push(number));
        }
        let names = self.columns.iter().map(|column| column.name().to_string());
        let arrays = values.into_iter().map(|column| Arc::new(Float32Array::from(column)) as _);
        let rows = RecordBatch::try_from_iter(names.zip(arrays))
            .map_err(|error| Error::new(ErrorKind::Schema, "the columns make no table").because(error))?;
        Ok(Decoded::with_bad(rows, bad))
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Transfer, "the file could not be read").because(error).url(path.display().to_string())
}

fn main() -> Result<(), Box<dyn StdError>> {
    // y = 3 x - 2, and a little of what looks like noise.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("points.csv");
    let mut text = "x,y\n".to_owned();
    for i in 0..10_500 {
        let x = f64::from(i) / 5250.0 - 1.0;
        writeln!(text, "{x},{}", 3.0 * x - 2.0 + 0.1 * f64::from(i * 7919 % 101 - 50) / 50.0)?;
    }
    fs::write(&path, text)?;

    let dataset = Dataset::from_source(Csv::open(&path)?).shuffle(Shuffle::buffer(4096)).batch(50);
    println!("{dataset}");
    let mut loader = dataset.loader().seed(42).build()?;
    let (mut slope, mut intercept) = (0.0, 0.0);
    for epoch in 0..4 {
        let mut loss = 0.0;
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            let (xs, ys) = (batch.values::<f32>("x")?, batch.values::<f32>("y")?);
            let (mut by_slope, mut by_intercept) = (0.0, 0.0);
            for (x, y) in xs.iter().zip(ys.iter()) {
                let error = slope * x + intercept - y;
                loss += f64::from(error * error) / 10_500.0;
                by_slope += 2.0 * error * x / xs.len() as f32;
                by_intercept += 2.0 * error / xs.len() as f32;
            }
            slope -= 0.05 * by_slope;
            intercept -= 0.05 * by_intercept;
        }
        println!("epoch {epoch}: y = {slope:.3} x {intercept:+.3}, mean square error {loss:.4}");
    }
    println!("\n{}", loader.report());
    if (slope - 3.0).abs() < 0.02 && (intercept + 2.0).abs() < 0.02 {
        Ok(())
    } else {
        Err("the fit is not y = 3 x - 2".into())
    }
}
