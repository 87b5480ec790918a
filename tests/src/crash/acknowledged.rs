//! What a Linux guest said is durable, and what it found after the next boot.

use std::collections::BTreeMap;

/// The guest's account of its disk, over many boots.
#[derive(Default)]
pub(super) struct Acknowledged {
    files: BTreeMap<String, Content>,
    /// The last row that was committed.
    rows: u64,
    /// Acknowledgements that were looked for and found.
    pub(super) verified: u64,
}

/// What a file may hold.
#[derive(Default)]
struct Content {
    acknowledged: Option<String>,
    /// Sums that were announced since.
    begun: Vec<String>,
    /// It is being changed in place: it may hold anything.
    anything: bool,
}

/// One boot's account, line by line.
#[derive(Default)]
pub(super) struct Boot {
    found: BTreeMap<String, String>,
    database: Option<String>,
    /// The guest has told what it found.
    pub(super) worked: bool,
    /// Lines that count as progress.
    pub(super) events: usize,
}

impl Acknowledged {
    /// Takes account of a line of the guest's console.
    ///
    /// # Errors
    /// What was acknowledged and is not there.
    pub(super) fn take(&mut self, line: &str, boot: &mut Boot) -> Result<(), String> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["SUM", file, sum] => {
                boot.found.insert(file.to_owned(), sum.to_owned());
            }
            ["DB", ..] => boot.database = Some(line.to_owned()),
            ["WORK"] => {
                boot.worked = true;
                boot.events += 1;
                self.compare(boot)?;
            }
            ["BEGIN", file] => {
                self.file(file).anything = true;
                boot.events += 1;
            }
            ["BEGIN", file, sum] => {
                self.file(file).begun.push(sum.to_owned());
                boot.events += 1;
            }
            ["ACK", "trim"] => boot.events += 1,
            ["ACK", "db", last] => {
                let last = last.parse().map_err(|_| format!("the guest printed \"{line}\""))?;
                self.rows = last;
                boot.events += 1;
            }
            ["ACK", file, sum] => {
                *self.file(file) = Content {
                    acknowledged: Some(sum.to_owned()),
                    ..Content::default()
                };
                boot.events += 1;
            }
            _ if line.contains("FAILED") => return Err(line.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn file(&mut self, name: &str) -> &mut Content {
        self.files.entry(name.to_owned()).or_default()
    }

    /// The guest has told all that it found.
    fn compare(&mut self, boot: &Boot) -> Result<(), String> {
        for (name, content) in &mut self.files {
            let found = boot.found.get(name);
            let allowed = content.anything
                || found.is_some_and(|found| content.begun.contains(found))
                || found == content.acknowledged.as_ref();
            if !allowed {
                return Err(format!(
                    "{name} has the sum {found:?}; acknowledged was {:?}, and begun since {:?}",
                    content.acknowledged, content.begun
                ));
            }
            self.verified += u64::from(content.acknowledged.is_some());
            // From now on just this; a file that may hold anything is not looked at until it is acknowledged again.
            content.acknowledged = found.cloned().filter(|_| !content.anything);
            content.begun.clear();
        }
        let (last, found) = match &boot.database {
            None => (0, "no database"),
            Some(line) => (
                rows(line).ok_or_else(|| format!("the database is damaged: {line}"))?,
                line.as_str(),
            ),
        };
        if last < self.rows {
            return Err(format!("row {} was committed, and there is {found}", self.rows));
        }
        self.verified += u64::from(self.rows > 0);
        self.rows = last;
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
    fn a_file_is_what_was_acknowledged_or_begun_since() {
        let first = ["WORK", "BEGIN a 1", "ACK a 1", "BEGIN a 2", "-- killed"];
        for (found, right) in [
            ("SUM a 1", true),
            ("SUM a 2", true),
            ("SUM a 3", false),
            ("SUM b 1", false),
        ] {
            let lines: Vec<_> = first.iter().copied().chain([found, "WORK"]).collect();
            assert_eq!(account(&lines).is_ok(), right, "{found}");
        }
    }

    #[test]
    fn a_file_that_was_written_in_place_may_hold_anything_until_it_is_acknowledged() {
        assert!(
            account(&[
                "WORK",
                "ACK a 1",
                "BEGIN a",
                "-- killed",
                "SUM a 9",
                "WORK",
                "-- killed",
                "WORK"
            ])
            .is_ok()
        );
        assert!(account(&["WORK", "BEGIN a", "ACK a 1", "-- killed", "SUM a 9", "WORK"]).is_err());
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
