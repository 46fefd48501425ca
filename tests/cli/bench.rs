//! `forebay bench`: the contract of its JSON, and that the work is checked.

use crate::support::Folder;

/// Keys that scripts may rely on.
const KEYS: [&str; 18] = [
    "workload",
    "samples_per_s",
    "stored_bytes_per_s",
    "cpu_s",
    "samples_per_cpu_s",
    "first_batch_s",
    "peak_rss_bytes",
    "rss_bytes",
    "wait_share",
    "wait_p50_s",
    "wait_p99_s",
    "waited_s",
    "plan_s",
    "utilisation",
    "limit_samples_per_s",
    "of_limit",
    "threads",
    "batches",
];

#[test]
fn every_workload_is_checked_and_measured() {
    let folder = Folder::new();
    for (workload, samples, batch, batches) in
        [("image", "24", "7", 8), ("features", "1000", "300", 8), ("raw", "30", "8", 8), ("tiny", "5000", "1024", 10)]
    {
        let args = ["bench", workload, "--samples", samples, "--batch", batch, "--epochs", "2", "--json"];
        let measured = folder.run_to(0, args.into_iter().chain(["--threads", "2", "--quiet"])).json();
        for key in KEYS {
            assert!(measured.get(key).is_some(), "{workload} has no {key}: {measured}");
        }
        assert_eq!((&measured["workload"], &measured["batches"]), (&workload.into(), &batches.into()), "{measured}");
        assert_eq!((&measured["checked"], &measured["threads"]), (&true.into(), &2.into()), "{measured}");
        assert_eq!(measured["checked_samples"].to_string(), samples, "{measured}");
        assert!(measured["samples_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{measured}");
        assert!(measured["limit_samples_per_s"].is_null(), "{measured}");
    }
}

#[test]
fn packing_is_checked_token_by_token() {
    let folder = Folder::new();
    for packing in ["first-fit", "best-fit", "best-fit-decreasing", "concat"] {
        let args =
            ["bench", "pack", "--samples", "300", "--length", "512", "--window", "20", "--epochs", "1", "--json"];
        let args = args.into_iter().chain(["--packing", packing, "--batch", "8", "--threads", "2", "--quiet"]);
        let measured = folder.run_to(0, args).json();
        assert_eq!(measured["checked"], true, "{measured}");
        assert!(measured["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{measured}");
        let padding = measured["padding_share"].as_f64().expect("a share");
        let cells = measured["samples"].as_f64().expect("rows") * 512.0;
        let tokens = measured["checked_samples"].as_f64().expect("tokens");
        assert!((padding - (1.0 - tokens / cells)).abs() < 1e-9 && padding < 0.3, "{measured}");
    }
}

#[test]
fn a_second_run_reads_the_same_data_and_other_data_is_noticed() {
    let folder = Folder::new();
    let args = ["bench", "features", "--samples", "400", "--epochs", "1", "--quiet"];
    let text = folder.run_to(0, args).out;
    assert!(text.contains("as made") && text.contains("utilisation"), "{text}");
    let made = folder.path("cache/forebay/bench/features-400/_bench.json");
    let manifest = std::fs::read_to_string(&made).expect("the data's manifest");
    let sum: u64 =
        manifest.split("\"sum\":").nth(1).and_then(|rest| rest.trim().split(',').next()?.parse().ok()).expect("a sum");
    std::fs::write(&made, manifest.replace(&format!("\"sum\": {sum}"), &format!("\"sum\": {}", sum + 1)))
        .expect("a file");
    let ended = folder.run_to(1, args);
    assert!(ended.err.contains("other data than was made"), "{}", ended.err);
}

#[test]
fn shards_of_the_users_and_steps_of_fixed_length_can_be_measured() {
    let folder = Folder::new();
    folder.run_to(0, ["bench", "image", "--samples", "16", "--batch", "8", "--epochs", "1", "--quiet"]);
    let shards = folder.path("cache/forebay/bench/image-16").display().to_string();
    let args = ["bench", "image", &shards, "--batch", "8", "--epochs", "1", "--u8", "--step-time", "0.05", "--json"];
    let measured = folder.run_to(0, args).json();
    assert!(measured["checked"].is_null() && measured["samples"] == 16, "{measured}");
    assert!(measured["utilisation"].as_f64().is_some_and(|share| share > 0.0 && share <= 1.0), "{measured}");
    assert!(measured["wall_s"].as_f64().is_some_and(|wall| wall >= 0.1), "{measured}");
    folder.run_to(2, ["bench", "image", "--step-time", "soon"]);
    folder.run_to(2, ["bench", "nothing"]);
    folder.run_to(3, ["bench", "image", "nowhere/*.tfrecord"]);
}
