//! Slots, edges and windows against the definition.

use squish_bench::alloc::count_allocations;
use squish_kernels::{
    Isa,
    histogram::{
        BINS, OCTAVES, SLOTS, count_columns_with, count_magnitudes_with, edge, floor_of, rebase,
        slot_scalar,
    },
};

use crate::common::numbers;

#[test]
fn a_magnitude_lies_between_the_edges_of_its_slot() {
    for octave in 1..=254_u32 {
        for mantissa in [0, 1, (1 << 18) - 1, 1 << 18, 5 << 18, (1 << 23) - 1] {
            let x = f32::from_bits(octave << 23 | mantissa);
            for top in octave..=(octave + OCTAVES as u32).min(254) {
                let floor = floor_of(f32::from_bits(top << 23 | 0x4d));
                let slot = slot_scalar(x, floor);
                if slot == 0 {
                    assert!(x < edge(floor, 1) && octave + OCTAVES as u32 <= top);
                    continue;
                }
                assert!(slot <= BINS, "{x:e} under {top}: {slot}");
                let (least, next) = (edge(floor, slot), edge(floor, slot + 1));
                assert!(least <= x && x < next, "{x:e} under {top}: {slot}");
                assert!(next == f32::INFINITY || next <= least * (1.0 + 1.0 / 32.0));
            }
        }
    }
}

#[test]
fn zeros_and_subnormals_are_below_and_what_is_not_finite_above_every_window() {
    for largest in [0.0, f32::from_bits(3), f32::MIN_POSITIVE, 1.0, f32::MAX] {
        let floor = floor_of(largest);
        for x in [0.0, -0.0, f32::from_bits(1), -f32::MIN_POSITIVE.next_down()] {
            assert_eq!(slot_scalar(x, floor), 0, "{x:e} under {largest:e}");
        }
        for x in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(slot_scalar(x, floor), BINS + 1, "{x:e} under {largest:e}");
        }
        assert!(slot_scalar(largest, floor) <= BINS);
    }
}

#[test]
fn every_isa_counts_by_the_definition() {
    for (n_rows, n) in [(0, 4), (1, 1), (7, 31), (16, 32), (40, 33), (3, 100)] {
        let mut x = numbers(n_rows * n, 8);
        for (i, x) in x.iter_mut().enumerate() {
            match i % 31 {
                2 => *x = f32::NAN,
                7 => *x = 0.0,
                9 => *x *= 1e-12,
                _ => {}
            }
        }
        let rows: Vec<&[f32]> = (0..n_rows).map(|i| &x[i * n..(i + 1) * n]).collect();
        let floors: Vec<i32> = (0..n).map(|c| floor_of(20.0 * (1 << (c % 7)) as f32)).collect();
        let mut want = vec![0; n * SLOTS];
        for row in &rows {
            for (c, &x) in row.iter().enumerate() {
                want[c * SLOTS + slot_scalar(x, floors[c])] += 1;
            }
        }
        for isa in Isa::available() {
            let mut got = vec![0; n * SLOTS];
            let ((), n_allocations) =
                count_allocations(|| count_columns_with(isa, &rows, &floors, &mut got));
            assert_eq!(n_allocations, 0);
            assert!(got == want, "{isa:?}, {n_rows} x {n}");

            let mut four = [[0; SLOTS]; 4];
            count_magnitudes_with(isa, &x, floor_of(20.0), &mut four);
            let mut want = [0; SLOTS];
            for &x in &x {
                want[slot_scalar(x, floor_of(20.0))] += 1;
            }
            let sums: Vec<u32> = (0..SLOTS).map(|i| four.iter().map(|one| one[i]).sum()).collect();
            assert_eq!(sums, want, "{isa:?}, {n_rows} x {n}");
        }
    }
}

#[test]
fn a_window_that_rose_counts_as_if_it_had_begun_there() {
    let x = numbers(3000, 9);
    for rise in [0_usize, 1, 32, 100, 767, 768, 5000] {
        let floor = floor_of(64.0);
        let mut moved = [0; SLOTS];
        for &x in &x {
            moved[slot_scalar(x, floor)] += 1;
        }
        rebase(&mut moved, rise);
        let mut want = [0; SLOTS];
        for &x in &x {
            want[slot_scalar(x, floor + rise as i32)] += 1;
        }
        assert_eq!(moved, want, "{rise}");
    }
}
