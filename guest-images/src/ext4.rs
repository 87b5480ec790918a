//! ext4 images as files: made from a folder, checked, and read from, without mounting.

use std::path::Path;

use crate::Error;
use crate::tool::{failed, run, tool};

/// Makes `image`, a sparse file of `size` bytes with an ext4 filesystem that holds the content of `folder`, owned by root.
///
/// # Errors
/// If `mke2fs` is missing or fails, for example because the content does not fit.
pub fn ext4_from_directory(folder: &Path, image: &Path, size: u64) -> Result<(), Error> {
    let mut command = tool("mke2fs")?;
    command.args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d"]);
    command.arg(folder).arg(image).arg(format!("{}k", size / 1024));
    run(&mut command)?;
    Ok(())
}

/// Copies the file `path` (from the root of the filesystem) out of the ext4 image `image` to `to`.
///
/// # Errors
/// If `debugfs` is missing, or says anything: it reports errors in words and not by its exit status.
pub fn dump_from_ext4(image: &Path, path: &str, to: &Path) -> Result<(), Error> {
    let mut command = tool("debugfs")?;
    command
        .arg("-R")
        .arg(format!("dump \"{path}\" \"{}\"", to.display()))
        .arg(image);
    let output = run(&mut command)?;
    // The first line is debugfs's own name and version.
    let complained = String::from_utf8_lossy(&output.stderr).lines().count() > 1;
    if complained {
        Err(failed(&command, &output))
    } else {
        Ok(())
    }
}

/// Copies all files of the ext4 image `image` to the folder `to`.
///
/// # Errors
/// If `debugfs` is missing, or says anything but that who runs this may not give files away.
pub fn folder_from_ext4(image: &Path, to: &Path) -> Result<(), Error> {
    let mut command = tool("debugfs")?;
    command
        .arg("-R")
        .arg(format!("rdump / \"{}\"", to.display()))
        .arg(image);
    let output = run(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    // The first line is debugfs's own name and version.
    let complained = said.lines().skip(1).any(|line| !line.contains("changing ownership"));
    if complained {
        Err(failed(&command, &output))
    } else {
        Ok(())
    }
}

/// Checks the ext4 filesystem in the raw image `image` from end to end, changing nothing.
///
/// # Errors
/// If `e2fsck` is missing or finds anything to correct.
pub fn check_ext4(image: &Path) -> Result<(), Error> {
    let mut command = tool("e2fsck")?;
    let output = run(command.args(["-f", "-n"]).arg(image))?;
    drop(output);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn file_comes_back_out_of_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("image"));
        fs::create_dir_all(content.join("disks")).unwrap();
        fs::write(content.join("disks/a"), b"hello").unwrap();

        ext4_from_directory(&content, &image, 8 << 20).unwrap();
        dump_from_ext4(&image, "/disks/a", &folder.path().join("out")).unwrap();

        assert_eq!(fs::read(folder.path().join("out")).unwrap(), b"hello");
        let all = folder.path().join("all");
        fs::create_dir(&all).unwrap();
        folder_from_ext4(&image, &all).unwrap();
        assert_eq!(fs::read(all.join("disks/a")).unwrap(), b"hello");
        check_ext4(&image).unwrap();
    }

    #[test]
    fn file_that_is_not_in_the_image_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        ext4_from_directory(folder.path(), &image, 8 << 20).unwrap();

        let error = dump_from_ext4(&image, "/absent", &folder.path().join("out")).unwrap_err();

        assert!(error.to_string().contains("File not found"), "{error}");
    }
}
