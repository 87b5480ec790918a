//! What a Linux guest said is durable, and what it found after the next boot.

use std::collections::BTreeMap;

/// The guest's account of its disk, over many boots.
#[derive(Default)]
pub(super) struct Acknowledged {
    /// The version of each file that was acknowledged last; of the database, the last row.
    versions: BTreeMap<String, u64>,
    /// Acknowledgements that were looked for and found.
    pub(super) verified: u64,
}

/// One boot's account, line by line.
#[derive(Default)]
pub(super) struct Boot {
    found: BTreeMap<String, u64>,
    /// The guest has told what it found.
    pub(super) worked: bool,
    /// Lines that count as progress.
    pub(super) events: usize,
}

/// What the guest says where it cannot go on, and its kernel of a disk that fails.
const TROUBLE: [&str; 4] = ["FAILED", "I/O error", "EXT4-fs error", "EXT4-fs warning"];

/// The name of the database among the files.
const DATABASE: &str = "db";

impl Acknowledged {
    /// Takes account of a line of the guest's console.
    ///
    /// # Errors
    /// What was acknowledged and is not there.
    pub(super) fn take(&mut self, line: &str, boot: &mut Boot) -> Result<(), String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("the guest printed \"{line}\""));
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["FOUND", file, version, "ok"] => {
                boot.found.insert(file.to_owned(), number(version)?);
            }
            ["FOUND", ..] => return Err(format!("a file is damaged: {line}")),
            ["DB", ..] => {
                let last = rows(line).ok_or_else(|| format!("the database is damaged: {line}"))?;
                boot.found.insert(DATABASE.to_owned(), last);
            }
            ["WORK"] => {
                boot.worked = true;
                boot.events += 1;
                self.compare(boot)?;
            }
            ["ACK", name, version] => {
                self.versions.insert(name.to_owned(), number(version)?);
                boot.events += 1;
            }
            _ if TROUBLE.iter().any(|words| line.contains(words)) => return Err(line.to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// The guest has told all that it found.
    fn compare(&mut self, boot: &Boot) -> Result<(), String> {
        // A trim leaves nothing to be found.
        self.versions.retain(|_, version| *version > 0);
        for (name, acknowledged) in &self.versions {
            let found = boot.found.get(name);
            if found.is_none_or(|found| found < acknowledged) {
                return Err(format!(
                    "{name}: version {acknowledged} was acknowledged, and found was {found:?}"
                ));
            }
            self.verified += 1;
        }
        // What was seen once must stay.
        self.versions.clone_from(&boot.found);
        Ok(())
    }
}

/// The last row of a database that is whole: `DB ok ROWS|LAST|WRONG`.
fn rows(line: &str) -> Option<u64> {
    let counts = line.strip_prefix("DB ok ")?;
    let counts: Vec<u64> = counts.split('|').map(str::parse).collect::<Result<_, _>>().ok()?;
    match counts[..] {
        [rows, last, 0] if rows == last => Some(last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(lines: &[&str]) -> Result<(), String> {
        let mut acknowledged = Acknowledged::default();
        let mut boot = Boot::default();
        for line in lines {
            if *line == "-- killed" {
                boot = Boot::default();
            } else {
                acknowledged.take(line, &mut boot)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_file_has_the_version_that_was_acknowledged_or_a_later_one() {
        for (found, right) in [
            ("FOUND a 2 ok", true),
            ("FOUND a 3 ok", true),
            ("FOUND a 1 ok", false),
            ("FOUND a 2 damaged", false),
            ("FOUND b 2 ok", false),
        ] {
            let lines = ["WORK", "ACK a 1", "ACK a 2", "ACK trim 0", "-- killed", found, "WORK"];
            assert_eq!(account(&lines).is_ok(), right, "{found}");
        }
    }

    #[test]
    fn what_fails_in_the_guest_is_a_failure() {
        for line in [
            "FAILED: sqlite3",
            "[    9.1] I/O error, dev sda, sector 8 op 0x1:(WRITE)",
        ] {
            assert!(account(&["WORK", line]).is_err(), "{line}");
        }
    }

    #[test]
    fn what_was_found_once_stays() {
        let found = ["WORK", "-- killed", "FOUND a 2 ok", "WORK", "-- killed"];
        assert!(account(&[&found[..], &["FOUND a 2 ok", "WORK"]].concat()).is_ok());
        assert!(account(&[&found[..], &["FOUND a 1 ok", "WORK"]].concat()).is_err());
        assert!(account(&[&found[..], &["WORK"]].concat()).is_err());
    }

    #[test]
    fn committed_rows_are_there_and_whole() {
        let first = ["WORK", "ACK db 4", "-- killed"];
        for (found, right) in [
            ("DB ok 4|4|0", true),
            ("DB ok 6|6|0", true),
            ("DB ok 3|3|0", false),
            ("DB ok 4|5|0", false),
            ("DB ok 4|4|1", false),
            ("DB row 3 missing from index", false),
            ("no line", false),
        ] {
            let lines: Vec<_> = first.iter().copied().chain([found, "WORK"]).collect();
            assert_eq!(account(&lines).is_ok(), right, "{found}");
        }
    }
}
