//! What all subcommands share: help, colours, signals.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forebay::Compression;

use crate::support::{Folder, golden, ids, interruptible, record, shard};

const COMMANDS: [&str; 5] = ["inspect", "head", "verify", "index", "explain"];

#[test]
fn every_subcommand_has_help_with_examples() {
    let folder = Folder::new();
    let main = folder.run_to(0, ["--help"]).out;
    for command in COMMANDS.into_iter().chain(["ledger"]) {
        assert!(main.contains(&format!("\n  {command} ")), "{main}");
        let help = folder.run_to(0, [command, "--help"]).out;
        assert!(help.contains(&format!("forebay {command} ")) && help.contains("Examples:"), "{help}");
    }
    folder.run_to(2, [] as [&str; 0]);
    folder.run_to(2, ["inspekt", "a"]);
    folder.run_to(2, ["inspect", "a", "--nonsense"]);
}

#[test]
fn completions_know_the_subcommands() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = folder.run_to(0, ["completions", shell]).out;
        assert!(COMMANDS.iter().chain(&["ledger"]).all(|command| script.contains(command)), "{shell}");
    }
}

#[test]
fn colours_are_there_when_wanted_and_never_in_json() {
    let folder = Folder::new();
    let url = golden("examples.tfrecord");
    for command in &COMMANDS[..4] {
        let plain = folder.run_to(0, [command, &url[..], "--color", "never"]).out;
        assert!(!plain.contains('\x1b'), "{plain}");
        assert_eq!(folder.run_to(0, [command, &url[..]]).out, plain, "no terminal, no colours");
        let colored = folder.run_to(0, [command, &url[..], "--color", "always"]).out;
        assert!(colored.contains("\x1b["), "{colored}");
        let json = folder.run_to(0, [command, &url[..], "--color", "always", "--json"]).out;
        assert!(!json.contains('\x1b'), "{json}");
    }
    let absent = folder.url("absent");
    assert!(folder.run_to(3, ["verify", &absent, "--color", "always"]).err.contains("\x1b[1;31merror:"));
    assert!(!folder.run_to(3, ["verify", &absent, "--color", "never"]).err.contains('\x1b'));
}

#[test]
fn output_that_nobody_reads_ends_quietly() {
    let folder = Folder::new();
    let url = folder.put("a", &shard(ids(0..10), Compression::None));
    for command in COMMANDS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = folder.command([command, &url[..]]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), &b""[..]), "{command}");
    }
}

#[test]
fn what_nobody_reads_is_said_by_the_exit_code() {
    let folder = Folder::new();
    let mut bad = Vec::new();
    for id in 0..1000 {
        let mut record = shard(ids(id..id + 1), Compression::None);
        // Its payload's checksum.
        let last = record.len() - 1;
        record[last] ^= 1;
        bad.extend(record);
    }
    let bad = folder.put("bad", &bad);
    let cut = shard(ids(0..10), Compression::None);
    let cut = folder.put("cut", &cut[..cut.len() - 1]);
    for (args, json) in [
        (&["verify", &bad[..]][..], &["--json"][..]),
        (&["verify", &bad], &[]),
        (&["inspect", &cut], &[]),
        (&["index", "--check", &cut], &["--json"]),
        (&["index", "--check", &cut], &[]),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = folder.command(args.iter().chain(json)).stdout(writer).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{args:?}");
    }
}

/// Bytes that a process has read so far, as the kernel counts them.
fn bytes_read(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

#[test]
fn an_interrupt_ends_a_long_verify_at_once() {
    let folder = Folder::new();
    // Eight gigabytes once decompressed take many seconds to verify, and next to nothing on disk.
    let block = shard((0..16).map(|id| record(id, 1 << 20)), Compression::Gzip);
    folder.put("000.tfrecord", &block);
    let urls: Vec<_> = (0..512)
        .map(|n| {
            let path = folder.path(&format!("{n:03}.tfrecord"));
            if n > 0 {
                std::fs::hard_link(folder.path("000.tfrecord"), &path).unwrap();
            }
            path.display().to_string()
        })
        .collect();
    let args = ["verify".to_owned(), "--threads".into(), "1".into()].into_iter().chain(urls);
    let mut command = interruptible(&folder.command(args));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // It has begun when it has read more than its own libraries: some shards.
    while bytes_read(child.id()) < 4 * block.len() as u64 && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it did not begin");
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ended = child.wait_with_output().unwrap();
    assert!(Instant::now() < deadline, "it did not end");
    assert_eq!(ended.status.signal(), Some(2), "{}", String::from_utf8_lossy(&ended.stdout));
    assert!(ended.stdout.is_empty());
}
