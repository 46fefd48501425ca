//! Bytes a second from host to device, and how much of that is hidden behind steps.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use arrow::array::{ArrayRef, FixedSizeListArray, UInt8Array};
use arrow::datatypes::{DataType, Field};
use forebay::{Dataset, Loader};
use tch::{Kind, Tensor};

use super::Result;
use super::measure::{Bench, TURNS, ring};
use super::measured::{Measured, median};
use super::shards::RAW_BYTES;

/// Buffers that a bare copy reads by turns: as the slots of a ring, more than caches hold.
const BUFFERS: usize = 8;

impl Bench {
    /// Images of as many bytes as `raw`'s, out of memory: as fast as they can be laid out.
    fn in_memory(&self, batch: usize) -> Result<Dataset> {
        let item = Arc::new(Field::new_list_field(DataType::UInt8, false));
        let bytes = (0..self.sizes.rows * RAW_BYTES).map(|at| (at % 251) as u8);
        let bytes = Arc::new(UInt8Array::from_iter_values(bytes));
        let images = FixedSizeListArray::new(item, RAW_BYTES as i32, bytes, None);
        Ok(Dataset::from_columns([("image", Arc::new(images) as ArrayRef)])?.batch(batch).prefetch(3))
    }

    /// Memory for bare copies: page-locked where there is a GPU.
    fn buffers(&self, bytes: usize) -> Result<Vec<Tensor>> {
        let buffer = |_| -> Result<Tensor> {
            let buffer = Tensor::f_full([bytes as i64], 1, (Kind::Uint8, tch::Device::Cpu))?;
            Ok(if self.is_rehearsal() { buffer } else { buffer.f_pin_memory(self.device.into())? })
        };
        (0..BUFFERS).map(buffer).collect()
    }

    /// Bytes a second of bare copies for a turn, one queued behind the other.
    fn bare_copy(&self, buffers: &[Tensor]) -> Result<f64> {
        let copy_all = || -> Result<()> {
            for buffer in buffers.iter().cycle().take(8 * BUFFERS) {
                drop(buffer.f_internal_to_copy((Kind::Uint8, self.device.into()), true)?);
            }
            self.synchronize();
            Ok(())
        };
        copy_all()?;
        let (start, mut copies) = (Instant::now(), 0);
        while start.elapsed() < self.sizes.turn {
            copy_all()?;
            copies += 8 * BUFFERS;
        }
        Ok((copies * buffers[0].numel()) as f64 / start.elapsed().as_secs_f64())
    }

    pub(crate) fn bandwidth(&self) -> Result<Measured> {
        let bytes = self.sizes.batch * RAW_BYTES;
        let through = |loader: &mut Loader| -> Result<f64> {
            let (batches, seconds, _) = self.take(loader, |_| Ok(()))?;
            Ok(batches as f64 * bytes as f64 / seconds)
        };
        let mut memory = self.loader(&self.in_memory(self.sizes.batch)?)?;
        let mut files = self.loader(&self.raw()?)?;
        let buffers = self.buffers(bytes)?;
        let (mut bare, mut from_memory, mut from_files) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            bare.push(self.bare_copy(&buffers)?);
            from_memory.push(through(&mut memory)?);
            from_files.push(through(&mut files)?);
        }
        let (report, ring) = (memory.report(), ring(&memory.report()));
        let share = |of: &[f64]| -> Vec<f64> { of.iter().zip(&bare).map(|(of, bare)| of / bare).collect() };
        let giga = |turns: &[f64]| -> Vec<f64> { turns.iter().map(|rate| rate / 1e9).collect() };
        let enough = median(&share(&from_memory)) >= 0.9;
        let measured = Measured::new("bandwidth")
            .with_report(&report)
            .with_report(&files.report())
            .with_turns("loader_gb_per_s", giga(&from_memory))
            .with_turns("loader_from_files_gb_per_s", giga(&from_files))
            .with_turns("bare_copy_gb_per_s", giga(&bare))
            .with_turns("share", share(&from_memory))
            .with_turns("share_from_files", share(&from_files))
            .with("copies_of_the_loader_gb_per_s", ring.timed_bytes as f64 / ring.copying.as_secs_f64() / 1e9)
            .with("host_copy_by_all_cores_gb_per_s", host_copy() / 1e9)
            .with("batches", ring.crossed as f64)
            .with("handed_over_before_copied", ring.late as f64)
            .with("ring_bytes", ring.bytes as f64);
        Ok(measured.wants("the loader brings 90 % of a bare copy", enough))
    }

    /// Steps of matrix products, four times as long as the loader takes for a batch: how much of the copies runs beside them, by events on the device.
    pub(crate) fn overlap(&self) -> Result<Measured> {
        let mut loader = self.loader(&self.in_memory(4 * self.sizes.batch)?)?;
        let loader_alone = self.seconds_of_a_batch(&mut loader, 50)?;
        let matrix = self.matrix(self.sizes.large_matrix)?;
        let products = (4.0 * loader_alone / self.seconds_of_a_product(&matrix)?).ceil().max(1.0) as usize;
        // A loop that looks at its loss waits for its own kernels, not for copies: by reading a number on their stream.
        let step = || -> Result<()> {
            let mut product = matrix.f_matmul(&matrix)?;
            for _ in 1..products {
                product = matrix.f_matmul(&matrix)?;
            }
            product.f_double_value(&[0, 0])?;
            Ok(())
        };
        let (mut with_batches, mut without, mut copies, mut hidden) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let (batches, seconds, before) = self.take(&mut loader, |_| step())?;
            with_batches.push(seconds / batches as f64);
            let (before, after) = (ring(&before), ring(&loader.report()));
            let copying = (after.copying - before.copying).as_secs_f64();
            let waited = (after.device_wait_for_copies - before.device_wait_for_copies).as_secs_f64();
            copies.push(copying / (after.timed - before.timed) as f64);
            hidden.push(1.0 - waited / copying);
            let (start, steps) = (Instant::now(), batches.min(100));
            (0..steps).try_for_each(|_| step())?;
            without.push(start.elapsed().as_secs_f64() / steps as f64);
        }
        let enough = median(&hidden) >= 0.9;
        let measured = Measured::new("overlap")
            .with_report(&loader.report())
            .with_turns("step_s", without)
            .with_turns("step_with_batch_s", with_batches)
            .with_turns("copy_of_a_batch_s", copies)
            .with_turns("hidden_share_of_the_copies", hidden)
            .with("loader_alone_s", loader_alone);
        Ok(measured.wants("90 % of the copies is hidden behind steps", enough))
    }
}

/// Bytes a second that all cores together copy from memory to memory, each 64 MiB of its own that no cache holds.
fn host_copy() -> f64 {
    const EACH: usize = 64 << 20;
    const TIMES: usize = 10;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let together = Barrier::new(threads + 1);
    let seconds = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // Touched by the thread that copies it.
                let (from, mut to) = (vec![1u8; EACH], vec![1u8; EACH]);
                together.wait();
                (0..TIMES).for_each(|_| std::hint::black_box(&mut to).copy_from_slice(&from));
                together.wait();
            });
        }
        together.wait();
        let start = Instant::now();
        together.wait();
        start.elapsed().as_secs_f64()
    });
    (threads * TIMES * EACH) as f64 / seconds
}
