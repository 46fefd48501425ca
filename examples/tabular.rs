//! Trains a small recommender on a wide Parquet file, reads only a third of its columns, and fails if it learns nothing.
//!
//! The file has 60 columns: ids of users, items and the circumstances of a visit, measurements (some of them null), texts that nobody needs here, and whether
//! the item was bought, day by day for 30 days. The network embeds the ids and joins them with the measurements. It is trained on 24 days and judged on the
//! last 6. `columns` says which columns are read, and what replaces a null; a mask column says where a null was. `filter_where` on the day skips row groups by
//! their statistics, so that neither side reads the rows of the other.
//!
//! It prints the graph, one pass that computes the measurements' means and deviations (rows per second, bytes read out of how many), the loss of each epoch,
//! and accuracy and area under the ROC curve on the held-out days, compared with always guessing the commoner answer. It fails unless the area is above 0.78,
//! the accuracy is 10 points above guessing, and less than a quarter of the file was read in a pass.
//!
//! Checked with: ``

#[path = "tabular/network.rs"]
mod network;
#[path = "tabular/visits.rs"]
mod visits;

use std::fs;
use std::path::Path;
use std::time::Instant;

use forebay::{Batch, Column, Dataset, Device, Dtype, Loader, Missing, Shape, Shuffle, col, float32};
use network::{Network, Scale};
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};
use visits::{DAYS, IDS, MEASUREMENTS, OFTEN_NULL};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const LABEL: &str = "bought";
/// The first day that is held out.
const HELD_OUT: i32 = DAYS - 6;

const BATCH: usize = 512;
const EPOCHS: u64 = 12;

/// The required results: the area under the ROC curve, the accuracy above that of guessing, and the share of the file that a pass may read.
const AREA: f64 = 0.78;
const GAIN: f64 = 0.1;
const READ: f64 = 0.25;

/// The columns wanted out of the 60: 18 that the network sees, for one of them a mask of its values, and the label. With the day, 20 are read.
fn columns() -> Vec<Column> {
    let scalar = |name: &str, dtype| Column::new(name, dtype, Shape::Scalar);
    // Id 0 stands for "unknown"; ids are embedded, so the null has a vector of its own.
    let ids = IDS.iter().map(|(name, _)| scalar(name, Dtype::I32).or(Missing::Int(0)));
    let measurements = MEASUREMENTS.iter().map(|name| float32(*name).or(Missing::Float(0.0)));
    let mask = scalar(&format!("{OFTEN_NULL}.is_present"), Dtype::Bool);
    ids.chain(measurements).chain([mask, float32(LABEL)]).collect()
}

/// Batches of the network's inputs, each kind in one tensor.
struct Inputs {
    /// `i64 [batch, ids]`
    ids: Tensor,
    /// `f32 [batch, measurements]`, zero where there is none
    measurements: Tensor,
    /// `f32 [batch]`
    is_present: Tensor,
    /// `f32 [batch]`
    labels: Tensor,
}

impl Inputs {
    fn of(batch: &Batch) -> Result<Self> {
        let stacked = |names: &mut dyn Iterator<Item = &str>| -> Result<Tensor> {
            let columns = names.map(|name| Ok(batch.tensor(name)?)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::stack(&columns, 1))
        };
        Ok(Self {
            ids: stacked(&mut IDS.iter().map(|(name, _)| *name))?.to_kind(Kind::Int64),
            measurements: stacked(&mut MEASUREMENTS.iter().copied())?,
            is_present: batch.tensor(&format!("{OFTEN_NULL}.is_present"))?.to_kind(Kind::Float),
            labels: batch.tensor(LABEL)?,
        })
    }
}

/// Makes one pass over the training days: means and deviations of the measurements, and how often an item was bought.
fn measure(loader: &mut Loader) -> Result<(Scale, f64)> {
    let (mut rows, mut bought) = (0.0, 0.0);
    let zeros = || Tensor::zeros([MEASUREMENTS.len() as i64], (Kind::Double, tch::Device::Cpu));
    let (mut sum, mut squares) = (zeros(), zeros());
    // An iterator of its own reads nothing of an epoch behind this one: what was read is what a pass takes.
    for batch in loader.split(&[Device::Cpu])?.remove(0) {
        let Inputs { measurements, labels, .. } = Inputs::of(&batch?)?;
        let values = measurements.to_kind(Kind::Double);
        rows += values.size()[0] as f64;
        bought += labels.sum(Kind::Double).double_value(&[]);
        sum += values.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        squares += values.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    }
    let mean = sum / rows;
    let deviation = (squares / rows - mean.square()).sqrt();
    Ok((Scale { mean: mean.to_kind(Kind::Float), deviation: deviation.to_kind(Kind::Float) }, bought / rows))
}

/// How well the network judges the rows of a loader.
struct Judged {
    /// The area under the ROC curve: how often a row that was bought gets a higher score than a row that was not.
    area: f64,
    accuracy: f64,
    /// The accuracy of always giving the commoner answer.
    guessing: f64,
}

fn judge(network: &Network, loader: &mut Loader) -> Result<Judged> {
    let mut scored = Vec::new();
    for batch in loader.epoch(0) {
        let batch = batch?;
        let scores = tch::no_grad(|| -> Result<Tensor> { Ok(network.forward(&Inputs::of(&batch)?)) })?;
        let scores = Vec::<f32>::try_from(scores.to_device(tch::Device::Cpu))?;
        scored.extend(scores.into_iter().zip(batch.values::<f32>(LABEL)?.iter().map(|&label| label > 0.5)));
    }
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bought = scored.iter().filter(|(_, bought)| *bought).count() as f64;
    let others = scored.len() as f64 - bought;
    // Of each row that was bought, those below it that were not; equal scores count half.
    let (mut below, mut pairs) = (0.0, 0.0);
    for equal in scored.chunk_by(|a, b| a.0 == b.0) {
        let here = equal.iter().filter(|(_, bought)| *bought).count() as f64;
        let not = equal.len() as f64 - here;
        pairs += here * (below + not / 2.0);
        below += not;
    }
    let right = scored.iter().filter(|(score, bought)| (*score > 0.0) == *bought).count() as f64;
    let rows = scored.len() as f64;
    Ok(Judged { area: pairs / (bought * others), accuracy: right / rows, guessing: bought.max(others) / rows })
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn check(holds: bool, otherwise: String) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn run(file: &Path) -> Result<()> {
    let device = Device::cuda_if_available();
    // The condition stands before the columns: the day is read for it, and no column of the rows.
    let visits = |condition| -> Result<Dataset> { Ok(Dataset::open(file)?.filter_where(condition).columns(columns())) };
    let before = visits(col("day").lt(HELD_OUT))?.shuffle(Shuffle::buffer(16_384)).batch(BATCH);
    let after = visits(col("day").ge(HELD_OUT))?.batch(BATCH);
    println!("\n{before}\n");

    let start = Instant::now();
    let mut once = before.loader().seed(1).build()?;
    let (scale, share_bought) = measure(&mut once)?;
    let report = once.report();
    let rate = report.samples as f64 / start.elapsed().as_secs_f64();
    let (read, stored) = (report.stage("read").map_or(0, |stage| stage.bytes), fs::metadata(file)?.len());
    let share = read as f64 / stored as f64;
    println!(
        "a pass over the days before the {HELD_OUT}th: {} rows, {rate:.0} rows/s, bought {share_bought:.3}",
        report.samples
    );
    println!("read {:.2} of {:.2} MiB, {:.0} %", mebibytes(read), mebibytes(stored), 100.0 * share);
    report.notes.iter().for_each(|note| println!("note: {note}"));

    tch::manual_seed(42);
    tch::set_num_threads(1); // as small as this, the threads would wait for each other
    let variables = nn::VarStore::new(device.into());
    let network = Network::new(&variables.root(), scale);
    let mut optimizer = nn::Adam { wd: 1e-5, ..Default::default() }.build(&variables, 5e-3)?;
    let mut loader = before.drop_remainder().loader().seed(42).device(device).build()?;
    let mut held_out = after.loader().device(device).build()?;
    for epoch in 0..EPOCHS {
        let (start, mut losses, mut rows) = (Instant::now(), Vec::new(), 0);
        for batch in loader.epoch(epoch) {
            let inputs = Inputs::of(&batch?)?;
            let scores = network.forward(&inputs);
            let loss =
                scores.binary_cross_entropy_with_logits::<Tensor>(&inputs.labels, None, None, tch::Reduction::Mean);
            optimizer.backward_step(&loss);
            rows += inputs.labels.size()[0];
            losses.push(loss.detach());
        }
        let loss = Tensor::stack(&losses, 0).mean(Kind::Double).double_value(&[]);
        println!("epoch {epoch}: loss {loss:.4}, {:.0} rows/s", rows as f64 / start.elapsed().as_secs_f64());
    }
    let Judged { area, accuracy, guessing } = judge(&network, &mut held_out)?;
    println!("held out: area under the ROC curve {area:.3}, accuracy {accuracy:.3}, guessing {guessing:.3}");
    println!("{}", loader.report());
    check(area > AREA, format!("the area under the ROC curve is {area:.3}, not above {AREA}"))?;
    check(accuracy > guessing + GAIN, format!("accuracy {accuracy:.3}, guessing {guessing:.3}"))?;
    check(share < READ, format!("a pass read {:.0} % of the file", 100.0 * share))
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("visits.parquet");
    visits::write(&file)?;
    run(&file)
}
