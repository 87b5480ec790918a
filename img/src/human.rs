//! Numbers and times as qemu-img prints them.

use disk::Snapshot;

/// Bytes with three digits and a binary unit: `1.02 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut value = count as f64;
    let mut unit = 0;
    // Four digits would not fit.
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 || value == 0.0 => 2,
        _ => 3,
    };
    let mut digits = format!("{value:.decimals$}");
    if digits.contains('.') {
        digits = digits.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{digits} {}B", UNITS[unit])
}

/// The table of snapshots, a line each.
pub fn snapshots(snapshots: &[Snapshot]) -> String {
    let mut text = line("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    for snapshot in snapshots {
        let icount = snapshot
            .icount
            .map_or_else(|| "--".to_owned(), |count| count.to_string());
        text += &line(
            &snapshot.id,
            &snapshot.name,
            &bytes(snapshot.vm_state_bytes),
            &local_time(snapshot.date.0),
            &clock(snapshot.vm_clock),
            &icount,
        );
    }
    text
}

fn line(id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str) -> String {
    format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
}

fn local_time(seconds: u32) -> String {
    let time = jiff::Timestamp::from_second(i64::from(seconds)).unwrap_or_default();
    let local = time.to_zoned(jiff::tz::TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn clock(nanoseconds: u64) -> String {
    let (seconds, milliseconds) = (nanoseconds / 1_000_000_000, nanoseconds / 1_000_000 % 1000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:04}:{minutes:02}:{:02}.{milliseconds:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        let expected = [
            (0, "0 B"),
            (596 << 10, "596 KiB"),
            (1_069_056, "1.02 MiB"),
            (64 << 20, "64 MiB"),
            (67_436_544, "64.3 MiB"),
            (3 << 29, "1.5 GiB"),
            (1_023_000, "999 KiB"),
            (1 << 20, "1 MiB"),
            (1_025_000, "0.978 MiB"),
        ];
        for (count, text) in expected {
            assert_eq!(bytes(count), text, "{count}");
        }
    }
}
