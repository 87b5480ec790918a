//! Conversations with a machine that writes down what it is told.

use std::cell::RefCell;

use super::*;

#[derive(Default)]
struct Told(RefCell<Vec<String>>);

impl Told {
    fn note(&self, what: String) {
        self.0.borrow_mut().push(what);
    }

    fn only(&self, device: &str, what: String) -> Result<(), Failure> {
        if device != "hdc" {
            return Err(Failure::no_device(device));
        }
        self.note(what);
        Ok(())
    }
}

impl Machine for Told {
    fn status(&self) -> Status {
        Status::IoError
    }

    fn pause(&self) {
        self.note("pause".into());
    }

    fn resume(&self) {
        self.note("resume".into());
    }

    fn quit(&self) {
        self.note("quit".into());
    }

    fn reset(&self) {
        self.note("reset".into());
    }

    fn blocks(&self) -> Vec<BlockInfo> {
        vec![BlockInfo {
            device: "hdc".into(),
            removable: true,
            locked: false,
            tray_open: Some(false),
            inserted: Some(MediumInfo {
                file: "a.iso".into(),
                format: "raw".into(),
                read_only: true,
                size: 2048,
            }),
        }]
    }

    fn eject(&self, device: &str, force: bool) -> Result<(), Failure> {
        self.only(device, format!("eject {force}"))
    }

    fn change_medium(&self, device: &str, filename: &str, force: bool) -> Result<(), Failure> {
        self.only(device, format!("change {filename} {force}"))
    }

    fn resize(&self, device: &str, size: u64) -> Result<(), Failure> {
        self.only(device, format!("resize {size}"))
    }

    fn snapshot(&self, device: &str, name: &str) -> Result<(), Failure> {
        self.only(device, format!("snapshot {name}"))
    }

    fn delete_snapshot(&self, device: &str, name: &str) -> Result<(), Failure> {
        self.only(device, format!("delete {name}"))
    }

    fn limit(&self, device: &str, limits: Limits) -> Result<(), Failure> {
        self.only(device, format!("limit {}", limits.bytes.total.rate))
    }
}

fn negotiated(machine: &Told) -> Conversation {
    let mut conversation = Conversation::default();
    let answer = conversation.take(br#"{"execute": "qmp_capabilities"}"#, machine);
    assert_eq!(answer, b"{\"return\":{}}\r\n");
    conversation
}

/// The answers to `text`, by a client that has negotiated.
fn answers(text: &str) -> Vec<Value> {
    let machine = Told::default();
    let answers = negotiated(&machine).take(text.as_bytes(), &machine);
    let lines = answers.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
}

#[test]
fn nothing_goes_before_the_negotiation() {
    let machine = Told::default();
    let mut conversation = Conversation::default();
    let refused = conversation.take(br#"{"execute": "quit", "id": 7}"#, &machine);
    let refused: Value = serde_json::from_slice(&refused).expect("JSON");
    assert_eq!(refused["error"]["class"], "CommandNotFound");
    assert_eq!(refused["id"], 7);
    assert!(!conversation.is_negotiated());
    assert!(machine.0.borrow().is_empty());
    let again = answers(r#"{"execute": "qmp_capabilities"}"#);
    assert_eq!(again[0]["error"]["class"], "CommandNotFound");
}

#[test]
fn commands_come_in_pieces_and_in_heaps() {
    let machine = Told::default();
    let mut conversation = negotiated(&machine);
    for byte in br#" {"execute":"stop"} {"execute":"cont","id":"x"}"# {
        conversation.take(&[*byte], &machine);
    }
    conversation.take(b"{\"execute\":\"system_reset\"}\n{\"execute\":\"quit\"}\n", &machine);
    assert_eq!(*machine.0.borrow(), ["pause", "resume", "reset", "quit"]);
}

#[test]
fn disks_are_commanded_by_name() {
    let machine = Told::default();
    let mut conversation = negotiated(&machine);
    let commands = [
        r#"{"execute":"eject","arguments":{"device":"hdc","force":true}}"#,
        r#"{"execute":"blockdev-change-medium","arguments":{"id":"hdc","filename":"b.iso"}}"#,
        r#"{"execute":"block_resize","arguments":{"device":"hdc","size":4096}}"#,
        r#"{"execute":"blockdev-snapshot-internal-sync","arguments":{"device":"hdc","name":"s"}}"#,
        r#"{"execute":"blockdev-snapshot-delete-internal-sync","arguments":{"device":"hdc","name":"s"}}"#,
        r#"{"execute":"block_set_io_throttle","arguments":{"device":"hdc","bps":1000,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":0,"iops_wr":0}}"#,
    ];
    for command in commands {
        let answer = conversation.take(command.as_bytes(), &machine);
        assert_eq!(answer, b"{\"return\":{}}\r\n", "{command}");
    }
    let told = machine.0.borrow();
    assert_eq!(
        *told,
        [
            "eject true",
            "change b.iso false",
            "resize 4096",
            "snapshot s",
            "delete s",
            "limit 1000"
        ]
    );
}

#[test]
fn queries_are_answered() {
    assert_eq!(
        answers(r#"{"execute":"query-status"}"#)[0]["return"],
        json!({"status": "io-error", "running": false})
    );
    let block = &answers(r#"{"execute":"query-block"}"#)[0]["return"][0];
    assert_eq!(block["inserted"]["image"]["virtual-size"], 2048);
    assert_eq!(block["tray_open"], false);
    let commands = &answers(r#"{"execute":"query-commands"}"#)[0]["return"];
    let names = commands.as_array().expect("a list").iter();
    for name in names.map(|command| command["name"].as_str().expect("a name")) {
        // Each is there, whatever it says of its arguments.
        let answer = &answers(&json!({"execute": name}).to_string())[0];
        let known = name == "qmp_capabilities" || answer["error"]["class"] != "CommandNotFound";
        assert!(known, "{name}: {answer}");
    }
}

#[test]
fn mistakes_are_named_and_the_conversation_goes_on() {
    let cases = [
        (r#"{"execute":"dance"}"#, "The command dance has not been found"),
        (r#"{"execute":"stop","arguments":{"now":true}}"#, "'now' is unexpected"),
        (r#"{"execute":"eject","arguments":{}}"#, "exactly one of"),
        (
            r#"{"execute":"eject","arguments":{"device":"hdx"}}"#,
            "no device \"hdx\"",
        ),
        (
            r#"{"execute":"block_resize","arguments":{"device":"hdc"}}"#,
            "missing field `size`",
        ),
        (
            r#"{"execute":"block_resize","arguments":{"device":"hdc","size":-1}}"#,
            "invalid value",
        ),
        (
            r#"{"execute":"block_set_io_throttle","arguments":{"device":"hdc","bps":1,"bps_rd":1}}"#,
            "exclude each other",
        ),
        (
            r#"{"execute":"block_set_io_throttle","arguments":{"device":"hdc","group":"g"}}"#,
            "'group'",
        ),
        ("[1]", "not a command"),
        ("{]", "not JSON"),
    ];
    for (text, expected) in cases {
        let answer = &answers(text)[0]["error"]["desc"];
        assert!(
            answer.as_str().is_some_and(|text| text.contains(expected)),
            "{text}: {answer}"
        );
    }
    let after = answers("{]");
    assert_eq!(after.len(), 1);
}

#[test]
fn a_command_without_an_end_is_given_up() {
    let machine = Told::default();
    let mut conversation = negotiated(&machine);
    let mut answer = conversation.take(b"{\"execute\":\"", &machine);
    while answer.is_empty() {
        answer = conversation.take(&[b'a'; 4096], &machine);
    }
    assert!(String::from_utf8_lossy(&answer).contains("longer than 65536 bytes"));
    assert_eq!(
        conversation.take(br#"{"execute":"stop"}"#, &machine),
        b"{\"return\":{}}\r\n"
    );
}

#[test]
fn deep_nesting_is_an_error() {
    let answer = &answers(&"[".repeat(60_000))[0]["error"]["desc"];
    assert!(
        answer.as_str().is_some_and(|text| text.contains("recursion limit")),
        "{answer}"
    );
}

#[test]
fn events_have_a_time() {
    let stop = event(&Event::Stop, 1_700_000_000_000_001);
    let stop: Value = serde_json::from_slice(&stop).expect("JSON");
    assert_eq!(
        stop,
        json!({"event": "STOP", "timestamp": {"seconds": 1_700_000_000u64, "microseconds": 1}})
    );
    let error = Event::BlockIoError {
        device: "hda".into(),
        write: true,
        no_space: true,
        reason: "No space left on device".into(),
    };
    let error: Value = serde_json::from_slice(&event(&error, 0)).expect("JSON");
    assert_eq!(error["data"]["nospace"], true);
    assert_eq!(error["data"]["operation"], "write");
}
