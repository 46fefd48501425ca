//! `inspect`, `head`, `verify` and `index` on every format.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::ipc::writer::FileWriter;
use serde_json::{Value, json};

use crate::support::{Folder, golden, picture};

const CHECKSUMS: &str = "parquet/pyarrow-rows-zstd-v2-checksums.parquet";

/// Three rows of JSON Lines, and what `convert` makes of them.
fn lines(folder: &Folder) -> String {
    let rows = r#"{"id": 0, "text": "zero", "xs": [1.5, 2.5]}
{"id": 1, "text": "one", "xs": [3.5, 4.5]}
{"id": 2, "text": null, "xs": [5.5, 6.5]}
"#;
    folder.put("rows.jsonl", rows.as_bytes())
}

fn converted(folder: &Folder, to: &str, ending: &str) -> String {
    // Nulls are refused by `convert`.
    let rows = std::fs::read_to_string(lines(folder)).expect("text").replace("null", "\"two\"");
    let src = folder.put("whole.jsonl", rows.as_bytes());
    let out = folder.url(to);
    folder.run_to(0, ["convert", &src, &out, "--to", to, "--rows-per-shard", "2"]);
    format!("{out}/*.{ending}")
}

fn column<'a>(found: &'a Value, name: &str) -> &'a Value {
    let columns = found["columns"].as_array().expect("a list");
    columns.iter().find(|column| column["name"] == name).unwrap_or_else(|| panic!("{name} in {found}"))
}

#[test]
fn json_lines_are_described_shown_and_verified() {
    let folder = Folder::new();
    let url = lines(&folder);
    let found = folder.run_to(0, ["inspect", &url, "--json"]).json();
    assert_eq!((&found["format"], &found["records"], &found["shards"]), (&json!("jsonl"), &json!(3), &json!(1)));
    assert_eq!((&found["compression"], &found["looked_at"]), (&json!("none"), &json!(3)));
    assert_eq!((&column(&found, "text")["present"], &column(&found, "id")["dtype"]), (&json!(2), &json!("i64")));
    assert_eq!((&column(&found, "xs")["min_len"], &column(&found, "xs")["max_len"]), (&json!(2), &json!(2)));
    let shown = folder.run_to(0, ["head", &url, "--json", "--skip", "1"]).lines();
    assert_eq!((shown.len(), &shown[0]["text"], &shown[0]["xs"]), (2, &json!("one"), &json!([3.5, 4.5])));
    assert_eq!((&shown[1]["text"], &shown[1]["_place"]["record"]), (&Value::Null, &json!(2)));
    let found = folder.run_to(0, ["verify", &url, "--json"]).json();
    assert_eq!((&found["records"], &found["bad"]), (&json!(3), &json!([])));

    let url = folder.put("bad.jsonl", b"{\"id\": 1}\n{\"id\": \n{\"id\": 3}\n");
    let found = folder.run_to(1, ["verify", &url, "--json"]).json();
    assert_eq!(
        (&found["records"], &found["bad"][0]["record"], &found["bad"][0]["offset"]),
        (&json!(2), &json!(1), &json!(10))
    );
    assert!(folder.run_to(1, ["verify", &url]).out.contains("record 1, byte 10: "));
    let ended = folder.run_to(1, ["head", &url, "--json"]);
    assert_eq!((ended.lines().len(), &ended.error()["record"]), (2, &json!(1)));
}

#[test]
fn csv_goes_by_name_or_as_stated() {
    let folder = Folder::new();
    let url = folder.put("rows", b"id,name\n1,a\n2,b\n");
    let found = folder.run_to(0, ["inspect", &url, "--format", "csv", "--json"]).json();
    assert_eq!((&found["format"], &found["records"]), (&json!("csv"), &json!(2)));
    assert_eq!(column(&found, "id")["suggested"], "int64(\"id\")");
    let ended = folder.run_to(0, ["head", &url, "--format", "csv", "--column", "name", "-n", "1"]);
    assert!(ended.out.ends_with("  name  \"a\"\n"), "{}", ended.out);
    folder.run_to(0, ["verify", &url, "--format", "csv"]);
    let ended = folder.run_to(2, ["head", &url, "--format", "csv", "--column", "nmae"]);
    assert!(ended.err.contains("id, name"), "{}", ended.err);
    folder.run_to(2, ["head", &url, "--format", "csv", "--records"]);
    folder.run_to(2, ["inspect", &url, "--format", "orc"]);
}

#[test]
fn parquet_tells_of_its_footers() {
    let folder = Folder::new();
    let url = converted(&folder, "parquet", "parquet");
    let found = folder.run_to(0, ["inspect", &url, "--json"]).json();
    assert_eq!((&found["format"], &found["records"], &found["shards"]), (&json!("parquet"), &json!(3), &json!(2)));
    assert_eq!(
        (&found["row_groups"], &found["codecs"], &found["compression"]),
        (&json!(2), &json!(["zstd"]), &json!("zstd"))
    );
    assert!(found["page_index"].is_boolean(), "{found}");
    assert_eq!((&found["looked_at"], &column(&found, "id")["present"]), (&json!(3), &json!(3)));
    let text = folder.run_to(0, ["inspect", &url]);
    assert!(text.out.starts_with("format     parquet, zstd\nholds      rows\n"), "{}", text.out);
    let shown = folder.run_to(0, ["head", &url, "--json", "--skip", "2"]).lines();
    assert_eq!((shown.len(), &shown[0]["id"], &shown[0]["_place"]["offset"]), (1, &json!(2), &Value::Null));
    assert_eq!(folder.run_to(0, ["verify", &url, "--json"]).json()["records"], 3);
}

#[test]
fn a_damaged_page_is_one_entry_and_the_others_go_on() {
    let folder = Folder::new();
    let mut bytes = std::fs::read(golden(CHECKSUMS)).expect("a golden file");
    folder.put("a.parquet", &bytes);
    let good = folder.run_to(0, ["verify", &folder.url("a.parquet"), "--json"]).json()["records"].as_u64().unwrap();
    bytes[700] ^= 1;
    folder.put("b.parquet", &bytes);
    folder.put("c.parquet", b"PAR1 no footer PAR1");
    let ended = folder.run_to(1, ["verify", &folder.url("*.parquet"), "--json"]);
    let found = ended.json();
    let bad = found["bad"].as_array().unwrap();
    let lost = bad[0]["rows"].as_u64().unwrap();
    assert_eq!((bad.len(), &found["num_bad"], &found["truncated"]), (2, &json!(lost + 1), &json!(false)), "{found}");
    assert!(bad[0]["url"].as_str().unwrap().ends_with("b.parquet") && bad[0]["record"] == 0, "{found}");
    assert_eq!(found["records"].as_u64().unwrap(), 2 * good - lost, "{found}");
    assert!(bad[1]["url"].as_str().unwrap().ends_with("c.parquet"), "{found}");
    for threads in ["1", "3"] {
        assert_eq!(
            folder.run_to(1, ["verify", &folder.url("*.parquet"), "--json", "--threads", threads]).json(),
            found
        );
    }
    let text = folder.run_to(1, ["verify", &folder.url("*.parquet")]).out;
    assert!(text.contains(&format!("b.parquet, record 0 and {} after it", lost - 1)) && lost > 1, "{text}");
    assert!(text.contains(&format!("{} bad, in 3 shards", lost + 1)), "{text}");
    folder.run_to(1, ["inspect", &folder.url("*.parquet"), "--json"]);
    folder.run_to(3, ["verify", &folder.url("absent.parquet")]);
    folder.run_to(3, ["inspect", &folder.url("absent.parquet")]);
    folder.run_to(3, ["head", &folder.url("absent.parquet")]);
}

#[test]
fn arrow_and_tar_are_read_too() {
    let folder = Folder::new();
    let ids = Arc::new(Int64Array::from_iter_values(0..10));
    let batch = RecordBatch::try_from_iter([("id", ids as _)]).unwrap();
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let url = folder.put("a.arrow", &writer.into_inner().unwrap());
    let found = folder.run_to(0, ["inspect", &url, "--json"]).json();
    assert_eq!((&found["format"], &found["records"]), (&json!("arrow"), &json!(10)));
    assert_eq!(folder.run_to(0, ["head", &url, "--json"]).lines()[4]["id"], 4);
    assert_eq!(folder.run_to(0, ["verify", &url, "--json"]).json()["records"], 10);

    let url = converted(&folder, "tar", "tar");
    let found = folder.run_to(0, ["inspect", &url, "--json"]).json();
    assert_eq!((&found["format"], &found["records"], &found["kind"]), (&json!("tar"), &json!(3), &json!("sample")));
    assert!(folder.run_to(0, ["head", &url, "--json"]).lines()[0]["__key__"].is_string());
    assert_eq!(folder.run_to(0, ["verify", &url, "--json"]).json()["records"], 3);
}

#[test]
fn images_are_decoded_and_saved() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("photos/cat")).unwrap();
    let jpeg = picture("rgb-420.jpg");
    folder.put("photos/cat/a.jpg", &jpeg);
    folder.put("photos/cat/b.jpg", &jpeg[..jpeg.len() / 2]);
    let url = folder.url("photos");
    let found = folder.run_to(0, ["inspect", &url, "--format", "images", "--json"]).json();
    assert_eq!((&found["records"], &column(&found, "image")["holds"]), (&json!(2), &json!("jpeg")));
    let out = folder.url("out");
    let shown = folder.run_to(0, ["head", &url, "--format", "images", "-n", "1", "--json", "--save", &out]).lines();
    assert_eq!(std::fs::read(shown[0]["image"]["file"].as_str().unwrap()).unwrap(), jpeg);
    folder.run_to(0, ["verify", &url, "--format", "images"]);
    let found = folder.run_to(1, ["verify", &url, "--format", "images", "--decode", "image", "--json"]).json();
    assert_eq!((&found["records"], &found["num_bad"]), (&json!(1), &json!(1)));
    assert!(found["bad"][0]["url"].as_str().unwrap().ends_with("b.jpg"), "{found}");
    folder.run_to(2, ["verify", &url, "--format", "images", "--decode", "label"]);
}

#[test]
fn formats_without_index_say_so() {
    let folder = Folder::new();
    let ended = folder.run_to(0, ["index", &golden(CHECKSUMS)]);
    assert!(ended.out.contains("no index is needed"), "{}", ended.out);
    let found = folder.run_to(0, ["index", &lines(&folder), "--json"]).json();
    assert!(found["written"] == 0 && found["note"].as_str().unwrap().contains("a loader"), "{found}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let folder = Folder::new();
    let rows: String = (0..20_000).map(|id| format!("{{\"id\": {id}}}\n")).collect();
    let url = folder.put("a.jsonl", rows.as_bytes());
    let mut command = folder.command(["head", &url, "-n", "20000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), &err[..], line.is_empty()), (Some(0), "", false));
}

#[test]
fn names_that_say_nothing_are_said_to() {
    let folder = Folder::new();
    let url = folder.put("rows.json", b"{\"id\": 1}\n{\"id\": 2}\n");
    for command in ["head", "verify", "inspect", "index"] {
        let ended = folder.run_to(1, [command, &url]);
        let said = format!("{}{}", ended.out, ended.err);
        assert!(said.contains("does not say that it is TFRecord") && said.contains("--format"), "{command}: {said}");
    }
    for to in ["tfrecord", "jsonl"] {
        let ended = folder.run_to(1, ["convert", &url, &folder.url("refused"), "--to", to]);
        assert!(ended.err.contains("--format"), "{}", ended.err);
    }
    folder.run_to(0, ["convert", &url, &folder.url("out"), "--to", "parquet", "--format", "jsonl"]);

    std::fs::create_dir(folder.path("mixed")).unwrap();
    std::fs::copy(golden(CHECKSUMS), folder.path("mixed/a.parquet")).unwrap();
    folder.put("mixed/README.md", b"# What it is");
    for command in ["head", "verify", "inspect"] {
        let ended = folder.run_to(1, [command, &folder.url("mixed")]);
        let said = format!("{}{}", ended.out, ended.err);
        assert!(said.contains("README.md") && said.contains("mixed/*.parquet"), "{command}: {said}");
    }

    // Nothing but images are a folder of images.
    std::fs::create_dir(folder.path("photos")).unwrap();
    folder.put("photos/a.jpg", &picture("rgb-420.jpg"));
    for command in ["head", "verify", "inspect"] {
        folder.run_to(0, [command, &folder.url("photos")]);
    }
}

#[test]
fn fields_lie_between_what_is_said() {
    let folder = Folder::new();
    let url = folder.put("a.csv", b"id;name\n1;a,b\n");
    let shown = folder.run_to(0, ["head", &url, "--delimiter", ";", "--json"]).lines();
    assert_eq!((&shown[0]["id"], &shown[0]["name"]), (&json!(1), &json!("a,b")));
    folder.run_to(0, ["convert", &url, &folder.url("out"), "--to", "jsonl", "--delimiter", ";"]);
    assert_eq!(std::fs::read(folder.path("out/data-00000.jsonl")).unwrap(), b"{\"id\":1,\"name\":\"a,b\"}\n");
    folder.run_to(2, ["head", &golden(CHECKSUMS), "--delimiter", ";"]);
    folder.run_to(2, ["head", &url, "--delimiter", ";;"]);
}

#[test]
fn columns_that_are_left_out_are_told_in_every_way() {
    let folder = Folder::new();
    let url = folder.put("a.jsonl", b"{\"id\": 1, \"list\": [{\"x\": 1}]}\n");
    let left_out = |notes: &Value| notes[0].as_str().is_some_and(|note| note.contains("left out: list"));
    let found = folder.run_to(0, ["convert", &url, &folder.url("a"), "--to", "jsonl", "--json"]).json();
    assert!(left_out(&found["notes"]), "{found}");
    let ended = folder.run_to(0, ["convert", &url, &folder.url("b"), "--to", "jsonl", "--quiet"]);
    assert!(ended.err.contains("left out: list"), "{}", ended.err);
    let found = folder.run_to(0, ["verify", &url, "--json"]).json();
    assert!(left_out(&found["notes"]), "{found}");
    let note: Value = serde_json::from_str(&folder.run_to(0, ["head", &url, "--json"]).err).unwrap();
    assert!(left_out(&json!([note["note"]])), "{note}");
}

#[test]
fn advice_is_in_flags() {
    let folder = Folder::new();
    let url = folder.put("a.csv", b"id,id\n1,2\n");
    let err = folder.run_to(1, ["convert", &url, &folder.url("out"), "--to", "jsonl"]).err;
    assert!(err.contains("--columns") && !err.contains(".columns("), "{err}");
}
