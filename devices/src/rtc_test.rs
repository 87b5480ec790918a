//! The clock, against a clock of the test's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;

/// 2026-11-22 13:37:58 UTC, a Sunday.
const NOW: u64 = 1_795_354_678;

struct Fixture {
    rtc: Rtc,
    nanoseconds: Arc<AtomicU64>,
}

impl Fixture {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(1 << 32), 0x20_0000)])
            .expect("anonymous memory");
        let nanoseconds = Arc::new(AtomicU64::new(NOW * 1_000_000_000));
        let clock = nanoseconds.clone();
        let rtc = Rtc::with_clock(
            &memory,
            Box::new(move || Duration::from_nanos(clock.load(Ordering::SeqCst))),
        );
        Self { rtc, nanoseconds }
    }

    fn pass(&self, nanoseconds: u64) {
        self.nanoseconds.fetch_add(nanoseconds, Ordering::SeqCst);
    }

    fn get(&self, index: u8) -> u8 {
        self.rtc.write_byte(INDEX_PORT, index);
        self.rtc.read_byte(DATA_PORT)
    }

    fn set(&self, index: u8, value: u8) {
        self.rtc.write_byte(INDEX_PORT, index);
        self.rtc.write_byte(DATA_PORT, value);
    }

    /// Century, year, month, day, hour, minute, second.
    fn time(&self) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| self.get(index))
    }
}

#[test]
fn shows_the_hosts_time_in_bcd_and_in_binary() {
    let clock = Fixture::new();
    assert_eq!(clock.time(), [0x20, 0x26, 0x11, 0x22, 0x13, 0x37, 0x58]);
    assert_eq!(clock.get(6), 1, "Sunday");
    clock.set(0x0b, 0x06);
    assert_eq!(clock.time(), [20, 26, 11, 22, 13, 37, 58]);
    clock.set(0x0b, 0x00);
    assert_eq!(clock.get(4), 0x81, "1 pm");
    assert_eq!(clock.get(0x0d), 0x80);
}

#[test]
fn twelve_hour_mode_has_no_hour_zero() {
    let clock = Fixture::new();
    for (hour, expected) in [(0u64, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        let midnight = NOW - NOW % 86_400;
        clock
            .nanoseconds
            .store((midnight + hour * 3600) * 1_000_000_000, Ordering::SeqCst);
        clock.set(0x0b, 0x00);
        assert_eq!(clock.get(4), expected, "hour {hour}");
    }
}

#[test]
fn update_in_progress_announces_the_next_second() {
    let clock = Fixture::new();
    assert_eq!(clock.get(0x0a), 0x26);
    clock.pass(998_000_000);
    assert_eq!(clock.get(0x0a), 0xa6);
    assert_eq!(clock.get(0), 0x58);
    clock.pass(2_000_000);
    assert_eq!(clock.get(0x0a), 0x26);
    assert_eq!(clock.get(0), 0x59);
}

#[test]
fn a_guest_sets_its_own_time_and_it_runs_on() {
    let clock = Fixture::new();
    clock.set(0x0b, 0x82);
    for (index, value) in [
        (0x32, 0x19),
        (9, 0x99),
        (8, 0x12),
        (7, 0x31),
        (4, 0x23),
        (2, 0x59),
        (0, 0x58),
    ] {
        clock.set(index, value);
    }
    clock.pass(5_000_000_000);
    assert_eq!(clock.get(0), 0x58, "held");
    assert_eq!(clock.get(0x0a) & 0x80, 0);
    clock.set(0x0b, 0x02);
    clock.pass(2_000_000_000);
    assert_eq!(clock.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn register_c_tells_once_of_updates_and_alarms() {
    let clock = Fixture::new();
    assert_eq!(clock.get(0x0c), 0);
    clock.set(1, 0x00);
    clock.set(3, 0x38);
    clock.set(5, 0xff);
    clock.pass(1_000_000_000);
    assert_eq!(clock.get(0x0c), 0x10);
    assert_eq!(clock.get(0x0c), 0x00);
    clock.pass(1_000_000_000);
    assert_eq!(clock.get(0x0c), 0x30, "13:38:00");
    assert_eq!([1, 3, 5].map(|index| clock.get(index)), [0x00, 0x38, 0xff]);
}

#[test]
fn memory_above_4_gib_is_in_units_of_64_kib() {
    let clock = Fixture::new();
    assert_eq!([0x5b, 0x5c, 0x5d].map(|index| clock.get(index)), [32, 0, 0]);
}

#[test]
fn calendar_goes_both_ways_over_leap_years() {
    for days in (0..200_000).step_by(37).chain([11_016, 11_017, 47_540, 47_541]) {
        let (year, month, day) = civil_from_days(days);
        assert_eq!(days_from_civil(year, month, day), days);
    }
    assert_eq!(civil_from_days(11_016), (2000, 2, 29));
    assert_eq!(civil_from_days(47_540), (2100, 2, 28));
    assert_eq!(civil_from_days(47_541), (2100, 3, 1));
}

#[test]
fn nonsense_times_do_not_panic() {
    let clock = Fixture::new();
    clock.set(0x0b, 0x82);
    for index in [0, 2, 4, 6, 7, 8, 9, 0x32] {
        clock.set(index, 0xff);
    }
    clock.set(0x0b, 0x06);
    clock.time();
    clock.set(0x0b, 0x00);
    for index in [0, 2, 4, 6, 7, 8, 9, 0x32, 0x7f] {
        clock.set(index, 0xff);
    }
    clock.time();
}
