//! Benchmarks over Parquet: their data, generated from a seed; their columns; and the bare loops for comparison.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use rand::Rng as _;

use super::data;
use super::limit::{Limit, memory, rate};
use super::workload::{Input, Workload};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::random::Rng;
use crate::schema::{Column, Dtype, Shape, bytes};

/// Tokens per row of `tokens`: a sequence of a language model.
pub(super) const TOKENS: usize = 2048;
/// The number of different tokens: the vocabulary of GPT-2.
const VOCABULARY: f64 = 50_257.0;

/// Columns of `wide`, and the step between those that are read: every fifth.
const WIDE_COLUMNS: usize = 200;
const WIDE_STEP: usize = 5;

/// Values in the columns of `latents`: 2,164,832 bytes per sample, the shape of the flux workload of MLPerf Storage.
pub(super) const LATENTS: [(&str, usize); 5] =
    [("latent", 524_328), ("pooled", 409), ("prompt", 8_232), ("negative", 8_232), ("sizes", 7)];

/// Returns the number of files, and the rows of a row group.
pub(super) fn layout(workload: Workload, samples: u64) -> (u64, usize) {
    match workload {
        Workload::Tokens => (4, 1_000),
        Workload::Latents => (samples.div_ceil(48), 48),
        // As many files as rows: a record of megabytes each.
        _ if workload.preset().is_some() => (samples, 1),
        _ => (4, 65_536),
    }
}

/// Writes one file; returns the sum over its samples.
pub(super) fn write(
    workload: Workload,
    snappy: bool,
    path: &Path,
    samples: std::ops::Range<u64>,
    group: usize,
    done: &dyn Fn(u64),
) -> Result<u64> {
    let url = path.display().to_string();
    let failed = |e: parquet::errors::ParquetError| {
        Error::new(ErrorKind::Transfer, "the bench's data cannot be written").because(e).url(url.clone())
    };
    let is_noise = workload == Workload::Latents || workload.preset().is_some();
    let compression = match workload {
        _ if is_noise => Compression::UNCOMPRESSED,
        _ if snappy => Compression::SNAPPY,
        _ => Compression::ZSTD(ZstdLevel::default()),
    };
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(group))
        .set_dictionary_enabled(!is_noise);
    let properties = match workload.preset() {
        // No bounds of noise, which are kept beside it.
        Some(_) => properties.set_statistics_enabled(EnabledStatistics::None),
        None => properties,
    };
    let file = File::create(path).map_err(|e| failed(e.into()))?;
    let (mut writer, mut sum) = (None, 0u64);
    let piece = if workload == Workload::Latents { 8 } else { group as u64 };
    for start in samples.clone().step_by(piece as usize) {
        let rows = (samples.end - start).min(piece) as usize;
        let batch = rows_of(workload, start, rows);
        sum = sum.wrapping_add(sum_of(&batch)?);
        let writer = match &mut writer {
            Some(writer) => writer,
            none => none
                .insert(ArrowWriter::try_new(&file, batch.schema(), Some(properties.clone().build())).map_err(failed)?),
        };
        writer.write(&batch).map_err(failed)?;
        done(rows as u64);
    }
    writer.map_or(Ok(()), |writer| writer.close().map(drop)).map_err(failed)?;
    Ok(sum)
}

/// Generates rows, beginning with row `start`.
fn rows_of(workload: Workload, start: u64, rows: usize) -> RecordBatch {
    let mut rng = data::rng_of(workload, start);
    let columns: Vec<(String, ArrayRef)> = match workload {
        _ if let Some(preset) = workload.preset() => {
            let mut record = Vec::new();
            preset.record(&mut rng, &mut record);
            vec![("record".into(), Arc::new(BinaryArray::from_vec(vec![&record])) as _)]
        }
        Workload::Tokens => {
            let tokens = (0..rows * TOKENS).map(|_| token(&mut rng)).collect::<Vec<i32>>();
            vec![("tokens".into(), lists(Arc::new(Int32Array::from(tokens)), TOKENS))]
        }
        Workload::Latents => LATENTS
            .iter()
            .map(|&(name, length)| {
                let values = (0..rows * length).map(|_| rng.random::<f32>() - 0.5).collect::<Vec<f32>>();
                (name.to_owned(), lists(Arc::new(Float32Array::from(values)), length))
            })
            .collect(),
        _ => (0..WIDE_COLUMNS).map(|column| (wide_name(column), wide(column, rows, &mut rng))).collect(),
    };
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

/// Draws a token number with the frequencies of text: frequent tokens are far more often drawn (Zipf's law, by inversion of its continuous form).
fn token(rng: &mut Rng) -> i32 {
    (VOCABULARY.powf(rng.random::<f64>()) - 1.0) as i32
}

fn lists(values: ArrayRef, length: usize) -> ArrayRef {
    let offsets: Vec<i32> = (0..=values.len() / length).map(|row| (row * length) as i32).collect();
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::new(ScalarBuffer::from(offsets)), values, None))
}

fn wide_name(column: usize) -> String {
    format!("c{column:03}")
}

/// Generates a column: of ten columns, four are f32, four categories in i32, one i64 and one f64.
fn wide(column: usize, rows: usize, rng: &mut Rng) -> ArrayRef {
    match column / WIDE_STEP % 10 {
        0..4 => Arc::new(Float32Array::from_iter_values((0..rows).map(|_| rng.random::<f32>()))),
        4..8 => Arc::new(Int32Array::from_iter_values((0..rows).map(|_| rng.random_range(0..10_000)))),
        8 => Arc::new(Int64Array::from_iter_values((0..rows).map(|_| i64::from(rng.random::<u32>())))),
        _ => Arc::new(Float64Array::from_iter_values((0..rows).map(|_| rng.random::<f64>()))),
    }
}

/// Returns the columns that are read.
pub(super) fn columns(workload: Workload) -> Vec<Column> {
    match workload {
        _ if workload.preset().is_some() => vec![bytes("record")],
        Workload::Tokens => vec![Column::new("tokens", Dtype::I64, Shape::Fixed(vec![TOKENS]))],
        Workload::Latents => {
            LATENTS.iter().map(|&(name, length)| Column::new(name, Dtype::F32, Shape::Fixed(vec![length]))).collect()
        }
        _ => (0..WIDE_COLUMNS)
            .step_by(WIDE_STEP)
            .map(|column| {
                let dtype = match column / WIDE_STEP % 10 {
                    0..4 => Dtype::F32,
                    4..8 => Dtype::I32,
                    8 => Dtype::I64,
                    _ => Dtype::F64,
                };
                Column::new(wide_name(column), dtype, Shape::Scalar)
            })
            .collect(),
    }
}

/// Returns the sum over the samples of stored rows: a digest of each value of the columns that are read.
fn sum_of(batch: &RecordBatch) -> Result<u64> {
    use arrow::array::AsArray as _;
    use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type};
    let mut sum = 0u64;
    for (at, column) in batch.columns().iter().enumerate() {
        if let Some(records) = column.as_binary_opt::<i32>() {
            let hashes = records.iter().flatten().map(xxhash_rust::xxh3::xxh3_64);
            sum = hashes.fold(sum, u64::wrapping_add);
            continue;
        }
        let values = match column.as_list_opt::<i32>() {
            Some(list) => list.values(),
            None if at % WIDE_STEP != 0 => continue,
            None => column,
        };
        let digest = match values.data_type() {
            DataType::Int32 => digest(values.as_primitive::<Int32Type>().values(), |value| i64::from(value) as u64),
            DataType::Int64 => digest(values.as_primitive::<Int64Type>().values(), |value| value as u64),
            DataType::Float32 => digest(values.as_primitive::<Float32Type>().values(), |value| value.to_bits().into()),
            _ => digest(values.as_primitive::<Float64Type>().values(), f64::to_bits),
        };
        sum = sum.wrapping_add(digest);
    }
    Ok(sum)
}

/// Returns the sum over the samples of a batch.
pub(super) fn sum(workload: Workload, batch: &Batch) -> Result<u64> {
    let mut sum = 0u64;
    for column in columns(workload) {
        let name = column.name().as_ref();
        let digest = match column.dtype() {
            Dtype::I32 => digest(&batch.values::<i32>(name)?, |value| i64::from(value) as u64),
            Dtype::I64 => digest(&batch.values::<i64>(name)?, |value| value as u64),
            Dtype::F32 => digest(&batch.values::<f32>(name)?, |value| value.to_bits().into()),
            _ => digest(&batch.values::<f64>(name)?, f64::to_bits),
        };
        sum = sum.wrapping_add(digest);
    }
    Ok(sum)
}

/// Returns a sum in which each value's term depends only on that value.
fn digest<T: Copy>(values: &[T], bits: impl Fn(T) -> u64) -> u64 {
    values.iter().fold(0, |sum, &value| {
        let mixed = (bits(value) ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        sum.wrapping_add(mixed ^ mixed >> 31)
    })
}

const PARQUET_CRATE: &str = "the bare parquet crate on the same columns";

/// The amount of memory that the bare copy goes through: more than caches hold.
const COPIED_BYTES: usize = 256 << 20;

/// Measures the bare `parquet` crate on the same columns, with one thread per file, and a bare copy of as many bytes.
pub(super) fn limits(workload: Workload, input: &Input, batch: usize, threads: usize) -> Result<Vec<Limit>> {
    let files: Vec<&String> = input.urls.iter().collect();
    let names: Vec<String> = columns(workload).iter().map(|column| column.name().to_string()).collect();
    let failed = |e: String| Error::new(ErrorKind::Transfer, e);
    let rows = std::sync::atomic::AtomicU64::new(0);
    let passes = rate(
        threads,
        files.len(),
        || (),
        |(), number| {
            let file = File::open(files[number]).map_err(|e| failed(e.to_string()))?;
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| failed(e.to_string()))?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), names.iter().map(String::as_str));
            let reader = builder.with_projection(mask).with_batch_size(1024).build();
            let mut count = 0;
            for batch in reader.map_err(|e| failed(e.to_string()))? {
                count += batch.map_err(|e| failed(e.to_string()))?.num_rows() as u64;
            }
            rows.fetch_max(count, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        },
    )?;
    let crate_rate = passes * rows.into_inner() as f64;
    if workload.preset().is_some() {
        // Delivered as bytes they are not copied once more.
        return Ok(vec![Limit { what: PARQUET_CRATE, samples_per_s: crate_rate }]);
    }
    let sample: usize = columns(workload).iter().filter_map(Column::sample_bytes).sum();
    // From memory that no cache holds, into that of batches before.
    let bytes = batch * sample;
    let copied = (COPIED_BYTES / bytes).max(2);
    let source = vec![1u8; copied * bytes];
    let memory = memory();
    let copies = rate(
        threads,
        copied,
        || (),
        |(), at| {
            let memory = memory.allocate(0, Dtype::U8, &[bytes])?;
            let (whole, mut parts) = memory.split([bytes]);
            parts[0].bytes().copy_from_slice(&source[at * bytes..(at + 1) * bytes]);
            drop(parts);
            drop(whole.join());
            Ok(())
        },
    )?;
    Ok(vec![
        Limit { what: PARQUET_CRATE, samples_per_s: crate_rate },
        Limit { what: "copy as many bytes into batches", samples_per_s: copies * batch as f64 },
    ])
}
