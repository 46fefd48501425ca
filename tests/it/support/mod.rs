//! What several promises need: shards, a source that counts, a watch over loops, servers to test against.

#[cfg(feature = "gcs")]
pub(crate) mod fake_gcs;
pub(crate) mod quality;
pub(crate) mod recording;
pub(crate) mod shards;
#[cfg(feature = "http")]
pub(crate) mod slow_http;
pub(crate) mod source;
#[cfg(feature = "http")]
pub(crate) mod web;

use std::sync::mpsc;
use std::time::Duration;

use forebay::{Batch, Error, Ledger, LoaderBuilder, Report, Result, Scheduler, State, World};

/// Threads of this process whose name begins so.
pub(crate) fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix)))
        .count()
}

/// Some hundred times what the slowest takes: a machine that is busy with other things is no hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether a condition comes true: within a second where nothing else runs.
pub(crate) fn eventually(condition: impl Fn() -> bool) -> bool {
    let start = std::time::Instant::now();
    while start.elapsed() < PATIENCE {
        if condition() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Runs `work` on a thread of its own and fails where it never ends, instead of hanging with it.
pub(crate) fn watched<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    watched_for(PATIENCE, work)
}

fn watched_for<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    #[expect(clippy::disallowed_methods, reason = "a thread that may hang must not be joined")]
    let thread = std::thread::Builder::new().name("watched".into()).spawn(move || _ = sender.send(work()));
    let thread = thread.expect("a thread");
    match receiver.recv_timeout(patience) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the loader hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it ended without sending"),
        },
    }
}

/// Whether this test has its process to itself; where it has not, runs it in one of its own first, and fails with it.
///
/// Threads and memory can only be counted where no other test runs.
pub(crate) fn alone(test: &str) -> bool {
    const VARIABLE: &str = "FOREBAY_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = std::process::Command::new(program);
    command.args([test, "--exact", "--test-threads=1"]).env(VARIABLE, "1");
    // Such a test may run some hundred loops, and watches each that may hang itself.
    let output = watched_for(5 * PATIENCE, move || command.output()).expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// What one epoch gave.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    /// What was read off each batch.
    pub(crate) batches: Vec<T>,
    /// The error that ended it.
    pub(crate) error: Option<Error>,
}

impl<T> Taken<T> {
    /// The batches of an epoch that ended well.
    pub(crate) fn whole(self) -> Vec<T> {
        match self.error {
            None => self.batches,
            Some(error) => panic!("after {} batches: {error}", self.batches.len()),
        }
    }

    /// The error of an epoch that did not.
    pub(crate) fn failure(&self) -> &Error {
        self.error.as_ref().unwrap_or_else(|| panic!("{} batches and no error", self.batches.len()))
    }
}

/// Takes a whole epoch, watched: batches, then perhaps one error, then nothing.
pub(crate) fn take<T: Send + 'static>(
    loader: LoaderBuilder,
    epoch: u64,
    mut read: impl FnMut(&Batch) -> Result<T> + Send + 'static,
) -> Result<Taken<T>> {
    watched(move || {
        let mut loader = loader.build()?;
        let mut batches = loader.epoch(epoch);
        let mut taken = Taken { batches: Vec::new(), error: None };
        for batch in &mut batches {
            assert!(taken.error.is_none(), "a batch or a second error behind an error");
            match batch {
                Ok(batch) => {
                    assert!(!batch.is_empty());
                    assert_eq!((batch.epoch(), batch.step()), (epoch, taken.batches.len() as u64));
                    assert_eq!(batch.samples().len(), batch.len());
                    taken.batches.push(read(&batch)?);
                }
                Err(error) => taken.error = Some(error),
            }
        }
        assert!(batches.next().is_none(), "the end is final");
        let report = loader.report();
        assert!(report.peak_bytes <= report.budget_bytes, "{} of {} bytes", report.peak_bytes, report.budget_bytes);
        Ok(taken)
    })
}

/// The values of an integer column, batch by batch.
pub(crate) fn take_ids(loader: LoaderBuilder, column: &'static str) -> Result<Taken<Vec<i64>>> {
    take(loader, 0, move |batch| Ok(batch.values::<i64>(column)?.into_owned()))
}

/// The ids of an epoch, its error, and the report.
pub(crate) fn ids_and_report(loader: LoaderBuilder) -> Result<(Vec<i64>, Option<Error>, Report)> {
    watched(move || {
        let mut loader = loader.build()?;
        let (mut ids, mut failed) = (Vec::new(), None);
        for batch in loader.epoch(0) {
            match batch.and_then(|batch| Ok(batch.values::<i64>("id")?.into_owned())) {
                Ok(values) => ids.extend(values),
                Err(error) => failed = Some(error),
            }
        }
        Ok((ids, failed, loader.report()))
    })
}

/// Steps up to `to` of epoch 0 in a world, as the rows of global batches, the state of each rank behind them, and the sum of their ledgers.
pub(crate) fn in_world<T>(
    builder: &LoaderBuilder,
    from: Option<&State>,
    world: usize,
    to: u64,
    rows: impl Fn(&Batch) -> Vec<T>,
) -> Result<(Vec<Vec<T>>, Vec<State>, Ledger)> {
    let (mut global, mut last, mut ledgers) = (Vec::<Vec<T>>::new(), Vec::new(), Vec::new());
    for rank in 0..world {
        let mut builder = builder.clone().world(World::new(rank, world)?).scheduler(Scheduler::threads(1 + rank % 2));
        if let Some(state) = from {
            builder = builder.restore(state);
        }
        let mut loader = builder.build()?;
        let mut state = None;
        for (step, batch) in loader.epoch(0).enumerate() {
            let batch = batch?;
            if global.len() == step {
                global.push(Vec::new());
            }
            global[step].extend(rows(&batch));
            state = Some(batch.state());
            if batch.step() + 1 == to {
                break;
            }
        }
        last.extend(state);
        ledgers.push(loader.ledger());
    }
    Ok((global, last, Ledger::sum(&ledgers)?))
}
