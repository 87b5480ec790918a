//! Promise K: when the VMM is killed, every write that the guest saw complete reads back.

use std::collections::BTreeMap;
use std::time::Duration;

use guest_images::{Image, check_ext4};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use system_tests::{Boot, End, Host, Kill, Run, check_image, convert_to_raw};

const KILLS: usize = 10;

/// Prints the sum of every file that is there, and then, unless it is the last round, goes on writing: BEGIN before a file
/// is written over, ACK and its sum when fio has written, synced and verified it. `stty` waits until BEGIN is on the wire.
const WORKLOAD: &str = "\
mkdir -p /root/k; cd /root/k
for f in *; do [ ! -f $f ] || echo SUM $f $(md5sum <$f); done
dmesg | grep -E 'EXT4-fs (error|warning)|I/O error' && exit 9
echo WORK
n=SEED; i=0
while [ $i -lt ROUNDS ]; do
i=$((i+1)); n=$((n+1)); f=$((n*7%12))
echo BEGIN $f; stty -opost <&1
fio --name=w --filename=$f --size=4M --rw=randwrite --bssplit=512/20:4k/40:64k/30:256k/10 --direct=1 --ioengine=libaio \
 --iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 --verify_state_save=0 --randseed=$n >/tmp/log 2>&1 \
 || { echo FAILED; cat /tmp/log; exit 1; }
sync .
echo ACK $f $(md5sum <$f)
done";

fn boot(host: &Host, seed: u32, rounds: u32, kill: Option<Kill>) -> (End, String) {
    let command = WORKLOAD
        .replace("SEED", &seed.to_string())
        .replace("ROUNDS", &rounds.to_string());
    let mut run = Run::new(Boot::exec(Host::ROOT_DISK, command).command().unwrap());
    run.kill = kill;
    let outcome = host.run(run).unwrap();
    let text = outcome.text();
    assert!(
        text.contains("WORK"),
        "The guest did not come up after a kill.\n{text}\n{}",
        outcome.stderr
    );
    assert!(!text.contains("FAILED"), "{text}");
    (outcome.end, text)
}

/// Follows the guest's account: which file must hold what. Fails where a sum is not the acknowledged one.
fn follow(text: &str, acknowledged: &mut BTreeMap<String, String>) {
    let mut found = BTreeMap::new();
    // The last line may have been cut by the kill.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["SUM", file, sum, ..] => {
                found.insert(file.to_owned(), sum.to_owned());
            }
            ["WORK"] => {
                for (file, sum) in acknowledged.iter() {
                    assert_eq!(
                        found.get(file),
                        Some(sum),
                        "file {file} lost what was acknowledged\n{text}"
                    );
                }
            }
            ["BEGIN", file] => {
                acknowledged.remove(file);
            }
            ["ACK", file, sum, ..] => {
                acknowledged.insert(file.to_owned(), sum.to_owned());
            }
            _ => {}
        }
    }
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn nothing_that_was_synced_is_lost_in_ten_kills() {
    let seed: u32 = std::env::var("SPINDLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SPINDLE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(u64::from(seed));
    let host = Host::for_guest(Image::Debian).unwrap();
    let mut acknowledged = BTreeMap::new();

    for round in 0..KILLS {
        // Counted from something on the console: however slow the machine, most rounds have a file to prove.
        let after = if random.random_ratio(1, 4) { "WORK" } else { "ACK" };
        let delay = Duration::from_millis(random.random_range(0..4000));
        let kill = Kill {
            after: after.to_owned(),
            delay,
        };
        let (end, text) = boot(&host, random.random_range(1..1_000_000), 1000, Some(kill));
        assert_eq!(end, End::Signalled(9), "{text}");
        follow(&text, &mut acknowledged);
        let verdict = check_image(&host.fetch(Host::ROOT_DISK).unwrap(), true).unwrap();
        let last = verdict.lines().next().unwrap_or_default();
        println!(
            "kill {round}, {after} + {delay:?}: {} files acknowledged; {last}",
            acknowledged.len()
        );
    }

    let (end, text) = boot(&host, 0, 0, None);
    assert_eq!(end, End::Exited(0), "{text}");
    follow(&text, &mut acknowledged);
    assert!(
        !acknowledged.is_empty(),
        "no round lasted long enough to prove anything: seed {seed}"
    );
    let image = host.fetch(Host::ROOT_DISK).unwrap();
    check_image(&image, true).unwrap();
    let raw = host.staging().join("root.raw");
    convert_to_raw(&image, &raw).unwrap();
    check_ext4(&raw).unwrap();
}
