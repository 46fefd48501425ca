//! Trains a small transformer on bytes of text, packed several documents to a row, and fails if it learns nothing.
//!
//! The text is this repository's own: its Markdown files, paragraph by paragraph, and the comments of its sources. It becomes Parquet files with one list of
//! token ids per document, which are shuffled and packed into rows of 128 bytes. `segment_ids` become the attention mask, so that no document sees its
//! neighbours in the row, and `position_ids` let each document begin at 0. In the middle of an epoch the run is interrupted: the loader is dropped, and another
//! one, with other threads, continues from the saved state.
//!
//! It prints the graph, the share of padding, the loss in bits per byte every 50 steps and on held-out text before and after, and where the run was
//! interrupted. It fails unless the held-out text takes more than 7 bits per byte before, and less than 3.4 after (with knowledge of the frequency of each byte
//! it would take 4.8, and with that of each pair of bytes 3.6). It also fails unless the batch after the interruption is the one that would have come, and a
//! packed document gets the same logits as in a row of its own.
//!
//! Checked with: ``

#[path = "tokens/network.rs"]
mod network;
#[path = "tokens/text.rs"]
mod text;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use forebay::{Batch, Dataset, Device, Loader, Pack, Scheduler, Shuffle, State};
use network::Network;
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Tokens of a packed row.
const ROW: usize = 128;
/// The token after each document; the tokens below it are bytes.
const END: i64 = 256;
const VOCABULARY: i64 = 257;

const BATCH: usize = 16;
const STEPS: usize = 400;
const LEARNING_RATE: f64 = 4e-3;

/// The limits for the held-out text before and after training, in bits per byte.
const BEFORE: f64 = 7.0;
const AFTER: f64 = 3.4;

/// Packs the documents of a file into rows of [`ROW`] tokens.
fn packed(file: &Path) -> Result<Dataset> {
    let rows = Dataset::open(file)? // its one column is `tokens`, which is what is packed
        .shuffle(Shuffle::buffer(4096))
        .pack(Pack::best_fit(ROW).longest_first().eos(END).window(512))
        .batch(BATCH)
        .drop_remainder();
    Ok(rows)
}

/// The three tensors `[batch, ROW]` of packed rows.
struct Rows {
    ids: Tensor,
    positions: Tensor,
    segments: Tensor,
}

impl Rows {
    fn of(batch: &Batch) -> Result<Self> {
        let [ids, positions, segments] = ["input_ids", "position_ids", "segment_ids"].map(|name| batch.tensor(name));
        Ok(Self { ids: ids?, positions: positions?, segments: segments? })
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { ids: f(&self.ids), positions: f(&self.positions), segments: f(&self.segments) }
    }

    /// For each token the next one, or -100 if the next one belongs to another document, or is padding.
    fn targets(&self) -> Tensor {
        let behind = |tensor: &Tensor| tensor.narrow(1, 1, ROW as i64 - 1);
        let here = self.segments.narrow(1, 0, ROW as i64 - 1);
        let is_none = behind(&self.segments).ne_tensor(&here).logical_or(&here.eq(0));
        behind(&self.ids).masked_fill(&is_none, -100)
    }
}

/// A network in training.
struct Training {
    network: Network,
    optimizer: nn::Optimizer,
    step: usize,
    /// Losses since the last line that was printed.
    losses: Vec<Tensor>,
    since: Instant,
}

impl Training {
    /// The mean loss of a token, in nats.
    fn loss(&self, rows: &Rows) -> Tensor {
        let logits = self.network.forward(&rows.ids, &rows.positions, &rows.segments);
        let logits = logits.narrow(1, 0, ROW as i64 - 1).reshape([-1, VOCABULARY]);
        logits.cross_entropy_loss::<Tensor>(&rows.targets().view(-1), None, tch::Reduction::Mean, -100, 0.0)
    }

    fn take_step(&mut self, batch: &Batch) -> Result<()> {
        // Up over 20 steps, then down to nothing.
        let (step, steps) = (self.step as f64, STEPS as f64);
        self.optimizer.set_lr(LEARNING_RATE * (step / 20.0).min((steps - step) / (steps - 20.0)));
        let loss = self.loss(&Rows::of(batch)?);
        self.optimizer.backward_step_clip_norm(&loss, 1.0);
        self.step += 1;
        self.losses.push(loss.detach());
        if self.step.is_multiple_of(50) {
            let rate = (self.losses.len() * BATCH * ROW) as f64 / self.since.elapsed().as_secs_f64();
            let bits = bits(&Tensor::stack(&self.losses, 0).mean(None));
            println!("step {:3}, epoch {}: {bits:.2} bits a byte, {rate:.0} tokens/s", self.step, batch.epoch());
            self.losses.clear();
            self.since = Instant::now();
        }
        Ok(())
    }

    /// Trains until `steps` steps are taken; returns the state after the last step, and the batch that would have come next. The first batch must equal
    /// `expected`.
    fn until(&mut self, steps: usize, loader: &mut Loader, mut expected: Option<Batch>) -> Result<(State, Batch)> {
        let mut state = None;
        for epoch in loader.next_epoch().. {
            let before = self.step;
            for batch in loader.epoch(epoch) {
                let batch = batch?;
                if let Some(expected) = expected.take() {
                    check_equal(&batch, &expected)?;
                }
                match state {
                    Some(state) if self.step == steps => return Ok((state, batch)),
                    _ => self.take_step(&batch)?,
                }
                state = Some(batch.state());
            }
            if self.step == before {
                break;
            }
        }
        Err("an epoch has no full batch".into())
    }

    /// Bits per byte on the documents of a loader.
    fn held_out(&self, loader: &mut Loader) -> Result<f64> {
        let mut losses = Vec::new();
        for batch in loader.epoch(0) {
            losses.push(bits(&tch::no_grad(|| -> Result<_> { Ok(self.loss(&Rows::of(&batch?)?)) })?));
        }
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// The largest difference between the logits of a document that follows others in its row and those of the same document alone.
    fn leak(&self, batch: &Batch) -> Result<f64> {
        let segments = batch.values::<i64>("segment_ids")?;
        let shared = segments.chunks(ROW).position(|row| row.contains(&2)).ok_or("no row holds two documents")?;
        let row = &segments[shared * ROW..][..ROW];
        let start = row.partition_point(|&segment| segment < 2);
        let len = row.iter().filter(|&&segment| segment == 2).count();

        let whole = Rows::of(batch)?.map(|tensor| tensor.narrow(0, shared as i64, 1));
        let alone = whole.map(|tensor| tensor.narrow(1, start as i64, len as i64));
        let logits = |rows: &Rows| self.network.forward(&rows.ids, &rows.positions, &rows.segments);
        let difference = tch::no_grad(|| logits(&whole).narrow(1, start as i64, len as i64) - logits(&alone));
        Ok(difference.abs().max().double_value(&[]))
    }
}

/// Converts a loss to bits.
fn bits(nats: &Tensor) -> f64 {
    nats.to_kind(Kind::Double).double_value(&[]) / std::f64::consts::LN_2
}

fn check_equal(batch: &Batch, expected: &Batch) -> Result<()> {
    for name in ["input_ids", "position_ids", "segment_ids"] {
        if batch.values::<i64>(name)? != expected.values::<i64>(name)? {
            return Err(format!("behind the interruption, {name} are others than without it").into());
        }
    }
    Ok(())
}

fn check(holds: bool, otherwise: String) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn main() -> Result<()> {
    let device = Device::cuda_if_available();
    tch::manual_seed(42);
    // So small a network is no faster on several threads, and where others use them too it waits for the slowest.
    tch::set_num_threads(1);
    let folder = tempfile::tempdir()?;
    let (train, held_out) = text::write(Path::new(env!("CARGO_MANIFEST_DIR")), folder.path())?;

    let dataset = packed(&train)?;
    println!("\n{dataset}");
    let mut loader = dataset.loader().seed(42).device(device).build()?;
    let mut unseen = packed(&held_out)?.loader().device(device).build()?;

    let variables = nn::VarStore::new(device.into());
    let network = Network::new(&variables.root());
    let optimizer = nn::Adam::default().build(&variables, LEARNING_RATE)?;
    let mut training = Training { network, optimizer, step: 0, losses: Vec::new(), since: Instant::now() };
    let before = training.held_out(&mut unseen)?;
    println!("held out, before: {before:.2} bits a byte");
    training.since = Instant::now();

    let (state, expected) = training.until(STEPS / 2, &mut loader, None)?;
    let padding = loader.report().stage("pack").and_then(|stage| stage.padding_share()).unwrap_or(0.0);
    println!("padding: {:.2} % of the packed rows", 100.0 * padding);
    drop(loader);
    let saved = folder.path().join("state.json"); // in a real run: beside the weights and the optimizer's state
    fs::File::create(&saved)?.write_all(&serde_json::to_vec(&state)?)?;
    println!("interrupted in epoch {} behind step {}; another loader goes on", state.epoch, state.step);

    let state: State = serde_json::from_slice(&fs::read(&saved)?)?;
    let mut loader = dataset.loader().restore(&state).scheduler(Scheduler::threads(1)).device(device).build()?;
    let (_, last) = training.until(STEPS, &mut loader, Some(expected))?;
    println!("{}", loader.report());

    let after = training.held_out(&mut unseen)?;
    let leak = training.leak(&last)?;
    println!("held out, after: {after:.2} bits a byte, from {before:.2}");
    println!("a packed document beside the same alone: logits differ by {leak:.1e} at most");
    // As `!(a < b)` rather than `a >= b`: a loss that is no number has to fail too.
    check(before > BEFORE, format!("{before:.2} bits a byte before training, not above {BEFORE}"))?;
    check(after < AFTER, format!("{after:.2} bits a byte after training, not below {AFTER}"))?;
    check(leak < 1e-3, format!("a document sees its neighbours: its logits differ by {leak}"))?;
    check(padding < 0.05, format!("{:.1} % of the packed rows are padding", 100.0 * padding))
}
