//! Numbers as text, without what general formatting costs: files have millions of them.

/// Writes `number / 10^digits`, exactly, with a digit after the point and no zeros at the end beyond it.
pub(super) fn push_fraction(text: &mut Vec<u8>, number: u64, digits: u32) {
    let unit = 10_u64.pow(digits);
    push_whole(text, number / unit);
    text.push(b'.');
    let (mut rest, mut place) = (number % unit, unit / 10);
    loop {
        text.push(b'0' + (rest / place) as u8);
        rest %= place;
        if rest == 0 {
            return;
        }
        place /= 10;
    }
}

/// Writes a number.
pub(super) fn push_whole(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes the last `digits` digits of a number, zeros in front.
pub(super) fn push_padded(text: &mut Vec<u8>, number: u64, digits: u32) {
    let mut place = 10_u64.pow(digits - 1);
    while place > 0 {
        text.push(b'0' + (number / place % 10) as u8);
        place /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fractions_are_read_back(number in any::<u64>(), digits in 1..10_u32) {
            let mut text = Vec::new();
            push_fraction(&mut text, number, digits);
            let text = String::from_utf8(text).unwrap();
            let (whole, fraction) = text.split_once('.').unwrap();
            let digits = digits as usize;
            prop_assert!((1..=digits).contains(&fraction.len()));
            prop_assert!(fraction == "0" || !fraction.ends_with('0'));
            prop_assert_eq!(format!("{whole}{fraction:0<digits$}").parse::<u64>(), Ok(number));
        }

        #[test]
        fn padded_numbers_have_so_many_digits(number in 0..1_000_000_000_u64) {
            let mut text = Vec::new();
            push_padded(&mut text, number, 9);
            prop_assert_eq!(String::from_utf8(text).unwrap(), format!("{number:09}"));
        }
    }
}
