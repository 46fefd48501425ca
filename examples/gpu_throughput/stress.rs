//! Many small steps beside random allocations: whether every batch arrives whole.

use std::time::{Duration, Instant};

use forebay::Shuffle;
use tch::{Kind, Tensor};

use super::Result;
use super::clock;
use super::known::{BATCH, COLUMNS, Known};
use super::measure::{Bench, ring};
use super::measured::Measured;

/// Checksums are compared every so many steps, so that the host runs ahead in between.
const EVERY: usize = 1000;

/// Of loaders that are slower the steps are as long as for one that takes so many seconds for a batch.
const SLOWEST: f64 = 0.0007;

/// All steps together take no longer.
const LONGEST: Duration = Duration::from_secs(150);

impl Bench {
    pub(crate) fn stress(&self) -> Result<Measured> {
        let known = Known::new(self.device.into())?;
        // With one batch ahead its copy has to wait for the kernels of the step before last, and the step that takes it for its copy.
        let dataset = known.dataset.shuffle(Shuffle::buffer(4096)).batch(BATCH).prefetch(1);
        let mut loader = self.loader(&dataset)?;
        let sums = Tensor::f_zeros([EVERY as i64, COLUMNS.len() as i64], (Kind::Int64, self.device.into()))?;
        // As many products as take the device longer than the loader takes for a batch, so that it lags behind the host.
        let matrix = self.matrix(self.sizes.small_matrix)?;
        let loader_alone = self.seconds_of_a_batch(&mut loader, 500)?;
        let product = self.seconds_of_a_product(&matrix)?;
        let products = (1.5 * loader_alone.min(SLOWEST) / product).ceil().max(1.0) as usize;
        // What comes and goes below is given out of this, once the allocator has it: what grows beside is a leak.
        drop(Tensor::f_zeros([256 << 20], (Kind::Uint8, self.device.into()))?);
        let mut expected = Vec::with_capacity(EVERY);
        let (mut held, mut state) = (Vec::<Tensor>::new(), 1u64);
        let (mut steps, mut dropped, mut memory) = (0, 0, Vec::new());
        let mut wrong = [0; COLUMNS.len()];
        let (before, start) = (ring(&loader.report()), Instant::now());
        'steps: loop {
            for batch in &mut loader {
                let batch = batch?;
                // Kernels in front of those that read the batch: the device falls behind the host.
                (0..products).try_for_each(|_| matrix.f_matmul(&matrix).map(drop))?;
                sums.f_get(expected.len() as i64)?.f_copy_(&known.on_device(&batch)?)?;
                expected.push(known.of(&batch));
                // What a model does to the allocator: tensors of any size come and go, and are written to.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let bytes = 1 << (9 + (state >> 60)) | (state >> 40) & 0xfff;
                held.push(Tensor::f_full([bytes as i64], 255, (Kind::Uint8, self.device.into()))?);
                if held.len() > 16 {
                    drop(held.swap_remove((state >> 33) as usize % held.len()));
                }
                steps += 1;
                let last = steps == self.sizes.stress_steps || start.elapsed() > LONGEST;
                if expected.len() == EVERY || last {
                    let found: Vec<i64> = Vec::try_from(&sums.f_to_device(tch::Device::Cpu)?.f_flatten(0, 1)?)?;
                    for (found, expected) in found.chunks_exact(COLUMNS.len()).zip(&expected) {
                        for ((wrong, found), expected) in wrong.iter_mut().zip(found).zip(expected) {
                            *wrong += u64::from(found != expected);
                        }
                    }
                    expected.clear();
                    memory.push((resident_bytes(), clock::device_bytes(self.device)?));
                }
                if last {
                    break 'steps;
                }
                // The epoch ends here, with a batch on its way.
                if steps % self.sizes.drop_every == 0 {
                    dropped += 1;
                    break;
                }
            }
        }
        let (report, seconds) = (loader.report(), start.elapsed().as_secs_f64());
        let after = ring(&report);
        let waited = (after.device_wait - before.device_wait).as_secs_f64() / seconds;
        // The first tenth warms up allocators.
        let (early, late) = (memory[memory.len() / 10], memory[memory.len() - 1]);
        let growth = |from: u64, to: u64| to as f64 - from as f64;
        let measured = Measured::new("stress")
            .with_report(&report)
            .with("steps", steps as f64)
            .with("epochs_dropped_midway", f64::from(dropped))
            .with("handed_over_before_copied", (after.late - before.late) as f64)
            .with("device_wait_share", waited)
            .with("products_a_step", products as f64)
            .with("step_s", seconds / steps as f64)
            .with("loader_alone_s", loader_alone)
            .with("locked_bytes", after.bytes as f64)
            .with("host_growth_bytes", growth(early.0, late.0))
            .with("device_growth_bytes", growth(early.1, late.1));
        let names =
            ["wrong_checksums_of_x", "wrong_checksums_of_label", "wrong_checksums_of_tag", "wrong_checksums_of_tokens"];
        let measured = names.into_iter().zip(wrong).fold(measured, |all, (name, wrong)| all.with(name, wrong as f64));
        let steady = growth(early.0, late.0) < 64e6 && growth(early.1, late.1) < 16e6;
        let measured = measured.wants("every checksum is the host's", wrong == [0; COLUMNS.len()]);
        // Else copies had nothing to wait for, and the checksums say little.
        let lags = after.timed > before.timed && waited < 0.5;
        let measured = measured.wants("the device is kept waiting for less than half of the time", lags);
        let measured = measured.wants("all steps were taken", steps == self.sizes.stress_steps);
        Ok(measured.wants("memory is steady", steady))
    }
}

/// Resident memory of this process, in bytes; 0 where Linux does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0u64) * 1024
}
