//! Step 5 without step 4: the table still points at the old clusters.

use disk::five_steps::{Filled, Image};

fn wrong<I: Image>(filled: Filled<I>) {
    filled.release();
}

fn main() {}
