//! Addresses on a disc: blocks from 0 on, or minutes, seconds and frames from the lead-in on (MMC-5, table 700).

/// Frames of a second, seconds of a minute.
const FRAMES: u32 = 75;
const SECONDS: u32 = 60;
/// Block 0 is two seconds behind the lead-in.
const PREGAP: u32 = 2 * FRAMES;
/// One more than the last frame that two digits of minutes reach. Only a DVD has blocks there.
const FRAMES_OF_A_DISC: u32 = 100 * SECONDS * FRAMES;

/// Minute, second and frame of a block; the last there is for blocks beyond it.
pub(super) fn minute_second_frame(block: u32) -> [u8; 3] {
    let frames = block.saturating_add(PREGAP).min(FRAMES_OF_A_DISC - 1);
    let (seconds, frame) = (frames / FRAMES, frames % FRAMES);
    [seconds / SECONDS, seconds % SECONDS, frame].map(|part| part as u8)
}

/// The block at a minute, second and frame, which must be ones, and not before block 0.
pub(super) fn block(address: [u8; 3]) -> Option<u32> {
    let [minute, second, frame] = address.map(u32::from);
    if second >= SECONDS || frame >= FRAMES {
        return None;
    }
    ((minute * SECONDS + second) * FRAMES + frame).checked_sub(PREGAP)
}

/// Four bytes of an answer: the block's number, or 0, minute, second and frame.
pub(super) fn in_form(block: u32, as_time: bool) -> [u8; 4] {
    if !as_time {
        return block.to_be_bytes();
    }
    let [minute, second, frame] = minute_second_frame(block);
    [0, minute, second, frame]
}

/// A number of two digits as sector headers have it.
pub(super) fn binary_coded_decimal(number: u8) -> u8 {
    ((number / 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_times_agree() {
        assert_eq!(minute_second_frame(0), [0, 2, 0]);
        assert_eq!(minute_second_frame(16), [0, 2, 16]);
        assert_eq!(minute_second_frame(359_849), [79, 59, 74]);
        assert_eq!(minute_second_frame(u32::MAX), [99, 59, 74]);
        for number in [0, 1, 74, 75, 4499, 359_999, 449_849] {
            assert_eq!(block(minute_second_frame(number)), Some(number));
        }
    }

    #[test]
    fn times_that_are_none_are_refused() {
        assert_eq!(block([0, 1, 74]), None);
        assert_eq!(block([0, 60, 0]), None);
        assert_eq!(block([0, 2, 75]), None);
    }
}
