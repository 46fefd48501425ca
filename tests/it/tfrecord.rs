//! TFRecord shards from file to batch: what TensorFlow wrote, with and without index, and damaged.

use std::collections::BTreeSet;

use forebay::format::example::{Example, Feature, SequenceExample};
use forebay::{
    Compression, Dataset, ErrorKind, Index, Missing, Result, Scheduler, Shuffle, TfRecord, bytes, float32, int64,
};

use crate::support::shards::{Folder, content, golden, record, shard, shard_of_ids};
use crate::support::{Taken, take, take_ids};

const GOLDEN: [&str; 3] = ["examples.tfrecord", "examples.gzip.tfrecord", "examples.zlib.tfrecord"];

/// Offsets at which the records of a plain shard start, and its end.
fn offsets(shard: &[u8]) -> Vec<usize> {
    let mut offsets = vec![0];
    while let Some(length) = shard.get(offsets[offsets.len() - 1]..).and_then(|rest| rest.first_chunk::<8>()) {
        offsets.push(offsets[offsets.len() - 1] + 16 + u64::from_le_bytes(*length) as usize);
    }
    offsets
}

// --- what TensorFlow wrote ---------------------------------------------------------------------------------------------

#[test]
fn records_that_tensorflow_wrote_come_as_they_are() -> Result<()> {
    for name in ["records.tfrecord", "records.gzip.tfrecord", "records.zlib.tfrecord"] {
        let folder = Folder::new();
        let dataset = Dataset::open_with(golden(name), TfRecord::new().records())?.batch(3);
        for index in [Index::Auto, Index::Build] {
            let loader = folder.loader(&dataset).index(index);
            let taken = take(loader, 0, |batch| Ok(batch.bytes("record")?.map(<[u8]>::to_vec).collect::<Vec<_>>()))?;
            let wanted: Vec<Vec<u8>> = (0..8usize).map(|i| (0..i * i).map(|j| j as u8).collect()).collect();
            assert_eq!(taken.whole().concat(), wanted, "{name}");
        }
    }
    Ok(())
}

#[test]
fn examples_that_tensorflow_wrote_become_columns() -> Result<()> {
    for name in GOLDEN {
        let folder = Folder::new();
        let columns = [
            int64("label"),
            float32("score"),
            bytes("image"),
            int64("tokens").fixed([3]),
            float32("boxes").ragged(),
            int64("sometimes").or(Missing::Int(-1)),
            float32("empty").optional(),
        ];
        let dataset = Dataset::open(golden(name))?.columns(columns).batch(6);
        let taken = take(folder.loader(&dataset), 0, move |batch| {
            assert_eq!(*batch.values::<i64>("label")?, [-2, -1, 0, 1, 2, 3], "{name}");
            assert_eq!(*batch.values::<f32>("score")?, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
            let images: Vec<_> = batch.bytes("image")?.map(<[u8]>::to_vec).collect();
            assert_eq!(images, (0..6usize).map(|i| vec![i as u8; 10 + i]).collect::<Vec<_>>());
            let tokens: Vec<i64> = (0..6i64).flat_map(|i| [i, 300 * i, -(i << 40)]).collect();
            assert_eq!((&*batch.values::<i64>("tokens")?, batch.shape("tokens")?), (&tokens[..], &[6, 3][..]));
            assert_eq!((batch.shape("boxes")?, batch.lengths("boxes")?), (&[6, 3][..], &[0, 1, 2, 3, 0, 1][..]));
            let boxes: Vec<f32> =
                (0..6usize).flat_map(|i| (0..3).map(move |j| if j < i % 4 { j as f32 * 0.25 } else { 0.0 })).collect();
            assert_eq!(*batch.values::<f32>("boxes")?, boxes);
            assert_eq!(*batch.values::<i64>("sometimes")?, [0, -1, 14, -1, 28, -1]);
            assert_eq!(*batch.values::<f32>("empty")?, [0.0; 6]);
            Ok(())
        })?;
        assert_eq!(taken.whole().len(), 1);
    }
    Ok(())
}

#[test]
fn the_schema_is_inferred_from_the_first_records() -> Result<()> {
    for name in GOLDEN {
        let folder = Folder::new();
        let taken = take(folder.loader(&Dataset::open(golden(name))?.batch(4)), 0, |batch| {
            let names: Vec<_> = batch.names().map(str::to_owned).collect();
            assert_eq!(names, ["boxes", "image", "label", "score", "sometimes", "tokens", "words"]);
            assert_eq!(batch.shape("tokens")?, [batch.len(), 3]);
            assert_eq!(batch.array("words")?.len(), batch.len());
            Ok(batch.values::<i64>("sometimes")?.into_owned())
        })?;
        assert_eq!(taken.whole().concat(), [0, 0, 14, 0, 28, 0], "{name}: missing values are zeros");
    }
    Ok(())
}

#[test]
fn sequences_that_tensorflow_wrote_become_ragged_columns() -> Result<()> {
    let folder = Folder::new();
    let dataset = Dataset::open(golden("sequences.tfrecord"))?;
    let columns =
        [int64("id"), bytes("title"), float32("speed").fixed([2]).in_sequence(), int64("action").in_sequence()];
    for dataset in [dataset.columns(columns), dataset] {
        let taken = take(folder.loader(&dataset.batch(4)), 0, |batch| {
            assert_eq!(*batch.values::<i64>("id")?, [100, 101, 102, 103]);
            assert_eq!(batch.bytes("title")?.nth(2), Some(&b"sequence number 2"[..]));
            assert_eq!((batch.shape("speed")?, batch.lengths("speed")?), (&[4, 4, 2][..], &[1, 2, 3, 4][..]));
            let step = |i: usize, t: usize| if t <= i { t as f32 } else { 0.0 };
            let speed: Vec<f32> = (0..4).flat_map(|i| (0..4).flat_map(move |t| [step(i, t), -step(i, t)])).collect();
            assert_eq!(*batch.values::<f32>("speed")?, speed);
            assert_eq!(batch.values::<i64>("action")?[12..], [0, 10, 20, 30]);
            Ok(())
        })?;
        assert_eq!(taken.whole().len(), 1);
    }
    Ok(())
}

#[test]
fn a_missing_feature_without_default_is_an_error_behind_the_good_samples() -> Result<()> {
    let folder = Folder::new();
    let dataset = Dataset::open(golden("examples.tfrecord"))?.columns([int64("label"), int64("sometimes")]).batch(4);
    let taken = take_ids(folder.loader(&dataset), "label")?;
    let error = taken.failure();
    assert_eq!((taken.batches.concat(), error.kind()), (vec![-2], ErrorKind::Schema), "{error}");
    assert_eq!((error.place().record, error.place().column.as_deref()), (Some(1), Some("sometimes")), "{error}");
    assert!(error.place().url.as_deref().is_some_and(|url| url.ends_with("examples.tfrecord")), "{error}");
    Ok(())
}

// --- compression and indexes -------------------------------------------------------------------------------------------

#[test]
fn several_gzip_members_are_one_shard() -> Result<()> {
    let folder = Folder::new();
    // bgzip ends with a member that holds nothing.
    let members = [0..30, 30..31, 31..80, 0..0].map(|ids| shard_of_ids(ids, Compression::Gzip));
    folder.put("a.tfrecord", &members.concat());
    for index in [Index::Auto, Index::Build] {
        let taken = take_ids(folder.loader(&folder.all().batch(7)).index(index), "id")?;
        assert_eq!(taken.whole().concat(), (0..80).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn streaming_leaves_an_index_that_the_next_loader_uses() -> Result<()> {
    for compression in [Compression::Gzip, Compression::Zlib] {
        let folder = Folder::new();
        folder.put("a.tfrecord", &shard_of_ids(0..50, compression));
        folder.put("b.tfrecord", &shard_of_ids(50..120, compression));
        let dataset = folder.all().batch(8);
        // Which of the two ways it went, the loader tells by the steps that it knows before.
        assert_eq!(folder.loader(&dataset).build()?.steps_per_epoch(), None);
        let streamed = take_ids(folder.loader(&dataset), "id")?.whole();
        assert_eq!(folder.indexes().len(), 2);
        assert_eq!(folder.loader(&dataset).build()?.steps_per_epoch(), Some(15));
        let indexed = take_ids(folder.loader(&dataset), "id")?.whole();
        assert_eq!((streamed.concat(), indexed), ((0..120).collect(), streamed));
    }
    Ok(())
}

#[test]
fn an_index_of_another_version_of_the_shard_is_not_used() -> Result<()> {
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard_of_ids(0..50, Compression::Gzip));
    let dataset = folder.all().batch(8);
    assert_eq!(take_ids(folder.loader(&dataset).index(Index::Build), "id")?.whole().concat().len(), 50);
    folder.put("a.tfrecord", &shard_of_ids(1000..1070, Compression::Gzip));
    assert_eq!(take_ids(folder.loader(&dataset), "id")?.whole().concat(), (1000..1070).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_damaged_index_counts_as_none() -> Result<()> {
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard_of_ids(0..50, Compression::Gzip));
    let dataset = folder.all().batch(8);
    take_ids(folder.loader(&dataset), "id")?.whole();
    for index in folder.indexes() {
        let stored = std::fs::read(&index).expect("an index");
        std::fs::write(&index, &stored[..stored.len() / 2]).expect("a file");
    }
    assert_eq!(take_ids(folder.loader(&dataset), "id")?.whole().concat(), (0..50).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_stream_and_an_index_give_the_same_samples() -> Result<()> {
    let folder = Folder::new();
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let first = 100 * i as u64;
        folder.put(&format!("{name}.tfrecord"), &shard_of_ids(first..first + 100, Compression::Gzip));
    }
    let dataset = folder.all().shuffle(Shuffle::buffer(64)).batch(8);
    let loader = |threads| folder.loader(&dataset).seed(9).scheduler(threads);
    let streamed = take_ids(loader(Scheduler::single_threaded()).index_dir(folder.path("none")), "id")?.whole();
    let again = take_ids(loader(Scheduler::threads(4)).index_dir(folder.path("none either")), "id")?.whole();
    assert_eq!(streamed, again, "one order for any threads");
    assert!(!streamed.concat().is_sorted(), "it is shuffled");
    let indexed = take_ids(loader(Scheduler::threads(2)).index(Index::Build), "id")?.whole();
    let set = |batches: &[Vec<i64>]| batches.concat().into_iter().collect::<BTreeSet<_>>();
    assert_eq!((streamed.concat().len(), set(&streamed)), (300, set(&indexed)));
    assert_eq!(indexed.concat().len(), 300);
    Ok(())
}

#[test]
fn what_needs_an_index_says_so_and_takes_one() -> Result<()> {
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard_of_ids(0..40, Compression::Gzip));
    let all = folder.all();
    for dataset in [all.shuffle(Shuffle::global()), all.repeat(2), all.skip(1), all.enumerate("n"), all.zip(&all)] {
        let dataset = dataset.batch(4);
        let folder = Folder::new();
        let error = folder.loader(&dataset).build().expect_err("no index is there");
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(".index(Index::Build)"), "{error}");
        let taken = take_ids(folder.loader(&dataset).index(Index::Build), "id")?;
        assert!(taken.whole().concat().len() >= 39);
    }
    Ok(())
}

// --- other content -----------------------------------------------------------------------------------------------------

#[test]
fn records_of_another_schema_name_the_columns_there_are() -> Result<()> {
    for compression in [Compression::None, Compression::Gzip] {
        let folder = Folder::new();
        folder.put("a.tfrecord", &shard_of_ids(0..10, compression));
        let taken = take_ids(folder.loader(&folder.all().columns([int64("label")]).batch(4)), "label")?;
        let text = taken.failure().to_string();
        assert_eq!((taken.batches.len(), taken.failure().kind()), (0, ErrorKind::Schema));
        for part in ["label", "id", "noise", "a.tfrecord", "record 0"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
    Ok(())
}

#[test]
fn other_messages_that_parse_as_examples_end_in_an_error() -> Result<()> {
    // Field 1 is a string here, as in many a message; the parser skips what it does not know.
    let other = [vec![], b"\x0a\x00".to_vec(), b"\x12\x03abc".to_vec(), b"\x18\x05".to_vec()];
    for payload in other {
        let folder = Folder::new();
        folder.put("a.tfrecord", &shard(vec![payload.clone(); 5], Compression::None));
        let taken = take_ids(folder.loader(&folder.all().columns([int64("id")]).batch(2)), "id")?;
        let error = taken.failure();
        assert_eq!((taken.batches.len(), error.kind()), (0, ErrorKind::Schema), "{payload:?}: {error}");
        assert!(error.place().record == Some(0) && error.to_string().contains("id"), "{error}");
    }
    Ok(())
}

#[test]
fn a_sequence_can_be_written_here_and_read_back() -> Result<()> {
    let folder = Folder::new();
    let sequence = |n: i64| {
        let steps = (0..n).map(|t| Feature::int64([t]));
        SequenceExample::new().with_context("id", Feature::int64([n])).with_steps("step", steps).encode()
    };
    folder.put("a.tfrecord", &shard((1..4).map(sequence), Compression::Zlib));
    let taken = take(folder.loader(&folder.all().batch(3)), 0, |batch| {
        assert_eq!((batch.lengths("step")?, &*batch.values::<i64>("id")?), (&[1, 2, 3][..], &[1, 2, 3][..]));
        Ok(batch.values::<i64>("step")?.into_owned())
    })?;
    assert_eq!(taken.whole().concat(), [0, 0, 0, 0, 1, 0, 0, 1, 2]);
    Ok(())
}

// --- damage ------------------------------------------------------------------------------------------------------------

const RECORDS: usize = 40;

/// Reads a damaged shard behind a sound one, with one thread and with three.
fn read_damaged(damaged: &[u8], options: TfRecord) -> Result<Taken<Vec<i64>>> {
    let read = |scheduler| -> Result<_> {
        let folder = Folder::with_ids(&[10]);
        folder.put("01.tfrecord", damaged);
        let dataset = Dataset::open_with(folder.url("*.tfrecord"), options.clone())?.columns([int64("id")]).batch(4);
        take_ids(folder.loader(&dataset).scheduler(scheduler), "id")
    };
    let (alone, many) = (read(Scheduler::single_threaded())?, read(Scheduler::threads(3))?);
    assert_eq!(alone.batches, many.batches);
    assert_eq!(alone.error.is_some(), many.error.is_some());
    Ok(alone)
}

/// All samples of the sound shard and the first `good` of the damaged one, then one error that names the place.
fn ends_at(taken: &Taken<Vec<i64>>, good: usize, offset: usize) {
    let error = taken.failure();
    assert_eq!(taken.batches.concat(), (0..10 + good as i64).collect::<Vec<_>>(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.place().url.as_deref().is_some_and(|url| url.ends_with("01.tfrecord")), "{error}");
    assert_eq!((error.place().record, error.place().byte_offset), (Some(good as u64), Some(offset as u64)), "{error}");
}

#[test]
fn a_shard_that_ends_within_a_record_gives_what_is_before() -> Result<()> {
    let sound = shard_of_ids(10..10 + RECORDS as u64, Compression::None);
    let at = offsets(&sound);
    for record in [0, 1, 21, RECORDS - 1] {
        // In the length, in its checksum, in the payload, in the footer.
        for cut in [at[record] + 5, at[record] + 10, at[record] + 15, at[record + 1] - 2] {
            ends_at(&read_damaged(&sound[..cut], TfRecord::new())?, record, at[record]);
        }
    }
    Ok(())
}

#[test]
fn a_flipped_bit_ends_the_shard_where_it_is() -> Result<()> {
    let sound = shard_of_ids(10..10 + RECORDS as u64, Compression::None);
    let at = offsets(&sound);
    for record in [0, 1, 21, RECORDS - 1] {
        // The length, its checksum, the payload, its checksum.
        for byte in [at[record] + 2, at[record] + 9, at[record] + 14, at[record + 1] - 1] {
            let mut damaged = sound.clone();
            damaged[byte] ^= 0x10;
            ends_at(&read_damaged(&damaged, TfRecord::new())?, record, at[record]);
        }
    }
    Ok(())
}

#[test]
fn unchecked_payloads_are_not_looked_at_but_lengths_are() -> Result<()> {
    let sound = shard_of_ids(10..10 + RECORDS as u64, Compression::None);
    let at = offsets(&sound);
    let mut damaged = sound.clone();
    damaged[at[6] - 1] ^= 1;
    assert_eq!(read_damaged(&damaged, TfRecord::new().unchecked())?.whole().concat().len(), 10 + RECORDS);
    damaged[at[7] + 1] ^= 1;
    ends_at(&read_damaged(&damaged, TfRecord::new().unchecked())?, 7, at[7]);
    Ok(())
}

#[test]
fn compressed_shards_that_end_early_or_are_damaged_never_end_quietly() -> Result<()> {
    for compression in [Compression::Gzip, Compression::Zlib] {
        let sound = shard_of_ids(10..10 + RECORDS as u64, compression);
        for cut in [1, 12, sound.len() / 2, sound.len() - 1] {
            let taken = read_damaged(&sound[..cut], TfRecord::new().compression(compression)).map(|taken| {
                assert!(taken.batches.concat().iter().enumerate().all(|(i, &id)| i as i64 == id));
                taken.failure().clone()
            });
            let (Ok(error) | Err(error)) = taken;
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{compression:?} cut at {cut}: {error}");
        }
        let mut damaged = sound.clone();
        let end = damaged.len() - 6;
        damaged[end] ^= 1;
        // The first shard is plain: its compression is recognised, as this one's.
        let taken = read_damaged(&damaged, TfRecord::new())?;
        assert_eq!(taken.failure().kind(), ErrorKind::Corrupt, "the checksum of the whole: {}", taken.failure());
    }
    Ok(())
}

#[test]
fn plain_and_compressed_shards_stand_side_by_side() -> Result<()> {
    let folder = Folder::with_ids(&[10]);
    folder.put("01.tfrecord", &shard_of_ids(10..20, Compression::Zlib));
    folder.put("02.tfrecord", &shard_of_ids(20..30, Compression::Gzip));
    folder.put("03.tfrecord", &[]);
    for index in [Index::Auto, Index::Auto, Index::Build] {
        let taken = take_ids(folder.loader(&folder.all().batch(4)).index(index), "id")?;
        assert_eq!(taken.whole().concat(), (0..30).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn a_wrong_statement_of_the_compression_is_an_error_that_names_the_shard() -> Result<()> {
    for (is, stated) in [
        (Compression::None, Compression::Gzip),
        (Compression::Gzip, Compression::None),
        (Compression::Zlib, Compression::Gzip),
    ] {
        let folder = Folder::new();
        folder.put("a.tfrecord", &shard_of_ids(0..10, is));
        let options = TfRecord::new().compression(stated);
        let dataset = Dataset::open_with(folder.url("a.tfrecord"), options)?.columns([int64("id")]).batch(4);
        for index in [Index::Auto, Index::Build] {
            let error = match take_ids(folder.loader(&dataset).index(index), "id") {
                Ok(taken) => taken.failure().clone(),
                Err(error) => error,
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{is:?} read as {stated:?}, {index:?}: {error}");
            assert!(error.to_string().contains("a.tfrecord"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_missing_shard_and_an_empty_pattern_are_refused_by_build() -> Result<()> {
    let folder = Folder::with_ids(&[3, 3]);
    for (pattern, named) in [("{00..02}.tfrecord", "02.tfrecord"), ("*.rec", "*.rec"), ("7.tfrecord", "7.tfrecord")] {
        let error = folder.loader(&folder.open(pattern).batch(1)).build().expect_err("it is not there");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    assert_eq!(Dataset::open(Vec::<String>::new()).expect_err("nothing").kind(), ErrorKind::Config);
    folder.put("empty", &[]);
    let error = folder.loader(&folder.open("empty").batch(1)).build().expect_err("no records");
    assert!(error.to_string().contains("no record"), "{error}");
    Ok(())
}

#[test]
fn a_shard_that_is_gone_after_build_is_an_error() -> Result<()> {
    let folder = Folder::with_ids(&[30]);
    let mut loader = folder.loader(&folder.all().columns([int64("id")]).batch(4)).build()?;
    std::fs::remove_file(folder.path("00.tfrecord")).expect("it was there");
    let ended = crate::support::watched(move || {
        let mut epoch = loader.epoch(0);
        let first = epoch.next().map(|batch| batch.map(|batch| batch.len()));
        (first, epoch.next().is_none())
    });
    let (Some(Err(error)), true) = ended else { panic!("{ended:?}") };
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    Ok(())
}

#[test]
fn a_shard_that_is_replaced_after_build_is_an_error() -> Result<()> {
    let folder = Folder::with_ids(&[30]);
    let mut loader = folder.loader(&folder.all().batch(4)).build()?;
    folder.put("00.tfrecord", &shard((500..520).map(record), Compression::None));
    let ended = crate::support::watched(move || {
        loader
            .epoch(0)
            .map(|batch| batch.and_then(|batch| Ok(batch.values::<i64>("id")?.into_owned())))
            .collect::<Result<Vec<_>>>()
    });
    let error = ended.expect_err("sizes differ");
    assert!(error.to_string().contains("00.tfrecord"), "{error}");
    Ok(())
}

#[test]
fn a_declared_length_beyond_the_shard_allocates_nothing() -> Result<()> {
    // A header with a sound checksum that promises far more than there is.
    let length = (1u64 << 40).to_le_bytes();
    let mut damaged = length.to_vec();
    damaged.extend(forebay::format::tfrecord::masked_crc32c(&length).to_le_bytes());
    damaged.extend([0; 100]);
    ends_at(&read_damaged(&damaged, TfRecord::new())?, 0, 0);
    Ok(())
}

#[test]
fn values_of_another_kind_or_number_are_errors_of_their_record() -> Result<()> {
    let good = |i: i64| Example::new().with_int64("id", [i]).encode();
    let float = Example::new().with_float32("id", [0.5]).encode();
    let two = Example::new().with_int64("id", [1, 2]).encode();
    for bad in [float, two, b"\x0a\x05\x0a".to_vec()] {
        let folder = Folder::new();
        let payloads = (0..7).map(good).chain([bad.clone()]).chain((8..12).map(good));
        folder.put("a.tfrecord", &shard(payloads, Compression::None));
        let taken = take_ids(folder.loader(&folder.all().columns([int64("id")]).batch(2)), "id")?;
        let error = taken.failure();
        assert_eq!(taken.batches.concat(), (0..7).collect::<Vec<_>>(), "{error}");
        assert_eq!((error.kind(), error.place().record), (ErrorKind::Schema, Some(7)), "{error}");
    }
    Ok(())
}

#[test]
fn golden_files_are_there_and_whole() {
    assert_eq!(offsets(&content(&golden("examples.tfrecord"))).len(), 7);
}
