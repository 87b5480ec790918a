//! A stock kernel boots from a qcow2 root disk over emulated IDE.

use guest_images::Image;
use system_tests::{Boot, End, ExecOutput, Host, Outcome, Run, check_image, convert_to_raw};

fn boot(host: &Host, boot: &Boot) -> Outcome {
    host.run(Run::new(boot.command().unwrap())).unwrap()
}

/// The output of the command in the guest, which must have come to its end with exit code 0.
fn output_of(outcome: &Outcome) -> String {
    let (output, code) = ExecOutput::of(&outcome.console);
    assert_eq!(
        (outcome.end, code),
        (End::Exited(0), Some(0)),
        "console: {}\nstderr: {}",
        outcome.text(),
        outcome.stderr
    );
    String::from_utf8(output).unwrap()
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn debian_writes_by_dma_and_finds_it_after_the_next_boot() {
    let host = Host::for_guest(Image::Debian).unwrap();
    let first = "uname -r; cat /sys/class/ata_device/dev1.0/xfer_mode; findmnt -no SOURCE,FSTYPE /; \
        dd if=/dev/urandom of=/root/x bs=1M count=64 conv=fsync status=none; md5sum /root/x";

    let wrote = output_of(&boot(&host, &Boot::exec(Host::ROOT_DISK, first)));
    let found = output_of(&boot(&host, &Boot::exec(Host::ROOT_DISK, "md5sum /root/x")));

    let lines: Vec<&str> = wrote.lines().collect();
    assert!(lines[0].contains("cloud-amd64"), "{wrote}");
    assert!(
        lines[1].contains("UDMA") || lines[1].contains("MW_DMA") || lines[1].contains("MWDMA"),
        "{wrote}"
    );
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["/dev/sda", "ext4"]);
    assert_eq!(lines[3], found.trim_end());
    let image = host.fetch(Host::ROOT_DISK).unwrap();
    let verdict = check_image(&image).unwrap();
    assert!(verdict.contains("No errors were found"), "{verdict}");
    let raw = host.staging().join("root.raw");
    convert_to_raw(&image, &raw).unwrap();
    guest_images::check_ext4(&raw).unwrap();
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn exit_code_of_the_command_comes_out() {
    let host = Host::for_guest(Image::Tiny).unwrap();

    let outcome = boot(&host, &Boot::exec(Host::ROOT_DISK, "printf 'no line end'; exit 42"));

    assert_eq!(outcome.end, End::Exited(0), "{}", outcome.stderr);
    assert_eq!(ExecOutput::of(&outcome.console), (b"no line end".to_vec(), Some(42)));
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn two_cpus_come_up_and_both_run() {
    let host = Host::for_guest(Image::Tiny).unwrap();
    let command = "nproc; for cpu in 0 1; do taskset $((cpu + 1)) true && echo ran $cpu; done";
    let two = Boot {
        cpus: 2,
        ..Boot::exec(Host::ROOT_DISK, command)
    };

    let output = output_of(&boot(&host, &two));

    assert_eq!(output, "2\nran 0\nran 1\n");
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn reset_by_the_guest_is_exit_code_3() {
    let host = Host::for_guest(Image::Tiny).unwrap();

    let outcome = boot(&host, &Boot::exec(Host::ROOT_DISK, "sync; busybox reboot -f; sleep 60"));

    assert_eq!(outcome.end, End::Exited(3), "{}\n{}", outcome.text(), outcome.stderr);
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn triple_fault_is_exit_code_4() {
    let host = Host::for_guest(Image::Tiny).unwrap();
    let by_triple_fault = Boot {
        append: "reboot=t".to_owned(),
        ..Boot::exec(Host::ROOT_DISK, "sync; busybox reboot -f; sleep 60")
    };

    let outcome = boot(&host, &by_triple_fault);

    assert_eq!(outcome.end, End::Exited(4), "{}\n{}", outcome.text(), outcome.stderr);
    assert!(outcome.stderr.contains("triple fault"), "{}", outcome.stderr);
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn bzimage_as_debian_ships_it_boots_as_well() {
    let host = Host::for_guest(Image::Tiny).unwrap();
    let mut command = Boot::exec(Host::ROOT_DISK, "echo up").command().unwrap();
    for word in &mut command {
        *word = word.replace("base/vmlinux", "base/vmlinuz");
    }

    let outcome = host.run(Run::new(command)).unwrap();

    assert_eq!(output_of(&outcome), "up\n");
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn channels_in_native_mode_interrupt_by_one_pci_line() {
    let host = Host::for_guest(Image::Tiny).unwrap();
    let command = "dd if=/dev/sda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null && cat /proc/interrupts /proc/ioports; dmesg";
    let native = Boot {
        options: ["--ide", "chip=piix3,mode=native"].map(str::to_owned).into(),
        ..Boot::exec(Host::ROOT_DISK, command)
    };

    let output = output_of(&boot(&host, &native));

    let line = output
        .lines()
        .find(|line| line.contains("ata_piix") && line.contains("fasteoi"));
    assert!(line.is_some_and(|line| line.contains("17-fasteoi")), "{output}");
    assert!(
        !output.contains("lost interrupt") && !output.contains("nobody cared"),
        "{output}"
    );
}
