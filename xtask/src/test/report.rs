//! What ran where, gathered from what `cargo test` prints.

use std::time::Duration;

/// The suites that ran.
pub struct Report {
    suites: Vec<Suite>,
    running: String,
    failures: Vec<String>,
}

struct Suite {
    name: String,
    host: String,
    passed: usize,
    failed: usize,
    ignored: usize,
    time: Duration,
}

impl Report {
    /// Nothing ran yet.
    pub fn new() -> Report {
        Report {
            suites: Vec::new(),
            running: String::new(),
            failures: Vec::new(),
        }
    }

    /// Takes a line. Returns whether a suite has begun or ended with it; `time` is counted from the last such line.
    pub fn take(&mut self, line: &str, host: &str, time: Duration) -> bool {
        let line = line.trim();
        if let Some(name) = suite_name(line) {
            self.running = name;
            return true;
        }
        let Some((passed, failed, ignored)) = counts(line) else {
            return false;
        };
        self.suites.push(Suite {
            name: std::mem::take(&mut self.running),
            host: host.to_owned(),
            passed,
            failed,
            ignored,
            time,
        });
        true
    }

    /// Enters the end of one `cargo test`: it can fail without a failed test, by not building or by a crash.
    pub fn finish(&mut self, success: bool, command: &str) {
        if !success {
            self.failures.push(command.to_owned());
        }
    }

    /// Whether everything that ran passed, and anything ran.
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.suites.iter().any(|suite| suite.passed > 0)
    }

    /// Prints a line for each suite, and one for all.
    pub fn print(&self, time: Duration) {
        println!("\nWhat ran where:");
        let mut host = "";
        for suite in self.suites.iter().filter(|suite| suite.passed + suite.failed > 0) {
            if suite.host != host {
                host = &suite.host;
                println!("  on {host}");
            }
            let verdict = if suite.failed == 0 { "ok" } else { "FAILED" };
            let time = suite.time.as_secs_f64();
            println!(
                "    {:6} {:44} {:4} passed {:3} failed {time:7.1} s",
                verdict, suite.name, suite.passed, suite.failed
            );
        }
        for failure in &self.failures {
            println!("  failed: {failure}");
        }
        let sum = |count: fn(&Suite) -> usize| self.suites.iter().map(count).sum::<usize>();
        println!("In {:.0} s.", time.as_secs_f64());
        println!(
            "{} passed, {} failed, {} skipped",
            sum(|suite| suite.passed),
            sum(|suite| suite.failed),
            self.skipped()
        );
    }

    /// Ignored tests that no later run took up: a suite that ran twice ran its ignored tests the second time.
    fn skipped(&self) -> usize {
        let ignored: usize = self.suites.iter().map(|suite| suite.ignored).sum();
        let again = |(at, suite): (usize, &Suite)| {
            let twice = self.suites[..at].iter().any(|before| before.name == suite.name);
            if twice { suite.passed + suite.failed } else { 0 }
        };
        ignored.saturating_sub(self.suites.iter().enumerate().map(again).sum())
    }
}

/// The suite in a line such as `Running tests/boot.rs (target/debug/deps/boot-0123456789abcdef)` or `Doc-tests disk`.
fn suite_name(line: &str) -> Option<String> {
    if let Some(library) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{library} (examples in its documentation)"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let binary = binary.rsplit('/').next()?;
    let name = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
    Some(format!("{name} ({source})"))
}

/// The numbers of passed, failed and ignored tests in a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
fn counts(line: &str) -> Option<(usize, usize, usize)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| {
        let part = rest.split("; ").find(|part| part.ends_with(what))?;
        part.split(' ').next()?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?, number(" ignored")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str =
        "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s";

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::new();
        for line in lines {
            report.take(line, "here", Duration::ZERO);
        }
        report
    }

    #[test]
    fn results_belong_to_the_suite_named_before() {
        let report = report(&[
            "     Running unittests src/lib.rs (target/debug/deps/disk-0123456789abcdef)",
            "test a ... ok",
            RESULT,
        ]);

        assert_eq!(report.suites.len(), 1);
        assert_eq!(report.suites[0].name, "disk (unittests src/lib.rs)");
        assert_eq!(
            (
                report.suites[0].passed,
                report.suites[0].failed,
                report.suites[0].ignored
            ),
            (5, 0, 2)
        );
        assert!(report.passed());
    }

    #[test]
    fn ignored_tests_that_ran_later_are_not_skipped() {
        let again = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 9.01s";
        let running = "Running tests/boot.rs (target/debug/deps/boot-0123456789abcdef)";

        assert_eq!(report(&[running, RESULT]).skipped(), 2);
        assert_eq!(report(&[running, RESULT, running, again]).skipped(), 0);
    }

    #[test]
    fn cargo_that_fails_is_a_failure_though_no_test_failed() {
        let mut report = report(&["Running x (y-0)", RESULT]);

        report.finish(false, "cargo test");

        assert!(!report.passed());
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert!(!Report::new().passed());
    }
}
