//! Writes the shards: each thread takes one shard after another, and turns its inputs into a complete file.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

use super::destination::{Destination, Done};
use super::plan::Cut;
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::{Compression, IndexBuilder, Writer};
use crate::writer::{Counted, Skipped};

/// What is converted: inputs numbered from 0, in the order in which they go into shards.
pub(super) trait Input: Sync {
    /// Creates what one thread needs; called once per thread.
    fn worker(&self) -> Box<dyn Worker + '_>;
}

/// Turns inputs into records, on one thread, one shard after another.
pub(super) trait Worker {
    /// Writes the records of these inputs into the shard, in their order.
    fn fill(&mut self, inputs: Range<u64>, shard: &mut Shard<'_>) -> Result<(), Halt>;
}

/// Why a shard was not completed.
pub(super) enum Halt {
    Failed(Error),
    /// Another thread failed.
    Stopped,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// How shards are written.
pub(super) struct Settings {
    pub(super) compression: Compression,
    pub(super) level: u32,
    pub(super) threads: usize,
    /// The number of inputs that may be left out, over all shards.
    pub(super) max_skipped: u64,
}

/// A shard that is being written.
pub(super) struct Shard<'a> {
    writer: Writer<Counted>,
    index: IndexBuilder,
    /// The number of its first input.
    first: u64,
    skipped: Vec<Skipped>,
    run: &'a Run<'a>,
}

struct Run<'a> {
    settings: &'a Settings,
    bar: &'a ProgressBar,
    skipped: AtomicU64,
    stop: AtomicBool,
}

impl Shard<'_> {
    /// Adds a record.
    pub(super) fn write(&mut self, payload: &[u8]) -> Result<()> {
        self.index.push(payload.len() as u64)?;
        self.writer.write(payload)
    }

    /// Reports that `bytes` stored bytes have been processed.
    pub(super) fn advance(&mut self, bytes: u64) -> Result<(), Halt> {
        self.run.bar.inc(bytes);
        if self.run.stop.load(Ordering::Relaxed) { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// Leaves out an input if it is bad and the limit allows it; otherwise returns the error.
    pub(super) fn skip(&mut self, error: Error) -> Result<()> {
        if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema | ErrorKind::Panicked) {
            return Err(error);
        }
        let most = self.run.settings.max_skipped;
        let number = self.run.skipped.fetch_add(1, Ordering::Relaxed) + 1;
        if number > most {
            return Err(error.advice("mend or remove it, or leave out up to N of such inputs with --skip-bad N"));
        }
        // Each input before it was written or left out.
        let input = self.first + self.writer.records() + self.skipped.len() as u64;
        self.skipped.push(Skipped::new(input, &error));
        Ok(())
    }
}

/// Refuses to continue if an interrupted run left out more than allowed.
pub(super) fn within(skipped: u64, most: u64) -> Result<()> {
    if skipped <= most {
        return Ok(());
    }
    Err(Error::config(format!("shards that are done leave {skipped} inputs out, and {most} may be"))
        .advice(format!("continue with --skip-bad {skipped} or more, or start over with --force")))
}

/// Writes the shards that are not done yet. Each is a function of its inputs alone, so the number of threads changes no byte.
///
/// # Memory
/// For each thread, what its worker holds (one image, or a piece of a shard) and a write buffer of 64 KiB.
///
/// # Errors
/// The error of the first shard that failed; the others are abandoned. Shards that are done stay.
pub(super) fn run(
    input: &dyn Input,
    shards: &[(String, Cut)],
    destination: &Destination,
    settings: &Settings,
    bar: &ProgressBar,
) -> Result<()> {
    let done = destination.done();
    let skipped = done.iter().map(|shard| shard.skipped.len() as u64).sum();
    within(skipped, settings.max_skipped)?;
    let done: std::collections::HashSet<&str> = done.iter().map(|shard| &*shard.name).collect();
    let open: Vec<_> = shards.iter().filter(|(name, _)| !done.contains(&**name)).collect();
    bar.set_length(open.iter().map(|(_, cut)| cut.bytes).sum());
    let run = Run { settings, bar, skipped: AtomicU64::new(skipped), stop: AtomicBool::new(false) };
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..settings.threads.min(open.len()) {
            scope.spawn(|| {
                let mut worker = input.worker();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((name, cut)) = open.get(number) else { return };
                    match write(&mut *worker, name, cut, destination, &run) {
                        Ok(()) => {}
                        Err(Halt::Stopped) => return,
                        Err(Halt::Failed(error)) => {
                            run.stop.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            if failed.as_ref().is_none_or(|(other, _)| number < *other) {
                                *failed = Some((number, error));
                            }
                            return;
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => destination.complete(),
    }
}

/// Writes one shard.
fn write(worker: &mut dyn Worker, name: &str, cut: &Cut, destination: &Destination, run: &Run<'_>) -> Result<(), Halt> {
    let Settings { compression, level, .. } = *run.settings;
    let writer = Writer::with_level(destination.file(name)?, compression, level);
    let mut shard = Shard { writer, index: IndexBuilder::new(), first: cut.inputs.start, skipped: Vec::new(), run };
    shard.advance(0)?;
    worker.fill(cut.inputs.clone(), &mut shard)?;
    let records = shard.writer.records();
    let (bytes, crc32c) = shard.writer.finish()?.finish()?;
    destination.save_index(name, shard.index, bytes, compression)?;
    let done = Done { name: name.to_owned(), records, bytes, crc32c, skipped: shard.skipped };
    Ok(destination.note(done)?)
}
