//! The report charges the loop's waits to what was slow: each test slows one stage by a known amount.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array as _, ArrayRef, BinaryArray, Int64Array, ListArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::source::Decoded;
use forebay::{Column, Dataset, Image, LoaderBuilder, Pad, Report, Result, Scheduler, Source, int64};
use futures::future::BoxFuture;

use crate::support::watched;

const BLOCKS: usize = 4;
const ROWS: u64 = 10;

/// Numbers in blocks that take their time.
struct Slow {
    columns: Vec<Column>,
    catalog: Catalog,
    fetching: Fetching,
    decoding: Duration,
}

enum Fetching {
    Nothing,
    /// As a store that answers one request after the other, each after so long.
    Sleeps(Duration),
    /// Of an object of [`BLOCK_BYTES`] a block.
    #[cfg(feature = "http")]
    Reads(forebay::store::Store, forebay::store::Object),
}

#[cfg(feature = "http")]
const BLOCK_BYTES: u64 = 1000;

fn slow(fetching: Fetching, decoding: Duration) -> Dataset {
    let mut catalog = Catalog::new();
    catalog.push_shard("slow");
    (0..BLOCKS).for_each(|_| catalog.push_block(ROWS, 80));
    Dataset::from_source(Slow { columns: vec![int64("x")], catalog, fetching, decoding })
}

/// Where nothing of it is slow.
fn quick() -> Dataset {
    slow(Fetching::Nothing, NONE)
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
    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        Some(match &self.fetching {
            Fetching::Nothing => return None,
            Fetching::Sleeps(time) => {
                let time = *time * (block as u32 + 1);
                Box::pin(async move {
                    tokio::time::sleep(time).await;
                    Ok(Vec::new())
                })
            }
            #[cfg(feature = "http")]
            Fetching::Reads(store, object) => {
                let (store, object, start) = (store.clone(), object.clone(), block as u64 * BLOCK_BYTES);
                Box::pin(async move { Ok(vec![store.read(&object, start..start + BLOCK_BYTES).await?]) })
            }
        })
    }
    fn decode(&self, block: usize, _fetched: Vec<Bytes>) -> Result<Decoded> {
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

/// Long beside what threads wait for a core where many tests run at once, and so are blocks few: each is handed over some times, and what
/// that takes is charged to whichever stage has the block then.
const TIME: Duration = Duration::from_millis(500);
const NONE: Duration = Duration::ZERO;

/// The report behind an epoch of batches of a block each, of which the loop takes each for `step`.
fn report(dataset: Dataset, step: Duration) -> Report {
    report_of(dataset.batch(ROWS as usize).loader(), step)
}

fn report_of(loader: LoaderBuilder, step: Duration) -> Report {
    watched(move || {
        let mut loader = loader.scheduler(Scheduler::threads(1)).build()?;
        for batch in loader.split(&[forebay::Device::Cpu])?.remove(0) {
            batch?;
            work(step);
        }
        Ok::<_, forebay::Error>(loader.report())
    })
    .expect("it ends well")
}

/// Most of what the stage was slowed by is charged to it, and to nothing more than to it. (Not all: of a time that is set, the machine may spend
/// a part with the next stage waiting for a core.)
#[track_caller]
fn charged_to(report: &Report, stage: &str, slowed_by: Duration) {
    let charged = report.waited.iter().find(|waited| waited.0 == stage).map_or(NONE, |waited| waited.1);
    assert!(charged >= slowed_by / 2, "{stage} took {slowed_by:?} and was charged {charged:?}\n{report}");
    assert_eq!(report.bottleneck(), Some(stage), "{report}");
    assert!(report.to_string().contains(&format!("most for {stage}; what would help")), "{report}");
}

/// What a stage took that is slow for each block.
const ALL: Duration = TIME.saturating_mul(BLOCKS as u32);

#[test]
fn a_source_that_answers_late_is_what_the_loop_waited_for() {
    charged_to(&report(slow(Fetching::Sleeps(TIME), NONE), NONE), "first byte", ALL);
}

#[test]
fn an_iterator_of_a_split_loader_waits_for_the_others() {
    let report = watched(|| {
        let dataset = quick().batch(ROWS as usize).prefetch(2);
        let mut loader = dataset.loader().scheduler(Scheduler::threads(1)).build()?;
        let [mut eager, slow] = <[_; 2]>::try_from(loader.split(&[forebay::Device::Cpu; 2])?).expect("two");
        std::thread::scope(|scope| {
            scope.spawn(move || eager.try_for_each(|batch| batch.map(drop)).expect("it ends well"));
            scope.spawn(move || {
                for batch in slow {
                    batch.expect("it ends well");
                    work(TIME);
                }
            });
        });
        Ok::<_, forebay::Error>(loader.report())
    });
    let report = report.expect("it ends well");
    // Two batches lie ready for the slow one at its end, which the other has taken.
    charged_to(&report, "other iterators", TIME * (BLOCKS as u32 - 3));
    assert!(report.to_string().contains("a thread for each iterator"), "{report}");
}

/// Blocks read through a store.
#[cfg(feature = "http")]
fn read_at(pace: crate::support::slow_http::Pace) -> Report {
    let server = crate::support::slow_http::SlowServer::start(vec![0; BLOCKS * BLOCK_BYTES as usize], pace);
    let store = || forebay::StoreOptions::new().environment(false).build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // By a store of its own: connections belong to the runtime that made them.
    let object = runtime.block_on(store().head(&server.url)).expect("it is there");
    report(slow(Fetching::Reads(store(), object), NONE), NONE)
}

#[cfg(feature = "http")]
#[test]
fn a_store_that_answers_late_is_told_from_one_that_sends_slowly() {
    use crate::support::slow_http::Pace;
    let part = BLOCK_BYTES as usize;
    charged_to(&read_at(Pace { first_byte: TIME, half: NONE, part }), "first byte", ALL);
    charged_to(&read_at(Pace { first_byte: NONE, half: TIME, part }), "bandwidth", ALL);
}

#[cfg(feature = "http")]
#[test]
fn so_is_it_where_a_shard_comes_without_an_index() {
    use crate::support::shards::shard;
    use crate::support::slow_http::{Pace, SlowServer};
    const LONG: Duration = Duration::from_millis(400);
    let part = usize::MAX;
    for (pace, stage) in [
        (Pace { first_byte: LONG, half: NONE, part }, "first byte"),
        (Pace { first_byte: NONE, half: LONG, part }, "bandwidth"),
    ] {
        let records = (0..40).map(|i| forebay::format::example::Example::new().with_int64("x", [i]).encode());
        let server = SlowServer::start(shard(records, forebay::Compression::None), pace);
        let indexes = tempfile::tempdir().expect("a folder");
        let dataset = Dataset::open([server.url.as_str()]).expect("a URL").columns([int64("x")]);
        let loader = dataset.batch(ROWS as usize).loader().index_dir(indexes.path());
        let loader = loader.store(forebay::StoreOptions::new().environment(false));
        charged_to(&report_of(loader, NONE), stage, LONG);
    }
}

#[test]
fn slow_decoding_is_what_the_loop_waited_for() {
    charged_to(&report(slow(Fetching::Nothing, TIME), NONE), "decode", ALL);
}

/// A function of the name that takes `TIME` for all rows of a batch.
fn slow_map(dataset: Dataset, name: &str) -> Dataset {
    dataset.map(name, [], |_, _, _| {
        work(TIME / ROWS as u32);
        Ok(())
    })
}

#[test]
fn of_several_functions_the_slow_one_is_named() {
    let dataset = quick().map("quick", [], |_, _, _| Ok(()));
    let dataset = slow_map(dataset, "slow").filter("all", |_, _| Ok(true));
    let report = report(dataset, NONE);
    charged_to(&report, "map \"slow\"", ALL);
    let function = report.stage("map \"slow\"").expect("functions are stages");
    assert!(function.busy >= ALL, "{report}");
    assert!(report.to_string().contains("a faster function"), "{report}");
}

#[test]
fn a_slow_function_of_whole_batches_is_named() {
    let dataset = quick().map("quick", [], |_, _, _| Ok(())).batch(ROWS as usize);
    let dataset = dataset.map_batch("slow", [], |_, rows| {
        work(TIME);
        Ok(rows.clone())
    });
    charged_to(&report_of(dataset.loader(), NONE), "map_batch \"slow\"", ALL);
}

/// The same bytes in each of `rows` rows.
fn pictures(rows: usize) -> Dataset {
    let mut encoded = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(300, 300, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
    picture.write_to(&mut encoded, image::ImageFormat::Png).expect("memory takes it");
    let pictures = BinaryArray::from_iter_values(std::iter::repeat_n(encoded.into_inner(), rows));
    Dataset::from_columns([("picture", Arc::new(pictures) as ArrayRef)]).expect("a column")
}

#[test]
fn slow_images_are_what_the_loop_waited_for() {
    // Decoded into the batch, and, where a function wants to see the pixels, before that.
    let image = || pictures(20).image("picture", Image::rgb().resize(64, 64));
    for dataset in [image(), image().map("look", [], |_, _, _| Ok(()))] {
        let report = report(dataset, NONE);
        let busy = report.stage("image").expect("there are images").busy;
        charged_to(&report, "image", busy);
    }
}

#[test]
fn slow_laying_out_is_what_the_loop_waited_for() {
    // Short lists that are padded to 16 MiB a batch.
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>((0..40).map(|row| Some([Some(row)])));
    assert_eq!(lists.len(), 40);
    let dataset = Dataset::from_columns([("list", Arc::new(lists) as ArrayRef)]).expect("a column");
    let report = report(dataset.pad("list", Pad::to(200_000).value(1.0)), NONE);
    let busy = report.stage("collate").expect("always there").busy;
    charged_to(&report, "collate", busy);
}

#[test]
fn a_slow_loop_waits_for_nothing() {
    let report = report(quick(), TIME);
    assert!(report.looped >= ALL, "{report}");
    // The loader had all the time it needs, the loop's own; more than that again is what it never takes.
    assert!(report.wait_share() < 0.5, "{report}");
}

#[test]
fn a_wait_that_is_not_over_is_in_the_report() -> Result<()> {
    let loader = slow(Fetching::Sleeps(Duration::from_secs(2)), NONE).batch(ROWS as usize).loader();
    watched(move || {
        let mut loader = loader.scheduler(Scheduler::threads(1)).build()?;
        let mut batches = loader.epoch(0);
        std::thread::scope(|scope| {
            let waits = scope.spawn(move || batches.next().map(|batch| batch.map(drop)));
            let mut seen = Duration::ZERO;
            while seen < Duration::from_millis(100) {
                assert!(!waits.is_finished(), "the report says {seen:?} of a wait of two seconds");
                seen = loader.report().total_wait();
            }
            waits.join().expect("no panic").expect("a batch")
        })
    })
}
