//! The examples of docs/nbd.md, run.

use std::fs;
use std::path::Path;

use crate::served::{Workshop, text};

/// The blocks of shell commands in a page.
fn examples(page: &str) -> Vec<String> {
    let mut blocks = page.split("```sh\n").skip(1);
    let block = |text: &str| text.split("```").next().unwrap_or_default().to_owned();
    blocks.by_ref().map(block).collect()
}

#[test]
fn the_examples_of_the_documentation_work() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nbd.md");
    let page = fs::read_to_string(page).expect("docs/nbd.md");
    let examples = examples(&page);
    assert!(examples.len() >= 5, "{examples:?}");
    let folder = Path::new(env!("CARGO_BIN_EXE_spindle")).parent().expect("a folder");
    for example in examples {
        let workshop = Workshop::with_image("64M");
        let script = format!("set -euo pipefail\nexport PATH={}:$PATH\n{example}", folder.display());
        let output = workshop.try_run("bash", &["-c", &script]);
        assert!(output.status.success(), "{example}\n{}", text(&output));
        workshop.check();
    }
}
