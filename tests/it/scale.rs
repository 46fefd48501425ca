//! Data sets too large to list their rows.

use forebay::plan::Catalog;
use forebay::{Dataset, Exhausted, Result, Scheduler, Shuffle};

use crate::support::alone;
use crate::support::quality::Numbered;

/// A million shards of one block of a thousand rows.
const SHARDS: u64 = 1_000_000;

fn vast() -> Numbered {
    let mut catalog = Catalog::new();
    for shard in 0..SHARDS {
        catalog.push_shard(format!("gs://bucket/data/train-{shard:07}-of-1000000.tfrecord"));
        catalog.push_block(1000, 1 << 20);
    }
    Numbered::new(catalog)
}

/// The most memory that this process has had.
fn peak_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[test]
fn a_thousand_million_rows_take_memory_for_their_blocks_alone() -> Result<()> {
    if !alone("scale::a_thousand_million_rows_take_memory_for_their_blocks_alone") {
        return Ok(());
    }
    let before = peak_bytes();
    let source = Dataset::from_source(vast());
    let with_catalog = peak_bytes();
    let catalog = with_catalog - before;
    // Names of 50 bytes, each an allocation of its own, and vectors that grow by doubling.
    assert!(catalog < 200 * SHARDS, "{catalog} bytes for the catalog");
    let shuffled = source.shuffle(Shuffle::buffer(4096));
    for dataset in [shuffled.clone(), Dataset::mix([(shuffled, 3), (source.clone(), 1)], Exhausted::Stop)] {
        let mut loader = dataset.batch(64).loader().scheduler(Scheduler::single_threaded()).build()?;
        for epoch in [0, 7] {
            let batch = loader.epoch(epoch).next().expect("a batch")?;
            assert_eq!(batch.len(), 64);
        }
    }
    // A run has the order of the blocks and where each begins in it, 12 bytes a block, and the catalog 4 for finding rows; two runs overlap. A
    // list of rows would take 8,000 bytes a block.
    let planned = peak_bytes() - with_catalog;
    assert!(planned < 48 * SHARDS, "{planned} bytes for the plan");
    Ok(())
}
