//! Exits to user space of a VMM on this machine, whoever it is: Linux's trace event `kvm:kvm_userspace_exit`, counted by a
//! histogram in the kernel. Needs root and tracefs; without them nothing is counted.

use std::fs;
use std::path::{Path, PathBuf};

const TRIGGER: &str = "hist:keys=common_pid:size=4096";

/// A running histogram.
pub(super) struct ExitCounter {
    event: PathBuf,
}

impl ExitCounter {
    /// Starts counting, if that is possible here.
    pub(super) fn start() -> Option<Self> {
        let event = Path::new("/sys/kernel/tracing/events/kvm/kvm_userspace_exit").to_path_buf();
        fs::write(event.join("trigger"), TRIGGER).ok()?;
        Some(Self { event })
    }

    /// The exits of all threads of the process `id` so far.
    pub(super) fn of_process(&self, id: u32) -> Option<u64> {
        let threads: Vec<u64> = fs::read_dir(format!("/proc/{id}/task"))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        let histogram = fs::read_to_string(self.event.join("hist")).ok()?;
        Some(
            histogram
                .lines()
                .filter_map(parse_line)
                .filter(|(thread, _)| threads.contains(thread))
                .map(|(_, count)| count)
                .sum(),
        )
    }
}

impl Drop for ExitCounter {
    fn drop(&mut self) {
        let _ = fs::write(self.event.join("trigger"), format!("!{TRIGGER}"));
    }
}

/// `{ common_pid:       1234 } hitcount:         17`
fn parse_line(line: &str) -> Option<(u64, u64)> {
    let (key, count) = line.split_once("} hitcount:")?;
    let thread = key.split_once("common_pid:")?.1;
    Some((thread.trim().parse().ok()?, count.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_histogram_are_read() {
        assert_eq!(
            parse_line("{ common_pid:       1234 } hitcount:         17"),
            Some((1234, 17))
        );
        assert_eq!(parse_line("# trigger info: hist:keys=common_pid"), None);
    }
}
