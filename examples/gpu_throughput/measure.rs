//! What all measurements need: a device, shards, and ways to take batches.

use std::time::{Duration, Instant};

use forebay::telemetry::{Report, RingReport};
use forebay::{Batch, Budget, Dataset, Device, Dtype, Image, Layout, Loader, Shuffle, bytes, int64};
use tch::{Kind, Tensor};

use super::Result;
use super::measured::Measured;
use super::shards::{RAW_BYTES, Shards};

/// What is measured in turns is measured so often.
pub(crate) const TURNS: usize = 3;

/// Sizes of everything: as they are published, and small ones for a rehearsal.
pub(crate) struct Sizes {
    records: usize,
    /// Different photographs among the records.
    photos: usize,
    /// Rows in memory, of an image's bytes each: a multiple of four batches, and more than caches hold.
    pub(crate) rows: usize,
    pub(crate) batch: usize,
    /// How long each part of a turn runs.
    pub(crate) turn: Duration,
    pub(crate) stress_steps: u64,
    /// Steps after which an epoch is dropped before its end: no multiple of an epoch's 43.
    pub(crate) drop_every: u64,
    pub(crate) warm_up: usize,
    /// Memory that a loader may have: as much on every machine.
    pub(crate) budget: Budget,
    /// Rows and columns of a matrix whose square keeps a GPU busy for some 100 us; and for some milliseconds.
    pub(crate) small_matrix: i64,
    pub(crate) large_matrix: i64,
}

/// A device, the shards that are read for it, and how much is done.
pub(crate) struct Bench {
    pub(crate) device: Device,
    pub(crate) shards: Shards,
    pub(crate) sizes: Sizes,
}

impl Bench {
    pub(crate) fn new(device: Device) -> Result<Self> {
        let sizes = if device == Device::Cpu {
            Sizes {
                records: 64,
                photos: 4,
                rows: 64,
                batch: 2,
                turn: Duration::from_millis(100),
                stress_steps: 150,
                drop_every: 70,
                warm_up: 1,
                budget: Budget::mebibytes(1024),
                small_matrix: 64,
                large_matrix: 128,
            }
        } else {
            Sizes {
                records: 8192,
                photos: 1024,
                // 1.08 GB.
                rows: 7168,
                batch: 256,
                turn: Duration::from_secs(4),
                stress_steps: 100_000,
                drop_every: 2000,
                warm_up: 10,
                budget: Budget::mebibytes(8192),
                small_matrix: 1024,
                large_matrix: 4096,
            }
        };
        Ok(Self { device, shards: Shards::make(sizes.records, sizes.photos)?, sizes })
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
            "operations" => self.operations(),
            "overlap" => self.overlap(),
            other => Err(format!("there is no measurement {other:?}").into()),
        }
    }

    /// Raw `u8` images, as they are stored.
    pub(crate) fn raw(&self) -> Result<Dataset> {
        let columns = [bytes("image").raw(Dtype::U8, [224, 224, 3]), int64("label")];
        let dataset = Dataset::open([self.shards.raw.as_str()])?.columns(columns);
        Ok(dataset.shuffle(Shuffle::buffer(1024)).batch(self.sizes.batch).drop_remainder().prefetch(3))
    }

    /// Random crops of the JPEG images in a column.
    pub(crate) fn crops(&self, urls: &[&str], column: &str) -> Result<Dataset> {
        let crops = Image::rgb().random_resized_crop(224, 224).layout(Layout::Nhwc).to_u8();
        let dataset = Dataset::open(urls.to_vec())?.shuffle(Shuffle::buffer(1024)).image(column, crops);
        Ok(dataset.batch(self.sizes.batch).prefetch(3))
    }

    pub(crate) fn loader(&self, dataset: &Dataset) -> Result<Loader> {
        Ok(dataset.loader().device(self.device).budget(self.sizes.budget).build()?)
    }

    pub(crate) fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// Takes batches for a turn, epoch after epoch; how many, how long it took, and the loader's report before. `each` sees every batch, warm-up
    /// included, which counts for nothing.
    pub(crate) fn take(
        &self,
        loader: &mut Loader,
        mut each: impl FnMut(Batch) -> Result<()>,
    ) -> Result<(u64, f64, Report)> {
        let (mut taken, mut start, mut before) = (0u64, Instant::now(), loader.report());
        loop {
            for batch in &mut *loader {
                if taken == self.sizes.warm_up as u64 {
                    self.synchronize();
                    (before, start) = (loader.report(), Instant::now());
                }
                each(batch?)?;
                taken += 1;
                if taken > self.sizes.warm_up as u64 && start.elapsed() >= self.sizes.turn {
                    self.synchronize();
                    return Ok((taken - self.sizes.warm_up as u64, start.elapsed().as_secs_f64(), before));
                }
            }
        }
    }

    pub(crate) fn matrix(&self, extent: i64) -> Result<Tensor> {
        Ok(Tensor::f_rand([extent, extent], (Kind::Float, self.device.into()))?)
    }

    /// Seconds that the loader takes for a batch which the loop only takes, the device being idle.
    pub(crate) fn seconds_of_a_batch(&self, loader: &mut Loader, batches: usize) -> Result<f64> {
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
    pub(crate) fn seconds_of_a_product(&self, matrix: &Tensor) -> Result<f64> {
        let products = |times: usize| -> Result<f64> {
            let start = Instant::now();
            (0..times).try_for_each(|_| matrix.f_matmul(matrix).map(drop))?;
            self.synchronize();
            Ok(start.elapsed().as_secs_f64() / times as f64)
        };
        products(10)?;
        products(50)
    }

    /// Images of the user's shards to the device, for one epoch or until the time is over.
    fn data(&self, urls: &[String]) -> Result<Measured> {
        const COLUMN: &str = "image/encoded";
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let dataset = self.crops(&urls, COLUMN)?;
        let mut loader = self.loader(&dataset)?;
        let (start, mut images, mut sums) = (Instant::now(), 0, Vec::new());
        for batch in loader.epoch(0) {
            let batch = batch?;
            images += batch.len();
            // Read on the device, so that what is counted has arrived.
            sums.push(batch.tensor(COLUMN)?.f_sum(Kind::Int64)?);
            if start.elapsed() >= 5 * self.sizes.turn {
                break;
            }
        }
        let sums = sums.iter().map(i64::try_from).collect::<Result<Vec<_>, _>>()?;
        let seconds = start.elapsed().as_secs_f64();
        let report = loader.report();
        drop(loader);
        // The first of them once more, on the host.
        let mut on_host = dataset.loader().budget(self.sizes.budget).build()?;
        let mut wrong = 0;
        for (batch, sum) in on_host.epoch(0).zip(sums.iter().take(10)) {
            wrong += u64::from(i64::try_from(&batch?.tensor(COLUMN)?.f_sum(Kind::Int64)?)? != *sum);
        }
        let measured = Measured::new("data")
            .with_report(&report)
            .with("images", images as f64)
            .with("images_per_s", images as f64 / seconds)
            .with("mean_pixel", sums.iter().sum::<i64>() as f64 / (images * RAW_BYTES).max(1) as f64)
            .with("wrong_checksums_of_the_first_batches", wrong as f64);
        Ok(measured.wants("images came", images > 0).wants("the first batches have the host's checksums", wrong == 0))
    }
}

/// What the loader's ring has done; nothing on the CPU, which has none.
pub(crate) fn ring(report: &Report) -> RingReport {
    report.rings.first().copied().unwrap_or_default()
}
