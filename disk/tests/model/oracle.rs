//! What each sector of the disk and of its snapshots may hold.
//!
//! A sector has a list of values, each with the time at which its write began and completed. Of writes that are in flight together, each may
//! come last. A value is surely gone only when another one began after it had completed, and has surely happened: which a write has when it
//! is complete, and after a power loss when a flush says so. What happens to the image as a whole (a snapshot, a resize) either happened or did
//! not, for all sectors alike; complete, it is durable.

use std::ops::Range;

use super::stamp::Id;

const NEVER: u64 = u64::MAX;

/// After what the disk is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing, or a kill: what is complete is there.
    Kill,
    /// A power loss: what was complete before the last flush is there.
    PowerLoss,
}

/// What happens to the image as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Create(String),
    /// The snapshot with this position.
    Apply(usize),
    Delete(usize),
    /// To so many sectors.
    Resize(u64),
}

#[derive(Clone, Copy, Debug)]
struct Value {
    id: Id,
    begun: u64,
    completed: u64,
    durable: bool,
    /// It need not have happened, complete or not.
    hint: bool,
    /// The change that it is part of, or 0.
    change: u64,
}

impl Value {
    fn settled(id: Id) -> Self {
        Self {
            id,
            begun: 0,
            completed: 0,
            durable: true,
            hint: false,
            change: 0,
        }
    }
}

/// What a disk was found to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub sectors: Vec<Id>,
    pub snapshots: Vec<(String, Vec<Id>)>,
}

struct Snapshot {
    name: String,
    /// What each sector may hold.
    content: Vec<Vec<Id>>,
}

struct Pending {
    change: Change,
    begun: u64,
}

pub struct Oracle {
    /// Those beyond the end of the disk, too: what they hold if it grows.
    sectors: Vec<Vec<Value>>,
    size: u64,
    snapshots: Vec<Snapshot>,
    pending: Option<Pending>,
    clock: u64,
}

/// Those of `values` that may be found, if those have happened that are `sure`.
fn allowed(values: &[Value], sure: impl Fn(&Value) -> bool) -> Vec<Id> {
    let happened = values.iter().filter(|value| !value.hint && sure(value));
    let last_begun = happened.map(|value| value.begun).max().unwrap_or(0);
    let may_last = values.iter().filter(|value| value.completed >= last_begun);
    let mut ids: Vec<Id> = may_last.map(|value| value.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Oracle {
    /// A disk that holds this, and may grow to `largest` sectors.
    pub fn new(content: &[Id], largest: u64) -> Self {
        let beyond = std::iter::repeat_n(&0, largest as usize - content.len());
        Self {
            sectors: content
                .iter()
                .chain(beyond)
                .map(|id| vec![Value::settled(*id)])
                .collect(),
            size: content.len() as u64,
            snapshots: Vec::new(),
            pending: None,
            clock: 1,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// How many snapshots there are, not counting one that is being made.
    pub fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    /// The name of a snapshot.
    pub fn name(&self, snapshot: usize) -> &str {
        &self.snapshots[snapshot].name
    }

    /// The size that snapshot `index` would give the disk, in sectors.
    fn size_of(&self, index: usize) -> u64 {
        self.snapshots[index].content.len() as u64
    }

    /// Something begins. Returns the time by which it is named from now on.
    pub fn begin(&mut self) -> u64 {
        self.tick()
    }

    /// A write begins; of a `hint` nobody knows whether it happens.
    pub fn begin_write(&mut self, range: Range<u64>, id: Id, hint: bool) -> u64 {
        let begun = self.tick();
        for values in &mut self.sectors[range.start as usize..range.end as usize] {
            values.push(Value {
                id,
                begun,
                completed: NEVER,
                durable: false,
                hint,
                change: 0,
            });
        }
        begun
    }

    pub fn complete_write(&mut self, range: Range<u64>, begun: u64) {
        let now = self.tick();
        for values in &mut self.sectors[range.start as usize..range.end as usize] {
            let ours = values.iter_mut().filter(|value| value.begun == begun);
            ours.for_each(|value| value.completed = now);
        }
    }

    /// A flush that began then is complete.
    pub fn complete_flush(&mut self, begun: u64) {
        for value in self.sectors.iter_mut().flatten() {
            value.durable |= value.completed < begun;
        }
    }

    /// A read that began then has found this.
    pub fn complete_read(&self, range: Range<u64>, begun: u64, found: &[Id]) -> Result<(), String> {
        for (sector, id) in range.zip(found) {
            let allowed = allowed(&self.sectors[sector as usize], |value| value.completed < begun);
            if !allowed.contains(id) {
                return Err(format!(
                    "reading sector {sector} gave write {id}; allowed are {allowed:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether a change is in flight.
    pub fn is_changing(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether a change is in flight that may alter the size of the disk.
    pub fn is_resizing(&self) -> bool {
        let pending = self.pending.as_ref().map(|pending| &pending.change);
        matches!(pending, Some(Change::Apply(_) | Change::Resize(_)))
    }

    /// A change begins, while no other is in flight.
    pub fn begin_change(&mut self, change: Change) {
        let begun = self.tick();
        let value = |id| Value {
            id,
            begun,
            completed: NEVER,
            durable: false,
            hint: false,
            change: begun,
        };
        match &change {
            Change::Create(_) | Change::Delete(_) => {}
            Change::Resize(size) => {
                for values in self.sectors.iter_mut().skip(*size as usize) {
                    values.push(value(0));
                }
            }
            Change::Apply(index) => {
                let content = self.snapshots[*index].content.iter().map(Vec::as_slice);
                let content = content.chain(std::iter::repeat(&[0][..]));
                for (values, ids) in self.sectors.iter_mut().zip(content) {
                    values.extend(ids.iter().map(|id| value(*id)));
                }
            }
        }
        self.pending = Some(Pending { change, begun });
    }

    /// The change in flight was refused: it did not happen.
    pub fn refuse_change(&mut self) {
        if let Some(pending) = self.pending.take() {
            let begun = pending.begun;
            self.sectors
                .iter_mut()
                .for_each(|values| values.retain(|value| value.change != begun));
        }
    }

    /// The change in flight is complete.
    pub fn complete_change(&mut self) {
        let now = self.tick();
        let Some(Pending { change, begun }) = self.pending.take() else {
            return;
        };
        match change {
            Change::Create(name) => {
                let content = self.at_creation(begun);
                self.snapshots.push(Snapshot { name, content });
            }
            Change::Delete(index) => {
                self.snapshots.remove(index);
            }
            Change::Apply(index) => self.size = self.size_of(index),
            Change::Resize(size) => self.size = size,
        }
        for value in self.sectors.iter_mut().flatten() {
            if value.change == begun {
                (value.change, value.completed, value.durable) = (0, now, true);
            }
            value.durable |= value.completed < begun;
        }
    }

    /// What a snapshot may hold whose creation began then.
    fn at_creation(&self, begun: u64) -> Vec<Vec<Id>> {
        let sectors = self.sectors.iter().take(self.size as usize);
        sectors
            .map(|values| allowed(values, |value| value.completed < begun))
            .collect()
    }

    /// Whether this may be found. If so, whether the change in flight has happened.
    pub fn judge(&self, found: &Found, after: After) -> Result<bool, String> {
        let not_happened = self.fits(found, after, false);
        match (&self.pending, not_happened) {
            (_, Ok(())) => Ok(false),
            (None, Err(error)) => Err(error),
            (Some(pending), Err(error)) => match self.fits(found, after, true) {
                Ok(()) => Ok(true),
                Err(other) => {
                    let change = &pending.change;
                    Err(format!("if {change:?} has not happened: {error}; if it has: {other}"))
                }
            },
        }
    }

    /// Whether this may be found if the change in flight has, or has not, `happened`.
    fn fits(&self, found: &Found, after: After, happened: bool) -> Result<(), String> {
        let pending = self.pending.as_ref().map_or(NEVER, |pending| pending.begun);
        let change = self
            .pending
            .as_ref()
            .filter(|_| happened)
            .map(|pending| &pending.change);
        let size = match change {
            Some(Change::Apply(index)) => self.size_of(*index),
            Some(Change::Resize(size)) => *size,
            _ => self.size,
        };
        if found.sectors.len() as u64 != size {
            return Err(format!(
                "the disk has {} sectors instead of {size}",
                found.sectors.len()
            ));
        }
        let is_sure = |value: &Value| match after {
            After::Kill => value.completed != NEVER || value.change == pending,
            // What was complete before a change is durable with it.
            After::PowerLoss => value.durable || (happened && (value.change == pending || value.completed < pending)),
        };
        for (sector, id) in found.sectors.iter().enumerate() {
            let values = &self.sectors[sector];
            let is_allowed = if happened || pending == NEVER {
                allowed(values, is_sure)
            } else {
                let without: Vec<Value> = values.iter().filter(|value| value.change != pending).copied().collect();
                allowed(&without, is_sure)
            };
            if !is_allowed.contains(id) {
                return Err(format!("sector {sector} is of write {id}; allowed are {is_allowed:?}"));
            }
        }
        self.snapshots_fit(found, change)
    }

    fn snapshots_fit(&self, found: &Found, change: Option<&Change>) -> Result<(), String> {
        let mut expected: Vec<(&str, &[Vec<Id>])> = self
            .snapshots
            .iter()
            .map(|snapshot| (&*snapshot.name, &*snapshot.content))
            .collect();
        let created;
        match (change, &self.pending) {
            (Some(Change::Delete(index)), _) => {
                expected.remove(*index);
            }
            (Some(Change::Create(name)), Some(pending)) => {
                created = self.at_creation(pending.begun);
                expected.push((name, &created));
            }
            _ => {}
        }
        let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        let found_names: Vec<&str> = found.snapshots.iter().map(|(name, _)| &**name).collect();
        if names != found_names {
            return Err(format!("the snapshots are {found_names:?} instead of {names:?}"));
        }
        for ((name, content), (_, found)) in expected.iter().zip(&found.snapshots) {
            if content.len() != found.len() {
                return Err(format!(
                    "snapshot {name} has {} sectors instead of {}",
                    found.len(),
                    content.len()
                ));
            }
            for (sector, (allowed, id)) in content.iter().zip(found).enumerate() {
                if !allowed.contains(id) {
                    return Err(format!(
                        "sector {sector} of snapshot {name} is of write {id}; allowed are {allowed:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Nothing is in flight any more, and this was found; as [`Oracle::judge`] said, the change that was in flight has `happened`.
    pub fn settle(&mut self, found: &Found, after: After, happened: bool) {
        let pending = self.pending.as_ref().map_or(NEVER, |pending| pending.begun);
        if happened {
            self.complete_change();
        } else {
            self.refuse_change();
        }
        self.tick();
        let now = self.tick();
        for (sector, values) in self.sectors.iter_mut().enumerate() {
            // What lies beyond the end of the disk reads as zeros if it grows.
            let id = found.sectors.get(sector).copied().unwrap_or(0);
            if after == After::PowerLoss || sector >= found.sectors.len() {
                *values = vec![Value::settled(id)];
                continue;
            }
            // Complete as it is, a power loss may still undo it: what was overwritten, or given up half-way, may have reached the disk.
            let durable = values.iter().filter(|value| value.durable && !value.hint);
            let last_begun = durable.map(|value| value.begun).max().unwrap_or(0);
            values.retain(|value| value.completed >= last_begun && value.change != pending);
            values
                .iter_mut()
                .for_each(|value| value.completed = value.completed.min(now - 1));
            if values.iter().any(|value| !value.durable || value.id != id) {
                values.sort_by_key(|value| (value.id, !value.durable, value.begun));
                values.dedup_by_key(|value| (value.id, value.durable));
                values.push(Value {
                    begun: now,
                    completed: now,
                    durable: false,
                    ..Value::settled(id)
                });
            }
        }
        for (snapshot, (_, content)) in self.snapshots.iter_mut().zip(&found.snapshots) {
            snapshot.content = content.iter().map(|id| vec![*id]).collect();
        }
    }
}
