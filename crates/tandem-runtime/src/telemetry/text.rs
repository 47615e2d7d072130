//! Text of files, without what general formatting costs: they have millions of numbers.

use tandem_formats::{AtomicFile, FormatError};

/// Text is handed to the file when there is this much of it: many small writes to memory cost less than to a file.
const CHUNK: usize = 1 << 16;

/// Hands `text` over to `file`, where it is long enough.
pub(super) fn spill(text: &mut Vec<u8>, file: &mut AtomicFile) -> Result<(), FormatError> {
    if text.len() >= CHUNK {
        file.append(text)?;
        text.clear();
    }
    Ok(())
}

/// Writes `number / 10^DIGITS`, exactly, with a digit after the point and no zeros at the end beyond it.
pub(super) fn push_fraction<const DIGITS: u32>(text: &mut Vec<u8>, number: u64) {
    const { assert!(DIGITS > 0, "a fraction has digits") };
    let unit = const { 10_u64.pow(DIGITS) };
    push_whole(text, number / unit);
    text.push(b'.');
    let first = text.len();
    push_padded::<DIGITS>(text, number % unit);
    let zeros = text[first + 1..].iter().rev().take_while(|&&digit| digit == b'0').count();
    text.truncate(text.len() - zeros);
}

/// Writes a number.
pub(super) fn push_whole(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes the last `DIGITS` digits of a number, zeros in front.
pub(super) fn push_padded<const DIGITS: u32>(text: &mut Vec<u8>, number: u64) {
    let unit = const { 10_u64.pow(DIGITS) };
    // A one in front keeps the zeros after it.
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(unit + number % unit);
    text.extend_from_slice(&digits.as_bytes()[1..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fraction<const DIGITS: u32>(number: u64) {
        let mut text = Vec::new();
        push_fraction::<DIGITS>(&mut text, number);
        let text = String::from_utf8(text).unwrap();
        let (whole, fraction) = text.split_once('.').unwrap();
        let digits = DIGITS as usize;
        assert!((1..=digits).contains(&fraction.len()), "{text}");
        assert!(fraction == "0" || !fraction.ends_with('0'), "{text}");
        assert_eq!(format!("{whole}{fraction:0<digits$}").parse::<u64>(), Ok(number), "{text}");
    }

    proptest! {
        #[test]
        fn fractions_are_read_back(number in any::<u64>(), few in 0..2000_u64) {
            for number in [number, few, few * 1000, few * 1_000_000] {
                fraction::<1>(number);
                fraction::<3>(number);
                fraction::<6>(number);
            }
        }

        #[test]
        fn padded_numbers_have_so_many_digits(number in 0..1_000_000_000_u64) {
            let mut text = Vec::new();
            push_padded::<9>(&mut text, number);
            prop_assert_eq!(String::from_utf8(text).unwrap(), format!("{number:09}"));
        }
    }
}
