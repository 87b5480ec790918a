//! Bugs that are planted on purpose, to show that the simulation catches each: the order is broken once in every step, at every
//! barrier, and wherever else a promise hangs on what comes before what.
//!
//! They exist with the feature `planted-bugs` alone, which builds without debug assertions refuse; otherwise
//! [`planted`] is the constant `false`. A planted bug is one of the thread that planted it.

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted bugs are for tests; they are never part of a release build");

/// Declares the bugs, each with the place where the order is broken and what is done there.
macro_rules! bugs {
    ($($bug:ident, $place:literal, $what:literal;)+) => {
        /// What is done wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $bug,)+
        }

        impl Bug {
            /// All of them.
            #[cfg(feature = "planted-bugs")]
            pub const ALL: &[Bug] = &[$(Bug::$bug),+];

            /// The part of the engine whose order is broken.
            #[cfg(feature = "planted-bugs")]
            pub fn place(self) -> &'static str {
                match self {
                    $(Bug::$bug => $place),+
                }
            }

            /// What is done wrong.
            #[cfg(feature = "planted-bugs")]
            pub fn what(self) -> &'static str {
                match self {
                    $(Bug::$bug => $what),+
                }
            }
        }
    };
}

bugs! {
    RefcountNotRaised, "step 1", "new clusters are used without a reference";
    LinkedBeforeWritten, "step 2", "the table points at new clusters while the guest's data is on its way there";
    OldContentLeftOut, "step 3", "what a write does not cover is not copied";
    ReusedCountsAsFresh, "step 3", "what a write does not cover of a cluster that was used before is not zeroed";
    SharedTableChanged, "step 4", "the L2 table that a snapshot shares is changed";
    LinkForgetsOld, "step 4", "the old clusters are not given up";
    FreedBeforeUnlinkDurable, "step 5", "old clusters are free as soon as the table in the cache has dropped them";
    LinksBeforeRefcounts, "write-back", "L2 slices are written before the refcounts that they need";
    NoBarrierBeforeLinks, "write-back", "the barrier between refcounts, data and L2 slices is left out";
    NoBarrierAfterLinks, "write-back", "the barrier behind the L2 slices is left out";
    NoBarrierBeforeRefcountTable, "write-back", "the barrier between new refcount blocks and the table that names them is left out";
    NoBarrierWithoutLinks, "write-back", "a flush with nothing to link does not sync";
    CopiesTakenLate, "write-back", "L2 slices are copied after the refcounts were written, not before";
    CleanBeforeWritten, "metadata cache", "slices count as clean when their write-back begins";
    LastChangeForgotten, "metadata cache", "slices that changed during their write-back count as clean";
    WordBeforeChecksum, "metadata cache", "the index says that a slot is dirty before it has the checksum of that";
    DirtyNotAnnounced, "metadata cache", "the index does not say that a slot is dirty";
    CleanNotAnnounced, "metadata cache", "the index does not say that a slot is clean again";
    SurvivorsIgnored, "recovery", "what a killed process left in its metadata cache is not written back";
    SurvivorLinksFirst, "recovery", "of that, L2 slices are written before refcounts";
    SurvivorsWithoutBarriers, "recovery", "of that, all is written without a barrier";
    RefcountsNotRebuilt, "recovery", "references are not counted";
    CountsWhatIsNotDurable, "recovery", "references are counted in tables that are in the page cache alone";
    ShrinkNotFinished, "recovery", "what lies behind the end of the disk stays mapped";
    SwitchBeforeFlush, "header switch", "the header is written before what it names is durable";
    NoBarrierAfterSwitch, "header switch", "the header counts as durable when it is written";
    OldTableFreedFirst, "header switch", "what the old header names is free before the new one is written";
    ReferencesNotRaised, "snapshot", "a snapshot's clusters get no reference from it";
    CopiedFlagsKept, "snapshot", "clusters that a snapshot shares are still written in place";
    OldTreeLoweredFirst, "snapshot", "applying one gives the old tree up before the header is switched";
    DeletedTreeLoweredFirst, "snapshot", "deleting one gives its tree up before the header is switched";
    CutOffBeforeSwitch, "resize", "a shrinking disk is cut off before it has its new size";
    SizeBeforeZeros, "resize", "a growing disk has its new size before what would show there is hidden";
    TableNamedBeforeDurable, "refcount table", "the header names a larger table that is not durable";
    NobodyWaits, "requests in flight", "requests that change the mapping of the same clusters run side by side";
    ReadersDoNotWait, "requests in flight", "who uses a mapping does not wait for who changes it";
    WritesForgotten, "cancellation", "clusters may be freed while a cancelled request is writing to them";
    NewClustersForgotten, "cancellation", "new clusters are given back while a cancelled request is writing to them";
    ClosedBeforeWritten, "close", "the dirty bit is cleared before the last refcounts are written";
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread's engines have this bug, and no other.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this is the bug that this thread's engines have.
#[cfg(feature = "planted-bugs")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// No engine has one.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
