//! A stock Linux judges the disks: what libata, hdparm and smartctl say of them, TRIM down to the host, data of all block sizes
//! on four drives at once, and what an error of the host becomes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use guest_images::{Image, ext4_from_directory, run_tool};
use system_tests::{Boot, End, ExecOutput, Host, Run, check_image};

/// Names the disks by their slots, and takes the orders from hdb: they are more than a kernel command line holds.
const COMMAND: &str = r#"until [ $(ls -d /sys/block/sd? | wc -l) = 4 ]; do sleep .1; done
for d in /sys/block/sd?; do
case $(readlink $d) in */ata1/*:0:0:0/*) n=hda;; */ata1/*) n=hdb;; */ata2/*:0:0:0/*) n=hdc;; *) n=hdd;; esac
ln -s ${d##*/} /dev/$n; done
mkdir /run/b && mount /dev/hdb /run/b && cp /run/b/judge /run && sh /run/judge"#;

/// Sectors of hdd that the host cannot write, and that it cannot read.
const UNWRITABLE: (u64, u64) = (52_000, 52_007);
const UNREADABLE: (u64, u64) = (60_000, 60_007);

/// What the guest does. Each line of its output begins with a word of its own.
const JUDGE: &str = r#"
say() { word=$1; shift; "$@" 2>&1 | sed "s|^|$word |"; }
trouble() { dmesg | grep -E 'ata[0-9]|sd [0-9]|sd[a-d]|scsi|EXT4' | grep -iE 'error|warn|exception|timeout|timed|fail|frozen|abort|reset|unknown'; }
# What the kernel says must not get between the lines.
dmesg -n 1
say LOG dmesg -t
say TROUBLE trouble

for disk in hda hdb hdc hdd; do say IDENTIFY-$disk hdparm -I /dev/$disk; done
say KERNEL hdparm -i /dev/hda
say SECTORS hdparm -N /dev/hdc
say CACHE hdparm -W0 /dev/hdc
say CACHE hdparm -W1 /dev/hdc

say SMART smartctl -a /dev/hda
say TEST smartctl -t short /dev/hda
say TESTED smartctl -l selftest /dev/hda
say ERRORS smartctl -l error /dev/hda

printf 'secret' | dd of=/dev/hdc bs=512 seek=100 conv=notrunc,sync status=none
hdparm --user-master u --security-set-pass pass /dev/hdc >/dev/null 2>&1 || echo SECURITY no password set
say PROTECTED hdparm -I /dev/hdc
hdparm --user-master u --security-disable wrong /dev/hdc >/dev/null 2>&1
say REFUSED hdparm -I /dev/hdc
hdparm --user-master u --security-erase pass /dev/hdc >/dev/null 2>&1 || echo SECURITY not erased
say OPEN hdparm -I /dev/hdc
blockdev --flushbufs /dev/hdc
echo ERASED $(dd if=/dev/hdc bs=512 skip=100 count=1 iflag=direct status=none | tr -d '\0' | wc -c)

head -c 64M /dev/urandom >/run/b/garbage
sync
rm /run/b/garbage
sync
say TRIM fstrim -v /run/b

say BAD badblocks -w -v -b 4096 -c 256 /dev/hdc 2047

fio --output-format=terse --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 \
  /run/b/fio >/run/fio.log 2>&1 && echo FIO $(grep -c '^3;' /run/fio.log) || say FAILED cat /run/fio.log
say TROUBLE trouble
umount /run/b

dmesg -C
dd if=/dev/hdd of=/dev/null bs=4k skip=$((READ / 8)) count=1 iflag=direct 2>/dev/null || echo READ fails
dd if=/dev/hdd of=/dev/null bs=4k skip=$((READ / 8 - 1)) count=1 iflag=direct 2>/dev/null && echo READ before it succeeds
say READLOG dmesg -t
dmesg -C
mke2fs -q -t ext4 -E nodiscard /dev/hdd 28m && mount /dev/hdd /mnt
echo first >/mnt/first
sync
dd if=/dev/zero of=/mnt/fill bs=1M conv=fsync 2>&1 | sed 's|^|FILL |'
rm /mnt/fill
echo second >/mnt/second && sync && cat /mnt/first /mnt/second | sed 's|^|SURVIVED |'
umount /mnt && e2fsck -fn /dev/hdd >/run/fsck 2>&1 && echo CLEAN || say DIRTY cat /run/fsck
say WRITELOG dmesg -t
"#;

/// Blocks of 512 bytes to 32 MiB on every drive at once.
fn fio_jobs() -> String {
    let mut jobs = "[global]\n".to_owned();
    let targets = [
        ("hda", "/root/fio", 0u64),
        ("hdb", "/run/b/fio.data", 0),
        ("hdc", "/dev/hdc", 8 << 20),
        ("hdd", "/dev/hdd", 48 << 20),
    ];
    for (drive, file, start) in targets {
        let mut offset = start;
        for (name, block, size, depth) in [
            ("512", "512", 128u64 << 10, 8),
            ("4k", "4k", 1 << 20, 16),
            ("odd", "68k", (68 * 30) << 10, 4),
            ("1m", "1m", 8 << 20, 4),
            ("32m", "32m", 32 << 20, 1),
        ] {
            jobs += &format!(
                "[{drive}-{name}]\nfilename={file}\noffset={offset}\nsize={size}\nbs={block}\niodepth={depth}\nrw=randwrite\n"
            );
            offset += size.next_multiple_of(1 << 20);
        }
    }
    jobs
}

/// An image of `size` bytes, empty.
fn create(path: &Path, format: &str, size: u64) {
    let size = size.to_string();
    let arguments = ["create", "-q", "-f", format].map(AsRef::as_ref);
    run_tool(
        "qemu-img",
        arguments.into_iter().chain([path.as_os_str(), size.as_ref()]),
    )
    .unwrap();
}

/// hdb: a file system with the orders on it.
fn make_orders(folder: &Path) -> std::path::PathBuf {
    let (tree, raw, image) = (folder.join("tree"), folder.join("raw"), folder.join("hdb.qcow2"));
    fs::create_dir(&tree).unwrap();
    let judge = JUDGE.replace("READ / 8", &format!("{} / 8", UNREADABLE.0));
    fs::write(tree.join("judge"), judge).unwrap();
    fs::write(tree.join("fio"), fio_jobs()).unwrap();
    ext4_from_directory(&tree, &raw, 160 << 20).unwrap();
    let arguments = ["convert", "-f", "raw", "-O", "qcow2"].map(AsRef::as_ref);
    run_tool(
        "qemu-img",
        arguments.into_iter().chain([raw.as_os_str(), image.as_os_str()]),
    )
    .unwrap();
    image
}

/// The rest of each line that begins with `word`.
fn lines<'a>(output: &'a str, word: &str) -> Vec<&'a str> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
        .map(str::trim)
        .collect()
}

/// What the guest has said, to be looked at.
struct Testimony(String);

impl Testimony {
    fn text(&self, word: &str) -> String {
        lines(&self.0, word).join("\n")
    }

    #[track_caller]
    fn has(&self, word: &str, expected: &[&str]) {
        let text = self.text(word);
        // hdparm and smartctl align with spaces and tabs.
        let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in expected {
            assert!(plain.contains(expected), "{word} without \"{expected}\":\n{text}");
        }
    }

    #[track_caller]
    fn has_none(&self, word: &str) {
        assert_eq!(self.text(word), "", "{word}");
    }
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn linux_finds_nothing_wrong_with_the_disks_and_the_right_errors() {
    let host = Host::for_guest(Image::Debian).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (hdc, hdd) = (folder.path().join("hdc"), folder.path().join("hdd"));
    create(&hdc, "qcow2", 64 << 20);
    create(&hdd, "raw", 100 << 20);
    host.add_file("disks/hdb.qcow2", &make_orders(folder.path())).unwrap();
    host.add_file("disks/hdc.qcow2", &hdc).unwrap();
    host.add_file("disks/hdd.raw", &hdd).unwrap();
    let faults = format!(
        "inject=write@{}-{}:eio,inject=read@{}-{}:eio",
        UNWRITABLE.0, UNWRITABLE.1, UNREADABLE.0, UNREADABLE.1
    );
    let disks = [
        "disks/hdb.qcow2,slot=hdb,discard=unmap".to_owned(),
        "disks/hdc.qcow2,slot=hdc".to_owned(),
        format!("disks/hdd.raw,format=raw,slot=hdd,{faults}"),
    ];
    let boot = Boot {
        options: disks.into_iter().flat_map(|disk| ["--disk".to_owned(), disk]).collect(),
        ..Boot::exec(Host::ROOT_DISK, COMMAND)
    };
    // What the image takes on the host's disk, before and after: TRIM must reach it.
    let mut command = vec!["sh".to_owned(), "-c".to_owned()];
    command.push("\"$@\"; code=$?; echo HOST $(stat -c %b disks/hdb.qcow2); exit $code".to_owned());
    command.push("sh".to_owned());
    command.extend(boot.command().unwrap());
    let mut run = Run::new(command);
    run.timeout = Duration::from_secs(1200);
    run.on_console = Box::new(|piece| print!("{}", String::from_utf8_lossy(piece)));

    let outcome = host.run(run).unwrap();

    let text = outcome.text();
    let (output, _) = ExecOutput::of(&outcome.console);
    let said = Testimony(String::from_utf8_lossy(&output).into_owned());
    assert_eq!(outcome.end, End::Exited(0), "{text}\n{}", outcome.stderr);
    judge_identity(&said);
    judge_features(&said);
    judge_data(&said);
    let blocks: u64 = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("HOST ")?.trim().parse().ok())
        .unwrap();
    // 64 MiB of garbage were there once. What is left is fio's 45 MiB and the file system.
    assert!(blocks * 512 < 80 << 20, "hdb takes {blocks} sectors of the host");
    judge_errors(&said);
    for disk in ["disks/hdb.qcow2", "disks/hdc.qcow2", Host::ROOT_DISK] {
        let verdict = check_image(&host.fetch(disk).unwrap()).unwrap();
        assert!(verdict.contains("No errors were found"), "{disk}: {verdict}");
    }
}

fn judge_identity(said: &Testimony) {
    said.has_none("TROUBLE");
    said.has(
        "LOG",
        &[
            "ata1: PATA max UDMA/33",
            "ata1.00: ATA-8: spindle disk",
            "ata2.01: ATA-8: spindle disk",
        ],
    );
    for (disk, serial) in [
        ("hda", "SP00000001"),
        ("hdb", "SP00000002"),
        ("hdc", "SP00000003"),
        ("hdd", "SP00000004"),
    ] {
        said.has(
            &format!("IDENTIFY-{disk}"),
            &[
                "Model Number: spindle disk",
                &format!("Serial Number: {serial}"),
                "Supported: 8 7 6 5",
                "* SMART feature set",
                "Security Mode feature set",
                "* Power Management feature set",
                "* Write cache",
                "* Host Protected Area feature set",
                "* 48-bit Address feature set",
                "* Device Configuration Overlay feature set",
                "* Mandatory FLUSH_CACHE",
                "* FLUSH_CACHE_EXT",
                "* SMART self-test",
                "* General Purpose Logging feature set",
                "* WRITE_{DMA|MULTIPLE}_FUA_EXT",
                "* WRITE_UNCORRECTABLE_EXT command",
                "* Data Set Management TRIM supported",
                "not locked",
                "not frozen",
                "Checksum: correct",
            ],
        );
    }
    said.has(
        "KERNEL",
        &[
            "Model=spindle disk",
            "SerialNo=SP00000001",
            "UDMA modes: udma0 udma1 *udma2",
        ],
    );
}

fn judge_features(said: &Testimony) {
    said.has("SECTORS", &["max sectors = 131072/131072, HPA is disabled"]);
    said.has("CACHE", &["write-caching = 0 (off)", "write-caching = 1 (on)"]);
    said.has(
        "SMART",
        &[
            "SMART support is: Available",
            "SMART support is: Enabled",
            "self-assessment test result: PASSED",
            "Power_On_Hours",
        ],
    );
    said.has("TEST", &["Testing has begun"]);
    said.has("TESTED", &["Short offline Completed without error"]);
    said.has("ERRORS", &["No Errors Logged"]);
    said.has_none("SECURITY");
    said.has(
        "PROTECTED",
        &[
            "Security: Master password revision code",
            "supported enabled not locked",
        ],
    );
    said.has("REFUSED", &["supported enabled not locked"]);
    said.has("OPEN", &["supported not enabled not locked"]);
    assert_eq!(
        lines(&said.0, "ERASED"),
        ["0"],
        "what was there before SECURITY ERASE UNIT"
    );
}

fn judge_data(said: &Testimony) {
    let trimmed = said.text("TRIM");
    let bytes: u64 = trimmed
        .split_once('(')
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("{trimmed}"));
    assert!(bytes >= 64 << 20, "{trimmed}");
    said.has("BAD", &["Pass completed, 0 bad blocks found. (0/0/0 errors)"]);
    said.has_none("FAILED");
    assert_eq!(lines(&said.0, "FIO"), ["20"], "jobs that verified");
}

fn judge_errors(said: &Testimony) {
    assert_eq!(lines(&said.0, "READ"), ["fails", "before it succeeds"]);
    let (read, write) = (UNREADABLE.0, UNWRITABLE.0);
    said.has(
        "READLOG",
        &[
            "failed command: READ DMA",
            "error: { UNC }",
            "Sense Key : Medium Error",
            "Unrecovered read error",
            &format!("sector {read}"),
        ],
    );
    assert!(
        !said.text("READLOG").contains("reset"),
        "an error of the medium needs no reset"
    );
    said.has("FILL", &["Input/output error"]);
    said.has(
        "WRITELOG",
        &["failed command: WRITE DMA", "error: { ABRT }", "I/O error, dev sd"],
    );
    let log = said.text("WRITELOG");
    assert!(
        !log.contains("Remounting filesystem read-only") && !log.contains("journal has aborted"),
        "{log}"
    );
    assert!(write < 28 << 11, "the bad sectors are in the file system");
    assert_eq!(lines(&said.0, "SURVIVED"), ["first", "second"]);
    said.has_none("DIRTY");
    assert!(said.0.lines().any(|line| line == "CLEAN"));
}
