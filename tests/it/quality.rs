//! How well shuffles mix, held against what a sliding buffer of the same size does; `docs/shuffle.md` has the figures at full size.

use forebay::Shuffle;

use crate::support::quality::{Quality, Rows, Shards};

/// 64 shards, sorted by label.
const ROWS: Rows = Rows { shards: 64, shard_rows: 1024, block_rows: 32, labels: 64, batch: 64 };

const VARIANTS: [Shards; 3] = [Shards::InOrder, Shards::Shuffled, Shards::Interleaved(8)];

fn delivered(shuffle: Shuffle) -> Quality {
    ROWS.measure(&ROWS.delivered(shuffle))
}

#[test]
fn a_global_shuffle_cannot_be_told_from_any_order() {
    let (global, uniform) = (delivered(Shuffle::global()), ROWS.measure(&ROWS.uniform()));
    for quality in [global, uniform] {
        assert!((quality.displacement - 1.0 / 3.0).abs() < 0.01, "{quality:?}");
        assert!(quality.serial.abs() < 0.02, "{quality:?}");
        // 31 of 65,535; 2 of 65,536; 64 labels; 1 in 64.
        assert!(quality.same_block < 0.001 && quality.adjacent < 0.0002, "{quality:?}");
        assert!((quality.label_run - 64.0 / 63.0).abs() < 0.01, "{quality:?}");
        assert!(quality.worst_label < 0.15, "{quality:?}");
        assert!((quality.together - 1.0).abs() < 0.1, "{quality:?}");
    }
}

#[test]
fn no_shuffle_is_recognised_as_none() {
    let none = delivered(Shuffle::none());
    assert_eq!((none.displacement, none.worst_label), (0.0, 1.0));
    assert!(
        none.adjacent == 1.0 && none.serial > 0.999 && none.label_run > 1000.0 && none.together > 1000.0,
        "{none:?}"
    );
}

#[test]
fn a_buffer_moves_rows_as_far_as_any_order_does_and_mixes_labels_better_than_a_sliding_one() {
    for buffer in [512, 2048, 8192] {
        let ours = delivered(Shuffle::buffer(buffer));
        assert!((ours.displacement - 1.0 / 3.0).abs() < 0.02, "{buffer}: {ours:?}");
        for shards in VARIANTS {
            let sliding = ROWS.measure(&ROWS.sliding(buffer as usize, shards));
            let told = format!("buffer of {buffer}, {shards:?}: {ours:?} beside {sliding:?}");
            assert!(ours.displacement > sliding.displacement - 0.02, "{told}");
            assert!(ours.largest_label < sliding.largest_label && ours.worst_label <= sliding.worst_label, "{told}");
            // Within a batch rows of a stream stand side by side, which interleaved shards do not.
            if !matches!(shards, Shards::Interleaved(_)) {
                assert!(ours.serial < sliding.serial + 0.03 && ours.label_run < sliding.label_run, "{told}");
            }
        }
    }
}

#[test]
fn rows_of_a_block_meet_in_a_batch_about_twice_as_often_as_in_a_sliding_buffer() {
    for buffer in [2048, 8192] {
        let ours = delivered(Shuffle::buffer(buffer)).together;
        let sliding = ROWS.measure(&ROWS.sliding(buffer as usize, Shards::InOrder)).together;
        // A row leaves its segment at any time equally likely; it leaves a sliding buffer late, or very late. And the first segments
        // are small ones, which in an epoch of eight buffers tells.
        assert!(ours < 2.6 * sliding, "buffer of {buffer}: {ours} and {sliding}");
    }
}

#[test]
fn a_larger_buffer_mixes_better() {
    let all = [256, 1024, 4096, 16384].map(|buffer| delivered(Shuffle::buffer(buffer)));
    for pair in all.windows(2) {
        let told = format!("{:?} then {:?}", pair[0], pair[1]);
        assert!(pair[1].same_block < pair[0].same_block && pair[1].together < pair[0].together, "{told}");
        assert!(pair[1].largest_label < pair[0].largest_label && pair[1].label_run < pair[0].label_run, "{told}");
    }
}
