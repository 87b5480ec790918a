//! What a guest wrote is what the host finds in the image, byte for byte.

use std::collections::BTreeMap;
use std::fs;

use guest_images::{Image, check_ext4, dump_from_ext4, run_tool};
use system_tests::{Boot, End, ExecOutput, Host, Run, check_image, convert_to_raw};

/// 256 MiB by fio in sizes from one sector up, verified by it, and some small files; then a sum of each.
const WORKLOAD: &str = "\
set -e
mkdir /root/data; cd /root/data
fio --name=verify --filename=fio --size=256M --rw=randwrite --bssplit=512/10:4k/35:16k/20:64k/20:512k/15 --direct=1 \
 --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=SEED --end_fsync=1 --verify_state_save=0 \
 --output-format=terse >/tmp/fio.log || { cat /tmp/fio.log; exit 1; }
for i in $(seq 200); do head -c $((i * 997)) /dev/urandom >small$i; done
rm small*7
dd if=/dev/zero of=sparse bs=4k seek=1000 count=3 status=none
sync
for f in *; do echo SUM $f $(sha256sum <$f); done
";

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn sums_of_the_guest_and_of_the_host_are_equal_after_256_mib_of_verified_fio() {
    let seed: u32 = rand::random();
    println!("seed {seed}");
    let host = Host::for_guest(Image::Debian).unwrap();
    let mut run = Run::new(
        Boot::exec(Host::ROOT_DISK, WORKLOAD.replace("SEED", &seed.to_string()))
            .command()
            .unwrap(),
    );
    run.timeout = std::time::Duration::from_secs(600);

    let outcome = host.run(run).unwrap();

    let (output, code) = ExecOutput::of(&outcome.console);
    assert_eq!(
        (outcome.end, code),
        (End::Exited(0), Some(0)),
        "{}\n{}",
        outcome.text(),
        outcome.stderr
    );
    let sums = sums(&String::from_utf8(output).unwrap());
    assert_eq!(sums.len(), 182, "fio, sparse and 180 small files");
    let image = host.fetch(Host::ROOT_DISK).unwrap();
    let verdict = check_image(&image).unwrap();
    assert!(verdict.contains("No errors were found"), "{verdict}");
    let raw = host.staging().join("root.raw");
    convert_to_raw(&image, &raw).unwrap();
    check_ext4(&raw).unwrap();
    let file = host.staging().join("file");
    for (name, sum) in &sums {
        dump_from_ext4(&raw, &format!("/root/data/{name}"), &file).unwrap();
        let ours = run_tool("sha256sum", [&file]).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&ours).split(' ').next(),
            Some(sum.as_str()),
            "{name}"
        );
        fs::remove_file(&file).unwrap();
    }
}

fn sums(output: &str) -> BTreeMap<String, String> {
    let words = output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter(|words| words.first() == Some(&"SUM"))
        .map(|words| (words[1].to_owned(), words[2].to_owned()))
        .collect()
}
