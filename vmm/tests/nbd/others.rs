//! Clients that others wrote: QEMU's, libnbd's, fio's.

use serde_json::Value;

use crate::served::Workshop;

/// Bytes that do not compress and do not repeat, with a run of zeros in the middle; the same for each call.
fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes: Vec<u8> = (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    bytes[length / 4..length / 2].fill(0);
    bytes
}

fn qemu_io(workshop: &Workshop, uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    let text = workshop.run("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
    text
}

#[test]
fn qemu_io_reads_what_it_wrote_zeroed_and_discarded() {
    let workshop = Workshop::with_image("256M");
    let served = workshop.serve(&["--persistent"]);
    qemu_io(
        &workshop,
        &served.uri,
        &[
            "write -P 1 0 1M",
            "write -P 2 64M 4k",
            "write -f -P 3 100M 512",
            "aio_write -P 4 128M 1M",
            "aio_write -P 5 130M 64k",
            "aio_write -z 131M 64k",
            "aio_flush",
            "aio_read -P 4 128M 1M",
            "aio_read -P 5 130M 64k",
            "aio_flush",
            "flush",
            "write -z 256k 256k",
            "write -z -u 512k 256k",
            "write -z -f 64M 512",
            "discard 128M 512k",
            "read -P 1 0 256k",
            "read -P 0 256k 512k",
            "read -P 1 768k 256k",
            "read -P 0 64M 512",
            "read -P 2 67109376 3584",
            "read -P 3 100M 512",
            "read -P 0 128M 512k",
            "read -P 4 134742016 512k",
        ],
    );
    served.end();
    workshop.check();
    // QEMU reads the same from the file.
    let arguments = [
        "-f",
        "qcow2",
        "-c",
        "read -P 4 134742016 512k",
        "-c",
        "read -P 3 100M 512",
    ];
    let text = workshop.run("qemu-io", &[&arguments[..], &["disk.qcow2"]].concat());
    assert!(!text.contains("failed"), "{text}");
}

#[test]
fn qemu_img_converts_to_it_and_from_it() {
    let workshop = Workshop::with_image("32M");
    workshop.put("source.raw", &content(32 << 20));
    let served = workshop.serve(&["--persistent"]);
    let to_us = [
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        "-W",
        "source.raw",
        &served.uri,
    ];
    workshop.run("qemu-img", &to_us);
    let from_us = ["convert", "-f", "raw", "-O", "qcow2", &served.uri, "copy.qcow2"];
    workshop.run("qemu-img", &from_us);
    served.end();
    workshop.check();
    for image in ["disk.qcow2", "copy.qcow2"] {
        workshop.run(
            "qemu-img",
            &["compare", "-q", "-f", "raw", "-F", "qcow2", "source.raw", image],
        );
    }
    // The zeros in the middle take no space.
    let map = workshop.run("qemu-img", &["map", "--output=json", "-f", "qcow2", "disk.qcow2"]);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let zeros = map
        .as_array()
        .expect("a list")
        .iter()
        .filter(|run| run["data"] == false);
    let zeros: u64 = zeros.map(|run| run["length"].as_u64().expect("a length")).sum();
    assert_eq!(zeros, 8 << 20, "{map}");
}

#[test]
fn nbdinfo_tells_what_the_server_can_do() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&["--persistent", "--export", "a disk"]);
    let text = workshop.run("nbdinfo", &["--json", &served.uri]);
    let info: Value = serde_json::from_str(&text).expect("JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 16 << 20, "{text}");
    assert_eq!(export["export-name"], "a disk", "{text}");
    for flag in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[flag], true, "{flag}: {text}");
    }
    assert_eq!(export["is_read_only"], false, "{text}");
    assert_eq!(export["block_size_minimum"], 512, "{text}");
    assert_eq!(export["contexts"][0], "base:allocation", "{text}");
    let (plain, _) = served.uri.split_once("a%20disk").expect("the name is in the URI");
    let list = workshop.run("nbdinfo", &["--list", &served.uri.replace("a%20disk", "")]);
    assert!(list.contains("export=\"a disk\""), "{plain}: {list}");

    qemu_io(&workshop, &served.uri, &["write 1M 64k", "write -z -u 2M 64k"]);
    let map = workshop.run("nbdinfo", &["--map", "--json", &served.uri]);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let runs: Vec<_> = map
        .as_array()
        .expect("a list")
        .iter()
        .map(|run| (run["length"].as_u64(), run["type"].as_u64()))
        .collect();
    let expected = [(1 << 20, 3), (64 << 10, 0), ((15 << 20) - (64 << 10), 3)];
    assert_eq!(runs, expected.map(|(length, kind)| (Some(length), Some(kind))));
    served.end();
}

#[test]
fn nbdcopy_copies_to_it_and_from_it_over_several_connections() {
    let workshop = Workshop::with_image("32M");
    workshop.put("source.raw", &content(32 << 20));
    let served = workshop.serve(&["--persistent"]);
    workshop.run("nbdcopy", &["--flush", "--connections=4", "source.raw", &served.uri]);
    workshop.run("nbdcopy", &["--connections=4", &served.uri, "copy.raw"]);
    assert!(workshop.bytes("copy.raw") == workshop.bytes("source.raw"));
    // Synchronous and one request at a time, from the beginning to the end.
    workshop.run("nbdcopy", &["--synchronous", &served.uri, "again.raw"]);
    assert!(workshop.bytes("again.raw") == workshop.bytes("source.raw"));
    served.end();
    workshop.check();
    workshop.run(
        "qemu-img",
        &["compare", "-q", "-f", "raw", "-F", "qcow2", "source.raw", "disk.qcow2"],
    );
}

#[test]
fn fio_verifies_what_it_wrote_at_depth_32() {
    let workshop = Workshop::with_image("64M");
    let served = workshop.serve(&["--persistent"]);
    let uri = format!("--uri={}", served.uri);
    workshop.run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--iodepth=32",
            "--size=32M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=64",
            "--randrepeat=1",
        ],
    );
    served.end();
    workshop.check();
}

#[test]
fn four_clients_at_once_write_and_read_each_others_data() {
    const CLIENTS: u64 = 4;
    const WRITES: u64 = 40;
    let workshop = Workshop::with_image("64M");
    let served = workshop.serve(&["--persistent"]);
    // Neighbouring sectors belong to different clients, so they allocate the same clusters.
    let offset = |client: u64, write: u64| (write * CLIENTS + client) * 4096 * 5;
    let commands = |verb: &str, client: u64| -> Vec<String> {
        let all = (0..WRITES).flat_map(|write| {
            let pattern = client * WRITES + write + 1;
            [
                "-c".to_owned(),
                format!("{verb} -P {pattern} {} 4k", offset(client, write)),
            ]
        });
        all.chain(["-f".to_owned(), "raw".to_owned(), served.uri.clone()])
            .collect()
    };
    let start = |verb: &str, client: u64| {
        let arguments = commands(verb, client);
        workshop.spawn("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let all_succeed = |children: Vec<std::process::Child>| {
        for child in children {
            let output = child.wait_with_output().expect("an end");
            let text = crate::served::text(&output);
            assert!(output.status.success() && !text.contains("failed"), "{text}");
        }
    };
    all_succeed((0..CLIENTS).map(|client| start("aio_write", client)).collect());
    all_succeed((0..CLIENTS).map(|client| start("read", client)).collect());
    served.end();
    workshop.check();
}

#[test]
fn it_serves_tcp_on_this_machine_only() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve_with(&["--bind", "127.0.0.1:0", "--persistent", "disk.qcow2"]);
    assert!(served.uri.starts_with("nbd://127.0.0.1:"), "{}", served.uri);
    qemu_io(&workshop, &served.uri, &["write -P 7 1M 64k", "read -P 7 1M 64k"]);
    served.signal("-TERM");
    assert_eq!(served.wait().code(), Some(0));
    workshop.check();

    let arguments = ["nbd", "--bind", "0.0.0.0:0", "disk.qcow2"];
    let refused = workshop.try_run(env!("CARGO_BIN_EXE_spindle"), &arguments);
    let text = crate::served::text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("--allow-remote"), "{text}");
}

#[test]
fn raw_images_read_only_images_and_snapshots_are_served() {
    let workshop = Workshop::with_image("16M");
    workshop.put("disk.raw", &content(1 << 20));
    let served = workshop.serve_image("disk.raw,format=raw", &["--persistent"]);
    workshop.run("nbdcopy", &[&served.uri, "copy.raw"]);
    assert!(workshop.bytes("copy.raw") == workshop.bytes("disk.raw"));
    qemu_io(&workshop, &served.uri, &["write -P 9 512 512", "write -z 0 512"]);
    served.end();
    let mut expected = content(1 << 20);
    expected[..512].fill(0);
    expected[512..1024].fill(9);
    assert!(workshop.bytes("disk.raw") == expected);

    let served = workshop.serve_image("disk.raw,format=raw", &["--persistent", "--read-only"]);
    let write = ["-f", "raw", "-c", "write 0 512", &served.uri];
    let refused = workshop.try_run("qemu-io", &write);
    assert!(!refused.status.success());
    served.end();
    assert!(workshop.bytes("disk.raw") == expected);

    let on_file = |commands: &[&str]| {
        let mut arguments = vec!["-f", "qcow2"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        workshop.run("qemu-io", &[&arguments[..], &["disk.qcow2"]].concat());
    };
    on_file(&["write -P 1 0 64k"]);
    workshop.run("qemu-img", &["snapshot", "-c", "before", "disk.qcow2"]);
    on_file(&["write -P 2 0 64k"]);
    let served = workshop.serve(&["--persistent", "--snapshot", "before"]);
    let text = workshop.run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 64k", &served.uri]);
    assert!(!text.contains("failed"), "{text}");
    served.end();
    workshop.check();
}

#[test]
fn without_persistent_it_ends_with_the_last_client() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&[]);
    // This one only asks what there is.
    workshop.run("nbdinfo", &["--list", "--no-content", &served.uri]);
    let uri = served.uri.clone();
    qemu_io(&workshop, &uri, &["write -P 7 1M 64k"]);
    assert_eq!(served.wait().code(), Some(0));
    workshop.check();
}
