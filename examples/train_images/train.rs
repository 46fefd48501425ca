//! The training loop, and the judgement of what came of it.

use std::f64::consts::PI;
use std::time::Instant;

use forebay::{Dataset, Device, Loader};
use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Kind, Tensor};

use crate::{IMAGE, LABEL, Result};

/// What is trained on what, and what has to come of it.
pub(crate) struct Task {
    pub(crate) name: &'static str,
    pub(crate) train: Dataset,
    pub(crate) held_out: Option<Dataset>,
    pub(crate) network: fn(&nn::Path, i64) -> Box<dyn ModuleT>,
    pub(crate) classes: i64,
    pub(crate) epochs: u64,
    /// Of Adam in the first epoch; it falls along half a cosine.
    pub(crate) learning_rate: f64,
    /// Threads of libtorch.
    pub(crate) threads: usize,
    pub(crate) goals: Goals,
}

/// What counts as learnt.
pub(crate) struct Goals {
    /// The last tenth of the steps must have less than this share of the first tenth's loss.
    pub(crate) loss_share: f64,
    /// More than this share of the held-out samples must be recognised.
    pub(crate) accuracy: Option<f64>,
}

/// Trains, shows how it goes, and returns the goals that were missed, in words.
pub(crate) fn train(task: &Task, device: Device, seed: u64) -> Result<Vec<String>> {
    println!("\n{}\n{}", task.name, task.train);
    tch::set_num_threads(i32::try_from(task.threads)?);
    tch::manual_seed(seed as i64);

    let mut loader = task.train.loader().seed(seed).device(device).build()?;
    let mut held_out = match &task.held_out {
        Some(dataset) => Some(dataset.loader().device(device).build()?),
        None => None,
    };
    let variables = nn::VarStore::new(device.into());
    let network = (task.network)(&variables.root(), task.classes);
    let mut optimizer = nn::Adam::default().build(&variables, task.learning_rate)?;

    let mut losses = Vec::new();
    let mut accuracy = None;
    for epoch in 0..task.epochs {
        optimizer.set_lr(task.learning_rate * 0.5 * (1.0 + (PI * epoch as f64 / task.epochs as f64).cos()));
        let (start, waited_before) = (Instant::now(), loader.report().total_wait());
        let (mut steps, mut samples) = (Vec::new(), 0);
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            let labels = batch.tensor(LABEL)?;
            let logits = network.forward_t(&batch.tensor(IMAGE)?, true);
            let loss = logits.cross_entropy_for_logits(&labels);
            optimizer.backward_step(&loss);
            // Numbers are fetched once an epoch: fetching them each step would make a GPU wait for the host.
            steps.push(Tensor::stack(&[loss.detach(), num_correct(&logits, &labels)], 0));
            samples += batch.len();
        }
        if steps.is_empty() {
            return Err(format!("{}: an epoch has no full batch", task.name).into());
        }
        let loss_and_correct = Vec::<f32>::try_from(Tensor::stack(&steps, 1).to_device(tch::Device::Cpu).view(-1))?;
        let (loss, correct) = loss_and_correct.split_at(steps.len());
        let seconds = start.elapsed().as_secs_f64();
        let waited = loader.report().total_wait().saturating_sub(waited_before);
        print!(
            "epoch {epoch:3}: loss {:.4}, accuracy {:5.1} %, {:6.0} samples/s, loop waited {:4.1} %",
            mean(loss),
            100.0 * correct.iter().sum::<f32>() / samples as f32,
            samples as f64 / seconds,
            100.0 * waited.as_secs_f64() / seconds,
        );
        losses.extend_from_slice(loss);
        if let Some(held_out) = &mut held_out {
            let share = recognised(&*network, held_out)?;
            print!(", held out {:5.1} %", 100.0 * share);
            accuracy = Some(share);
        }
        println!();
    }
    println!("{}", loader.report());
    Ok(missed(task, &losses, accuracy))
}

/// The share of a data set's samples that the network recognises.
fn recognised(network: &dyn ModuleT, loader: &mut Loader) -> Result<f64> {
    let (mut correct, mut samples) = (0.0, 0);
    for batch in loader {
        let batch = batch?;
        let logits = tch::no_grad(|| -> Result<Tensor> { Ok(network.forward_t(&batch.tensor(IMAGE)?, false)) })?;
        correct += num_correct(&logits, &batch.tensor(LABEL)?).double_value(&[]);
        samples += batch.len();
    }
    Ok(correct / samples as f64)
}

fn num_correct(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.argmax(-1, false).eq_tensor(labels).sum(Kind::Float)
}

fn missed(task: &Task, losses: &[f32], accuracy: Option<f64>) -> Vec<String> {
    let mut missed = Vec::new();
    let tenth = losses.len().div_ceil(10);
    let (first, last) = (mean(&losses[..tenth]), mean(&losses[losses.len() - tenth..]));
    println!("loss: {first:.4} in the first tenth of the steps, {last:.4} in the last");
    // Not `last >= ...`: a loss that is no number has to fail too.
    let fell = last < first * task.goals.loss_share;
    if !fell {
        let wanted = first * task.goals.loss_share;
        missed.push(format!("{}: the loss went from {first:.4} to {last:.4}, not below {wanted:.4}", task.name));
    }
    if let (Some(goal), Some(accuracy)) = (task.goals.accuracy, accuracy)
        && accuracy <= goal
    {
        missed.push(format!(
            "{}: {:.1} % of the held-out samples are recognised, not more than {:.1} %",
            task.name,
            100.0 * accuracy,
            100.0 * goal
        ));
    }
    missed
}

fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}
