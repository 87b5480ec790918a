//! Sizes as people write them: `1.5G`, `64k`, `0x1000`.

use anyhow::{Result, anyhow, bail};

/// The largest disk, in bytes.
pub const MAX_DISK: u64 = i64::MAX as u64;

/// Reads a number of bytes with an optional suffix: b, k, M, G, T, P or E, in powers of 1024.
pub fn parse(text: &str) -> Result<u64> {
    let unreadable = || {
        anyhow!(
            "\"{text}\" is not a size: say a number, with k, M, G, T, P or E for kilo-, mega-, giga-, tera-, peta- and exabytes"
        )
    };
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).map_err(|_| unreadable());
    }
    let (number, suffix) = match text.chars().last() {
        Some(last) if last.is_ascii_alphabetic() => text.split_at(text.len() - 1),
        _ => (text, ""),
    };
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(unreadable()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) || (shift == 0 && !fraction.is_empty()) {
        return Err(unreadable());
    }
    let too_large = || anyhow!("\"{text}\" is too large");
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    let fraction: f64 = format!("0.{fraction}").parse().map_err(|_| unreadable())?;
    bytes
        .checked_add((fraction * (1u64 << shift) as f64).round() as u64)
        .ok_or_else(too_large)
}

/// Reads the size of a disk: rounded up to whole sectors.
pub fn parse_disk(text: &str) -> Result<u64> {
    let bytes = parse(text).map_err(|error| anyhow!("Invalid image size: {error}"))?;
    if bytes > MAX_DISK - 511 {
        bail!("Invalid image size \"{text}\". Must be between 0 and {MAX_DISK}.");
    }
    Ok(bytes.next_multiple_of(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_fractions_and_hexadecimals_are_read() {
        let good = [
            ("0", 0),
            ("512", 512),
            ("1k", 1024),
            ("1.5G", 3 << 29),
            ("0x1000", 4096),
            ("2T", 2 << 40),
            ("7E", 7 << 60),
            ("100b", 100),
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text).expect(text), bytes, "{text}");
        }
        for text in [
            "",
            "k",
            "1.5",
            "-1",
            "1x",
            "1 k",
            "16E",
            "1.2.3G",
            "99999999999999999999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_disk("1000").expect("rounded"), 1024);
        assert!(parse_disk("9E").is_err());
    }
}
