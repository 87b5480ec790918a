//! What the host's KVM can do.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use kvm_ioctls::Kvm;

/// The API version that KVM has had since Linux 2.6.22 (KVM API, 4.1 KVM_GET_API_VERSION).
const KVM_API_VERSION: i32 = 12;

/// Opens /dev/kvm, or says what is wrong with it and what to do.
pub fn open_kvm() -> anyhow::Result<Kvm> {
    let kvm = Kvm::new().map_err(|error| {
        let cause = io::Error::from(error);
        let advice = match cause.kind() {
            io::ErrorKind::NotFound => {
                "this host has no KVM: load the module kvm_intel or kvm_amd, and enable virtualisation in the \
                 firmware (or nested virtualisation, where the host is a virtual machine)"
            }
            io::ErrorKind::PermissionDenied => {
                "you may not use KVM: add your user to the group \"kvm\" and log in again"
            }
            _ => "KVM cannot be used",
        };
        anyhow::Error::new(cause).context(format!("Cannot open /dev/kvm: {advice}"))
    })?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        bail!("/dev/kvm speaks API version {version}, and spindle {KVM_API_VERSION}");
    }
    Ok(kvm)
}

/// Fails where KVM is there but cannot run a Linux kernel: KVM-PVM, on a CPU without virtualisation, emulates a
/// guest that does not cooperate instruction by instruction, and not all of them.
pub fn check_runs_linux() -> anyhow::Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("Cannot read /proc/cpuinfo")?;
    if only_pvm(&cpuinfo, Path::new("/sys/module/kvm_pvm").exists()) {
        bail!(
            "This host cannot run a Linux guest: its CPU offers neither VMX nor SVM, and its KVM (KVM-PVM) only emulates a \
             few instructions; use a host with hardware virtualisation, or `cargo xtask boot`, which runs spindle inside \
             an emulated host (bare-metal guests do run here)"
        );
    }
    Ok(())
}

/// Whether all there is to run guests is KVM-PVM.
fn only_pvm(cpuinfo: &str, pvm_loaded: bool) -> bool {
    let has_hardware = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm");
    pvm_loaded && !has_hardware
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_without_hardware_support_and_with_pvm_is_limited() {
        let plain = "processor : 0\nflags\t\t: fpu vme lahf_lm svm_lock\n";
        let amd = "flags\t\t: fpu svm\n";
        let intel = "flags\t\t: fpu vmx\n";
        assert!(only_pvm(plain, true));
        assert!(!only_pvm(plain, false));
        assert!(!only_pvm(amd, true));
        assert!(!only_pvm(intel, true));
    }
}
