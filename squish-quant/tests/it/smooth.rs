//! `SmoothQuant`'s scales, and what folding them leaves as it is.

use proptest::prelude::*;
use squish_quant::{
    Error,
    ndarray::{Array1, Array2, array},
    smooth::{column_abs_max, fold_into_norm, fold_into_weight},
    smooth_scales, smooth_scales_into,
};

use crate::int::normal;

#[test]
fn scales_are_those_of_the_paper() {
    let (x, w) = ([8.0, 0.5, 3.0], [2.0, 0.125, 27.0]);
    assert_eq!(smooth_scales(&x, &w, 1.0).unwrap(), x);
    assert_eq!(smooth_scales(&x, &w, 0.0).unwrap(), w.map(|w| 1.0 / w));
    assert_eq!(smooth_scales(&x, &w, 0.5).unwrap(), [2.0, 2.0, 1.0 / 3.0]);
}

#[test]
fn at_one_half_inputs_and_weights_have_the_same_maxima() {
    let (x, w) =
        (normal(50, 8) * array![1.0, 30.0, 0.1, 1.0, 5.0, 7.0, 2.0, 0.01], normal(20, 8) * 0.1);
    let (x_max, w_max) = (column_abs_max(x.view()).unwrap(), column_abs_max(w.view()).unwrap());
    let scales = smooth_scales(&x_max, &w_max, 0.5).unwrap();
    let mut folded = w.clone();
    fold_into_weight(folded.view_mut(), &scales).unwrap();
    let smooth = &x / &Array1::from(scales.clone());
    let (of_x, of_w) =
        (column_abs_max(smooth.view()).unwrap(), column_abs_max(folded.view()).unwrap());
    for (x, w) in of_x.iter().zip(&of_w) {
        assert!((x / w - 1.0).abs() < 1e-5, "{x} {w}");
    }
    let (want, got) = (x.dot(&w.t()), smooth.dot(&folded.t()));
    assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs())));
    let mut norm: Vec<f32> = x.row(0).to_vec();
    fold_into_norm(&mut norm, &scales).unwrap();
    assert_eq!(norm, smooth.row(0).to_vec());
}

#[test]
fn channels_without_anything_to_balance_have_scale_one() {
    assert_eq!(smooth_scales(&[0.0, 2.0, 0.0], &[5.0, 0.0, 0.0], 0.7).unwrap(), [1.0; 3]);
    let extreme = smooth_scales(&[f32::MAX, 1e-45], &[1e-45, f32::MAX], 0.0).unwrap();
    assert!(extreme.iter().all(|s| s.is_normal() && s.recip().is_normal()), "{extreme:?}");
}

#[test]
fn what_is_no_maximum_is_refused() {
    let mut scales = [7.0; 2];
    for bad in [f32::NAN, -1.0, f32::INFINITY] {
        let error = smooth_scales_into(&[1.0, bad], &[1.0; 2], 0.5, &mut scales);
        assert!(matches!(error, Err(Error::BadScale { index: 1, .. })), "{error:?}");
        let error = smooth_scales_into(&[1.0; 2], &[bad, 1.0], 0.5, &mut scales);
        assert!(matches!(error, Err(Error::BadScale { index: 0, .. })), "{error:?}");
    }
    for alpha in [-0.1, 1.1, f32::NAN] {
        let error = smooth_scales_into(&[1.0; 2], &[1.0; 2], alpha, &mut scales);
        assert!(matches!(error, Err(Error::Value { what: "alpha", .. })), "{error:?}");
    }
    let error = Error::Length { what: "w_abs_max", expected: 2, actual: 1 };
    assert_eq!(smooth_scales(&[1.0; 2], &[1.0], 0.5), Err(error));
    let error = Error::Length { what: "scales", expected: 2, actual: 1 };
    assert_eq!(smooth_scales_into(&[1.0; 2], &[1.0; 2], 0.5, &mut scales[..1]), Err(error));
    assert_eq!(scales, [7.0; 2]);
    let mut w = Array2::ones([2, 2]);
    let error = Error::BadScale { index: 1, value: 0.0 };
    assert_eq!(fold_into_weight(w.view_mut(), &[2.0, 0.0]), Err(error));
    assert_eq!(fold_into_norm(&mut scales, &[2.0, 0.0]), Err(error));
    assert_eq!((w, scales), (Array2::ones([2, 2]), [7.0; 2]));
    assert_eq!(
        column_abs_max(array![[1.0, f32::INFINITY]].view()),
        Err(Error::NonFinite { index: 1, value: f32::INFINITY })
    );
}

proptest! {
    #[test]
    fn scales_follow_a_power_of_two_of_the_inputs(x in 1e-3f32..1e3, w in 1e-3f32..1e3, exponent in -20i32..20) {
        let at = |x: f32| smooth_scales(&[x], &[w], 0.5).unwrap()[0];
        let ratio = at(x * (2.0 * exponent as f32).exp2()) / at(x);
        prop_assert!((ratio / (exponent as f32).exp2() - 1.0).abs() < 1e-6);
    }
}
