//! The real-time clock and CMOS memory at ports 0x70 and 0x71 (Motorola MC146818A datasheet), in UTC.

use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::bus::ByteRegisters;

/// The index port and the data port.
pub const CMOS_PORTS: RangeInclusive<u16> = 0x70..=0x71;

const INDEX_PORT: u16 = 0x70;
const DATA_PORT: u16 = 0x71;

/// Clock registers (MC146818A, "Address map"), and the century, whose place the FADT's CENTURY field names.
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const DAY_OF_WEEK: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = super::CENTURY_REGISTER;
}

/// The CMOS address of the century, for the FADT.
pub const CENTURY_REGISTER: u8 = 0x32;

/// Register A: an update is in progress, or begins within 244 us.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A: 32.768 kHz time base, 1024 Hz periodic rate: what firmware leaves.
const REGISTER_A: u8 = 0x26;
/// Register B: the guest sets the clock, updates are held.
const SET: u8 = 1 << 7;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours are 0 to 23.
const HOURS_24: u8 = 1 << 1;
/// Register C: an alarm matched.
const ALARM_FLAG: u8 = 1 << 5;
/// Register C: the clock was updated.
const UPDATE_ENDED: u8 = 1 << 4;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// Hours register in 12-hour mode.
const PM: u8 = 1 << 7;

/// The update takes 1984 us, and is announced 244 us ahead (MC146818A, "Update cycle").
const UPDATE_NANOSECONDS: u32 = 244_000 + 1_984_000;

/// Where a host's clock comes from: the time since 1970 in UTC.
pub type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// The clock and its 128 bytes.
pub struct Rtc {
    state: Mutex<State>,
    clock: Clock,
}

struct State {
    index: u8,
    cmos: [u8; 128],
    /// How far the guest set its clock from the host's, in seconds.
    offset: i64,
    /// The fields as the guest sees them while SET holds the clock.
    held: Option<DateTime>,
    /// The last second of which register C told.
    told: i64,
}

impl Rtc {
    /// A clock that shows the host's time in UTC, over CMOS memory that describes `memory`.
    pub fn new(memory: &GuestMemoryMmap) -> Self {
        Self::with_clock(memory, Box::new(host_clock))
    }

    /// As [`Rtc::new`], with a clock of the caller's.
    pub fn with_clock(memory: &GuestMemoryMmap, clock: Clock) -> Self {
        let mut cmos = [0; 128];
        cmos[usize::from(register::A)] = REGISTER_A;
        cmos[usize::from(register::B)] = HOURS_24;
        cmos[usize::from(register::D)] = VALID;
        describe_memory(&mut cmos, memory);
        let told = clock().as_secs() as i64;
        Self {
            state: Mutex::new(State {
                index: 0,
                cmos,
                offset: 0,
                held: None,
                told,
            }),
            clock,
        }
    }

    fn read_register(&self, state: &mut State) -> u8 {
        let now = (self.clock)();
        let seconds = now.as_secs() as i64 + state.offset;
        let time = state.held.unwrap_or_else(|| DateTime::from_seconds(seconds));
        match state.index {
            register::A => state.cmos[usize::from(register::A)] | state.update_in_progress(now),
            register::C => state.take_flags(seconds),
            index => match time.field(index) {
                Some(value) => state.encode(index, value),
                None => state.cmos[usize::from(index)],
            },
        }
    }

    fn write_register(&self, state: &mut State, value: u8) {
        let now = (self.clock)().as_secs() as i64;
        let index = state.index;
        match index {
            register::A => state.cmos[usize::from(index)] = value & !UPDATE_IN_PROGRESS,
            register::B => {
                state.cmos[usize::from(index)] = value;
                if value & SET != 0 {
                    let offset = state.offset;
                    state.held.get_or_insert_with(|| DateTime::from_seconds(now + offset));
                } else if let Some(time) = state.held.take() {
                    state.offset = time.to_seconds() - now;
                }
            }
            register::C | register::D => {}
            _ => {
                let value_in_binary = state.decode(index, value);
                // Without SET, a write to a time register takes effect at once.
                let mut time = state.held.unwrap_or_else(|| DateTime::from_seconds(now + state.offset));
                if !time.set_field(index, value_in_binary) {
                    state.cmos[usize::from(index)] = value;
                } else if state.held.is_some() {
                    state.held = Some(time);
                } else {
                    state.offset = time.to_seconds() - now;
                }
            }
        }
    }
}

impl ByteRegisters for Rtc {
    fn read_byte(&self, port: u16) -> u8 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            DATA_PORT => self.read_register(&mut state),
            // The index port is write-only.
            _ => 0xff,
        }
    }

    fn write_byte(&self, port: u16, value: u8) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            // Bit 7 masks the NMI, of which there is none.
            INDEX_PORT => state.index = value & 0x7f,
            DATA_PORT => self.write_register(&mut state, value),
            _ => {}
        }
    }
}

impl State {
    fn mode(&self) -> u8 {
        self.cmos[usize::from(register::B)]
    }

    /// The update-in-progress bit: set in the last moment of each second, as the chip announces its update.
    /// A guest that waits for it to fall starts reading at the beginning of a second.
    fn update_in_progress(&self, now: Duration) -> u8 {
        if self.held.is_none() && now.subsec_nanos() >= 1_000_000_000 - UPDATE_NANOSECONDS {
            UPDATE_IN_PROGRESS
        } else {
            0
        }
    }

    /// Register C: what happened since it was last read. Reading clears it.
    fn take_flags(&mut self, seconds: i64) -> u8 {
        let since = std::mem::replace(&mut self.told, seconds);
        if self.held.is_some() || seconds == since {
            return 0;
        }
        let alarm = self.alarm_between(since, seconds);
        UPDATE_ENDED | if alarm { ALARM_FLAG } else { 0 }
    }

    /// Whether the alarm registers matched in one of the seconds after `since`, up to `until`.
    fn alarm_between(&self, since: i64, until: i64) -> bool {
        const DAY: i64 = 24 * 60 * 60;
        // Alarms repeat daily at the latest: the last day tells it all, and bounds the search.
        let first = since.max(until - DAY) + 1;
        let alarm = [
            (register::SECONDS, register::SECONDS_ALARM),
            (register::MINUTES, register::MINUTES_ALARM),
            (register::HOURS, register::HOURS_ALARM),
        ];
        (first..=until).any(|second| {
            let time = DateTime::from_seconds(second);
            alarm.iter().all(|&(field, alarm)| {
                let wanted = self.cmos[usize::from(alarm)];
                // Two high bits set: "don't care".
                wanted >= 0xc0
                    || time
                        .field(field)
                        .is_some_and(|value| self.encode(field, value) == wanted)
            })
        })
    }

    /// A time field as the guest reads it: BCD or binary, and hours in the mode that register B sets.
    fn encode(&self, index: u8, value: u8) -> u8 {
        let number = |value: u8| {
            if self.mode() & BINARY != 0 {
                value
            } else {
                ((value / 10) << 4) | (value % 10)
            }
        };
        if index == register::HOURS && self.mode() & HOURS_24 == 0 {
            let afternoon = if value >= 12 { PM } else { 0 };
            return number((value + 11) % 12 + 1) | afternoon;
        }
        number(value)
    }

    /// The inverse of [`State::encode`].
    fn decode(&self, index: u8, value: u8) -> u8 {
        let number = |value: u8| {
            if self.mode() & BINARY != 0 {
                value
            } else {
                (value >> 4) * 10 + (value & 0x0f)
            }
        };
        if index == register::HOURS && self.mode() & HOURS_24 == 0 {
            return number(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 };
        }
        number(value)
    }
}

/// The host's time since 1970, in UTC.
fn host_clock() -> Duration {
    // A host clock before 1970 is as good as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Memory sizes as PC firmware leaves them in CMOS, for software that asks there: base memory in KiB, extended memory
/// in KiB up to 64 MiB, memory from 16 MiB to 4 GiB and above 4 GiB in units of 64 KiB.
fn describe_memory(cmos: &mut [u8; 128], memory: &GuestMemoryMmap) {
    const MIB: u64 = 1 << 20;
    const UNIT: u64 = 64 << 10;
    let (mut low_end, mut high) = (0, 0);
    for region in memory.iter() {
        if region.start_addr() < GuestAddress(1 << 32) {
            low_end = low_end.max(region.start_addr().0 + region.len());
        } else {
            high += region.len();
        }
    }
    let extended = (low_end.saturating_sub(MIB) >> 10).min(0xffff) as u16;
    let above_16_mib = (low_end.saturating_sub(16 * MIB) / UNIT).min(0xffff) as u16;
    let above_4_gib = (high / UNIT).min(0xff_ffff) as u32;
    cmos[0x15..0x17].copy_from_slice(&640u16.to_le_bytes());
    cmos[0x17..0x19].copy_from_slice(&extended.to_le_bytes());
    cmos[0x30..0x32].copy_from_slice(&extended.to_le_bytes());
    cmos[0x34..0x36].copy_from_slice(&above_16_mib.to_le_bytes());
    cmos[0x5b..0x5e].copy_from_slice(&above_4_gib.to_le_bytes()[..3]);
}

/// A date and time as the chip's registers hold it. Fields may be nonsense while a guest sets them one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DateTime {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    day_of_week: u8,
    /// From 1.
    day: u8,
    /// From 1.
    month: u8,
    /// Within the century.
    year: u8,
    century: u8,
}

impl DateTime {
    /// Seconds since 1970 to the proleptic Gregorian calendar.
    fn from_seconds(seconds: i64) -> Self {
        const DAY: i64 = 24 * 60 * 60;
        // The chip's registers end with the year 9999; a guest's offset must not lead beyond.
        let seconds = seconds.clamp(0, 253_402_300_799);
        let (days, second_of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = civil_from_days(days);
        Self {
            second: (second_of_day % 60) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            hour: (second_of_day / 3600) as u8,
            // 1970-01-01 was a Thursday.
            day_of_week: ((days + 4).rem_euclid(7) + 1) as u8,
            day,
            month,
            year: (year % 100) as u8,
            century: (year / 100) as u8,
        }
    }

    /// Seconds since 1970. Nonsense fields carry over into the next ones.
    fn to_seconds(self) -> i64 {
        let year = i64::from(self.century) * 100 + i64::from(self.year);
        let days = days_from_civil(year, self.month, self.day);
        ((days * 24 + i64::from(self.hour)) * 60 + i64::from(self.minute)) * 60 + i64::from(self.second)
    }

    fn field(&self, index: u8) -> Option<u8> {
        let mut copy = *self;
        copy.field_mut(index).map(|field| *field)
    }

    /// Sets the field that a register holds. Returns false for a register that is no field of the time.
    fn set_field(&mut self, index: u8, value: u8) -> bool {
        self.field_mut(index).map(|field| *field = value).is_some()
    }

    fn field_mut(&mut self, index: u8) -> Option<&mut u8> {
        Some(match index {
            register::SECONDS => &mut self.second,
            register::MINUTES => &mut self.minute,
            register::HOURS => &mut self.hour,
            register::DAY_OF_WEEK => &mut self.day_of_week,
            register::DAY => &mut self.day,
            register::MONTH => &mut self.month,
            register::YEAR => &mut self.year,
            register::CENTURY => &mut self.century,
            _ => return None,
        })
    }
}

/// Year, month (from 1) and day (from 1) of a day counted from 1970-01-01, by years that begin in March, so that the
/// leap day is the last.
fn civil_from_days(days: i64) -> (i64, u8, u8) {
    const ERA: i64 = 146_097;
    let since_march_0000 = days + 719_468;
    let (era, day_of_era) = (since_march_0000.div_euclid(ERA), since_march_0000.rem_euclid(ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as u8, day)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let month = i64::from(month.clamp(1, 12));
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
#[path = "rtc_test.rs"]
mod tests;
