//! What the machine can do at all: bare loops over the same data, with the loader's own functions and without a loader.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::{Array as _, AsArray};
use arrow::buffer::Buffer;
use rand::Rng as _;

use super::workload::{Input, Workload};
use crate::batch::buffer::Allocator;
use crate::cli::shards::{self, Shards};
use crate::engine::Budget;
use crate::engine::budget::Account;
use crate::error::{Error, Result};
use crate::format::example::{Example, Kind, Parser};
use crate::format::tfrecord::{Check, Framed, Framer};
use crate::plan::Shuffle;
use crate::random::Key;
use crate::schema::Dtype;
use crate::transform::image::{Image, Scratch};
use crate::transform::tokens;

/// A bare loop and how fast it ran.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Limit {
    /// What it did.
    pub(super) what: &'static str,
    pub(super) samples_per_s: f64,
}

/// Images that are kept in memory for the bare loops, at most.
const IMAGES: usize = 2000;

/// How long a bare loop runs, at least.
const LONG_ENOUGH: Duration = Duration::from_secs(3);

/// Runs `task` for all of `0..count` on `threads` threads, again and again until it took long enough; tasks a second.
pub(super) fn rate<S>(
    threads: usize,
    count: usize,
    start: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<f64> {
    let (mut done, mut warm) = (0, false);
    let mut begin = Instant::now();
    // The first round warms caches and buffers up.
    while !warm || begin.elapsed() < LONG_ENOUGH {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let work = || -> Result<()> {
                let mut state = start();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return Ok(());
                    }
                    task(&mut state, at)?;
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
        })?;
        if warm {
            done += count;
        } else {
            (warm, begin) = (true, Instant::now());
        }
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

/// The bare loops of a workload.
pub(super) fn limits(
    workload: Workload,
    input: &Input,
    u8: bool,
    batch: usize,
    shuffle: Shuffle,
    shards: Option<&Shards>,
    threads: usize,
) -> Result<Vec<Limit>> {
    match (workload, shards) {
        (Workload::Image, Some(shards)) => image(&workload.image(u8), input, batch, shards, threads),
        (Workload::Features, Some(shards)) => features(workload, input, shards, threads),
        #[cfg(feature = "parquet")]
        _ if workload.is_columnar(input.parquet) => super::columnar::limits(workload, input, batch, threads),
        (Workload::Raw | Workload::Resnet50Like, Some(shards)) => raw(input, batch, shards, threads),
        (Workload::CosmoflowLike | Workload::Unet3dLike, Some(shards)) => records(shards, threads),
        (Workload::Pack, _) => pack(input, threads),
        _ => tiny(input.rows as usize, batch, shuffle.samples().unwrap_or(u64::MAX) as usize, threads),
    }
}

/// Reads a whole shard into memory.
fn read(shards: &Shards, number: usize) -> Result<Buffer> {
    let (store, object) = (shards.store.clone(), shards.objects[number].clone());
    let bytes = shards::read(&shards.io, async move { store.read(&object, 0..object.size).await })?;
    Ok(Buffer::from(bytes))
}

/// The records of a plain shard.
fn frame(shard: &[u8], check: Check) -> Result<Framed> {
    let mut framed = Framed::default();
    Framer::new(check).frame(shard, Some(0), &mut framed)?;
    match framed.bad.pop() {
        Some((_, error)) => Err(error),
        None => Ok(framed),
    }
}

fn image(image: &Image, input: &Input, batch: usize, shards: &Shards, threads: usize) -> Result<Vec<Limit>> {
    let mut encoded = Vec::new();
    for number in 0..shards.objects.len() {
        let shard = read(shards, number)?;
        for payload in frame(&shard, Check::None)?.payloads {
            let example = Example::from_bytes(&shard[payload])?;
            let value = example.get(&input.image).and_then(|feature| feature.as_bytes()).and_then(<[_]>::first);
            encoded.push(value.cloned().ok_or_else(|| Error::config(format!("no image in column {:?}", input.image)))?);
        }
        if encoded.len() >= IMAGES {
            break;
        }
    }
    encoded.truncate(IMAGES);
    let (dtype, shape) = image.output()?;
    let bytes = shape.iter().product::<usize>() * dtype.size().unwrap_or(1);
    let key = |at: usize| Key::new(0).with("operation").with_number(at as u64);
    let windows = rate(threads, encoded.len(), Scratch::default, |scratch, at| {
        image.decode_window(&encoded[at], key(at), scratch)
    })?;
    // Into the memory of a batch, allocated once: a single slot would stay in the cache, and the pixels never reach memory.
    let slots = batch.div_ceil(threads);
    let start = || (Scratch::default(), vec![0f32; bytes.div_ceil(4) * slots]);
    let whole = rate(threads, encoded.len(), start, |(scratch, memory), at| {
        let slot = memory.chunks_exact_mut(bytes.div_ceil(4)).nth(at % slots).expect("as many as there are slots");
        image.decode_into(&encoded[at], key(at), &mut bytemuck::cast_slice_mut(slot)[..bytes], scratch)
    })?;
    Ok(vec![
        Limit { what: "decode, resize and normalise into a batch that is there", samples_per_s: whole },
        Limit { what: "decode the same windows", samples_per_s: windows },
    ])
}

fn features(workload: Workload, input: &Input, shards: &Shards, threads: usize) -> Result<Vec<Limit>> {
    let parser = Parser::new(&workload.columns(input).unwrap_or_default(), Kind::Example)?;
    let rows = std::sync::atomic::AtomicU64::new(0);
    let passes = rate(
        threads,
        shards.objects.len(),
        || (),
        |(), number| {
            let shard = read(shards, number)?;
            let framed = frame(&shard, Check::Full)?;
            let parsed = parser.parse(&shard, &framed.payloads);
            rows.fetch_max(parsed.rows.num_rows() as u64, Ordering::Relaxed);
            parsed.bad.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
        },
    )?;
    Ok(vec![Limit { what: "read, check and parse whole shards", samples_per_s: passes * rows.into_inner() as f64 }])
}

/// Memory of batches, which is used again as the loader's is.
pub(super) fn memory() -> Allocator {
    static ACCOUNT: OnceLock<Arc<Account>> = OnceLock::new();
    let account = ACCOUNT.get_or_init(|| {
        let account = Account::new(Budget::default());
        account.keep_spare(account.total());
        account
    });
    Allocator::new(account)
}

fn raw(input: &Input, batch: usize, shards: &Shards, threads: usize) -> Result<Vec<Limit>> {
    let record = input.record_bytes + 16;
    let memory = memory();
    let objects: Vec<_> = shards.objects.iter().collect();
    let per_shard = |number: usize| (objects[number].size as usize / record).div_ceil(batch);
    let batches: Vec<(usize, usize)> =
        (0..objects.len()).flat_map(|n| (0..per_shard(n)).map(move |b| (n, b))).collect();
    let samples: usize = objects.iter().map(|object| object.size as usize / record).sum();
    let passes = rate(
        threads,
        batches.len(),
        || (),
        |(), at| {
            let (number, start) = (batches[at].0, batches[at].1 * batch);
            let (store, object) = (shards.store.clone(), objects[number].clone());
            let end = object.size.min(((start + batch) * record) as u64);
            let len = (end as usize - start * record) / record;
            let memory = memory.allocate(0, Dtype::U8, &[len, input.record_bytes])?;
            // In pieces of a block, as the loader reads.
            let per_piece = (4 << 20) / record;
            let (whole, mut pieces) = memory
                .split((0..len.div_ceil(per_piece)).map(|p| per_piece.min(len - p * per_piece) * input.record_bytes));
            for (number, piece) in pieces.iter_mut().enumerate() {
                let from = (start + number * per_piece) * record;
                let to = (from + per_piece * record).min(end as usize);
                let (store, object) = (store.clone(), object.clone());
                let read = async move { store.read(&object, from as u64..to as u64).await };
                let stored = shards::read(&shards.io, read)?;
                let framed = frame(&stored, Check::Full)?;
                for (payload, slot) in
                    framed.payloads.into_iter().zip(piece.bytes().chunks_exact_mut(input.record_bytes))
                {
                    slot.copy_from_slice(&stored[payload]);
                }
            }
            drop(pieces);
            drop(whole.join());
            Ok(())
        },
    )?;
    let per_batch = samples as f64 / batches.len() as f64;
    Ok(vec![Limit { what: "read, check and copy each record once into batches", samples_per_s: passes * per_batch }])
}

/// Records that are delivered as bytes are not copied: views into what was read.
fn records(shards: &Shards, threads: usize) -> Result<Vec<Limit>> {
    let count = AtomicUsize::new(0);
    let passes = rate(
        threads,
        shards.objects.len(),
        || (),
        |(), number| {
            let shard = read(shards, number)?;
            count.fetch_max(frame(&shard, Check::Full)?.payloads.len(), Ordering::Relaxed);
            Ok(())
        },
    )?;
    let per_shard = count.into_inner() as f64;
    Ok(vec![Limit { what: "read and check whole shards", samples_per_s: passes * per_shard }])
}

fn tiny(rows: usize, batch: usize, window: usize, threads: usize) -> Result<Vec<Limit>> {
    let values: Vec<i64> = (0..rows as i64).collect();
    let memory = memory();
    let window = window.clamp(1, rows);
    let mut rng = Key::new(0).rng();
    let order: Vec<u32> =
        (0..rows).map(|at| (at / window * window + rng.random_range(0..window)).min(rows - 1) as u32).collect();
    let batches = rate(
        threads,
        rows.div_ceil(batch),
        || (),
        |(), number| {
            let picked = &order[number * batch..rows.min((number + 1) * batch)];
            let memory = memory.allocate(0, Dtype::I64, &[picked.len()])?;
            let (whole, mut parts) = memory.split([picked.len() * 8]);
            let slots: &mut [i64] = bytemuck::cast_slice_mut(parts[0].bytes());
            slots.iter_mut().zip(picked).for_each(|(slot, &at)| *slot = values[at as usize]);
            drop(parts);
            drop(whole.join());
            Ok(())
        },
    )?;
    let what = "gather in random order into batches";
    Ok(vec![Limit { what, samples_per_s: batches * batch as f64 }])
}

/// The packing function on windows of the same documents, in their own order: nothing is gathered, nothing laid out into batches.
fn pack(input: &Input, threads: usize) -> Result<Vec<Limit>> {
    let documents = input.documents.as_ref().expect("made before").as_list::<i32>();
    let window = input.pack.window as usize;
    let windows: Vec<_> = (0..documents.len())
        .step_by(window)
        .map(|start| documents.slice(start, window.min(documents.len() - start)))
        .collect();
    let rows: usize = windows.iter().map(|window| tokens::pack(window, &[], &[], &input.pack).layout.ends.len()).sum();
    let packed = rate(
        threads,
        windows.len(),
        || (),
        |(), number| {
            std::hint::black_box(tokens::pack(&windows[number], &[], &[], &input.pack));
            Ok(())
        },
    )?;
    let what = "pack windows into fresh arrays";
    Ok(vec![Limit { what, samples_per_s: packed * rows as f64 / windows.len() as f64 }])
}
