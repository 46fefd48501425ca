//! A network in training: how long its device waits between steps.

use std::time::Instant;

use forebay::Dataset;
use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use tch::nn::{self, OptimizerConfig as _};
use tch::{Kind, Tensor};

use super::Result;
use super::clock::Clock;
use super::measure::{Bench, TURNS, ring};
use super::measured::{Measured, median};

/// What one turn found.
struct Turn {
    samples_per_s: f64,
    /// The same with one batch that stays.
    staying_per_s: f64,
    between_steps: f64,
    between_steps_staying: f64,
    device_wait: f64,
    next_wait: f64,
}

impl Bench {
    /// A ResNet-50 in bf16, trained on what the data set delivers and on one batch that stays, by turns.
    pub(crate) fn training(&self, name: &str, dataset: &Dataset) -> Result<Measured> {
        // Not by `on_device`, whose kernels would stand before the mark of a step's beginning and count as waiting.
        let kind = if self.is_rehearsal() { Kind::Float } else { Kind::BFloat16 };
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(self.device.into());
        let (mean, std) = (constant(IMAGENET_MEAN), constant(IMAGENET_STD));
        let mut loader = self.loader(dataset)?;
        let mut store = nn::VarStore::new(self.device.into());
        let network: Box<dyn nn::ModuleT> = if self.is_rehearsal() {
            Box::new(tch::vision::resnet::resnet18(&store.root(), 1000))
        } else {
            Box::new(tch::vision::resnet::resnet50(&store.root(), 1000))
        };
        if !self.is_rehearsal() {
            store.bfloat16();
        }
        let mut optimizer = nn::Sgd { momentum: 0.9, ..Default::default() }.build(&store, 0.01)?;
        let mut step = |images: &Tensor, labels: &Tensor| {
            let floats = images.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
            let images = ((floats - &mean) / &std).to_kind(kind);
            let loss = network.forward_t(&images, true).to_kind(Kind::Float).cross_entropy_for_logits(labels);
            optimizer.backward_step(&loss);
        };
        let samples = self.sizes.batch as f64;
        let mut turn = || -> Result<Turn> {
            let (mut clock, mut seen, mut kept) = (Clock::new(self.device)?, 0, None);
            let (steps, seconds, before) = self.take(&mut loader, |batch| {
                let (images, labels) = (batch.tensor("image")?, batch.tensor("label")?);
                let measured = seen >= self.sizes.warm_up;
                seen += 1;
                // A mark where a step begins, which is behind its copy, and one where it ends.
                if measured {
                    clock.mark()?;
                }
                step(&images, &labels);
                if measured {
                    clock.mark()?;
                }
                kept.get_or_insert((images, labels));
                Ok(())
            })?;
            let after = loader.report();
            let (images, labels) = kept.ok_or("no batch came")?;
            (0..self.sizes.warm_up).for_each(|_| step(&images, &labels));
            self.synchronize();
            let (start, staying_steps, mut staying) = (Instant::now(), steps.min(30), Clock::new(self.device)?);
            for _ in 0..staying_steps {
                staying.mark()?;
                step(&images, &labels);
                staying.mark()?;
            }
            self.synchronize();
            Ok(Turn {
                samples_per_s: steps as f64 * samples / seconds,
                staying_per_s: staying_steps as f64 * samples / start.elapsed().as_secs_f64(),
                between_steps: clock.share_between_steps()?,
                between_steps_staying: staying.share_between_steps()?,
                device_wait: (ring(&after).device_wait - ring(&before).device_wait).as_secs_f64() / seconds,
                next_wait: after.total_wait().saturating_sub(before.total_wait()).as_secs_f64() / seconds,
            })
        };
        let turns = (0..TURNS).map(|_| turn()).collect::<Result<Vec<_>>>()?;
        let report = loader.report();
        let of = |number: fn(&Turn) -> f64| turns.iter().map(number).collect::<Vec<_>>();
        let between_steps = of(|turn| turn.between_steps);
        let little = median(&between_steps) < 0.01;
        let measured = Measured::new(name)
            .with_report(&report)
            .with_turns("samples_per_s", of(|turn| turn.samples_per_s))
            .with_turns("samples_per_s_of_a_batch_that_stays", of(|turn| turn.staying_per_s))
            .with_turns("share_of_a_batch_that_stays", of(|turn| turn.samples_per_s / turn.staying_per_s))
            .with_turns("share_between_steps", between_steps)
            .with_turns("share_between_steps_with_a_batch_that_stays", of(|turn| turn.between_steps_staying))
            .with_turns("device_wait_share_as_reported", of(|turn| turn.device_wait))
            .with_turns("next_wait_share", of(|turn| turn.next_wait))
            .with("batches", report.batches as f64)
            .with("handed_over_before_copied", ring(&report).late as f64);
        Ok(measured.wants("less than 1 % of the device's time is between steps", little))
    }
}
