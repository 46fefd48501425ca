//! `forebay bench`: the contract of its JSON, and that the work is checked.

use crate::support::{Folder, ids, picture, shard};

/// Keys that scripts may rely on.
const KEYS: [&str; 29] = [
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
    "wait_max_s",
    "waited_s",
    "plan_s",
    "utilisation",
    "limit_samples_per_s",
    "of_limit",
    "threads",
    "batches",
    "shuffle",
    "preset",
    "files",
    "files_bytes",
    "memory_bytes",
    "fits_page_cache",
    "read_share",
    "emulation",
    "search",
    "jitter",
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

/// A number of an object.
fn number(object: &serde_json::Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("no number {key}: {object}"))
}

#[test]
fn accelerators_take_equal_numbers_of_steps() {
    let folder = Folder::new();
    let data = ["bench", "raw", "--samples", "50", "--batch", "8", "--json", "--quiet"];
    let args = ["--step-time", "0.001", "--accelerators", "3", "--steps", "5", "--runs", "3"];
    let measured = folder.run_to(0, data.into_iter().chain(args)).json();
    let runs = measured["emulation"]["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 3, "{measured}");
    for run in runs {
        assert_eq!(run["steps"], 5, "{measured}");
        let shares = ["utilisation", "utilisation_after_first"].map(|key| number(run, key));
        assert!(shares.iter().all(|share| *share > 0.0 && *share <= 1.0), "{run}");
        assert!(number(run, "wall_s") >= 0.005, "{run}");
        // Three accelerators, eight samples a millisecond each.
        let asked = number(run, "demand_share") * number(run, "maximum_samples_per_s");
        assert!((asked - 24_000.0).abs() < 1e-6, "{run}");
        let waits = ["wait_p50_s", "wait_p99_s", "wait_max_s"].map(|key| number(run, key));
        assert!(waits.is_sorted(), "{run}");
    }
    let without_loader = number(&measured["emulation"], "without_loader");
    assert!(without_loader > 0.0 && without_loader <= 1.0, "{measured}");
    // The run that stands above is the one of median utilisation.
    let mut utilisations: Vec<f64> = runs.iter().map(|run| number(run, "utilisation_after_first")).collect();
    utilisations.sort_unstable_by(f64::total_cmp);
    assert_eq!(number(&measured, "utilisation_after_first"), utilisations[1]);
    assert_eq!((&measured["samples"], &measured["batches"]), (&120.into(), &15.into()), "{measured}");
    assert_eq!((&measured["batch"], &measured["checked"]), (&8.into(), &true.into()), "{measured}");
    // As many steps as the epochs hold: 4 * 50 / (8 * 3) = 8.
    let args = ["--step-time", "0.001", "--accelerators", "3", "--epochs", "4"];
    let measured = folder.run_to(0, data.into_iter().chain(args)).json();
    assert_eq!(measured["emulation"]["runs"][0]["steps"], 8, "{measured}");
    let text = folder.run_to(0, ["bench", "raw", "--samples", "50", "--step-time", "0.001", "--steps", "3"]).out;
    assert!(text.contains("1 (threads: 1), batches of 400, 3 steps of 0.001 s each"), "{text}");
}

#[test]
fn steps_are_as_long_as_a_demand_says() {
    let folder = Folder::new();
    let data = ["bench", "raw", "--samples", "50", "--batch", "8", "--json", "--quiet"];
    let args = ["--demand", "0.5", "--accelerators", "2", "--steps", "3", "--runs", "2"];
    let measured = folder.run_to(0, data.into_iter().chain(args)).json();
    for run in measured["emulation"]["runs"].as_array().expect("runs") {
        assert!((number(run, "demand_share") - 0.5).abs() < 1e-3, "{run}");
        assert!(number(run, "maximum_after_samples_per_s") > 0.0, "{run}");
        let asked = number(run, "step_s") * number(run, "maximum_samples_per_s") * 0.5;
        assert!((asked - 16.0).abs() < 0.02, "{run}");
        assert!(number(run, "utilisation_after_first") <= 1.0, "{run}");
    }
    folder.run_to(2, data.into_iter().chain(["--demand", "0.5", "--step-time", "1"]));
    folder.run_to(2, data.into_iter().chain(["--demand", "0.5", "--find-accelerators"]));
    folder.run_to(2, data.into_iter().chain(["--demand", "0"]));
}

#[test]
fn accelerators_take_rows_whose_number_nobody_knows() {
    let folder = Folder::new();
    let args = ["bench", "pack", "--samples", "300", "--length", "512", "--window", "20", "--batch", "8", "--json"];
    let steps = ["--step-time", "0.001", "--accelerators", "2", "--steps", "7", "--quiet"];
    let measured = folder.run_to(0, args.into_iter().chain(steps)).json();
    assert_eq!(measured["emulation"]["runs"][0]["steps"], 7, "{measured}");
    assert_eq!(measured["samples"], 7 * 2 * 8, "{measured}");
}

#[test]
fn published_sizes_are_scaled_by_files_and_accelerators_alone() {
    let folder = Folder::new();
    let args = ["bench", "cosmoflow-like", "--files", "3", "--accelerator", "h100", "--json", "--quiet", "--limit"];
    let measured = folder.run_to(0, args.into_iter().chain(["--accelerators", "2", "--steps", "4"])).json();
    assert_eq!((&measured["checked"], &measured["checked_samples"]), (&true.into(), &3.into()), "{measured}");
    assert_eq!((&measured["files"], &measured["batch"]), (&3.into(), &1.into()), "{measured}");
    assert_eq!(number(&measured["emulation"], "step_s"), 0.0035, "{measured}");
    assert_eq!(measured["emulation"]["runs"][0]["steps"], 4, "{measured}");
    assert!(measured["preset"].as_str().is_some_and(|note| note.contains("not a result")), "{measured}");
    assert!(number(&measured, "limit_samples_per_s") > 0.0, "{measured}");
    assert!(number(&measured, "read_share") > 0.0, "{measured}");
    let made = folder.path("cache/forebay/bench/cosmoflow-like-3");
    let sizes =
        std::fs::read_dir(&made).expect("its files").map(|entry| entry.expect("one").metadata().expect("one").len());
    let large: Vec<u64> = sizes.filter(|size| *size > 10_000).collect();
    assert_eq!(number(&measured, "files_bytes"), large.iter().sum::<u64>() as f64, "{measured}");
    let fits = number(&measured, "files_bytes") < number(&measured, "memory_bytes");
    assert_eq!(measured["fits_page_cache"], fits, "{measured}");
    // Within five standard deviations, and not all alike.
    assert!(large.len() == 3 && large.iter().all(|size| size.abs_diff(2_828_502) < 360_000), "{large:?}");
    assert!(large.iter().any(|size| *size != large[0]), "{large:?}");

    // Shards of one's own, with records of any size.
    let shards = made.display().to_string();
    let measured = folder.run_to(0, ["bench", "cosmoflow-like", &shards, "--epochs", "1", "--json"]).json();
    assert_eq!((&measured["files"], &measured["samples"]), (&3.into(), &3.into()), "{measured}");
    assert_eq!(measured["shuffle"], "global", "{measured}");
    assert!(measured["checked"].is_null() && measured["emulation"].is_null(), "{measured}");

    for args in [
        ["bench", "cosmoflow-like", "--batch", "4"],
        ["bench", "cosmoflow-like", "--step-time", "1"],
        ["bench", "cosmoflow-like", "--samples", "4"],
        ["bench", "raw", "--accelerator", "a100"],
        ["bench", "raw", "--files", "4"],
        ["bench", "raw", "--accelerators", "4"],
        ["bench", "raw", "--steps", "4"],
        ["bench", "raw", "--runs", "4"],
        ["bench", "raw", "--step-time", "0"],
    ] {
        folder.run_to(2, args);
    }
    folder.run_to(2, ["bench", "cosmoflow-like", "--parquet"]);
    folder.run_to(2, ["bench", "raw", "--find-accelerators"]);
}

#[test]
fn large_volumes_are_delivered_whole_from_either_format() {
    // One of 28 files, and no accelerators: a batch of seven would be a gigabyte.
    for parquet in [None, Some("--parquet")] {
        let folder = Folder::new();
        let args = ["bench", "unet3d-like", "--files", "1", "--epochs", "1", "--json", "--quiet"];
        let measured = folder.run_to(0, args.into_iter().chain(parquet)).json();
        assert_eq!((&measured["checked"], &measured["checked_samples"]), (&true.into(), &1.into()), "{measured}");
        assert_eq!((&measured["files"], &measured["batch"]), (&1.into(), &7.into()), "{measured}");
        let made = match parquet {
            None => folder.path("cache/forebay/bench/unet3d-like-1"),
            Some(_) => folder.path("cache/forebay/bench/unet3d-like-parquet-1"),
        };
        let ending = if parquet.is_some() { "parquet" } else { "tfrecord" };
        let shard = std::fs::metadata(made.join(format!("unet3d-like-00000-of-00001.{ending}"))).expect("its file");
        assert!(shard.len() > 146_600_628 / 16, "{shard:?}");
    }
}

#[test]
fn the_most_accelerators_are_searched_for() {
    let folder = Folder::new();
    let data = ["bench", "raw", "--samples", "40", "--batch", "4", "--json", "--quiet", "--epochs", "2"];
    let args = ["--step-time", "0.0005", "--find-accelerators", "--steps", "4", "--runs", "2"];
    let measured = folder.run_to(0, data.into_iter().chain(args)).json();
    let search = &measured["search"];
    let (within, largest) = (number(search, "within_share"), number(search, "largest"));
    let maxima = search["maxima"].as_array().expect("maxima");
    let maximum = number(search, "maximum_samples_per_s");
    assert_eq!((maxima.len(), &search["alone_samples_per_s"]), (2, &measured["samples_per_s"]), "{search}");
    // The lower of the loader's alone and of the accelerators', of whose two the lower is the median.
    let rates = maxima.iter().chain([&search["alone_samples_per_s"]]).map(|rate| rate.as_f64().expect("a rate"));
    assert_eq!(maximum, rates.fold(f64::INFINITY, f64::min), "{search}");
    assert_eq!(within, (0.95 * maximum * 0.0005 / 4.0).floor(), "{search}");
    let tried = search["tried"].as_array().expect("what was tried");
    assert_eq!(
        (number(&tried[0], "accelerators"), tried[0]["runs"].as_array().map(Vec::len)),
        (within.max(1.0), Some(2))
    );
    // The largest is one that was tried and held, and the next was tried and did not.
    let holds = |accelerators: f64| {
        tried.iter().find(|one| number(one, "accelerators") == accelerators).map(|one| &one["holds"])
    };
    assert!(largest == 0.0 || holds(largest) == Some(&true.into()), "{search}");
    assert_eq!(holds(largest + 1.0), Some(&false.into()), "{search}");
    assert!(number(&measured, "limit_samples_per_s") > 0.0, "{measured}");
}

#[test]
fn launches_are_timed_without_a_loader_beside_one_and_beside_a_good_neighbour() {
    let folder = Folder::new();
    let args = ["bench", "raw", "--samples", "40", "--batch", "20", "--epochs", "1", "--steps", "3", "--jitter"];
    let measured = folder.run_to(0, args.into_iter().chain(["--json", "--quiet"])).json();
    let jitter = &measured["jitter"];
    let (launches, steps) = (number(jitter, "launches_per_step"), number(jitter, "steps"));
    assert!(launches >= 1.0 && steps == 3.0 && number(jitter, "launch_s") > 0.0, "{jitter}");
    let cases = jitter["cases"].as_array().expect("cases");
    let what: Vec<_> = cases.iter().map(|case| case["what"].as_str()).collect();
    assert_eq!(what, [Some("no loader"), Some("loader"), Some("good neighbour")]);
    for case in cases {
        assert_eq!(number(case, "launches"), launches * steps, "{case}");
        assert!(["late_p50_s", "late_p99_s", "late_max_s"].map(|key| number(case, key)).is_sorted(), "{case}");
        assert_eq!(case["samples_per_s"].is_null(), case["what"] == "no loader", "{case}");
    }
    // What is said of neighbours is what the third case has.
    let args = args.into_iter().chain(["--niceness", "5", "--threads", "3"]);
    let text = folder.run_to(0, args).out;
    assert!(text.contains("good neighbour") && text.contains("longest"), "{text}");
}

#[test]
fn cores_and_niceness_that_the_system_refuses_are_errors() {
    let folder = Folder::new();
    let data = ["bench", "tiny", "--samples", "1000"];
    for (flag, value, says) in
        [("--cores", "1023", "cannot run on all of the cores 1023"), ("--niceness", "30", "-20 to 19")]
    {
        let ended = folder.run_to(2, data.into_iter().chain([flag, value]));
        assert!(ended.err.contains(says), "{}", ended.err);
    }
    for wrong in [["--cores", "3-1"], ["--share", "2"], ["--niceness", "low"]] {
        folder.run_to(2, data.into_iter().chain(wrong));
    }
}

/// Of each thread of a process whose name begins so: the cores it may run on, and its niceness.
#[cfg(target_os = "linux")]
fn threads(process: u32, name: &str) -> Vec<(String, String)> {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let named = tasks.map(|task| task.path()).filter(|task| read(task.join("comm")).starts_with(name));
    named
        .filter_map(|task| {
            let (status, stat) = (read(task.join("status")), read(task.join("stat")));
            let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            let niceness = stat.rsplit_once(')')?.1.split_whitespace().nth(16)?;
            Some((cores.trim().to_owned(), niceness.to_owned()))
        })
        .collect()
}

#[cfg(target_os = "linux")]
#[test]
fn all_threads_of_a_loader_keep_to_their_cores_and_niceness() {
    let folder = Folder::new();
    let (own, niceness) = threads(std::process::id(), "").swap_remove(0);
    let core = own.split(['-', ',']).next().expect("a core");
    let lowered = (niceness.parse::<i32>().expect("a number") + 3).min(19).to_string();
    let args = ["bench", "raw", "--samples", "64", "--batch", "8", "--epochs", "1000000", "--threads", "2", "--quiet"];
    let mut command = folder.command(args.into_iter().chain(["--cores", core, "--niceness", &lowered]));
    let mut process = command.stdout(std::process::Stdio::null()).spawn().expect("it runs");
    let good = (core.to_owned(), lowered);
    // The two workers, and those for sockets and disks.
    let is_good = |seen: &[(String, String)], least: usize| seen.len() >= least && seen.iter().all(|one| *one == good);
    // A thread that has just begun is seen before it has changed itself; what never does is seen until the process is given up.
    let (mut all, mut readers) = (Vec::new(), Vec::new());
    let start = std::time::Instant::now();
    while !(is_good(&all, readers.len() + 2) && is_good(&readers, 2)) && start.elapsed().as_secs() < 60 {
        assert!(process.try_wait().expect("its state").is_none(), "it ended early");
        // Threads for disks come and go: those counted first are no fewer of all.
        (readers, all) = (threads(process.id(), "forebay-io"), threads(process.id(), "forebay-"));
        std::thread::yield_now();
    }
    let main = threads(process.id(), "forebay\n");
    process.kill().and_then(|()| process.wait()).expect("it ends");
    assert!(is_good(&all, readers.len() + 2) && is_good(&readers, 2), "{all:?} {readers:?}");
    assert_eq!(main, [(own, niceness)], "the loop's own thread stays as it was");
}

#[test]
fn what_a_workload_does_not_read_is_refused() {
    let folder = Folder::new();
    let lines = folder.put("a.jsonl", b"{\"id\": 1}\n");
    let shards = folder.put("a.tfrecord", &shard(ids(0..4), forebay::Compression::None));
    let packed = folder.put("a.tfrecord.gz", &shard(ids(0..4), forebay::Compression::Gzip));
    for (code, workload, url, said) in [
        (2, "pack", "/nonexistent", "reads no shards"),
        (2, "tiny", &lines, "reads no shards"),
        (2, "raw", &lines, "the shards are JSON Lines"),
        (1, "raw", &packed, "plain TFRecord"),
        (1, "features", &shards, "f00 to f12"),
    ] {
        let err = folder.run_to(code, ["bench", workload, url, "--epochs", "1", "--quiet"]).err;
        assert!(err.contains(said), "{workload}: {err}");
    }
}

#[test]
fn images_of_any_format_are_measured() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("photos")).unwrap();
    folder.put("photos/a.jpg", &picture("rgb-420.jpg"));
    let args = ["bench", "image", &folder.url("photos"), "--image", "image", "--label", "label", "--batch", "1"];
    let measured = folder.run_to(0, args.into_iter().chain(["--epochs", "1", "--threads", "1", "--json"])).json();
    assert_eq!(measured["checked_samples"], 1, "{measured}");
}
