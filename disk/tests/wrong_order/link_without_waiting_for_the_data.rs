//! Step 4 while the write of step 2 is in flight.

use disk::five_steps::{Allocated, Image};

fn wrong<I: Image>(allocated: Allocated<I>, content: I::Content) {
    allocated.write(content).linked(Default::default()).release();
}

fn main() {}
