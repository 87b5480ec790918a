//! The guest that carries out a script: some forty instructions, loaded once.

use anyhow::Result;
use guest_images::bare_metal::{BareMetalGuest, Mode, PowerOff};
use iced_x86::IcedError;
use iced_x86::code_asm::{AsmRegister32, CodeLabel, al, ax, dword_ptr, dx, eax, ebx, ecx, edx, esi};

use super::script::{SCRIPT, Verb};

/// spindle's PM1a control register and its sleep type for S5, as its FADT and DSDT say.
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_TYPE_S5: u8 = 0;

/// The guest as an ELF image.
pub(super) fn image() -> Result<Vec<u8>> {
    let mut guest = BareMetalGuest::new(Mode::Pvh, PowerOff::acpi(PM1A_CONTROL, SLEEP_TYPE_S5))?;
    let mut power_off = interpreter(&mut guest)?;
    guest.assembler().set_label(&mut power_off)?;
    guest.power_off()?;
    Ok(guest.build()?)
}

/// A guest that powers off at once.
pub(super) fn power_off_image() -> Result<Vec<u8>> {
    let mut guest = BareMetalGuest::new(Mode::Pvh, PowerOff::acpi(PM1A_CONTROL, SLEEP_TYPE_S5))?;
    guest.power_off()?;
    Ok(guest.build()?)
}

/// Fetches entry after entry: a verb and three words. Returns where [`Verb::PowerOff`] goes.
fn interpreter(guest: &mut BareMetalGuest) -> Result<CodeLabel, IcedError> {
    let code = guest.assembler();
    let mut next = code.create_label();
    let power_off = code.create_label();
    code.mov(esi, SCRIPT)?;
    code.set_label(&mut next)?;
    let operands: [AsmRegister32; 4] = [ebx, edx, eax, ecx];
    for (index, register) in operands.into_iter().enumerate() {
        code.mov(register, dword_ptr(esi + 4 * index as i32))?;
    }
    code.add(esi, 16)?;
    for verb in Verb::ALL {
        let mut other = code.create_label();
        code.cmp(ebx, verb as i32)?;
        code.jne(other)?;
        match verb {
            Verb::Out8 => code.out(dx, al)?,
            Verb::Out16 => code.out(dx, ax)?,
            Verb::Out32 => code.out(dx, eax)?,
            Verb::Poll8 => {
                let mut again = code.create_label();
                code.mov(ebx, eax)?;
                code.set_label(&mut again)?;
                code.in_(al, dx)?;
                code.and(eax, ecx)?;
                code.cmp(eax, ebx)?;
                code.jne(again)?;
            }
            Verb::In8 => {
                code.xor(eax, eax)?;
                code.in_(al, dx)?;
                code.mov(dword_ptr(ecx), eax)?;
            }
            Verb::Store => code.mov(dword_ptr(edx), eax)?,
            Verb::Await => {
                let mut again = code.create_label();
                code.set_label(&mut again)?;
                code.pause()?;
                code.mov(ecx, dword_ptr(edx))?;
                code.cmp(ecx, eax)?;
                code.jne(again)?;
            }
            Verb::PowerOff => code.jmp(power_off)?,
        }
        code.jmp(next)?;
        code.set_label(&mut other)?;
    }
    // A verb that there is not: spin, and let the test say that nothing happens.
    let mut forever = code.create_label();
    code.nop()?;
    code.set_label(&mut forever)?;
    code.jmp(forever)?;
    Ok(power_off)
}
