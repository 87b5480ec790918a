//! Data that is written and then forgotten.

#![deny(unused_must_use)]

use disk::five_steps::{Allocated, Image};

async fn wrong<I: Image>(allocated: Allocated<I>, content: I::Content) -> Result<(), I::Error> {
    allocated.write(content).await?;
    Ok(())
}

fn main() {}
