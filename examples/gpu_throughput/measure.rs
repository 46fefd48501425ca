//! The measurements.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, FixedSizeListArray, Int64Array, UInt8Array};
use arrow::datatypes::{DataType, Field};
use forebay::telemetry::{Report, RingReport};
use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use forebay::{Batch, Budget, Dataset, Device, Dtype, Image, Layout, Loader, Shuffle, bytes, int64};
use serde::Serialize;
use tch::nn::{self, OptimizerConfig as _};
use tch::{Kind, Tensor};

use super::Result;
use super::clock::{self, Clock};
use super::shards::{RAW_BYTES, Shards};

/// What one measurement found.
#[derive(Serialize)]
pub(crate) struct Measured {
    name: String,
    /// Numbers, each with its unit in its name.
    values: BTreeMap<&'static str, f64>,
    /// What was wanted of them, and whether it was so.
    wanted: Vec<(String, bool)>,
    /// Why there are no numbers.
    error: Option<String>,
}

impl Measured {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), values: BTreeMap::new(), wanted: Vec::new(), error: None }
    }

    /// A measurement that ended with an error.
    pub(crate) fn failed(name: &str, error: &str) -> Self {
        Self { error: Some(error.to_owned()), ..Self::new(name) }
    }

    /// Adds a number; without a GPU some are shares of nothing, and left out.
    pub(crate) fn with(mut self, name: &'static str, value: f64) -> Self {
        if value.is_finite() {
            self.values.insert(name, value);
        }
        self
    }

    fn wants(mut self, what: impl Into<String>, so: bool) -> Self {
        self.wanted.push((what.into(), so));
        self
    }

    /// Numbers, and what was wanted of them where that means something.
    pub(crate) fn print(&self, is_rehearsal: bool) {
        println!("{}", self.name);
        self.values.iter().for_each(|(name, value)| println!("  {name:<44} {value:>14.4}"));
        if let Some(error) = &self.error {
            println!("  FAILED: {error}");
        }
        if is_rehearsal {
            return;
        }
        self.wanted.iter().for_each(|(what, so)| println!("  {}: {what}", if *so { "good" } else { "MISSED" }));
    }

    /// Whether it came to its end, and found what was wanted; a rehearsal has no claims.
    pub(crate) fn is_good(&self, is_rehearsal: bool) -> bool {
        self.error.is_none() && (is_rehearsal || self.wanted.iter().all(|(_, so)| *so))
    }
}

/// Sizes of everything: as they are published, and small ones for a rehearsal.
struct Sizes {
    records: usize,
    /// Different photographs among the records.
    photos: usize,
    batch: usize,
    /// How long each part of a measurement runs, at most.
    time: Duration,
    stress_steps: u64,
    warm_up: usize,
    /// Memory that a loader may have: as much on every machine.
    budget: Budget,
    /// Rows and columns of a matrix whose square keeps a GPU busy for some 100 us; and for some milliseconds.
    small_matrix: i64,
    large_matrix: i64,
}

/// A device, the shards that are read for it, and how much is done.
pub(crate) struct Bench {
    device: Device,
    shards: Shards,
    sizes: Sizes,
}

impl Bench {
    pub(crate) fn new(device: Device) -> Result<Self> {
        let sizes = if device == Device::Cpu {
            Sizes {
                records: 64,
                photos: 4,
                batch: 16,
                time: Duration::from_millis(500),
                stress_steps: 300,
                warm_up: 1,
                budget: Budget::mebibytes(1024),
                small_matrix: 64,
                large_matrix: 128,
            }
        } else {
            Sizes {
                records: 8192,
                photos: 1024,
                batch: 256,
                time: Duration::from_secs(20),
                stress_steps: 100_000,
                warm_up: 10,
                budget: Budget::mebibytes(8192),
                small_matrix: 1024,
                large_matrix: 4096,
            }
        };
        Ok(Self { device, shards: Shards::make(sizes.records, sizes.photos)?, sizes })
    }

    pub(crate) fn describe(&self) -> String {
        clock::describe(self.device).unwrap_or_else(|_| self.device.to_string())
    }

    pub(crate) fn is_rehearsal(&self) -> bool {
        self.device == Device::Cpu
    }

    pub(crate) fn measure(&self, name: &str, data: &[String]) -> Result<Measured> {
        match name {
            "data" => self.data(data),
            "bandwidth" => self.bandwidth(),
            "raw" => self.training(name, &self.raw()?),
            "images" => {
                let measured = self.training(name, &self.crops(&[&self.shards.jpeg], "image")?.drop_remainder())?;
                Ok(self.shards.describe_photos(measured))
            }
            "stress" => self.stress(),
            "overlap" => self.overlap(),
            other => Err(format!("there is no measurement {other:?}").into()),
        }
    }

    /// Raw `u8` images, as they are stored.
    fn raw(&self) -> Result<Dataset> {
        let columns = [bytes("image").raw(Dtype::U8, [224, 224, 3]), int64("label")];
        let dataset = Dataset::open([self.shards.raw.as_str()])?.columns(columns);
        Ok(dataset.shuffle(Shuffle::buffer(1024)).batch(self.sizes.batch).drop_remainder().prefetch(3))
    }

    /// Images of as many bytes, out of memory: as fast as they can be laid out.
    fn in_memory(&self, batch: usize) -> Result<Dataset> {
        let rows = 2 * batch;
        let item = Arc::new(Field::new_list_field(DataType::UInt8, false));
        let bytes = Arc::new(UInt8Array::from_iter_values((0..rows * RAW_BYTES).map(|at| (at % 251) as u8)));
        let images = FixedSizeListArray::new(item, RAW_BYTES as i32, bytes, None);
        Ok(Dataset::from_columns([("image", Arc::new(images) as ArrayRef)])?.batch(batch).prefetch(3))
    }

    /// Bytes a second of a bare copy of so many at a time: from memory that is page-locked where there is a GPU, one queued behind the other.
    fn bare_copy(&self, bytes: usize) -> Result<f64> {
        let host = Tensor::zeros([bytes as i64], (Kind::Uint8, tch::Device::Cpu));
        let host = if self.is_rehearsal() { host } else { host.f_pin_memory(self.device.into())? };
        let copy = |times: usize| -> Result<()> {
            (0..times).try_for_each(|_| host.f_internal_to_copy((Kind::Uint8, self.device.into()), true).map(drop))?;
            self.synchronize();
            Ok(())
        };
        copy(self.sizes.warm_up)?;
        let (start, times) = (Instant::now(), 200);
        copy(times)?;
        Ok((times * bytes) as f64 / start.elapsed().as_secs_f64())
    }

    /// Random crops of the JPEG images in a column.
    fn crops(&self, urls: &[&str], column: &str) -> Result<Dataset> {
        let crops = Image::rgb().random_resized_crop(224, 224).layout(Layout::Nhwc).to_u8();
        let dataset = Dataset::open(urls.to_vec())?.shuffle(Shuffle::buffer(1024)).image(column, crops);
        Ok(dataset.batch(self.sizes.batch).prefetch(3))
    }

    fn loader(&self, dataset: &Dataset) -> Result<Loader> {
        Ok(dataset.loader().device(self.device).budget(self.sizes.budget).build()?)
    }

    fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// Takes batches until the time is over, epoch after epoch; how many, how long it took, and the loader's report before. `each` sees every batch, warm-up
    /// included, which counts for nothing.
    fn take(&self, loader: &mut Loader, mut each: impl FnMut(Batch) -> Result<()>) -> Result<(u64, f64, Report)> {
        let (mut taken, mut start, mut before) = (0u64, Instant::now(), loader.report());
        loop {
            for batch in &mut *loader {
                if taken == self.sizes.warm_up as u64 {
                    self.synchronize();
                    (before, start) = (loader.report(), Instant::now());
                }
                each(batch?)?;
                taken += 1;
                if taken > self.sizes.warm_up as u64 && start.elapsed() >= self.sizes.time {
                    self.synchronize();
                    return Ok((taken - self.sizes.warm_up as u64, start.elapsed().as_secs_f64(), before));
                }
            }
        }
    }

    fn bandwidth(&self) -> Result<Measured> {
        let bytes = self.sizes.batch * RAW_BYTES;
        let through = |dataset: &Dataset| -> Result<(f64, RingReport)> {
            let mut loader = self.loader(dataset)?;
            let (batches, seconds, _) = self.take(&mut loader, |_| Ok(()))?;
            let report = loader.report();
            eprint!("{report}\n\n");
            Ok((batches as f64 * bytes as f64 / seconds, ring(&report)))
        };
        let before = self.bare_copy(bytes)?;
        let (from_memory, ring) = through(&self.in_memory(self.sizes.batch)?)?;
        let (from_files, _) = through(&self.raw()?)?;
        let bare = self.bare_copy(bytes)?.max(before);
        let measured = Measured::new("bandwidth")
            .with("loader_gb_per_s", from_memory / 1e9)
            .with("loader_from_files_gb_per_s", from_files / 1e9)
            .with("bare_copy_gb_per_s", bare / 1e9)
            .with("copies_of_the_loader_gb_per_s", ring.timed_bytes as f64 / ring.copying.as_secs_f64() / 1e9)
            .with("host_copy_by_all_cores_gb_per_s", host_copy() / 1e9)
            .with("share", from_memory / bare)
            .with("share_from_files", from_files / bare)
            .with("batches", ring.crossed as f64)
            .with("handed_over_before_copied", ring.late as f64)
            .with("ring_bytes", ring.bytes as f64);
        Ok(measured.wants("the loader brings 90 % of a bare copy", from_memory >= 0.9 * bare))
    }

    /// A ResNet-50 in bf16, trained on what the data set delivers and on one batch that stays.
    fn training(&self, name: &str, dataset: &Dataset) -> Result<Measured> {
        // Not by `on_device`, whose kernels would stand before the mark of a step's beginning and count as waiting.
        let kind = if self.device == Device::Cpu { Kind::Float } else { Kind::BFloat16 };
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(self.device.into());
        let (mean, std) = (constant(IMAGENET_MEAN), constant(IMAGENET_STD));
        let mut loader = self.loader(dataset)?;
        let mut store = nn::VarStore::new(self.device.into());
        let network: Box<dyn nn::ModuleT> = if self.device == Device::Cpu {
            Box::new(tch::vision::resnet::resnet18(&store.root(), 1000))
        } else {
            Box::new(tch::vision::resnet::resnet50(&store.root(), 1000))
        };
        if self.device != Device::Cpu {
            store.bfloat16();
        }
        let mut optimizer = nn::Sgd { momentum: 0.9, ..Default::default() }.build(&store, 0.01)?;
        let mut step = |images: &Tensor, labels: &Tensor| -> Result<()> {
            let floats = images.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
            let images = ((floats - &mean) / &std).to_kind(kind);
            let loss = network.forward_t(&images, true).to_kind(Kind::Float).cross_entropy_for_logits(labels);
            optimizer.backward_step(&loss);
            Ok(())
        };
        let (mut clock, mut seen, mut kept) = (Clock::new(self.device)?, 0, None);
        let (steps, seconds, before) = self.take(&mut loader, |batch| {
            let (images, labels) = (batch.tensor("image")?, batch.tensor("label")?);
            let measured = seen >= self.sizes.warm_up;
            seen += 1;
            // A mark where a step begins, which is behind its copy, and one where it ends.
            if measured {
                clock.mark()?;
            }
            step(&images, &labels)?;
            if measured {
                clock.mark()?;
            }
            kept.get_or_insert((images, labels));
            Ok(())
        })?;
        let report = loader.report();
        eprint!("{report}\n\n");
        let idle = clock.share_between_steps()?;
        drop(loader);
        let (images, labels) = kept.ok_or("no batch came")?;
        (0..self.sizes.warm_up).try_for_each(|_| step(&images, &labels))?;
        self.synchronize();
        let (start, resident_steps, mut clock) = (Instant::now(), steps.min(100), Clock::new(self.device)?);
        for _ in 0..resident_steps {
            clock.mark()?;
            step(&images, &labels)?;
            clock.mark()?;
        }
        self.synchronize();
        let resident = start.elapsed().as_secs_f64() / resident_steps as f64;
        let samples = self.sizes.batch as f64;
        let lack = ring(&report).device_wait.saturating_sub(ring(&before).device_wait);
        let measured = Measured::new(name)
            .with("samples_per_s", steps as f64 * samples / seconds)
            .with("samples_per_s_of_a_batch_that_stays", samples / resident)
            .with("share_of_a_batch_that_stays", resident * steps as f64 / seconds)
            .with("device_idle_share", idle)
            .with("device_idle_share_with_a_batch_that_stays", clock.share_between_steps()?)
            .with("device_wait_share_as_reported", lack.as_secs_f64() / seconds)
            .with("next_wait_share", (report.total_wait() - before.total_wait()).as_secs_f64() / seconds)
            .with("handed_over_before_copied", ring(&report).late as f64)
            .with("steps", steps as f64);
        Ok(measured.wants("the device waits less than 1 % of its time", idle < 0.01))
    }

    /// Rows of known numbers: their sums on the device are known beforehand.
    fn stress(&self) -> Result<Measured> {
        const WIDTH: usize = 1024;
        const BATCH: usize = 192;
        let rows = 8192;
        let number = |row: u64, at: usize| (row as i64).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> (at % 48);
        let values = (0..rows).flat_map(|row| (0..WIDTH).map(move |at| number(row, at)));
        let item = Arc::new(Field::new_list_field(DataType::Int64, false));
        let lists = FixedSizeListArray::new(item, WIDTH as i32, Arc::new(Int64Array::from_iter_values(values)), None);
        let dataset = Dataset::from_columns([("x", Arc::new(lists) as ArrayRef)])?;
        // With one batch ahead its copy has to wait for the kernels of the step before last, and the step that takes it for its copy.
        let dataset = dataset.shuffle(Shuffle::buffer(4096)).batch(BATCH).prefetch(1);
        let mut loader = self.loader(&dataset)?;
        let sum_of = |row: u64| (0..WIDTH).fold(0i64, |sum, at| sum.wrapping_add(number(row, at)));
        let sums_of_rows: Vec<i64> = (0..rows).map(sum_of).collect();
        // Compared every so many steps, so that the host runs ahead in between.
        const EVERY: usize = 1000;
        // Of loaders that are slower the steps are as long as for this one; and no loader has longer than that in all.
        const SLOWEST: f64 = 0.001;
        const LONGEST: Duration = Duration::from_secs(180);
        let sums = Tensor::zeros([EVERY as i64], (Kind::Int64, self.device.into()));
        // As many products as take the device longer than the loader takes for a batch, so that it lags behind the host.
        let matrix = self.matrix(self.sizes.small_matrix)?;
        let loader_alone = self.seconds_of_a_batch(&mut loader, 500)?;
        let product = self.seconds_of_a_product(&matrix)?;
        let products = (1.5 * loader_alone.min(SLOWEST) / product).ceil().max(1.0) as usize;
        // What comes and goes below is given out of this, once the allocator has it: what grows beside is a leak.
        drop(Tensor::f_zeros([256 << 20], (Kind::Uint8, self.device.into()))?);
        let mut expected: Vec<i64> = Vec::with_capacity(EVERY);
        let (mut held, mut state) = (Vec::<Tensor>::new(), 1u64);
        let (mut steps, mut wrong, mut memory) = (0u64, 0usize, Vec::new());
        let (before, start) = (ring(&loader.report()), Instant::now());
        'steps: loop {
            for batch in &mut loader {
                let batch = batch?;
                // Kernels in front of the one that reads the batch: the device falls behind the host.
                (0..products).try_for_each(|_| matrix.f_matmul(&matrix).map(drop))?;
                let x = batch.tensor("x")?;
                let mut place = sums.f_get(expected.len() as i64)?;
                place.f_copy_(&x.f_sum(Kind::Int64)?)?;
                let of_samples = batch.samples().iter().map(|&row| sums_of_rows[row as usize]);
                expected.push(of_samples.fold(0, i64::wrapping_add));
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
                    let found: Vec<i64> = Vec::try_from(&sums.f_to_device(tch::Device::Cpu)?)?;
                    wrong += found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
                    expected.clear();
                    memory.push((resident_bytes(), clock::device_bytes(self.device)?));
                }
                if last {
                    break 'steps;
                }
            }
        }
        let (after, seconds) = (ring(&loader.report()), start.elapsed().as_secs_f64());
        let waited = (after.device_wait - before.device_wait).as_secs_f64() / seconds;
        // The first tenth warms up allocators.
        let (early, late) = (memory[memory.len() / 10], memory[memory.len() - 1]);
        let growth = |from: u64, to: u64| to as f64 - from as f64;
        let measured = Measured::new("stress")
            .with("steps", steps as f64)
            .with("wrong_checksums", wrong as f64)
            .with("handed_over_before_copied", (after.late - before.late) as f64)
            .with("device_wait_share", waited)
            .with("products_a_step", products as f64)
            .with("step_s", seconds / steps as f64)
            .with("locked_bytes", after.bytes as f64)
            .with("host_growth_bytes", growth(early.0, late.0))
            .with("device_growth_bytes", growth(early.1, late.1));
        let steady = growth(early.0, late.0) < 64e6 && growth(early.1, late.1) < 16e6;
        let measured = measured.wants("every checksum is the host's", wrong == 0);
        // Else copies had nothing to wait for, and the checksums say little.
        let lags = after.timed > before.timed && waited < 0.5;
        let measured = measured.wants("the device is kept waiting for less than half of the time", lags);
        let measured = measured.wants("all steps were taken", steps == self.sizes.stress_steps);
        Ok(measured.wants("memory is steady", steady))
    }

    fn matrix(&self, extent: i64) -> Result<Tensor> {
        Ok(Tensor::f_rand([extent, extent], (Kind::Float, self.device.into()))?)
    }

    /// Seconds that the loader takes for a batch which the loop only takes, the device being idle.
    fn seconds_of_a_batch(&self, loader: &mut Loader, batches: usize) -> Result<f64> {
        let mut taken = 0;
        let mut start = Instant::now();
        while taken < batches + self.sizes.warm_up {
            for batch in &mut *loader {
                drop(batch?);
                taken += 1;
                if taken == self.sizes.warm_up {
                    self.synchronize();
                    start = Instant::now();
                }
                if taken == batches + self.sizes.warm_up {
                    break;
                }
            }
        }
        self.synchronize();
        Ok(start.elapsed().as_secs_f64() / batches as f64)
    }

    /// Seconds that the device takes to multiply a matrix by itself.
    fn seconds_of_a_product(&self, matrix: &Tensor) -> Result<f64> {
        let products = |times: usize| -> Result<f64> {
            let start = Instant::now();
            (0..times).try_for_each(|_| matrix.f_matmul(matrix).map(drop))?;
            self.synchronize();
            Ok(start.elapsed().as_secs_f64() / times as f64)
        };
        products(10)?;
        products(50)
    }

    /// Steps of matrix products, four times as long as the loader takes for a batch: how much of the copies runs beside them, by events on the device.
    fn overlap(&self) -> Result<Measured> {
        let batch = 4 * self.sizes.batch;
        let mut loader = self.loader(&self.in_memory(batch)?)?;
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
        let (batches, seconds, before) = self.take(&mut loader, |_| step())?;
        let before = ring(&before);
        let report = loader.report();
        eprint!("{report}\n\n");
        drop(loader);
        let with_batches = seconds / batches as f64;
        let (start, steps) = (Instant::now(), batches.min(300));
        (0..steps).try_for_each(|_| step())?;
        let without = start.elapsed().as_secs_f64() / steps as f64;
        let after = ring(&report);
        let copying = (after.copying - before.copying).as_secs_f64();
        let hidden = 1.0 - (after.device_wait_for_copies - before.device_wait_for_copies).as_secs_f64() / copying;
        let measured = Measured::new("overlap")
            .with("step_s", without)
            .with("step_with_batch_s", with_batches)
            .with("copy_of_a_batch_s", copying / (after.timed - before.timed) as f64)
            .with("loader_alone_s", loader_alone)
            .with("hidden_share_of_the_copies", hidden);
        Ok(measured.wants("90 % of the copies is hidden behind steps", hidden >= 0.9))
    }

    /// Images of the user's shards to the device, for one epoch or until the time is over.
    fn data(&self, urls: &[String]) -> Result<Measured> {
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let dataset = self.crops(&urls, "image/encoded")?;
        let mut loader = self.loader(&dataset)?;
        let (start, mut images, mut checksum) = (Instant::now(), 0, Vec::new());
        for batch in loader.epoch(0) {
            let batch = batch?;
            images += batch.len();
            // Read on the device, so that what is counted has arrived.
            checksum.push(batch.tensor("image/encoded")?.f_sum(Kind::Int64)?);
            if start.elapsed() >= self.sizes.time {
                break;
            }
        }
        let sum: i64 = checksum.iter().map(i64::try_from).sum::<Result<i64, _>>()?;
        let seconds = start.elapsed().as_secs_f64();
        eprint!("{}", loader.report());
        let measured = Measured::new("data")
            .with("images", images as f64)
            .with("images_per_s", images as f64 / seconds)
            .with("mean_pixel", sum as f64 / (images * RAW_BYTES).max(1) as f64);
        Ok(measured.wants("images came", images > 0))
    }
}

/// What the loader's ring has done; nothing on the CPU, which has none.
fn ring(report: &Report) -> RingReport {
    report.rings.first().copied().unwrap_or_default()
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

/// Resident memory of this process, in bytes; 0 where Linux does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0u64) * 1024
}
