//! The measurements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, FixedSizeListArray, Int64Array};
use arrow::datatypes::{DataType, Field};
use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use forebay::{Batch, Dataset, Device, Dtype, Image, Layout, Loader, Shuffle, bytes, int64};
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
}

impl Measured {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), values: BTreeMap::new(), wanted: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: f64) -> Self {
        self.values.insert(name, value);
        self
    }

    fn wants(mut self, what: impl Into<String>, so: bool) -> Self {
        self.wanted.push((what.into(), so));
        self
    }

    /// Numbers, and what was wanted of them where that means something.
    pub(crate) fn print(&self, is_rehearsal: bool) {
        println!("{}", self.name);
        self.values.iter().for_each(|(name, value)| println!("  {name:<36} {value:>14.4}"));
        if is_rehearsal {
            return;
        }
        self.wanted.iter().for_each(|(what, so)| println!("  {}: {what}", if *so { "good" } else { "MISSED" }));
    }

    pub(crate) fn is_good(&self) -> bool {
        self.wanted.iter().all(|(_, so)| *so)
    }
}

/// Sizes of everything: as they are published, and small ones for a rehearsal.
struct Sizes {
    records: usize,
    batch: usize,
    /// How long each part of a measurement runs, at most.
    time: Duration,
    stress_steps: u64,
    warm_up: usize,
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
            let time = Duration::from_millis(500);
            Sizes { records: 64, batch: 16, time, stress_steps: 300, warm_up: 1 }
        } else {
            Sizes { records: 8192, batch: 256, time: Duration::from_secs(20), stress_steps: 100_000, warm_up: 10 }
        };
        Ok(Self { device, shards: Shards::make(sizes.records)?, sizes })
    }

    pub(crate) fn describe(&self) -> String {
        clock::describe(self.device).unwrap_or_else(|_| self.device.to_string())
    }

    pub(crate) fn measure(&self, name: &str) -> Result<Measured> {
        match name {
            "bandwidth" => self.bandwidth(),
            "raw" => self.training(name, &self.raw()?),
            "images" => self.training(name, &self.crops(&[&self.shards.jpeg], "image")?.drop_remainder()),
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

    /// Random crops of the JPEG images in a column.
    fn crops(&self, urls: &[&str], column: &str) -> Result<Dataset> {
        let crops = Image::rgb().random_resized_crop(224, 224).layout(Layout::Nhwc).to_u8();
        let dataset = Dataset::open(urls.to_vec())?.shuffle(Shuffle::buffer(1024)).image(column, crops);
        Ok(dataset.batch(self.sizes.batch).prefetch(3))
    }

    fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// Takes batches until the time is over, epoch after epoch; how many, and how long it took. `each` sees every batch, warm-up included.
    fn take(&self, loader: &mut Loader, mut each: impl FnMut(Batch) -> Result<()>) -> Result<(u64, f64)> {
        let (mut taken, mut start) = (0u64, Instant::now());
        loop {
            for batch in &mut *loader {
                if taken == self.sizes.warm_up as u64 {
                    self.synchronize();
                    start = Instant::now();
                }
                each(batch?)?;
                taken += 1;
                if taken > self.sizes.warm_up as u64 && start.elapsed() >= self.sizes.time {
                    self.synchronize();
                    return Ok((taken - self.sizes.warm_up as u64, start.elapsed().as_secs_f64()));
                }
            }
        }
    }

    fn bandwidth(&self) -> Result<Measured> {
        let mut loader = self.raw()?.loader().device(self.device).build()?;
        let (batches, seconds) = self.take(&mut loader, |_| Ok(()))?;
        let through = (batches as usize * self.sizes.batch * RAW_BYTES) as f64 / seconds;
        let ring = loader.report().rings.first().copied();
        drop(loader);
        // As many bytes at a time, from memory that is page-locked where there is a GPU, to memory that is there.
        let bytes = (self.sizes.batch * RAW_BYTES) as i64;
        let host = Tensor::zeros([bytes], (Kind::Uint8, tch::Device::Cpu));
        let host = if self.device == Device::Cpu { host } else { host.f_pin_memory(self.device.into())? };
        let mut on_device = Tensor::zeros([bytes], (Kind::Uint8, self.device.into()));
        let copy = |to: &mut Tensor, times: usize| -> Result<()> {
            (0..times).try_for_each(|_| to.f_copy_(&host))?;
            self.synchronize();
            Ok(())
        };
        copy(&mut on_device, self.sizes.warm_up)?;
        let (start, times) = (Instant::now(), 200);
        copy(&mut on_device, times)?;
        let bare = (times as i64 * bytes) as f64 / start.elapsed().as_secs_f64();
        let measured = Measured::new("bandwidth")
            .with("loader_gb_per_s", through / 1e9)
            .with("bare_copy_gb_per_s", bare / 1e9)
            .with("share", through / bare)
            .with("batches", batches as f64)
            .with("ring_bytes", ring.map_or(0.0, |ring| ring.bytes as f64))
            .with("handed_over_before_copied", ring.map_or(0.0, |ring| ring.late as f64));
        Ok(measured.wants("the loader brings 90 % of a bare copy", through >= 0.9 * bare))
    }

    /// A ResNet-50 in bf16, trained on what the data set delivers and on one batch that stays.
    fn training(&self, name: &str, dataset: &Dataset) -> Result<Measured> {
        // Not by `on_device`, whose kernels would stand before the mark of a step's beginning and count as waiting.
        let kind = if self.device == Device::Cpu { Kind::Float } else { Kind::BFloat16 };
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(self.device.into());
        let (mean, std) = (constant(IMAGENET_MEAN), constant(IMAGENET_STD));
        let mut loader = dataset.loader().device(self.device).build()?;
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
        let (mut clock, mut seen, mut kept) = (Clock::new(self.device), 0, None);
        let before = loader.report();
        let (steps, seconds) = self.take(&mut loader, |batch| {
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
        let laps = clock.laps()?;
        let (mut working, mut waiting) = (0.0, 0.0);
        for (number, lap) in laps.iter().enumerate() {
            *(if number % 2 == 0 { &mut working } else { &mut waiting }) += lap;
        }
        drop(loader);
        let (images, labels) = kept.ok_or("no batch came")?;
        (0..self.sizes.warm_up).try_for_each(|_| step(&images, &labels))?;
        self.synchronize();
        let (start, resident_steps) = (Instant::now(), steps.min(100));
        (0..resident_steps).try_for_each(|_| step(&images, &labels))?;
        self.synchronize();
        let resident = start.elapsed().as_secs_f64() / resident_steps as f64;
        let samples = self.sizes.batch as f64;
        let idle = waiting / (working + waiting);
        let measured = Measured::new(name)
            .with("samples_per_s", steps as f64 * samples / seconds)
            .with("samples_per_s_of_a_batch_that_stays", samples / resident)
            .with("share_of_a_batch_that_stays", resident * steps as f64 / seconds)
            .with("device_idle_share", idle)
            .with("next_wait_share", (report.total_wait() - before.total_wait()).as_secs_f64() / seconds)
            .with("handed_over_before_copied", report.rings.first().map_or(0.0, |ring| ring.late as f64))
            .with("steps", steps as f64);
        Ok(measured.wants("the device waits less than 1 % of its time", idle < 0.01))
    }

    /// Rows of known numbers: their sums on the device are known beforehand.
    fn stress(&self) -> Result<Measured> {
        const WIDTH: usize = 64;
        const BATCH: usize = 32;
        let rows = 64 * 1024;
        let number = |row: u64, at: usize| (row as i64).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> (at % 48);
        let values = (0..rows).flat_map(|row| (0..WIDTH).map(move |at| number(row, at)));
        let item = Arc::new(Field::new_list_field(DataType::Int64, false));
        let lists = FixedSizeListArray::new(item, WIDTH as i32, Arc::new(Int64Array::from_iter_values(values)), None);
        let dataset = Dataset::from_columns([("x", Arc::new(lists) as ArrayRef)])?;
        let dataset = dataset.shuffle(Shuffle::buffer(4096)).batch(BATCH);
        let mut loader = dataset.loader().device(self.device).build()?;
        let sum_of = |row: u64| (0..WIDTH).fold(0i64, |sum, at| sum.wrapping_add(number(row, at)));
        // Compared every so many steps, so that the host runs ahead in between.
        const EVERY: usize = 1000;
        let sums = Tensor::zeros([EVERY as i64], (Kind::Int64, self.device.into()));
        let mut expected: Vec<i64> = Vec::with_capacity(EVERY);
        let (mut held, mut state) = (Vec::<Tensor>::new(), 1u64);
        let (mut steps, mut wrong, mut memory) = (0u64, 0usize, Vec::new());
        'steps: loop {
            for batch in &mut loader {
                let batch = batch?;
                let x = batch.tensor("x")?;
                let mut place = sums.f_get(expected.len() as i64)?;
                place.f_copy_(&x.f_sum(Kind::Int64)?)?;
                expected.push(batch.samples().iter().fold(0, |sum, &row| sum.wrapping_add(sum_of(row))));
                // What a model does to the allocator: tensors of any size come and go, and are written to.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let bytes = 1 << (9 + (state >> 60)) | (state >> 40) & 0xfff;
                held.push(Tensor::f_full([bytes as i64], 255, (Kind::Uint8, self.device.into()))?);
                if held.len() > 16 {
                    drop(held.swap_remove((state >> 33) as usize % held.len()));
                }
                steps += 1;
                let last = steps == self.sizes.stress_steps;
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
        let locked = loader.report().rings.first().map_or(0, |ring| ring.bytes);
        // The first tenth warms up allocators.
        let (early, late) = (memory[memory.len() / 10], memory[memory.len() - 1]);
        let growth = |from: u64, to: u64| to as f64 - from as f64;
        let measured = Measured::new("stress")
            .with("steps", steps as f64)
            .with("wrong_checksums", wrong as f64)
            .with("locked_bytes", locked as f64)
            .with("host_growth_bytes", growth(early.0, late.0))
            .with("device_growth_bytes", growth(early.1, late.1));
        let steady = growth(early.0, late.0) < 64e6 && growth(early.1, late.1) < 64e6;
        Ok(measured.wants("every checksum is the host's", wrong == 0).wants("memory is steady", steady))
    }

    /// Steps of matrix products, as long as a copy, beside copies.
    fn overlap(&self) -> Result<Measured> {
        let mut loader = self.raw()?.loader().device(self.device).build()?;
        let (batches, seconds) = self.take(&mut loader, |_| Ok(()))?;
        let copies = seconds / batches as f64;
        let extent = if self.device == Device::Cpu { 128 } else { 4096 };
        let matrix = Tensor::f_rand([extent, extent], (Kind::Float, self.device.into()))?;
        let product = |times: usize| -> Result<f64> {
            self.synchronize();
            let start = Instant::now();
            (0..times).try_for_each(|_| matrix.f_matmul(&matrix).map(drop))?;
            self.synchronize();
            Ok(start.elapsed().as_secs_f64() / times as f64)
        };
        product(3)?;
        let one = product(20)?;
        let times = ((copies / one) as usize).max(1);
        let steps = product(times * 20)? * times as f64;
        let mut loader = self.raw()?.loader().device(self.device).build()?;
        let (batches, seconds) = self.take(&mut loader, |_| {
            (0..times).try_for_each(|_| matrix.f_matmul(&matrix).map(drop))?;
            // One step ahead of the device, as a loop that looks at its loss is.
            self.synchronize();
            Ok(())
        })?;
        let both = seconds / batches as f64;
        let hidden = (copies + steps - both) / copies.min(steps);
        let measured = Measured::new("overlap")
            .with("copies_alone_s", copies)
            .with("steps_alone_s", steps)
            .with("both_s", both)
            .with("hidden_share_of_the_shorter", hidden);
        Ok(measured.wants("90 % of the shorter is hidden", hidden >= 0.9))
    }

    /// Images of the user's shards to the device, for one epoch or until the time is over.
    pub(crate) fn data(&self, urls: &[String]) -> Result<Measured> {
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let dataset = self.crops(&urls, "image/encoded")?;
        let mut loader = dataset.loader().device(self.device).build()?;
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

/// Resident memory of this process, in bytes; 0 where Linux does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0u64) * 1024
}
