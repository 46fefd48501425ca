//! Runs every file of the corpus, without libFuzzer: what was once interesting stays true.

use std::fs;
use std::path::Path;

type Promise = fn(&[u8]);

const PROMISES: [(&str, Promise); 11] = [
    ("example", forebay_fuzz::example),
    ("framing", forebay_fuzz::framing),
    ("image", forebay_fuzz::image),
    ("index", forebay_fuzz::index),
    ("ipc", forebay_fuzz::ipc),
    ("parquet", forebay_fuzz::parquet),
    ("prune", forebay_fuzz::prune),
    ("sequence_example", forebay_fuzz::sequence_example),
    ("tar", forebay_fuzz::tar),
    ("text", forebay_fuzz::text),
    ("window", forebay_fuzz::window),
];

// One test, so that nothing else allocates while memory is counted.
#[test]
fn every_file_of_the_corpus_keeps_its_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, promise) in PROMISES {
        let mut files = 0;
        for entry in fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("corpus/{name}: {error}")) {
            let path = entry.expect("an entry of the folder").path();
            let data = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            println!("{}", path.display());
            promise(&data);
            files += 1;
        }
        assert!(files > 0, "corpus/{name} is empty");
        println!("{name}: {files} files");
    }
    // Inputs that are shorter than their settings.
    PROMISES.iter().for_each(|(_, promise)| (0..20).for_each(|length| promise(&vec![0xff; length])));
}
