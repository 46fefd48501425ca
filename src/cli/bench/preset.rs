//! Data and steps in the sizes that MLPerf Storage publishes for its training workloads.
//!
//! Records, batches and step times are as published (v1.0, `storage-conf/workload/*.yaml`), and so is which workloads are shuffled (`file_shuffle`
//! and `sample_shuffle: seed`). The number of files and of accelerators can be scaled, and both are printed. This is not a run of that benchmark: it
//! keeps neither its files (pictures and volumes) nor its rules (one process per accelerator, data of five times the memory, so that none of it is
//! read from the page cache).

use std::time::Duration;

use rand::RngCore as _;

use super::data;
use crate::plan::Shuffle;
use crate::random::Rng;

/// Accelerators with published step times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Model {
    A100,
    H100,
}

/// What is published about a workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preset {
    pub(super) records_per_file: u64,
    /// Bytes of a record: mean and standard deviation.
    pub(super) bytes: (f64, f64),
    pub(super) batch: usize,
    /// Whether `file_shuffle` and `sample_shuffle` are set.
    is_shuffled: bool,
    /// The default number of files.
    pub(super) files: u64,
    a100: Duration,
    h100: Duration,
    /// The corresponding workload of MLPerf Storage.
    published_as: &'static str,
}

impl Preset {
    /// Returns the note that accompanies every number.
    pub(super) fn note(&self, with_steps: bool) -> String {
        let workload = self.published_as;
        let what = if with_steps { "records, batches and steps" } else { "records and batches, but not steps," };
        format!(
            "{what} as large as published for MLPerf Storage's {workload}; not a result of it: one process, \
             with one pool of threads and one order of samples, feeds all accelerators, and there each has a process of its own"
        )
    }
}

pub(super) const RESNET50: Preset = Preset {
    records_per_file: data::RAW_RECORDS,
    bytes: (data::RAW_BYTES as f64, 0.0),
    batch: 400,
    is_shuffled: false,
    files: 4,
    a100: Duration::from_millis(435),
    h100: Duration::from_millis(224),
    published_as: "resnet50",
};

pub(super) const COSMOFLOW: Preset = Preset {
    records_per_file: 1,
    bytes: (2_828_486.0, 71_311.0),
    batch: 1,
    is_shuffled: true,
    files: 200,
    a100: Duration::from_micros(5510),
    h100: Duration::from_micros(3500),
    published_as: "cosmoflow",
};

pub(super) const UNET3D: Preset = Preset {
    records_per_file: 1,
    bytes: (146_600_628.0, 68_341_808.0),
    batch: 7,
    is_shuffled: true,
    // More than the three batches that are on their way at a time.
    files: 28,
    a100: Duration::from_millis(636),
    h100: Duration::from_millis(323),
    published_as: "unet3d",
};

impl Preset {
    pub(super) fn step(&self, model: Model) -> Duration {
        match model {
            Model::A100 => self.a100,
            Model::H100 => self.h100,
        }
    }

    /// Returns the shuffle. A global shuffle permutes files of one record as a buffer would. But a buffer would read its next segments ahead, which
    /// are most of so few files, so epochs would share reads.
    pub(super) fn shuffle(&self) -> Shuffle {
        if self.is_shuffled { Shuffle::global() } else { Shuffle::none() }
    }

    /// Returns the default number of samples.
    pub(super) fn samples(&self) -> u64 {
        self.files * self.records_per_file
    }

    /// Returns whether all records have the same size, and so are stacked.
    pub(super) fn is_fixed(&self) -> bool {
        self.bytes.1 == 0.0
    }

    /// Generates a record: noise of a length from the normal distribution. For `unet3d`, one length in 60 would be below zero, so the shortest
    /// records have a sixteenth of the mean.
    pub(super) fn record(&self, rng: &mut Rng, record: &mut Vec<u8>) {
        let (mean, deviation) = self.bytes;
        let bytes = if self.is_fixed() { mean } else { mean + deviation * data::normal(rng) };
        record.resize(bytes.max(mean / 16.0).round() as usize, 0);
        rng.fill_bytes(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    #[test]
    fn records_are_as_long_as_published() {
        let (mut rng, mut record) = (Key::new(0).rng(), Vec::new());
        RESNET50.record(&mut rng, &mut record);
        assert_eq!(record.len(), 114_660);
        // A thousandth of it, which is faster.
        let small = Preset { bytes: (2_828.486, 71.311), ..COSMOFLOW };
        let mut lengths = Vec::new();
        for _ in 0..4000 {
            small.record(&mut rng, &mut record);
            lengths.push(record.len() as f64);
        }
        let mean = lengths.iter().sum::<f64>() / 4000.0;
        let deviation = (lengths.iter().map(|length| (length - mean).powi(2)).sum::<f64>() / 4000.0).sqrt();
        assert!((mean - 2_828.5).abs() < 5.0 && (deviation - 71.3).abs() < 3.0, "{mean} {deviation}");
    }

    #[test]
    fn no_record_is_shorter_than_a_sixteenth() {
        let (mut rng, mut record) = (Key::new(0).rng(), Vec::new());
        let small = Preset { bytes: (1600.0, 800.0), ..UNET3D };
        let mut lengths: Vec<usize> = (0..2000)
            .map(|_| {
                small.record(&mut rng, &mut record);
                record.len()
            })
            .collect();
        lengths.sort_unstable();
        assert_eq!(lengths[0], 100);
        assert!(lengths.iter().filter(|length| **length == 100).count() < 100, "a few alone");
    }
}
