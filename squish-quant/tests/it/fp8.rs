//! FP8 tensors against the definition in numpy, transformers and compressed-tensors.

use half::bf16;
use ndarray::{Array2, ArrayView2, s};
use proptest::prelude::*;
use squish_bench::{alloc::count_allocations, golden::Golden};
use squish_quant::{
    Error, Fp8Format, Fp8Quantizer, Fp8Tensor, Fp8View, Granularity, NonFinite, ScaleBytes,
};

fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "fp8")
}

fn matrix(golden: &Golden, name: &str) -> Array2<f32> {
    let shape = golden.shape(name);
    Array2::from_shape_vec((shape[0], shape[1]), golden.f32(name)).expect("a golden matrix")
}

const BLOCK_2D: Granularity = Granularity::Block2d { rows: 128, cols: 128 };

fn quantizer(format: Fp8Format, granularity: Granularity) -> Fp8Quantizer {
    Fp8Quantizer { format, granularity, ..Fp8Quantizer::default() }
}

#[test]
fn scales_and_codes_are_those_of_the_definition() {
    let golden = golden();
    let (x, edge) = (matrix(&golden, "x"), matrix(&golden, "edge.x"));
    let transposed = x.t().as_standard_layout().to_owned();
    for format in [Fp8Format::E4M3, Fp8Format::E5M2] {
        let cases = [
            ("tensor", Granularity::Tensor, &x),
            ("channel", Granularity::Channel, &x),
            ("block1d", Granularity::Block1d(128), &x),
            ("block2d", BLOCK_2D, &x),
            ("block2d_t", BLOCK_2D, &transposed),
            ("edge.channel", Granularity::Channel, &edge),
            ("edge.block1d", Granularity::Block1d(128), &edge),
        ];
        for (name, granularity, x) in cases {
            let prefix = match name.strip_prefix("edge.") {
                Some(name) => format!("edge.{}.{name}", format.name()),
                None => format!("{}.{name}", format.name()),
            };
            let tensor = quantizer(format, granularity).encode(x.view()).expect("finite");
            assert_eq!(tensor.scales(), golden.f32(&format!("{prefix}.scales")), "{prefix}");
            let want = golden.u8(&format!("{prefix}.codes"));
            for (i, ((x, got), want)) in x.iter().zip(tensor.codes()).zip(want).enumerate() {
                assert_eq!(*got, want, "{prefix}, element {i}: {x:e}");
            }
        }
    }
}

#[test]
fn decoding_is_code_times_scale() {
    let golden = golden();
    let tensor = quantizer(Fp8Format::E4M3, Granularity::Block1d(128))
        .encode(matrix(&golden, "x").view())
        .expect("finite");
    assert_eq!(tensor.decode(), matrix(&golden, "e4m3.block1d.decoded"));
}

#[test]
fn deepseek_blocks_decode_as_in_transformers() {
    let golden = golden();
    let (codes, scales) = (golden.u8("deepseek.codes"), golden.f32("deepseek.weight_scale_inv"));
    let view = Fp8View::new(Fp8Format::E4M3, BLOCK_2D, [132, 260], &codes, &scales)
        .expect("ragged blocks are allowed");
    let want = matrix(&golden, "deepseek.decoded");
    assert_eq!(view.decode(), want);
    for rows in [0..132, 5..7, 127..129, 131..132, 4..4] {
        let mut out = vec![0.0; rows.len() * 260];
        view.decode_rows_into(rows.clone(), &mut out).expect("rows of the matrix");
        assert_eq!(
            ArrayView2::from_shape((rows.len(), 260), &out).expect("as many"),
            want.slice(s![rows, ..])
        );
    }
}

#[test]
fn compressed_tensors_channels_decode_as_there() {
    let golden = golden();
    let scales: Vec<u8> =
        golden.u16("ct.weight_scale").iter().flat_map(|x| x.to_le_bytes()).collect();
    let codes = golden.u8("ct.weight");
    let tensor = Fp8Tensor::from_bytes(
        Fp8Format::E4M3,
        Granularity::Channel,
        [24, 96],
        codes,
        ScaleBytes::Bf16(&scales),
    );
    let decoded = tensor.expect("a valid tensor").decode();
    assert_eq!(decoded, matrix(&golden, "ct.decoded.f32"));
    let rounded: Vec<u16> = decoded.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    assert_eq!(rounded, golden.u16("ct.decoded.bf16"));
}

#[test]
fn scales_of_every_float_type_are_read() {
    let scale = |bytes: ScaleBytes<'_>| {
        let tensor =
            Fp8Tensor::from_bytes(Fp8Format::E4M3, Granularity::Tensor, [1, 1], vec![0x38], bytes);
        tensor.expect("one scale").decode()[[0, 0]]
    };
    assert_eq!(scale(ScaleBytes::F32(&1.5f32.to_le_bytes())), 1.5);
    assert_eq!(scale(ScaleBytes::Bf16(&bf16::from_f32(1.5).to_le_bytes())), 1.5);
    assert_eq!(scale(ScaleBytes::F16(&half::f16::from_f32(1.5).to_le_bytes())), 1.5);
    assert_eq!(scale(ScaleBytes::E8M0(&[129])), 4.0);
}

#[test]
fn codes_beside_scales_of_another_type_are_read_where_they_lie() {
    let (codes, scales) = ([0x38u8; 6], [0x80, 0x3f, 0, 0x40]);
    let new = |scales| {
        Fp8Tensor::from_bytes(
            Fp8Format::E4M3,
            Granularity::Channel,
            [2, 3],
            &codes[..],
            ScaleBytes::Bf16(scales),
        )
    };
    let tensor = new(&scales).expect("two scales");
    assert_eq!(tensor.codes().as_ptr(), codes.as_ptr());
    assert_eq!(tensor.decode(), ndarray::array![[1.0; 3], [2.0; 3]]);
    // One byte is no whole scale.
    for bytes in [&scales[..3], &[0x80, 0x3f, 0, 0x40, 0]] {
        let expected =
            Error::Length { what: "bytes of the scales", expected: 4, actual: bytes.len() };
        assert_eq!(new(bytes).map(|_| ()), Err(expected));
    }
}

#[test]
fn buffers_and_scales_that_do_not_fit_are_refused_with_the_numbers() {
    let new = |granularity, shape, n_codes, scales: &[f32]| {
        Fp8Tensor::new(Fp8Format::E4M3, granularity, shape, vec![0; n_codes], scales.to_vec())
            .map(|_| ())
    };
    let length = |what, expected, actual| Err(Error::Length { what, expected, actual });
    assert_eq!(new(Granularity::Channel, [2, 3], 6, &[1.0; 2]), Ok(()));
    assert_eq!(new(Granularity::Channel, [2, 3], 5, &[1.0; 2]), length("codes", 6, 5));
    assert_eq!(new(Granularity::Channel, [2, 3], 7, &[1.0; 2]), length("codes", 6, 7));
    assert_eq!(new(Granularity::Channel, [2, 3], 6, &[1.0; 3]), length("scales", 2, 3));
    assert_eq!(new(BLOCK_2D, [129, 3], 387, &[1.0]), length("scales", 2, 1));
    assert_eq!(
        new(Granularity::Block1d(0), [2, 3], 6, &[]),
        Err(Error::ZeroBlock { what: "columns of a block" })
    );
    let no_rows = Granularity::Block2d { rows: 0, cols: 1 };
    assert_eq!(new(no_rows, [2, 3], 6, &[]), Err(Error::ZeroBlock { what: "rows of a block" }));
    for shape in [[usize::MAX, 2], [usize::MAX, 0], [0, usize::MAX]] {
        assert_eq!(new(Granularity::Channel, shape, 0, &[]), Err(Error::TooLarge { shape }));
    }
    for bad in [f32::INFINITY, -1.0] {
        assert_eq!(
            new(Granularity::Channel, [2, 1], 2, &[1.0, bad]),
            Err(Error::BadScale { index: 1, value: bad })
        );
    }
    assert!(matches!(
        new(Granularity::Tensor, [1, 1], 1, &[f32::NAN]),
        Err(Error::BadScale { index: 0, .. })
    ));

    let tensor = Fp8Quantizer::default().encode(Array2::ones([4, 3]).view()).expect("finite");
    let mut out = Array2::from_elem([3, 4], 7.0);
    assert_eq!(
        tensor.decode_into(out.view_mut()),
        Err(Error::Shape { what: "out", expected: [4, 3], actual: [3, 4] })
    );
    assert_eq!(
        tensor.decode_into(out.view_mut().reversed_axes()),
        Err(Error::Layout { what: "out", stride: 4 })
    );
    let mut flat = [7.0; 6];
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = 3..2;
    assert_eq!(
        tensor.decode_rows_into(reversed, &mut flat),
        Err(Error::Rows { start: 3, end: 2, n_rows: 4 })
    );
    assert_eq!(
        tensor.decode_rows_into(3..5, &mut flat),
        Err(Error::Rows { start: 3, end: 5, n_rows: 4 })
    );
    assert_eq!(tensor.decode_rows_into(3..4, &mut flat), length("out", 3, 6));
    assert!(out.iter().chain(&flat).all(|&x| x == 7.0), "nothing was written");
}

#[test]
fn non_finite_inputs_are_refused_poisoned_or_saturated() {
    let mut x = Array2::from_shape_fn([3, 200], |(r, c)| (r * 200 + c) as f32 / 100.0 - 3.0);
    let clean = x.clone();
    (x[[1, 7]], x[[1, 150]], x[[2, 3]]) = (f32::NEG_INFINITY, f32::NAN, f32::INFINITY);
    for granularity in
        [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(64), BLOCK_2D]
    {
        let quantizer = quantizer(Fp8Format::E4M3, granularity);
        let want = Err(Error::NonFinite { index: 207, value: f32::NEG_INFINITY });
        assert_eq!(quantizer.encode(x.view()).map(|_| ()), want);
        let n_scales: usize = granularity.scales_shape([3, 200]).expect("blocks").iter().product();
        let (mut codes, mut scales) = (vec![9; 600], vec![9.0; n_scales]);
        assert_eq!(quantizer.encode_into(x.view(), &mut codes, &mut scales), want);
        assert_eq!(
            quantizer.encode_with_scales_into(x.view(), &vec![1.0; n_scales], &mut codes),
            want
        );
        assert!(
            codes.iter().all(|&x| x == 9) && scales.iter().all(|&x| x == 9.0),
            "nothing was written"
        );

        let poisoned = Fp8Quantizer { non_finite: NonFinite::Poison, ..quantizer }
            .encode(x.view())
            .expect("poisoned");
        let saturated = Fp8Quantizer { non_finite: NonFinite::Saturate, ..quantizer }
            .encode(x.view())
            .expect("saturated");
        assert_eq!(poisoned.scales(), saturated.scales());
        assert!(poisoned.scales().iter().all(|scale| scale.is_finite()));
        let (poisoned, saturated) = (poisoned.decode(), saturated.decode());
        for ((at, x), clean) in x.indexed_iter().zip(&clean) {
            if x.is_finite() {
                assert!(
                    (poisoned[at] - clean).abs() <= 3.0 / 16.0 + 1e-3,
                    "{at:?}: {} for {clean}",
                    poisoned[at]
                );
                assert_eq!(poisoned[at], saturated[at]);
            } else {
                assert!(poisoned[at].is_nan(), "{at:?}: {}", poisoned[at]);
                assert_eq!(saturated[at].is_nan(), x.is_nan());
                assert!(
                    x.is_nan() || saturated[at].is_finite() && saturated[at].signum() == x.signum()
                );
            }
        }
    }
    let e5m2 = Fp8Quantizer {
        format: Fp8Format::E5M2,
        non_finite: NonFinite::Poison,
        ..Fp8Quantizer::default()
    };
    assert_eq!(
        e5m2.encode(x.view()).expect("poisoned").decode()[[2, 3]],
        f32::INFINITY,
        "E5M2 has infinities"
    );
}

#[test]
fn given_scales_saturate_and_bad_ones_are_refused() {
    let x = ndarray::array![[1.0f32, -1000.0], [1e30, -0.0]];
    let tensor = Fp8Quantizer::default().encode_with_scales(x.view(), &[2.0, 1.0]).expect("finite");
    assert_eq!(tensor.decode(), ndarray::array![[1.0, -896.0], [448.0, 0.0]]);
    assert_eq!(tensor.codes()[3], 0x80, "the sign of zero is kept");
    // The reciprocal of 1e-40 is infinite, and a product of it and zero is NaN.
    for bad in [0.0, -1.0, f32::INFINITY, 1e-40] {
        let got = Fp8Quantizer::default().encode_with_scales(x.view(), &[1.0, bad]).map(|_| ());
        assert_eq!(got, Err(Error::BadScale { index: 1, value: bad }));
    }
    let least = 1.001 / f32::MAX;
    let tensor =
        Fp8Quantizer::default().encode_with_scales(x.view(), &[least, least]).expect("finite");
    assert_eq!(tensor.codes(), [0x7e, 0xfe, 0x7e, 0x80]);
}

#[test]
fn empty_matrices_are_encoded_and_decoded() {
    for shape in [[0, 5], [5, 0], [0, 0], [isize::MAX as usize, 0], [0, isize::MAX as usize]] {
        for granularity in
            [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(2), BLOCK_2D]
        {
            let (quantizer, x) = (quantizer(Fp8Format::E5M2, granularity), Array2::zeros(shape));
            let tensor = quantizer.encode(x.view()).expect("nothing to refuse");
            assert_eq!(tensor.decode().dim(), shape.into());
            let again = quantizer.encode_with_scales(x.view(), tensor.scales());
            assert_eq!(again, Ok(tensor));
        }
    }
}

#[test]
fn rows_that_are_not_contiguous_are_copied_or_refused() {
    let x = Array2::from_shape_fn([6, 8], |(r, c)| (r as f32 - 2.5) * (c as f32 + 1.0));
    let owned = x.t().as_standard_layout().to_owned();
    let quantizer = quantizer(Fp8Format::E4M3, Granularity::Block1d(4));
    let want = quantizer.encode(owned.view()).expect("finite");
    assert_eq!(quantizer.encode(x.t()).expect("copied"), want);
    let (mut codes, mut scales) = (vec![0; 48], vec![0.0; 16]);
    let refused = quantizer.encode_into(x.t(), &mut codes, &mut scales);
    assert_eq!(refused, Err(Error::Layout { what: "x", stride: 8 }));
    // Rows with a gap between them are contiguous each.
    let wide = Array2::from_shape_fn([8, 10], |(r, c)| if c < 6 { owned[[r, c]] } else { 1e9 });
    let narrow = wide.slice(s![.., ..6]);
    quantizer.encode_into(narrow, &mut codes, &mut scales).expect("rows are contiguous");
    assert_eq!((codes, scales), (want.codes().to_vec(), want.scales().to_vec()));
}

#[test]
fn encoding_and_decoding_into_buffers_allocate_nothing() {
    let x = Array2::from_shape_fn([64, 96], |(r, c)| (r as f32).sin() * (c as f32).cos());
    let (mut codes, mut scales, mut out) =
        (vec![0; 64 * 96], vec![0.0; 64], Array2::zeros([64, 96]));
    let quantizer = Fp8Quantizer::default();
    quantizer.encode_into(x.view(), &mut codes, &mut scales).expect("finite");
    let ((), n) = count_allocations(|| {
        quantizer.encode_into(x.view(), &mut codes, &mut scales).expect("finite");
        let view = Fp8View::new(Fp8Format::E4M3, Granularity::Channel, [64, 96], &codes, &scales)
            .expect("valid");
        view.decode_into(out.view_mut()).expect("same shape");
    });
    assert_eq!(n, 0);
}

fn any_granularity() -> impl Strategy<Value = Granularity> {
    prop_oneof![
        Just(Granularity::Tensor),
        Just(Granularity::Channel),
        (1usize..80).prop_map(Granularity::Block1d),
        (1usize..9, 1usize..80).prop_map(|(rows, cols)| Granularity::Block2d { rows, cols }),
    ]
}

fn any_matrix() -> impl Strategy<Value = Array2<f32>> {
    (0usize..12, 0usize..150, -30i32..30, any::<u64>()).prop_map(|(rows, cols, exponent, seed)| {
        let mut state = seed;
        Array2::from_shape_simple_fn([rows, cols], || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * (exponent as f32).exp2()
        })
    })
}

proptest! {
    #[test]
    fn errors_stay_within_half_a_step_and_codes_are_stable(x in any_matrix(), granularity in any_granularity()) {
        let quantizer = quantizer(Fp8Format::E4M3, granularity);
        let tensor = quantizer.encode(x.view()).expect("finite");
        let decoded = tensor.decode();
        let [block_rows, block_cols] = match granularity {
            Granularity::Tensor => [x.nrows(), x.ncols()],
            Granularity::Channel => [1, x.ncols()],
            Granularity::Block1d(block) => [1, block],
            Granularity::Block2d { rows, cols } => [rows, cols],
        };
        for ((at, x), y) in x.indexed_iter().zip(&decoded) {
            let scale = tensor.scales()[at.0 / block_rows * decoded.ncols().div_ceil(block_cols) + at.1 / block_cols];
            // Half a step is 1/16 of the value; at the bottom 2^-10 of the element's scale.
            prop_assert!((x - y).abs() <= (x.abs() / 16.0).max(scale / 1024.0) * 1.0001, "{} became {}", x, y);
        }
        let again = quantizer.encode_with_scales(decoded.view(), tensor.scales()).expect("finite");
        prop_assert_eq!(again.codes(), tensor.codes());
    }

    #[test]
    fn powers_of_two_move_scales_and_leave_codes(x in any_matrix(), granularity in any_granularity(), k in -8i32..8) {
        let quantizer = quantizer(Fp8Format::E5M2, granularity);
        let (a, b) = (quantizer.encode(x.view()).expect("finite"), quantizer.encode((&x * (k as f32).exp2()).view()).expect("finite"));
        prop_assert_eq!(a.codes(), b.codes());
        for (a, b) in a.scales().iter().zip(b.scales()) {
            prop_assert!(*b == a * (k as f32).exp2() || *a == 1.0 && *b == 1.0);
        }
    }

    #[test]
    fn any_bytes_decode(codes in prop::collection::vec(any::<u8>(), 60), scales in prop::collection::vec(0f32..1e38, 15)) {
        let view = Fp8View::new(Fp8Format::E5M2, Granularity::Block2d { rows: 2, cols: 5 }, [5, 12], &codes, &scales[..9]).expect("valid");
        let decoded = view.decode();
        for ((r, c), value) in decoded.indexed_iter() {
            let code = squish_kernels::element::Element::to_f32(bytemuck::cast::<u8, squish_kernels::element::E5M2>(codes[r * 12 + c]));
            let want = code * scales[r / 2 * 3 + c / 5];
            prop_assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan());
        }
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_change_nothing() {
    let x = Array2::from_shape_fn([700, 1000], |(r, c)| {
        ((r * 1000 + c) as f32 * 0.1).sin() * (1.0 + r as f32)
    });
    for granularity in
        [Granularity::Tensor, Granularity::Channel, Granularity::Block1d(96), BLOCK_2D]
    {
        let run = |n_threads| {
            let pool = rayon_core::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build()
                .expect("threads");
            pool.install(|| {
                let tensor =
                    quantizer(Fp8Format::E4M3, granularity).encode(x.view()).expect("finite");
                let cast = quantizer(Fp8Format::E4M3, granularity)
                    .encode_with_scales(x.view(), tensor.scales())
                    .expect("finite");
                assert_eq!(cast.codes(), tensor.codes());
                let decoded = tensor.decode();
                (tensor, decoded)
            })
        };
        let alone = run(1);
        for n_threads in [2, 3, 4] {
            assert!(run(n_threads) == alone, "{granularity:?} on {n_threads} threads");
        }
        // Rows have ascending magnitudes: with a scale of its own, or one of other rows, a band has other codes.
        if granularity == Granularity::Tensor {
            let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
            assert_eq!(alone.0.scales(), [largest / 448.0]);
            for (x, codes) in x.outer_iter().zip(alone.0.codes().chunks(1000)) {
                let row = x.insert_axis(ndarray::Axis(0));
                let quantizer = quantizer(Fp8Format::E4M3, granularity);
                let cast = quantizer.encode_with_scales(row, alone.0.scales()).expect("finite");
                assert_eq!(cast.codes(), codes);
            }
        }
    }
    let mut bad = x.clone();
    (bad[[650, 1]], bad[[400, 999]]) = (f32::NAN, f32::INFINITY);
    let pool = rayon_core::ThreadPoolBuilder::new().num_threads(4).build().expect("threads");
    for granularity in [Granularity::Channel, Granularity::Tensor] {
        let quantizer = quantizer(Fp8Format::E4M3, granularity);
        let got = pool.install(|| quantizer.encode(bad.view()).map(|_| ()));
        assert_eq!(
            got,
            Err(Error::NonFinite { index: 400_999, value: f32::INFINITY }),
            "the first in order, not in time"
        );
    }
}
