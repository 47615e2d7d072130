//! Memory that an operation needs for a moment, kept by each thread from one operation to the next.

use std::cell::Cell;

/// Numbers in a cache line: vectors loaded from scratch never straddle two.
const LINE: usize = 64 / size_of::<f32>();

thread_local! {
    /// Buffers that are not in use. A call from within a call takes another one.
    static BUFFERS: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with one slice of each length, each starting on a cache line. What they hold is left over from
/// earlier calls.
pub(crate) fn with_scratch<const N: usize, R>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let total: usize = lengths.iter().map(|len| len.next_multiple_of(LINE)).sum();
    let mut buffers = BUFFERS.take();
    let mut buffer = buffers.pop().unwrap_or_default();
    BUFFERS.set(buffers);
    if buffer.len() < total + LINE {
        buffer.resize(total + LINE, 0.0);
    }
    let offset = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    let mut rest = &mut buffer[offset..];
    let slices = lengths.map(|len| {
        let (slice, after) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE));
        rest = after;
        &mut slice[..len]
    });
    let result = f(slices);
    let mut buffers = BUFFERS.take();
    buffers.push(buffer);
    BUFFERS.set(buffers);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_aligned_apart_and_nest() {
        with_scratch([3, 0, 17], |outer| {
            for (i, slice) in outer.into_iter().enumerate() {
                assert_eq!(slice.len(), [3, 0, 17][i]);
                assert_eq!(slice.as_ptr() as usize % 64, 0);
                slice.fill(i as f32);
                with_scratch([64], |[inner]| inner.fill(-1.0));
                assert!(slice.iter().all(|&x| x == i as f32));
            }
        });
    }
}
