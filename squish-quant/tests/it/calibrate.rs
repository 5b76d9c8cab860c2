//! Calibration: percentiles against sorting, scales against the error that they really make, and what holds for every set of elements.

use proptest::prelude::*;
use squish_bench::alloc::{count_allocations, held_bytes};
use squish_quant::{
    CalibrationStats, CalibratorOptions, Error, IntFormat, IntRange, Method, MseSearch,
    NonFiniteBatch, QuantAwareCalibrator, Statistic, Target,
    ndarray::{Array2, ArrayView2, Axis, s},
};

use crate::int::normal;

const INT8: Target = Target::Int(IntFormat::Int8, IntRange::Restricted);
const INT4: Target = Target::Int(IntFormat::Int4, IntRange::Restricted);
const TARGETS: [Target; 7] =
    [INT8, INT4, Target::E4M3, Target::E5M2, Target::E3M2, Target::E2M3, Target::E2M1];

fn methods() -> [Method; 5] {
    let mse = MseSearch::default();
    [
        Method::MinMax,
        Method::Percentile(99.0),
        Method::Mse(mse),
        Method::Mse(MseSearch { norm: 2.4, ..mse }),
        Method::Entropy,
    ]
}

fn calibrator(n_channels: usize) -> QuantAwareCalibrator {
    QuantAwareCalibrator::new(n_channels, CalibratorOptions::default()).expect("few channels")
}

fn of(x: ArrayView2<'_, f32>) -> QuantAwareCalibrator {
    let mut calibrator = calibrator(x.ncols());
    calibrator.record(x).expect("a batch");
    calibrator
}

/// What `numpy.percentile(|x|, p)` gives by linear interpolation.
fn exact_percentile(x: impl Iterator<Item = f32>, p: f64) -> f64 {
    let mut x: Vec<f64> = x.filter(|x| x.is_finite()).map(|x| f64::from(x.abs())).collect();
    x.sort_by(f64::total_cmp);
    let position = p / 100.0 * (x.len() - 1) as f64;
    let low = position as usize;
    let high = (low + 1).min(x.len() - 1);
    x[low] + (position - low as f64) * (x[high] - x[low])
}

/// Columns of a normal, a Laplace and a Student distribution of 3 degrees of freedom, and of positive numbers that are log-normal.
fn distributions(n: usize) -> Array2<f32> {
    let z = normal(n, 6);
    Array2::from_shape_fn([n, 4], |(i, c)| {
        let z = z.row(i);
        match c {
            0 => z[0] * 0.02,
            // The difference of two exponential variables, each half a sum of two squares.
            1 => z[0] * z[0] + z[1] * z[1] - z[2] * z[2] - z[3] * z[3],
            2 => z[0] / ((z[1] * z[1] + z[2] * z[2] + z[3] * z[3]) / 3.0).sqrt(),
            _ => 1e6 * z[5].exp(),
        }
    })
}

/// The mean squared error of rounding `x` with a scale.
fn error(x: ArrayView2<'_, f32>, channel: usize, target: Target, scale: f32) -> f64 {
    let square = |x: &f32| f64::from(x - scale * target.round(x / scale)).powi(2);
    x.column(channel).iter().map(square).sum::<f64>() / x.nrows() as f64
}

#[test]
fn percentiles_are_within_a_percent_of_the_exact_ones() {
    let x = distributions(100_000);
    let mut calibrator = calibrator(4);
    for batch in x.axis_chunks_iter(Axis(0), 777) {
        calibrator.record(batch).unwrap();
    }
    for channel in 0..4 {
        for p in [50.0, 90.0, 99.0, 99.9, 99.99, 100.0] {
            let exact = exact_percentile(x.column(channel).iter().copied(), p);
            let got = f64::from(calibrator.percentile(channel, p).unwrap());
            assert!((got / exact - 1.0).abs() < 0.01, "channel {channel}, {p}: {got}, not {exact}");
        }
    }
}

#[test]
fn mse_scales_of_a_normal_distribution_are_the_known_ones() {
    let x = normal(200_000, 1);
    let calibrator = of(x.view());
    let scale = |method, target| calibrator.scales(method, target).unwrap()[0];
    let mse = Method::Mse(MseSearch::default());
    // Optimal clips in standard deviations, and how much of the error of no clipping is left.
    for (target, clip, ratio) in [(INT8, 3.7..4.3, 0.9), (INT4, 2.38..2.58, 0.42)] {
        let (best, widest) = (scale(mse, target), scale(Method::MinMax, target));
        let of_best = best * target.max();
        assert!(clip.contains(&of_best), "{target:?}: {of_best}");
        let (of_best, of_widest) =
            (error(x.view(), 0, target, best), error(x.view(), 0, target, widest));
        assert!(of_best < ratio * of_widest, "{target:?}: {of_best:e}, {of_widest:e}");
    }
}

#[test]
fn mse_scales_are_never_much_worse_than_any_other() {
    let x = distributions(20_000);
    let calibrator = of(x.view());
    for target in TARGETS {
        let best = calibrator.scales(Method::Mse(MseSearch::default()), target).unwrap();
        for channel in 0..4 {
            let got = error(x.view(), channel, target, best[channel]);
            let widest = calibrator.scales(Method::MinMax, target).unwrap()[channel];
            for i in 0..60 {
                let scale = widest * 0.95f32.powi(i);
                let other = error(x.view(), channel, target, scale);
                assert!(
                    got < 1.03 * other,
                    "{target:?}, channel {channel}, {i}: {got:e}, {other:e}"
                );
            }
        }
    }
}

#[test]
fn outliers_are_clipped_by_all_but_the_maximum() {
    let mut x = normal(20_000, 1);
    x[[77, 0]] = -60.0;
    let calibrator = of(x.view());
    let clip =
        |method, target: Target| calibrator.scales(method, target).unwrap()[0] * target.max();
    assert_eq!(clip(Method::MinMax, INT8), 60.0);
    for method in [Method::Percentile(99.9), Method::Entropy] {
        assert!((2.5..9.0).contains(&clip(method, INT8)), "{method:?}: {}", clip(method, INT8));
    }
    let of_int4 = clip(Method::Mse(MseSearch::default()), INT4);
    assert!(of_int4 < 25.0, "{of_int4}");
}

#[test]
fn the_100th_percentile_is_the_maximum_to_the_bit() {
    let x = distributions(3000);
    let calibrator = of(x.view());
    for target in TARGETS {
        let maximum = calibrator.scales(Method::MinMax, target).unwrap();
        assert_eq!(calibrator.scales(Method::Percentile(100.0), target).unwrap(), maximum);
    }
    assert_eq!(calibrator.percentile(1, 100.0).unwrap(), calibrator.abs_max()[1]);
}

#[test]
fn a_scaled_maximum_is_the_largest_number_of_the_target() {
    let x = distributions(100);
    let calibrator = of(x.view());
    for target in TARGETS {
        let scales = calibrator.scales(Method::MinMax, target).unwrap();
        for (scale, abs_max) in scales.iter().zip(calibrator.abs_max()) {
            let largest = abs_max / scale;
            assert!((largest / target.max() - 1.0).abs() < 1e-6, "{target:?}: {largest}");
        }
    }
}

#[test]
fn degenerate_channels_have_documented_scales() {
    // Zeros; one value; one magnitude; zeros but for two elements; subnormals; elements far below the largest one.
    let x = Array2::from_shape_fn([1000, 6], |(i, c)| match c {
        0 => {
            if i % 2 == 0 {
                0.0
            } else {
                -0.0
            }
        }
        1 => -3.7,
        2 => {
            if i % 2 == 0 {
                3.7
            } else {
                -3.7
            }
        }
        3 => {
            if i > 997 {
                5.0
            } else {
                0.0
            }
        }
        4 => f32::from_bits(1 + i as u32),
        _ => {
            if i == 0 {
                1e9
            } else {
                1e-9
            }
        }
    });
    let calibrator = of(x.view());
    for method in methods() {
        for target in TARGETS {
            let scales = calibrator.scales(method, target).unwrap();
            assert_eq!(scales[0], 1.0, "{method:?}");
            assert_eq!(
                scales[1],
                (f64::from(3.7f32) / f64::from(target.max())) as f32,
                "{method:?}, {target:?}"
            );
            let relative = scales[2] * target.max() / 3.7;
            assert!(relative > 0.9 && relative < 1.0001, "{method:?}, {target:?}: {relative}");
            assert_eq!(scales[4], f32::MIN_POSITIVE, "{method:?}");
            assert!(scales.iter().all(|s| *s > 0.0 && s.is_finite() && s.recip().is_finite()));
        }
    }
    // Most elements are zeros: their percentile is none to scale by.
    let scales = calibrator.scales(Method::Percentile(90.0), INT8).unwrap();
    assert_eq!(scales[3], 5.0 / 127.0);
    assert_eq!(calibrator.percentile(3, 90.0).unwrap(), 0.0);
    // Below the histogram a percentile is its lower end.
    let low = calibrator.percentile(5, 90.0).unwrap();
    assert!(low > 1e9 / 2f32.powi(25) && low < 1e9 / 2f32.powi(22), "{low}");
}

#[test]
fn channels_without_data_are_refused() {
    let mut calibrator = calibrator(3);
    let mut scales = [7.0; 3];
    let refused = |index| Err(Error::NoData { what: "channel", index });
    assert_eq!(calibrator.scales_into(Method::MinMax, INT8, &mut scales), refused(0));
    calibrator.record(Array2::from_elem([4, 3], f32::NAN).view()).unwrap();
    let mut x = Array2::from_elem([2, 3], f32::INFINITY);
    x.slice_mut(s![.., ..2]).fill(1.0);
    calibrator.record(x.view()).unwrap();
    for method in methods() {
        assert_eq!(calibrator.scales_into(method, INT8, &mut scales), refused(2));
    }
    assert_eq!((scales, calibrator.percentile(2, 50.0).err()), ([7.0; 3], refused(2).err()));
    let stats = calibrator.channel(2).unwrap();
    assert_eq!((stats.n_finite, stats.n_non_finite, stats.abs_max), (0, 6, 0.0));
    assert_eq!((stats.min, stats.max), (f32::INFINITY, f32::NEG_INFINITY));
    let all = CalibrationStats { n_rows: 6, n_elements: 18, n_zero: 0, n_non_finite: 14 };
    assert_eq!(calibrator.stats(), all);
    assert_eq!(
        QuantAwareCalibrator::new(0, CalibratorOptions::default())
            .unwrap()
            .scales(Method::Entropy, INT8),
        Ok(vec![])
    );
}

#[test]
fn what_is_not_finite_counts_nowhere_else() {
    let x = distributions(500);
    let mut with = Array2::from_elem([1000, 4], f32::NAN);
    with.slice_mut(s![..;2, ..]).assign(&x);
    with[[1, 2]] = f32::NEG_INFINITY;
    let (without, with) = (of(x.view()), of(with.view()));
    for method in methods() {
        assert_eq!(with.scales(method, INT8), without.scales(method, INT8), "{method:?}");
    }
    assert_eq!((with.stats().n_non_finite, without.stats().n_non_finite), (2000, 0));
}

#[test]
fn refused_calls_change_nothing() {
    let x = distributions(100);
    let options = CalibratorOptions { non_finite: NonFiniteBatch::Refuse, ..Default::default() };
    let mut calibrator = QuantAwareCalibrator::new(4, options).unwrap();
    calibrator.record(x.view()).unwrap();
    let before = calibrator.clone();

    let mut bad = x.clone();
    bad[[70, 2]] = f32::INFINITY;
    bad[[80, 1]] = f32::NAN;
    let error = Error::NonFinite { index: 70 * 4 + 2, value: f32::INFINITY };
    assert_eq!(calibrator.record(bad.view()), Err(error));
    let error = Error::Shape { what: "batch", expected: [4, 4], actual: [4, 3] };
    assert_eq!(calibrator.record(Array2::zeros([4, 3]).view()), Err(error));
    let transposed = Array2::zeros([4, 9]);
    let error = Error::Layout { what: "batch", stride: 9 };
    assert_eq!(calibrator.record(transposed.t()), Err(error));
    let error = Error::Length { what: "channels", expected: 4, actual: 3 };
    assert_eq!(calibrator.merge(&self::calibrator(3)), Err(error));
    let min_max = CalibratorOptions { statistic: Statistic::MinMax, ..options };
    let other = QuantAwareCalibrator::new(4, min_max).unwrap();
    assert!(matches!(calibrator.merge(&other), Err(Error::Unsupported { .. })));
    assert_eq!(calibrator, before);

    let mut scales = [7.0; 4];
    for (method, what) in [
        (Method::Percentile(f64::NAN), "percentile"),
        (Method::Percentile(100.1), "percentile"),
        (Method::Percentile(-1.0), "percentile"),
        (Method::Mse(MseSearch { norm: 0.0, ..MseSearch::default() }), "norm"),
        (Method::Mse(MseSearch { n_candidates: 1, ..MseSearch::default() }), "n_candidates"),
        (Method::Mse(MseSearch { least: 1.0, ..MseSearch::default() }), "least"),
    ] {
        let error = calibrator.scales_into(method, INT8, &mut scales);
        assert!(matches!(error, Err(Error::Value { what: got, .. }) if got == what), "{error:?}");
    }
    let error = Error::Length { what: "scales", expected: 4, actual: 3 };
    assert_eq!(calibrator.scales_into(Method::MinMax, INT8, &mut scales[..3]), Err(error));
    let error = Error::Index { what: "channel", index: 4, n: 4 };
    assert_eq!(calibrator.percentile(4, 50.0), Err(error));
    assert_eq!(scales, [7.0; 4]);
    assert!(calibrator.channel(4).is_none());
    let error = QuantAwareCalibrator::new(usize::MAX / 1000, options).err();
    assert!(matches!(error, Some(Error::TooLarge { .. })), "{error:?}");
}

#[test]
fn counters_refuse_to_overflow() {
    let mut calibrator = of(Array2::from_elem([1, 2], 1.5).view());
    for _ in 0..31 {
        calibrator.merge(&calibrator.clone()).unwrap();
    }
    assert_eq!(calibrator.stats().n_rows, 1 << 31);
    let before = calibrator.clone();
    let error = Error::TooManyRows { n: 1 << 32, capacity: u32::MAX.into() };
    assert_eq!(calibrator.merge(&calibrator.clone()), Err(error));
    assert_eq!(calibrator, before);
    assert_eq!(calibrator.percentile(0, 50.0), Ok(1.5));
}

#[test]
fn minima_and_maxima_need_no_histogram() {
    let x = distributions(300);
    let options = CalibratorOptions { statistic: Statistic::MinMax, ..Default::default() };
    let mut small = QuantAwareCalibrator::new(4, options).unwrap();
    small.record(x.view()).unwrap();
    let large = of(x.view());
    assert_eq!(
        small.scales(Method::MinMax, Target::E4M3),
        large.scales(Method::MinMax, Target::E4M3)
    );
    assert_eq!(small.channel(1), large.channel(1));
    for method in &methods()[1..] {
        assert!(matches!(small.scales(*method, INT8), Err(Error::Unsupported { .. })));
    }
    assert_eq!(small.memory_bytes(), 4 * 32);
}

#[test]
fn memory_is_bounded_whatever_the_number_of_batches() {
    let n = 96;
    let (mut calibrator, held) = held_bytes(|| calibrator(n));
    assert!(held as usize >= calibrator.memory_bytes() && held <= 4096 * n as i64, "{held}");
    let mut scales = vec![0.0; n];
    let x = normal(130, n);
    let ((), n_allocations) = count_allocations(|| {
        for i in 0..50 {
            calibrator.record(x.slice(s![i..i + 80, ..])).unwrap();
        }
        for method in methods() {
            calibrator.scales_into(method, INT8, &mut scales).unwrap();
        }
        calibrator.stats();
    });
    assert_eq!(n_allocations, 0);
}

#[test]
fn views_of_any_order_of_rows_are_recorded() {
    let x = distributions(200);
    let want = of(x.view());
    assert_eq!(of(x.slice(s![..;-1, ..])), want);
    let wide = Array2::from_shape_fn([200, 7], |(i, j)| if j < 4 { x[[i, j]] } else { f32::NAN });
    assert_eq!(of(wide.slice(s![.., ..4])), want);
}

/// Elements far from each other, zeros, and what is not finite.
fn element() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => (-1f32..1.0, -40i32..40).prop_map(|(x, e)| x * (e as f32).exp2()),
        4 => -2f32..2.0,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::from_bits(9)]),
    ]
}

fn batches() -> impl Strategy<Value = Vec<Array2<f32>>> {
    (1usize..5).prop_flat_map(|n| {
        let batch = (0usize..9).prop_flat_map(move |rows| {
            prop::collection::vec(element(), rows * n)
                .prop_map(move |x| Array2::from_shape_vec([rows, n], x).expect("rows of n"))
        });
        prop::collection::vec(batch, 1..7)
    })
}

proptest! {
    #[test]
    fn neither_the_order_of_batches_nor_that_of_merges_matters(batches in batches(), seed: u64) {
        let n = batches[0].ncols();
        let mut in_order = calibrator(n);
        for batch in &batches {
            in_order.record(batch.view()).unwrap();
        }

        let mut backwards = calibrator(n);
        batches.iter().rev().for_each(|batch| backwards.record(batch.slice(s![..;-1, ..])).unwrap());
        prop_assert!(backwards == in_order);

        let mut parts: Vec<_> = batches.iter().map(|batch| of(batch.view())).collect();
        let mut state = seed;
        while parts.len() > 1 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let part = parts.swap_remove((state >> 33) as usize % parts.len());
            let into = (state >> 20) as usize % parts.len();
            parts[into].merge(&part).unwrap();
        }
        prop_assert!(parts[0] == in_order);
        for method in methods() {
            prop_assert_eq!(parts[0].scales(method, INT8), in_order.scales(method, INT8));
        }
    }

    #[test]
    fn every_percentile_is_in_the_bin_of_the_exact_one(x in prop::collection::vec(element(), 1..200), p in 0f64..=100.0) {
        let finite: Vec<f32> = x.iter().copied().filter(|x| x.is_finite()).collect();
        prop_assume!(!finite.is_empty());
        let calibrator = of(ArrayView2::from_shape([x.len(), 1], &x).unwrap());
        let got = f64::from(calibrator.percentile(0, p).unwrap());
        let exact = exact_percentile(finite.into_iter(), p);
        // What is below the window counts as its end.
        let window = f64::from(calibrator.abs_max()[0]) * 2f64.powi(-22) + f64::from(f32::MIN_POSITIVE);
        let off = (got - exact).abs();
        prop_assert!(off <= exact / 32.0 * 1.0001 + window, "{} {}", got, exact);
    }

    #[test]
    fn a_common_power_of_two_scales_the_scales(x in prop::collection::vec(-4f32..4.0, 1..150), exponent in -60i32..60) {
        let factor = (exponent as f32).exp2();
        let x = Array2::from_shape_vec([x.len(), 1], x).unwrap();
        let (before, after) = (of(x.view()), of((&x * factor).view()));
        for method in methods() {
            for target in TARGETS {
                let scaled = |calibrator: &QuantAwareCalibrator| calibrator.scales(method, target).unwrap()[0];
                prop_assume!(before.abs_max()[0] > 0.0);
                prop_assert_eq!(scaled(&before) * factor, scaled(&after), "{:?} {:?}", method, target);
            }
        }
    }

    #[test]
    fn no_scale_leaves_the_range_of_the_data(x in prop::collection::vec(element(), 1..150)) {
        prop_assume!(x.iter().any(|x| x.is_finite()));
        let calibrator = of(ArrayView2::from_shape([x.len(), 1], &x).unwrap());
        for method in methods() {
            for target in TARGETS {
                let scale = calibrator.scales(method, target).unwrap()[0];
                let widest = calibrator.scales(Method::MinMax, target).unwrap()[0];
                prop_assert!(scale > 0.0 && scale <= widest, "{:?}, {:?}: {} {}", method, target, scale, widest);
            }
        }
    }
}
