//! What the fuzzers keep, and have found, replayed. The last line that a failing test prints names the file.

use std::fs;
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let files: Vec<_> = fs::read_dir(&folder).expect("the corpus").collect();
    assert!(files.len() >= 5, "{} files in {}", files.len(), folder.display());
    for file in files {
        let path = file.expect("a file").path();
        println!("{}", path.display());
        run(&fs::read(path).expect("read"));
    }
}

#[test]
fn headers() {
    replay("header", disk::fuzzing::header);
}

#[test]
fn images() {
    replay("image", disk::fuzzing::image);
}

#[test]
fn cache_files() {
    replay("cache_file", disk::fuzzing::cache_file);
}
