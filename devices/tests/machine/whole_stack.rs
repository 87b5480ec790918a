//! The drive above the disk engine and a qcow2 image that may be damaged.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::guest_image;

#[test]
fn what_the_fuzzer_starts_from_does_no_harm() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/guest_image");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("a file").path();
        println!("{}", path.display());
        guest_image::run(&std::fs::read(&path).expect("a file"));
        files += 1;
    }
    assert!(files >= 5);
}

#[test]
fn a_guest_on_a_damaged_image_does_no_harm() {
    let seeds = std::env::var("SPINDLE_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(600) {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; 300];
        random.fill_bytes(&mut bytes);
        // Every third image is whole.
        if seed % 3 == 0 {
            bytes[1] = 0;
        }
        guest_image::run(&bytes);
    }
}
