//! Requests that need one look at the cache and one storage operation: clusters that are mapped, in one piece, and written in place.

use std::rc::Rc;

use super::Qcow2;
use super::mapping::Kind;
use crate::Command;
use crate::direct::Plan;
use crate::storage::{Operation, Piece};

impl Qcow2 {
    /// What it takes to run `command` at this moment. It waits for nothing and changes nothing; whatever is not simple, an error
    /// included, is [`Plan::Steps`], which finds out again.
    pub(crate) fn plan(self: &Rc<Self>, command: &Command) -> Plan {
        self.plan_mapped(command).unwrap_or(Plan::Steps)
    }

    fn plan_mapped(self: &Rc<Self>, command: &Command) -> Option<Plan> {
        let (Command::Read { offset, buffer } | Command::Write { offset, buffer }) = command else {
            return None;
        };
        let (offset, length) = (*offset, buffer.len() as u64);
        if length == 0 || self.check_within_disk(offset, length).is_err() {
            return None;
        }
        let guard = self.in_flight.try_use_mapping(self.clusters(offset, length))?;
        let extent = self.lookup_cached(offset, length)?.ok()?;
        if extent.length < length {
            return None;
        }
        let pieces = || smallvec::smallvec![Piece::whole(buffer.clone())];
        let operation = match (command, extent.kind) {
            (Command::Write { .. }, Kind::Data { host, in_place: true }) => {
                self.check_not_struck().ok()?;
                if self.has_fleeting_links() {
                    return None;
                }
                self.check_no_metadata_at(host, length).ok()?;
                let (offset, pieces) = (host, pieces());
                Operation::Write { offset, pieces }
            }
            (Command::Read { .. }, Kind::Data { host, .. }) => {
                let (offset, pieces) = (host, pieces());
                Operation::Read { offset, pieces }
            }
            (Command::Read { .. }, Kind::Zero { .. }) => {
                buffer.zero(0..buffer.len());
                return Some(Plan::Done);
            }
            (Command::Read { .. }, Kind::Unallocated) if self.backing.is_none() => {
                buffer.zero(0..buffer.len());
                return Some(Plan::Done);
            }
            _ => return None,
        };
        Some(Plan::Operation {
            file: self.file.clone(),
            operation,
            guard: Some(guard),
        })
    }
}
