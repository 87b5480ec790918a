//! How often a guest leaves the kernel for a disk command, and that it cannot tell what the kernel does by itself.

mod spindle;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use devices::piix4::power_management::{PM1A_CONTROL_PORT, SLEEP_TYPE_S5};
use guest_images::bare_metal::libata::{self, Channel, Direction};
use guest_images::bare_metal::{BareMetalGuest, ENTRY_ADDRESS, Mode, PowerOff};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, cr0, ds, dword_ptr, dx, eax, ecx, edi, edx, es, esi, ptr, registers::ax, ss,
};
use serde_json::Value;

use spindle::{Outcome, Spindle};

/// Every combination of what the kernel serves of the ports.
const EXIT_OPTIONS: [&str; 4] = [
    "coalesced=on,ioeventfd=on",
    "coalesced=on,ioeventfd=off",
    "coalesced=off,ioeventfd=on",
    "coalesced=off,ioeventfd=off",
];

/// How many commands a test makes of each kind.
const COMMANDS: u32 = 50;
const SECTORS: u16 = 8;
const DWORDS: u32 = SECTORS as u32 * 512 / 4;
/// How much of it is compared; comparing is what takes time where KVM emulates the guest.
const COMPARED_DWORDS: u32 = DWORDS / 8;

/// A channel, and where its data is.
#[derive(Clone, Copy)]
struct Disk {
    channel: Channel,
    pattern: u32,
    buffer: u32,
}

const PRIMARY: Disk = Disk {
    channel: Channel::PRIMARY,
    pattern: 0x40_0000,
    buffer: 0x41_0000,
};

const SECONDARY: Disk = Disk {
    channel: Channel::SECONDARY,
    pattern: 0x42_0000,
    buffer: 0x43_0000,
};

const READ_DMA: u8 = 0xc8;
const TO_MEMORY: u8 = 1 << 3;
const START: u8 = 1 << 0;

/// Writes and reads back `count` blocks of different content, at different places.
fn write_and_read_back(guest: &mut BareMetalGuest, disk: Disk, count: u32) -> Result<(), IcedError> {
    let channel = disk.channel;
    guest.fill32(disk.pattern, DWORDS, disk.pattern, 0x0101_0107)?;
    guest.store32(channel.lba(), 0)?;
    libata::repeat(guest, channel, count, |guest| {
        libata::advance(guest, channel, SECTORS, 1 << 15)?;
        // No block is like another: its first words say where it is.
        let assembler = guest.assembler();
        assembler.mov(edi, disk.pattern)?;
        assembler.mov(dword_ptr(edi), eax)?;
        libata::transfer(guest, channel, Direction::Write, SECTORS, disk.pattern)?;
        libata::transfer(guest, channel, Direction::Read, SECTORS, disk.buffer)?;
        guest.expect_equal32(disk.pattern, disk.buffer, COMPARED_DWORDS, "what was read back")
    })
}

fn guest(steps: impl FnOnce(&mut BareMetalGuest) -> Result<(), IcedError>) -> Vec<u8> {
    let power_off = PowerOff::acpi(PM1A_CONTROL_PORT, SLEEP_TYPE_S5);
    let mut guest = BareMetalGuest::new(Mode::Pvh, power_off).expect("an assembler");
    steps(&mut guest).expect("steps that assemble");
    guest.build().expect("a guest that assembles")
}

/// Exits by port and direction.
fn port_exits(metrics: &Path) -> BTreeMap<(String, String), u64> {
    let report: Value = serde_json::from_slice(&fs::read(metrics).expect("the metrics")).expect("JSON");
    let ports = report["exits"]["ports"].as_array().expect("a list").clone();
    ports
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().expect("text").to_owned();
            (
                (text("port"), text("direction")),
                entry["count"].as_u64().expect("a number"),
            )
        })
        .collect()
}

fn passed(outcome: &Outcome, options: &str) {
    assert_eq!(
        (outcome.console.as_str(), outcome.code),
        ("OK\n", Some(0)),
        "{options}: {outcome:?}"
    );
}

#[test]
fn a_dma_command_of_linux_takes_fourteen_exits() {
    let image = guest(|guest| {
        write_and_read_back(guest, PRIMARY, COMMANDS)?;
        guest.print("OK\n")?;
        guest.power_off()
    });
    for (options, writes_per_command) in EXIT_OPTIONS.into_iter().zip([1, 4, 12, 13]) {
        let disk = spindle::qcow2(16 << 20);
        let metrics = disk.path().with_file_name("metrics.json");
        let name = metrics.to_str().expect("a plain name");

        let outcome = Spindle::new(&image)
            .disk(disk.path())
            .arguments(&["--exits", options, "--metrics", name])
            .run();

        passed(&outcome, options);
        let exits = port_exits(&metrics);
        let count = |port: &str, direction: &str| {
            exits
                .get(&(port.to_owned(), direction.to_owned()))
                .copied()
                .unwrap_or(0)
        };
        let commands = u64::from(2 * COMMANDS);
        for (port, per_command) in [("0x1f7", 4), ("0x3f6", 4), ("0xc000", 3)] {
            assert_eq!(count(port, "in"), per_command * commands, "{options}: reads of {port}");
        }
        assert!(
            count("0xc002", "in") >= 2 * commands,
            "{options}: reads of the bus master's status"
        );
        let writes: u64 = exits
            .iter()
            .filter(|((port, direction), _)| {
                direction == "out" && (port.starts_with("0x1f") || port.starts_with("0xc00"))
            })
            .map(|(_, count)| count)
            .sum();
        if spindle::kernel_serves_ports() {
            assert_eq!(writes, writes_per_command * commands, "{options}: {exits:?}");
        }
    }
}

/// Where the other CPUs begin: real mode, at the page that the start-up IPI names.
const TRAMPOLINE: u32 = 0x8000;
const LOCAL_APIC_ID: u32 = 0xfee0_0020;
const LOCAL_APIC_COMMAND: u32 = 0xfee0_0300;
/// Set by CPU 1 when it is done.
const DONE: u32 = 0x22_0000;

/// Real-mode code that enters 32-bit protected mode with flat segments, and begins where CPU 0 began.
fn trampoline() -> Vec<u8> {
    let mut code = CodeAssembler::new(16).expect("an assembler");
    let assemble = |code: &mut CodeAssembler| -> Result<(), IcedError> {
        code.cli()?;
        code.xor(ax, ax)?;
        code.mov(ds, ax)?;
        code.lgdt(ptr(u64::from(TRAMPOLINE) + GDT_POINTER as u64))?;
        code.mov(eax, cr0)?;
        code.or(eax, 1)?;
        code.mov(cr0, eax)?;
        code.mov(eax, 0x10)?;
        code.mov(ds, eax)?;
        code.mov(es, eax)?;
        code.mov(ss, eax)
    };
    assemble(&mut code).expect("real-mode code");
    let mut bytes = code.assemble(u64::from(TRAMPOLINE)).expect("real-mode code");
    // jmp far 8:ENTRY_ADDRESS, with a 32-bit offset.
    bytes.extend([0x66, 0xea]);
    bytes.extend(ENTRY_ADDRESS.to_le_bytes());
    bytes.extend(8u16.to_le_bytes());
    assert!(bytes.len() <= GDT_POINTER);
    bytes.resize(GDT_POINTER, 0);
    bytes.extend(23u16.to_le_bytes());
    bytes.extend((TRAMPOLINE + GDT as u32).to_le_bytes());
    bytes.resize(GDT, 0);
    // Null, flat 32-bit code, flat data (Intel SDM volume 3, 3.4.5).
    for descriptor in [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
        bytes.extend(descriptor.to_le_bytes());
    }
    bytes
}

/// Behind the trampoline's code.
const GDT_POINTER: usize = 0x50;
const GDT: usize = 0x58;

/// Splits the CPUs: CPU 0 starts the others and goes on; they come the same way, and CPU 1 goes to `second`, CPU 2 to `third`.
fn start_other_cpus(guest: &mut BareMetalGuest, second: CodeLabel, third: CodeLabel) -> Result<(), IcedError> {
    let assembler = guest.assembler();
    assembler.mov(edi, LOCAL_APIC_ID)?;
    assembler.mov(eax, dword_ptr(edi))?;
    assembler.shr(eax, 24)?;
    assembler.cmp(eax, 1)?;
    assembler.je(second)?;
    assembler.cmp(eax, 2)?;
    assembler.je(third)?;
    guest.store32(DONE, 0)?;
    for (address, word) in (TRAMPOLINE..).step_by(4).zip(trampoline().chunks_exact(4)) {
        guest.store32(address, u32::from_le_bytes(word.try_into().expect("four bytes")))?;
    }
    // To all others: INIT, then start-up at the trampoline's page (Intel SDM volume 3, "Interrupt Command Register").
    const ALL_OTHERS: u32 = 0b11 << 18;
    guest.store32(LOCAL_APIC_COMMAND, ALL_OTHERS | 0x4500)?;
    guest.store32(LOCAL_APIC_COMMAND, ALL_OTHERS | 0x4600 | TRAMPOLINE >> 12)
}

#[test]
fn cpus_on_two_channels_do_not_disturb_each_other() {
    let image = guest(|guest| {
        let mut second = guest.assembler().create_label();
        let mut third = guest.assembler().create_label();
        start_other_cpus(guest, second, third)?;
        write_and_read_back(guest, PRIMARY, 2 * COMMANDS)?;
        let mut wait = guest.assembler().create_label();
        let assembler = guest.assembler();
        assembler.mov(edi, DONE)?;
        assembler.set_label(&mut wait)?;
        assembler.cmp(dword_ptr(edi), 0)?;
        assembler.je(wait)?;
        guest.print("OK\n")?;
        guest.power_off()?;

        guest.assembler().set_label(&mut second)?;
        // A label needs an instruction of its own.
        guest.assembler().nop()?;
        write_and_read_back(guest, SECONDARY, 2 * COMMANDS)?;
        guest.store32(DONE, 1)?;
        guest.stop()?;

        // CPU 2 makes others' writes be applied, by exits that have nothing to do with disks.
        guest.assembler().set_label(&mut third)?;
        guest.assembler().nop()?;
        let mut again = guest.assembler().create_label();
        guest.assembler().set_label(&mut again)?;
        guest.out8(0x70, 0x0a)?;
        let assembler = guest.assembler();
        assembler.mov(edx, 0x71)?;
        assembler.in_(al, dx)?;
        assembler.jmp(again)
    });
    for options in EXIT_OPTIONS {
        let (hda, hdc) = (spindle::qcow2(16 << 20), spindle::qcow2(16 << 20));
        let secondary = format!("{},slot=hdc", hdc.path().display());

        let outcome = Spindle::new(&image)
            .disk(hda.path())
            .arguments(&["--disk", &secondary, "--cpus", "3", "--exits", options])
            .run();

        passed(&outcome, options);
    }
}

/// A start of the bus master, and a stop right after it: no data may move then, whatever the kernel delays.
#[test]
fn a_stop_comes_after_the_start_before_it() {
    let image = guest(|guest| {
        write_and_read_back(guest, PRIMARY, 1)?;
        libata::repeat(guest, Channel::PRIMARY, COMMANDS, |guest| {
            guest.store32(PRIMARY.buffer, 0)?;
            for (port, value) in [
                (0x1f2, SECTORS as u8),
                (0x1f3, 0),
                (0x1f4, 0),
                (0x1f5, 0),
                (0x1f6, 0xe0),
            ] {
                guest.out8(port, value)?;
            }
            guest.out32(Channel::PRIMARY.bus_master + 4, Channel::PRIMARY.memory)?;
            guest.out8(0x1f7, READ_DMA)?;
            guest.out8(Channel::PRIMARY.bus_master, TO_MEMORY | START)?;
            guest.out8(Channel::PRIMARY.bus_master, TO_MEMORY)?;
            guest.expect8(Channel::PRIMARY.bus_master, START, 0, "the start bit after a stop")?;
            guest.expect8(Channel::PRIMARY.bus_master + 2, START, 0, "active after a stop")?;
            // A reset ends it, once a transfer that had begun has.
            guest.out8(0x3f6, 1 << 2)?;
            guest.out8(0x3f6, 0)?;
            guest.poll8(0x3f6, 0x80, 0)?;
            guest.expect8(Channel::PRIMARY.bus_master, START, 0, "the start bit after a reset")?;
            guest.out8(Channel::PRIMARY.bus_master + 2, 0x06)
        })?;
        guest.print("OK\n")?;
        guest.power_off()
    });
    for options in EXIT_OPTIONS {
        let disk = spindle::qcow2(16 << 20);

        let outcome = Spindle::new(&image)
            .disk(disk.path())
            .arguments(&["--exits", options])
            .run();

        passed(&outcome, options);
    }
}

/// What is latched shows at the next read, as if it had been an exit; also more of it than the kernel's ring holds.
#[test]
fn latched_writes_read_back() {
    let image = guest(|guest| {
        for value in [0x11, 0x22] {
            for port in 0x1f2..=0x1f5 {
                guest.out8(port, value)?;
                guest.expect8(port, 0xff, value, "a register that was just written")?;
            }
        }
        libata::repeat(guest, Channel::PRIMARY, 400, |guest| {
            guest.out8(0x1f2, 1)?;
            guest.out8(0x1f3, 2)
        })?;
        guest.out16(0x1f4, 0x0403)?;
        for (port, value) in (0x1f2..).zip(1..=4) {
            guest.expect8(port, 0xff, value, "the last of many writes")?;
        }
        // The bus master moves; what was latched at its old place stays, and the new place works.
        const IDE_FUNCTION: u32 = 0x8000_0000 | 1 << 11 | 1 << 8;
        guest.out32(0xc004, 0x1234_5678)?;
        guest.out32(0xcf8, IDE_FUNCTION | 0x20)?;
        guest.out32(0xcfc, 0xd001)?;
        for (port, value) in (0xd004..).zip([0x78, 0x56, 0x34, 0x12]) {
            guest.expect8(port, 0xff, value, "the table's address after a move")?;
        }
        guest.expect8(0xc004, 0xff, 0xff, "the old place")?;
        let moved = Disk {
            channel: Channel {
                bus_master: 0xd000,
                ..Channel::PRIMARY
            },
            ..PRIMARY
        };
        write_and_read_back(guest, moved, 3)?;
        guest.print("OK\n")?;
        guest.power_off()
    });
    for options in EXIT_OPTIONS {
        let disk = spindle::qcow2(16 << 20);

        let outcome = Spindle::new(&image)
            .disk(disk.path())
            .arguments(&["--exits", options])
            .run();

        passed(&outcome, options);
    }
}

/// PIO: a `rep ins` leaves the kernel once for as much as KVM hands over, and not once for each word.
#[test]
fn a_string_instruction_is_taken_as_a_slice() {
    const WORDS: u32 = 256;
    let image = guest(|guest| {
        write_and_read_back(guest, PRIMARY, 1)?;
        libata::repeat(guest, Channel::PRIMARY, COMMANDS, |guest| {
            guest.fill32(PRIMARY.buffer, WORDS / 2, 0, 0)?;
            pio_command(guest, 0x20, SECTORS as u8)?;
            let assembler = guest.assembler();
            assembler.mov(edx, 0x1f0)?;
            assembler.mov(edi, PRIMARY.buffer)?;
            assembler.mov(ecx, WORDS)?;
            assembler.cld()?;
            assembler.rep().insw()?;
            guest.expect8(0x1f7, 0xff, 0x50, "the status after PIO")?;
            guest.expect_equal32(PRIMARY.pattern, PRIMARY.buffer, WORDS / 2, "what was read by PIO")
        })?;
        // And the other way, which KVM hands over word by word.
        pio_command(guest, 0x30, PIO_WRITE_AT)?;
        let assembler = guest.assembler();
        assembler.mov(edx, 0x1f0)?;
        assembler.mov(esi, PRIMARY.pattern)?;
        assembler.mov(ecx, WORDS)?;
        assembler.rep().outsw()?;
        guest.poll8(0x3f6, 0x80, 0)?;
        guest.expect8(0x1f7, 0xff, 0x50, "the status after a PIO write")?;
        guest.print("OK\n")?;
        guest.power_off()
    });
    let disk = spindle::qcow2(16 << 20);
    let metrics = disk.path().with_file_name("metrics.json");

    let outcome = Spindle::new(&image)
        .disk(disk.path())
        .arguments(&["--metrics", metrics.to_str().expect("a plain name")])
        .run();

    passed(&outcome, "the defaults");
    let exits = port_exits(&metrics);
    let reads = exits[&("0x1f0".to_owned(), "in".to_owned())];
    assert!(
        reads < u64::from(COMMANDS * WORDS / 16),
        "{reads} exits for {COMMANDS} sectors"
    );
    let written = spindle::contents(disk.path(), usize::from(PIO_WRITE_AT) * 512, 512);
    let sector = spindle::contents(disk.path(), usize::from(SECTORS) * 512, 512);
    assert_eq!(written, sector);
}

const PIO_WRITE_AT: u8 = 0x80;

/// A PIO command for one sector, up to the point where its data can be moved.
fn pio_command(guest: &mut BareMetalGuest, opcode: u8, lba: u8) -> Result<(), IcedError> {
    for (port, value) in [
        (0x1f2, 1),
        (0x1f3, lba),
        (0x1f4, 0),
        (0x1f5, 0),
        (0x1f6, 0xe0),
        (0x1f7, opcode),
    ] {
        guest.out8(port, value)?;
    }
    guest.poll8(0x3f6, 0x88, 0x08)
}

#[test]
fn metrics_are_told_on_a_signal() {
    let image = guest(|guest| {
        guest.print("up\n")?;
        guest.echo(1)?;
        guest.power_off()
    });
    let folder = tempfile::tempdir().expect("temporary folder");
    let metrics = folder.path().join("metrics.json");
    let name = metrics.to_str().expect("a plain name");
    let mut running = Spindle::new(&image).arguments(&["--metrics", name]).start();
    running.wait_for("up\n");
    fs::remove_file(&metrics).expect("written at the start");

    running.signal(libc::SIGUSR1);
    spindle::wait_until(|| metrics.exists());

    assert!(port_exits(&metrics).contains_key(&("0x3f8".to_owned(), "out".to_owned())));
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().code, Some(128 + libc::SIGTERM));
}
