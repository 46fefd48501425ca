//! Killed at random moments and started again from the last saved state, a run gives what the undisturbed one gives.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use forebay::{Error, ErrorKind, Ledger, Result, Shuffle, State, int64};
use rand::Rng;

use crate::support::shards::Folder;

const VARIABLE: &str = "FOREBAY_TEST_KILLED";
const EPOCHS: u64 = 3;

/// What the child saves behind each batch: how many lines of its log count, the loader's state, and the ledger of all its lives.
#[derive(serde::Serialize, serde::Deserialize)]
struct Saved {
    lines: usize,
    state: State,
    ledger: Ledger,
}

impl Saved {
    fn load(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join("saved")).ok()?;
        Some(serde_json::from_slice(&text).expect("it appears whole or not at all"))
    }
}

/// Takes the batches that are left and logs each; runs in a process of its own, which is killed.
#[test]
fn child() -> Result<()> {
    let Some(dir) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let dir = Path::new(&dir);
    let failed = |e: std::io::Error| Error::new(ErrorKind::Transfer, "the log").because(e);
    let dataset = forebay::Dataset::open(dir.join("../shards").display().to_string())?
        .columns([int64("id")])
        .shuffle(Shuffle::buffer(40))
        .filter("most@1", |_, row| Ok(row.get::<i64>("id")? % 5 != 2))
        .map("noise@1", [int64("noise")], |context, _, out| out.set("noise", context.rng().random::<i64>()))
        .batch(8);
    let saved = Saved::load(dir);
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
    // A line behind the last state was logged, and its batch not saved.
    lines.truncate(saved.as_ref().map_or(0, |saved| saved.lines));
    let mut log = fs::File::create(dir.join("log")).map_err(failed)?;
    lines.iter().try_for_each(|line| writeln!(log, "{line}")).map_err(failed)?;
    let builder = dataset.loader().seed(11).index_dir(dir.join("../index"));
    let mut loader = match &saved {
        Some(saved) => builder.restore(&saved.state).build()?,
        None => builder.build()?,
    };
    let mut count = lines.len();
    for epoch in loader.next_epoch()..EPOCHS {
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            let noise: Vec<i64> = batch.values::<i64>("noise")?.into_owned();
            writeln!(log, "{epoch} {} {:?} {noise:?}", batch.step(), batch.samples()).map_err(failed)?;
            count += 1;
            let lives = saved.iter().map(|saved| saved.ledger.clone()).chain([loader.ledger()]).collect::<Vec<_>>();
            let now = Saved { lines: count, state: batch.state(), ledger: Ledger::sum(&lives)? };
            fs::write(dir.join("saved.part"), serde_json::to_vec(&now).expect("plain data")).map_err(failed)?;
            fs::rename(dir.join("saved.part"), dir.join("saved")).map_err(failed)?;
        }
    }
    fs::write(dir.join("done"), "").map_err(failed)
}

fn start(dir: &Path) -> Child {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(["killed::child", "--exact", "--test-threads=1"]).env(VARIABLE, dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started")
}

#[test]
fn fifty_kills_change_nothing() {
    let folder = Folder::with_ids(&[70, 3, 55, 80, 41]);
    let root = folder.path("..");
    let run = |name: &str| {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let whole = run("whole");
    assert!(start(&whole).wait().unwrap().success());
    let wanted = fs::read_to_string(whole.join("log")).unwrap();
    assert!(wanted.lines().count() > 70);

    let ledger = Saved::load(&whole).unwrap().ledger;
    let mut rng = forebay::random::Key::new(5).rng();
    let (mut kills, mut runs) = (0, 0);
    while kills < 50 {
        runs += 1;
        // On a busy machine some end before a kill comes; that each does means that none can be killed.
        assert!(runs < 500, "runs end before they can be killed");
        let dir = run(&format!("run-{runs}"));
        let lines = || fs::read_to_string(dir.join("log")).unwrap_or_default().lines().count();
        while !dir.join("done").exists() {
            // Counted before it starts: it writes the log anew, and may be far into it by the time that it is looked at.
            let until = lines() + rng.random_range(0..12);
            let mut child = start(&dir);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            let ended = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if kills < 50 && lines() > until {
                    child.kill().unwrap();
                    kills += 1;
                    child.wait().unwrap();
                    break None;
                } else if std::time::Instant::now() > deadline {
                    child.kill().unwrap();
                    panic!("the run hangs behind {} lines", lines());
                } else {
                    std::thread::yield_now();
                }
            };
            assert!(ended.is_none_or(|status| status.success()), "run {runs} failed");
        }
        assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), wanted, "run {runs}, {kills} kills so far");
        let differences = Saved::load(&dir).unwrap().ledger.compare(&ledger);
        assert!(differences.is_empty(), "run {runs}: {differences:?}");
    }
}
