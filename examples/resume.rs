//! Interrupts a training run, which then continues as if nothing had happened: the checkpoint holds the weights and the loader's state.
//!
//! It fits a straight line by stochastic gradient descent, once without interruption and once with an interruption every few dozen steps, each time with a new
//! loader and another number of threads. The weights of both runs must agree in every bit. It needs no libtorch.
//!
//! Checked with: ``

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::Float32Array;
use forebay::{Dataset, Scheduler, Shuffle, State, float32};
use rand::Rng;

const EPOCHS: u64 = 4;

/// The data needed to continue.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Checkpoint {
    slope: f32,
    intercept: f32,
    /// The loader's state; none before the first step.
    data: Option<State>,
}

impl Checkpoint {
    fn load(path: &Path) -> Result<Self, Box<dyn Error>> {
        if path.exists() { Ok(serde_json::from_slice(&fs::read(path)?)?) } else { Ok(Self::default()) }
    }

    /// Writes weights and state into one file, which appears complete or not at all: they must never be of different steps.
    fn save(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let part = path.with_extension("part");
        fs::write(&part, serde_json::to_vec(self)?)?;
        Ok(fs::rename(part, path)?)
    }
}

/// 3,000 points on the line y = 3 x - 1, shuffled, with noise that is new in every epoch.
fn points() -> forebay::Result<Dataset> {
    let x = Float32Array::from_iter_values((0..3000).map(|i| i as f32 / 3000.0));
    let dataset = Dataset::from_columns([("x", Arc::new(x) as _)])?.shuffle(Shuffle::buffer(500));
    // The name stands for the function in the state: change it when the function changes.
    let dataset = dataset.map("line@1", [float32("y")], |context, row, out| {
        out.set("y", 3.0 * row.get::<f32>("x")? - 1.0 + context.rng().random_range(-0.1..0.1))
    });
    Ok(dataset.batch(50))
}

/// Trains from the checkpoint, for so many steps or to the end; returns whether it reached the end.
fn train(path: &Path, steps: usize, threads: usize) -> Result<bool, Box<dyn Error>> {
    let mut checkpoint = Checkpoint::load(path)?;
    let mut builder = points()?.loader().seed(42).scheduler(Scheduler::threads(threads));
    if let Some(state) = &checkpoint.data {
        builder = builder.restore(state);
    }
    let mut loader = builder.build()?;
    let mut left = steps;
    for epoch in loader.next_epoch()..EPOCHS {
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            let (x, y) = (batch.values::<f32>("x")?, batch.values::<f32>("y")?);
            let errors = x.iter().zip(&*y).map(|(x, y)| (x, checkpoint.slope * x + checkpoint.intercept - y));
            let (slope, intercept) = errors.fold((0.0, 0.0), |sum, (x, error)| (sum.0 + error * x, sum.1 + error));
            checkpoint.slope -= 0.5 * slope / batch.len() as f32;
            checkpoint.intercept -= 0.5 * intercept / batch.len() as f32;
            checkpoint.data = Some(batch.state());
            checkpoint.save(path)?;
            left -= 1;
            if left == 0 {
                return Ok(false); // as if the machine had gone down
            }
        }
    }
    Ok(true)
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (whole, pieces) = (dir.path().join("whole.json"), dir.path().join("pieces.json"));
    train(&whole, usize::MAX, 2)?;
    let mut interruptions = 0;
    while !train(&pieces, 37, 1 + interruptions % 3)? {
        interruptions += 1;
        let state = Checkpoint::load(&pieces)?.data.ok_or("steps were taken")?;
        println!("interrupted in epoch {} behind step {}", state.epoch, state.step);
    }
    let (whole, pieces) = (Checkpoint::load(&whole)?, Checkpoint::load(&pieces)?);
    println!("in one go:               y = {} x + {}", whole.slope, whole.intercept);
    println!("with {interruptions} interruptions:    y = {} x + {}", pieces.slope, pieces.intercept);
    if (whole.slope.to_bits(), whole.intercept.to_bits()) != (pieces.slope.to_bits(), pieces.intercept.to_bits()) {
        return Err("the two runs differ".into());
    }
    println!("the state behind the last step: {}", serde_json::to_string(&pieces.data)?);
    Ok(())
}
