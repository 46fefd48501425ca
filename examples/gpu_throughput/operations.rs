//! What is done on the device beside copying: operations on batches, the parts of a split, exports.
#![expect(unsafe_code, reason = "an export of DLPack is a raw pointer")]

use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use forebay::{Batch, Dataset, Dtype, Layout, OnDevice, bytes, int64};
use tch::{Kind, Tensor};

use super::Result;
use super::known::{self, COLUMNS, Known, ROWS};
use super::measure::Bench;
use super::measured::Measured;

const BATCH: usize = 8;
const BATCHES: usize = 4;

/// Rounding of `f32` in another order, for values up to 3.
const F32: f64 = 1e-5;
/// One step of each dtype at such values: the `f32` before may lie on either side of the middle.
const F16: f64 = 1.0 / 512.0;
const BF16: f64 = 1.0 / 64.0;

impl Bench {
    pub(crate) fn operations(&self) -> Result<Measured> {
        let images = |layout| OnDevice::images("image").layout(layout).horizontal_flip(0.5);
        let (nhwc, nchw) = (|| images(Layout::Nhwc), || images(Layout::Nchw));
        let normalized = || nhwc().channels_first().normalize(IMAGENET_MEAN, IMAGENET_STD);
        let labelled = |operations: OnDevice| operations.labels("label", 1000).label_smoothing(0.1);
        let (last, first) = ([224, 224, 3], [3, 224, 224]);
        // As images are stored, what is done to them, and how far device and CPU may be apart.
        let cases = [
            ("channels_first_u8_off_by", last, nhwc().channels_first(), 0.0),
            ("channels_last_u8_off_by", first, nchw().channels_last(), 0.0),
            ("normalize_f32_off_by", last, normalized(), F32),
            ("normalize_f16_off_by", last, normalized().to(Kind::Half), F16),
            ("normalize_bf16_off_by", last, normalized().to(Kind::BFloat16), BF16),
            (
                "normalize_channels_last_f32_off_by",
                first,
                nchw().channels_last().normalize(IMAGENET_MEAN, IMAGENET_STD),
                F32,
            ),
            ("mixup_f32_off_by", last, labelled(normalized()).mixup(0.8, 1.0), F32),
            ("mixup_bf16_off_by", last, labelled(normalized()).mixup(0.8, 1.0).to(Kind::BFloat16), BF16),
            ("cutmix_f32_off_by", last, labelled(nhwc()).cutmix(1.0, 1.0), F32),
            ("cutmix_f16_off_by", last, labelled(normalized()).cutmix(1.0, 1.0).to(Kind::Half), F16),
        ];
        let mut measured = Measured::new("operations");
        for (name, extents, operations, most) in cases {
            let off_by = self.off_by(extents, &operations)?;
            measured = measured.with(name, off_by).wants(format!("{name} {most} at most"), off_by <= most);
        }
        let known = Known::new(self.device.into())?;
        let (samples, wrong, exported) = self.split(&known)?;
        Ok(measured
            .with("samples_of_a_split", samples as f64)
            .with("wrong_checksums_of_a_split", wrong as f64)
            .wants("each sample comes in one part of the split", samples == ROWS)
            .wants("every checksum of the split's parts is the host's", wrong == 0)
            .wants("exports by DLPack are the tensors' memory, on their device", exported))
    }

    /// The largest difference between images, or labels, of the device and of the CPU. Another shape, dtype or place is an error.
    fn off_by(&self, extents: [usize; 3], operations: &OnDevice) -> Result<f64> {
        let columns = [bytes("image").raw(Dtype::U8, extents), int64("label")];
        let dataset =
            Dataset::open([self.shards.raw.as_str()])?.columns(columns).take((BATCHES * BATCH) as u64).batch(BATCH);
        let loader = || dataset.loader().seed(7).budget(self.sizes.budget).on_device(operations.clone());
        let (mut on_host, mut on_device) = (loader().build()?, loader().device(self.device).build()?);
        let (mut most, mut batches) = (0f64, 0);
        for (host, device) in on_host.epoch(0).zip(on_device.epoch(0)) {
            let (host, device) = (host?, device?);
            batches += 1;
            for name in ["image", "label"] {
                let (host, device) = (host.tensor(name)?, device.tensor(name)?);
                if (host.size(), host.kind(), self.device.into()) != (device.size(), device.kind(), device.device()) {
                    return Err(format!("{host:?} on the host, {device:?} on the device").into());
                }
                let doubles = |tensor: &Tensor| tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double);
                let off_by = f64::try_from(doubles(&host)?.f_sub(&doubles(&device)?)?.f_abs()?.f_max()?)?;
                // What is no number stays.
                if off_by > most || off_by.is_nan() {
                    most = off_by;
                }
            }
        }
        if batches == BATCHES { Ok(most) } else { Err(format!("{batches} batches, of {BATCHES}").into()) }
    }

    /// An epoch shared by the device with itself: samples that came, wrong checksums, and whether what is exported is right.
    fn split(&self, known: &Known) -> Result<(u64, usize, bool)> {
        let mut loader = self.loader(&known.dataset.batch(known::BATCH).prefetch(2))?;
        let mut parts = loader.split(&[self.device; 2])?;
        let (mut samples, mut wrong, mut exported) = (0, 0, true);
        while let (Some(one), Some(other)) = (parts[0].next(), parts[1].next()) {
            for part in [one?, other?] {
                let found: Vec<i64> = Vec::try_from(&known.on_device(&part)?.f_to_device(tch::Device::Cpu)?)?;
                samples += part.len() as u64;
                wrong += found.iter().zip(known.of(&part)).filter(|(found, expected)| *found != expected).count();
                for name in COLUMNS {
                    exported &= is_exported(&part, name)?;
                }
            }
        }
        Ok((samples, wrong, exported))
    }
}

/// Whether an export of a column by DLPack names the tensor's device and is its memory.
fn is_exported(batch: &Batch, column: &str) -> Result<bool> {
    let tensor = batch.tensor(column)?;
    // `kDLCUDA` and `kDLCPU` of dlpack.h.
    let place = match tensor.device() {
        tch::Device::Cuda(index) => (2, i32::try_from(index)?),
        _ => (1, 0),
    };
    let raw = batch.to_dlpack(column)?.into_raw();
    // SAFETY: the export is whole until its deleter is called, which happens here alone.
    let (device, data) = unsafe {
        let exported = &(*raw).dl_tensor;
        let seen = (exported.device, exported.data.wrapping_byte_add(exported.byte_offset as usize));
        (*raw).deleter.ok_or("no deleter")?(raw);
        seen
    };
    Ok((device.device_type, device.device_id) == place && data == tensor.data_ptr())
}
