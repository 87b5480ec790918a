//! Builds every guest and the nested host, and says where they are.

use std::path::Path;

use guest_images::{Guest, Image, NestedHost, Store};

fn main() -> Result<(), guest_images::Error> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let store = Store::open(&target, |step| eprintln!("{step}"))?;
    println!("{:#?}", NestedHost::get(&store)?);
    println!("{:#?}", Guest::get(&store, Image::Tiny)?);
    println!("{:#?}", Guest::get(&store, Image::Debian)?);
    Ok(())
}
