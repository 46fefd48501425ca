//! Folders with a manifest, from which shards are missing.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use forebay::store::Store;
use forebay::writer::{Output, Writer};
use forebay::{Dataset, Error, ErrorKind, Index, Manifest, Result, TfRecord, int64};

/// 40 rows in four shards.
fn written(folder: &Path) -> Result<Manifest> {
    let rows = Arc::new(Int64Array::from_iter_values(0..40));
    let mut writer = Writer::builder(Output::TfRecord).rows_per_shard(10).create(folder, [int64("n")])?;
    writer.write(&RecordBatch::try_from_iter([("n", rows as _)]).expect("a column"))?;
    writer.finish()?;
    let manifest = Manifest::read(folder)?;
    assert_eq!(manifest.shards.len(), 4);
    Ok(manifest)
}

fn rows(pattern: &str) -> Result<usize> {
    let dataset = Dataset::open_with(pattern, TfRecord::new())?.batch(10);
    let loader = dataset.loader().index(Index::Build).build()?;
    loader.into_iter().map(|batch| batch.map(|batch| batch.len())).sum()
}

fn refused(pattern: &str) -> Error {
    rows(pattern).expect_err("a shard is missing")
}

#[test]
fn shards_that_a_manifest_names_have_to_be_there() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = written(folder.path())?;
    let shard = |number: usize| folder.path().join(&manifest.shards[number].name);
    let at = |pattern: &str| folder.path().join(pattern).to_string_lossy().into_owned();
    let whole = at("");
    for pattern in [whole.trim_end_matches('/'), &whole, &at("*.tfrecord")] {
        assert_eq!(rows(pattern)?, 40, "{pattern}");
    }

    // A copy that is cut off: told before it is read.
    let bytes = std::fs::read(shard(2)).expect("a shard");
    std::fs::write(shard(2), &bytes[..bytes.len() - 1]).expect("cut off");
    let error = refused(&whole);
    assert_eq!((error.kind(), error.place().stage.as_deref()), (ErrorKind::Corrupt, Some("list")));
    let said =
        format!("{} bytes, and the folder's _manifest.json says that {} were written;", bytes.len() - 1, bytes.len());
    assert!(error.to_string().contains(&said), "{error}");

    std::fs::remove_file(shard(1)).expect("removed");
    let error = refused(&at("*.tfrecord"));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.place().url.as_deref().is_some_and(|url| url.ends_with(&manifest.shards[1].name)), "{error}");
    assert!(error.to_string().contains("names it; another shard is not as it says either"), "{error}");

    // Those that are asked for by patterns or names are all there.
    let (first, last) = (&manifest.shards[0].name, &manifest.shards[3].name);
    assert_eq!(rows(&at(&first.replace("00000", "0000[0]")))?, 10);
    assert_eq!(rows(&at(&format!("{{{first},{last}}}")))?, 20);
    // Or the manifest does not hold any more, or is another's.
    for other in ["{\"version\": 1}", "[]", "a list"] {
        std::fs::write(at("_manifest.json"), other).expect("replaced");
        std::fs::write(shard(2), &bytes).expect("as it was");
        assert_eq!(rows(&whole)?, 30, "{other}");
    }
    Ok(())
}

#[test]
fn stores_are_asked_for_manifests_too() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = written(folder.path())?;
    for entry in std::fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("a name");
        if entry.path().is_file() && name != manifest.shards[3].name {
            let bytes = std::fs::read(entry.path()).expect("a file");
            Store::memory_put(&format!("memory://incomplete/a folder/{name}"), bytes.into())?;
        }
    }
    for pattern in ["memory://incomplete/a folder/", "memory://incomplete/a folder/*.tfrecord"] {
        let error = refused(pattern);
        let url = format!("memory://incomplete/a folder/{}", manifest.shards[3].name);
        assert_eq!((error.kind(), error.place().url.as_deref()), (ErrorKind::NotFound, Some(&*url)));
    }
    let first = &manifest.shards[0].name;
    assert_eq!(rows(&format!("memory://incomplete/a folder/{}", first.replace("00000", "0000[0-2]")))?, 30);
    // Several shards of several folders lie below this one: each folder's manifest is for those who list it.
    assert_eq!(rows("memory://incomplete/")?, 30);
    Ok(())
}
