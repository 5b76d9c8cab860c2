//! INT8 and INT4 against compressed-tensors and ggml, and what holds for every matrix.

use half::f16;
use proptest::prelude::*;
use squish_bench::{Golden, alloc::count_allocations};
use squish_quant::{
    Error, Granularity, IntFormat, IntQuantizer, IntRange, IntTensor, IntView, NonFinite, Symmetry,
    error_stats,
    ndarray::{Array2, ArrayView2, Axis, s},
};

pub(crate) const KINDS: [(&str, IntFormat, Granularity, Symmetry); 7] = [
    ("int8.channel", IntFormat::Int8, Granularity::Channel, Symmetry::Symmetric),
    ("int8.g32", IntFormat::Int8, Granularity::Block1d(32), Symmetry::Symmetric),
    ("int8.g128", IntFormat::Int8, Granularity::Block1d(128), Symmetry::Symmetric),
    ("int4.g32", IntFormat::Int4, Granularity::Block1d(32), Symmetry::Symmetric),
    ("int4.g128", IntFormat::Int4, Granularity::Block1d(128), Symmetry::Symmetric),
    ("int4.asym.g32", IntFormat::Int4, Granularity::Block1d(32), Symmetry::Asymmetric),
    ("int4.asym.g128", IntFormat::Int4, Granularity::Block1d(128), Symmetry::Asymmetric),
];

pub(crate) fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "int")
}

pub(crate) fn matrix(golden: &Golden, name: &str) -> Array2<f32> {
    let shape = golden.shape(name);
    Array2::from_shape_vec([shape[0], shape[1]], golden.f32(name)).expect("data of that shape")
}

/// The matrix that a kind of the golden file quantizes.
pub(crate) fn input(golden: &Golden, symmetry: Symmetry) -> Array2<f32> {
    matrix(golden, if symmetry == Symmetry::Symmetric { "x" } else { "asym.x" })
}

fn code(tensor: &IntView<'_>, i: usize) -> i8 {
    match tensor.format() {
        IntFormat::Int8 => tensor.codes()[i] as i8,
        IntFormat::Int4 => (tensor.codes()[i / 2] >> (4 * (i % 2)) & 0xf) as i8 - 8,
    }
}

fn codes(tensor: &IntTensor) -> Vec<i8> {
    (0..tensor.shape()[0] * tensor.shape()[1]).map(|i| code(&tensor.view(), i)).collect()
}

#[test]
fn codes_scales_and_zero_points_are_those_of_compressed_tensors() {
    let golden = golden();
    for (kind, format, granularity, symmetry) in KINDS {
        let x = input(&golden, symmetry);
        let tensor = IntQuantizer { format, granularity, symmetry, ..Default::default() }
            .encode(x.view())
            .unwrap();
        let mut want = golden.f32(&format!("{kind}.scale"));
        // Groups of zeros have scale 2^-23 there, and 1 here.
        want.iter_mut().filter(|scale| **scale == f32::EPSILON).for_each(|scale| *scale = 1.0);
        assert_eq!(tensor.scales(), want, "{kind}");
        assert_eq!(codes(&tensor), golden.i8(&format!("{kind}.codes")), "{kind}");
        let zero_points =
            (symmetry == Symmetry::Asymmetric).then(|| golden.i8(&format!("{kind}.zero_point")));
        assert_eq!(tensor.zero_points(), zero_points.as_deref(), "{kind}");
        if !kind.ends_with("g128") {
            assert_eq!(tensor.decode(), matrix(&golden, &format!("{kind}.decoded")), "{kind}");
        }
    }
}

#[test]
fn restricted_scales_and_codes_are_those_of_ggml_up_to_its_rounding_of_scales() {
    // Q8_0: scale amax / 127, rounded to f16 after coding; codes by a product with the reciprocal, ties away from zero.
    let golden = golden();
    let x = matrix(&golden, "x");
    let quantizer = IntQuantizer {
        granularity: Granularity::Block1d(32),
        range: IntRange::Restricted,
        ..Default::default()
    };
    let tensor = quantizer.encode(x.view()).unwrap();
    let bytes = golden.u8("q8_0.bytes");
    let mut differ = 0;
    for (i, block) in bytes.as_chunks::<34>().0.iter().enumerate() {
        let scale = f16::from_le_bytes([block[0], block[1]]);
        if scale == f16::ZERO {
            continue;
        }
        assert_eq!(f16::from_f32(tensor.scales()[i]), scale, "block {i}");
        for (j, &want) in block[2..].iter().enumerate() {
            let got = code(&tensor.view(), 32 * i + j);
            assert!(
                (i16::from(got) - i16::from(want as i8)).abs() <= 1,
                "element {j} of block {i}: {got}, not {}",
                want as i8
            );
            differ += usize::from(got != want as i8);
        }
    }
    assert!(differ < 8, "{differ} codes differ, which only ties explain");
}

/// Numbers of a normal distribution.
pub(crate) fn normal(rows: usize, cols: usize) -> Array2<f32> {
    let mut state = 48u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    // Box and Muller's method and not a sum of uniform numbers, which has no tail: the tail makes the scale.
    Array2::from_shape_simple_fn([rows, cols], || {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
    })
}

#[test]
fn formats_keep_their_signal_to_noise_ratio_on_a_gaussian() {
    let x = normal(512, 128);
    let quantizer = IntQuantizer::default();
    let group = |size| IntQuantizer { granularity: Granularity::Block1d(size), ..quantizer };
    let int4 = |size| IntQuantizer { format: IntFormat::Int4, ..group(size) };
    let restricted = |quantizer| IntQuantizer { range: IntRange::Restricted, ..quantizer };
    let asymmetric = |quantizer| IntQuantizer { symmetry: Symmetry::Asymmetric, ..quantizer };
    // Means over eight matrices of 128 x 128 by an independent implementation in numpy.
    let table = [
        (restricted(int4(32)), 20.28),
        (int4(32), 20.47),
        (restricted(int4(128)), 18.62),
        (int4(128), 19.10),
        (asymmetric(int4(32)), 21.87),
        (asymmetric(int4(128)), 19.94),
        (group(32), 45.08),
        (restricted(group(32)), 45.45),
        (quantizer, 43.73),
        (restricted(quantizer), 43.79),
        (asymmetric(quantizer), 44.59),
    ];
    for (quantizer, want) in table {
        let decoded = quantizer.encode(x.view()).unwrap().decode();
        let got = error_stats(x.as_slice().unwrap(), decoded.as_slice().unwrap()).unwrap().snr_db;
        assert!((got - want).abs() < 0.1, "{quantizer:?}: {got:.3} dB, not {want}");
    }
}

#[test]
fn sizes_count_scales_and_zero_points() {
    let x = normal(64, 256);
    let int4 = IntQuantizer {
        format: IntFormat::Int4,
        granularity: Granularity::Block1d(32),
        ..Default::default()
    };
    let tensor = int4.encode(x.view()).unwrap();
    assert_eq!((tensor.n_bytes(), tensor.bits_per_weight()), (64 * 256 / 2 + 64 * 8 * 4, 5.0));
    let tensor = IntQuantizer { symmetry: Symmetry::Asymmetric, ..int4 }.encode(x.view()).unwrap();
    assert_eq!(tensor.bits_per_weight(), 5.25);
    assert_eq!(IntQuantizer::default().encode(x.view()).unwrap().bits_per_weight(), 8.125);
    assert!(
        IntQuantizer::default()
            .encode(Array2::zeros([0, 4]).view())
            .unwrap()
            .bits_per_weight()
            .is_nan()
    );
}

#[test]
fn empty_matrices_and_groups_of_zeros_round_trip() {
    for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(32)] {
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            for format in [IntFormat::Int8, IntFormat::Int4] {
                let quantizer =
                    IntQuantizer { format, granularity, symmetry, ..Default::default() };
                for shape in [[0, 0], [0, 8], [3, 0], [isize::MAX as usize, 0], [2, 64]] {
                    let x = Array2::zeros(shape);
                    let tensor = quantizer.encode(x.view()).unwrap();
                    assert_eq!(tensor.decode(), x, "{quantizer:?}");
                    assert!(tensor.scales().iter().all(|&scale| scale == 1.0), "{quantizer:?}");
                    let IntTensor { .. } = quantizer
                        .encode_with_scales(x.view(), tensor.scales(), tensor.zero_points())
                        .unwrap();
                }
            }
        }
    }
}

/// Buffers for a call, filled so that a write shows.
fn buffers(quantizer: IntQuantizer, shape: [usize; 2]) -> (Vec<u8>, Vec<f32>, Option<Vec<i8>>) {
    let [rows, groups] =
        quantizer.granularity.scales_shape(shape).expect("blocks of some elements");
    let zero_points = (quantizer.symmetry == Symmetry::Asymmetric).then(|| vec![77; rows * groups]);
    (
        vec![0xa5; shape[0] * shape[1] * quantizer.format.bits() / 8],
        vec![0.75; rows * groups],
        zero_points,
    )
}

#[test]
fn refused_calls_write_nothing() {
    let mut x = normal(6, 64);
    x[[5, 63]] = f32::NEG_INFINITY;
    for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(32)] {
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            for format in [IntFormat::Int8, IntFormat::Int4] {
                let quantizer =
                    IntQuantizer { format, granularity, symmetry, ..Default::default() };
                let untouched = buffers(quantizer, [6, 64]);
                let check = |want: Error,
                             quantizer: IntQuantizer,
                             x: ArrayView2<'_, f32>,
                             n_codes,
                             n_scales| {
                    let (mut codes, mut scales, mut zero_points) = untouched.clone();
                    let got = quantizer.encode_into(
                        x,
                        &mut codes[..n_codes],
                        &mut scales[..n_scales],
                        zero_points.as_deref_mut(),
                    );
                    assert_eq!(got, Err(want), "{quantizer:?}");
                    assert!(
                        (codes, scales, zero_points) == untouched,
                        "{quantizer:?}: {want} came after a write"
                    );
                };
                let (n_codes, n_scales) = (untouched.0.len(), untouched.1.len());
                let infinite = Error::NonFinite { index: 6 * 64 - 1, value: f32::NEG_INFINITY };
                check(infinite, quantizer, x.view(), n_codes, n_scales);
                assert_eq!(quantizer.encode(x.view()).map(|_| ()), Err(infinite));
                let short = Error::Length { what: "codes", expected: n_codes, actual: n_codes - 1 };
                check(short, quantizer, x.view(), n_codes - 1, n_scales);
                let short =
                    Error::Length { what: "scales", expected: n_scales, actual: n_scales - 1 };
                check(short, quantizer, x.view(), n_codes, n_scales - 1);
                let poison = IntQuantizer { non_finite: NonFinite::Poison, ..quantizer };
                let refused =
                    Error::Unsupported { format: format.name(), what: "poisoned elements" };
                check(refused, poison, x.view(), n_codes, n_scales);
                let columns = Array2::zeros([64, 6]).reversed_axes();
                check(
                    Error::Layout { what: "x", stride: 6 },
                    quantizer,
                    columns.view(),
                    n_codes,
                    n_scales,
                );

                let (mut codes, scales, zero_points) = untouched.clone();
                let zero_points = zero_points.map(|zero_points| vec![1; zero_points.len()]);
                let got = quantizer.encode_with_scales_into(
                    x.view(),
                    &scales,
                    zero_points.as_deref(),
                    &mut codes,
                );
                assert_eq!(got, Err(infinite));
                for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
                    let mut scales = scales.clone();
                    *scales.last_mut().unwrap() = bad;
                    let got = quantizer.encode_with_scales_into(
                        x.view(),
                        &scales,
                        zero_points.as_deref(),
                        &mut codes,
                    );
                    assert!(
                        matches!(got, Err(Error::BadScale { index, .. }) if index == n_scales - 1),
                        "{bad}: {got:?}"
                    );
                }
                assert_eq!(codes, untouched.0);
            }
        }
    }
}

#[test]
fn zero_points_are_there_exactly_if_the_quantizer_is_asymmetric() {
    let x = normal(3, 8);
    for format in [IntFormat::Int8, IntFormat::Int4] {
        for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(4)] {
            let symmetric = IntQuantizer { format, granularity, ..Default::default() };
            let want = symmetric.encode(x.view()).unwrap();
            let n = want.scales().len();
            // A slice of no zero points is none.
            let (mut codes, mut scales, _) = buffers(symmetric, [3, 8]);
            symmetric.encode_into(x.view(), &mut codes, &mut scales, Some(&mut [])).unwrap();
            assert_eq!((codes.as_slice(), scales.as_slice()), (want.codes(), want.scales()));
            let cast = symmetric.encode_with_scales(x.view(), want.scales(), Some(&[])).unwrap();
            assert_eq!((cast.codes(), cast.zero_points()), (want.codes(), None));

            let length =
                |expected, actual| Err(Error::Length { what: "zero_points", expected, actual });
            let some = vec![0; n];
            let got = symmetric.encode_with_scales(x.view(), want.scales(), Some(&some));
            assert_eq!(got.map(|_| ()), length(0, n));
            let asymmetric = IntQuantizer { symmetry: Symmetry::Asymmetric, ..symmetric };
            let got = asymmetric.encode_with_scales(x.view(), want.scales(), None);
            assert_eq!(got.map(|_| ()), length(n, 0));
            assert_eq!(
                asymmetric.encode_into(x.view(), &mut codes, &mut scales, None),
                length(n, 0)
            );
            let empty = asymmetric.encode_with_scales(Array2::zeros([0, 8]).view(), &[], None);
            assert_eq!(empty.unwrap().zero_points(), Some(&[][..]));
        }
    }
}

#[test]
fn impossible_groups_are_refused_with_their_numbers() {
    let int4 = IntQuantizer { format: IntFormat::Int4, ..Default::default() };
    let encode = |quantizer: IntQuantizer, cols| {
        quantizer.encode(Array2::zeros([2, cols]).view()).map(|_| ()).unwrap_err()
    };
    let grouped = |granularity| IntQuantizer { granularity, ..int4 };
    assert_eq!(encode(int4, 7), Error::BlockAlign { len: 7, block: 2 });
    assert_eq!(encode(grouped(Granularity::Block1d(3)), 8), Error::BlockAlign { len: 3, block: 2 });
    assert_eq!(
        encode(grouped(Granularity::Block1d(0)), 8),
        Error::ZeroBlock { what: "columns of a block" }
    );
    let block = Granularity::Block2d { rows: 2, cols: 2 };
    assert_eq!(
        encode(grouped(block), 8).to_string(),
        "int4 does not support blocks of several rows"
    );
    assert!(grouped(Granularity::Block1d(9)).encode(Array2::ones([2, 8]).view()).is_ok());
}

#[test]
fn tensors_with_wrong_parts_are_refused() {
    let new = |format, granularity, codes: &[u8], scales: &[f32], zero_points: Option<&[i8]>| {
        IntTensor::new(format, granularity, [2, 64], codes, scales, zero_points)
            .map(|_| ())
            .unwrap_err()
    };
    let group = Granularity::Block1d(32);
    let length = |what, expected, actual| Error::Length { what, expected, actual };
    for (n, want) in [(63, 64), (65, 64)] {
        assert_eq!(
            new(IntFormat::Int4, group, &vec![0; n], &[1.0; 4], None),
            length("codes", want, n)
        );
    }
    assert_eq!(new(IntFormat::Int8, group, &[0; 64], &[1.0; 4], None), length("codes", 128, 64));
    assert_eq!(new(IntFormat::Int8, group, &[0; 128], &[1.0; 5], None), length("scales", 4, 5));
    assert_eq!(
        new(IntFormat::Int8, group, &[0; 128], &[1.0; 4], Some(&[0; 3])),
        length("zero_points", 4, 3)
    );
    for bad in [f32::INFINITY, -1e-9] {
        let got = new(IntFormat::Int8, group, &[0; 128], &[1.0, 1.0, bad, 1.0], None);
        assert_eq!(got, Error::BadScale { index: 2, value: bad });
    }
    let nan = new(IntFormat::Int8, group, &[0; 128], &[f32::NAN, 1.0, 1.0, 1.0], None);
    assert!(matches!(nan, Error::BadScale { index: 0, .. }));
    let bad = Error::BadCode { what: "zero_points", index: 3, value: 8 };
    assert_eq!(new(IntFormat::Int4, group, &[0; 64], &[1.0; 4], Some(&[-8, 7, 0, 8])), bad);
    for shape in [[usize::MAX, 2], [usize::MAX, 0], [0, usize::MAX - 1]] {
        let huge = IntTensor::new(
            IntFormat::Int8,
            Granularity::Channel,
            shape,
            [0u8; 0],
            [0f32; 0],
            None::<[i8; 0]>,
        );
        assert_eq!(huge.map(|_| ()), Err(Error::TooLarge { shape }));
    }

    let tensor = IntTensor::new(
        IntFormat::Int4,
        Granularity::Channel,
        [1, 4],
        [0x10u8, 0x21],
        [1.0f32],
        None::<Vec<i8>>,
    )
    .unwrap();
    let mut out = [5.0; 5];
    assert_eq!(
        tensor.decode_rows_into(0..2, &mut out[..4]),
        Err(Error::Rows { start: 0, end: 2, n_rows: 1 })
    );
    assert_eq!(tensor.decode_rows_into(0..1, &mut out), Err(length("out", 4, 5)));
    let shape = Error::Shape { what: "out", expected: [1, 4], actual: [4, 1] };
    assert_eq!(tensor.decode_into(Array2::zeros([4, 1]).view_mut()), Err(shape));
    assert_eq!(out, [5.0; 5]);
}

#[test]
fn saturation_leaves_what_is_not_finite_out_of_the_scale() {
    let x = Array2::from_shape_vec(
        [2, 4],
        vec![1.0, f32::NAN, -12.7, f32::INFINITY, f32::NAN, f32::NAN, f32::NEG_INFINITY, 0.0],
    )
    .unwrap();
    let quantizer = IntQuantizer {
        range: IntRange::Restricted,
        non_finite: NonFinite::Saturate,
        ..Default::default()
    };
    let tensor = quantizer.encode(x.view()).unwrap();
    assert_eq!(tensor.scales(), [12.7 / 127.0, 1.0]);
    assert_eq!(codes(&tensor), [10, 0, -127, 127, 0, 0, -127, 0]);
    let tensor =
        IntQuantizer { symmetry: Symmetry::Asymmetric, range: IntRange::Full, ..quantizer }
            .encode(x.view())
            .unwrap();
    let (scale, zero_point) = (13.7 / 255.0, tensor.zero_points().unwrap()[0]);
    assert!(
        (tensor.scales()[0] - scale).abs() < 1e-8 && tensor.scales()[1] == 1.0,
        "{:?}",
        tensor.scales()
    );
    assert_eq!(codes(&tensor)[1..4], [zero_point, -128, 127]);
}

#[test]
fn scales_of_extreme_inputs_are_positive_and_finite() {
    let inputs = [
        [f32::MAX, -f32::MAX, 1.0, 0.0],
        [f32::MAX, 0.0, 1.0, 0.0],
        [f32::from_bits(1), 0.0, 0.0, -f32::from_bits(1)],
        [f32::MIN_POSITIVE, 0.0, 0.0, 0.0],
        [1e-40, -3e-39, 2e-38, 0.0],
    ];
    for x in inputs {
        let x = ArrayView2::from_shape([1, 4], &x).unwrap();
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            for format in [IntFormat::Int8, IntFormat::Int4] {
                let tensor =
                    IntQuantizer { format, symmetry, ..Default::default() }.encode(x).unwrap();
                let scale = tensor.scales()[0];
                assert!(scale >= f32::MIN_POSITIVE && scale.is_finite(), "{x}: {scale:e}");
                for (x, value) in x.iter().zip(tensor.decode()) {
                    let near = (x - value).abs() <= 0.501 * scale;
                    assert!(
                        near || value.is_infinite() && x.abs() > 15.0 / 16.0 * f32::MAX,
                        "{symmetry:?}: {x:e} becomes {value:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn calls_into_buffers_allocate_nothing() {
    let x = normal(32, 256);
    for (_, format, granularity, symmetry) in KINDS {
        let quantizer = IntQuantizer { format, granularity, symmetry, ..Default::default() };
        let tensor = quantizer.encode(x.view()).unwrap();
        let (mut codes, mut scales, mut zero_points) = buffers(quantizer, [32, 256]);
        let mut decoded = Array2::zeros([32, 256]);
        let ((), n) = count_allocations(|| {
            quantizer
                .encode_into(x.view(), &mut codes, &mut scales, zero_points.as_deref_mut())
                .unwrap();
            quantizer
                .encode_with_scales_into(
                    x.view(),
                    tensor.scales(),
                    tensor.zero_points(),
                    &mut codes,
                )
                .unwrap();
            tensor.decode_into(decoded.view_mut()).unwrap();
            tensor.decode_rows_into(3..8, &mut decoded.as_slice_mut().unwrap()[..5 * 256]).unwrap();
        });
        assert_eq!(n, 0, "{quantizer:?}");
        assert_eq!(
            (codes.as_slice(), scales.as_slice(), zero_points.as_deref()),
            (tensor.codes(), tensor.scales(), tensor.zero_points())
        );
    }
}

#[test]
fn bands_of_large_matrices_give_what_rows_alone_give() {
    // Two MiB: split over the threads of the pool, wherever there is one.
    let x = normal(257, 2048);
    for (_, format, granularity, symmetry) in KINDS {
        let quantizer = IntQuantizer { format, granularity, symmetry, ..Default::default() };
        let tensor = quantizer.encode(x.view()).unwrap();
        let decoded = tensor.decode();
        let again =
            quantizer.encode_with_scales(x.view(), tensor.scales(), tensor.zero_points()).unwrap();
        assert!(again == tensor, "{quantizer:?}");
        let groups = tensor.scales().len() / 257;
        for (i, row) in x.axis_chunks_iter(Axis(0), 1).enumerate() {
            let alone = quantizer.encode(row).unwrap();
            assert_eq!(alone.scales(), &tensor.scales()[i * groups..(i + 1) * groups]);
            assert_eq!(
                alone.codes(),
                &tensor.codes()[i * alone.codes().len()..(i + 1) * alone.codes().len()]
            );
            let want =
                tensor.zero_points().map(|zero_points| &zero_points[i * groups..(i + 1) * groups]);
            assert_eq!(alone.zero_points(), want);
            assert!(alone.decode() == decoded.slice(s![i..=i, ..]), "row {i}");
        }
    }
}

#[cfg(feature = "rayon")]
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = normal(300, 2048);
    let pool =
        |n_threads| rayon_core::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(100)] {
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            let quantizer = IntQuantizer {
                format: IntFormat::Int4,
                granularity,
                symmetry,
                ..Default::default()
            };
            let [one, seven] = [1, 7].map(|n_threads| {
                pool(n_threads).install(|| {
                    let tensor = quantizer.encode(x.view()).unwrap();
                    let decoded = tensor.decode();
                    (tensor, decoded)
                })
            });
            assert!(one == seven, "{quantizer:?}");
        }
    }
}

fn quantizers() -> impl Strategy<Value = IntQuantizer> {
    let granularity = prop_oneof![
        Just(Granularity::Tensor),
        Just(Granularity::Channel),
        (1..70usize).prop_map(|half| Granularity::Block1d(2 * half)),
        Just(Granularity::Block1d(32)),
        Just(Granularity::Block1d(128)),
    ];
    let format = prop_oneof![Just(IntFormat::Int8), Just(IntFormat::Int4)];
    let symmetry = prop_oneof![Just(Symmetry::Symmetric), Just(Symmetry::Asymmetric)];
    let range = prop_oneof![Just(IntRange::Full), Just(IntRange::Restricted)];
    (format, granularity, symmetry, range).prop_map(|(format, granularity, symmetry, range)| {
        IntQuantizer { format, granularity, symmetry, range, non_finite: NonFinite::Error }
    })
}

/// Matrices with an even number of columns, of elements between 2^-120 and 2^120, one binade or many.
fn matrices() -> impl Strategy<Value = Array2<f32>> {
    let shape = (1usize..8, 1usize..90, -120i32..120, prop_oneof![Just(1), Just(30)]);
    shape.prop_flat_map(|(rows, half_cols, exponent, binades)| {
        let element = (-1.0f32..1.0, 0..binades).prop_map(move |(x, lower): (f32, i32)| {
            x * ((exponent - lower).max(-120) as f32).exp2()
        });
        prop::collection::vec(element, rows * half_cols * 2).prop_map(move |x| {
            Array2::from_shape_vec([rows, half_cols * 2], x).expect("as many elements")
        })
    })
}

proptest! {
    #[test]
    fn no_element_is_off_by_more_than_half_a_step(quantizer in quantizers(), x in matrices()) {
        let tensor = quantizer.encode(x.view()).unwrap();
        let [low, high] = quantizer.format.limits(quantizer.range);
        prop_assert!(codes(&tensor).iter().all(|code| (low..=high).contains(code)));
        let decoded = tensor.decode();
        let [_, groups] = quantizer.granularity.scales_shape(tensor.shape()).unwrap();
        let per_group = match quantizer.granularity { Granularity::Block1d(block) => block, _ => x.ncols() };
        for ((row, col), &x) in x.indexed_iter() {
            let scale = tensor.scales()[if tensor.scales().len() == 1 { 0 } else { row * groups + col / per_group }];
            let error = (f64::from(x) - f64::from(decoded[[row, col]])).abs() / f64::from(scale);
            // Half a step, and what rounding the quotient adds to it.
            prop_assert!(error <= 0.5 + 1e-4, "{x:e} becomes {:e}, {error} steps off", decoded[[row, col]]);
        }
    }

    #[test]
    fn values_keep_their_codes(quantizer in quantizers(), x in matrices()) {
        let tensor = quantizer.encode(x.view()).unwrap();
        let again = quantizer.encode_with_scales(tensor.decode().view(), tensor.scales(), tensor.zero_points()).unwrap();
        prop_assert_eq!(codes(&again), codes(&tensor));
    }

    #[test]
    fn rows_are_quantized_alone(quantizer in quantizers(), x in matrices()) {
        let reversed = quantizer.encode(x.slice(s![..;-1, ..])).unwrap().decode();
        let decoded = quantizer.encode(x.view()).unwrap().decode();
        prop_assert_eq!(&reversed, &decoded.slice(s![..;-1, ..]));
        // And wherever they lie, before and behind the call.
        let mut wide = Array2::from_elem([x.nrows(), x.ncols() + 3], 9.0);
        wide.slice_mut(s![.., 2..2 + x.ncols()]).assign(&x);
        let (mut codes, mut scales, mut zero_points) = buffers(quantizer, x.dim().into());
        quantizer.encode_into(wide.slice(s![.., 2..2 + x.ncols()]), &mut codes, &mut scales, zero_points.as_deref_mut()).unwrap();
        let tensor = IntTensor::new(quantizer.format, quantizer.granularity, x.dim().into(), codes, scales, zero_points).unwrap();
        prop_assert_eq!(&tensor.decode(), &decoded);
        tensor.decode_into(wide.slice_mut(s![.., 2..2 + x.ncols()])).unwrap();
        prop_assert_eq!(&wide.slice(s![.., 2..2 + x.ncols()]), &decoded);
        prop_assert!(wide.slice(s![.., ..2]).iter().chain(wide.slice(s![.., 2 + x.ncols()..]).iter()).all(|&x| x == 9.0));
        let mut rows = vec![0.0; (x.nrows() - 1) * x.ncols()];
        tensor.decode_rows_into(1..x.nrows(), &mut rows).unwrap();
        prop_assert_eq!(&rows, &decoded.as_slice().unwrap()[x.ncols()..]);
    }

    #[test]
    fn powers_of_two_scale_scales_and_leave_codes(quantizer in quantizers(), x in matrices(), exponent in -4i32..4) {
        let factor = (exponent as f32).exp2();
        let (tensor, scaled) = (quantizer.encode(x.view()).unwrap(), quantizer.encode((&x * factor).view()).unwrap());
        // Not where the scale is at its least, or that of zeros.
        prop_assume!(tensor.scales().iter().chain(scaled.scales()).all(|&scale| scale > 64.0 * f32::MIN_POSITIVE && scale != 1.0));
        prop_assert_eq!(tensor.codes(), scaled.codes());
        prop_assert_eq!(tensor.zero_points(), scaled.zero_points());
        prop_assert!(tensor.scales().iter().zip(scaled.scales()).all(|(a, b)| a * factor == *b));
    }
}
