//! What the fuzzer of the stream keeps, and has found, replayed.

use std::fs;
use std::path::Path;

#[test]
fn every_stream_of_the_corpus_comes_to_its_end() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/nbd");
    let files: Vec<_> = fs::read_dir(&folder).expect("the corpus").collect();
    assert!(files.len() >= 5, "{} files in {}", files.len(), folder.display());
    for file in files {
        let path = file.expect("a file").path();
        println!("{}", path.display());
        vmm::nbd::fuzzing::stream(&fs::read(path).expect("read"));
    }
}
