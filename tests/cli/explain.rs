//! `forebay explain`.

use crate::support::Folder;

const FLAGS: [&str; 13] = [
    "explain",
    "gs://nowhere/train-*.tfrecord",
    "--columns",
    "image:bytes,label:i64,box:f32[4]",
    "--image",
    "image",
    "--crop",
    "128",
    "--flip",
    "--shuffle",
    "1000",
    "--batch",
    "64",
];

#[test]
fn the_graph_has_a_line_a_stage() {
    let ended = Folder::new().run_to(0, FLAGS);
    let wanted = concat!(
        " 0  read TFRecord gs://nowhere/train-*.tfrecord\n",
        " 1  columns image: bytes, label: i64, box: f32[4]\n",
        " 2  shuffle buffer of 1000 samples\n",
        " 3  image image: rgb, random_resized_crop 128x128 (area 0.08 to 1, ratio 0.750 to 1.333), horizontal_flip 0.5, ",
        "bilinear, u8 [3, 128, 128]\n",
        " 4  batch 64 samples over all ranks\n",
    );
    assert_eq!(ended.out, wanted);
}

#[test]
fn it_is_drawn_and_given_as_json() {
    let folder = Folder::new();
    let with = |flag: &'static str| folder.run_to(0, FLAGS.into_iter().chain([flag]));
    assert!(with("--dot").out.starts_with("digraph forebay {"));
    assert!(with("--mermaid").out.starts_with("flowchart TD"));
    let json = with("--json").json();
    assert_eq!(json["stages"].as_array().unwrap().len(), 5);
    assert_eq!(json["stages"][4], "batch 64 samples over all ranks");
    assert_eq!(json["dot"], with("--dot").out);
}

#[test]
fn pixels_shuffles_and_payloads_are_chosen() {
    let folder = Folder::new();
    let text = |args: &[&str]| folder.run_to(0, ["explain", "a"].iter().chain(args)).out;
    assert!(
        text(&["--image", "x", "--f32"])
            .contains("normalize [0.485, 0.456, 0.406] [0.229, 0.224, 0.225], bilinear, f32 [3, 224, 224]")
    );
    assert!(text(&["--image", "x", "--u8"]).contains("u8 [3, 224, 224]"));
    assert!(text(&["--shuffle", "global"]).contains("shuffle global"));
    assert!(text(&["--shuffle", "none"]).contains("shuffle none"));
    assert!(text(&["--format", "csv", "--delimiter", ";"]).contains("read CSV a, fields between ';'"));
    assert!(folder.run_to(0, ["explain", "a.parquet"]).out.contains("read Parquet a.parquet"));
    assert!(text(&["--records"]).contains("record: bytes"));
    assert!(text(&["--batch", "2", "--drop-remainder"]).contains("remainder Drop"));
}

#[test]
fn flags_that_do_not_go_are_usage() {
    let folder = Folder::new();
    for args in [
        &[][..],
        &["a", "--columns", "label"],
        &["a", "--columns", "label:i65"],
        &["a", "--crop", "10"],
        &["a", "--image", "x", "--crop", "0"],
        &["a", "--image", "x", "--u8", "--f32"],
        &["a", "--dot", "--mermaid"],
        &["a", "--shuffle", "some"],
        &["a", "--batch", "0"],
        &["a", "--records", "--image", "x"],
    ] {
        let ended = folder.run_to(2, ["explain"].iter().chain(args));
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{args:?}");
    }
}

#[test]
fn the_graph_of_a_bench_is_printed_without_its_data() {
    let folder = Folder::new();
    let image = folder.run_to(0, ["explain", "--bench", "image"]).out;
    assert!(image.contains("random_resized_crop 224x224") && image.contains("shuffle buffer of 1000"), "{image}");
    assert!(folder.run_to(0, ["explain", "--bench", "tiny", "--dot"]).out.starts_with("digraph"));
    folder.run_to(2, ["explain", "--bench", "image", "--batch", "3"]);
}
