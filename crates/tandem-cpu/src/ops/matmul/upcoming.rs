//! Weights that will be read next.

use std::ops::Range;

use crate::cpu::Cpu;
use crate::ops::Weights;
use crate::team::{BUDGET, Pieces};

/// Tells the team which weights the next products will read, in the order in which
/// [`matmul_all`](super::matmul_all) gets them: members that wait have memory bring the beginning. To be called right
/// before the last parallel operation that comes earlier. Makes no difference to results.
pub fn announce(cpu: &Cpu, weights: &[Weights<'_>]) {
    let team = cpu.team();
    let members = team.threads();
    if members == 1 {
        return;
    }
    let rows: usize = weights.iter().map(Weights::rows).sum();
    for member in 0..members {
        // As work is shared out, up to a tile or two.
        let rows = rows * member / members..rows * (member + 1) / members;
        team.announce(member, &beginning(weights, rows));
    }
}

/// Where the first of these rows lie, which are numbered through all matrices: as many as members ask for.
fn beginning(weights: &[Weights<'_>], rows: Range<usize>) -> Pieces {
    let mut pieces = Pieces::default();
    let mut places = pieces.chunks_exact_mut(2);
    let (mut first, mut room) = (0, BUDGET);
    for matrix in weights {
        let start = rows.start.max(first);
        let affordable = room * matrix.rows() / matrix.n_bytes().max(1);
        let count = rows.end.min(first + matrix.rows()).saturating_sub(start).min(affordable);
        if count > 0
            && let Some(place) = places.next()
        {
            let addresses = matrix.addresses(start - first..start - first + count);
            room = room.saturating_sub(addresses.iter().map(Range::len).sum());
            place.clone_from_slice(&addresses);
        }
        first += matrix.rows();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Input, MatrixRef, Precision, QuantizedActivations, matmul};
    use crate::{Cpu, ThreadTeam};
    use tandem_formats::DType;
    use tandem_memory::{AlignedBuffer, PackedLayout, PackedMatrix, PackedType};

    #[test]
    fn a_member_is_told_where_its_rows_begin() {
        let bytes = vec![0; 2 * 40 * 64];
        let at = bytes.as_ptr().addr();
        let matrices = bytes.chunks_exact(40 * 64).map(|b| MatrixRef::new(DType::F16, 40, 32, b));
        let matrices: Vec<Weights<'_>> = matrices.map(Weights::from).collect();
        let rows = |range| beginning(&matrices, range);
        assert_eq!(rows(0..10), [0..0, at..at + 640, 0..0, 0..0]);
        assert_eq!(rows(30..50), [0..0, at + 1920..at + 2560, 0..0, at + 2560..at + 3200]);
        assert_eq!(rows(70..80), [0..0, at + 4480..at + 5120, 0..0, 0..0]);
        assert_eq!(rows(80..80), Pieces::default());
    }

    #[test]
    fn packed_rows_begin_with_scales_and_end_with_the_budget() {
        // A tile is 16 rows, with 32 bytes of scales and 512 of quants in each of 128 blocks.
        let layout = PackedLayout::new(PackedType::Q8_0, 64 * 16, 4096).unwrap();
        let memory = AlignedBuffer::zeroed(layout.n_bytes()).unwrap();
        let at = memory.as_ptr().addr();
        let matrix = Weights::from(PackedMatrix::new(layout, &memory));
        let (scales, quants) = (128 * 32, 128 * 512);
        let all_scales = at + 64 * quants;
        let tile = |n| [all_scales + n * scales, at + n * quants];
        let [s, q] = tile(32);
        // 60 of the rows cost 255 KiB; whole tiles are 64.
        let expected = [s..s + 4 * scales, q..q + 4 * quants, 0..0, 0..0];
        assert_eq!(beginning(&[matrix], 512..1024), expected);
        let [s, q] = tile(63);
        let expected = [s..s + scales, q..q + quants, 0..0, 0..0];
        assert_eq!(beginning(&[matrix], 1010..1024), expected);
    }

    /// Whatever is announced, of memory that is there no more too, and however many cores there are for the members.
    #[test]
    fn announcements_make_no_difference_to_results() {
        let layout = PackedLayout::new(PackedType::Q4_0, 448, 64).unwrap();
        let mut memory = AlignedBuffer::zeroed(layout.n_bytes()).unwrap();
        tandem_testkit::Rng::new(2).fill(&mut memory[..layout.quant_bytes()]);
        for scale in memory[layout.quant_bytes()..].as_chunks_mut::<2>().0 {
            *scale = [0, 0x3c];
        }
        let matrix = Weights::from(PackedMatrix::new(layout, &memory));
        let x: Vec<f32> = (0..64).map(|n| n as f32 - 20.0).collect();
        let product = |cpu: &Cpu| {
            let mut buffer = QuantizedActivations::default();
            let input = Input::new(cpu, &x, &[matrix], Precision::Bits8, &mut buffer);
            let mut out = vec![0.0; 448];
            matmul(cpu, matrix, None, input, &mut out);
            out
        };
        let expected = product(&Cpu::new(ThreadTeam::new(1).unwrap()));
        for threads in [1, 2, 3, 40] {
            let cpu = Cpu::new(ThreadTeam::new(threads).unwrap());
            cpu.team().in_turn(threads, || {
                for _ in 0..10 {
                    let gone = vec![0; 40 * 64];
                    announce(&cpu, &[matrix, MatrixRef::new(DType::F16, 40, 32, &gone).into()]);
                    drop(gone);
                    assert_eq!(product(&cpu), expected, "{threads} threads");
                }
            });
        }
    }
}
