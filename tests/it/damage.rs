//! Bad data: one error that names its place behind all good samples before it, or, where that is allowed, all others.

use std::io::Write;
use std::ops::Range;

use forebay::format::example::{Example, Feature};
use forebay::format::tfrecord::masked_crc32c;
use forebay::{
    Budget, Compression, Dataset, Error, ErrorKind, Image, Index, LoaderBuilder, Result, Scheduler, Shuffle, Skip,
    TfRecord, World, bytes, int64,
};

use crate::support::shards::{Folder, shard};
use crate::support::{Taken, ids_and_report, take_ids, watched};

/// Records of the shard that gets damaged, the one that does, and the records of the sound shard behind.
const RECORDS: u64 = 12;
const BAD: usize = 7;
const BEHIND: Range<i64> = 12..20;

fn picture() -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(20, 10, |x, y| image::Rgb([x as u8 * 9, y as u8 * 20, 77]));
    let mut encoded = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut encoded, image::ImageFormat::Png).expect("memory takes it");
    encoded.into_inner()
}

fn good(id: u64) -> Example {
    Example::new().with_int64("id", [id as i64]).with_bytes("image", [picture()])
}

fn offsets(payloads: &[Vec<u8>]) -> Vec<usize> {
    payloads.iter().scan(0, |at, payload| Some(std::mem::replace(at, *at + payload.len() + 16))).collect()
}

/// How a shard is bad, and the stage that says so.
struct Damage {
    name: &'static str,
    /// The bad record's payload.
    payload: Vec<u8>,
    /// What is done to the stored shard, given the place of the bad record and of the next.
    spoil: fn(&mut Vec<u8>, usize, usize),
    /// Whether what is behind cannot be found.
    rest_is_lost: bool,
    stage: &'static str,
    words: &'static str,
}

fn all_kinds() -> Vec<Damage> {
    let sound = good(BAD as u64).encode();
    let with = |payload: Example| payload.encode();
    let mut cut_picture = picture();
    cut_picture.truncate(cut_picture.len() / 2);
    let mut huge = picture();
    huge[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&huge[12..29]);
    huge[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    let stored = |name, spoil, rest_is_lost, words| Damage {
        name,
        payload: sound.clone(),
        spoil,
        rest_is_lost,
        stage: "decode",
        words,
    };
    let written =
        |name, payload, stage, words| Damage { name, payload, spoil: |_, _, _| {}, rest_is_lost: false, stage, words };
    let image = |image: &[u8]| with(Example::new().with_int64("id", [7]).with_bytes("image", [image]));
    vec![
        stored("payload", |shard, at, _| shard[at + 40] ^= 1, false, "payload checksum"),
        stored("footer", |shard, _, next| shard[next - 1] ^= 1, false, "payload checksum"),
        stored("length", |shard, at, _| shard[at] ^= 1, true, "length checksum"),
        stored("length's checksum", |shard, at, _| shard[at + 9] ^= 1, true, "length checksum"),
        stored("ends in header", |shard, at, _| shard.truncate(at + 5), true, "ends inside a record's header"),
        stored("ends in payload", |shard, at, _| shard.truncate(at + 50), true, "ends inside a record's payload"),
        stored("ends in footer", |shard, _, next| shard.truncate(next - 2), true, "ends inside a record's footer"),
        written("no Example", b"\xff\xd8\xff\xe0 a photograph".to_vec(), "decode", "no tf.Example"),
        written("another kind", with(good(7).with("id", Feature::float32([7.0]))), "decode", "column id"),
        written("another length", with(good(7).with("id", Feature::int64([7, 8]))), "decode", "column id"),
        written("missing", with(Example::new().with_bytes("image", [picture()])), "decode", "column id"),
        written("no image", image(b"not an image at all"), "image", "column image"),
        written("half an image", image(&cut_picture), "image", "column image"),
        written("a huge image", image(&huge), "image", "30000"),
        written("an empty image", image(b""), "image", "column image"),
    ]
}

/// The damaged shard and the sound one behind it.
fn damaged(damage: &Damage, compression: Compression) -> (Folder, usize) {
    let mut payloads: Vec<Vec<u8>> = (0..RECORDS).map(|id| good(id).encode()).collect();
    payloads[BAD] = damage.payload.clone();
    let places = offsets(&payloads);
    let mut stored = shard(payloads, Compression::None);
    (damage.spoil)(&mut stored, places[BAD], places[BAD + 1]);
    let stored = match compression {
        Compression::None => stored,
        _ => gzip(&stored),
    };
    let folder = Folder::new();
    folder.put("00.tfrecord", &stored);
    folder.put("01.tfrecord", &shard(BEHIND.map(|id| good(id as u64).encode()), Compression::None));
    (folder, places[BAD])
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn pipeline(dataset: Dataset) -> Dataset {
    dataset.columns([int64("id"), bytes("image")]).image("image", Image::rgb().resize(8, 8)).batch(4)
}

#[track_caller]
fn assert_place(error: &Error, damage: &Damage, offset: usize) {
    let place = error.place();
    assert!(place.url.as_deref().is_some_and(|url| url.ends_with("00.tfrecord")), "{}: {error}", damage.name);
    assert_eq!((place.record, place.byte_offset), (Some(BAD as u64), Some(offset as u64)), "{}: {error}", damage.name);
    let text = error.to_string();
    assert!(text.contains(damage.words), "{}: {error}", damage.name);
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema), "{}: {error}", damage.name);
}

#[test]
fn each_kind_of_damage_gives_what_is_before_and_one_error_with_its_place() -> Result<()> {
    for damage in all_kinds() {
        for compression in [Compression::None, Compression::Gzip] {
            let (folder, offset) = damaged(&damage, compression);
            for scheduler in [Scheduler::single_threaded(), Scheduler::threads(3)] {
                let (ids, error, _) = ids_and_report(folder.loader(&pipeline(folder.all())).scheduler(scheduler))?;
                let error = error.unwrap_or_else(|| panic!("{}: no error", damage.name));
                assert_eq!(ids, (0..BAD as i64).collect::<Vec<_>>(), "{}: {error}", damage.name);
                assert_place(&error, &damage, offset);
                assert_eq!(error.place().stage.as_deref(), Some(damage.stage), "{}: {error}", damage.name);
                assert!(error.to_string().ends_with("go on without it: .on_bad_record(Skip::up_to(100))"), "{error}");
            }
        }
    }
    Ok(())
}

#[test]
fn each_kind_of_damage_can_be_left_out_and_is_listed() -> Result<()> {
    for damage in all_kinds() {
        let before = 0..BAD as i64;
        let behind = if damage.rest_is_lost { 0..0 } else { BAD as i64 + 1..RECORDS as i64 };
        let others: Vec<i64> = before.chain(behind).chain(BEHIND).collect();
        for compression in [Compression::None, Compression::Gzip] {
            let (folder, offset) = damaged(&damage, compression);
            for index in [Index::Auto, Index::Build] {
                for scheduler in [Scheduler::single_threaded(), Scheduler::threads(3)] {
                    let loader = folder.loader(&pipeline(folder.all())).index(index).scheduler(scheduler);
                    let (ids, error, report) = ids_and_report(loader.clone().on_bad_record(Skip::up_to(1)))?;
                    assert!(error.is_none(), "{}, {compression:?}, {index:?}: {error:?}", damage.name);
                    assert_eq!(ids, others, "{}, {compression:?}, {index:?}", damage.name);
                    assert_eq!((report.num_skipped, report.skipped.len()), (1, 1), "{}", damage.name);
                    assert_place(&report.skipped[0].error, &damage, offset);
                    let (ids, error, _) = ids_and_report(loader.on_bad_record(Skip::up_to(0)))?;
                    assert!(ids.len() >= BAD && error.is_some(), "{}: {ids:?}, {error:?}", damage.name);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn no_columns_named_are_inferred_from_what_is_good() -> Result<()> {
    for damage in all_kinds() {
        let (folder, _) = damaged(&damage, Compression::None);
        let dataset = folder.all().batch(4);
        let (ids, error, _) = ids_and_report(folder.loader(&dataset))?;
        // A shorter or longer list makes its column ragged, a missing value makes it optional.
        if damage.stage == "decode" && !["missing", "another length"].contains(&damage.name) {
            let error = error.unwrap_or_else(|| panic!("{}: no error", damage.name));
            assert_eq!((ids.len(), error.place().record), (BAD, Some(BAD as u64)), "{}: {error}", damage.name);
        }
        let (ids, error, _) = ids_and_report(folder.loader(&dataset).on_bad_record(Skip::up_to(1)))?;
        assert!(error.is_none() && ids.len() >= BAD + BEHIND.count(), "{}: {error:?}", damage.name);
    }
    Ok(())
}

/// Shards in which every record whose id is in `bad` has a damaged payload.
fn speckled(sizes: &[u64], bad: &[u64]) -> Folder {
    let (folder, mut first) = (Folder::new(), 0);
    for (number, &size) in sizes.iter().enumerate() {
        let payloads: Vec<Vec<u8>> = (first..first + size).map(|id| good(id).encode()).collect();
        let places = offsets(&payloads);
        let mut stored = shard(payloads, Compression::None);
        for id in bad.iter().filter(|id| (first..first + size).contains(id)) {
            stored[places[(id - first) as usize] + 30] ^= 1;
        }
        folder.put(&format!("{number:02}.tfrecord"), &stored);
        first += size;
    }
    folder
}

const BAD_ONES: [u64; 6] = [0, 5, 6, 7, 31, 59];

#[test]
fn the_order_of_all_others_is_that_of_sound_shards() -> Result<()> {
    let (sound, spoilt) = (speckled(&[20, 40], &[]), speckled(&[20, 40], &BAD_ONES));
    for shuffle in [Shuffle::none(), Shuffle::buffer(16), Shuffle::buffer(500), Shuffle::global()] {
        let epoch = |folder: &Folder, threads| {
            let dataset = pipeline(folder.all().shuffle(shuffle));
            ids_and_report(
                folder.loader(&dataset).seed(3).scheduler(Scheduler::threads(threads)).on_bad_record(Skip::up_to(6)),
            )
        };
        let (all, _, _) = epoch(&sound, 2)?;
        let others: Vec<i64> = all.into_iter().filter(|id| !BAD_ONES.contains(&(*id as u64))).collect();
        let mut lists = Vec::new();
        for threads in [1, 4] {
            let (ids, error, report) = epoch(&spoilt, threads)?;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(ids, others, "{shuffle:?}");
            lists.push(report.skipped.iter().map(|skipped| skipped.error.place().sample).collect::<Vec<_>>());
        }
        assert_eq!(lists[0], lists[1]);
        assert_eq!(lists[0].len(), BAD_ONES.len());
    }
    Ok(())
}

#[test]
fn steps_stay_those_of_the_plan_on_every_rank() -> Result<()> {
    let folder = speckled(&[20, 40], &BAD_ONES);
    let dataset = pipeline(folder.all().shuffle(Shuffle::buffer(16)));
    let epoch = |rank, size| -> Result<Vec<Vec<i64>>> {
        let loader = folder.loader(&dataset).streams(4).world(World::new(rank, size)?).on_bad_record(Skip::up_to(6));
        Ok(take_ids(loader, "id")?.whole())
    };
    let (alone, pair) = (epoch(0, 1)?, [epoch(0, 2)?, epoch(1, 2)?]);
    assert_eq!((alone.len(), pair[0].len(), pair[1].len()), (15, 15, 15));
    for (step, batch) in alone.iter().enumerate() {
        assert_eq!(*batch, [pair[0][step].clone(), pair[1][step].clone()].concat());
    }
    Ok(())
}

#[test]
fn a_rank_without_any_sample_of_a_step_ends_with_an_error_instead_of_making_others_wait() -> Result<()> {
    let folder = speckled(&[20], &[4, 5]);
    let dataset = folder.all().columns([int64("id")]).batch(4);
    let of_rank = |rank| -> Result<Taken<Vec<i64>>> {
        let loader = folder.loader(&dataset).streams(2).world(World::new(rank, 2)?).on_bad_record(Skip::up_to(9));
        take_ids(loader, "id")
    };
    let taken = of_rank(0)?;
    assert_eq!(taken.batches, [[0, 1]]);
    assert!(taken.failure().to_string().contains("without any sample of step 1"), "{}", taken.failure());
    assert_eq!(of_rank(1)?.whole().len(), 5);
    Ok(())
}

#[test]
fn more_bad_records_than_allowed_end_the_epoch_and_the_next_counts_anew() -> Result<()> {
    let folder = speckled(&[60], &BAD_ONES);
    let dataset = folder.all().columns([int64("id")]).batch(5);
    let epoch = |skip| ids_and_report(folder.loader(&dataset).on_bad_record(skip));
    for skip in [Skip::up_to(4), Skip::rate(0.07)] {
        let (ids, error, report) = epoch(skip)?;
        let error = error.expect("there are six");
        assert!(error.to_string().contains("bad record 5 of epoch 0"), "{error}");
        assert_eq!((error.place().record, report.num_skipped), (Some(31), 5), "{error}");
        assert!(ids.starts_with(&[1, 2, 3, 4, 8]) && ids.contains(&30) && !ids.contains(&36), "{ids:?}");
    }
    assert!(epoch(Skip::rate(0.1))?.1.is_none());
    let mut loader = folder.loader(&dataset).on_bad_record(Skip::up_to(6)).build()?;
    for round in 1..=2 {
        assert_eq!((&mut loader).into_iter().map(|batch| batch.map(|b| b.len())).sum::<Result<usize>>()?, 54);
        let report = loader.report();
        assert!(report.num_skipped >= 6 * round, "{}", report.num_skipped);
        assert!(report.to_string().contains("record 31, byte"), "{report}");
    }
    let error = folder.loader(&dataset).on_bad_record(Skip::rate(1.5)).build().expect_err("no share");
    assert!(error.to_string().contains("Skip::rate(1.5)"), "{error}");
    Ok(())
}

#[test]
fn a_rate_of_shards_without_index_is_held_against_what_came_so_far_and_at_the_end() -> Result<()> {
    let payloads: Vec<Vec<u8>> = (0..60).map(|id| good(id).encode()).collect();
    let places = offsets(&payloads);
    let mut stored = shard(payloads, Compression::None);
    BAD_ONES.iter().for_each(|&id| stored[places[id as usize] + 30] ^= 1);
    let folder = Folder::new();
    folder.put("00.tfrecord", &gzip(&stored));
    let dataset = folder.all().columns([int64("id")]).batch(5);
    let (ids, error, _) = ids_and_report(folder.loader(&dataset).on_bad_record(Skip::rate(0.05)))?;
    assert_eq!(ids.len(), 54, "all come before the epoch's end");
    assert!(error.expect("a tenth is bad").to_string().contains("bad record 6 of epoch 0"));
    Ok(())
}

#[test]
fn functions_zip_and_concat_leave_out_the_same_rows_everywhere() -> Result<()> {
    let folder = speckled(&[60], &BAD_ONES);
    let all = folder.all().columns([int64("id")]);
    let odd = |dataset: Dataset, name: &str| {
        dataset.map(name, [int64("twice")], |_, row, out| match row.get::<i64>("id")? {
            id if id % 10 == 0 => Err(Error::new(ErrorKind::Transform, "a multiple of ten")),
            id => out.set("twice", 2 * id),
        })
    };
    let bad = |id: i64| BAD_ONES.contains(&(id as u64)) || id % 10 == 0;
    let others: Vec<i64> = (0..60).filter(|&id| !bad(id)).collect();
    let zipped = odd(all.clone(), "odd")
        .zip(&all.clone().map("minus", [int64("minus")], |_, row, out| out.set("minus", -row.get::<i64>("id")?)));
    let rows = |dataset: Dataset, columns: &'static [&'static str]| -> Result<(Vec<Vec<i64>>, u64)> {
        let loader = folder.loader(&dataset).streams(1).on_bad_record(Skip::up_to(1000));
        watched(move || {
            let mut loader = loader.build()?;
            let mut rows = Vec::new();
            for batch in loader.split(&[forebay::Device::Cpu])?.remove(0) {
                let batch = batch?;
                let values = columns.iter().map(|name| batch.values::<i64>(name)).collect::<Result<Vec<_>>>()?;
                rows.extend((0..batch.len()).map(|i| values.iter().map(|column| column[i]).collect::<Vec<_>>()));
            }
            Ok((rows, loader.report().num_skipped))
        })
    };
    let (found, skipped) = rows(zipped.batch(7), &["id", "twice", "minus"])?;
    assert_eq!(found, others.iter().map(|&id| vec![id, 2 * id, -id]).collect::<Vec<_>>());
    assert_eq!(skipped, 60 - others.len() as u64);
    let (found, skipped) = rows(odd(all.clone(), "first").concat(&odd(all.clone(), "second")).batch(7), &["id"])?;
    assert_eq!(found.concat(), [others.clone(), others.clone()].concat());
    assert_eq!(skipped, 2 * (60 - others.len() as u64));
    let small = odd(all.clone(), "odd").filter("small", |_, row| Ok(row.get::<i64>("id")? < 30)).batch(7);
    let (found, skipped) = rows(small, &["id"])?;
    assert_eq!(found.concat(), others.iter().copied().filter(|&id| id < 30).collect::<Vec<_>>());
    assert_eq!(skipped, 60 - others.len() as u64);
    let (found, _) = rows(odd(all.enumerate("at"), "odd").batch(7), &["id", "at"])?;
    assert_eq!(found, others.iter().map(|&id| vec![id, id]).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_slip_of_a_function_is_no_bad_record() {
    let numbers = std::sync::Arc::new(arrow::array::Int64Array::from_iter_values(0..100));
    let dataset = Dataset::from_columns([("id", numbers as _)]).expect("a column");
    type Body = fn(&forebay::Row<'_>, &mut forebay::RowWriter<'_>) -> Result<()>;
    let slips: [(Body, &str); 5] = [
        (|row, out| out.set("id", row.get::<i64>("ident")?), "these exist: id"),
        (|row, out| out.set("id", i64::from(row.get::<i32>("id")?)), "asked for i32"),
        (|_, out| out.set("ident", 1i64), "not among the declared outputs id"),
        (|_, out| out.set("id", 1f32), "set to f32"),
        (|_, out| out.set("id", 1i64).and_then(|()| out.set("id", 1i64)), "set twice"),
    ];
    for (body, words) in slips {
        let mapped = dataset.map("slip", [int64("id")], move |_, row, out| body(&row, out)).batch(10);
        for loader in [mapped.loader(), mapped.loader().on_bad_record(Skip::rate(1.0))] {
            let error =
                watched(|| loader.build().and_then(|loader| loader.into_iter().try_for_each(|batch| batch.map(drop))));
            let error = error.expect_err("no row passes");
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            let text = error.to_string();
            assert!(text.contains(words) && text.contains("sample 0") && !text.contains("on_bad_record"), "{text}");
        }
    }
}

#[test]
fn every_prefix_and_every_flipped_bit_is_an_error_or_the_right_data() -> Result<()> {
    let records: Vec<Vec<u8>> = (0..4u8).map(|i| vec![i; usize::from(i) * 3]).collect();
    let mut quiet = 0;
    for compression in [Compression::None, Compression::Gzip, Compression::Zlib] {
        let sound = shard(records.clone(), compression);
        let boundaries = if compression == Compression::None { offsets(&records) } else { vec![0] };
        let prefixes = (0..sound.len()).map(|len| sound[..len].to_vec());
        let flipped = (0..sound.len() * 8).step_by(3).map(|bit| {
            let mut flipped = sound.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        });
        for (number, stored) in prefixes.chain(flipped).enumerate() {
            let folder = Folder::new();
            folder.put("a.tfrecord", &stored);
            let options = TfRecord::new().records().compression(compression);
            let dataset = Dataset::open_with(folder.url("a.tfrecord"), options)?.batch(3);
            let scheduler = Scheduler::single_threaded();
            let run = |loader: LoaderBuilder| -> Result<(Vec<Vec<u8>>, bool)> {
                let (mut found, mut failed) = (Vec::new(), false);
                for batch in loader.build()? {
                    match batch.and_then(|batch| {
                        batch.bytes("record").map(|records| records.map(<[u8]>::to_vec).collect::<Vec<_>>())
                    }) {
                        Ok(records) => found.extend(records),
                        Err(_) => failed = true,
                    }
                }
                Ok((found, failed))
            };
            let loader = folder.loader(&dataset).scheduler(scheduler);
            // A plain shard that ends behind a record is one.
            if let Ok((found, failed)) = run(loader.clone()) {
                let whole = found.len() == records.len() || boundaries.contains(&stored.len());
                assert!(records.starts_with(&found) && (failed || whole), "{compression:?} {number}: {found:?}");
                quiet += usize::from(!failed);
            }
            if let Ok((found, _)) = run(loader.on_bad_record(Skip::up_to(4))) {
                let mut rest = records.iter();
                assert!(found.iter().all(|record| rest.any(|sound| sound == record)), "{compression:?} {number}");
            }
        }
    }
    // Headers of gzip members have a few bytes that nothing depends on.
    assert!((1..60).contains(&quiet), "{quiet} damaged shards were read in silence");
    Ok(())
}

/// A stream of zeros behind a record's header that declares them.
fn bomb(declared: u64) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let length = declared.to_le_bytes();
    encoder.write_all(&length).expect("memory takes it");
    encoder.write_all(&masked_crc32c(&length).to_le_bytes()).expect("memory takes it");
    let zeros = vec![0; 1 << 20];
    (0..100).for_each(|_| encoder.write_all(&zeros).expect("memory takes it"));
    encoder.finish().expect("memory takes it")
}

#[test]
fn declared_lengths_and_bombs_cost_no_more_than_the_budget() -> Result<()> {
    for (declared, kind) in [(1 << 60, ErrorKind::Corrupt), (90 << 20, ErrorKind::Memory)] {
        let folder = Folder::new();
        folder.put("a.tfrecord", &bomb(declared));
        let dataset = folder.all().columns([int64("id")]).batch(2);
        for scheduler in [Scheduler::single_threaded(), Scheduler::threads(2)] {
            let loader = folder.loader(&dataset).scheduler(scheduler).budget(Budget::mebibytes(32));
            let (ids, error, report) = ids_and_report(loader.clone())?;
            let error = error.expect("it cannot be held");
            assert_eq!((ids.len(), error.kind()), (0, kind), "{error}");
            assert!(report.peak_bytes <= 32 << 20, "{report}");
            let refused = loader.index(Index::Build).build().err();
            assert_eq!(refused.map(|error| error.kind()), (kind == ErrorKind::Memory).then_some(kind));
        }
    }
    Ok(())
}

#[test]
fn a_record_as_large_as_the_budget_allows_is_read_within_it() -> Result<()> {
    let large =
        |id: i64| Example::new().with_int64("id", [id]).with_bytes("noise", [vec![id as u8; 20 << 20]]).encode();
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard((0..3).map(large), Compression::Gzip));
    let dataset = folder.all().columns([int64("id")]).batch(1);
    let (ids, error, report) = ids_and_report(folder.loader(&dataset).budget(Budget::mebibytes(128)))?;
    assert!(ids == [0, 1, 2] && error.is_none(), "{ids:?}, {error:?}");
    assert!((40 << 20..=128 << 20).contains(&report.peak_bytes), "{report}");
    Ok(())
}
