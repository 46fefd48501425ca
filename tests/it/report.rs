//! The report charges the loop's waits to the stage that was slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch};
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::source::Decoded;
use forebay::{Column, Dataset, Report, Result, Scheduler, Source, int64};
use futures::future::BoxFuture;

use crate::support::watched;

const BLOCKS: usize = 20;
const ROWS: u64 = 10;

/// Numbers in blocks that take their time.
struct Slow {
    columns: Vec<Column>,
    catalog: Catalog,
    fetching: Duration,
    decoding: Duration,
}

fn slow(fetching: Duration, decoding: Duration) -> Dataset {
    let mut catalog = Catalog::new();
    catalog.push_shard("slow");
    (0..BLOCKS).for_each(|_| catalog.push_block(ROWS, 80));
    Dataset::from_source(Slow { columns: vec![int64("x")], catalog, fetching, decoding })
}

impl Source for Slow {
    fn name(&self) -> String {
        "slow".into()
    }
    fn columns(&self) -> &[Column] {
        &self.columns
    }
    fn catalog(&self) -> &Catalog {
        &self.catalog
    }
    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Bytes>>> {
        // A store that answers one request after the other.
        let time = self.fetching * (block as u32 + 1);
        Some(Box::pin(async move {
            tokio::time::sleep(time).await;
            Ok(Bytes::new())
        }))
    }
    fn decode(&self, block: usize, _fetched: Bytes) -> Result<Decoded> {
        work(self.decoding);
        let first = self.catalog.block_start(block) as i64;
        let rows = Int64Array::from_iter_values(first..first + ROWS as i64);
        Ok(Decoded::good(RecordBatch::try_from_iter([("x", Arc::new(rows) as _)]).expect("one column")))
    }
}

/// Keeps a core busy.
fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Long beside what threads wait for a core where many tests run at once.
const TIME: Duration = Duration::from_millis(60);
const NONE: Duration = Duration::ZERO;

fn report(dataset: Dataset, step: Duration) -> Report {
    watched(move || {
        let mut loader = dataset.batch(ROWS as usize).loader().scheduler(Scheduler::threads(1)).build()?;
        for batch in loader.split(&[forebay::Device::Cpu])?.remove(0) {
            batch?;
            work(step);
        }
        Ok::<_, forebay::Error>(loader.report())
    })
    .expect("it ends well")
}

/// At least nine tenths of the waiting, which was about as long as the stage is slow.
#[track_caller]
fn charged_to(report: &Report, stage: &str) {
    let total = report.total_wait();
    let share = report.waited.iter().find(|waited| waited.0 == stage).map_or(NONE, |waited| waited.1);
    assert!(total >= TIME * (BLOCKS as u32 - 5), "{report}");
    assert!(share >= total.mul_f64(0.9), "{stage} was charged {share:?} of {total:?}\n{report}");
    assert_eq!(report.bottleneck(), Some(stage));
    assert!(report.to_string().contains(&format!("most for {stage}; what would help")), "{report}");
}

#[test]
fn a_slow_store_is_what_the_loop_waited_for() {
    charged_to(&report(slow(TIME, NONE), NONE), "read");
}

#[test]
fn slow_decoding_is_what_the_loop_waited_for() {
    charged_to(&report(slow(NONE, TIME), NONE), "decode");
}

#[test]
fn a_slow_function_is_what_the_loop_waited_for() {
    let dataset = slow(NONE, NONE).map("slow", [], |_, _, _| {
        work(TIME / ROWS as u32);
        Ok(())
    });
    let report = report(dataset, NONE);
    charged_to(&report, "transform");
    let function = report.stage("map \"slow\"").expect("functions are stages");
    assert!(function.busy >= TIME * BLOCKS as u32, "{report}");
}

#[test]
fn a_slow_loop_waits_for_nothing() {
    let report = report(slow(NONE, NONE), TIME);
    assert!(report.looped >= TIME * BLOCKS as u32, "{report}");
    assert!(report.wait_share() < 0.1, "{report}");
}
