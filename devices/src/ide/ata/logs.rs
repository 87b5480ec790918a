//! General purpose logging: READ LOG EXT, READ LOG DMA EXT and WRITE LOG EXT (ATA8-ACS, 7.23 and 7.73; annex A), and which
//! logs there are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::Protocol;
use super::payload::Payload;
use super::phase::Dma;
use super::{Drive, Failure, SECTOR, Step};

/// Log addresses.
pub(super) mod address {
    pub const DIRECTORY: u8 = 0x00;
    pub const SUMMARY_ERRORS: u8 = 0x01;
    pub const EXTENDED_ERRORS: u8 = 0x03;
    pub const STATISTICS: u8 = 0x04;
    pub const SELF_TESTS: u8 = 0x06;
    pub const EXTENDED_SELF_TESTS: u8 = 0x07;
    pub const IDENTIFY: u8 = 0x30;
    pub const FIRST_HOST: u8 = 0x80;
    pub const LAST_HOST: u8 = 0x9f;
}

/// Pages of each of the host's logs.
const HOST_PAGES: u16 = 16;

/// The host's own logs: the pages that it wrote, by log address and page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostLogs(BTreeMap<u16, Vec<u8>>);

impl HostLogs {
    fn key(address: u8, page: u16) -> u16 {
        u16::from(address) << 8 | page & 0xff
    }

    fn page(&self, address: u8, page: u16) -> Vec<u8> {
        self.0
            .get(&Self::key(address, page))
            .cloned()
            .unwrap_or_else(|| vec![0; SECTOR])
    }

    fn set_page(&mut self, address: u8, page: u16, bytes: &[u8]) {
        self.0.insert(Self::key(address, page), bytes.to_vec());
    }

    /// Whether these are pages that a host can have written.
    pub(super) fn is_sound(&self) -> bool {
        self.0.iter().all(|(key, page)| {
            let [address, number] = key.to_be_bytes();
            is_host(address) && u16::from(number) < HOST_PAGES && page.len() == SECTOR
        })
    }
}

fn is_host(address: u8) -> bool {
    (address::FIRST_HOST..=address::LAST_HOST).contains(&address)
}

/// Whether these are pages that the host may write.
pub(super) fn log_write_is_sound(address: u8, page: u16, count: u16) -> bool {
    is_host(address) && count > 0 && page.checked_add(count).is_some_and(|end| end <= HOST_PAGES)
}

/// Pages of the log at `address`, as READ LOG EXT sees it; 0 if there is none.
fn pages(address: u8) -> u16 {
    match address {
        address::DIRECTORY | address::EXTENDED_ERRORS | address::EXTENDED_SELF_TESTS => 1,
        address::STATISTICS => 8,
        address::IDENTIFY => 3,
        _ if is_host(address) => HOST_PAGES,
        _ => 0,
    }
}

/// A log directory: how many pages each log has.
pub(super) fn directory(pages: impl Fn(u8) -> u16) -> Vec<u8> {
    let mut page = vec![0; SECTOR];
    page[0] = 1;
    for address in 1..=255 {
        let at = 2 * usize::from(address);
        page[at..at + 2].copy_from_slice(&pages(address).to_le_bytes());
    }
    page
}

/// A page of eight-byte fields, of which the first says which page it is.
struct Fields(Vec<u8>);

impl Fields {
    fn new(number: u8) -> Self {
        let mut page = vec![0; SECTOR];
        page[0] = 1;
        page[2] = number;
        Self(page)
    }

    fn set(&mut self, offset: usize, value: u64) {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// A device statistic that is supported and valid.
    fn set_statistic(&mut self, offset: usize, value: u64) {
        self.set(offset, value & 0xffff_ffff_ffff | 0xc0 << 56);
    }

    /// The list of supported pages.
    fn list(mut self, pages: &[u8]) -> Vec<u8> {
        self.0[8] = pages.len() as u8;
        self.0[9..9 + pages.len()].copy_from_slice(pages);
        self.0
    }
}

impl Drive {
    pub(super) fn read_log(&mut self, protocol: Protocol) -> Result<Step, Failure> {
        let registers = &self.registers;
        let address = registers.lba_low.current;
        let first = u16::from_be_bytes([registers.lba_mid.previous, registers.lba_mid.current]);
        let count = registers.count.wide();
        if count == 0 || first.checked_add(count).is_none_or(|end| end > pages(address)) {
            return Err(Failure::ABORTED);
        }
        let bytes: Vec<u8> = (first..first + count)
            .flat_map(|page| self.log_page(address, page))
            .collect();
        Ok(match protocol {
            Protocol::Dma => self.wait_for_bus_master(Dma::Pages(bytes)),
            Protocol::Pio | Protocol::Multiple => self.give(bytes),
        })
    }

    fn log_page(&self, address: u8, page: u16) -> Vec<u8> {
        match (address, page) {
            (address::DIRECTORY, _) => directory(pages),
            (address::EXTENDED_ERRORS, _) => self.kept.smart.extended_error_log(),
            (address::EXTENDED_SELF_TESTS, _) => self.kept.smart.extended_self_test_log(),
            (address::STATISTICS, page) => self.statistics_page(page),
            (address::IDENTIFY, 0) => Fields::new(0).list(&[0, 1, 2]),
            (address::IDENTIFY, 1) => self.identify(),
            (address::IDENTIFY, _) => {
                let mut page = Fields::new(2);
                page.set(0, 1 << 63 | 2 << 16 | 1);
                page.set(8, 1 << 63 | self.capacity());
                page.0
            }
            (address, page) => self.kept.host_logs.page(address, page),
        }
    }

    /// Device statistics (ATA8-ACS, A.5): general ones, and errors.
    fn statistics_page(&self, number: u16) -> Vec<u8> {
        let (record, counted) = (&self.kept.smart, &self.statistics);
        let mut page = Fields::new(number as u8);
        match number {
            0 => return page.list(&[0, 1, 4]),
            1 => {
                page.set_statistic(8, u64::from(record.power_cycles()));
                page.set_statistic(16, self.powered_for().as_secs() / 3600);
                page.set_statistic(24, counted.sectors_written);
                page.set_statistic(32, counted.writes);
                page.set_statistic(40, counted.sectors_read);
                page.set_statistic(48, counted.reads);
            }
            4 => {
                page.set_statistic(8, record.uncorrectable_errors());
                page.set_statistic(16, counted.interrupted);
            }
            _ => {}
        }
        page.0
    }

    pub(super) fn write_log(&mut self) -> Result<Step, Failure> {
        let registers = &self.registers;
        let address = registers.lba_low.current;
        let page = u16::from_be_bytes([registers.lba_mid.previous, registers.lba_mid.current]);
        self.start_log_write(address, page, registers.count.wide())
    }

    /// Takes `count` pages of a log of the host's.
    pub(super) fn start_log_write(&mut self, address: u8, page: u16, count: u16) -> Result<Step, Failure> {
        if !log_write_is_sound(address, page, count) {
            return Err(Failure::ABORTED);
        }
        let payload = Payload::Log {
            address,
            page,
            left: count,
        };
        Ok(self.take_sector(payload, false))
    }

    pub(super) fn took_log_page(&mut self, address: u8, page: u16, left: u16, bytes: &[u8]) -> Result<Step, Failure> {
        self.kept.host_logs.set_page(address, page, bytes);
        self.changed = true;
        if left > 1 {
            let payload = Payload::Log {
                address,
                page: page + 1,
                left: left - 1,
            };
            return Ok(self.take_sector(payload, true));
        }
        Ok(self.complete())
    }

    /// Pages of the host's log at `address` for SMART READ LOG.
    pub(super) fn host_log(&self, address: u8, count: u16) -> Option<Vec<u8>> {
        (is_host(address) && (1..=HOST_PAGES).contains(&count)).then(|| {
            (0..count)
                .flat_map(|page| self.kept.host_logs.page(address, page))
                .collect()
        })
    }
}

/// Pages of the logs that SMART READ LOG sees.
pub(super) fn smart_pages(address: u8) -> u16 {
    match address {
        address::SUMMARY_ERRORS | address::SELF_TESTS => 1,
        _ if is_host(address) => HOST_PAGES,
        _ => 0,
    }
}
