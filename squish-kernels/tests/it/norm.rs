use half::{bf16, f16};
use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa, Real, RmsVariant, layer_norm_into,
    norm::{
        add_layer_norm_in_place_with, add_rms_norm_in_place_with, add_rms_norm_into_with,
        layer_norm_into_with, layer_norm_scalar, rms_norm_in_place_with, rms_norm_into_with,
        rms_norm_scalar,
    },
    rms_norm_into,
};

use crate::common::{edge_lengths, numbers};

const VARIANTS: [(&str, RmsVariant, f32); 3] = [
    ("llama", RmsVariant::Llama, 1e-5),
    ("gemma", RmsVariant::Gemma, 1e-6),
    ("gptoss", RmsVariant::GptOss, 1e-5),
];

/// A storage type as the golden file and the tests see it.
trait Stored: Real + std::fmt::Debug {
    const NAME: &'static str;
    /// Relative error of a result: 4 places of an `f32`, or a rounding to the type at either side of a tie.
    const ERROR: f64;
    fn golden(golden: &Golden, tensor: &str) -> Vec<Self>;
    fn bits(self) -> u32;
}

impl Stored for f32 {
    const NAME: &'static str = "f32";
    const ERROR: f64 = 5e-7;
    fn golden(golden: &Golden, tensor: &str) -> Vec<Self> {
        golden.f32(tensor)
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Stored for bf16 {
    const NAME: &'static str = "bf16";
    const ERROR: f64 = 1.0 / 128.0;
    fn golden(golden: &Golden, tensor: &str) -> Vec<Self> {
        golden.u16(tensor).into_iter().map(Self::from_bits).collect()
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Stored for f16 {
    const NAME: &'static str = "f16";
    const ERROR: f64 = 1.0 / 1024.0;
    fn golden(golden: &Golden, tensor: &str) -> Vec<Self> {
        golden.u16(tensor).into_iter().map(Self::from_bits).collect()
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

fn stored<T: Real>(len: usize, seed: u64) -> Vec<T> {
    numbers(len, seed).into_iter().map(T::from_f32).collect()
}

fn bits<T: Stored>(x: &[T]) -> Vec<u32> {
    x.iter().map(|x| x.bits()).collect()
}

/// Every form of the RMS norm of `x` and of `x + r`: `[norm, fused, residual after it]`, checked to be the same bits.
fn rms_forms<T: Stored>(
    isa: Isa,
    x: &[T],
    r: &[T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) -> [Vec<T>; 3] {
    let mut y = vec![T::default(); x.len()];
    rms_norm_into_with(isa, x, w, eps, variant, &mut y);
    let mut place = x.to_vec();
    rms_norm_in_place_with(isa, &mut place, w, eps, variant);
    assert_eq!(bits(&place), bits(&y), "{isa:?} {variant:?}: in place");

    let (mut fused, mut h) = (x.to_vec(), r.to_vec());
    add_rms_norm_in_place_with(isa, &mut fused, &mut h, w, eps, variant);
    let (mut apart, mut apart_h) = (vec![T::default(); x.len()], r.to_vec());
    add_rms_norm_into_with(isa, x, &mut apart_h, w, eps, variant, &mut apart);
    assert_eq!(bits(&apart), bits(&fused), "{isa:?} {variant:?}: fused in place");
    assert_eq!(bits(&apart_h), bits(&h), "{isa:?} {variant:?}: fused in place");
    rms_norm_into_with(isa, &h, w, eps, variant, &mut apart);
    assert_eq!(bits(&apart), bits(&fused), "{isa:?} {variant:?}: norm of the residual");
    [y, fused, h]
}

fn assert_close<T: Stored>(got: &[T], want: &[f64], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got.to_f32()) - want).abs();
        assert!(error <= T::ERROR * want.abs() + 1e-7, "{what} at {i}: {got:?} {want}");
    }
}

fn wide<T: Real>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

fn golden_rms<T: Stored>() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "ops");
    for set in ["4x256", "3x37"] {
        let tensor = |name: &str| T::golden(&golden, &format!("rms.{set}.{}.{name}", T::NAME));
        let (x, r, w) = (tensor("x"), tensor("r"), tensor("w"));
        for (name, variant, eps) in VARIANTS {
            for isa in Isa::available() {
                let [y, fused, h] = rms_forms(isa, &x, &r, &w, eps, variant);
                let what = format!("{isa:?} {set} {} {name}", T::NAME);
                assert_eq!(bits(&h), bits(&tensor("h")), "{what}");
                let (want, want_fused) =
                    (tensor(&format!("{name}.y")), tensor(&format!("{name}.fused")));
                if T::NAME == "f32" {
                    assert_close(&y, &wide(&want), &what);
                    assert_close(&fused, &wide(&want_fused), &what);
                } else {
                    assert_eq!(bits(&y), bits(&want), "{what}");
                    assert_eq!(bits(&fused), bits(&want_fused), "{what}");
                }
            }
        }
    }
}

#[test]
fn rms_norms_of_16_bit_rows_have_the_bits_of_transformers_on_every_isa() {
    golden_rms::<bf16>();
    golden_rms::<f16>();
}

#[test]
fn rms_norms_of_f32_rows_are_those_of_transformers_on_every_isa() {
    golden_rms::<f32>();
}

#[test]
fn the_variants_round_where_the_published_example_says() {
    let sequence = |a: usize, b: usize| (0..8).map(move |i| ((a * i + b) % 64) as f32 / 32.0 - 1.0);
    let w: Vec<bf16> = sequence(13, 5).map(bf16::from_f32).collect();
    let h: Vec<bf16> =
        sequence(37, 11).zip(sequence(29, 7)).map(|(x, r)| bf16::from_f32(x + r)).collect();
    let llama = [1.171875, -0.265625, 0.039794921875, 0.2734375, 0.61328125, 0.8828125, -0.3671875];
    let gpt_oss = [(1, -0.263671875), (3, 0.271484375), (6, -0.369140625)];
    for isa in Isa::available() {
        let mut y = vec![bf16::ZERO; 8];
        rms_norm_into_with(isa, &h, &w, 1e-5, RmsVariant::Llama, &mut y);
        assert_eq!(wide(&y)[..7], llama, "{isa:?}");
        rms_norm_into_with(isa, &h, &w, 1e-5, RmsVariant::GptOss, &mut y);
        assert!(gpt_oss.iter().all(|&(i, want)| wide(&y)[i] == want), "{isa:?} {y:?}");
    }
}

#[test]
fn layer_norms_of_the_golden_rows_are_torch_s_f64_results() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "ops");
    for set in ["4x256", "3x37"] {
        let tensor = |name: &str| golden.f32(&format!("layer_norm.{set}.{name}"));
        let (x, w, b) = (golden.f32(&format!("rows.{set}.x")), tensor("w"), tensor("b"));
        let want = golden.f64(&format!("layer_norm.{set}.y"));
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            layer_norm_into_with(isa, &x, &w, &b, 1e-5, &mut y);
            for (got, want) in y.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() < 1e-6, "{isa:?} {set}: {got} {want}");
            }
        }
    }
}

fn every_width<T: Stored>() {
    for width in edge_lengths().filter(|&width| width > 0) {
        let (x, r, w) =
            (stored::<T>(3 * width, 1), stored::<T>(3 * width, 2), stored::<T>(width, 3));
        let b = stored::<T>(width, 4);
        for isa in Isa::available() {
            let what = format!("{isa:?} {} {width}", T::NAME);
            for (_, variant, eps) in VARIANTS {
                let [y, fused, h] = rms_forms(isa, &x, &r, &w, eps, variant);
                let norm = |rows: &[T]| -> Vec<f64> {
                    rows.chunks(width)
                        .flat_map(|row| wide(&rms_norm_scalar(row, &w, eps, variant)))
                        .collect()
                };
                assert_close(&y, &norm(&x), &what);
                assert_close(&fused, &norm(&h), &what);
                for ((x, r), h) in x.iter().zip(&r).zip(&h) {
                    assert_eq!(T::from_f32(x.to_f32() + r.to_f32()).bits(), h.bits(), "{what}");
                }
            }
            let mut y = vec![T::default(); x.len()];
            layer_norm_into_with(isa, &x, &w, &b, 1e-5, &mut y);
            for (x, y) in x.chunks(width).zip(y.chunks(width)) {
                for (got, want) in y.iter().zip(layer_norm_scalar(x, &w, &b, 1e-5)) {
                    let error = (f64::from(got.to_f32()) - want).abs();
                    // The bias may cancel what the scaled part has rounded.
                    assert!(error <= T::ERROR * want.abs() + 1e-5, "{what} layer: {got:?} {want}");
                }
            }
            let (mut fused, mut h) = (x.clone(), r.clone());
            add_layer_norm_in_place_with(isa, &mut fused, &mut h, &w, &b, 1e-5);
            layer_norm_into_with(isa, &h, &w, &b, 1e-5, &mut y);
            assert_eq!(bits(&fused), bits(&y), "{what}");
        }
    }
}

#[test]
fn every_isa_agrees_with_the_definition_at_every_block_edge() {
    every_width::<f32>();
    every_width::<bf16>();
    every_width::<f16>();
}

fn rows_stand_alone<T: Stored>(
    width: usize,
    n_rows: usize,
    seed: u64,
) -> Result<(), TestCaseError> {
    let (x, r) = (stored::<T>(n_rows * width, seed), stored::<T>(n_rows * width, !seed));
    let w = stored::<T>(width, 7);
    for isa in Isa::available() {
        for (_, variant, eps) in VARIANTS {
            let together = rms_forms(isa, &x, &r, &w, eps, variant);
            for (i, (x, r)) in x.chunks(width).zip(r.chunks(width)).enumerate() {
                let alone = rms_forms(isa, x, r, &w, eps, variant);
                for (together, alone) in together.iter().zip(&alone) {
                    prop_assert_eq!(
                        bits(&together[i * width..(i + 1) * width]),
                        bits(alone),
                        "{:?} row {}",
                        isa,
                        i
                    );
                }
            }
        }
        let mut together = vec![T::default(); x.len()];
        layer_norm_into_with(isa, &x, &w, &w, 1e-5, &mut together);
        for (x, together) in x.chunks(width).zip(together.chunks(width)) {
            let mut alone = vec![T::default(); width];
            layer_norm_into_with(isa, x, &w, &w, 1e-5, &mut alone);
            prop_assert_eq!(bits(together), bits(&alone), "{:?} layer", isa);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_row_gives_the_same_bits_whatever_its_batch(width in 1..600_usize, n_rows in 1..6_usize, seed: u64) {
        rows_stand_alone::<f32>(width, n_rows, seed)?;
        rows_stand_alone::<bf16>(width, n_rows, seed)?;
        rows_stand_alone::<f16>(width, n_rows, seed)?;
    }
}

#[test]
fn statistics_are_f32_where_squares_exceed_the_storage_type() {
    for isa in Isa::available() {
        let x = [f16::from_f32(300.0); 40];
        let mut y = [f16::ZERO; 40];
        rms_norm_into_with(isa, &x, &[f16::ONE; 40], 1e-5, RmsVariant::Llama, &mut y);
        assert_eq!(y, [f16::ONE; 40], "{isa:?}");
    }
}

#[test]
fn a_row_of_zeros_stays_zero_and_a_nan_spoils_only_its_row() {
    for isa in Isa::available() {
        let mut x = numbers(3 * 50, 5);
        x[..50].fill(0.0);
        x[70] = f32::NAN;
        let [y, ..] = rms_forms(isa, &x, &x, &[1.0; 50], 1e-6, RmsVariant::Llama);
        assert!(y[..50].iter().all(|&y| y == 0.0), "{isa:?}");
        assert!(y[50..100].iter().all(|y| y.is_nan()), "{isa:?}");
        assert!(y[100..].iter().all(|y| y.is_finite()), "{isa:?}");
    }
}

#[test]
fn no_rows_are_no_work() {
    rms_norm_into::<f32>(&[], &[1.0; 8], 1e-5, RmsVariant::Llama, &mut []);
    layer_norm_into::<f32>(&[], &[1.0; 8], &[1.0; 8], 1e-5, &mut []);
}

#[test]
#[should_panic(expected = "10 elements are no whole number of rows of 4")]
fn a_broken_row_is_refused() {
    rms_norm_into(&[0.0; 10], &[1.0; 4], 1e-5, RmsVariant::Llama, &mut [0.0; 10]);
}

#[test]
#[should_panic(expected = "`w` is empty")]
fn an_empty_weight_is_refused() {
    rms_norm_into::<f32>(&[], &[], 1e-5, RmsVariant::Llama, &mut []);
}

#[test]
#[should_panic(expected = "`out` has 4 elements, `x` has 8")]
fn an_output_of_another_length_is_refused() {
    layer_norm_into(&[0.0; 8], &[1.0; 4], &[1.0; 4], 1e-5, &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "`b` and `w` differ in length")]
fn a_bias_of_another_length_is_refused() {
    layer_norm_into(&[0.0; 8], &[1.0; 4], &[1.0; 3], 1e-5, &mut [0.0; 8]);
}
