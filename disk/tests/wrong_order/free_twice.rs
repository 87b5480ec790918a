//! One reference that is taken back twice.

use disk::five_steps::{Image, Unlinked};

fn wrong<I: Image>(unlinked: Unlinked<I>) {
    unlinked.release();
    unlinked.release();
}

fn main() {}
