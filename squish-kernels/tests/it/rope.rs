use half::{bf16, f16};
use proptest::prelude::*;
use squish_kernels::{
    Isa, Real, RopeLayout,
    rope::{rope_in_place_with, rope_scalar},
    rope_in_place,
};

use crate::common::numbers;

const LAYOUTS: [RopeLayout; 2] = [RopeLayout::HalfSplit, RopeLayout::Interleaved];

/// A table of three positions: cosines and sines of arbitrary angles, as the kernel does not know better.
fn table(rotary_dim: usize) -> Vec<f32> {
    let row = |position: usize| {
        let angle = move |i: usize| (position + 1) as f32 * 0.7_f32.powi(i as i32);
        let half = rotary_dim / 2;
        (0..half).map(move |i| angle(i).cos()).chain((0..half).map(move |i| angle(i).sin()))
    };
    (0..3).flat_map(row).collect()
}

fn stored<T: Real>(len: usize, seed: u64) -> Vec<T> {
    numbers(len, seed).into_iter().map(T::from_f32).collect()
}

fn bits<T: Real>(x: &[T]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// Rows rotated head by head with the definition.
fn expected<T: Real>(
    x: &[T],
    head_dim: usize,
    table: &[f32],
    rotary_dim: usize,
    positions: &[usize],
    layout: RopeLayout,
) -> Vec<T> {
    let mut out = x.to_vec();
    for (row, &position) in out.chunks_mut(x.len() / positions.len()).zip(positions) {
        let (cos, sin) = table[position * rotary_dim..][..rotary_dim].split_at(rotary_dim / 2);
        for head in row.chunks_mut(head_dim) {
            rope_scalar(head, cos, sin, layout);
        }
    }
    out
}

fn every_width<T: Real>() {
    let positions = [2, 0, 1, 1];
    let widths = (1..=40).chain([48, 63, 64, 65, 80, 96, 128]).map(|half| 2 * half);
    for rotary_dim in widths {
        let table = table(rotary_dim);
        for (head_dim, n_heads) in [(rotary_dim, 3), (rotary_dim + 5, 1)] {
            let x = stored::<T>(positions.len() * n_heads * head_dim, rotary_dim as u64);
            for layout in LAYOUTS {
                let want = expected(&x, head_dim, &table, rotary_dim, &positions, layout);
                for isa in Isa::available() {
                    let mut got = x.clone();
                    rope_in_place_with(
                        isa, &mut got, head_dim, &table, rotary_dim, &positions, layout,
                    );
                    let what = format!("{isa:?} {layout:?} {rotary_dim} of {head_dim}");
                    assert_eq!(bits(&got), bits(&want), "{what}");
                }
            }
        }
    }
}

#[test]
fn every_isa_has_the_bits_of_the_definition_at_every_width() {
    every_width::<f32>();
    every_width::<bf16>();
    every_width::<f16>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_row_gives_the_same_bits_whatever_its_batch(
        half in 1..70_usize,
        rest in 0..9_usize,
        n_heads in 1..5_usize,
        positions in prop::collection::vec(0..3_usize, 1..6),
        seed: u64,
    ) {
        let (rotary_dim, head_dim) = (2 * half, 2 * half + rest);
        let (table, row) = (table(rotary_dim), n_heads * head_dim);
        let x = stored::<f32>(positions.len() * row, seed);
        for isa in Isa::available() {
            for layout in LAYOUTS {
                let rotate = |x: &mut [f32], positions: &[usize]| {
                    rope_in_place_with(isa, x, head_dim, &table, rotary_dim, positions, layout);
                };
                let mut together = x.clone();
                rotate(&mut together, &positions);
                for (i, position) in positions.iter().enumerate() {
                    let mut alone = x[i * row..(i + 1) * row].to_vec();
                    rotate(&mut alone, &[*position]);
                    prop_assert_eq!(bits(&alone), bits(&together[i * row..(i + 1) * row]));
                }
            }
        }
    }
}

#[test]
fn no_rows_and_rows_of_no_heads_are_no_work() {
    rope_in_place::<f32>(&mut [], 8, &table(8), 8, &[], RopeLayout::HalfSplit);
    rope_in_place::<f32>(&mut [], 8, &table(8), 8, &[1, 2], RopeLayout::Interleaved);
}

#[test]
#[should_panic(expected = "position 3 of a table of 3")]
fn a_position_beyond_the_table_is_refused() {
    rope_in_place(&mut [0.0; 16], 8, &table(8), 8, &[0, 3], RopeLayout::HalfSplit);
}

#[test]
#[should_panic(expected = "20 elements are no whole number of heads of 8 for each of 2 rows")]
fn a_broken_head_is_refused() {
    rope_in_place(&mut [0.0; 20], 8, &table(8), 8, &[0, 1], RopeLayout::HalfSplit);
}

#[test]
#[should_panic(expected = "10 elements of heads of 8 are no pairs")]
fn more_rotated_elements_than_a_head_has_are_refused() {
    rope_in_place(&mut [0.0; 16], 8, &table(10), 10, &[0, 1], RopeLayout::HalfSplit);
}

#[test]
#[should_panic(expected = "25 elements are no whole number of rows of 8")]
fn a_broken_table_is_refused() {
    rope_in_place(&mut [0.0; 16], 8, &[0.0; 25], 8, &[0, 1], RopeLayout::HalfSplit);
}
