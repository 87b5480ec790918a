//! qemu-img, the judge of what spindle writes.

use std::path::Path;

use anyhow::Result;
use guest_images::run_tool;

/// Makes `overlay`, an empty qcow2 image over the qcow2 image that it will name as `backing`, relative to itself.
///
/// # Errors
/// If `qemu-img` is missing or refuses.
pub fn create_overlay(overlay: &Path, backing: &str) -> Result<()> {
    let options = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing].map(AsRef::as_ref);
    run_tool("qemu-img", options.into_iter().chain([overlay.as_os_str()]))?;
    Ok(())
}

/// `qemu-img check` on a qcow2 image. Returns what it printed.
///
/// # Errors
/// If it finds corruption, leaks or an error.
pub fn check_image(image: &Path) -> Result<String> {
    let arguments = ["check", "-f", "qcow2"].map(AsRef::as_ref);
    let output = run_tool("qemu-img", arguments.into_iter().chain([image.as_os_str()]))?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Writes what a guest sees on the qcow2 image `image` to the raw file `raw`.
///
/// # Errors
/// If `qemu-img` is missing or refuses.
pub fn convert_to_raw(image: &Path, raw: &Path) -> Result<()> {
    let arguments = ["convert", "-f", "qcow2", "-O", "raw"].map(AsRef::as_ref);
    run_tool(
        "qemu-img",
        arguments.into_iter().chain([image.as_os_str(), raw.as_os_str()]),
    )?;
    Ok(())
}
