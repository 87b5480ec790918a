//! Promise T, for `spindle run`: whatever is wrong with its input, it says one clear line and exits with an error.

use std::fs;
use std::path::Path;
use std::time::Duration;

use guest_images::{Image, run_tool};
use system_tests::{Host, Run};

/// A header field set to nonsense: a name for the case, what the message must speak of, and the bytes to put where.
struct Nonsense {
    name: &'static str,
    speaks_of: &'static str,
    patches: &'static [(usize, &'static [u8])],
}

const fn nonsense(name: &'static str, speaks_of: &'static str, patches: &'static [(usize, &'static [u8])]) -> Nonsense {
    Nonsense {
        name,
        speaks_of,
        patches,
    }
}

/// The fields that both versions have (qcow2 specification, "Header").
const BOTH_VERSIONS: &[Nonsense] = &[
    nonsense("magic", "not a qcow2", &[(0, b"QFI\0")]),
    nonsense("version-0", "version", &[(4, &[0, 0, 0, 0])]),
    nonsense("version-1", "version", &[(4, &[0, 0, 0, 1])]),
    nonsense("version-4", "version", &[(4, &[0, 0, 0, 4])]),
    nonsense(
        "backing-name-beyond-the-file",
        "backing",
        &[(8, &[0x7f, 0, 0, 0, 0, 0, 0, 0]), (16, &[0, 0, 0, 9])],
    ),
    nonsense(
        "backing-name-too-long",
        "backing",
        &[(8, &[0, 0, 0, 0, 0, 0, 2, 0]), (16, &[0xff; 4])],
    ),
    nonsense(
        "backing-file-missing",
        "absent",
        &[(8, &[0, 0, 0, 0, 0, 0, 2, 0]), (16, &[0, 0, 0, 6]), (512, b"absent")],
    ),
    nonsense("cluster-bits-0", "cluster", &[(20, &[0; 4])]),
    nonsense("cluster-bits-8", "cluster", &[(20, &[0, 0, 0, 8])]),
    nonsense("cluster-bits-22", "cluster", &[(20, &[0, 0, 0, 22])]),
    nonsense("cluster-bits-huge", "cluster", &[(20, &[0xff; 4])]),
    nonsense("size-huge", "size", &[(24, &[0xff; 8])]),
    nonsense("size-beyond-l1", "l1", &[(24, &[0, 1, 0, 0, 0, 0, 0, 0])]),
    nonsense("crypt-aes", "crypt", &[(32, &[0, 0, 0, 1])]),
    nonsense("crypt-unknown", "crypt", &[(32, &[0xff; 4])]),
    nonsense("l1-empty", "l1", &[(36, &[0; 4])]),
    nonsense("l1-huge", "l1", &[(36, &[0xff; 4])]),
    nonsense("l1-offset-unaligned", "l1", &[(40, &[0, 0, 0, 0, 0, 3, 0, 1])]),
    nonsense("l1-offset-beyond", "l1", &[(40, &[0x40, 0, 0, 0, 0, 0, 0, 0])]),
    nonsense("refcount-table-offset-0", "refcount", &[(48, &[0; 8])]),
    nonsense(
        "refcount-table-unaligned",
        "refcount",
        &[(48, &[0, 0, 0, 0, 0, 1, 0, 8])],
    ),
    nonsense(
        "refcount-table-beyond",
        "refcount",
        &[(48, &[0x40, 0, 0, 0, 0, 0, 0, 0])],
    ),
    nonsense("refcount-table-empty", "refcount", &[(56, &[0; 4])]),
    nonsense("refcount-table-huge", "refcount", &[(56, &[0xff; 4])]),
    nonsense("snapshots-too-many", "snapshot", &[(60, &[0xff; 4])]),
    nonsense(
        "snapshots-unaligned",
        "snapshot",
        &[(60, &[0, 0, 0, 1]), (64, &[0, 0, 0, 0, 0, 3, 0, 1])],
    ),
    nonsense(
        "snapshots-beyond",
        "snapshot",
        &[(60, &[0, 0, 0, 1]), (64, &[0x40, 0, 0, 0, 0, 0, 0, 0])],
    ),
];

/// And those of version 3 alone.
const VERSION_3: &[Nonsense] = &[
    nonsense("incompatible-unknown", "incompatible", &[(72, &[0x80])]),
    nonsense("incompatible-external-data", "external", &[(79, &[1 << 2])]),
    nonsense("incompatible-extended-l2", "extended", &[(79, &[1 << 4])]),
    nonsense("refcount-order-7", "refcount", &[(96, &[0, 0, 0, 7])]),
    nonsense("refcount-order-huge", "refcount", &[(96, &[0xff; 4])]),
    nonsense("header-length-0", "header", &[(100, &[0; 4])]),
    nonsense("header-length-odd", "header", &[(100, &[0, 0, 0, 109])]),
    nonsense("header-length-huge", "header", &[(100, &[0xff; 4])]),
    nonsense("compression-unknown", "compression", &[(79, &[1 << 3]), (104, &[9])]),
];

/// One call of `spindle run` and what must come of it.
struct Case {
    name: String,
    arguments: String,
    code: i32,
    speaks_of: String,
}

/// A call that stands on its own: name, arguments, exit code, and what the message must speak of.
const CALLS: &[(&str, &str, i32, &str)] = &[
    ("no kernel", "--disk disks/good.qcow2", 2, "kernel"),
    ("unknown option", "--kernel base/vmlinux --bogus", 2, "bogus"),
    (
        "unknown format",
        "--kernel base/vmlinux --disk disks/good.qcow2,format=vmdk",
        2,
        "vmdk",
    ),
    (
        "unknown slot",
        "--kernel base/vmlinux --disk disks/good.qcow2,slot=hde",
        2,
        "hde",
    ),
    (
        "unknown disk option",
        "--kernel base/vmlinux --disk disks/good.qcow2,colour=red",
        2,
        "colour",
    ),
    ("no cpus", "--kernel base/vmlinux --cpus 0", 2, "cpus"),
    ("memory is no number", "--kernel base/vmlinux --memory lots", 2, "lots"),
    ("unknown console", "--kernel base/vmlinux --console tcp:1", 2, "tcp:1"),
    ("missing kernel", "--kernel absent", 1, "absent"),
    ("missing initrd", "--kernel base/vmlinux --initrd absent", 1, "absent"),
    (
        "missing disk",
        "--kernel base/vmlinux --disk absent,format=qcow2",
        1,
        "absent",
    ),
    (
        "folder as disk",
        "--kernel base/vmlinux --disk base,format=raw",
        1,
        "base",
    ),
    ("text as kernel", "--kernel disks/text", 1, "disks/text"),
    ("empty kernel", "--kernel disks/empty", 1, "disks/empty"),
    ("cut off bzimage", "--kernel disks/cut-bzimage", 1, "disks/cut-bzimage"),
    ("cut off vmlinux", "--kernel disks/cut-vmlinux", 1, "disks/cut-vmlinux"),
    (
        "empty file as qcow2",
        "--kernel base/vmlinux --disk disks/empty,format=qcow2",
        1,
        "disks/empty",
    ),
    (
        "text as qcow2",
        "--kernel base/vmlinux --disk disks/text,format=qcow2",
        1,
        "not a qcow2",
    ),
    (
        "qcow2 cut in its header",
        "--kernel base/vmlinux --disk disks/cut-header,format=qcow2",
        1,
        "disks/cut-header",
    ),
    (
        "qcow2 cut before its tables",
        "--kernel base/vmlinux --disk disks/cut-tables,format=qcow2",
        1,
        "disks/cut-tables",
    ),
];

#[test]
#[ignore = "boots the nested host: `cargo xtask test` runs it"]
fn each_bad_input_gives_one_clear_line_and_an_error_code() {
    let host = Host::for_guest(Image::Tiny).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut cases = call_cases();
    add_broken_files(&host, folder.path());
    for (version, compat) in [(2, "0.10"), (3, "1.1")] {
        add_broken_headers(&host, folder.path(), version, compat, &mut cases);
    }
    let script = folder.path().join("script");
    fs::write(&script, script_of(&cases)).unwrap();
    host.add_file("script", &script).unwrap();
    let mut run = Run::new(["sh", "script"].map(str::to_owned).into());
    run.timeout = Duration::from_secs(600);

    let outcome = host.run(run).unwrap();

    let text = outcome.text();
    let results: Vec<&str> = text.split("@case\n").skip(1).collect();
    assert_eq!(results.len(), cases.len(), "{text}\n{}", outcome.stderr);
    let complaints: Vec<String> = cases
        .iter()
        .zip(results)
        .filter_map(|(case, result)| complaint(case, result))
        .collect();
    assert!(
        complaints.is_empty(),
        "{} of {} cases:\n{}",
        complaints.len(),
        cases.len(),
        complaints.join("\n")
    );
}

/// What is wrong with how spindle took the case, if anything is.
fn complaint(case: &Case, result: &str) -> Option<String> {
    let (stderr, code) = result.rsplit_once("@code ")?;
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.is_empty()).collect();
    let spoken = stderr.to_lowercase().contains(&case.speaks_of.to_lowercase());
    // clap explains wrong usage in several lines; everything else is one.
    let right = code.trim() == case.code.to_string()
        && spoken
        && !stderr.contains("panicked")
        && (lines.len() == 1 || (case.code == 2 && !lines.is_empty()));
    (!right).then(|| {
        format!(
            "{}: code {} instead of {}, must speak of {}: {stderr:?}",
            case.name,
            code.trim(),
            case.code,
            case.speaks_of
        )
    })
}

fn script_of(cases: &[Case]) -> String {
    let one = |case: &Case| {
        let call = format!("timeout -s KILL 20 ./spindle run {}", case.arguments);
        format!("echo @case; {call} </dev/null >/dev/null 2>/tmp/stderr; code=$?; cat /tmp/stderr; echo @code $code\n")
    };
    cases.iter().map(one).collect()
}

fn call_cases() -> Vec<Case> {
    let one = |&(name, arguments, code, speaks_of): &(&str, &str, i32, &str)| Case {
        name: name.to_owned(),
        arguments: arguments.to_owned(),
        code,
        speaks_of: speaks_of.to_owned(),
    };
    CALLS.iter().map(one).collect()
}

fn add_broken_files(host: &Host, folder: &Path) {
    let base = host.base_folder().unwrap();
    let cut = |name: &str, length: usize| fs::read(base.join(name)).unwrap()[..length].to_vec();
    let good = good_image(folder, "1.1");
    for (name, content) in [
        ("text", b"This is no kernel and no disk, but a text.\n".repeat(100)),
        ("empty", Vec::new()),
        ("cut-bzimage", cut("vmlinuz", 100_000)),
        ("cut-vmlinux", cut("vmlinux", 100_000)),
        ("cut-header", good[..60].to_vec()),
        ("cut-tables", good[..65536].to_vec()),
        ("good.qcow2", good),
    ] {
        let file = folder.join("broken");
        fs::write(&file, content).unwrap();
        host.add_file(&format!("disks/{name}"), &file).unwrap();
    }
}

fn add_broken_headers(host: &Host, folder: &Path, version: u32, compat: &str, cases: &mut Vec<Case>) {
    let good = good_image(folder, compat);
    let of_this_version = if version == 3 { VERSION_3 } else { &[] };
    for (number, nonsense) in BOTH_VERSIONS.iter().chain(of_this_version).enumerate() {
        let mut image = good.clone();
        for (at, bytes) in nonsense.patches {
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        // Without a telling name: the message must speak of the field by itself.
        let disk = format!("disks/v{version}-{number}.qcow2");
        let file = folder.join("patched");
        fs::write(&file, image).unwrap();
        host.add_file(&disk, &file).unwrap();
        cases.push(Case {
            arguments: format!("--kernel base/vmlinux --disk {disk},format=qcow2"),
            name: format!("version {version}, {}", nonsense.name),
            code: 1,
            speaks_of: nonsense.speaks_of.to_owned(),
        });
    }
}

fn good_image(folder: &Path, compat: &str) -> Vec<u8> {
    let file = folder.join("good");
    let options = format!("compat={compat}");
    let arguments = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &options,
        &file.to_string_lossy(),
        "64M",
    ]
    .map(str::to_owned);
    run_tool("qemu-img", arguments).unwrap();
    fs::read(file).unwrap()
}
