//! Promise E under a stock Linux: a full file system of the host pauses the machine, and once there is space the guest goes on as if its
//! disk had been slow.

use std::time::{Duration, Instant};

use guest_images::{Guest, Image, Store, check_ext4, ext4_from_directory, run_tool};
use system_tests::{
    Boot, End, ExecOutput, Happening, Host, HostKind, StandingHost, check_image, convert_to_raw, static_spindle,
    target_folder,
};

/// The image is on a file system of its own, where something else takes so much that what the guest writes does not fit.
const FILL: &str = "mkdir full && mount -t tmpfs -o size=64m tmpfs full && cp disks/data.qcow2 full && \
    dd if=/dev/zero of=full/ballast bs=1M count=56 2>/dev/null && echo filled";

/// Writes 16 MiB with a sum of each file, all of it random, and compares after the files have left its cache.
const WORKLOAD: &str = "\
until d=$(ls /sys/bus/scsi/devices/0:0:0:0/block); do sleep .1; done
mkdir /run/d; mount /dev/$d /run/d && cd /run/d || exit 1
for i in $(seq 16); do
dd if=/dev/urandom of=/run/x bs=1M count=1 2>/dev/null && md5sum </run/x >/run/sum$i || exit 2
cp /run/x f$i && sync && echo WROTE $i || exit 3
done
cd /; umount /run/d && mount /dev/$d /run/d || exit 4
for i in $(seq 16); do [ \"$(md5sum </run/d/f$i)\" = \"$(cat /run/sum$i)\" ] || exit 5; done
umount /run/d; dmesg | grep -E 'ata[0-9].*(exception|failed|error)|I/O error|EXT4-fs error' && exit 6
echo WHOLE";

const PAUSED: &str = "spindle: paused: disk hda: ";
const GOING_ON: &str = "spindle: going on";
const PATIENCE: Duration = Duration::from_secs(180);

/// The machine that is under test, and what it has said.
struct Machine {
    host: StandingHost,
    console: Vec<u8>,
}

impl Machine {
    /// Takes what comes for so long; the end, if it came.
    fn follow(&mut self, wait: Duration) -> Option<End> {
        match self.host.next(wait).unwrap() {
            Happening::Console(bytes) => self.console.extend(bytes),
            Happening::Ended(end) => return Some(end),
            Happening::Nothing => {}
        }
        None
    }

    /// Waits until `words` were on standard error so often.
    fn wait_for(&mut self, words: &str, times: usize) {
        let begin = Instant::now();
        while self.host.stderr().matches(words).count() < times {
            let end = self.follow(Duration::from_millis(100));
            assert!(
                end.is_none() && begin.elapsed() < PATIENCE,
                "no \"{words}\", {end:?}: {}\n{}",
                self.text(),
                self.host.stderr()
            );
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }

    fn shell(&mut self, command: &str) -> String {
        self.host.shell(command).unwrap()
    }
}

impl Drop for Machine {
    /// On a host that is this machine, nothing is to stay behind.
    fn drop(&mut self) {
        let _ = self.host.shell("umount -l full");
    }
}

/// A host, and in its work folder the disk to be filled, with an empty file system.
fn host_with_disk() -> Host {
    let store = Store::open(&target_folder(), |step| eprintln!("{step}")).unwrap();
    let guest = Guest::get(&store, Image::Tiny).unwrap();
    let mut host = Host::new(&store, &static_spindle().unwrap(), Some(&guest)).unwrap();
    host.guest_memory = 256;
    let folder = tempfile::tempdir().unwrap();
    let (content, raw) = (folder.path().join("content"), folder.path().join("data.raw"));
    let image = folder.path().join("data.qcow2");
    std::fs::create_dir(&content).unwrap();
    ext4_from_directory(&content, &raw, 64 << 20).unwrap();
    let arguments = ["convert", "-f", "raw", "-O", "qcow2"].map(AsRef::as_ref);
    run_tool(
        "qemu-img",
        arguments.into_iter().chain([raw.as_os_str(), image.as_os_str()]),
    )
    .unwrap();
    host.add_file("disks/data.qcow2", &image).unwrap();
    host
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn linux_goes_on_after_space_was_made_on_a_full_file_system() {
    let host = host_with_disk();
    let boot = Boot {
        memory: 128,
        append: format!("root=hdb ro {}", Boot::LEAN),
        ..Boot::exec("full/data.qcow2,werror=enospc", WORKLOAD)
    };
    let mut command = boot.command().unwrap();
    command.extend(["--disk".to_owned(), format!("base/{},slot=hdb,readonly", Guest::DISK)]);
    let mut machine = Machine {
        host: host.stand().unwrap(),
        console: Vec::new(),
    };
    let filled = machine.shell(FILL);
    if host.kind() == HostKind::Hardware && filled != "filled|" {
        eprintln!("left out: a file system of its own takes root: {filled}");
        return;
    }
    assert_eq!(filled, "filled|");

    machine.host.launch(&command).unwrap();
    machine.wait_for(PAUSED, 1);
    // Nobody has made space: it pauses again.
    machine.host.go_on().unwrap();
    machine.wait_for(GOING_ON, 1);
    machine.wait_for(PAUSED, 2);
    let written = machine.text();
    assert!(!written.contains("WROTE 16"), "{written}");
    machine.follow(Duration::from_secs(2));
    assert_eq!(machine.text(), written, "a machine that is paused prints nothing");
    machine.shell("rm full/ballast");
    machine.host.go_on().unwrap();
    let begin = Instant::now();
    let end = loop {
        assert!(
            begin.elapsed() < PATIENCE,
            "{}\n{}",
            machine.text(),
            machine.host.stderr()
        );
        if let Some(end) = machine.follow(Duration::from_secs(1)) {
            break end;
        }
    };

    let (output, code) = ExecOutput::of(&machine.console);
    assert_eq!(
        (end, code),
        (End::Exited(0), Some(0)),
        "{}\n{}",
        machine.text(),
        machine.host.stderr()
    );
    assert!(String::from_utf8_lossy(&output).ends_with("WHOLE\n"));
    assert!(
        machine.host.stderr().contains("no space left"),
        "{}",
        machine.host.stderr()
    );
    let image = host.staging().join("data.qcow2");
    machine.host.fetch("full/data.qcow2", &image).unwrap();
    check_image(&image).unwrap();
    let raw = host.staging().join("data.raw");
    convert_to_raw(&image, &raw).unwrap();
    check_ext4(&raw).unwrap();
}
