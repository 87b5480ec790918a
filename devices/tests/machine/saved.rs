//! Save and restore, in the middle of whatever the guest does.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::driver::{BSY, Command, DATA, DRQ, Machine, READY, pattern};
use crate::hostile_guest::{self, Layout, Script, World};

/// The same machine, taken out of one process and put into another: here, into another chipset over the same disks.
fn moved(machine: &Machine) -> Machine {
    let saved = serde_json::to_string(&machine.chipset.save_ide()).expect("a state that can be written");
    for disk in machine.disks.iter().flatten() {
        disk.abandon(usize::MAX);
    }
    let slots: Vec<usize> = (0..4).filter(|slot| machine.disks[*slot].is_some()).collect();
    let mut other = Machine::with_disks(machine.disks.clone());
    other.clock = machine.clock.clone();
    let everything = machine.get(0, crate::driver::MEMORY as usize);
    other.put(0, &everything);
    let saved = serde_json::from_str(&saved).expect("a state that can be read");
    other.chipset.restore_ide(saved).expect("the same drives");
    assert!(!slots.is_empty());
    other
}

#[test]
fn a_dma_write_goes_on_after_the_move() {
    let machine = Machine::new(&[0]);
    machine.put(DATA, &[0x5a; 4 * 512]);
    machine.put_table(&[(DATA, 3 * 512), (DATA + 3 * 512, 512)]);
    let command = Command::extended(0x35, 90, 4);
    machine.drive(0).issue_dma(&command, false);
    let machine = moved(&machine);
    let drive = machine.drive(0);
    assert_eq!(drive.alternate_status() & BSY, BSY);
    assert_eq!(drive.disk().waiting(), 1, "the request is made again");
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(drive.disk().contents()[90 * 512..94 * 512], [0x5a; 4 * 512]);
}

#[test]
fn a_pio_read_goes_on_at_its_word() {
    let machine = Machine::new(&[0]);
    machine.drive(0).issue(&Command::at(0x20, 5, 2));
    machine.settle();
    let mut bytes = vec![0; 1024];
    machine.bus.read(0x1f0, 2, &mut bytes[..100]);
    let machine = moved(&machine);
    let drive = machine.drive(0);
    assert!(drive.line.is_high(), "nobody has read the status yet");
    assert_eq!(drive.status(), READY | DRQ);
    machine.bus.read(0x1f0, 2, &mut bytes[100..512]);
    let machine = moved(&machine);
    machine.settle();
    machine.bus.read(0x1f0, 2, &mut bytes[512..]);
    assert_eq!(bytes, pattern(0, 5, 2));
    assert_eq!(machine.drive(0).status(), READY);
}

#[test]
fn settings_passwords_and_limits_move_along() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_features(0x03, 0x42).expect("UDMA 2");
    drive.set_features(0x82, 0).expect("write cache off");
    let mut sector = vec![0; 512];
    sector[2] = 9;
    drive.give(&Command::new(0xf1), &sector).expect("SECURITY SET PASSWORD");
    drive.run(&Command::new(0xf8)).expect("READ NATIVE MAX ADDRESS");
    let expected = drive.identify();
    drive.run(&Command::new(0xf8)).expect("READ NATIVE MAX ADDRESS");
    let machine = moved(&machine);
    let drive = machine.drive(0);
    // Even what only the next command may do.
    drive.run(&Command::at(0xf9, 999, 0)).expect("SET MAX ADDRESS");
    let found = drive.identify();
    assert_eq!((found[60], found[61]), (1000, 0));
    for word in [62, 63, 82, 83, 85, 86, 88, 128] {
        assert_eq!(found[word], expected[word], "word {word}");
    }
}

#[test]
fn other_drives_and_other_versions_are_refused_by_name() {
    let machine = Machine::new(&[0, 1]);
    let saved = serde_json::to_string(&machine.chipset.save_ide()).expect("a state");
    let restore = |slots: &[usize], text: &str| {
        let other = Machine::new(slots);
        let saved = serde_json::from_str(text).expect("a state");
        other.chipset.restore_ide(saved).map_err(|error| error.to_string())
    };
    assert_eq!(restore(&[0, 1], &saved), Ok(()));
    assert_eq!(
        restore(&[0], &saved),
        Err("Drive hdb is a disk in the saved state, and absent in this machine".to_owned())
    );
    let newer = saved.replacen("\"version\":1", "\"version\":2", 1);
    assert_eq!(
        restore(&[0, 1], &newer),
        Err("The IDE state is of version 2, and this is version 1".to_owned())
    );
    let broken = saved.replacen("\"heads\":16", "\"heads\":0", 1);
    assert_eq!(
        restore(&[0, 1], &broken),
        Err("Drive hda: The geometry is none that a drive can have".to_owned())
    );
}

#[test]
fn a_transfer_to_memory_that_is_not_there_is_refused() {
    let machine = Machine::new(&[0]);
    machine.put_table(&[(DATA, 512)]);
    machine.drive(0).issue_dma(&Command::at(0xc8, 0, 1), true);
    let saved = serde_json::to_string(&machine.chipset.save_ide()).expect("a state");
    let saved = saved.replacen("[[65536,512]]", "[[1048576,512]]", 1);
    let other = Machine::new(&[0]);
    let error = other
        .chipset
        .restore_ide(serde_json::from_str(&saved).expect("a state"))
        .expect_err("no such memory");
    assert_eq!(
        error.to_string(),
        "Drive hda: 512 bytes at guest address 0x100000 are not guest memory"
    );
}

/// Two machines do the same at random; one of them is saved and restored all the time. Nobody can tell which.
#[test]
fn a_machine_that_is_saved_and_restored_cannot_be_told_from_one_that_is_not() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; 6000];
        random.fill_bytes(&mut bytes);
        let mut script = Script::new(&bytes);
        let layout = Layout::read(&mut script);
        let steady = World::new(layout);
        let mut moving = World::new(layout);
        let mut step = 0;
        while !script.is_empty() {
            step += 1;
            let mut same = Script::new(script.rest());
            let learned = steady.act(&mut script);
            assert_eq!(learned, moving.act(&mut same), "seed {seed}, step {step}");
            if step % 3 == 0 {
                moving = moving.rebuilt(|saved| saved).expect("a state that was saved");
            }
            let (a, b) = (steady.view(), moving.view());
            assert_eq!((&a.0, &a.1, &a.3), (&b.0, &b.1, &b.3), "seed {seed}, step {step}");
            assert!(a.2 == b.2, "memory, seed {seed}, step {step}");
            if step % 50 == 0 {
                for (a, b) in steady.disks.iter().zip(&moving.disks) {
                    assert!(
                        a.as_ref().map(|disk| disk.contents()) == b.as_ref().map(|disk| disk.contents()),
                        "disks, seed {seed}, step {step}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_the_fuzzer_starts_from_does_no_harm() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/ide");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("a file").path();
        println!("{}", path.display());
        hostile_guest::run(&std::fs::read(&path).expect("a file"));
        files += 1;
    }
    assert!(files > 0);
}

#[test]
fn a_hostile_guest_with_tampered_states_does_no_harm() {
    for seed in 0..150 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed ^ 0xbad_5eed);
        let mut bytes = vec![0; 4000];
        random.fill_bytes(&mut bytes);
        hostile_guest::run(&bytes);
    }
}
