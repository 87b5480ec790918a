//! Bare-metal guests on this host's KVM: every ending, the console, and a DMA round trip through a qcow2 disk.

mod spindle;

use std::fs;
use std::process::Command;

use devices::piix4::power_management::{PM1A_CONTROL_PORT, SLEEP_TYPE_S5};
use devices::reset::{RESET_PORT, RESET_VALUE};
use guest_images::bare_metal::{BareMetalGuest, Mode, PowerOff};
use iced_x86::IcedError;

use spindle::Spindle;

/// A guest of the steps that `steps` appends.
fn guest(mode: Mode, steps: impl FnOnce(&mut BareMetalGuest) -> Result<(), IcedError>) -> Vec<u8> {
    let power_off = PowerOff::acpi(PM1A_CONTROL_PORT, SLEEP_TYPE_S5);
    let mut guest = BareMetalGuest::new(mode, power_off).expect("an assembler");
    steps(&mut guest).expect("steps that assemble");
    guest.build().expect("a guest that assembles")
}

#[test]
fn a_guest_prints_and_powers_off() {
    for mode in [Mode::Pvh, Mode::Long] {
        let image = guest(mode, |guest| {
            guest.print("hello\n")?;
            guest.power_off()
        });

        let outcome = Spindle::new(&image).run();

        assert_eq!(
            (outcome.console.as_str(), outcome.code),
            ("hello\n", Some(0)),
            "{mode:?}: {outcome:?}"
        );
    }
}

#[test]
fn a_triple_fault_is_a_crash() {
    let image = guest(Mode::Pvh, |guest| {
        guest.print("going down\n")?;
        guest.triple_fault()
    });

    let outcome = Spindle::new(&image).run();

    assert_eq!(
        (outcome.console.as_str(), outcome.code),
        ("going down\n", Some(4)),
        "{outcome:?}"
    );
    assert!(outcome.errors.contains("triple fault on CPU 0"), "{outcome:?}");
}

#[test]
fn a_reset_ends_spindle_only_when_it_must_not_reboot() {
    let image = guest(Mode::Pvh, |guest| {
        guest.print("up\n")?;
        guest.out8(RESET_PORT, RESET_VALUE)?;
        guest.stop()
    });

    let outcome = Spindle::new(&image).arguments(&["--no-reboot"]).run();

    assert_eq!(
        (outcome.console.as_str(), outcome.code),
        ("up\n", Some(3)),
        "{outcome:?}"
    );
}

#[test]
fn a_reset_reboots_into_a_machine_that_remembers_nothing_but_its_disk() {
    // The first boot finds zero in memory and on the disk, marks both and resets; the second finds the disk's mark only.
    const MARK: u32 = 0x30_0000;
    let disk = spindle::qcow2(1 << 20);
    let image = guest(Mode::Pvh, |guest| {
        ide::prepare(guest)?;
        guest.print("memory ")?;
        print_flag(guest, MARK)?;
        ide::read(guest, 0, 1, ide::BUFFER)?;
        guest.print(", disk ")?;
        print_flag(guest, ide::BUFFER)?;
        guest.print("\n")?;
        let mut second_boot = guest.assembler().create_label();
        branch_if_set(guest, ide::BUFFER, second_boot)?;
        guest.store32(MARK, 1)?;
        guest.store32(ide::BUFFER, 1)?;
        ide::write(guest, 0, 1, ide::BUFFER)?;
        guest.out8(RESET_PORT, RESET_VALUE)?;
        guest.stop()?;
        guest.assembler().set_label(&mut second_boot)?;
        guest.power_off()
    });

    let outcome = Spindle::new(&image).disk(disk.path()).run();

    assert_eq!(outcome.console, "memory 0, disk 0\nmemory 0, disk 1\n", "{outcome:?}");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

/// Prints 0 or 1: whether four bytes of memory are not zero.
fn print_flag(guest: &mut BareMetalGuest, address: u32) -> Result<(), IcedError> {
    let mut set = guest.assembler().create_label();
    let mut done = guest.assembler().create_label();
    branch_if_set(guest, address, set)?;
    guest.print("0")?;
    guest.assembler().jmp(done)?;
    guest.assembler().set_label(&mut set)?;
    guest.print("1")?;
    guest.assembler().set_label(&mut done)
}

fn branch_if_set(
    guest: &mut BareMetalGuest,
    address: u32,
    target: iced_x86::code_asm::CodeLabel,
) -> Result<(), IcedError> {
    use iced_x86::code_asm::{dword_ptr, eax, edi};
    let assembler = guest.assembler();
    assembler.mov(edi, address)?;
    assembler.mov(eax, dword_ptr(edi))?;
    assembler.test(eax, eax)?;
    assembler.jne(target)
}

#[test]
fn piped_input_reaches_the_guest_without_loss() {
    // More than the FIFO, the read chunk and a pipe's page take at once.
    let input: String = (0..700).map(|line| format!("line {line:>4}\n")).collect();
    let image = guest(Mode::Pvh, |guest| {
        guest.echo(input.len() as u32)?;
        guest.power_off()
    });

    let outcome = Spindle::new(&image).input(&input).run();

    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.console == input, "{outcome:?}");
}

#[test]
fn the_console_can_be_a_file() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let log = directory.path().join("console.log");
    let image = guest(Mode::Pvh, |guest| {
        guest.print("to the file\n")?;
        guest.power_off()
    });

    let outcome = Spindle::new(&image)
        .arguments(&["--console", &format!("file:{}", log.display())])
        .run();

    assert_eq!((outcome.console.as_str(), outcome.code), ("", Some(0)), "{outcome:?}");
    assert_eq!(fs::read_to_string(log).expect("the log"), "to the file\n");
}

#[test]
fn a_signal_stops_a_guest_that_would_spin_for_good() {
    let image = guest(Mode::Pvh, |guest| {
        guest.print("spinning\n")?;
        guest.stop()
    });

    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let mut running = Spindle::new(&image).arguments(&["--cpus", "2"]).start();
        running.wait_for("spinning\n");
        running.signal(signal);
        let outcome = running.finish();

        assert_eq!(outcome.code, Some(code), "{outcome:?}");
    }
}

#[test]
fn dma_writes_reach_a_qcow2_disk_and_read_back() {
    const SECTORS: u8 = 64;
    const DWORDS: u32 = SECTORS as u32 * 512 / 4;
    let disk = spindle::qcow2(16 << 20);
    let image = guest(Mode::Pvh, |guest| {
        ide::prepare(guest)?;
        guest.fill32(ide::BUFFER, DWORDS, 0x0403_0201, 0x0101_0107)?;
        ide::write(guest, 1000, SECTORS, ide::BUFFER)?;
        ide::flush(guest)?;
        ide::read(guest, 1000, SECTORS, ide::SECOND_BUFFER)?;
        guest.expect_equal32(
            ide::BUFFER,
            ide::SECOND_BUFFER,
            DWORDS,
            "what was read is not what was written",
        )?;
        guest.print("OK\n")?;
        guest.power_off()
    });

    let outcome = Spindle::new(&image).disk(disk.path()).run();

    assert_eq!(
        (outcome.console.as_str(), outcome.code),
        ("OK\n", Some(0)),
        "{outcome:?}"
    );
    println!("start to exit: {:?}", outcome.wall);
    let check = Command::new("qemu-img")
        .arg("check")
        .arg(disk.path())
        .output()
        .expect("qemu-img runs");
    assert!(check.status.success(), "{check:?}");
    let expected: Vec<u8> = (0..DWORDS)
        .flat_map(|index| {
            0x0403_0201u32
                .wrapping_add(index.wrapping_mul(0x0101_0107))
                .to_le_bytes()
        })
        .collect();
    assert!(spindle::contents(disk.path(), 1000 * 512, expected.len()) == expected);
}

/// Disk commands by bus-master DMA, polled. Sources: ATA8-ACS; "Programming Interface for Bus Master IDE Controller".
mod ide {
    use super::*;

    /// Where DMA goes to and comes from; 64 KiB each, aligned to 64 KiB as a PRD wants it.
    pub const BUFFER: u32 = 0x40_0000;
    pub const SECOND_BUFFER: u32 = 0x41_0000;

    const PRD_TABLE: u32 = 0x20_0000;
    const END_OF_TABLE: u32 = 1 << 31;
    const BUS_MASTER: u16 = 0xc000;
    const ALTERNATE_STATUS: u16 = 0x3f6;
    const COMMAND: u16 = 0x1f7;
    const NO_INTERRUPTS: u8 = 1 << 1;
    const BUSY_OR_DATA_REQUEST: u8 = 0x88;
    const FAULT_OR_ERROR: u8 = 0x21;

    /// Lets the controller decode its bus-master ports and be a master, and turns the drive's interrupt off.
    pub fn prepare(guest: &mut BareMetalGuest) -> Result<(), IcedError> {
        const IDE_FUNCTION: u32 = 0x8000_0000 | 1 << 11 | 1 << 8;
        const IO_AND_MASTER: u16 = 0b101;
        guest.out32(0xcf8, IDE_FUNCTION | 0x20)?;
        guest.out32(0xcfc, u32::from(BUS_MASTER) | 1)?;
        guest.out32(0xcf8, IDE_FUNCTION | 0x04)?;
        guest.out16(0xcfc, IO_AND_MASTER)?;
        guest.out8(ALTERNATE_STATUS, NO_INTERRUPTS)
    }

    pub fn read(guest: &mut BareMetalGuest, lba: u32, sectors: u8, buffer: u32) -> Result<(), IcedError> {
        transfer(guest, 0xc8, 1 << 3, lba, sectors, buffer)
    }

    pub fn write(guest: &mut BareMetalGuest, lba: u32, sectors: u8, buffer: u32) -> Result<(), IcedError> {
        transfer(guest, 0xca, 0, lba, sectors, buffer)
    }

    pub fn flush(guest: &mut BareMetalGuest) -> Result<(), IcedError> {
        guest.out8(COMMAND, 0xe7)?;
        guest.poll8(ALTERNATE_STATUS, BUSY_OR_DATA_REQUEST, 0)?;
        guest.expect8(COMMAND, FAULT_OR_ERROR, 0, "flush")
    }

    fn transfer(
        guest: &mut BareMetalGuest,
        command: u8,
        direction: u8,
        lba: u32,
        sectors: u8,
        buffer: u32,
    ) -> Result<(), IcedError> {
        const START: u8 = 1;
        const CLEAR_ERROR_AND_INTERRUPT: u8 = 0b110;
        const ACTIVE_OR_ERROR: u8 = 0b11;
        const MASTER_LBA: u8 = 0xe0;
        guest.store32(PRD_TABLE, buffer)?;
        guest.store32(PRD_TABLE + 4, ((u32::from(sectors) * 512) & 0xffff) | END_OF_TABLE)?;
        guest.out32(BUS_MASTER + 4, PRD_TABLE)?;
        guest.out8(BUS_MASTER, direction)?;
        guest.out8(BUS_MASTER + 2, CLEAR_ERROR_AND_INTERRUPT)?;
        let [low, middle, high, top] = lba.to_le_bytes();
        guest.out8(0x1f6, MASTER_LBA | top & 0xf)?;
        guest.poll8(ALTERNATE_STATUS, BUSY_OR_DATA_REQUEST, 0)?;
        for (port, value) in [(0x1f2, sectors), (0x1f3, low), (0x1f4, middle), (0x1f5, high)] {
            guest.out8(port, value)?;
        }
        guest.out8(COMMAND, command)?;
        guest.out8(BUS_MASTER, direction | START)?;
        guest.poll8(ALTERNATE_STATUS, BUSY_OR_DATA_REQUEST, 0)?;
        guest.out8(BUS_MASTER, direction)?;
        guest.expect8(COMMAND, FAULT_OR_ERROR, 0, "ATA status after DMA")?;
        guest.expect8(BUS_MASTER + 2, ACTIVE_OR_ERROR, 0, "bus master status after DMA")
    }
}
