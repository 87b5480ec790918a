//! A stock Linux in the nested host (or on this machine): O_DIRECT requests, one at a time, timed by the guest itself.
//!
//! Both VMMs run in one session of the host, in alternation, driven by a script there. Each is run once more with fewer requests
//! while the host's kernel counts exits to user space (trace event `kvm:kvm_userspace_exit`); that run is not timed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_images::{LoadGuest, Store, find_program, run_tool};
use system_tests::{End, Host, Run};

use super::{Kind, LARGE, LOADS, Measured, Row, Vmm};

/// Guest memory in MiB.
const MEMORY: u32 = 256;
/// How long each load runs, in seconds.
const SECONDS: u32 = 4;
/// Firmware and option ROMs for booting an ELF kernel.
const FIRMWARE: [&str; 4] = ["bios-256k.bin", "kvmvapic.bin", "pvh.bin", "linuxboot_dma.bin"];
/// How long the guest waits around a load that is counted, in milliseconds: longer than the script takes to look.
const WAIT: u32 = 500;

/// Measures both VMMs, `rounds` times each.
pub(super) fn measure(store: &Store, spindle: &Path, options: &[String], rounds: u32) -> Result<Vec<Row>> {
    let guest = LoadGuest::get(store)?;
    let mut host = Host::new(store, spindle, None)?;
    host.guest_memory = MEMORY;
    host.add_file("vmlinux", &guest.kernel)?;
    host.add_file("initrd.img", &guest.initramfs)?;
    add_qemu(&host)?;
    let disk = host.staging().join("disk.qcow2");
    run_tool(
        "qemu-img",
        [
            "create".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            "-o".as_ref(),
            "preallocation=full".as_ref(),
            disk.as_os_str(),
            "128M".as_ref(),
        ],
    )?;
    host.add_file("disk.qcow2", &disk)?;
    let script = host.staging().join("bench.sh");
    fs::write(&script, script_text(options, rounds)?).context("Cannot write the script")?;
    host.add_file("bench.sh", &script)?;

    let mut run = Run::new(["sh", "bench.sh"].map(str::to_owned).into());
    run.timeout = Duration::from_secs(600 + u64::from(rounds) * 300);
    let outcome = host.run(run)?;
    let console = outcome.text();
    if outcome.end != End::Exited(0) {
        bail!(
            "The script in the host ended with {:?}\n{console}\n{}",
            outcome.end,
            outcome.stderr
        );
    }
    let measured = read(&console).with_context(|| format!("The host's output:\n{console}\n{}", outcome.stderr))?;
    let [ours, theirs] = &measured;
    Ok(LOADS
        .iter()
        .zip(ours.iter().zip(theirs))
        .map(|(load, (ours, theirs))| Row::new("linux", *load, ours, theirs))
        .collect())
}

/// This machine's QEMU, with its libraries and firmware, as `qemu/`.
fn add_qemu(host: &Host) -> Result<()> {
    let program = find_program("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?;
    host.add_file("qemu/qemu", &program)?;
    let libraries = String::from_utf8(run_tool("ldd", [program.as_os_str()])?).context("ldd prints no text")?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let path = fs::canonicalize(path)
            .map(|_| PathBuf::from(path))
            .with_context(|| format!("Cannot find {path}"))?;
        let name = path.file_name().context("A library without a name")?.to_string_lossy();
        let name = if name.starts_with("ld-linux") {
            "ld.so".into()
        } else {
            name
        };
        host.add_file(&format!("qemu/{name}"), &path)?;
    }
    let folders = String::from_utf8(run_tool(
        "qemu-system-x86_64",
        ["-L".as_ref(), "help".as_ref() as &std::ffi::OsStr],
    )?)
    .context("QEMU prints no text")?;
    for name in FIRMWARE {
        let path = folders
            .lines()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("QEMU's {name} is not in {folders}"))?;
        host.add_file(&format!("qemu/{name}"), &path)?;
    }
    Ok(())
}

fn loads(limit: impl Fn(u32) -> String) -> String {
    let items: Vec<String> = LOADS
        .iter()
        .map(|load| {
            let kind = match load.kind {
                Kind::Read => "read",
                Kind::Write => "write",
                Kind::Durable => "durable",
            };
            format!("{}:{kind}:{}:{}", load.name, load.bytes, limit(load.bytes))
        })
        .collect();
    items.join(",")
}

/// The script: `run VMM LOADS WAIT` is a boot.
fn script_text(options: &[String], rounds: u32) -> Result<String> {
    let mut text = format!(
        r#"events=/sys/kernel/tracing/events/kvm/kvm_userspace_exit
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
run() {{
    line="console=ttyS0 quiet nokaslr mitigations=off panic=-1 reboot=t spindle.load=$2 spindle.wait=$3"
    case $1 in
    spindle) ./spindle run --no-reboot --memory {MEMORY}M --kernel vmlinux --initrd initrd.img \
        --append "$line" --disk disk.qcow2 {options} </dev/null ;;
    qemu) qemu/ld.so --library-path qemu qemu/qemu -L qemu -machine pc -accel kvm -cpu host -m {MEMORY} \
        -nodefaults -no-user-config -display none -serial stdio -no-reboot -kernel vmlinux -initrd initrd.img \
        -append "$line" -drive file=disk.qcow2,if=ide,format=qcow2 </dev/null ;;
    esac
}}
count() {{
    echo "@count $1"
    echo hist:keys=reason >$events/trigger
    run "$@" | while read -r line; do
        echo "$line"
        case $line in
        *@begin*|*@end*) echo "@exits $(sed -n 's/.*Hits: *//p' $events/hist)" ;;
        esac
    done
    echo '!hist:keys=reason' >$events/trigger
}}
time() {{
    echo "@time $1"
    run "$@"
}}
"#,
        options = options.join(" ")
    );
    let counted = loads(|bytes| if bytes == LARGE { "20n" } else { "300n" }.to_owned());
    for vmm in Vmm::BOTH {
        writeln!(text, "count {} {counted} {WAIT}", vmm.name())?;
    }
    let timed = loads(|_| format!("{SECONDS}s"));
    for round in 0..rounds {
        for vmm in Vmm::order(round) {
            writeln!(text, "time {} {timed} 0", vmm.name())?;
        }
    }
    Ok(text)
}

/// What the script and the guests have printed.
fn read(console: &str) -> Result<[[Measured; LOADS.len()]; 2]> {
    let mut measured: [[Measured; LOADS.len()]; 2] = Default::default();
    let mut vmm = None;
    let mut counting = false;
    let mut exits_before = None;
    let mut ended: Option<(usize, f64)> = None;
    for line in console.lines() {
        let Some(at) = line.find('@') else { continue };
        let words: Vec<&str> = line[at..].split_whitespace().collect();
        match words[..] {
            ["@count" | "@time", name] => {
                counting = words[0] == "@count";
                vmm = Vmm::BOTH.into_iter().find(|vmm| vmm.name() == name);
            }
            ["@exits", count] => {
                let count: f64 = count.parse().with_context(|| format!("{count} exits"))?;
                match (ended.take(), exits_before.take(), vmm) {
                    (Some((index, requests)), Some(before), Some(vmm)) => {
                        measured[vmm as usize][index].exits = Some((count - before) / requests);
                    }
                    _ => exits_before = Some(count),
                }
            }
            ["@end", name, requests, nanoseconds] => {
                let index = LOADS
                    .iter()
                    .position(|load| load.name == name)
                    .with_context(|| format!("Nobody asked for {name}"))?;
                let requests: f64 = requests.parse().with_context(|| format!("{requests} requests"))?;
                let nanoseconds: f64 = nanoseconds.parse().with_context(|| format!("{nanoseconds} ns"))?;
                if counting {
                    ended = Some((index, requests));
                } else {
                    let vmm = vmm.context("A guest of nobody's")?;
                    measured[vmm as usize][index].rates.push(requests * 1e9 / nanoseconds);
                }
            }
            ["@failed", ..] => bail!("The guest says: {line}"),
            _ => {}
        }
    }
    for vmm in Vmm::BOTH {
        for (load, measured) in LOADS.iter().zip(&measured[vmm as usize]) {
            if measured.rates.is_empty() {
                bail!("There is no number for {} under {}", load.name, vmm.name());
            }
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_session_is_read() {
        let mut text = String::new();
        for vmm in Vmm::BOTH {
            let begin = if vmm == Vmm::Spindle { 1000 } else { 2000 };
            writeln!(text, "@count {}", vmm.name()).unwrap();
            for load in LOADS {
                writeln!(text, "@begin {}\r", load.name).unwrap();
                writeln!(text, "@exits {begin}").unwrap();
                writeln!(text, "[    1.0] a kernel's line @end {} 10 5\r", load.name).unwrap();
                writeln!(text, "@exits {}", begin + 140).unwrap();
            }
            writeln!(text, "@time {}", vmm.name()).unwrap();
            for load in LOADS {
                writeln!(text, "@begin {}\r\n@end {} 100 1000000000\r", load.name, load.name).unwrap();
            }
        }
        let measured = read(&text).unwrap();
        assert_eq!(measured[0][0].exits, Some(14.0));
        assert_eq!(measured[1][5].rates, [100.0]);
    }
}
