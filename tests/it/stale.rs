//! Shards that changed: behind their index, and behind `build()`.

use std::fs::File;
use std::time::{Duration, SystemTime};

use forebay::format::tfrecord::{Fingerprint, ShardIndex};
use forebay::{Compression, Error, ErrorKind, Index, LoaderBuilder, Result, Shuffle, Skip, int64};

use crate::support::shards::{Folder, shard_of_ids};
use crate::support::{ids_and_report, watched};

/// The ids that come, and the notes of the report.
fn run(loader: LoaderBuilder) -> Result<(Vec<i64>, Vec<String>)> {
    watched(move || {
        let mut loader = loader.build()?;
        let mut ids = Vec::new();
        for batch in loader.epoch(0) {
            ids.extend_from_slice(&batch?.values::<i64>("id")?);
        }
        Ok((ids, loader.report().notes))
    })
}

fn refused(loader: LoaderBuilder) -> Error {
    loader.build().expect_err("it needs an index")
}

fn has(text: &str, words: &[&str]) {
    words.iter().for_each(|words| assert!(text.contains(words), "{text} lacks {words}"));
}

/// Gives a file another time.
fn touch(folder: &Folder, name: &str, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(folder.path(name)).and_then(|file| file.set_modified(time)).expect("a file");
}

#[test]
fn a_stale_index_of_a_plain_file_is_named_and_built_again() -> Result<()> {
    let folder = Folder::with_ids(&[50]);
    let size = folder.path("00.tfrecord").metadata().expect("a file").len();
    let dataset = folder.all().batch(10);
    let (_, notes) = run(folder.loader(&dataset))?;
    assert!(notes.is_empty(), "{notes:?}");

    let longer = shard_of_ids(0..60, Compression::None);
    folder.put("00.tfrecord", &longer);
    touch(&folder, "00.tfrecord", 1_000_000_000);
    let (ids, notes) = run(folder.loader(&dataset))?;
    assert_eq!((ids.len(), notes.len()), (60, 1));
    let url = format!("file://{}", folder.url("00.tfrecord"));
    has(&notes[0], &[&url, "was built again", &format!("its size is {}, was {size}", longer.len())]);
    assert!(run(folder.loader(&dataset))?.1.is_empty(), "the new one is stored");

    touch(&folder, "00.tfrecord", 1_000_000_001);
    let notes = run(folder.loader(&dataset))?.1;
    has(&notes[0], &["its time is 2001-09-09T01:46:41.000000000Z, was 2001-09-09T01:46:40.000000000Z"]);
    Ok(())
}

#[test]
fn a_stale_index_of_a_compressed_file_is_named_with_the_command_that_builds_it() -> Result<()> {
    let folder = Folder::new();
    for name in ["a", "b", "c", "d", "e"] {
        folder.put(name, &shard_of_ids(0..20, Compression::Gzip));
    }
    let plain = folder.open("?").batch(10);
    run(folder.loader(&plain).index(Index::Build))?;
    ["a", "b", "c", "d", "e"].into_iter().for_each(|name| folder.put(name, &shard_of_ids(0..30, Compression::Gzip)));
    let url = format!("file://{}", folder.url("a"));
    let command = format!("forebay index '{}' --index-dir '{}'", folder.url("?"), folder.index_dir().display());
    let global = folder.open("?").shuffle(Shuffle::global()).batch(10);
    let error = refused(folder.loader(&global));
    assert_eq!(error.kind(), ErrorKind::Config);
    has(&error.to_string(), &["5 of 5 shards", &url, "its size is ", ", was ", ".index(Index::Build)", &command]);

    let (ids, notes) = run(folder.loader(&plain))?;
    assert_eq!((ids.len(), notes.len()), (150, 4));
    has(&notes[0], &[&url, "its index is stale", "another order", "its size is", &command]);
    has(&notes[3], &["2 more shards"]);
    Ok(())
}

/// What is said of a shard of `now` bytes that had `then`.
fn cut_off(now: usize, then: usize) -> String {
    format!(
        "the shard has {now} bytes, and had {then} when it was indexed: it may have been cut off while it was copied"
    )
}

#[test]
fn a_file_cut_off_behind_a_record_says_so_until_somebody_indexes_it_anew() -> Result<()> {
    let folder = Folder::with_ids(&[50]);
    let (whole, rest) = (shard_of_ids(0..50, Compression::None), shard_of_ids(0..40, Compression::None));
    let dataset = folder.all().batch(10);
    run(folder.loader(&dataset))?;
    folder.put("00.tfrecord", &rest);
    let url = format!("file://{}", folder.url("00.tfrecord"));
    let command =
        format!("forebay index '{}' --index-dir '{}'", folder.url("*.tfrecord"), folder.index_dir().display());
    let anew = format!("what it has is read: copy it again, or, if it was rewritten, index it anew: {command}");
    for _ in 0..2 {
        let (ids, notes) = run(folder.loader(&dataset))?;
        assert_eq!(ids, (0..40).collect::<Vec<_>>());
        assert_eq!(notes, [format!("{url}: {}; {anew}", cut_off(rest.len(), whole.len()))]);
    }
    let notes = run(folder.loader(&dataset).index(Index::Build))?.1;
    has(&notes[0], &[&cut_off(rest.len(), whole.len()), "copy it again, unless it was rewritten: its index was built"]);
    assert!(run(folder.loader(&dataset))?.1.is_empty());
    Ok(())
}

#[test]
fn a_file_cut_off_within_a_record_is_damaged() -> Result<()> {
    let folder = Folder::with_ids(&[50, 10]);
    let whole = shard_of_ids(0..50, Compression::None);
    let cut = shard_of_ids(0..40, Compression::None).len() + 20;
    let dataset = folder.all().batch(10);
    run(folder.loader(&dataset))?;
    folder.put("00.tfrecord", &whole[..cut]);
    let said = cut_off(cut, whole.len());
    let again = format!("{said}; copy it again");
    let (ids, failed, report) = ids_and_report(folder.loader(&dataset))?;
    let error = failed.expect("a record breaks off");
    assert_eq!((ids.len(), error.kind(), error.place().record), (40, ErrorKind::Corrupt, Some(40)));
    let ways = format!("{again}, or go on without it: .on_bad_record(");
    has(&error.to_string(), &["ends inside a record's payload", &ways]);
    has(&report.notes[0], &["00.tfrecord", &said, "read as they come", "or, if it was rewritten, index it anew"]);

    let global = folder.all().shuffle(Shuffle::global()).batch(10);
    let error = refused(folder.loader(&global));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    has(&error.to_string(), &["00.tfrecord, record 40", &again]);
    let (ids, failed, report) = ids_and_report(folder.loader(&global).on_bad_record(Skip::up_to(1)))?;
    assert_eq!((ids.len(), failed.is_none(), report.num_skipped), (50, true, 1));
    has(&report.skipped[0].error.to_string(), &[&again]);
    has(&report.notes[0], &[&said, "what it has is read"]);
    Ok(())
}

#[test]
fn a_compressed_file_that_was_cut_off_asks_for_a_copy_or_an_index() -> Result<()> {
    let folder = Folder::new();
    let whole = shard_of_ids(0..400, Compression::Gzip);
    folder.put("a", &whole);
    let all = folder.open("?").columns([int64("id")]);
    let (plain, global) = (all.batch(10), all.shuffle(Shuffle::global()).batch(10));
    run(folder.loader(&plain).index(Index::Build))?;
    let cut = whole.len() / 2;
    folder.put("a", &whole[..cut]);
    let said = cut_off(cut, whole.len());
    let error = refused(folder.loader(&global));
    assert_eq!(error.kind(), ErrorKind::Config);
    let url = format!("file://{}", folder.url("a"));
    let both = "; copy it again, or, if it was rewritten, build it once with .index(Index::Build) on the loader, or beforehand";
    has(&error.to_string(), &[&format!("of {url} there is one, but {said}{both}: forebay index")]);
    // Who indexes it anew hears that it is damaged, and so does who reads it.
    let again = format!("{said}; copy it again");
    let error = refused(folder.loader(&global).index(Index::Build));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    has(&error.to_string(), &[&url, &again]);
    let (ids, failed, report) = ids_and_report(folder.loader(&plain))?;
    assert!(!ids.is_empty() && ids.len() < 400, "{} of 400", ids.len());
    has(&failed.expect("it breaks off").to_string(), &[&url, &again]);
    has(&report.notes[0], &[&said, "read as they come"]);
    Ok(())
}

#[test]
fn an_index_beside_a_file_tells_that_its_copy_was_cut_off() -> Result<()> {
    let folder = Folder::with_ids(&[50]);
    let (whole, rest) = (shard_of_ids(0..50, Compression::None), shard_of_ids(0..30, Compression::None));
    let mut read_at = |offset: u64, into: &mut [u8]| {
        into.copy_from_slice(&whole[offset as usize..][..into.len()]);
        Ok(())
    };
    let index = ShardIndex::hop(&mut read_at, Fingerprint { size: whole.len() as u64, ..Fingerprint::default() })?;
    std::fs::create_dir(folder.path("_index")).expect("a folder");
    folder.put("_index/00.tfrecord.index", &index.to_bytes()?);
    let dataset = folder.all().batch(10);
    assert!(run(folder.loader(&dataset))?.1.is_empty());
    assert!(folder.indexes().is_empty(), "the one beside it will do");
    folder.put("00.tfrecord", &rest);
    for _ in 0..2 {
        let (ids, notes) = run(folder.loader(&dataset))?;
        assert_eq!((ids.len(), notes.len()), (30, 1));
        has(&notes[0], &[&cut_off(rest.len(), whole.len()), "copy it again, or, if it was rewritten"]);
    }
    // One of something else says nothing.
    folder.put("00.tfrecord", &shard_of_ids(0..60, Compression::None));
    assert!(run(folder.loader(&dataset))?.1.is_empty());
    Ok(())
}

#[test]
fn a_file_that_changes_behind_build_is_an_error_that_names_it() -> Result<()> {
    type Change = fn(&Folder);
    let changes: [(Change, &str); 3] = [
        (
            |folder| folder.put("00.tfrecord", &shard_of_ids(0..60, Compression::None)),
            "bytes when it was listed and has",
        ),
        (|folder| folder.put("00.tfrecord", b""), "and has 0 now"),
        (|folder| touch(folder, "00.tfrecord", 1), "it was written again since it was listed, with the same size"),
    ];
    for (change, words) in changes {
        let folder = Folder::with_ids(&[50]);
        let mut loader = folder.loader(&folder.all().batch(10)).build()?;
        change(&folder);
        let error = watched(move || loader.epoch(0).find_map(Result::err)).expect("it has changed");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        has(&error.to_string(), &["00.tfrecord", words, "list it again"]);
    }
    Ok(())
}

#[cfg(feature = "http")]
#[test]
fn an_object_with_another_etag_is_noticed_beside_its_index_and_behind_build() -> Result<()> {
    use forebay::Dataset;

    use crate::support::shards::{record, shard};
    use crate::support::take_ids;
    use crate::support::web::Web;

    let folder = Folder::new();
    // The same records the other way round: as many bytes.
    let (old, new) =
        (shard((0..30).map(record), Compression::None), shard((0..30).rev().map(record), Compression::None));
    let web = Web::start(old, "\"one\"");
    let open = |shuffle| Ok::<_, Error>(Dataset::open(web.url())?.shuffle(shuffle).batch(10));
    let (plain, global) = (open(Shuffle::none())?, open(Shuffle::global())?);
    assert_eq!(run(folder.loader(&plain).index(Index::Build))?, ((0..30).collect(), vec![]));
    assert_eq!(take_ids(folder.loader(&global), "id")?.whole().concat().len(), 30);

    let mut built = folder.loader(&global).build()?;
    web.replace(new.clone(), "\"two\"");
    let error = watched(move || built.epoch(0).find_map(Result::err)).expect("it has changed");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    has(
        &error.to_string(),
        &[&web.url(), "another version of it than was listed, whose ETag was \"one\"", "list it again"],
    );

    let cut = shard((0..20).map(record), Compression::None);
    let (now, then) = (cut.len(), shard((0..30).map(record), Compression::None).len());
    web.replace(cut, "\"three\"");
    has(&refused(folder.loader(&global)).to_string(), &[&cut_off(now, then), "copy it again, or, if it was rewritten"]);
    web.replace(new, "\"two\"");

    let etags = "its etag is \"two\", was \"one\"";
    let error = refused(folder.loader(&global));
    has(&error.to_string(), &[&web.url(), etags, &format!("forebay index '{}'", web.url())]);
    let (ids, notes) = run(folder.loader(&global).index(Index::Build))?;
    assert_eq!(ids.len(), 30);
    has(&notes[0], &[&web.url(), "was built again", etags]);
    Ok(())
}
