//! A metadata cache that a killed process left behind is given to its own image, and to no other.
//!
//! An engine that is dropped leaves what a killed process does: a dirty image, and its cache on tmpfs.

mod session;

use std::path::{Path, PathBuf};

use disk::{Aio, CreateOptions, Format};
use session::{Session, Workshop};

const SIZE: u64 = 16 << 20;

fn create(workshop: &Workshop, name: &str) {
    workshop.put(name, &CreateOptions::new(SIZE).metadata().expect("valid"));
}

/// Writes `value` to all of the first MiB, and is killed.
fn write_and_be_killed(path: &Path, value: u8) {
    let session = Session::open(path, Format::Qcow2, Aio::IoUring);
    session.write(0, &vec![value; 1 << 20]);
    drop(session);
}

fn cache_of(path: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().expect("is there");
    let name = format!("spindle-{:x}-{:x}.cache", metadata.dev(), metadata.ino());
    let places = ["/dev/shm", "/run"].map(|directory| Path::new(directory).join(&name));
    places
        .into_iter()
        .find(|place| place.exists())
        .expect("a cache was left behind")
}

/// Puts the bytes of another image into this one's file, which stays the same file.
fn overwrite(workshop: &Workshop, name: &str, other: &str) {
    let bytes = workshop.bytes(other);
    std::fs::write(workshop.file(name), bytes).expect("written");
}

#[test]
fn what_a_killed_process_left_goes_into_its_image() {
    let workshop = Workshop::new();
    create(&workshop, "disk.qcow2");
    write_and_be_killed(&workshop.file("disk.qcow2"), 7);
    let cache = cache_of(&workshop.file("disk.qcow2"));
    // The token has been renewed since; the image is known all the same.
    write_and_be_killed(&workshop.file("disk.qcow2"), 8);
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    assert!(session.read(0, 1 << 20).iter().all(|byte| *byte == 8));
    session.close();
    assert!(!cache.exists());
    workshop.check("disk.qcow2");
}

#[test]
fn a_dirty_image_that_was_copied_over_another_is_not_given_its_metadata() {
    let workshop = Workshop::new();
    create(&workshop, "disk.qcow2");
    create(&workshop, "other.qcow2");
    write_and_be_killed(&workshop.file("disk.qcow2"), 1);
    // The other has as much in it, so only its header tells it apart.
    let session = Session::open(&workshop.file("other.qcow2"), Format::Qcow2, Aio::IoUring);
    session.write(0, &vec![2; 1 << 20]);
    session.write(8 << 20, &vec![3; 1 << 20]);
    session.run(disk::Command::Flush);
    drop(session);
    overwrite(&workshop, "disk.qcow2", "other.qcow2");

    let before = workshop.bytes("disk.qcow2");
    let refused = Session::try_open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    let message = refused.err().expect("it is another image").to_string();
    let cache = cache_of(&workshop.file("disk.qcow2"));
    assert!(message.contains(&cache.display().to_string()), "{message}");
    assert!(message.contains("belongs to another image"), "{message}");
    assert!(workshop.bytes("disk.qcow2") == before, "a refused image is not touched");

    std::fs::remove_file(cache).expect("removed, as the message says");
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    assert!(session.read(0, 1 << 20).iter().all(|byte| *byte == 2));
    session.close();
    workshop.check("disk.qcow2");
}

#[test]
fn an_image_that_was_cut_off_is_not_given_its_metadata() {
    let workshop = Workshop::new();
    create(&workshop, "disk.qcow2");
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    session.write(0, &vec![1; 1 << 20]);
    session.close();
    write_and_be_killed(&workshop.file("disk.qcow2"), 2);
    let file = std::fs::File::options().write(true).open(workshop.file("disk.qcow2"));
    file.and_then(|file| file.set_len(5 << 16)).expect("cut off");
    let refused = Session::try_open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    let message = refused.err().expect("it is cut off").to_string();
    assert!(message.contains("bytes, and this one has 327680"), "{message}");
    std::fs::remove_file(cache_of(&workshop.file("disk.qcow2"))).expect("removed");
}

#[test]
fn images_that_qemu_made_get_a_token_where_there_is_room_and_qemu_keeps_it() {
    let token_at = |workshop: &Workshop, name: &str| {
        let header = workshop.bytes(name)[..4096].to_vec();
        header.windows(8).position(|bytes| bytes == b"spnd\0\0\0\x10")
    };
    let workshop = Workshop::new();
    workshop.img(&["create", "-q", "-f", "qcow2", "base.qcow2", "16M"]);
    workshop.img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        "base.qcow2",
        "overlay.qcow2",
    ]);
    workshop.img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        "small.qcow2",
        "1M",
    ]);
    for (name, has_room) in [("base.qcow2", true), ("overlay.qcow2", false), ("small.qcow2", true)] {
        for value in 1..4 {
            let session = Session::open(&workshop.file(name), Format::Qcow2, Aio::Threads);
            session.write(0, &vec![value; 4096]);
            session.close();
            workshop.check(name);
        }
        assert_eq!(token_at(&workshop, name).is_some(), has_room, "{name}");
        // Killed, and taken up again, with a token or without.
        write_and_be_killed(&workshop.file(name), 9);
        let session = Session::open(&workshop.file(name), Format::Qcow2, Aio::Threads);
        assert!(session.read(0, 1 << 20).iter().all(|byte| *byte == 9), "{name}");
        session.close();
        workshop.check(name);
    }
    // QEMU writes the header anew; then it is ours again, with the same content.
    let bytes = |workshop: &Workshop| {
        let at = token_at(workshop, "base.qcow2").expect("it is kept");
        workshop.bytes("base.qcow2")[at + 8..at + 24].to_vec()
    };
    let before = bytes(&workshop);
    workshop.img(&["amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "base.qcow2"]);
    workshop.img(&["rebase", "-u", "-f", "qcow2", "-b", "", "base.qcow2"]);
    assert_eq!(bytes(&workshop), before);
    let session = Session::open(&workshop.file("base.qcow2"), Format::Qcow2, Aio::IoUring);
    assert!(session.read(0, 4096).iter().all(|byte| *byte == 9));
    session.close();
    assert_ne!(bytes(&workshop), before, "each time that it is opened it gets another");
    workshop.check("base.qcow2");
    workshop.img(&["info", "base.qcow2"]);
}
