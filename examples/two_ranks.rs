//! Two processes share an epoch: each takes its half of every batch, and both take the same number of steps, even after a filter.
//!
//! Without arguments it starts itself twice, as a launcher would (torchrun, srun and mpirun set the same variables), and checks that both together deliver what
//! one process alone delivers. It needs no libtorch.
//!
//! Checked with: ``

use std::error::Error;
use std::process::{Command, Stdio};
use std::sync::Arc;

use arrow::array::Int64Array;
use forebay::{Dataset, Shuffle, World};

/// Numbers, shuffled, without the multiples of 3: nobody knows beforehand how many that leaves.
fn dataset() -> forebay::Result<Dataset> {
    let numbers = Int64Array::from_iter_values(0..10_000);
    let dataset = Dataset::from_columns([("x", Arc::new(numbers) as _)])?.shuffle(Shuffle::buffer(1000));
    Ok(dataset.filter("no multiples of 3", |_, row| Ok(row.get::<i64>("x")? % 3 != 0)).batch(8))
}

/// Returns this rank's batches, one line for each.
fn batches(world: World) -> forebay::Result<Vec<Vec<i64>>> {
    let mut loader = dataset()?.loader().seed(42).world(world).steps_per_epoch(800).build()?;
    loader.epoch(0).map(|batch| Ok(batch?.values::<i64>("x")?.into_owned())).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("rank") {
        for batch in batches(World::from_env()?)? {
            println!("{}", batch.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        }
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let start = |rank: usize| {
        let mut command = Command::new(&program);
        command.arg("rank").env("RANK", rank.to_string()).env("WORLD_SIZE", "2").stdout(Stdio::piped()).spawn()
    };
    let ranks = [start(0)?, start(1)?];
    let mut halves = Vec::new();
    for rank in ranks {
        let output = rank.wait_with_output()?;
        if !output.status.success() {
            return Err("a rank failed".into());
        }
        let text = String::from_utf8(output.stdout)?;
        let lines = text.lines().map(|line| line.split(' ').map(str::parse).collect::<Result<Vec<i64>, _>>());
        halves.push(lines.collect::<Result<Vec<_>, _>>()?);
    }
    println!("rank 0 took {} steps, rank 1 took {}", halves[0].len(), halves[1].len());
    let together: Vec<Vec<i64>> = halves[0].iter().zip(&halves[1]).map(|(a, b)| [&a[..], b].concat()).collect();
    if together != batches(World::single())? {
        return Err("two processes deliver other batches than one".into());
    }
    println!("together they are the batches of one process; the first: {:?}", together[0]);
    Ok(())
}
