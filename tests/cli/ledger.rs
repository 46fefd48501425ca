//! `forebay ledger`.

use forebay::{Dataset, Ledger, Shuffle, World};
use serde_json::{Value, json};

use crate::support::{Folder, ids, shard};

/// Ledgers of one epoch of 96 samples: of a single rank, of two, and of another order.
fn saved(folder: &Folder) -> Dataset {
    folder.put("shard", &shard(ids(0..96), forebay::Compression::None));
    let dataset = Dataset::open(folder.url("shard")).expect("a path").shuffle(Shuffle::buffer(20)).batch(8);
    let save = |name: &str, seed, world| {
        let loader = dataset.loader().index_dir(folder.index_dir()).seed(seed).world(world);
        let mut loader = loader.build().expect("a sound shard");
        loader.epoch(0).for_each(|batch| drop(batch.expect("a sound shard")));
        folder.put(name, &serde_json::to_vec(&loader.ledger()).expect("plain data"));
    };
    save("one.json", 1, World::single());
    save("rank0.json", 1, World::new(0, 2).expect("a rank"));
    save("rank1.json", 1, World::new(1, 2).expect("a rank"));
    save("other.json", 2, World::single());
    dataset
}

/// The ledger of a file, changed.
fn spoil(folder: &Folder, from: &str, to: &str, change: impl FnOnce(&mut Value)) {
    let mut ledger: Value = serde_json::from_slice(&std::fs::read(folder.path(from)).expect("saved")).expect("JSON");
    change(&mut ledger);
    folder.put(to, ledger.to_string().as_bytes());
}

#[test]
fn the_same_and_what_differs_are_told_apart() {
    let folder = Folder::new();
    saved(&folder);
    let same = folder.run_to(0, ["ledger", "one.json", "one.json"]);
    assert_eq!(same.out, "one.json, one.json: the same 96 samples in 1 epoch, order and bytes\n");

    let found = folder.run_to(1, ["ledger", "one.json", "one.json", "other.json", "--json"]).json();
    assert_eq!((&found["same"], &found["first"]), (&json!(false), &json!("one.json")));
    assert_eq!((&found["others"][0]["same"], &found["others"][1]["same"]), (&json!(true), &json!(false)));
    let other = &found["others"][1];
    assert_eq!(other["settings"], json!(["seed 1 and 2"]));
    assert_eq!(other["differences"][0]["property"], "order");
    assert_eq!(other["differences"][0]["first"]["ids"], other["differences"][0]["other"]["ids"]);
    let text = folder.run_to(1, ["ledger", "one.json", "other.json"]).out;
    for words in ["other.json: not the same", "the same 96 samples, in another order", "set up with: seed 1 and 2"] {
        assert!(text.contains(words), "{text}");
    }

    spoil(&folder, "one.json", "bytes.json", |ledger| ledger["epochs"]["0"]["payloads"] = json!("00"));
    let text = folder.run_to(1, ["ledger", "one.json", "bytes.json"]).out;
    assert!(text.contains("epoch 0: the same 96 samples, read as other bytes"), "{text}");
    spoil(&folder, "one.json", "fewer.json", |ledger| ledger["epochs"]["0"]["samples"] = json!(95));
    let text = folder.run_to(1, ["ledger", "one.json", "fewer.json"]).out;
    assert!(text.contains("epoch 0: 96 samples, and 95 samples"), "{text}");
    // Of epochs that neither has there is nothing to tell apart.
    folder.run_to(0, ["ledger", "one.json", "fewer.json", "--epoch", "1"]);
}

#[test]
fn ranks_are_added_up_and_the_sum_is_a_ledger() {
    let folder = Folder::new();
    let dataset = saved(&folder);
    assert!(folder.run_to(1, ["ledger", "one.json", "rank0.json"]).out.contains("96 samples, and 48 samples"));
    let sum = folder.run_to(0, ["ledger", "--sum", "rank0.json", "rank1.json", "--json"]);
    folder.put("sum.json", sum.out.as_bytes());
    folder.run_to(0, ["ledger", "one.json", "sum.json"]);
    let ledger: Ledger = serde_json::from_str(&sum.out).unwrap();
    dataset.loader().index_dir(folder.index_dir()).seed(1).build().unwrap().verify_epoch(0, &ledger).unwrap();

    let shown = folder.run_to(0, ["ledger", "--sum", "rank0.json", "rank1.json"]).out;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("data set and graph ") && lines[0].ends_with(", seed 1, 8 streams"), "{shown}");
    assert!(lines[1].starts_with("epoch  samples  left out"), "{shown}");
    assert_eq!(lines[2].split_whitespace().take(3).collect::<Vec<_>>(), ["0", "96", "0"]);
    assert!(lines[2].contains(&format!("{:032x}", ledger.epoch(0).order)), "{shown}");
    assert_eq!(folder.run_to(0, ["ledger", "sum.json"]).out, shown);

    let refused = folder.run_to(2, ["ledger", "--sum", "one.json", "other.json"]).err;
    assert!(refused.contains("ledgers of other runs: seed 1 and 2"), "{refused}");
}

#[test]
fn what_is_no_ledger_ends_with_3() {
    let folder = Folder::new();
    saved(&folder);
    folder.run_to(3, ["ledger", "one.json", "absent.json"]);
    folder.put("text", b"nothing of the kind");
    let error = folder.run_to(3, ["ledger", "one.json", "text", "--json"]).error();
    assert!(error["message"].as_str().unwrap().contains("no ledger is in this file"), "{error}");
    spoil(&folder, "one.json", "new.json", |ledger| ledger["version"] = json!(2));
    let error = folder.run_to(3, ["ledger", "one.json", "new.json"]).err;
    assert!(error.contains("version 2") && error.contains("new.json"), "{error}");
    folder.run_to(2, ["ledger"]);
}

#[test]
fn bench_saves_one_that_threads_do_not_change() {
    let folder = Folder::new();
    for (threads, file) in [("1", "a.json"), ("3", "b.json")] {
        let args =
            ["bench", "tiny", "--samples", "5000", "--epochs", "1", "--threads", threads, "--ledger", file, "--quiet"];
        folder.run_to(0, args);
    }
    let text = folder.run_to(0, ["ledger", "a.json", "b.json"]).out;
    assert!(text.contains("the same 10,000 samples in 2 epochs"), "{text}");
}
