//! Microscaling tensors against torchao, ggml and transformers.

use half::bf16;
use ndarray::{Array2, ArrayView2, s};
use proptest::prelude::*;
use squish_bench::{alloc::count_allocations, golden::Golden};
use squish_kernels::element::{E2M1, E8M0, Element, Overflow};
use squish_quant::{Error, MxFormat, MxQuantizer, MxTensor, MxView, NonFinite, ScaleRule, ggml};

const RULES: [ScaleRule; 5] =
    [ScaleRule::Floor, ScaleRule::Even, ScaleRule::Ceil, ScaleRule::RoundUp, ScaleRule::MinMse];

fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "mx")
}

fn blocks(golden: &Golden, name: &str) -> Array2<f32> {
    Array2::from_shape_vec((golden.shape(name)[0], 32), golden.f32(name))
        .expect("rows of one block")
}

fn quantizer(rule: ScaleRule) -> MxQuantizer {
    MxQuantizer { rule, ..MxQuantizer::default() }
}

fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

#[test]
fn scales_and_codes_are_those_of_torchao_where_it_follows_its_rule() {
    let golden = golden();
    let x = blocks(&golden, "x");
    for (name, rule) in
        [("floor", RULES[0]), ("even", RULES[1]), ("ceil", RULES[2]), ("rceil", RULES[3])]
    {
        let tensor = quantizer(rule).encode(x.view()).expect("finite");
        let exact = golden.u8(&format!("{name}.exact"));
        let (scales, codes) =
            (golden.u8(&format!("{name}.scales")), golden.u8(&format!("{name}.codes")));
        // Where torchao departs: scale byte 0, divided by 2^-126 and multiplied by 2^-127, and a rounded log2 in rceil.
        let departures = exact.iter().map(|exact| usize::from(1 - exact)).sum::<usize>();
        assert!(departures < 20, "{name}: {departures} of {}", exact.len());
        for (i, _) in exact.iter().enumerate().filter(|(_, exact)| **exact == 1) {
            assert_eq!(tensor.scales()[i], scales[i], "{name}: scale of block {i}, {}", x.row(i));
            assert_eq!(
                tensor.codes()[16 * i..][..16],
                codes[16 * i..][..16],
                "{name}: codes of block {i}, {}",
                x.row(i)
            );
        }
    }
}

#[test]
fn every_block_of_torchao_decodes_as_there() {
    let golden = golden();
    for name in
        ["floor", "even", "nonfinite.floor", "nonfinite.even", "nonfinite.ceil", "nonfinite.rceil"]
    {
        let (codes, scales) =
            (golden.u8(&format!("{name}.codes")), golden.u8(&format!("{name}.scales")));
        let view = MxView::new(MxFormat::MxFp4, [scales.len(), 32], &codes, &scales)
            .expect("whole blocks");
        for ((at, got), want) in
            view.decode().indexed_iter().zip(golden.f32(&format!("{name}.decoded")))
        {
            assert!(same(*got, want), "{name} {at:?}: {got:e}, not {want:e}");
        }
    }
}

#[test]
fn gpt_oss_tensors_decode_as_in_transformers() {
    let golden = golden();
    let (codes, scales, want) =
        (golden.u8("gptoss.blocks"), golden.u8("gptoss.scales"), golden.u16("gptoss.decoded"));
    for expert in 0..2 {
        let (codes, scales) = (&codes[expert * 6 * 64..][..6 * 64], &scales[expert * 24..][..24]);
        let decoded =
            MxView::new(MxFormat::MxFp4, [6, 128], codes, scales).expect("whole blocks").decode();
        for ((row, col), got) in decoded.indexed_iter() {
            let want = bf16::from_bits(want[(expert * 128 + col) * 6 + row]).to_f32();
            assert!(same(*got, want), "expert {expert}, [{row}, {col}]: {got:e}, not {want:e}");
        }
    }
}

#[test]
fn ggml_blocks_are_encoded_byte_for_byte_and_decode_as_there() {
    let golden = golden();
    let x: Vec<f32> =
        golden.u16("ggml.x").into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect();
    let want = golden.u8("ggml.bytes");
    let mut got = vec![0; want.len()];
    ggml::encode_mxfp4_into(&x, &mut got).expect("finite");
    for (i, (got, want)) in got.chunks(17).zip(want.chunks(17)).enumerate() {
        assert_eq!(got, want, "block {i}: {:?}", &x[32 * i..][..32]);
    }
    for name in ["ggml", "ggml.any"] {
        let bytes = golden.u8(&format!("{name}.bytes"));
        let tensor = ggml::mxfp4_from_blocks(&bytes, [bytes.len() / 17, 32]).expect("whole blocks");
        let blocks = ggml::mxfp4_to_blocks(&tensor);
        assert_eq!(blocks.as_deref(), Ok(&bytes[..]), "repacking there and back");
        for (i, (got, want)) in
            tensor.decode().iter().zip(golden.f32(&format!("{name}.decoded"))).enumerate()
        {
            // ggml reads the scale byte 255 as 2^128; the specification says NaN.
            let is_nan = bytes[i / 32 * 17] == 255;
            assert!(
                same(*got, want) || is_nan && got.is_nan() || *got == 0.0 && want == 0.0,
                "{name} {i}: {got:e}, not {want:e}"
            );
        }
    }
}

#[test]
fn ties_of_ggml_go_toward_zero_and_their_neighbors_do_not() {
    let mut x = [0.0f32; 32];
    for (i, tie) in [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].into_iter().enumerate() {
        (x[3 * i], x[3 * i + 1], x[3 * i + 2]) = (tie, tie.next_up(), -tie.next_down());
    }
    x[31] = 6.0;
    let mut block = [0; 17];
    ggml::encode_mxfp4_into(&x, &mut block).expect("finite");
    let decoded = ggml::mxfp4_from_blocks(&block, [1, 32]).expect("one block").decode();
    for (i, (below, above)) in
        [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 6.0)]
            .into_iter()
            .enumerate()
    {
        assert_eq!(
            [decoded[[0, 3 * i]], decoded[[0, 3 * i + 1]], -decoded[[0, 3 * i + 2]]],
            [below, above, below],
            "tie {i}"
        );
    }
}

#[test]
fn non_finite_inputs_are_refused_poison_their_block_or_saturate() {
    let mut x = Array2::from_shape_fn([2, 96], |(r, c)| (r * 96 + c) as f32 / 50.0 - 2.0);
    let clean = x.clone();
    (x[[0, 40]], x[[1, 3]], x[[1, 4]]) = (f32::NAN, f32::NEG_INFINITY, f32::NAN);
    for rule in RULES {
        let refused = quantizer(rule).encode(x.view());
        assert!(
            matches!(refused, Err(Error::NonFinite { index: 40, value }) if value.is_nan()),
            "{refused:?}"
        );
        let (mut codes, mut scales) = (vec![9; 96], vec![9; 6]);
        assert!(quantizer(rule).encode_into(x.view(), &mut codes, &mut scales).is_err());
        assert!(codes.iter().chain(&scales).all(|&byte| byte == 9), "nothing was written");

        let poisoned = MxQuantizer { non_finite: NonFinite::Poison, ..quantizer(rule) }
            .encode(x.view())
            .expect("poisoned");
        let want = quantizer(rule).encode(clean.view()).expect("finite");
        for block in 0..6 {
            let codes = |tensor: &MxTensor| tensor.codes()[16 * block..][..16].to_vec();
            if matches!(block, 1 | 3) {
                assert_eq!((poisoned.scales()[block], codes(&poisoned)), (255, vec![0; 16]));
            } else {
                assert_eq!(
                    (poisoned.scales()[block], codes(&poisoned)),
                    (want.scales()[block], codes(&want))
                );
            }
        }
        let saturated = MxQuantizer { non_finite: NonFinite::Saturate, ..quantizer(rule) }
            .encode(x.view())
            .expect("saturated")
            .decode();
        assert_eq!((saturated[[0, 40]], saturated[[1, 4]]), (0.0, 0.0), "NaN becomes zero");
        assert!(saturated[[1, 3]] < -0.5 && saturated[[1, 3]].is_finite(), "{}", saturated[[1, 3]]);
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused_with_the_numbers() {
    let length = |what, expected, actual| Err(Error::Length { what, expected, actual });
    let new = |shape, n_codes, n_scales| {
        MxTensor::new(MxFormat::MxFp4, shape, vec![0; n_codes], vec![0; n_scales]).map(|_| ())
    };
    assert_eq!(new([3, 64], 96, 6), Ok(()));
    assert_eq!(new([3, 64], 95, 6), length("codes", 96, 95));
    assert_eq!(new([3, 64], 97, 6), length("codes", 96, 97));
    assert_eq!(new([3, 64], 96, 5), length("scales", 6, 5));
    assert_eq!(new([3, 63], 0, 0), Err(Error::BlockAlign { len: 63, block: 32 }));
    for shape in [[usize::MAX, 32], [usize::MAX, 0], [0, 1 << (usize::BITS - 1)]] {
        assert_eq!(new(shape, 0, 0), Err(Error::TooLarge { shape }));
    }
    assert_eq!(
        quantizer(ScaleRule::Floor).encode(Array2::zeros([2, 33]).view()).map(|_| ()),
        Err(Error::BlockAlign { len: 33, block: 32 })
    );
    let got = quantizer(ScaleRule::Floor).encode_into(
        Array2::zeros([2, 32]).view(),
        &mut [0; 32],
        &mut [0; 3],
    );
    assert_eq!(got, length("scales", 2, 3));
    assert_eq!(ggml::mxfp4_from_blocks(&[0; 33], [1, 64]).map(|_| ()), length("bytes", 34, 33));
    assert_eq!(ggml::encode_mxfp4_into(&[0.0; 64], &mut [0; 33]), length("out", 34, 33));
    assert_eq!(
        ggml::encode_mxfp4_into(&[f32::INFINITY; 32], &mut [0; 17]),
        Err(Error::NonFinite { index: 0, value: f32::INFINITY })
    );
    for shape in [[0, 32], [4, 0], [0, 0], [isize::MAX as usize, 0]] {
        let empty = quantizer(ScaleRule::MinMse)
            .encode(Array2::zeros(shape).view())
            .expect("nothing to refuse");
        assert_eq!(empty.decode().dim(), shape.into());
    }
}

#[test]
fn encoding_and_decoding_into_buffers_allocate_nothing() {
    let x = Array2::from_shape_fn([64, 96], |(r, c)| (r as f32).sin() * (c as f32).cos());
    let (mut codes, mut scales, mut out) =
        (vec![0; 64 * 48], vec![0; 64 * 3], Array2::zeros([64, 96]));
    quantizer(ScaleRule::Floor).encode_into(x.view(), &mut codes, &mut scales).expect("finite");
    for rule in RULES {
        let ((), n) = count_allocations(|| {
            quantizer(rule).encode_into(x.view(), &mut codes, &mut scales).expect("finite");
            let view = MxView::new(MxFormat::MxFp4, [64, 96], &codes, &scales).expect("valid");
            view.decode_into(out.view_mut()).expect("same shape");
        });
        assert_eq!(n, 0, "{rule:?}");
    }
}

fn any_matrix() -> impl Strategy<Value = Array2<f32>> {
    (0usize..5, 0usize..6, any::<u64>(), 0i32..30).prop_map(|(rows, blocks, seed, spread)| {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        Array2::from_shape_simple_fn([rows, 32 * blocks], || {
            uniform() * (uniform() * spread as f32).exp2()
        })
    })
}

fn squared_errors(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>) -> Vec<f64> {
    let squares: Vec<f64> =
        x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).collect();
    squares.chunks(32).map(|block| block.iter().sum()).collect()
}

/// The scale of `MinMse` by its definition, element by element.
fn min_mse_scale(x: &[f32]) -> u8 {
    let finite = || x.iter().copied().filter(|x| x.is_finite());
    let amax = finite().fold(0f32, |amax, x| amax.max(x.abs()));
    let floor = ((amax.to_bits() >> 23) as u8).saturating_sub(2);
    let [of_floor, of_next] = [floor, floor + 1].map(|scale| {
        let [factor, inverse] = [scale, 254 - scale].map(|scale| E8M0::from_bits(scale).to_f32());
        let value = |x: f32| E2M1::from_f32(x * inverse, Overflow::Saturate).to_f32() * factor;
        finite().map(|x| (f64::from(x) - f64::from(value(x))).powi(2)).sum::<f64>()
    });
    if of_next < of_floor { floor + 1 } else { floor }
}

#[test]
fn min_mse_takes_the_scale_with_the_smaller_error_and_the_smaller_scale_of_equals() {
    let quantizer = MxQuantizer { non_finite: NonFinite::Saturate, ..quantizer(ScaleRule::MinMse) };
    let mut x = Array2::from_shape_fn([300, 320], |(r, c)| {
        let uniform = ((r * 320 + c) as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
        (uniform.powi(3) * 2f64.powi(r as i32 - 150)) as f32
    });
    // Equals: zeros, what both represent, what neither does, and what becomes infinite in both.
    x.slice_mut(s![0, ..32]).fill(0.0);
    x.slice_mut(s![1, ..32]).fill(1.0);
    x.slice_mut(s![2, ..32]).fill(-0.0);
    x.slice_mut(s![3, ..32]).fill(1e-44);
    x.slice_mut(s![4, ..32]).fill(f32::MAX);
    (x[[5, 3]], x[[5, 40]], x[[6, 70]]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    x.slice_mut(s![7, ..64]).fill(f32::NAN);
    let tensor = quantizer.encode(x.view()).expect("saturated");
    let blocks = x.as_slice().expect("standard layout").chunks(32);
    let want: Vec<u8> = blocks.map(min_mse_scale).collect();
    assert_eq!(tensor.scales(), want);
    let floor = MxQuantizer { rule: ScaleRule::Floor, ..quantizer }.encode(x.view());
    let floor = floor.expect("saturated");
    let n_next = tensor.scales().iter().zip(floor.scales()).filter(|(a, b)| a != b).count();
    assert!(n_next > 100 && n_next < 2900, "{n_next} of 3000 blocks have the larger scale");
}

proptest! {
    #[test]
    fn min_mse_is_its_definition(x in any_matrix()) {
        let tensor = quantizer(ScaleRule::MinMse).encode(x.view()).expect("finite");
        let want: Vec<u8> = x.as_slice().expect("standard layout").chunks(32).map(min_mse_scale).collect();
        prop_assert_eq!(tensor.scales(), want);
    }

    #[test]
    fn min_mse_loses_no_more_than_its_two_candidates(x in any_matrix()) {
        let errors = |rule| squared_errors(x.view(), quantizer(rule).encode(x.view()).expect("finite").decode().view());
        let (best, floor, even) = (errors(ScaleRule::MinMse), errors(ScaleRule::Floor), errors(ScaleRule::Even));
        for ((best, floor), even) in best.iter().zip(floor).zip(even) {
            prop_assert!(*best <= floor && *best <= even, "{best} > min({floor}, {even})");
        }
    }

    #[test]
    fn powers_of_two_move_scales_and_leave_codes(x in any_matrix(), k in -20i32..20) {
        for rule in RULES {
            let moved = &x * (k as f32).exp2();
            let (a, b) = (quantizer(rule).encode(x.view()).expect("finite"), quantizer(rule).encode(moved.view()).expect("finite"));
            prop_assert_eq!(a.codes(), b.codes());
            for (a, b) in a.scales().iter().zip(b.scales()) {
                prop_assert!(i32::from(*b) == i32::from(*a) + k || *a == 0 && *b == 0);
            }
        }
    }

    #[test]
    fn round_up_never_saturates_and_is_no_larger_than_it_must_be(x in any_matrix()) {
        let tensor = quantizer(ScaleRule::RoundUp).encode(x.view()).expect("finite");
        for (x, scale) in x.as_standard_layout().as_slice().expect("standard").chunks(32).zip(tensor.scales()) {
            let amax = f64::from(x.iter().fold(0f32, |a, x| a.max(x.abs())));
            let scale = 2f64.powi(i32::from(*scale) - 127);
            prop_assert!(amax <= 6.0 * scale && (amax == 0.0 || amax > 3.0 * scale), "{amax} with {scale}");
        }
    }

    #[test]
    fn rows_decode_as_the_whole_does(x in any_matrix(), at in any::<prop::sample::Index>()) {
        prop_assume!(x.nrows() > 0);
        let tensor = quantizer(ScaleRule::Even).encode(x.view()).expect("finite");
        let (whole, start) = (tensor.decode(), at.index(x.nrows()));
        let mut out = vec![0.0; (x.nrows() - start) * x.ncols()];
        tensor.decode_rows_into(start..x.nrows(), &mut out).expect("rows of the matrix");
        prop_assert_eq!(ArrayView2::from_shape((x.nrows() - start, x.ncols()), &out).expect("as many"), whole.slice(s![start.., ..]));
        let again = quantizer(ScaleRule::Even).encode(x.slice(s![start.., ..])).expect("finite");
        prop_assert_eq!(again.scales(), &tensor.scales()[start * x.ncols() / 32..], "rows do not depend on each other");
    }

    #[test]
    fn any_bytes_decode_and_repack(codes in prop::collection::vec(any::<u8>(), 96), scales in prop::collection::vec(any::<u8>(), 6)) {
        let tensor = MxTensor::new(MxFormat::MxFp4, [3, 64], codes, scales).expect("whole blocks");
        let decoded = tensor.decode();
        for ((r, c), value) in decoded.indexed_iter() {
            let code = tensor.codes()[r * 32 + c / 2] >> (4 * (c % 2)) & 0xf;
            let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)] * if code & 8 == 0 { 1.0 } else { -1.0 };
            let scale = tensor.scales()[r * 2 + c / 32];
            let want = if scale == 255 { f64::NAN } else { magnitude * 2f64.powi(i32::from(scale) - 127) };
            prop_assert!(same(*value, want as f32), "{value:e}, not {want:e}");
        }
        let blocks = ggml::mxfp4_to_blocks(&tensor).expect("MXFP4");
        let back = ggml::mxfp4_from_blocks(&blocks, [3, 64]).expect("whole blocks");
        prop_assert_eq!(back, tensor);
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_change_nothing() {
    let x = Array2::from_shape_fn([700, 992], |(r, c)| {
        ((r * 992 + c) as f32 * 0.1).sin() * (1.0 + r as f32)
    });
    for rule in RULES {
        let run = |n_threads| {
            let pool = rayon_core::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build()
                .expect("threads");
            pool.install(|| {
                let tensor = quantizer(rule).encode(x.view()).expect("finite");
                let decoded = tensor.decode();
                (tensor, decoded)
            })
        };
        let alone = run(1);
        assert!([2, 3, 4].into_iter().all(|n_threads| run(n_threads) == alone), "{rule:?}");
    }
}
