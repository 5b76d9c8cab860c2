//! The soft cap, element by element.

use squish_kernels::{
    Isa,
    soft_cap::{soft_cap_in_place_with, soft_cap_scalar},
};

use crate::common::edge_lengths;

/// As documented.
const RELATIVE_ERROR: f64 = 4e-7;

#[test]
fn soft_cap_is_the_scaled_tangent() {
    for cap in [1.0_f32, 30.0, 50.0] {
        let n = 1 << 16;
        let steps = (0..=n).map(|i| (i as f32 / n as f32 * 2.0 - 1.0) * 12.0 * cap);
        let x: Vec<f32> = steps.chain((0..120).map(|i| 2.0_f32.powi(i - 100))).collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            soft_cap_in_place_with(isa, &mut y, cap);
            for (&x, y) in x.iter().zip(y) {
                let want = soft_cap_scalar(x, cap);
                let error = (f64::from(y) - want).abs();
                assert!(error <= RELATIVE_ERROR * want.abs(), "{isa:?}: {y:e}, not {want:e}");
                assert!(y.abs() <= cap);
            }
        }
    }
}

#[test]
fn soft_cap_of_infinities_and_nan() {
    for isa in Isa::available() {
        let mut x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MAX];
        soft_cap_in_place_with(isa, &mut x, 30.0);
        assert_eq!([x[0], x[1], x[5]], [30.0, -30.0, 30.0], "{isa:?}");
        assert!(x[2].is_nan() && x[3..5] == [0.0; 2], "{isa:?}: {x:?}");
    }
}

#[test]
fn soft_cap_of_an_element_depends_on_it_alone() {
    for isa in Isa::available() {
        for len in edge_lengths() {
            let x: Vec<f32> = (0..len).map(|i| i as f32 - 20.0).collect();
            let mut together = x.clone();
            soft_cap_in_place_with(isa, &mut together, 5.0);
            for (x, together) in x.into_iter().zip(together) {
                let mut alone = [x];
                soft_cap_in_place_with(isa, &mut alone, 5.0);
                assert_eq!(alone[0].to_bits(), together.to_bits(), "{isa:?}, {len}");
            }
        }
    }
}
