//! Active elements against their definition.

use proptest::prelude::*;
use squish_bench::alloc::count_allocations;
use squish_kernels::{
    Isa,
    select::{is_active_scalar, select_into_with, zero_below_in_place_with},
};

use crate::common::{edge_lengths, length, numbers};

fn check(x: &[f32], threshold: f32) {
    let want: Vec<u32> =
        (0..x.len() as u32).filter(|&i| is_active_scalar(x[i as usize], threshold)).collect();
    for isa in Isa::available() {
        let (mut indices, mut values) = (vec![9; x.len()], vec![9.0; x.len()]);
        let mut zeroed = x.to_vec();
        let ((n, n_active), n_allocations) = count_allocations(|| {
            let n = select_into_with(isa, x, threshold, &mut indices, &mut values);
            (n, zero_below_in_place_with(isa, &mut zeroed, threshold))
        });
        assert_eq!(n_allocations, 0);
        assert_eq!(indices[..n], want, "{isa:?}, {threshold}, {}", x.len());
        assert_eq!(n, n_active, "{isa:?}, {threshold}, {}", x.len());
        for (&index, value) in indices[..n].iter().zip(&values) {
            assert_eq!(value.to_bits(), x[index as usize].to_bits(), "{isa:?}, {threshold}");
        }
        for (i, (zeroed, x)) in zeroed.iter().zip(x).enumerate() {
            let want = if is_active_scalar(*x, threshold) { x.to_bits() } else { 0 };
            assert_eq!(
                zeroed.to_bits(),
                want,
                "{isa:?}, {threshold}, element {i} of {}",
                x.to_bits()
            );
        }
    }
}

#[test]
fn every_isa_selects_the_active_elements_at_every_edge() {
    for len in edge_lengths() {
        let x = numbers(len, len as u64);
        for threshold in [0.0, 0.5, x.first().map_or(1.0, |x| x.abs()), 1e9] {
            check(&x, threshold);
        }
    }
}

#[test]
fn nan_is_active_and_zeros_are_not() {
    let x = [0.0, -0.0, f32::NAN, -f32::NAN, f32::from_bits(1), 1.0, -1.0, f32::INFINITY];
    let x: Vec<f32> = x.iter().cycle().take(77).copied().collect();
    for threshold in [0.0, -1.0, f32::NAN, 1.0, 1.0_f32.next_up(), f32::MIN_POSITIVE, f32::INFINITY]
    {
        check(&x, threshold);
    }
}

proptest! {
    #[test]
    fn every_isa_selects_the_active_elements(len in length(), seed: u64, threshold in 0f32..4.0) {
        check(&numbers(len, seed), threshold);
    }
}

#[test]
#[should_panic(expected = "`indices` and `x` differ in length")]
fn short_buffers_are_refused() {
    select_into_with(Isa::detect(), &[1.0; 3], 0.5, &mut [0; 2], &mut [0.0; 3]);
}
