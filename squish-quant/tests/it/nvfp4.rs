//! NVFP4 against its definition, in both directions of the tensor's scale, and ggml's blocks.

use ndarray::{Array2, ArrayView2, s};
use proptest::prelude::*;
use squish_bench::{alloc::count_allocations, golden::Golden, input};
use squish_quant::{
    Error, GlobalDirection, GlobalScale, NVFP4_BLOCK, NonFinite, NvFp4Quantizer, NvFp4Tensor,
    NvFp4View, error_stats, ggml,
};

const DIRECTIONS: [GlobalDirection; 2] = [GlobalDirection::Multiply, GlobalDirection::Divide];

const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn quantizer(direction: GlobalDirection) -> NvFp4Quantizer {
    NvFp4Quantizer { direction, non_finite: NonFinite::Error }
}

/// E4M3 by its fields.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest E4M3 of a number that is not negative, ties to even, saturated.
fn to_e4m3(x: f32) -> u8 {
    let distance = |code: u8| (f64::from(e4m3(code)) - f64::from(x)).abs();
    let by_distance =
        |a: &u8, b: &u8| distance(*a).total_cmp(&distance(*b)).then((a % 2).cmp(&(b % 2)));
    (0..=0x7e).min_by(by_distance).expect("codes")
}

fn e2m1(code: u8) -> f32 {
    MAGNITUDES[usize::from(code & 7)] * if code & 8 == 0 { 1.0 } else { -1.0 }
}

/// The nearest E2M1, ties to even, saturated.
fn to_e2m1(x: f32) -> u8 {
    let distance = |code: u8| (f64::from(e2m1(code)) - f64::from(x.abs())).abs();
    let by_distance =
        |a: &u8, b: &u8| distance(*a).total_cmp(&distance(*b)).then((a % 2).cmp(&(b % 2)));
    let magnitude = (0..8).min_by(by_distance).expect("codes");
    magnitude | if x.is_sign_negative() { 8 } else { 0 }
}

fn total(global: GlobalScale, scale: f32) -> f32 {
    match global {
        GlobalScale::Multiply(factor) => scale * factor,
        GlobalScale::Divide(divisor) => scale / divisor,
    }
}

/// The scale of a tensor by the definition.
fn global(direction: GlobalDirection, x: &[f32]) -> GlobalScale {
    let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
    let amax = if amax == 0.0 { 2688.0 } else { amax.max(2688.0 * 2f32.powi(-117)) };
    match direction {
        GlobalDirection::Multiply => GlobalScale::Multiply(amax / 2688.0),
        GlobalDirection::Divide => GlobalScale::Divide(2688.0 / amax),
    }
}

/// Scale and codes of a block by the definition.
fn encoded(global: GlobalScale, x: &[f32]) -> (u8, Vec<u8>) {
    let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
    let scale = to_e4m3(match global {
        GlobalScale::Multiply(factor) => amax / 6.0 / factor,
        GlobalScale::Divide(divisor) => amax / 6.0 * divisor,
    });
    let reciprocal = if scale == 0 { 0.0 } else { 1.0 / total(global, e4m3(scale)) };
    (scale, x.iter().map(|x| to_e2m1(x * reciprocal)).collect())
}

fn codes_of(tensor: &NvFp4Tensor) -> Vec<u8> {
    tensor.codes().iter().flat_map(|byte| [byte & 0xf, byte >> 4]).collect()
}

fn assert_encoded(tensor: &NvFp4Tensor, global: GlobalScale, x: &[f32]) {
    assert_eq!(tensor.global(), global);
    let codes = codes_of(tensor);
    for (i, x) in x.chunks(NVFP4_BLOCK).enumerate() {
        let (scale, want) = encoded(global, x);
        assert_eq!(tensor.scales()[i], scale, "{global:?}: scale of {x:?}");
        assert_eq!(codes[16 * i..][..16], want, "{global:?}, scale {scale:#04x}: codes of {x:?}");
    }
}

fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

#[test]
fn every_code_decodes_to_its_definition_under_every_scale_and_both_directions() {
    // All pairs of codes, 512 elements a row, under every block scale.
    let codes: Vec<u8> = (0..=u8::MAX).collect();
    let scales: Vec<u8> = (0..=u8::MAX).flat_map(|scale| [scale; 32]).collect();
    for global in [
        GlobalScale::Multiply(1.0),
        GlobalScale::Multiply(0.37),
        GlobalScale::Multiply(0.0),
        GlobalScale::Multiply(3e-41),
        GlobalScale::Divide(1.0),
        GlobalScale::Divide(2711.3),
        GlobalScale::Divide(3e38),
    ] {
        let tensor =
            NvFp4Tensor::new([256, 512], codes.repeat(256), &scales[..], global).expect("fits");
        for ((row, col), got) in tensor.decode().indexed_iter() {
            let code = codes[col / 2] >> (4 * (col % 2)) & 0xf;
            let want = e2m1(code) * total(global, e4m3(row as u8));
            assert!(same(*got, want), "{global:?}, {row:#04x}, {code}: {got:e}, not {want:e}");
        }
    }
}

#[test]
fn every_boundary_of_scales_and_of_elements_is_rounded_as_the_definition_says() {
    // A factor of one: the largest magnitude of a block over 6 is what becomes its scale.
    let global = GlobalScale::Multiply(1.0);
    let mut x = Vec::new();
    for code in 0..0x7e {
        let (low, high) = (e4m3(code), e4m3(code + 1));
        let tie = f32::midpoint(low, high) * 6.0;
        for amax in [tie.next_down(), tie, tie.next_up(), low * 6.0, high * 6.0] {
            // Behind it every boundary of elements under the scale that it should get, and their neighbors.
            let scale = e4m3(to_e4m3(amax / 6.0));
            for pair in MAGNITUDES.windows(2) {
                let middle = f32::midpoint(pair[0], pair[1]) * scale;
                let of_pair = [middle.next_down(), middle, middle.next_up(), pair[1] * scale];
                let mut block = [0.0; NVFP4_BLOCK];
                block[0] = amax;
                for (i, v) in of_pair.into_iter().enumerate() {
                    (block[2 * i + 1], block[2 * i + 2]) = (v.min(amax), -v.min(amax));
                }
                x.extend(block);
            }
        }
    }
    let matrix = ArrayView2::from_shape((1, x.len()), &x).expect("a row");
    let tensor = quantizer(GlobalDirection::Multiply).encode_with_global(matrix, global);
    assert_encoded(&tensor.expect("finite"), global, &x);
}

#[test]
fn tensors_of_torchao_and_compressed_tensors_are_encoded_and_decoded_as_there() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "formats");
    let x = Array2::from_shape_vec((32, 128), golden.f32("nvfp4.x")).expect("a matrix");
    let (scales, codes, exact) =
        (golden.u8("nvfp4.scales"), golden.u8("nvfp4.codes"), golden.u8("nvfp4.exact"));
    let factor = GlobalScale::Multiply(golden.f32("nvfp4.global")[0]);
    let tensor = quantizer(GlobalDirection::Multiply).encode(x.view()).expect("finite");
    assert_eq!(tensor.global(), factor);
    // Where torchao departs: it raises small scales, and multiplies by another reciprocal.
    let n_exact: usize = exact.iter().map(|exact| usize::from(*exact)).sum();
    assert!(n_exact > 230 && n_exact < 256, "{n_exact} of 256 blocks");
    for i in (0..256).filter(|&i| exact[i] == 1) {
        assert_eq!(tensor.scales()[i], scales[i], "block {i}");
        assert_eq!(tensor.codes()[8 * i..][..8], codes[8 * i..][..8], "block {i}");
    }
    let divisor = GlobalScale::Divide(golden.f32("nvfp4.divisor")[0]);
    for (global, name) in [(factor, "nvfp4.decoded"), (divisor, "nvfp4.divided")] {
        let view = NvFp4View::new([32, 128], &codes, &scales, global).expect("fits");
        for (i, (got, want)) in view.decode().iter().zip(golden.f32(name)).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{name} {i}: {got:e}, not {want:e}");
        }
    }
}

#[test]
fn ggml_blocks_decode_as_in_gguf() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "formats");
    let bytes = golden.u8("ggml.bytes");
    let tensor = ggml::nvfp4_from_blocks(&bytes, [256, 64], GlobalScale::Multiply(1.0));
    let tensor = tensor.expect("whole blocks");
    assert_eq!(ggml::nvfp4_to_blocks(&tensor).as_deref(), Ok(&bytes[..]));
    for (i, (got, want)) in tensor.decode().iter().zip(golden.f32("ggml.decoded")).enumerate() {
        // ggml has no NaN and no sign of scales: 0x7f is zero, and 0xff the largest number there is.
        let scale = tensor.scales()[i / 16];
        match scale {
            0x7f | 0xff => assert!(got.is_nan(), "{scale:#04x}"),
            0..0x80 => assert_eq!(*got, want, "{scale:#04x}"),
            _ => assert_eq!(*got, -want, "{scale:#04x}"),
        }
    }
}

#[test]
fn normal_weights_lose_what_the_specification_measured() {
    // The matrix of the table in `specs/quant.md`, 1.3.
    let x = Golden::load(env!("CARGO_MANIFEST_DIR"), "formats").f32("normal.x");
    for direction in DIRECTIONS {
        let tensor = quantizer(direction)
            .encode(ArrayView2::from_shape((128, 128), &x).expect("square"))
            .expect("finite");
        let decoded = tensor.decode();
        let stats = error_stats(&x, decoded.as_slice().expect("standard layout")).expect("finite");
        assert!((stats.snr_db - 20.44).abs() < 0.01, "{direction:?}: {stats}");
        assert_eq!(tensor.bits_per_weight(), 4.5 + 32.0 / 16384.0);
    }
}

#[test]
fn tensors_of_any_magnitude_keep_their_largest_element() {
    for exponent in [-149, -140, -126, -118, -106, -105, -90, -1, 0, 3, 90, 127] {
        // Subnormal numbers below 2^-147 have no room for the fraction.
        let fraction = if exponent < -147 { 1.0 } else { 1.75 };
        let amax = (fraction * 2f64.powi(exponent)) as f32;
        let x = Array2::from_shape_fn([3, 48], |(r, c)| {
            if (r, c) == (1, 17) { -amax } else { amax * ((r * 48 + c) as f32 / 150.0) }
        });
        for direction in DIRECTIONS {
            let tensor = quantizer(direction).encode(x.view()).expect("finite");
            let slice = x.as_slice().expect("standard layout");
            assert_encoded(&tensor, global(direction, slice), slice);
            if exponent > -106 {
                let largest = tensor.decode()[[1, 17]];
                assert!(
                    (largest / amax + 1.0).abs() < 1e-6,
                    "{direction:?}: {amax:e}: {largest:e}"
                );
            }
        }
    }
}

#[test]
fn zero_tensors_and_zero_blocks_have_scales_of_zero() {
    for (direction, one) in [
        (GlobalDirection::Multiply, GlobalScale::Multiply(1.0)),
        (GlobalDirection::Divide, GlobalScale::Divide(1.0)),
    ] {
        let tensor = quantizer(direction).encode(Array2::zeros([2, 32]).view()).expect("finite");
        assert_eq!((tensor.global(), tensor.scales()), (one, &[0; 4][..]));
        assert_eq!(tensor.decode(), Array2::<f32>::zeros([2, 32]));
        let mut x = Array2::zeros([2, 32]);
        // Beside 448, the block of what is less than half of the smallest scale decodes to zeros.
        (x[[0, 3]], x[[1, 20]]) = (2688.0f32, -6.0 * 2f32.powi(-10));
        let tensor = quantizer(direction).encode(x.view()).expect("finite");
        assert_eq!(tensor.scales(), [0x7e, 0, 0, 0]);
        x[[1, 20]] = 0.0;
        assert_eq!(tensor.decode(), x);
    }
}

#[test]
fn non_finite_inputs_are_refused_poison_their_block_or_saturate() {
    let mut x = Array2::from_shape_fn([2, 48], |(r, c)| (r * 48 + c) as f32 / 50.0 - 1.0);
    let largest = 1.0;
    (x[[0, 0]], x[[1, 47]]) = (-largest, 0.9);
    let clean = x.clone();
    (x[[0, 40]], x[[1, 3]], x[[1, 4]]) = (f32::NAN, f32::NEG_INFINITY, -f32::NAN);
    for direction in DIRECTIONS {
        let with = |non_finite| NvFp4Quantizer { direction, non_finite };
        let refused = with(NonFinite::Error).encode(x.view());
        assert!(
            matches!(refused, Err(Error::NonFinite { index: 40, value }) if value.is_nan()),
            "{refused:?}"
        );
        let (mut codes, mut scales) = (vec![9; 48], vec![9; 6]);
        let global = with(NonFinite::Error).encode(clean.view()).expect("finite").global();
        let quantizer = with(NonFinite::Error);
        assert!(quantizer.encode_into(x.view(), &mut codes, &mut scales).is_err());
        assert!(quantizer.encode_with_global(x.view(), global).is_err());
        let refused = quantizer.encode_with_global_into(x.view(), global, &mut codes, &mut scales);
        assert!(refused.is_err() && codes.iter().chain(&scales).all(|&byte| byte == 9));

        let poisoned = with(NonFinite::Poison).encode(x.view()).expect("poisoned");
        let want = with(NonFinite::Error).encode(clean.view()).expect("finite");
        assert_eq!(poisoned.global(), want.global());
        for block in 0..6 {
            let part = |tensor: &NvFp4Tensor| {
                (tensor.scales()[block], tensor.codes()[8 * block..][..8].to_vec())
            };
            let want = if matches!(block, 2 | 3) { (0x7f, vec![0; 8]) } else { part(&want) };
            assert_eq!(part(&poisoned), want, "{direction:?}, block {block}");
        }
        for ((row, col), value) in poisoned.decode().indexed_iter() {
            assert_eq!(value.is_nan(), matches!((row, col / 16), (0, 2) | (1, 0)));
        }

        let saturated = with(NonFinite::Saturate).encode(x.view()).expect("saturated");
        let decoded = saturated.decode();
        assert_eq!((decoded[[0, 40]], decoded[[1, 4]]), (0.0, 0.0), "NaN becomes zero");
        let scale = total(saturated.global(), e4m3(saturated.scales()[3]));
        assert_eq!(decoded[[1, 3]], -6.0 * scale);

        let alone = Array2::from_elem([1, 16], f32::INFINITY);
        let saturated = with(NonFinite::Saturate).encode(alone.view()).expect("saturated");
        assert_eq!(saturated.decode(), Array2::<f32>::zeros([1, 16]));
    }
}

#[test]
fn scales_and_buffers_that_do_not_fit_are_refused_with_the_numbers() {
    let new = |shape, n_codes, n_scales, global| {
        NvFp4Tensor::new(shape, vec![0; n_codes], vec![0; n_scales], global).map(|_| ())
    };
    let one = GlobalScale::Multiply(1.0);
    assert_eq!(new([3, 48], 72, 9, one), Ok(()));
    for len in (0..72).chain([73]) {
        let error = Error::Length { what: "codes", expected: 72, actual: len };
        assert_eq!(new([3, 48], len, 9, one), Err(error));
    }
    for len in (0..9).chain([10]) {
        let error = Error::Length { what: "scales", expected: 9, actual: len };
        assert_eq!(new([3, 48], 72, len, one), Err(error));
    }
    assert_eq!(new([3, 47], 0, 0, one), Err(Error::BlockAlign { len: 47, block: 16 }));
    for shape in [[usize::MAX, 16], [usize::MAX, 0], [0, 1 << (usize::BITS - 1)]] {
        assert_eq!(new(shape, 0, 0, one), Err(Error::TooLarge { shape }));
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        for global in [GlobalScale::Multiply(bad), GlobalScale::Divide(bad)] {
            let refused = new([1, 16], 8, 1, global);
            assert!(matches!(refused, Err(Error::BadScale { index: 0, .. })), "{global:?}");
            let x = Array2::ones([1, 16]);
            let refused = NvFp4Quantizer::default().encode_with_global(x.view(), global);
            assert!(matches!(refused, Err(Error::BadScale { index: 0, .. })), "{global:?}");
        }
    }
    let bad = |value| Err(Error::BadScale { index: 0, value });
    assert_eq!(new([1, 16], 8, 1, GlobalScale::Multiply(0.0)), Ok(()));
    assert_eq!(new([1, 16], 8, 1, GlobalScale::Divide(0.0)), bad(0.0));
    // Encoding needs reciprocals: of the smallest scale and of the largest.
    let encode = |global| {
        NvFp4Quantizer::default().encode_with_global(Array2::ones([1, 16]).view(), global).map(drop)
    };
    let least = 2f32.powi(-117);
    for (ok, beyond) in [(least, least * 0.99), (f32::MAX / 449.0, f32::MAX / 447.0)] {
        assert_eq!(encode(GlobalScale::Multiply(ok)), Ok(()));
        assert_eq!(encode(GlobalScale::Multiply(beyond)), bad(beyond));
    }
    let (least, most) = (448.0 / f32::MAX, 2f32.powi(117));
    for (ok, beyond) in [(least * 1.001, least * 0.999), (most, most * 1.001)] {
        assert_eq!(encode(GlobalScale::Divide(ok)), Ok(()));
        assert_eq!(encode(GlobalScale::Divide(beyond)), bad(beyond));
    }
    let quantizer = NvFp4Quantizer::default();
    let refused = quantizer.encode_into(Array2::zeros([2, 16]).view(), &mut [0; 16], &mut [0; 3]);
    assert_eq!(refused, Err(Error::Length { what: "scales", expected: 2, actual: 3 }));
    let wide = Array2::zeros([16, 32]);
    let refused = quantizer.encode_into(wide.t(), &mut [], &mut []);
    assert_eq!(refused, Err(Error::Layout { what: "x", stride: 32 }));
    for shape in [[0, 16], [4, 0], [0, 0], [isize::MAX as usize, 0]] {
        let empty = quantizer.encode(Array2::zeros(shape).view()).expect("nothing to refuse");
        assert_eq!((empty.decode().dim(), empty.global()), (shape.into(), one));
        assert_eq!((empty.n_bytes(), empty.bits_per_weight()), (4, f64::INFINITY));
    }
}

#[test]
fn calls_into_buffers_give_what_the_others_give_and_allocate_nothing() {
    let x = Array2::from_shape_fn([64, 48], |(r, c)| (r as f32).sin() * (c as f32).cos());
    let (mut codes, mut scales, mut out) =
        (vec![0; 64 * 24], vec![0; 64 * 3], Array2::zeros([64, 48]));
    for direction in DIRECTIONS {
        let quantizer = quantizer(direction);
        let want = quantizer.encode(x.view()).expect("finite");
        quantizer.encode_into(x.view(), &mut codes, &mut scales).expect("finite");
        let (global, n) = count_allocations(|| {
            let global = quantizer.encode_into(x.view(), &mut codes, &mut scales).expect("finite");
            let view = NvFp4View::new([64, 48], &codes, &scales, global).expect("valid");
            view.decode_into(out.view_mut()).expect("same shape");
            global
        });
        assert_eq!((n, global), (0, want.global()));
        assert_eq!((&codes[..], &scales[..]), (want.codes(), want.scales()));
        assert_eq!(out, want.decode());
        codes.fill(1);
        scales.fill(1);
        let given = quantizer.encode_with_global_into(x.view(), global, &mut codes, &mut scales);
        assert_eq!(given, Ok(()));
        assert_eq!((&codes[..], &scales[..]), (want.codes(), want.scales()));
        let reversed = x.slice(s![..;-1, ..;-1]);
        let copied = quantizer.encode(reversed.as_standard_layout().view());
        assert_eq!(quantizer.encode(reversed), copied);
    }
}

#[test]
fn ggml_blocks_hold_every_element_where_ggml_reads_it() {
    let mut rng = input::Rng::new(5);
    let shape = [3, 128];
    let mut bytes = |n| -> Vec<u8> { (0..n).map(|_| rng.bits() as u8).collect() };
    let (codes, scales) = (bytes(3 * 64), bytes(3 * 8));
    let global = GlobalScale::Multiply(0.25);
    let tensor = NvFp4Tensor::new(shape, codes, scales, global).expect("fits");
    let blocks = ggml::nvfp4_to_blocks(&tensor).expect("whole blocks");
    assert_eq!(blocks.len(), 6 * 36);
    let decoded = tensor.decode();
    for (block, bytes) in blocks.chunks(36).enumerate() {
        for (group, j) in (0..4).flat_map(|group| (0..8).map(move |j| (group, j))) {
            // ggml: doubled elements times half a scale; 0x7f is zero, and the sign of scales is not read.
            let scale = bytes[group];
            let half = if scale == 0x7f { 0.0 } else { e4m3(scale & 0x7f) / 2.0 };
            let byte = bytes[4 + 8 * group + j];
            for (code, at) in [(byte & 0xf, j), (byte >> 4, j + 8)] {
                let want = 2.0 * e2m1(code) * half * 0.25;
                let col = 64 * (block % 2) + 16 * group + at;
                let got = decoded[[block / 2, col]];
                match scale {
                    0x7f | 0xff => assert!(got.is_nan(), "{scale:#04x}"),
                    0..0x80 => assert_eq!(got, want, "{scale:#04x}"),
                    _ => assert_eq!(got, -want, "{scale:#04x}"),
                }
            }
        }
    }
    assert_eq!(ggml::nvfp4_from_blocks(&blocks, shape, global), Ok(tensor));

    let from = |n: usize, shape| {
        ggml::nvfp4_from_blocks(&vec![0; n], shape, GlobalScale::Multiply(1.0)).map(|_| ())
    };
    for n in (0..72).chain([73]) {
        let error = Error::Length { what: "bytes", expected: 72, actual: n };
        assert_eq!(from(n, [2, 64]), Err(error));
    }
    assert_eq!(from(72, [1, 96]), Err(Error::BlockAlign { len: 96, block: 64 }));
    let shape = [usize::MAX, 64];
    assert_eq!(from(0, shape), Err(Error::TooLarge { shape }));
    let tensor = NvFp4Quantizer::default().encode(Array2::zeros([1, 48]).view()).expect("finite");
    let misaligned = Error::BlockAlign { len: 48, block: 64 };
    assert_eq!(ggml::nvfp4_to_blocks(&tensor), Err(misaligned));
    let bad = ggml::nvfp4_from_blocks(&[0; 36], [1, 64], GlobalScale::Divide(0.0)).map(|_| ());
    assert_eq!(bad, Err(Error::BadScale { index: 0, value: 0.0 }));
}

fn any_direction() -> impl Strategy<Value = GlobalDirection> {
    prop::sample::select(&DIRECTIONS[..])
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
    fn tensors_are_their_definition(direction in any_direction(), x in any_matrix()) {
        let tensor = quantizer(direction).encode(x.view()).expect("finite");
        let x = x.as_slice().expect("standard layout");
        assert_encoded(&tensor, global(direction, x), x);
    }

    #[test]
    fn what_was_decoded_encodes_to_itself_while_its_blocks_use_their_scales(direction in any_direction(), seed in any::<u64>()) {
        // Blocks whose scales are normal numbers: their largest element is the largest code.
        let x = input::normal(8 * 64, seed);
        let first = quantizer(direction).encode(ArrayView2::from_shape((8, 64), &x).expect("whole blocks")).expect("finite");
        let again = quantizer(direction).encode_with_global(first.decode().view(), first.global()).expect("finite");
        prop_assert_eq!(again, first);
    }

    #[test]
    fn powers_of_two_move_the_scale_of_the_tensor_alone(direction in any_direction(), x in any_matrix(), k in -20i32..20) {
        prop_assume!(x.iter().any(|x| *x != 0.0));
        let power = (k as f32).exp2();
        let (a, b) = (quantizer(direction).encode(x.view()).expect("finite"), quantizer(direction).encode((&x * power).view()).expect("finite"));
        prop_assert_eq!((a.codes(), a.scales()), (b.codes(), b.scales()));
        match direction {
            GlobalDirection::Multiply => prop_assert_eq!(b.global().value(), a.global().value() * power),
            GlobalDirection::Divide => prop_assert_eq!(b.global().value(), a.global().value() / power),
        }
    }

    #[test]
    fn negated_inputs_have_negated_codes(direction in any_direction(), x in any_matrix()) {
        let (a, b) = (quantizer(direction).encode(x.view()).expect("finite"), quantizer(direction).encode((-&x).view()).expect("finite"));
        prop_assert_eq!((a.scales(), a.global()), (b.scales(), b.global()));
        prop_assert!(a.codes().iter().zip(b.codes()).all(|(a, b)| a ^ 0x88 == *b));
    }

    #[test]
    fn rows_decode_as_the_whole_does(direction in any_direction(), x in any_matrix(), at in any::<prop::sample::Index>()) {
        prop_assume!(x.nrows() > 0);
        let tensor = quantizer(direction).encode(x.view()).expect("finite");
        let (whole, start) = (tensor.decode(), at.index(x.nrows()));
        let mut out = vec![0.0; (x.nrows() - start) * x.ncols()];
        tensor.decode_rows_into(start..x.nrows(), &mut out).expect("rows of the matrix");
        prop_assert_eq!(ArrayView2::from_shape((x.nrows() - start, x.ncols()), &out).expect("as many"), whole.slice(s![start.., ..]));
        let again = quantizer(direction).encode_with_global(x.slice(s![start.., ..]), tensor.global()).expect("finite");
        prop_assert_eq!(again.scales(), &tensor.scales()[start * x.ncols() / 16..]);
    }
}

#[test]
fn matrices_beyond_the_caches_are_encoded_and_decoded_as_their_rows_are() {
    let shape = [2400, 2400];
    let mut rng = input::Rng::new(3);
    let x = Array2::from_shape_simple_fn(shape, || (rng.uniform() - 0.5) * rng.uniform());
    let tensor = quantizer(GlobalDirection::Multiply).encode(x.view()).expect("finite");
    let whole = tensor.decode();
    for first in (0..shape[0]).step_by(97) {
        let rows = first..(first + 3).min(shape[0]);
        let part = quantizer(GlobalDirection::Multiply)
            .encode_with_global(x.slice(s![rows.clone(), ..]), tensor.global())
            .expect("finite");
        assert_eq!(part.codes(), &tensor.codes()[rows.start * 1200..rows.end * 1200], "{rows:?}");
        assert_eq!(part.scales(), &tensor.scales()[rows.start * 150..rows.end * 150], "{rows:?}");
        assert_eq!(part.decode(), whole.slice(s![rows.clone(), ..]), "{rows:?}");
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_change_nothing() {
    let mut rng = input::Rng::new(9);
    let x = Array2::from_shape_simple_fn([700, 992], || (rng.uniform() - 0.5) * rng.uniform());
    for direction in DIRECTIONS {
        let run = |n_threads| {
            let pool = rayon_core::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build()
                .expect("threads");
            pool.install(|| {
                let tensor = quantizer(direction).encode(x.view()).expect("finite");
                let decoded = tensor.decode();
                (tensor, decoded)
            })
        };
        let alone = run(1);
        assert!([2, 3].into_iter().all(|n_threads| run(n_threads) == alone), "{direction:?}");
    }
}
