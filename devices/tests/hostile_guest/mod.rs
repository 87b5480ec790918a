//! A guest, a user and a saved state that do anything at all, as a sequence of bytes says: for random tests and for fuzzing.
//!
//! Whatever happens, the devices must not panic, loop for ever, or keep a drive busy that has nothing to do.

use std::sync::Arc;
use std::time::Duration;

use devices::bus::PortBus;
use devices::chipset::{CdRomConfig, Chipset, ChipsetConfig, DriveConfig, Plugged};
use devices::clock::ManualClock;
use devices::ide::cd_rom_handle::Medium;
use devices::ide::controller::{ChannelModes, Chip, IdeOptions};
use devices::ide::error_policy::ErrorPolicy;
use devices::interrupt::CountingLine;
use devices::power::PowerControl;
use devices::serial::Serial;
use disk::{DiskError, MemoryDisk};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory: little, so that wrong addresses are found quickly.
const MEMORY: usize = 0x20000;
/// Where PRD tables mostly are.
const TABLE: u32 = 0x1000;
/// Sectors of the disks.
const SECTORS: usize = 300;

const PORTS: [u16; 26] = [
    0x1f0, 0x1f1, 0x1f2, 0x1f3, 0x1f4, 0x1f5, 0x1f6, 0x1f7, 0x3f6, 0x170, 0x171, 0x172, 0x173, 0x174, 0x175, 0x176,
    0x177, 0x376, 0xc000, 0xc002, 0xc004, 0xc008, 0xc00a, 0xc00c, 0xc010, 0xc01a,
];

/// Opcodes that lead somewhere, tried more often than others.
const OPCODES: [u8; 48] = [
    0x06, 0x08, 0x20, 0x24, 0x25, 0x27, 0x29, 0x2f, 0x30, 0x34, 0x35, 0x37, 0x39, 0x3d, 0x3f, 0x40, 0x42, 0x45, 0x47,
    0x90, 0x91, 0xa0, 0xa1, 0xb0, 0xb1, 0xc0, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xce, 0xe0, 0xe3, 0xe4, 0xe5, 0xe7, 0xe8,
    0xec, 0xef, 0xf1, 0xf2, 0xf3, 0xf4, 0xf6, 0xf8, 0xf9, 0x87,
];

struct Nobody;

impl PowerControl for Nobody {
    fn power_off(&self) {}

    fn reset(&self) {}
}

/// Bytes that say what to do. When they are used up there is nothing more to do.
pub struct Script<'a> {
    bytes: &'a [u8],
}

impl<'a> Script<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What is not used up yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else {
            return 0;
        };
        self.bytes = rest;
        *first
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }
}

/// What is plugged in, and how the controller is built.
#[derive(Clone, Copy)]
pub struct Layout {
    /// 0: nothing, 1: a disk, 2: a CompactFlash card, 3: a CD-ROM drive.
    slots: [u8; 4],
    chip: Chip,
    modes: ChannelModes,
    policy: ErrorPolicy,
}

impl Layout {
    pub fn read(script: &mut Script<'_>) -> Self {
        let slots = std::array::from_fn(|_| [1, 1, 2, 3, 3, 0][script.below(6)]);
        let flags = script.u8();
        let write = ["report", "stop", "enospc", "ignore"][usize::from(flags & 3)];
        let read = ["report", "stop", "ignore"][usize::from(flags >> 2 & 3) % 3];
        Self {
            slots,
            chip: if flags & 0x10 == 0 { Chip::Piix4 } else { Chip::Piix3 },
            modes: [
                ChannelModes::Compatibility,
                ChannelModes::Switchable,
                ChannelModes::Native,
            ][usize::from(flags >> 5) % 3],
            policy: ErrorPolicy {
                write: write.parse().expect("a policy"),
                read: read.parse().expect("a policy"),
            },
        }
    }
}

/// A machine and the disks in it.
pub struct World {
    layout: Layout,
    bus: Arc<PortBus>,
    memory: GuestMemoryMmap,
    lines: [Arc<CountingLine>; 3],
    pub disks: [Option<Arc<MemoryDisk>>; 4],
    clock: Arc<ManualClock>,
    pub chipset: Chipset,
}

/// What a disk holds at first.
fn content(slot: usize) -> Vec<u8> {
    (0..SECTORS * 512)
        .map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(7) ^ slot as u8)
        .collect()
}

impl World {
    pub fn new(layout: Layout) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("anonymous memory");
        let disks = std::array::from_fn(|slot| match layout.slots[slot] {
            0 => None,
            kind => Some(Arc::new(MemoryDisk::new(content(slot), kind == 3))),
        });
        Self::build(layout, memory, disks, Arc::default())
    }

    fn build(
        layout: Layout,
        memory: GuestMemoryMmap,
        disks: [Option<Arc<MemoryDisk>>; 4],
        clock: Arc<ManualClock>,
    ) -> Self {
        let bus = Arc::new(PortBus::default());
        let lines = [(); 3].map(|()| Arc::new(CountingLine::default()));
        let drives = std::array::from_fn(|slot| {
            let disk = disks[slot].clone()?;
            if layout.slots[slot] == 3 {
                return Some(Plugged::CdRom(CdRomConfig::new(Medium::new(disk).ok(), slot)));
            }
            let mut config = DriveConfig::new(disk, slot);
            config.clock = clock.clone();
            config.compact_flash = layout.slots[slot] == 2;
            config.error_policy = layout.policy;
            Some(Plugged::Disk(config))
        });
        let serial = Serial::new(
            Arc::new(CountingLine::default()),
            Box::new(std::io::sink()),
            Box::new(|| {}),
        );
        let chipset = Chipset::new(ChipsetConfig {
            memory: memory.clone(),
            bus: bus.clone(),
            ide_lines: [lines[0].clone(), lines[1].clone()],
            ide: IdeOptions {
                chip: layout.chip,
                modes: layout.modes,
                pci_line: Some(lines[2].clone()),
            },
            drives,
            serial,
            power: Arc::new(Nobody),
        })
        .expect("a valid machine");
        chipset.observe_stops(Box::new(|_| {}));
        Self {
            layout,
            bus,
            memory,
            lines,
            disks,
            clock,
            chipset,
        }
    }

    /// Saves the controller, and builds another machine around the same disks and memory that goes on from there. What was at
    /// the disks is lost with the old one. `tamper` changes what was saved; the new machine may then refuse it.
    pub fn rebuilt(&self, tamper: impl FnOnce(String) -> String) -> Option<Self> {
        let saved = serde_json::to_string(&self.chipset.save_ide()).expect("a state that can be written");
        let saved = serde_json::from_str(&tamper(saved)).ok()?;
        let world = Self::build(self.layout, self.memory.clone(), self.disks.clone(), self.clock.clone());
        let waiting = self
            .disks
            .each_ref()
            .map(|disk| disk.as_ref().map_or(0, |disk| disk.waiting()));
        world.chipset.restore_ide(saved).ok()?;
        // The requests that the new machine made again stay, those of the old one go.
        for (disk, waiting) in self.disks.iter().zip(waiting) {
            if let Some(disk) = disk {
                disk.abandon(waiting);
            }
        }
        Some(world)
    }

    fn out(&self, port: u16, size: usize, data: &[u8]) {
        self.bus.write(port, size, data);
    }

    fn outl(&self, port: u16, value: u32) {
        self.out(port, 4, &value.to_le_bytes());
    }

    fn configure(&self, offset: u32, value: u32) {
        self.outl(0xcf8, 1 << 31 | 1 << 11 | 1 << 8 | offset & 0xfc);
        self.outl(0xcfc, value);
    }

    fn disk(&self, script: &mut Script<'_>) -> Option<&MemoryDisk> {
        self.disks[script.below(4)].as_deref()
    }

    /// Completes what the disks were asked for. Their own work can be endless only if the devices' is.
    pub fn settle(&self) {
        for _ in 0..100_000 {
            if self.disks.iter().flatten().all(|disk| !disk.run_one()) {
                return;
            }
        }
        panic!("the drives never come to an end");
    }

    /// The next action. Returns what the guest learns from it.
    pub fn act(&self, script: &mut Script<'_>) -> Vec<u8> {
        let action = script.u8();
        match action % 16 {
            0..4 => {
                let port = PORTS[script.below(PORTS.len())];
                let size = [1, 1, 2, 4][usize::from(action >> 6)];
                let value = script.u32().to_le_bytes();
                self.out(port, size, &value[..size]);
            }
            4 => {
                let size = [1, 1, 2, 4][usize::from(action >> 6)];
                let mut data = vec![0; size];
                self.bus.read(PORTS[script.below(PORTS.len())], size, &mut data);
                return data;
            }
            5 => {
                // A whole block, or some of it, either way.
                let port = [0x1f0, 0x170][script.below(2)];
                let mut data = vec![script.u8(); [2, 12, 512, 600][usize::from(action >> 6)]];
                if action & 0x10 == 0 {
                    self.bus.read(port, 2, &mut data);
                    return data;
                }
                let head = script.u32().to_le_bytes();
                data[..2].copy_from_slice(&head[..2]);
                self.out(port, 2, &data);
            }
            6..9 => {
                // A command with everything that it needs.
                let channel = script.below(2);
                let (command, device) = ([0x1f0u16, 0x170][channel], script.u8());
                let opcode = OPCODES[script.below(OPCODES.len())];
                self.out(command + 6, 1, &[device & 0xf0]);
                if action & 0x10 != 0 {
                    for register in 1..6 {
                        self.out(command + register, 1, &[0]);
                    }
                }
                for register in 1..6 {
                    self.out(command + register, 1, &[script.u8()]);
                }
                self.out(command + 7, 1, &[opcode]);
            }
            9 => {
                // The bus master, from the table to the start.
                let ports = 0xc000 + 8 * script.below(2) as u16;
                self.outl(ports + 4, TABLE);
                self.out(ports, 1, &[script.u8() & 8]);
                self.out(ports, 1, &[script.u8() & 8 | 1]);
            }
            10 => {
                let offset = [0x04, 0x08, 0x10, 0x20, 0x40, 0x48, 0x3c][script.below(7)];
                // Mostly what keeps the ports where they are.
                let value = if action & 0x70 == 0 { script.u32() } else { 0x8000_8005 };
                self.configure(offset, value);
                self.configure(0x20, 0xc001);
            }
            11 => {
                self.disk(script).map(MemoryDisk::run_one);
            }
            12 => self.settle(),
            13 => {
                let errno = [5, 28][script.below(2)];
                let sector = u64::from(script.u8());
                if let Some(disk) = self.disk(script) {
                    if action & 0x10 == 0 {
                        disk.spoil(sector, errno);
                    } else {
                        disk.fail_next(DiskError::Io {
                            operation: "anything",
                            offset: 0,
                            error: std::io::Error::from_raw_os_error(errno),
                        });
                    }
                }
            }
            14 => {
                let at = TABLE + 8 * script.below(16) as u32;
                let region = [script.u32() % (MEMORY as u32 + 64), script.u32() & 0x8000_3fff];
                for (index, word) in region.into_iter().enumerate() {
                    self.memory
                        .write_obj(word.to_le(), GuestAddress(u64::from(at) + 4 * index as u64))
                        .expect("in memory");
                }
            }
            _ => match action >> 4 {
                0 | 1 => self.clock.advance(Duration::from_secs(u64::from(script.u8()) * 600)),
                2 | 3 => return vec![self.chipset.resume() as u8],
                4 => self.chipset.reset_ide(),
                5 => {
                    return self
                        .chipset
                        .statistics()
                        .iter()
                        .map(|drive| u8::from(drive.is_some()))
                        .collect();
                }
                _ => {
                    let slot = script.below(4);
                    let size = SECTORS - script.below(100);
                    if let Some(disk) = &self.disks[slot]
                        && self.layout.slots[slot] != 3
                    {
                        disk.resize(size * 512);
                    }
                }
            },
        }
        Vec::new()
    }

    /// What is to be seen without changing anything: interrupts, alternate status, memory, disks.
    pub fn view(&self) -> (Vec<bool>, Vec<u8>, Vec<u8>, Vec<usize>) {
        let lines = self.lines.iter().map(|line| line.is_high()).collect();
        let mut status = vec![0; 4];
        for (byte, port) in status.iter_mut().zip([0x3f6, 0x376, 0xc002, 0xc00a]) {
            self.bus.read(port, 1, std::slice::from_mut(byte));
        }
        let mut memory = vec![0; MEMORY];
        self.memory
            .read_slice(&mut memory, GuestAddress(0))
            .expect("all of memory");
        let waiting = self.disks.iter().flatten().map(|disk| disk.waiting()).collect();
        (lines, status, memory, waiting)
    }

    /// The host's hand on a CD-ROM drive.
    fn handle_media(&self, script: &mut Script<'_>) {
        let slot = script.below(4);
        let Some(drive) = self.chipset.cd_rom(slot) else { return };
        match script.below(3) {
            0 => {
                drive.request_eject();
            }
            1 => {
                drive.press_button();
                drive.force_out();
            }
            _ => {
                let medium = self.disks[slot].clone().and_then(|disk| Medium::new(disk).ok());
                if let Some(medium) = medium {
                    // A locked tray stays as it is.
                    drive.insert(medium).ok();
                }
            }
        }
    }

    /// A reset ends everything: every drive is at rest.
    pub fn recover(&self) {
        self.settle();
        self.chipset.resume();
        self.settle();
        self.chipset.reset_ide();
        self.settle();
        let native = self.layout.modes == ChannelModes::Native;
        let ports = if native {
            [(0xc010, 0xc01a), (0xc020, 0xc02a)]
        } else {
            [(0x1f0, 0x3f6), (0x170, 0x376)]
        };
        for (slot, kind) in self.layout.slots.into_iter().enumerate() {
            let (command, control) = ports[slot / 2];
            self.out(control, 1, &[4]);
            self.out(control, 1, &[0]);
            self.out(command + 6, 1, &[0xa0 | (slot as u8 & 1) << 4]);
            let mut status = [0];
            self.bus.read(control, 1, &mut status);
            match kind {
                0 => {}
                // A packet device is not ready before it is asked.
                3 => assert_eq!(status[0] & 0x88, 0, "slot {slot}"),
                _ => assert_eq!(status[0], 0x50, "slot {slot}"),
            }
        }
    }
}

/// Changes some of the characters of a saved state.
fn tampered(saved: String, script: &mut Script<'_>) -> String {
    let mut bytes = saved.into_bytes();
    for _ in 0..1 + script.below(4) {
        let start = script.u32() as usize % bytes.len();
        let digit = b'0' + script.u8() % 10;
        // The next number from there on.
        if let Some(at) = (start..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) {
            bytes[at] = digit;
        }
    }
    String::from_utf8(bytes).expect("still ASCII")
}

/// Everything that the bytes say.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut world = World::new(Layout::read(&mut script));
    while !script.is_empty() {
        let action = script.u8();
        match action {
            0xf0..=0xf7 => {
                if let Some(next) = world.rebuilt(|saved| saved) {
                    world = next;
                } else {
                    panic!("a state that was saved cannot be restored");
                }
            }
            0xf8..=0xfb => {
                if let Some(next) = world.rebuilt(|saved| tampered(saved, &mut script)) {
                    world = next;
                }
            }
            0xfc..=0xff => world.handle_media(&mut script),
            _ => {
                world.act(&mut script);
            }
        }
    }
    world.recover();
}
