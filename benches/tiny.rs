//! How many rows a second come through the whole loader when a row is nothing but eight bytes?
//!
//! Data: 4,000,000 `i64` rows in memory, through a shuffle buffer of 100,000 into batches of 1024. Beside it, in the same run,
//! the least that any shuffling loader has to do: a gather of as many rows, in random order within a window of
//! the same size, into fresh memory of the same batches. What is printed is rows/s of both and their ratio; the sum
//! over all rows is checked first.
//!
//! `cargo bench --bench tiny`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::Int64Array;
use forebay::{Dataset, Result, Shuffle};

const ROWS: i64 = 4_000_000;
const BUFFER: usize = 100_000;
const BATCH: usize = 1024;

fn main() -> Result<()> {
    let rows = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let dataset = Dataset::from_columns([("x", rows.clone() as _)])?;
    let mut loader = dataset.shuffle(Shuffle::buffer(BUFFER as u64)).batch(BATCH).loader().seed(42).build()?;

    let mut sum = 0;
    for batch in loader.epoch(0) {
        sum += batch?.values::<i64>("x")?.iter().sum::<i64>();
    }
    assert_eq!(sum, ROWS * (ROWS - 1) / 2, "every row was delivered once");

    let loaded = rate(|| loader.epoch(1).map(|batch| batch.map(|batch| batch.len())).sum::<Result<usize>>());
    let gathered = rate(|| Ok(gather(rows.values())));
    println!("loader          {:>8.2} M rows/s", loaded? / 1e6);
    println!("bare gather     {:>8.2} M rows/s, one thread", gathered? / 1e6);
    println!("{}", loader.report());
    Ok(())
}

/// Rows a second of the best of three.
fn rate(mut run: impl FnMut() -> Result<usize>) -> Result<f64> {
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let start = Instant::now();
        best = best.max(run()? as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Copies all rows into batches, in an order that jumps within a window of the buffer's size.
fn gather(rows: &[i64]) -> usize {
    for window in rows.chunks(BUFFER) {
        // A multiplicative step that shares no factor with the window's length visits every row of it.
        let step = (61_803..).step_by(2).find(|&step| gcd(step, window.len()) == 1).unwrap_or(1);
        let mut at = 0;
        for start in (0..window.len()).step_by(BATCH) {
            let batch: Vec<i64> = (start..window.len().min(start + BATCH))
                .map(|_| {
                    at = (at + step) % window.len();
                    window[at]
                })
                .collect();
            black_box(batch);
        }
    }
    rows.len()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
