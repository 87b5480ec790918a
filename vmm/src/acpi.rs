//! The ACPI tables, built without firmware: what a kernel needs to route interrupts, to find its CPUs, to power off
//! and to reset. Source: ACPI specification 6.5, chapters 5 ("ACPI Software Programming Model"), 6 ("Device
//! Configuration") and 19 ("ASL Reference").

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, PackageBuilder, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, facs::FACS};
use devices::piix4::power_management::{PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, SCI_GSI, SLEEP_TYPE_S5};
use devices::reset::{RESET_PORT, RESET_VALUE};
use devices::rtc::{CENTURY_REGISTER, CMOS_PORTS};
use devices::serial::{COM1_GSI, COM1_PORTS};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{Immutable, IntoBytes};

use crate::memory::layout;

const OEM_ID: [u8; 6] = *b"SPNDLE";
const OEM_TABLE_ID: [u8; 8] = *b"SPINDLE ";
const OEM_REVISION: u32 = 1;

/// The length of the header that all tables but RSDP and FACS begin with, in bytes.
const HEADER_LENGTH: u32 = 36;

/// FADT, IA-PC boot architecture flags (5.2.9.3): there are devices on the ISA bus; there is no VGA; no MSI.
/// The keyboard controller only resets, which is not what bit 1 ("8042") promises.
const BOOT_ARCHITECTURE: u16 = LEGACY_DEVICES | NO_VGA | NO_MSI;
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;
const NO_MSI: u16 = 1 << 3;

/// Latencies in microseconds that mean: no C2, no C3 (5.2.9, P_LVL2_LAT and P_LVL3_LAT).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// PCI interrupt pins A to D arrive at these inputs of the I/O APIC, one after the other.
const FIRST_PCI_GSI: u32 = 16;

/// The input of the I/O APIC at which pin `pin` (0 for INTA#) of slot `slot` arrives, swizzled so that neighbours do not share.
pub const fn pci_gsi(slot: u32, pin: u32) -> u32 {
    FIRST_PCI_GSI + (slot + pin) % 4
}

/// The tables do not fit into their place.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// Too long.
    #[error("The ACPI tables take {length} bytes; {room} are reserved for them")]
    TooLong {
        /// Bytes needed.
        length: u64,
        /// Bytes reserved.
        room: u64,
    },
    /// Guest memory refused them.
    #[error("Cannot write the ACPI tables to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes the tables for `cpus` CPUs into the BIOS area of guest memory, the RSDP first. Returns its address.
pub fn write_tables(memory: &GuestMemoryMmap, cpus: u8) -> Result<GuestAddress, AcpiError> {
    let tables = build(layout::RSDP, cpus);
    let room = layout::HIGH_RAM.0 - layout::RSDP.0;
    let length = tables.len() as u64;
    if length > room {
        return Err(AcpiError::TooLong { length, room });
    }
    memory.write_slice(&tables, layout::RSDP)?;
    Ok(layout::RSDP)
}

/// All tables as they lie in memory from `base` on, the RSDP at its start.
fn build(base: GuestAddress, cpus: u8) -> Vec<u8> {
    // Tables refer to those before them, so the RSDP comes last and takes the room that was left for it.
    let mut image = vec![0; Rsdp::len()];
    let facs = place(&mut image, base, &bytes_of(&FACS::new()));
    let dsdt = place(&mut image, base, dsdt(cpus).as_slice());
    let fadt = place(&mut image, base, &fadt(facs, dsdt));
    let madt = place(&mut image, base, madt(cpus).as_slice());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&mut image, base, &bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    image[..rsdp.len()].copy_from_slice(&rsdp);
    image
}

/// Appends a table, aligned to 64 bytes as the FACS must be. Returns its guest-physical address.
fn place(image: &mut Vec<u8>, base: GuestAddress, table: &[u8]) -> u64 {
    image.resize(image.len().next_multiple_of(64), 0);
    let address = base.0 + image.len() as u64;
    image.extend_from_slice(table);
    address
}

/// AML that is encoded already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Encoded {
    Encoded(bytes_of(&Device::new(Path::new(name), children)))
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// An I/O port register block of `width` bytes.
fn port_register(port: u16, width: u8, access: AccessSize) -> GAS {
    GAS::new(GasSpace::SystemIo, width * 8, 0, access, u64::from(port))
}

fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // "Control method": that is, not in the fixed registers, and there is no such object either.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    // No SMI command port: the machine is in ACPI mode from the start, and SCI_EN reads as set.
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = port_register(PM1A_EVENT_PORT, 4, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port_register(PM1A_CONTROL_PORT, 2, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port_register(PM_TIMER_PORT, 4, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY_REGISTER;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port_register(RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    bytes_of(&fadt.finalize())
}

/// Interrupt source override (5.2.12.5): where an ISA interrupt arrives, and how, if not as usual.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct InterruptSourceOverride {
    structure: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: [u8; 4],
    flags: [u8; 2],
}

/// Local APIC NMI (5.2.12.7): the pin that NMIs arrive at, on all processors.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalApicNmi {
    structure: u8,
    length: u8,
    processor: u8,
    flags: [u8; 2],
    lint: u8,
}

impl InterruptSourceOverride {
    fn new(source: u8, gsi: u32, flags: u16) -> Self {
        Self {
            structure: 2,
            length: 10,
            bus: 0,
            source,
            gsi: gsi.to_le_bytes(),
            flags: flags.to_le_bytes(),
        }
    }
}

fn madt(cpus: u8) -> Sdt {
    /// There is a pair of 8259s, too (5.2.12, "Multiple APIC Flags").
    const PCAT_COMPAT: u32 = 1;
    /// Polarity "active high", trigger mode "level" (5.2.12.5, "MPS INTI Flags").
    const LEVEL_HIGH: u16 = 0b1101;

    let mut madt = Sdt::new(*b"APIC", HEADER_LENGTH, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&(layout::LOCAL_APIC.0 as u32).to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for cpu in 0..cpus {
        madt.append_slice(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).as_bytes());
    }
    madt.append_slice(IoApic::new(0, layout::IO_APIC.0 as u32, 0).as_bytes());
    // The PIT's output is wired to input 2, as on every PC.
    madt.append_slice(InterruptSourceOverride::new(0, 2, 0).as_bytes());
    madt.append_slice(InterruptSourceOverride::new(SCI_GSI as u8, SCI_GSI, LEVEL_HIGH).as_bytes());
    let nmi = LocalApicNmi {
        structure: 4,
        length: 6,
        processor: 0xff,
        flags: [0, 0],
        lint: 1,
    };
    madt.append_slice(nmi.as_bytes());
    madt
}

fn dsdt(cpus: u8) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LENGTH, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes_of(&Name::new(
        Path::new("_S5_"),
        // PM1a and PM1b; the others are reserved (7.4.2, "\_Sx").
        &Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]),
    )));
    dsdt.append_slice(&pci_host_bridge());
    dsdt.append_slice(&processors(cpus));
    dsdt
}

/// The root of the PCI bus: the windows that it decodes, where its interrupts go, and the ISA bus below it.
fn pci_host_bridge() -> Vec<u8> {
    let buses = AddressSpace::new_bus_number(0u16, 0xff);
    // The configuration mechanism is the bridge's own and cannot be handed out.
    let configuration = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports_below = AddressSpace::new_io(0u16, 0xcf7, None);
    let ports_above = AddressSpace::new_io(0xd00u16, 0xffff, None);
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_HOLE.0 as u32,
        layout::IO_APIC.0 as u32 - 1,
        None,
    );
    let windows = ResourceTemplate::new(vec![&buses, &configuration, &ports_below, &ports_above, &memory]);
    let bridge = device(
        "PCI0",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_CRS"), &windows),
            &Name::new(Path::new("_PRT"), &interrupt_routing()),
            &isa_bridge(),
        ],
    );
    bytes_of(&Scope::new(Path::new("_SB_"), vec![&bridge]))
}

/// Interrupts of PCI slots 1 to 31 (6.2.13, "_PRT").
fn interrupt_routing() -> PackageBuilder {
    let mut routing = PackageBuilder::new();
    for slot in 1..32u32 {
        for pin in 0..4u32 {
            let all_functions = slot << 16 | 0xffff;
            let gsi = pci_gsi(slot, pin);
            routing.add_element(&Package::new(vec![&all_functions, &(pin as u8), &0u8, &gsi]));
        }
    }
    routing
}

fn isa_bridge() -> Encoded {
    let com1_ports = IO::new(*COM1_PORTS.start(), *COM1_PORTS.start(), 1, 8);
    let com1_interrupt = Interrupt::new(true, true, false, false, COM1_GSI);
    let com1_resources = ResourceTemplate::new(vec![&com1_ports, &com1_interrupt]);
    let com1 = device(
        "COM1",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &1u8),
            &Name::new(Path::new("_CRS"), &com1_resources),
        ],
    );
    let rtc_ports = IO::new(*CMOS_PORTS.start(), *CMOS_PORTS.start(), 1, 2);
    let rtc_resources = ResourceTemplate::new(vec![&rtc_ports]);
    let rtc = device(
        "RTC_",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &rtc_resources),
        ],
    );
    device(
        "ISA_",
        vec![&Name::new(Path::new("_ADR"), &0x0001_0000u32), &com1, &rtc],
    )
}

/// The processor objects that the MADT's entries are paired with by _UID (8.4, "Declaring Processors").
fn processors(cpus: u8) -> Vec<u8> {
    let processor = |cpu: u8| {
        device(
            &format!("C0{cpu:02X}"),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0007"),
                &Name::new(Path::new("_UID"), &cpu),
            ],
        )
    };
    let devices: Vec<u8> = (0..cpus).flat_map(|cpu| processor(cpu).0).collect();
    Scope::raw(Path::new("_SB_"), devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: GuestAddress = layout::RSDP;

    fn u32_at(image: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64_at(image: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes"))
    }

    /// The table at a guest-physical address, its length and sum checked.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let start = (address - BASE.0) as usize;
        let length = u32_at(image, start + 4) as usize;
        let table = &image[start..start + length];
        if &table[..4] != b"FACS" {
            let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{:?}", &table[..4]);
        }
        table
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        for cpus in [1, 2, 255] {
            let image = build(BASE, cpus);
            assert!(image.len() as u64 <= layout::HIGH_RAM.0 - BASE.0, "{cpus} CPUs");
            assert_eq!(&image[..8], b"RSD PTR ");
            for length in [20, 36] {
                let sum = image[..length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                assert_eq!(sum, 0, "first {length} bytes of the RSDP");
            }
            let xsdt = table(&image, u64_at(&image, 24));
            assert_eq!(&xsdt[..4], b"XSDT");
            let fadt = table(&image, u64_at(xsdt, 36));
            assert_eq!(&fadt[..4], b"FACP");
            let facs = u32_at(fadt, 36);
            assert_eq!(facs % 64, 0);
            assert_eq!(&table(&image, u64::from(facs))[..4], b"FACS");
            assert_eq!(&table(&image, u64::from(u32_at(fadt, 40)))[..4], b"DSDT");
            let madt = table(&image, u64_at(xsdt, 44));
            assert_eq!(&madt[..4], b"APIC");
            let local_apics = structures(madt).iter().filter(|structure| structure[0] == 0).count();
            assert_eq!(local_apics, usize::from(cpus));
        }
    }

    /// The structures behind a MADT's fixed part.
    fn structures(madt: &[u8]) -> Vec<&[u8]> {
        let mut rest = &madt[44..];
        let mut found = Vec::new();
        while let [_, length, ..] = rest {
            let (structure, behind) = rest.split_at(usize::from(*length));
            found.push(structure);
            rest = behind;
        }
        found
    }

    #[test]
    fn the_timer_is_redirected_and_the_sci_is_level_triggered() {
        let madt = madt(1);
        let overrides: Vec<&[u8]> = structures(madt.as_slice())
            .into_iter()
            .filter(|structure| structure[0] == 2)
            .collect();
        assert_eq!(
            overrides,
            [
                &[2u8, 10, 0, 0, 2, 0, 0, 0, 0, 0][..],
                &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0][..]
            ]
        );
    }

    #[test]
    fn the_rsdp_lies_where_an_os_searches_for_it() {
        let memory = crate::memory::allocate(crate::memory::MemorySize::MINIMUM, None).expect("memory");
        let rsdp = write_tables(&memory, 2).expect("room");
        let mut signature = [0; 8];
        memory.read_slice(&mut signature, rsdp).expect("in memory");
        assert_eq!(&signature, b"RSD PTR ");
        // 5.2.5.1: on a 16-byte boundary between 0xe0000 and 0xfffff.
        assert!(rsdp.0.is_multiple_of(16) && (0xe_0000..0x10_0000).contains(&rsdp.0));
    }
}
