//! A stock Linux judges the CD-ROM drive: a file system, whole sectors, the tray, and an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use guest_images::{Image, run_tool};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use system_tests::{Boot, End, ExecOutput, Host, Run};

/// Bytes of a block.
const BLOCK: u64 = 2048;

/// Blocks behind the file system. Of these the last eight cannot be read.
const PADDING: u64 = 1024;
const BAD: u64 = 8;

/// The guest gets its orders from the disc: they are more than a kernel command line holds.
const COMMAND: &str =
    "mkdir -p /run/cd && mount -t iso9660 -o ro /dev/sr0 /run/cd && cp /run/cd/judge /run/judge && sh /run/judge";

/// What the guest does. Each line of its output begins with a word of its own.
const JUDGE: &str = r#"
say() { word=$1; shift; "$@" 2>&1 | sed "s|^|$word |"; }
trouble() { dmesg | grep -E 'ata2|sr |sr0|cdrom' | grep -iE 'error|warn|exception|timeout|fail|frozen|abort|reset|unknown'; }

# What the kernel says must not get between the lines; nor may an open tray close when somebody looks.
dmesg -n 1
echo 0 >/proc/sys/dev/cdrom/autoclose
cd /run/cd
for file in $(find . -type f | sort); do echo FILE $(sha256sum <$file) $file; done
cd /
umount /run/cd
echo DISC $(dd if=/dev/sr0 bs=64k count=$((BLOCKS / 32)) 2>/dev/null | sha256sum)
echo DIRECT $(dd if=/dev/sr0 bs=2048 count=1 skip=16 iflag=direct 2>/dev/null | sha256sum)
echo SIZE $(blockdev --getsize64 /dev/sr0) $(blockdev --getss /dev/sr0)
say MODE cat /sys/class/ata_device/dev2.0/xfer_mode
say INFO cat /proc/sys/dev/cdrom/info

say INQUIRY sg_inq /dev/sr0
say SERIAL sg_inq --page=0x80 /dev/sr0
say IDENTITY sg_vpd --page=di /dev/sr0
say CAPACITY sg_readcap /dev/sr0
say PROFILE sg_get_config --current /dev/sr0
say PAGES sg_modes --all /dev/sr0
sg_turs /dev/sr0 && echo READY
sg_raw --request=20 --outfile=/run/toc /dev/sr0 43 00 00 00 00 00 00 00 14 00 2>/run/toc.err && echo TOC $(od -An -tx1 /run/toc)
sg_raw --request=2352 --outfile=/run/raw /dev/sr0 BE 00 00 00 00 10 00 00 01 F8 00 00 2>/run/raw.err
echo RAW $(tail -c +17 /run/raw | head -c 2048 | sha256sum) $(wc -c </run/raw)
# Through the data register, too: lengths that libata does not transfer by DMA.
echo ODD $(sg_raw --request=9 --outfile=- /dev/sr0 12 00 00 00 09 00 2>/dev/null | od -An -tx1)
say QUIET trouble

eject -i on /dev/sr0 >/dev/null
eject /dev/sr0 2>/dev/null && echo LOCK does not hold
eject -i off /dev/sr0 >/dev/null
eject /dev/sr0 && echo EJECTED
echo TRAY $(sg_raw --request=8 --outfile=- /dev/sr0 4A 01 00 00 10 00 00 00 08 00 2>/dev/null | od -An -tx1 -j5 -N1)
say EMPTY dd if=/dev/sr0 of=/dev/null bs=2048 count=1
eject -t /dev/sr0 && echo LOADED
mount -t iso9660 -o ro /dev/sr0 /run/cd && echo AGAIN $(sha256sum </run/cd/judge) && umount /run/cd
say QUIET trouble

say REFUSED sg_raw /dev/sr0 44 00 00 00 00 00 00 00 00 00
dd if=/dev/sr0 of=/dev/null bs=2048 count=1 skip=$((BLOCKS + PADDING - 1)) iflag=direct 2>/dev/null || echo UNREADABLE
dd if=/dev/sr0 of=/dev/null bs=2048 count=1 skip=$((BLOCKS + PADDING - BAD - 1)) iflag=direct 2>/dev/null && echo READABLE
dmesg | grep -E 'sr0|sr ' | sed 's|^|LOG |'
"#;

/// Files of all kinds of sizes, random from `seed`, with their sums.
fn fill(folder: &Path, seed: u64) -> BTreeMap<String, String> {
    let mut random = StdRng::seed_from_u64(seed);
    fs::create_dir_all(folder.join("a folder/deeper").to_str().unwrap().replace(' ', "_")).unwrap();
    for (name, size) in [
        ("empty", 0),
        ("one", 1),
        ("a_folder/almost", 2047),
        ("a_folder/block", 2048),
        (
            "a_folder/deeper/a_name_that_is_longer_than_iso_9660_itself_allows.tar.gz",
            2049,
        ),
        ("large", 5_000_000),
    ] {
        let mut bytes = vec![0; size];
        random.fill_bytes(&mut bytes);
        fs::write(folder.join(name), bytes).unwrap();
    }
    let mut sums = BTreeMap::new();
    let listed = run_tool("find", [folder.as_os_str(), "-type".as_ref(), "f".as_ref()]).unwrap();
    for path in String::from_utf8(listed).unwrap().lines() {
        let name = path.strip_prefix(folder.to_str().unwrap()).unwrap();
        sums.insert(format!(".{name}"), sum_of(Path::new(path)));
    }
    sums
}

fn sum_of(path: &Path) -> String {
    let output = run_tool("sha256sum", [path]).unwrap();
    String::from_utf8_lossy(&output).split(' ').next().unwrap().to_owned()
}

/// The rest of each line that begins with `word`.
fn lines<'a>(output: &'a str, word: &'a str) -> Vec<&'a str> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
        .map(str::trim)
        .collect()
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn linux_reads_a_disc_and_moves_the_tray_without_a_warning() {
    let seed = rand::random();
    println!("seed {seed}");
    let host = Host::for_guest(Image::Debian).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (tree, iso) = (folder.path().join("tree"), folder.path().join("cd.iso"));
    fs::create_dir(&tree).unwrap();
    // The disc carries the orders, whose numbers depend on the disc's size: made twice, it has the same size.
    let mut blocks = 0;
    let mut sums = BTreeMap::new();
    for _ in 0..2 {
        let judge = JUDGE
            .replace("BLOCKS", &format!("{blocks:6}"))
            .replace("PADDING", &PADDING.to_string())
            .replace("BAD", &BAD.to_string());
        fs::write(tree.join("judge"), judge).unwrap();
        sums = fill(&tree, seed);
        let arguments = ["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "SPINDLE", "-o"].map(AsRef::as_ref);
        run_tool(
            "xorriso",
            arguments.into_iter().chain([iso.as_os_str(), tree.as_os_str()]),
        )
        .unwrap();
        blocks = fs::metadata(&iso).unwrap().len() / BLOCK;
    }
    let disc = fs::read(&iso).unwrap();
    let whole = disc.len() / (32 * 2048) * (32 * 2048);
    let part = folder.path().join("part");
    fs::write(&part, &disc[..whole]).unwrap();
    let disc_sum = sum_of(&part);
    fs::write(&part, &disc[16 * 2048..17 * 2048]).unwrap();
    let block_sum = sum_of(&part);
    let file = fs::File::options().write(true).open(&iso).unwrap();
    file.set_len((blocks + PADDING) * BLOCK).unwrap();
    host.add_file("disks/cd.iso", &iso).unwrap();
    let bad = ((blocks + PADDING - BAD) * 4, (blocks + PADDING) * 4 - 1);
    let boot = Boot {
        append: "spindle.modules=cdrom".to_owned(),
        options: vec![
            "--cdrom".to_owned(),
            format!("disks/cd.iso,inject=read@{}-{}:eio", bad.0, bad.1),
        ],
        ..Boot::exec(Host::ROOT_DISK, COMMAND)
    };
    let mut run = Run::new(boot.command().unwrap());
    run.timeout = Duration::from_secs(600);

    let outcome = host.run(run).unwrap();

    let (output, _) = ExecOutput::of(&outcome.console);
    let output = String::from_utf8_lossy(&output).into_owned();
    println!("{output}");
    assert_eq!(outcome.end, End::Exited(0), "{}\n{}", outcome.text(), outcome.stderr);
    judge_content(&output, &sums, &disc_sum, &block_sum, blocks + PADDING);
    judge_tools(&output, blocks + PADDING);
    judge_tray(&output, &sums["./judge"]);
    judge_errors(&output);
}

fn judge_content(output: &str, sums: &BTreeMap<String, String>, disc: &str, block: &str, blocks: u64) {
    let found: BTreeMap<String, String> = lines(output, "FILE")
        .into_iter()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[words.len() - 1].to_owned(), words[0].to_owned())
        })
        .collect();
    assert_eq!(&found, sums);
    assert_eq!(lines(output, "DISC"), [format!("{disc} -")]);
    assert_eq!(lines(output, "DIRECT"), [format!("{block} -")]);
    assert_eq!(lines(output, "RAW"), [format!("{block} - 2352")]);
    assert_eq!(lines(output, "SIZE"), [format!("{} 2048", blocks * BLOCK)]);
    let mode = lines(output, "MODE").concat();
    assert!(mode.contains("UDMA"), "{mode}");
}

fn judge_tools(output: &str, blocks: u64) {
    let has = |word: &str, text: &str| {
        let all = lines(output, word).join("\n");
        assert!(all.contains(text), "{word} without {text}:\n{all}");
    };
    has("INFO", "Can close tray:\t\t1");
    has("INFO", "Can lock tray:\t\t1");
    has("INFO", "Can read DVD:\t\t1");
    has("INQUIRY", "Vendor identification: SPINDLE");
    has("INQUIRY", "Product identification: spindle CD-ROM");
    has("SERIAL", "SPCD000003");
    has("IDENTITY", "SPINDLE spindle CD-ROM");
    has("CAPACITY", &format!("Last LBA={}", blocks - 1));
    has("PROFILE", "CD-ROM");
    has("PAGES", "MM capabilities and mechanical status");
    assert!(output.lines().any(|line| line == "READY"));
    let end = u32::try_from(blocks)
        .unwrap()
        .to_be_bytes()
        .map(|byte| format!("{byte:02x}"));
    assert_eq!(
        lines(output, "TOC"),
        [format!(
            "00 12 01 01 00 14 01 00 00 00 00 00 00 14 aa 00 {}",
            end.join(" ")
        )]
    );
    assert_eq!(lines(output, "ODD"), ["05 80 05 02 1f 00 00 00 53"]);
}

fn judge_tray(output: &str, judge: &str) {
    assert_eq!(lines(output, "QUIET"), [""; 0], "Linux warns");
    assert_eq!(lines(output, "LOCK"), [""; 0]);
    for word in ["EJECTED", "LOADED"] {
        assert!(output.lines().any(|line| line == word), "{word}");
    }
    assert_eq!(lines(output, "TRAY"), ["01"], "open, and no medium");
    let empty = lines(output, "EMPTY").join("\n");
    assert!(empty.contains("No medium found"), "{empty}");
    assert_eq!(lines(output, "AGAIN"), [format!("{judge} -")]);
}

fn judge_errors(output: &str) {
    let refused = lines(output, "REFUSED").join("\n");
    assert!(refused.contains("Invalid command operation code"), "{refused}");
    for word in ["UNREADABLE", "READABLE"] {
        assert!(output.lines().any(|line| line == word), "{word}");
    }
    let log = lines(output, "LOG").join("\n");
    for text in [
        "Sense Key : Medium Error",
        "Unrecovered read error",
        "medium error, dev sr0",
    ] {
        assert!(log.contains(text), "{text}:\n{log}");
    }
}
