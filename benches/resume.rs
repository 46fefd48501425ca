//! Does continuing in the middle of an epoch cost more than beginning it?
//!
//! Measures the time from `build()` to the first batch, at the start of an epoch and from a state after nine tenths of its steps, over 500,000
//! records in 16 local shards whose indexes exist. `cargo bench --bench resume`; results are in `benches/results`.

use std::fs::File;
use std::io::BufWriter;

use divan::Bencher;
use forebay::format::example::Example;
use forebay::format::tfrecord::Writer;
use forebay::{Compression, Dataset, LoaderBuilder, Shuffle, State, int64};

const SHARDS: i64 = 16;
const RECORDS: i64 = 500_000;

fn main() {
    divan::main();
}

/// Shards in a temporary folder, and their indexes.
struct Shards(tempfile::TempDir);

impl Shards {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for shard in 0..SHARDS {
            let file = File::create(dir.path().join(format!("{shard:02}.tfrecord"))).expect("a file");
            let mut writer = Writer::new(BufWriter::new(file), Compression::None);
            for id in shard * RECORDS / SHARDS..(shard + 1) * RECORDS / SHARDS {
                writer.write(&Example::new().with_int64("id", [id]).encode()).expect("a record");
            }
            writer.finish().expect("a shard");
        }
        Self(dir)
    }

    fn loader(&self, kind: &str) -> LoaderBuilder {
        let dataset = Dataset::open(self.0.path().join("*.tfrecord").display().to_string()).expect("a pattern");
        let dataset = dataset.columns([int64("id")]);
        let dataset = match kind {
            "in order" => dataset,
            "shuffled" => dataset.shuffle(Shuffle::buffer(10_000)),
            _ => dataset.shuffle(Shuffle::buffer(10_000)).filter("half", |_, row| Ok(row.get::<i64>("id")? % 2 == 0)),
        };
        dataset.batch(256).loader().index_dir(self.0.path().join("index"))
    }
}

fn first_batch(builder: LoaderBuilder) -> u64 {
    let mut loader = builder.build().expect("a sound graph");
    let batch = (&mut loader).into_iter().next().expect("a batch").expect("sound shards");
    batch.step()
}

const KINDS: [&str; 3] = ["in order", "shuffled", "filtered"];

/// From the start of an epoch.
#[divan::bench(args = KINDS)]
fn start(bencher: Bencher<'_, '_>, kind: &str) {
    let shards = Shards::new();
    first_batch(shards.loader(kind));
    bencher.bench_local(|| assert_eq!(first_batch(shards.loader(kind)), 0));
}

/// From a state after nine tenths of the steps.
#[divan::bench(args = KINDS)]
fn resume_at_nine_tenths(bencher: Bencher<'_, '_>, kind: &str) {
    let shards = Shards::new();
    let steps = RECORDS as usize / if kind == "filtered" { 512 } else { 256 };
    let mut loader = shards.loader(kind).build().expect("a sound graph");
    let behind = loader.epoch(0).nth(steps * 9 / 10).expect("many steps").expect("sound shards");
    let state: State = behind.state();
    bencher.bench_local(|| assert_eq!(first_batch(shards.loader(kind).restore(&state)), state.step));
}
