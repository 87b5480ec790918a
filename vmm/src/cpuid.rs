//! The CPUID that a guest CPU sees: what KVM supports, with this machine's own topology. Sources: Intel SDM volume 2,
//! "CPUID"; AMD APM volume 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX.
mod features_ecx {
    pub const VMX: u32 = 1 << 5;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// Leaf 1, EDX: EBX\[23:16\] counts logical processors.
const HTT: u32 = 1 << 28;

/// Leaf 6, EAX: the local APIC's timer runs in every power state.
const ARAT: u32 = 1 << 2;

/// Leaf 0x8000_0001, ECX.
mod extended_ecx {
    /// Logical processors of leaf 1 are cores, not threads.
    pub const CMP_LEGACY: u32 = 1 << 1;
    pub const SVM: u32 = 1 << 2;
    /// Leaves 0x8000_001d and 0x8000_001e are there.
    pub const TOPOLOGY: u32 = 1 << 22;
}

/// The size of a cache line in CLFLUSH units of 8 bytes (leaf 1, EBX\[15:8\]).
const CLFLUSH_LINE: u32 = 8 << 8;

const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// What a guest of `cpus` single-threaded cores in one package sees on CPU `cpu`, whose APIC id is the same number.
///
/// `tsc_deadline` says whether KVM's local APIC has the TSC-deadline timer, which the supported CPUID leaves out.
pub fn for_cpu(supported: &CpuId, cpu: u8, cpus: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let amd = is_amd(supported);
    let has_extended_topology = supported.as_slice().iter().any(|entry| entry.function == 0xb);
    // Topology leaves are made anew; nested virtualisation and performance counters are not offered.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_000a | 0x8000_001d | 0x8000_001e));
    for entry in cpuid.as_mut_slice() {
        adapt(entry, cpu, cpus, tsc_deadline, amd);
    }
    if has_extended_topology {
        for entry in extended_topology(cpu, cpus) {
            // The supported list has at least as many of these entries, so there is room.
            if cpuid.push(entry).is_err() {
                break;
            }
        }
    }
    cpuid
}

fn is_amd(cpuid: &CpuId) -> bool {
    // "AuthenticAMD" or "HygonGenuine": EBX of leaf 0 is enough to tell.
    const AUTH: u32 = u32::from_le_bytes(*b"Auth");
    const HYGO: u32 = u32::from_le_bytes(*b"Hygo");
    cpuid
        .as_slice()
        .iter()
        .any(|entry| entry.function == 0 && matches!(entry.ebx, AUTH | HYGO))
}

fn adapt(entry: &mut kvm_cpuid_entry2, cpu: u8, cpus: u8, tsc_deadline: bool, amd: bool) {
    let (cpu, cpus) = (u32::from(cpu), u32::from(cpus));
    match entry.function {
        1 => {
            entry.ebx = cpu << 24 | cpus << 16 | CLFLUSH_LINE | entry.ebx & 0xff;
            entry.ecx = entry.ecx & !features_ecx::VMX | features_ecx::HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= features_ecx::TSC_DEADLINE;
            }
            entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic caches: cores per package; the last level is shared by all, the others by none.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0b111;
            let sharing = if level >= 3 { cpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (cpus - 1).min(0x3f) << 26;
        }
        6 => {
            entry.eax &= ARAT;
            (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
        }
        // Performance monitoring.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !(extended_ecx::SVM | extended_ecx::TOPOLOGY | extended_ecx::CMP_LEGACY);
            if amd && cpus > 1 {
                entry.ecx |= extended_ecx::CMP_LEGACY;
            }
        }
        // Cores in the package, and how many bits of the APIC id number them.
        0x8000_0008 if amd => entry.ecx = core_bits(cpus) << 12 | (cpus - 1),
        _ => {}
    }
}

/// How many bits of an APIC id it takes to number `cpus` cores.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Leaf 0xb: one thread a core, `cpus` cores in the package, and the end of the list.
fn extended_topology(cpu: u8, cpus: u8) -> [kvm_cpuid_entry2; 3] {
    let (cpu, cpus) = (u32::from(cpu), u32::from(cpus));
    let level = |index, eax, ebx, kind| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        edx: cpu,
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_SMT),
        level(1, core_bits(cpus), cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(ebx: u32) -> CpuId {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0x21 | 3 << 5,
            ebx: if function == 0 { ebx } else { 0 },
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let leaves = [
            (0, 0),
            (1, 0),
            (4, 0),
            (0xa, 0),
            (0xb, 0),
            (0xb, 1),
            (0xb, 2),
            (0x8000_0001, 0),
            (0x8000_0008, 0),
        ];
        CpuId::from_entries(&leaves.map(|(function, index)| entry(function, index))).expect("few entries")
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .expect("the leaf")
    }

    #[test]
    fn each_cpu_sees_its_apic_id_in_every_topology_leaf() {
        for cpu in 0..3 {
            let cpuid = for_cpu(&supported(0), cpu, 3, true);
            let leaf1 = leaf(&cpuid, 1, 0);
            assert_eq!(leaf1.ebx >> 24, u32::from(cpu));
            assert_eq!(leaf1.ebx >> 16 & 0xff, 3);
            let core = leaf(&cpuid, 0xb, 1);
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, u32::from(cpu)));
            assert_eq!(leaf(&cpuid, 4, 0).eax >> 26, 2);
        }
    }

    #[test]
    fn nested_virtualisation_and_counters_are_hidden_and_the_hypervisor_is_not() {
        let cpuid = for_cpu(&supported(u32::from_le_bytes(*b"Auth")), 0, 1, false);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & features_ecx::VMX, 0);
        assert_ne!(leaf(&cpuid, 1, 0).ecx & features_ecx::HYPERVISOR, 0);
        assert_eq!(leaf(&cpuid, 1, 0).edx & HTT, 0);
        assert_eq!(leaf(&cpuid, 0xa, 0).eax, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & extended_ecx::SVM, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 0);
    }
}
