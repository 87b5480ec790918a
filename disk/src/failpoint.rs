//! Named places of the write path and of recovery at which a test has this process killed.
//!
//! In debug builds, and with the feature `failpoints`; elsewhere a [`hit`] is nothing. Two variables of the environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `SPINDLE_FAILPOINT=NAME:N` | the N-th time that the point NAME is passed, the process kills itself by SIGKILL |
//! | `SPINDLE_FAILPOINT_TRACE=FILE` | 64-bit words of a file that outlives the process: the last point passed, counted from 1, then how often each was |
//!
//! SIGKILL, as nothing else ends a process without a chance to put things right. Names are those of QEMU's blkdebug events where
//! it has one for the place.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place that is passed on the way of a request, a write-back, an open or a close.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(dead_code, reason = "some builds have no failpoints")]
        pub(crate) enum Point { $($(#[$doc])* $point,)* }

        /// The names, in the order of the points.
        pub const NAMES: &[&str] = &[$($name,)*];
    };
}

points! {
    /// The cache file has its pages and not yet its name.
    CacheFileMade = "cache_file_made",
    /// It has its name: it takes the place of one that was taken up.
    CacheFileNamed = "cache_file_named",
    /// Before a surviving slice of a killed process is written.
    RecoverWrite = "recover_write",
    /// Before the barrier behind one kind of surviving slices.
    RecoverBarrier = "recover_barrier",
    /// Before a refcount block is written that recovery set right.
    RecoverRefcounts = "recover_refcounts",
    /// Before the barrier behind these.
    RecoverRefcountsBarrier = "recover_refcounts_barrier",
    /// Before the dirty bit is set.
    DirtyBitSet = "dirty_bit_set",
    /// Data is about to be written over what was there.
    WriteInPlace = "pwritev",
    /// Step 1: a run of clusters has its refcounts, in the cache.
    ClusterAlloc = "cluster_alloc",
    /// A refcount block is needed.
    RefblockAlloc = "refblock_alloc",
    /// The new refcount block is written.
    RefblockAllocWrite = "refblock_alloc_write",
    /// And is about to be named by the table.
    RefblockAllocHookup = "refblock_alloc_hookup",
    /// A larger refcount table is needed.
    ReftableGrow = "reftable_grow",
    /// It and its blocks are written.
    ReftableGrowWrite = "refblock_alloc_write_table",
    /// The header names it, and that is not durable.
    ReftableGrowSwitch = "refblock_alloc_switch_table",
    /// Step 3: what surrounds the guest's data is about to be read.
    CowRead = "cow_read",
    /// Steps 2 and 3: data and what surrounds it are about to be written in one.
    CowWrite = "cow_write",
    /// Step 2: data is about to be written to new clusters.
    WriteAio = "write_aio",
    /// Steps 2 and 3 are complete.
    WriteDone = "write_done",
    /// A new L2 table is about to be written.
    L2AllocWrite = "l2_alloc_write",
    /// Step 4: before each L2 entry of a run.
    L2Update = "l2_update",
    /// Step 4 for an L2 table: before its L1 entry.
    L1Update = "l1_update",
    /// Before clusters lose their L2 entries to a discard or to zeros.
    Discard = "discard",
    /// Step 5: unlinked clusters are about to go to quarantine.
    Quarantine = "quarantine",
    /// A slot of the cache file is announced as dirty, and its store is still to come.
    CacheAnnounce = "cache_announce",
    /// The store is made.
    CacheStore = "cache_store",
    /// A slot is announced as clean.
    CacheClean = "cache_clean",
    /// A write-back has taken its copies.
    WriteBack = "write_back",
    /// Before refcount blocks are written.
    RefblockUpdate = "refblock_update",
    /// Before the barrier ahead of the refcount table.
    ReftableBarrier = "reftable_barrier",
    /// Before the refcount table is written.
    ReftableUpdate = "reftable_update",
    /// Before the first barrier: refcounts, data and new tables.
    DataBarrier = "flush_to_disk",
    /// Before the copies of the L2 slices are written.
    L2WriteBack = "l2_write_back",
    /// Before the second barrier: the links.
    LinkBarrier = "link_barrier",
    /// The links are durable.
    LinksDurable = "links_durable",
    /// Before clusters that left quarantine lose a reference.
    ClusterFree = "cluster_free",
    /// Before the space of such a cluster is given back.
    PunchHole = "punch_hole",
    /// Before the one write that switches the header to other tables.
    HeaderSwitch = "header_switch",
    /// That write is done and not durable.
    HeaderSwitched = "header_switched",
    /// Before the dirty bit is cleared, on close.
    DirtyBitClear = "dirty_bit_clear",
    /// It is cleared, and the cache file is about to go.
    CacheFileRemove = "cache_file_remove",
}

/// The process passes `point`.
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub(crate) fn hit(point: Point) {
    armed::hit(point);
}

/// The process passes `_point`.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[inline(always)]
pub(crate) fn hit(_point: Point) {}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::env;
    use std::fs::File;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::{NAMES, Point};
    use crate::Buffer;

    struct Armed {
        fatal: Option<(usize, u64)>,
        hits: AtomicU64,
        trace: Option<Buffer>,
    }

    pub(super) fn hit(point: Point) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let Some(armed) = ARMED.get_or_init(from_environment) else {
            return;
        };
        let index = point as usize;
        if let Some(trace) = &armed.trace {
            count(trace, index);
        }
        if let Some((fatal, wanted)) = armed.fatal
            && fatal == index
            && armed.hits.fetch_add(1, Ordering::Relaxed) + 1 == wanted
        {
            // Nothing comes after a SIGKILL of one's own, and the only error is that there is no such process.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// One thread stores at a time: whoever has the engine.
    fn count(trace: &Buffer, index: usize) {
        let mut word = [0; 8];
        trace.copy_to_slice((index + 1) * 8, &mut word);
        trace.copy_from_slice((index + 1) * 8, &(u64::from_ne_bytes(word) + 1).to_ne_bytes());
        trace.copy_from_slice(0, &(index as u64 + 1).to_ne_bytes());
    }

    /// `None` where neither variable is set.
    ///
    /// # Panics
    /// If one is set to what cannot be done: a test that kills nothing must not pass.
    fn from_environment() -> Option<Armed> {
        let fatal = env::var("SPINDLE_FAILPOINT").ok().map(|text| {
            parse(&text)
                .unwrap_or_else(|| panic!("SPINDLE_FAILPOINT={text}: allowed is NAME:N with a name of {NAMES:?}"))
        });
        let trace = env::var_os("SPINDLE_FAILPOINT_TRACE").map(|path| {
            File::options()
                .read(true)
                .write(true)
                .open(&path)
                .and_then(|file| Buffer::map_shared(&file, (NAMES.len() + 1) * 8))
                .unwrap_or_else(|error| panic!("SPINDLE_FAILPOINT_TRACE={}: {error}", path.display()))
        });
        (fatal.is_some() || trace.is_some()).then(|| Armed {
            fatal,
            hits: AtomicU64::new(0),
            trace,
        })
    }

    fn parse(text: &str) -> Option<(usize, u64)> {
        let (name, wanted) = text.split_once(':')?;
        let index = NAMES.iter().position(|known| *known == name)?;
        Some((index, wanted.parse().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_and_its_count_are_read_and_what_is_unknown_is_not() {
            assert_eq!(parse("cache_file_named:3"), Some((Point::CacheFileNamed as usize, 3)));
            assert_eq!(NAMES[Point::CacheFileRemove as usize], "cache_file_remove");
            for text in ["", "l2_update", "l2_updates:1", "l2_update:x"] {
                assert_eq!(parse(text), None, "{text}");
            }
        }
    }
}
