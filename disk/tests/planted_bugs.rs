//! The simulation can fail: bugs that are planted on purpose are caught. `cargo xtask simulate --planted-bugs` hunts all of them; these
//! are the ones that take few scripts.
#![cfg(feature = "planted-bugs")]

mod judge;
mod model;

use disk::planted_bug::Bug;

/// More than each of them took.
const MOST_SCRIPTS: u64 = 400;

#[test]
fn bugs_in_each_step_and_at_each_barrier_are_caught() {
    for bug in [
        Bug::RefcountNotRaised,
        Bug::LinkedBeforeWritten,
        Bug::OldContentLeftOut,
        Bug::SharedTableChanged,
        Bug::LinkForgetsOld,
        Bug::LinksBeforeRefcounts,
        Bug::NoBarrierBeforeLinks,
        Bug::NoBarrierAfterLinks,
        Bug::NoBarrierBeforeRefcountTable,
        Bug::CopiesTakenLate,
        Bug::DirtyNotAnnounced,
        Bug::CleanNotAnnounced,
        Bug::SurvivorsIgnored,
        Bug::RefcountsNotRebuilt,
        Bug::CountsWhatIsNotDurable,
        Bug::TableNamedBeforeDurable,
        Bug::ReadersDoNotWait,
        Bug::WritesForgotten,
    ] {
        let caught = model::planted::hunt(bug, MOST_SCRIPTS);
        println!(
            "{bug:?}: {} scripts, {:.1} s, {:?}",
            caught.scripts, caught.seconds, caught.failure
        );
        assert!(
            caught.failure.is_some(),
            "{bug:?} ({}) is not caught: the simulation is blind",
            bug.what()
        );
    }
}
