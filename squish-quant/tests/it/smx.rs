//! Shared microexponents against their definition.

use ndarray::{Array2, ArrayView2, s};
use proptest::prelude::*;
use squish_bench::{alloc::count_allocations, golden::Golden, input};
use squish_quant::{
    Error, NonFinite, SMX_BLOCK, SmxFormat, SmxQuantizer, SmxTensor, SmxView, error_stats,
};

/// Bits of the magnitude.
fn magnitude_bits(format: SmxFormat) -> i32 {
    match format {
        SmxFormat::Smx4 => 2,
        SmxFormat::Smx6 => 4,
        SmxFormat::Smx9 => 7,
    }
}

/// The exponent field of a float; subnormals have that of zero.
fn field(x: f32) -> i32 {
    (x.to_bits() >> 23 & 0xff) as i32
}

/// Exponent, bits of the pairs and codes of a block by the definition.
fn encoded(format: SmxFormat, x: &[f32]) -> (u8, u8, Vec<i32>) {
    let m = magnitude_bits(format);
    let shared = x.iter().map(|x| field(*x)).max().expect("a block");
    let mut halved = 0;
    let mut codes = Vec::new();
    for (j, pair) in x.chunks(2).enumerate() {
        let t = i32::from(pair.iter().all(|x| field(*x) < shared));
        halved |= (t as u8) << j;
        let step = 2f64.powi(shared - 127 - t - (m - 1));
        for x in pair {
            let x = if field(*x) == 0 { 0.0 } else { f64::from(*x) };
            let limit = (1 << m) - 1;
            codes.push(((x / step).round_ties_even() as i32).clamp(-limit, limit));
        }
    }
    (shared as u8, halved, codes)
}

/// The bytes of a block.
fn block(format: SmxFormat, shared: u8, halved: u8, codes: &[i32]) -> Vec<u8> {
    let bits = magnitude_bits(format) as usize + 1;
    let mut out = vec![0; 2 + 2 * bits];
    (out[0], out[1]) = (shared, halved);
    for (i, code) in codes.iter().enumerate() {
        for k in (0..bits).filter(|bit| code >> bit & 1 == 1) {
            out[2 + (i * bits + k) / 8] |= 1 << ((i * bits + k) % 8);
        }
    }
    out
}

/// Element `i` of a block by the definition.
fn value(format: SmxFormat, block: &[u8], i: usize) -> f64 {
    let m = magnitude_bits(format);
    let bits = m as usize + 1;
    let bit = |k: usize| i32::from(block[2 + k / 8] >> (k % 8) & 1);
    let unsigned: i32 = (0..bits).map(|k| bit(i * bits + k) << k).sum();
    let code = if unsigned >= 1 << m { unsigned - (1 << bits) } else { unsigned };
    let t = i32::from(block[1] >> (i / 2) & 1);
    f64::from(code) * 2f64.powi(i32::from(block[0]) - 127 - t - (m - 1))
}

fn quantizer(format: SmxFormat) -> SmxQuantizer {
    SmxQuantizer { format, non_finite: NonFinite::Error }
}

fn assert_encoded(tensor: &SmxTensor, x: &[f32]) {
    let format = tensor.format();
    for (x, got) in x.chunks(SMX_BLOCK).zip(tensor.blocks().chunks(format.block_bytes())) {
        let (shared, halved, codes) = encoded(format, x);
        assert_eq!(got, block(format, shared, halved, &codes), "{format:?}: {x:?}");
    }
}

fn row(x: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((1, x.len()), x).expect("a row")
}

#[test]
fn every_code_decodes_to_its_definition_under_every_exponent_and_pair_bit() {
    for format in SmxFormat::ALL {
        let limit = (1i32 << magnitude_bits(format)) - 1;
        let codes: Vec<i32> = (-limit..=limit).collect();
        let mut blocks = Vec::new();
        for shared in 0..=u8::MAX {
            for halved in [0, 0xff, 0b0101_1010] {
                for codes in codes.chunks(SMX_BLOCK) {
                    blocks.extend(block(format, shared, halved, codes));
                }
            }
        }
        let n_blocks = blocks.len() / format.block_bytes();
        let tensor = SmxTensor::new(format, [n_blocks, SMX_BLOCK], blocks).expect("codes in use");
        for ((at, i), got) in tensor.decode().indexed_iter() {
            let block = &tensor.blocks()[at * format.block_bytes()..][..format.block_bytes()];
            let want = value(format, block, i) as f32;
            assert_eq!(*got, want, "{format:?}, {block:x?}, element {i}");
        }
    }
}

#[test]
fn names_and_sizes_are_those_of_the_paper() {
    let rows = SmxFormat::ALL.map(|format| {
        let tensor = quantizer(format).encode(Array2::zeros([3, 32]).view()).expect("finite");
        assert!(tensor.blocks().iter().all(|&byte| byte == 0));
        assert_eq!(tensor.decode(), Array2::<f32>::zeros([3, 32]));
        (format.name(), format.code_bits(), format.block_bytes(), tensor.bits_per_weight())
    });
    assert_eq!(rows, [("smx4", 3, 8, 4.0), ("smx6", 5, 12, 6.0), ("smx9", 8, 18, 9.0)]);
}

#[test]
fn every_rounding_boundary_of_both_steps_goes_to_the_even_code() {
    for format in SmxFormat::ALL {
        let m = magnitude_bits(format);
        let limit = (1i32 << m) - 1;
        for (halved, k) in [0, 1].into_iter().flat_map(|t| [-70, 0, 60].map(|k| (t, k))) {
            // The first element has the exponent k, and the first pair is left out of the cases.
            let step = 2f64.powi(k - halved - (m - 1));
            let mut cases = Vec::new();
            for code in 0..limit {
                let tie = ((f64::from(code) + 0.5) * step) as f32;
                cases.extend([
                    (tie.next_down(), code),
                    (tie, code + code % 2),
                    (tie.next_up(), code + 1),
                    ((f64::from(code) * step) as f32, code),
                ]);
            }
            // What would round to 2^m is clamped.
            let beyond = ((f64::from(limit) + 0.5) * step) as f32;
            cases.extend([(beyond, limit), (beyond.next_up(), limit)]);
            cases.push((((2f64.powi(m) * step) as f32).next_down(), limit));
            for cases in cases.chunks(6) {
                let mut x = [0.0; SMX_BLOCK];
                x[0] = 2f32.powi(k);
                if halved == 0 {
                    // A partner that keeps the step of its pair whole.
                    for (i, (v, _)) in cases.iter().enumerate() {
                        (x[2 * i + 2], x[2 * i + 3]) = (*v, -2f32.powi(k));
                    }
                } else {
                    for (i, (v, _)) in cases.iter().enumerate() {
                        (x[2 * i + 2], x[2 * i + 3]) = (*v, -*v);
                    }
                }
                let tensor = quantizer(format).encode(row(&x)).expect("finite");
                assert_encoded(&tensor, &x);
                let decoded = tensor.decode();
                for (i, (v, code)) in cases.iter().enumerate() {
                    let want = (f64::from(*code) * step) as f32;
                    assert_eq!(decoded[[0, 2 * i + 2]], want, "{format:?}, {halved}: {v:e}");
                }
            }
        }
    }
}

#[test]
fn blocks_of_any_magnitude_are_their_definition() {
    let mut rng = input::Rng::new(11);
    for format in SmxFormat::ALL {
        for exponent in -150..128 {
            let top = 2f64.powi(exponent);
            let x: Vec<f32> = (0..4 * SMX_BLOCK)
                .map(|i| {
                    let uniform = f64::from(2.0 * rng.uniform() - 1.0);
                    (top * uniform.powi(1 + (i / 16) as i32 * 3)) as f32
                })
                .collect();
            assert_encoded(&quantizer(format).encode(row(&x)).expect("finite"), &x);
        }
        let mut extremes = [f32::MAX; SMX_BLOCK];
        extremes[4] = f32::MIN_POSITIVE;
        extremes[5] = -f32::from_bits(1);
        let tensor = quantizer(format).encode(row(&extremes)).expect("finite");
        assert_encoded(&tensor, &extremes);
        assert!(tensor.decode().iter().all(|x| x.is_finite()));
    }
}

#[test]
fn normal_weights_lose_what_the_specification_measured() {
    // The matrix of the table in `specs/quant.md`, 1.3.
    let x = Golden::load(env!("CARGO_MANIFEST_DIR"), "formats").f32("normal.x");
    for (format, want) in
        [(SmxFormat::Smx4, 15.72), (SmxFormat::Smx6, 28.27), (SmxFormat::Smx9, 46.47)]
    {
        let tensor = quantizer(format)
            .encode(ArrayView2::from_shape((128, 128), &x).expect("square"))
            .expect("finite");
        let decoded = tensor.decode();
        let stats = error_stats(&x, decoded.as_slice().expect("standard layout")).expect("finite");
        assert!((stats.snr_db - want).abs() < 0.01, "{format:?}: {stats}");
    }
}

#[test]
fn non_finite_inputs_are_refused_or_saturate() {
    let mut x = Array2::from_shape_fn([2, 48], |(r, c)| (r * 48 + c) as f32 / 50.0 - 1.0);
    (x[[0, 40]], x[[1, 3]], x[[1, 4]]) = (f32::NAN, f32::NEG_INFINITY, -f32::NAN);
    for format in SmxFormat::ALL {
        let refused = quantizer(format).encode(x.view());
        assert!(
            matches!(refused, Err(Error::NonFinite { index: 40, value }) if value.is_nan()),
            "{refused:?}"
        );
        let below = quantizer(format).encode(x.slice(s![1.., ..]));
        let value = f32::NEG_INFINITY;
        assert_eq!(below, Err(Error::NonFinite { index: 3, value }));
        let mut blocks = vec![9; 6 * format.block_bytes()];
        assert!(quantizer(format).encode_into(x.view(), &mut blocks).is_err());
        assert!(blocks.iter().all(|&byte| byte == 9), "nothing was written");
        let poison = SmxQuantizer { format, non_finite: NonFinite::Poison };
        let unsupported = Error::Unsupported { format: format.name(), what: "poisoned elements" };
        assert_eq!(poison.encode(x.view()), Err(unsupported));
        assert_eq!(poison.encode_into(x.view(), &mut blocks), Err(unsupported));

        let saturating = SmxQuantizer { format, non_finite: NonFinite::Saturate };
        let decoded = saturating.encode(x.view()).expect("saturated").decode();
        assert_eq!((decoded[[0, 40]], decoded[[1, 4]]), (0.0, 0.0), "NaN becomes zero");
        // Elements of -0.04 to 0.26 beside it: the largest code, 2 - 2^(1 - m), under 2^-2.
        let largest = (2.0 - 2f32.powi(1 - magnitude_bits(format))) * 0.25;
        assert_eq!(decoded[[1, 3]], -largest, "{format:?}");
        // The finite elements are encoded as without the others.
        let mut rest = x.slice(s![1, ..16]).to_vec();
        (rest[3], rest[4]) = (-0.25, 0.0);
        let want = saturating.encode(row(&rest)).expect("finite").decode();
        for i in (0..16).filter(|i| !matches!(i, 3)) {
            assert_eq!(decoded[[1, i]], want[[0, i]], "{format:?}, element {i}");
        }
        let alone = [f32::INFINITY; SMX_BLOCK];
        let tensor = saturating.encode(row(&alone)).expect("saturated");
        assert_eq!(tensor.decode(), Array2::<f32>::zeros([1, 16]));
    }
}

#[test]
fn the_code_without_a_counterpart_is_refused_wherever_it_stands() {
    for format in SmxFormat::ALL {
        let unused = -(1i32 << magnitude_bits(format));
        for at in 0..3 * SMX_BLOCK {
            let mut codes = [1; 3 * SMX_BLOCK];
            codes[at] = unused;
            let blocks: Vec<u8> =
                codes.chunks(SMX_BLOCK).flat_map(|codes| block(format, 127, 0, codes)).collect();
            let refused = SmxTensor::new(format, [1, 48], blocks).map(|_| ());
            let error = Error::BadCode { what: "blocks", index: at, value: unused };
            assert_eq!(refused, Err(error), "{format:?}");
        }
        let codes = [unused + 1; SMX_BLOCK];
        assert!(SmxTensor::new(format, [1, 16], block(format, 127, 0, &codes)).is_ok());
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused_with_the_numbers() {
    for format in SmxFormat::ALL {
        let expected = 9 * format.block_bytes();
        for actual in (0..expected).chain([expected + 1]) {
            let refused = SmxTensor::new(format, [3, 48], vec![0; actual]).map(|_| ());
            assert_eq!(refused, Err(Error::Length { what: "blocks", expected, actual }));
        }
        let refused = SmxView::new(format, [3, 47], &[]).map(|_| ());
        assert_eq!(refused, Err(Error::BlockAlign { len: 47, block: 16 }));
        for shape in [[usize::MAX, 16], [usize::MAX, 0], [0, 1 << (usize::BITS - 1)]] {
            let refused = SmxView::new(format, shape, &[]).map(|_| ());
            assert_eq!(refused, Err(Error::TooLarge { shape }));
        }
        let refused = quantizer(format).encode_into(Array2::zeros([2, 16]).view(), &mut [0; 3]);
        let expected = 2 * format.block_bytes();
        assert_eq!(refused, Err(Error::Length { what: "blocks", expected, actual: 3 }));
        let wide = Array2::zeros([16, 32]);
        let refused = quantizer(format).encode_into(wide.t(), &mut []);
        assert_eq!(refused, Err(Error::Layout { what: "x", stride: 32 }));
        for shape in [[0, 16], [4, 0], [0, 0], [isize::MAX as usize, 0]] {
            let empty = quantizer(format).encode(Array2::zeros(shape).view()).expect("empty");
            assert_eq!((empty.decode().dim(), empty.n_bytes()), (shape.into(), 0));
            assert!(empty.bits_per_weight().is_nan());
        }
    }
    // As many elements as can be counted, in more bytes than can.
    let shape = [isize::MAX as usize / 16, 16];
    let refused = SmxView::new(SmxFormat::Smx9, shape, &[]).map(|_| ());
    assert_eq!(refused, Err(Error::TooLarge { shape }));
}

#[test]
fn calls_into_buffers_give_what_the_others_give_and_allocate_nothing() {
    let x = Array2::from_shape_fn([64, 48], |(r, c)| (r as f32).sin() * (c as f32).cos());
    let mut out = Array2::zeros([64, 48]);
    for format in SmxFormat::ALL {
        let want = quantizer(format).encode(x.view()).expect("finite");
        let mut blocks = vec![0; want.blocks().len()];
        // The first call of a process asks the environment for the level.
        quantizer(format).encode_into(x.view(), &mut blocks).expect("finite");
        blocks.fill(1);
        let ((), n) = count_allocations(|| {
            quantizer(format).encode_into(x.view(), &mut blocks).expect("finite");
            let view = SmxView::new(format, [64, 48], &blocks[..]).expect("valid");
            view.decode_into(out.view_mut()).expect("same shape");
        });
        assert_eq!(n, 0, "{format:?}");
        assert!(blocks == want.blocks() && out == want.decode(), "{format:?}");
        let reversed = x.slice(s![..;-1, ..;-1]);
        let copied = quantizer(format).encode(reversed.as_standard_layout().view());
        assert_eq!(quantizer(format).encode(reversed), copied);
    }
}

fn any_format() -> impl Strategy<Value = SmxFormat> {
    prop::sample::select(&SmxFormat::ALL[..])
}

fn any_matrix() -> impl Strategy<Value = Array2<f32>> {
    (0usize..5, 0usize..9, any::<u64>(), 0i32..20).prop_map(|(rows, blocks, seed, spread)| {
        let mut rng = input::Rng::new(seed);
        let mut uniform = move || 2.0 * rng.uniform() - 1.0;
        Array2::from_shape_simple_fn([rows, 16 * blocks], || {
            uniform() * (uniform() * spread as f32).exp2()
        })
    })
}

proptest! {
    #[test]
    fn blocks_are_their_definition(format in any_format(), bits in prop::collection::vec(any::<u32>(), 0..6 * SMX_BLOCK)) {
        // Any finite floats.
        let mut x: Vec<f32> = bits.into_iter().map(|bits| f32::from_bits(if bits >> 23 & 0xff == 0xff { bits ^ 1 << 30 } else { bits })).collect();
        x.truncate(x.len() / SMX_BLOCK * SMX_BLOCK);
        let tensor = quantizer(format).encode(row(&x)).expect("finite");
        assert_encoded(&tensor, &x);
    }

    #[test]
    fn what_was_decoded_encodes_to_the_same_values(format in any_format(), x in any_matrix()) {
        let first = quantizer(format).encode(x.view()).expect("finite").decode();
        let again = quantizer(format).encode(first.view()).expect("finite").decode();
        prop_assert_eq!(again, first);
    }

    #[test]
    fn powers_of_two_move_exponents_and_leave_the_rest(format in any_format(), x in any_matrix(), k in -20i32..20) {
        let (a, b) = (quantizer(format).encode(x.view()).expect("finite"), quantizer(format).encode((&x * (k as f32).exp2()).view()).expect("finite"));
        for (a, b) in a.blocks().chunks(format.block_bytes()).zip(b.blocks().chunks(format.block_bytes())) {
            prop_assert!(i32::from(b[0]) == i32::from(a[0]) + k || a[0] == 0 && b[0] == 0);
            prop_assert_eq!(&a[1..], &b[1..]);
        }
    }

    #[test]
    fn negated_inputs_decode_to_negated_values(format in any_format(), x in any_matrix()) {
        let decoded = |x: ArrayView2<'_, f32>| quantizer(format).encode(x).expect("finite").decode();
        prop_assert_eq!(decoded((-&x).view()), -decoded(x.view()));
    }

    #[test]
    fn rows_decode_as_the_whole_does(format in any_format(), x in any_matrix(), at in any::<prop::sample::Index>()) {
        prop_assume!(x.nrows() > 0);
        let tensor = quantizer(format).encode(x.view()).expect("finite");
        let (whole, start) = (tensor.decode(), at.index(x.nrows()));
        let mut out = vec![0.0; (x.nrows() - start) * x.ncols()];
        tensor.decode_rows_into(start..x.nrows(), &mut out).expect("rows of the matrix");
        prop_assert_eq!(ArrayView2::from_shape((x.nrows() - start, x.ncols()), &out).expect("as many"), whole.slice(s![start.., ..]));
        let again = quantizer(format).encode(x.slice(s![start.., ..])).expect("finite");
        prop_assert_eq!(again.blocks(), &tensor.blocks()[start * x.ncols() / 16 * format.block_bytes()..]);
    }

    #[test]
    fn any_bytes_decode_by_the_definition_or_are_refused(format in any_format(), bytes in prop::collection::vec(any::<u8>(), 4 * 18)) {
        let bytes = &bytes[..4 * format.block_bytes()];
        let values = || bytes.chunks(format.block_bytes()).flat_map(|block| (0..16).map(move |i| (block, i)));
        let unused = -(1i32 << magnitude_bits(format));
        let is_unused = |(block, i): (&[u8], usize)| {
            let step = value(format, &[&block[..2], &vec![0xff; block.len() - 2]].concat(), i);
            // All ones are the code -1.
            value(format, block, i) == -step * f64::from(unused)
        };
        match SmxTensor::new(format, [2, 32], bytes) {
            Ok(tensor) => {
                prop_assert!(!values().any(is_unused));
                for ((block, i), got) in values().zip(tensor.decode()) {
                    prop_assert_eq!(got, value(format, block, i) as f32);
                }
            }
            Err(error) => {
                let index = values().position(is_unused).expect("a code that is not in use");
                prop_assert_eq!(error, Error::BadCode { what: "blocks", index, value: unused });
            }
        }
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_change_nothing() {
    let x = Array2::from_shape_fn([700, 992], |(r, c)| {
        ((r * 992 + c) as f32 * 0.1).sin() * (1.0 + r as f32)
    });
    for format in SmxFormat::ALL {
        let run = |n_threads| {
            let pool = rayon_core::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build()
                .expect("threads");
            pool.install(|| {
                let tensor = quantizer(format).encode(x.view()).expect("finite");
                let decoded = tensor.decode();
                (tensor, decoded)
            })
        };
        let alone = run(1);
        assert!([2, 3, 4].into_iter().all(|n_threads| run(n_threads) == alone), "{format:?}");
    }
}
