//! `forebay replay`.

use forebay::{Compression, Dataset, Index, Shuffle, World};
use serde_json::json;

use crate::support::{Folder, ids, offsets, shard};

fn folder() -> Folder {
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard(ids(0..60), Compression::None));
    folder.put("b.tfrecord", &shard(ids(60..100), Compression::Gzip));
    folder
}

#[test]
fn a_log_line_tells_which_samples_its_step_held() {
    let folder = folder();
    let dataset =
        Dataset::open(folder.url("*.tfrecord")).unwrap().shuffle(Shuffle::buffer(30)).batch(8).drop_remainder();
    let builder = dataset.loader().seed(42).index(Index::Build).index_dir(folder.index_dir());
    let mut loader = builder.world(World::new(1, 2).unwrap()).build().unwrap();
    let batch = loader.epoch(3).nth(7).unwrap().unwrap();
    let log = format!("{{step 7}} loss 0.25 {} 12.5 s", serde_json::to_string(&batch.state()).unwrap());
    let flags = ["--shuffle", "30", "--batch", "8", "--log", &log];
    let command = |url: &str| ["replay", url].into_iter().chain(flags).map(str::to_owned).collect::<Vec<_>>();
    let lines = folder.run_to(0, command(&folder.url("*.tfrecord")).into_iter().chain(["--json".into()])).lines();
    let samples: Vec<u64> = lines.iter().map(|line| line["sample"].as_u64().unwrap()).collect();
    assert_eq!(samples, batch.samples());
    let starts = [offsets(&shard(ids(0..60), Compression::None)), offsets(&shard(ids(60..100), Compression::None))];
    for (slot, (line, sample)) in lines.iter().zip(samples).enumerate() {
        let (name, number, record) = if sample < 60 { ("a", 0, sample) } else { ("b", 1, sample - 60) };
        let wanted = json!({
            "slot": 4 + slot, "sample": sample, "url": format!("file://{}", folder.url(&format!("{name}.tfrecord"))),
            "record": record, "offset": starts[number][record as usize],
        });
        assert_eq!(*line, wanted);
    }
    let text = folder.run_to(0, command(&folder.url("*.tfrecord"))).out;
    assert!(text.starts_with("epoch 3, step 7, rank 1 of 2: 4 samples\n") && text.contains(", record "), "{text}");

    for (args, what) in [
        (vec!["--shuffle", "31", "--batch", "8", "--log", &log], "another shuffle than `shuffle buffer of 31 samples`"),
        (vec!["--shuffle", "30", "--batch", "16", "--log", &log], "another batch"),
        (vec!["--shuffle", "30", "--batch", "8", "--log", "no state here {}"], "holds no state"),
    ] {
        let ended = folder.run_to(2, [vec!["replay", &folder.url("*.tfrecord")], args].concat());
        assert!(ended.err.contains(what), "{what}: {}", ended.err);
    }
    let ended = folder.run_to(2, command(&folder.url("a.tfrecord")));
    assert!(ended.err.contains("the shards are not the run's"), "{}", ended.err);
}

#[test]
fn a_step_is_named_without_a_log() {
    let folder = folder();
    let flags = ["--batch", "10", "--epoch", "0", "--step", "9", "--json"];
    let lines = folder.run_to(0, [["replay", &folder.url("*.tfrecord")].to_vec(), flags.to_vec()].concat()).lines();
    assert_eq!(
        lines.iter().map(|line| line["sample"].as_u64().unwrap()).collect::<Vec<_>>(),
        (90..100).collect::<Vec<_>>()
    );
    let ended =
        folder.run_to(2, ["replay", &folder.url("*.tfrecord"), "--batch", "10", "--epoch", "0", "--step", "10"]);
    assert!(ended.err.contains("no step 10"), "{}", ended.err);
    folder.run_to(2, ["replay", &folder.url("*.tfrecord"), "--batch", "10"]);
}

#[test]
fn shards_of_any_format_are_replayed() {
    let folder = Folder::new();
    let rows: String = (0..20).map(|id| format!("{{\"id\": {id}}}\n")).collect();
    for (name, format) in [("a.jsonl", None), ("a", Some("jsonl"))] {
        let url = folder.put(name, rows.as_bytes());
        let args = ["replay", &url, "--batch", "8", "--step", "1", "--json"];
        let lines = folder.run_to(0, args.into_iter().chain(format.iter().flat_map(|f| ["--format", f]))).lines();
        assert_eq!((lines.len(), &lines[0]["record"], &lines[0]["offset"]), (8, &json!(8), &json!(80)));
    }
    let err = folder.run_to(2, ["replay", &folder.url("a.jsonl"), "--batch", "8"]).err;
    assert!(err.contains("--log <LINE>|--epoch <N>|--step <N>"), "{err}");
}
