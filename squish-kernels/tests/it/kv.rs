//! Rows of caches against the definition of each number.

use half::{bf16, f16};
use squish_kernels::{
    Isa, abs_max,
    element::{E4M3, E5M2, Element, Overflow},
    integer,
    kv::{
        KvElement, RowScales, Rows, decode_rows_into, decode_rows_with, encode_rows_into,
        encode_rows_with,
    },
};

use crate::common::{edge_lengths, numbers};

/// Code of a number under a scale; whether its row is finite matters where both are possible.
type Encode<E> = fn(f32, f32, bool) -> E;

fn int8(x: f32, scale: f32, _: bool) -> i8 {
    integer::encode_scalar(x, scale, 0, [-127, 127])
}

fn fp8<E: Element>(x: f32, scale: f32, is_finite: bool) -> E {
    let overflow = if is_finite { Overflow::Saturate } else { Overflow::Ieee };
    E::from_f32(x * (1.0 / scale), overflow)
}

/// Rows with zeros, tiny and large numbers, ties, and some that are not finite.
fn rows(n_rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut x = numbers(n_rows * width, seed);
    for (i, row) in x.chunks_mut(width).enumerate() {
        let last = row.len() - 1;
        match i % 8 {
            1 => row.fill(-0.0),
            2 => row.iter_mut().for_each(|x| *x *= 1e-39),
            3 => row.iter_mut().for_each(|x| *x *= 1e30),
            4 => row[last] = f32::NAN,
            5 => row[0] = f32::NEG_INFINITY,
            6 => row.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 126.5),
            _ => {}
        }
    }
    x
}

fn same_value(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

/// What every row becomes, at each level, for widths at the edges of vectors and for rows with room between them.
fn check<E: KvElement>(encode: Encode<E>) {
    const N: usize = 9;
    for (width, gap) in edge_lengths().filter(|n| (1..=257).contains(n)).zip([0, 5].iter().cycle())
    {
        let stride = width + gap;
        let x = rows(N, stride, width as u64);
        let x = &x[..N * stride - gap];
        let row = |i: usize| &x[i * stride..][..width];
        let input = || Rows { data: x, stride, scales: None };
        for (isa, is_given) in Isa::available().flat_map(|isa| [(isa, false), (isa, true)]) {
            let (mut codes, mut scales) = (vec![E::default(); N * width], vec![-1.0; N]);
            let asked = match (E::LARGEST, is_given) {
                (None, _) => RowScales::None,
                (_, true) => RowScales::Given(0.03),
                (_, false) => RowScales::PerRow(&mut scales),
            };
            encode_rows_with(isa, input(), [N, width], asked, &mut codes);
            for i in 0..N {
                let amax = abs_max(row(i));
                let scale = match (E::LARGEST, is_given) {
                    (None, _) => 1.0,
                    (_, true) => 0.03,
                    (Some(_), _) if amax == 0.0 => 1.0,
                    (Some(_), _) if !amax.is_finite() => f32::NAN,
                    (Some(largest), _) => amax.max(f32::MIN_POSITIVE * largest) / largest,
                };
                if E::LARGEST.is_some() && !is_given {
                    assert!(same_value(scales[i], scale), "{isa:?} {}: scale of {i}", E::NAME);
                }
                for (got, &x) in codes[i * width..].iter().zip(row(i)) {
                    let want = encode(x, scale, amax.is_finite()).to_f32();
                    let got = got.to_f32();
                    assert!(
                        same_value(got, want),
                        "{isa:?} {} {width}: {x} is {got}, not {want}",
                        E::NAME
                    );
                }
            }
            let (mut values, mut plain) = (vec![-1.0; N * width], vec![-1.0; N * width]);
            let stored = Rows { data: &codes, stride: width, scales: Some(&scales) };
            decode_rows_with(isa, stored, [N, width], &mut values);
            decode_rows_with(isa, Rows { scales: None, ..stored }, [N, width], &mut plain);
            for (i, code) in codes.iter().enumerate() {
                let want = code.to_f32();
                assert!(same_value(plain[i], want), "{isa:?} {}", E::NAME);
                assert!(same_value(values[i], want * scales[i / width]), "{isa:?} {}", E::NAME);
            }
        }
    }
}

#[test]
fn every_isa_stores_rows_as_their_definition_says() {
    check::<f32>(|x, _, _| x);
    check::<bf16>(|x, _, _| bf16::from_f32(x));
    check::<f16>(|x, _, _| f16::from_f32(x));
    check::<i8>(int8);
    check::<E4M3>(fp8);
    check::<E5M2>(fp8);
}

#[test]
fn rows_apart_are_read_back_as_rows_in_one_piece() {
    let codes: Vec<i8> = (0..60).collect();
    let scales = [1.0, 0.5, 2.0, 4.0];
    let mut out = [0.0; 20];
    let rows = Rows { data: &codes[..50], stride: 15, scales: Some(&scales) };
    decode_rows_into(rows, [4, 5], &mut out);
    for (i, got) in out.iter().enumerate() {
        assert_eq!(*got, f32::from(codes[i / 5 * 15 + i % 5]) * scales[i / 5]);
    }
}

/// Rows that are scaled by their largest magnitude come back within half a step, and exactly if they are zero.
#[test]
fn scaled_rows_come_back_within_half_a_step() {
    /// `steps` codes between a power of two and the next, if the type has exponents.
    fn check<E: KvElement>(largest: f32, step: impl Fn(f32) -> f32) {
        let x = rows(64, 96, 7);
        let (mut codes, mut scales) = (vec![E::default(); x.len()], vec![0.0; 64]);
        let (mut back, input) = (vec![0.0; x.len()], Rows { data: &x, stride: 96, scales: None });
        encode_rows_into(input, [64, 96], RowScales::PerRow(&mut scales), &mut codes);
        let stored = Rows { data: &codes, stride: 96, scales: Some(&scales) };
        decode_rows_into(stored, [64, 96], &mut back);
        for (i, (&x, &back)) in x.iter().zip(&back).enumerate() {
            let scale = scales[i / 96];
            if scale.is_nan() {
                assert!(back.is_nan());
                continue;
            }
            let most = 0.501 * step((x / scale).abs().min(largest)) * scale;
            assert!((x - back).abs() <= most, "{}: {x} came back as {back}", E::NAME);
        }
        assert!(back[96..2 * 96].iter().all(|&x| x == 0.0), "zeros are zeros");
    }
    let step = |bits: i32, least: i32| {
        move |x: f32| 2f32.powi((x.log2().floor() as i32).max(least) - bits)
    };
    check::<i8>(127.0, |_| 1.0);
    check::<E4M3>(448.0, step(3, -6));
    check::<E5M2>(57344.0, step(2, -14));
}

const fn two_rows() -> Rows<'static, f32> {
    Rows { data: &[0.0; 8], stride: 4, scales: None }
}

#[test]
fn no_rows_are_no_rows() {
    encode_rows_into::<i8>(
        Rows { data: &[], stride: 4, scales: None },
        [0, 4],
        RowScales::PerRow(&mut []),
        &mut [],
    );
    decode_rows_into::<bf16>(Rows { data: &[], stride: 4, scales: None }, [0, 4], &mut []);
}

#[test]
fn wrong_lengths_panic() {
    let x = [0.0_f32; 64];
    let is_refused = |n: usize, stride: usize, dims: [usize; 2], n_out: usize| {
        let encode = move || {
            let rows = Rows { data: &x[..n], stride, scales: None };
            encode_rows_into(rows, dims, RowScales::None, &mut vec![bf16::ZERO; n_out]);
        };
        let decode = move || {
            let rows = Rows { data: &x[..n], stride, scales: None };
            decode_rows_into(rows, dims, &mut vec![0.0; n_out]);
        };
        [std::panic::catch_unwind(encode).is_err(), std::panic::catch_unwind(decode).is_err()]
    };
    assert_eq!(is_refused(8, 4, [2, 4], 8), [false; 2]);
    for (n, stride, dims, n_out) in [
        (8, 4, [2, 4], 7),
        (7, 4, [2, 4], 8),
        (9, 6, [2, 4], 8),
        (8, 3, [2, 4], 8),
        (3, 4, [1, 4], 4),
        (8, 4, [usize::MAX, 8], 8),
    ] {
        assert_eq!(is_refused(n, stride, dims, n_out), [true; 2], "{n} {stride} {dims:?} {n_out}");
    }
    let refuses = |f: fn()| std::panic::catch_unwind(f).is_err();
    assert!(!refuses(|| encode_rows_into(two_rows(), [2, 4], RowScales::None, &mut [0_i8; 8])));
    assert!(refuses(|| {
        encode_rows_into(two_rows(), [2, 4], RowScales::PerRow(&mut [0.0]), &mut [0_i8; 8]);
    }));
    assert!(refuses(|| {
        encode_rows_into(two_rows(), [2, 4], RowScales::Given(1.0), &mut [bf16::ZERO; 8]);
    }));
    assert!(refuses(|| {
        let rows = Rows { data: &[0_i8; 8], stride: 4, scales: Some(&[1.0]) };
        decode_rows_into(rows, [2, 4], &mut [0.0; 8]);
    }));
}
