//! A machine in the hands of its control socket.

mod spindle;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use devices::piix4::power_management::{PM1A_CONTROL_PORT, SLEEP_TYPE_S5};
use guest_images::bare_metal::{BareMetalGuest, Mode, PowerOff};
use serde_json::{Value, json};

use spindle::{Running, Spindle};

/// Says that it is ready, and powers off when it is sent a byte.
fn waiting_guest() -> Vec<u8> {
    let power_off = PowerOff::acpi(PM1A_CONTROL_PORT, SLEEP_TYPE_S5);
    let mut guest = BareMetalGuest::new(Mode::Pvh, power_off).expect("an assembler");
    guest
        .print("ready\n")
        .and_then(|()| guest.echo(1))
        .and_then(|()| guest.power_off())
        .expect("steps that assemble");
    guest.build().expect("a guest that assembles")
}

/// A client that has negotiated.
struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// Events that came while an answer was awaited.
    events: Vec<Value>,
}

impl Client {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("spindle listens");
        let lines = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut client = Self {
            stream,
            lines,
            events: Vec::new(),
        };
        assert!(client.line()["QMP"]["version"].is_object());
        assert_eq!(client.command("qmp_capabilities", &json!({}))["return"], json!({}));
        client
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn command(&mut self, name: &str, arguments: &Value) -> Value {
        let command = json!({"execute": name, "arguments": arguments}).to_string();
        self.stream.write_all(command.as_bytes()).expect("spindle reads");
        loop {
            let line = self.line();
            if line.get("event").is_none() {
                return line;
            }
            self.events.push(line);
        }
    }

    /// A command that succeeds.
    fn run(&mut self, name: &str, arguments: &Value) -> Value {
        let answer = self.command(name, arguments);
        assert!(answer.get("return").is_some(), "{name}: {answer}");
        answer["return"].clone()
    }

    /// Why a command fails.
    fn fails(&mut self, name: &str, arguments: &Value) -> String {
        let answer = self.command(name, arguments);
        answer["error"]["desc"]
            .as_str()
            .unwrap_or_else(|| panic!("{name}: {answer}"))
            .to_owned()
    }

    /// Waits for an event of this name.
    fn event(&mut self, name: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at);
            }
            let line = self.line();
            self.events.push(line);
        }
    }
}

fn start(disk: &Path, socket: &Path, more: &[&str]) -> Running {
    let mut running = Spindle::new(&waiting_guest())
        .disk(disk)
        .arguments(&["--qmp", socket.to_str().expect("text")])
        .arguments(more)
        .start();
    running.wait_for("ready\n");
    running
}

fn qemu_img(arguments: &[&str], image: &Path) -> String {
    let output = Command::new("qemu-img")
        .args(arguments)
        .arg(image)
        .output()
        .expect("qemu-img runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_machine_is_paused_and_goes_on_and_powers_off() {
    let disk = spindle::qcow2(1 << 20);
    let folder = tempfile::tempdir().expect("temporary directory");
    let socket = folder.path().join("control");
    let mut running = start(disk.path(), &socket, &[]);
    let mode = fs::metadata(&socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (mut client, mut other) = (Client::connect(&socket), Client::connect(&socket));

    assert_eq!(client.run("query-status", &json!({}))["status"], "running");
    client.run("stop", &json!({}));
    assert_eq!(client.run("query-status", &json!({}))["status"], "paused");
    other.event("STOP");
    running.type_text("x");
    client.run("cont", &json!({}));
    let shutdown = client.event("SHUTDOWN");
    assert_eq!(shutdown["data"]["guest"], true);
    other.event("RESUME");

    let outcome = running.finish();
    assert_eq!(
        (outcome.code, outcome.console.as_str()),
        (Some(0), "ready\nx"),
        "{outcome:?}"
    );
    assert!(!socket.exists());
}

#[test]
fn disks_are_resized_limited_and_snapshotted_while_the_machine_runs() {
    let disk = spindle::qcow2(1 << 20);
    let folder = tempfile::tempdir().expect("temporary directory");
    let socket = folder.path().join("control");
    let running = start(disk.path(), &socket, &[]);
    let mut client = Client::connect(&socket);

    client.run("block_resize", &json!({"device": "hda", "size": 2 << 20}));
    let size = &client.run("query-block", &json!({}))[0]["inserted"]["image"]["virtual-size"];
    assert_eq!(*size, 2 << 20);
    let shrink = client.fails("block_resize", &json!({"device": "hda", "size": 512}));
    assert!(shrink.contains("shrink") || shrink.contains("smaller"), "{shrink}");
    client.run(
        "blockdev-snapshot-internal-sync",
        &json!({"device": "hda", "name": "one"}),
    );
    client.run(
        "blockdev-snapshot-internal-sync",
        &json!({"device": "hda", "name": "two"}),
    );
    client.run(
        "blockdev-snapshot-delete-internal-sync",
        &json!({"device": "hda", "name": "one"}),
    );
    let limits =
        json!({"device": "hda", "bps": 1 << 20, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0});
    client.run("block_set_io_throttle", &limits);
    let absent = client.fails("block_resize", &json!({"device": "hdb", "size": 512}));
    assert!(absent.contains("no device \"hdb\""), "{absent}");
    client.run("quit", &json!({}));

    let outcome = running.finish();
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    let snapshots = qemu_img(&["snapshot", "-l"], disk.path());
    assert!(snapshots.contains("two") && !snapshots.contains("one"), "{snapshots}");
    qemu_img(&["check", "-q"], disk.path());
}

#[test]
fn discs_are_changed_and_ejected() {
    let disk = spindle::qcow2(1 << 20);
    let folder = tempfile::tempdir().expect("temporary directory");
    let socket = folder.path().join("control");
    let disc = |name: &str, blocks: usize| {
        let path = folder.path().join(name);
        fs::write(&path, vec![0; blocks * 2048]).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let (first, second) = (disc("first.iso", 10), disc("second.iso", 20));
    let mut running = start(disk.path(), &socket, &["--cdrom", &first]);
    let mut client = Client::connect(&socket);
    let drive = |client: &mut Client| client.run("query-block", &json!({}))[1].clone();

    let found = drive(&mut client);
    assert_eq!(
        (&found["device"], &found["inserted"]["file"]),
        (&json!("hdc"), &json!(first))
    );
    client.run("blockdev-change-medium", &json!({"id": "hdc", "filename": second}));
    assert_eq!(drive(&mut client)["inserted"]["image"]["virtual-size"], 20 * 2048);
    let absent = client.fails(
        "blockdev-change-medium",
        &json!({"id": "hdc", "filename": "absent.iso"}),
    );
    assert!(absent.contains("absent.iso"), "{absent}");
    assert_eq!(drive(&mut client)["inserted"]["file"], second);
    client.run("eject", &json!({"device": "hdc"}));
    let empty = drive(&mut client);
    assert_eq!((&empty["tray_open"], empty.get("inserted")), (&json!(true), None));
    assert_eq!(client.event("DEVICE_TRAY_MOVED")["data"]["tray-open"], true);
    let fixed = client.fails("eject", &json!({"device": "hda"}));
    assert!(fixed.contains("not removable"), "{fixed}");
    running.type_text("x");
    assert_eq!(running.finish().code, Some(0));
}
