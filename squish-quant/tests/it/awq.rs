//! AWQ's search: never worse than nothing, and better where a few inputs are large.

use squish_quant::{
    AwqSearch, Error, Granularity, IntFormat, IntQuantizer, MxQuantizer, awq_scales,
    ndarray::{Array2, ArrayView2, ArrayViewMut2},
};

use crate::int::normal;

fn int4(w: ArrayViewMut2<'_, f32>) -> squish_quant::Result<()> {
    let quantizer = IntQuantizer {
        format: IntFormat::Int4,
        granularity: Granularity::Block1d(32),
        ..Default::default()
    };
    quantizer.encode(w.view())?.decode_into(w)
}

/// Inputs of which every 17th is 20 times as large.
fn salient(n: usize, inputs: usize) -> Array2<f32> {
    let mut x = normal(n, inputs);
    for (j, mut column) in x.columns_mut().into_iter().enumerate() {
        column *= if j % 17 == 4 { 20.0 } else { 1.0 };
    }
    x
}

/// The mean squared error of the outputs, by products of whole matrices.
fn error(w: ArrayView2<'_, f32>, x: ArrayView2<'_, f32>, scales: &[f32]) -> f64 {
    let scales = Array2::from_shape_vec([1, scales.len()], scales.to_vec()).expect("a row");
    let mut quantized = &w * &scales;
    int4(quantized.view_mut()).expect("finite");
    let off = quantized / &scales - w;
    let off = x.mapv(f64::from).dot(&off.mapv(f64::from).t());
    off.iter().map(|x| x * x).sum::<f64>() / off.len() as f64
}

#[test]
fn large_inputs_get_larger_scales_and_the_error_falls() {
    let (w, x) = (normal(64, 128) * 0.05, salient(32, 128));
    let best = awq_scales(w.view(), x.view(), int4, AwqSearch::default()).unwrap();
    assert!(best.error < 0.75 * best.unscaled_error, "{best:?}");
    assert!(best.ratio > 0.0 && best.ratio <= 1.0);
    assert!(best.scales[4] > 2.0 * best.scales[5], "{:?}", &best.scales[..6]);
    let (least, most) =
        best.scales.iter().fold((f32::MAX, 0f32), |(a, b), &s| (a.min(s), b.max(s)));
    assert!((least * most - 1.0).abs() < 1e-5, "{least} {most}");
    // The errors are those of whole matrices.
    for (got, want) in [
        (best.error, error(w.view(), x.view(), &best.scales)),
        (best.unscaled_error, error(w.view(), x.view(), &[1.0; 128])),
    ] {
        assert!((got / want - 1.0).abs() < 1e-3, "{got} {want}");
    }
}

#[test]
fn no_scaling_is_kept_where_nothing_is_better() {
    let (w, x) = (normal(16, 64), normal(8, 64));
    let exact = awq_scales(w.view(), x.view(), |_| Ok(()), AwqSearch::default()).unwrap();
    assert_eq!((exact.ratio, exact.error), (0.0, 0.0));
    assert_eq!(exact.scales, [1.0; 64]);
    for x in [Array2::zeros([8, 64]), Array2::zeros([0, 64])] {
        let best = awq_scales(w.view(), x.view(), int4, AwqSearch::default()).unwrap();
        assert_eq!((best.ratio, best.error, &best.scales[..]), (0.0, 0.0, &[1.0; 64][..]));
    }
    let one = awq_scales(w.view(), salient(8, 64).view(), int4, AwqSearch { n_ratios: 1 }).unwrap();
    assert_eq!((one.ratio, one.error), (0.0, one.unscaled_error));
}

#[test]
fn any_quantizer_serves() {
    let (w, x) = (normal(32, 64), salient(16, 64));
    let mx = |w: ArrayViewMut2<'_, f32>| MxQuantizer::default().encode(w.view())?.decode_into(w);
    let best = awq_scales(w.view(), x.view(), mx, AwqSearch::default()).unwrap();
    assert!(best.error <= best.unscaled_error && best.error > 0.0);
    // Rows that are not contiguous are copied.
    let (w_t, x_t) = (w.t().as_standard_layout().to_owned(), x.t().as_standard_layout().to_owned());
    let of_transposed = awq_scales(w_t.t(), x_t.t(), mx, AwqSearch::default()).unwrap();
    assert_eq!(of_transposed, best);
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let (w, x) = (Array2::ones([4, 64]), Array2::ones([2, 32]));
    let error = Error::Shape { what: "x", expected: [2, 64], actual: [2, 32] };
    assert_eq!(awq_scales(w.view(), x.view(), int4, AwqSearch::default()), Err(error));
    let mut x = Array2::ones([2, 64]);
    let error = Error::Value { what: "n_ratios", value: 0.0, expected: "1 or more" };
    assert_eq!(awq_scales(w.view(), x.view(), int4, AwqSearch { n_ratios: 0 }), Err(error));
    let refused = Error::ZeroBlock { what: "test" };
    assert_eq!(
        awq_scales(w.view(), x.view(), |_| Err(refused), AwqSearch::default()),
        Err(refused)
    );
    x[[1, 3]] = f32::NEG_INFINITY;
    let error = Error::NonFinite { index: 67, value: f32::NEG_INFINITY };
    assert_eq!(awq_scales(w.view(), x.view(), int4, AwqSearch::default()), Err(error));
    let bad = Array2::from_elem([4, 64], f32::INFINITY);
    assert!(matches!(
        awq_scales(bad.view(), Array2::ones([2, 64]).view(), int4, AwqSearch::default()),
        Err(Error::NonFinite { index: 0, .. })
    ));
}
