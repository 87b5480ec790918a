//! Storage calls that fail because a test says so.

/// How a storage call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// With this error. A write that fails with EIO may have stored a part of its bytes; after an fdatasync that failed
    /// nobody knows what is durable, and none that follows makes it so.
    Errno(i32),
    /// Half of the bytes are transferred, and the call says so.
    Short,
}

/// Those that are still to come.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

/// Makes operations of one name fail: after `skip` of them, `times` times.
struct Fault {
    name: &'static str,
    skip: usize,
    times: usize,
    kind: FaultKind,
}

impl Faults {
    pub(super) fn add(&mut self, name: &'static str, skip: usize, times: usize, kind: FaultKind) {
        self.0.push(Fault {
            name,
            skip,
            times,
            kind,
        });
    }

    pub(super) fn left(&self) -> usize {
        self.0.iter().map(|fault| fault.times).sum()
    }

    /// An operation of this name is about to be executed. Returns how it fails, if it does.
    pub(super) fn meets(&mut self, name: &str) -> Option<FaultKind> {
        let fault = self.0.iter_mut().find(|fault| fault.name == name && fault.times > 0)?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        Some(fault.kind)
    }
}
