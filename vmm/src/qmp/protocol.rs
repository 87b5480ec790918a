//! QMP without I/O: bytes in, commands out; answers and events in, bytes out.

use disk::{LimitError, Limits};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Machine;

/// The longest command, in bytes.
pub const MAX_COMMAND: usize = 64 << 10;

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its CPUs run.
    Running,
    /// Somebody paused it.
    Paused,
    /// A drive paused it, because of an error (`werror=`, `rerror=`).
    IoError,
}

/// One drive, for `query-block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its slot.
    pub device: String,
    /// Whether its medium can be taken out.
    pub removable: bool,
    /// Whether the guest has locked its tray.
    pub locked: bool,
    /// Whether its tray is open; `None` for a drive without one.
    pub tray_open: Option<bool>,
    /// Its medium.
    pub inserted: Option<MediumInfo>,
}

/// What is in a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediumInfo {
    /// The image file.
    pub file: String,
    /// Its format.
    pub format: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The size that the guest sees, in bytes.
    pub size: u64,
}

/// Something that happened to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its CPUs stopped.
    Stop,
    /// They go on.
    Resume,
    /// The guest, or somebody else, ended it.
    Shutdown {
        /// By the guest itself.
        guest: bool,
    },
    /// It was reset.
    Reset {
        /// By the guest itself.
        guest: bool,
    },
    /// A drive paused the machine.
    BlockIoError {
        /// Its slot.
        device: String,
        /// Whether it was a write.
        write: bool,
        /// Whether the host ran out of space.
        no_space: bool,
        /// What the host said.
        reason: String,
    },
    /// A tray was opened or closed.
    TrayMoved {
        /// Its slot.
        device: String,
        /// Whether it is open now.
        open: bool,
    },
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{description}")]
pub struct Failure {
    /// QMP's class of the error.
    class: &'static str,
    description: String,
}

impl Failure {
    /// An error without a class of its own.
    pub fn new(description: impl Into<String>) -> Self {
        Self {
            class: "GenericError",
            description: description.into(),
        }
    }

    /// There is no such device.
    pub fn no_device(device: &str) -> Self {
        Self {
            class: "DeviceNotFound",
            description: format!("There is no device \"{device}\""),
        }
    }

    fn no_command(name: &str) -> Self {
        Self {
            class: "CommandNotFound",
            description: format!("The command {name} has not been found"),
        }
    }
}

impl From<LimitError> for Failure {
    fn from(error: LimitError) -> Self {
        Failure::new(error.to_string())
    }
}

/// What a client of the control socket has said so far, and where it stands in the protocol.
#[derive(Default)]
pub struct Conversation {
    input: Vec<u8>,
    negotiated: bool,
}

/// One command, as it comes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    execute: String,
    #[serde(default)]
    arguments: Map<String, Value>,
    id: Option<Value>,
}

/// What the server says first.
pub fn greeting() -> Vec<u8> {
    line(&json!({"QMP": {"version": version(), "capabilities": []}}))
}

impl Conversation {
    /// Takes what the client sent, has `machine` carry the commands out, and returns the answers.
    pub fn take(&mut self, bytes: &[u8], machine: &dyn Machine) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut answers = Vec::new();
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.input).into_iter::<Value>();
            let next = values.next();
            let taken = values.byte_offset();
            match next {
                None => {
                    self.input.clear();
                    break;
                }
                Some(Ok(value)) => {
                    self.input.drain(..taken);
                    answers.extend(self.answer(value, machine));
                }
                Some(Err(error)) if error.is_eof() && self.input.len() <= MAX_COMMAND => break,
                Some(Err(error)) => {
                    // Nobody knows where the next command begins.
                    self.input.clear();
                    let what = if error.is_eof() {
                        format!("A command is longer than {MAX_COMMAND} bytes")
                    } else {
                        format!("This is not JSON: {error}")
                    };
                    answers.extend(failed(&Failure::new(what), None));
                    break;
                }
            }
        }
        answers
    }

    /// Whether the client has ended the negotiation of capabilities, so that it is told of events.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    fn answer(&mut self, value: Value, machine: &dyn Machine) -> Vec<u8> {
        let envelope: Envelope = match serde_json::from_value(value) {
            Ok(envelope) => envelope,
            Err(error) => return failed(&Failure::new(format!("This is not a command: {error}")), None),
        };
        let Envelope { execute, arguments, id } = envelope;
        let outcome = if self.negotiated == (execute == "qmp_capabilities") {
            Err(Failure {
                class: "CommandNotFound",
                description: if self.negotiated {
                    "Capabilities negotiation is already complete, command qmp_capabilities not available".to_owned()
                } else {
                    "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned()
                },
            })
        } else if execute == "qmp_capabilities" {
            no_arguments(&arguments).map(|()| {
                self.negotiated = true;
                json!({})
            })
        } else {
            run(&execute, arguments, machine)
        };
        match outcome {
            Ok(value) => line(&with_id(json!({"return": value}), id)),
            Err(failure) => failed(&failure, id),
        }
    }
}

/// Every command after the negotiation.
const COMMANDS: [&str; 14] = [
    "block_resize",
    "block_set_io_throttle",
    "blockdev-change-medium",
    "blockdev-snapshot-delete-internal-sync",
    "blockdev-snapshot-internal-sync",
    "cont",
    "eject",
    "query-block",
    "query-commands",
    "query-status",
    "query-version",
    "quit",
    "stop",
    "system_reset",
];

fn run(name: &str, arguments: Map<String, Value>, machine: &dyn Machine) -> Result<Value, Failure> {
    if !COMMANDS.contains(&name) {
        return Err(Failure::no_command(name));
    }
    match name {
        "block_resize" => {
            let Resize { device, id, size } = parse(arguments)?;
            machine.resize(&either(device, id)?, size)?;
        }
        "block_set_io_throttle" => {
            let (device, limits) = throttle(arguments)?;
            machine.limit(&device, limits)?;
        }
        "blockdev-change-medium" => {
            let change: Change = parse(arguments)?;
            if change.format.as_deref().is_some_and(|format| format != "raw") {
                return Err(Failure::new("A medium has format raw"));
            }
            machine.change_medium(&either(change.device, change.id)?, &change.filename, change.force)?;
        }
        "blockdev-snapshot-internal-sync" => {
            let SnapshotOf { device, name } = parse(arguments)?;
            machine.snapshot(&device, &name)?;
        }
        "blockdev-snapshot-delete-internal-sync" => {
            let SnapshotOf { device, name } = parse(arguments)?;
            machine.delete_snapshot(&device, &name)?;
        }
        "eject" => {
            let Eject { device, id, force } = parse(arguments)?;
            machine.eject(&either(device, id)?, force)?;
        }
        _ => {
            no_arguments(&arguments)?;
            return Ok(run_plain(name, machine));
        }
    }
    Ok(json!({}))
}

/// The commands without arguments.
fn run_plain(name: &str, machine: &dyn Machine) -> Value {
    match name {
        "query-block" => return machine.blocks().iter().map(block).collect(),
        "query-commands" => {
            let named = COMMANDS.iter().chain(&["qmp_capabilities"]);
            return named.map(|name| json!({"name": name})).collect();
        }
        "query-status" => return status(machine.status()),
        "query-version" => return version(),
        "cont" => machine.resume(),
        "quit" => machine.quit(),
        "stop" => machine.pause(),
        "system_reset" => machine.reset(),
        _ => {}
    }
    json!({})
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    device: Option<String>,
    id: Option<String>,
    size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    device: Option<String>,
    id: Option<String>,
    filename: String,
    format: Option<String>,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eject {
    device: Option<String>,
    id: Option<String>,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotOf {
    device: String,
    name: String,
}

fn parse<T: serde::de::DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| Failure::new(format!("arguments: {error}")))
}

fn no_arguments(arguments: &Map<String, Value>) -> Result<(), Failure> {
    match arguments.keys().next() {
        Some(name) => Err(Failure::new(format!("Parameter '{name}' is unexpected"))),
        None => Ok(()),
    }
}

/// A device is named by `device` or by `id`.
fn either(device: Option<String>, id: Option<String>) -> Result<String, Failure> {
    match (device, id) {
        (Some(name), None) | (None, Some(name)) => Ok(name),
        _ => Err(Failure::new("Need exactly one of 'device' and 'id'")),
    }
}

/// The limits are arguments of their own, with the names that `--disk` has for them.
fn throttle(mut arguments: Map<String, Value>) -> Result<(String, Limits), Failure> {
    let mut name = |key| match arguments.remove(key) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(_) => Err(Failure::new(format!("Parameter '{key}' must be a string"))),
    };
    let device = either(name("device")?, name("id")?)?;
    let mut limits = Limits::default();
    for (key, value) in &arguments {
        let value = value
            .as_u64()
            .ok_or_else(|| Failure::new(format!("Parameter '{key}' must be a number from 0 on")))?;
        if !limits.set(key, &value.to_string())? {
            return Err(Failure::new(format!("Parameter '{key}' is unexpected")));
        }
    }
    limits.check()?;
    Ok((device, limits))
}

fn version() -> Value {
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    // The key is the specification's; there is none for other programs.
    json!({
        "qemu": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": "spindle",
    })
}

fn status(status: Status) -> Value {
    let word = match status {
        Status::Running => "running",
        Status::Paused => "paused",
        Status::IoError => "io-error",
    };
    json!({"status": word, "running": status == Status::Running})
}

fn block(info: &BlockInfo) -> Value {
    let mut value = json!({
        "device": info.device,
        "qdev": info.device,
        "type": "unknown",
        "removable": info.removable,
        "locked": info.locked,
    });
    if let Some(open) = info.tray_open {
        value["tray_open"] = open.into();
    }
    if let Some(medium) = &info.inserted {
        value["inserted"] = json!({
            "file": medium.file,
            "drv": medium.format,
            "ro": medium.read_only,
            "image": {"filename": medium.file, "format": medium.format, "virtual-size": medium.size},
        });
    }
    value
}

/// An event as it is sent, `microseconds` after the epoch.
pub fn event(event: &Event, microseconds: u64) -> Vec<u8> {
    let (name, data) = match event {
        Event::Stop => ("STOP", None),
        Event::Resume => ("RESUME", None),
        Event::Shutdown { guest } => {
            let reason = if *guest { "guest-shutdown" } else { "host-qmp-quit" };
            ("SHUTDOWN", Some(json!({"guest": guest, "reason": reason})))
        }
        Event::Reset { guest } => {
            let reason = if *guest { "guest-reset" } else { "host-qmp-system-reset" };
            ("RESET", Some(json!({"guest": guest, "reason": reason})))
        }
        Event::BlockIoError {
            device,
            write,
            no_space,
            reason,
        } => {
            let operation = if *write { "write" } else { "read" };
            (
                "BLOCK_IO_ERROR",
                Some(json!({
                    "device": device,
                    "qom-path": device,
                    "operation": operation,
                    "action": "stop",
                    "nospace": no_space,
                    "reason": reason,
                })),
            )
        }
        Event::TrayMoved { device, open } => (
            "DEVICE_TRAY_MOVED",
            Some(json!({"device": device, "id": device, "tray-open": open})),
        ),
    };
    let timestamp = json!({"seconds": microseconds / 1_000_000, "microseconds": microseconds % 1_000_000});
    let mut value = json!({"event": name, "timestamp": timestamp});
    if let Some(data) = data {
        value["data"] = data;
    }
    line(&value)
}

fn failed(failure: &Failure, id: Option<Value>) -> Vec<u8> {
    let error = json!({"class": failure.class, "desc": failure.description});
    line(&with_id(json!({"error": error}), id))
}

fn with_id(mut answer: Value, id: Option<Value>) -> Value {
    if let Some(id) = id {
        answer["id"] = id;
    }
    answer
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\r\n").into_bytes()
}

#[cfg(test)]
mod tests;
