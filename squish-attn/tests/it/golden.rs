//! Rotary embeddings against transformers 5.23.

use squish_attn::{
    InvFreq, LengthRule, RopeConfig, RopeLayout, RopeMode, RopeOptions, RopeTable, ndarray::Array3,
};
use squish_bench::golden::Golden;
use squish_kernels::rope_in_place;

/// Cases of `tools/golden/rope.py`.
const CASES: [&str; 26] = [
    "default_64",
    "default_128",
    "partial",
    "linear",
    "dynamic_short",
    "dynamic_8192",
    "dynamic_32768",
    "ntk_aware",
    "yarn",
    "yarn_null_factor",
    "yarn_qwen",
    "yarn_deepseek",
    "yarn_mscale",
    "yarn_gpt_oss",
    "yarn_truncated",
    "llama3_8b",
    "llama3_1b",
    "longrope_short",
    "longrope_long",
    "longrope_phi3_yarn",
    "longrope_factor",
    "proportional",
    "gemma3_full",
    "gemma3_sliding",
    "nested_full",
    "nested_sliding",
];

fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "rope")
}

fn config(golden: &Golden, case: &str) -> RopeConfig {
    let json = golden.u8(&format!("{case}.config"));
    let layer_type = golden.u8(&format!("{case}.layer_type"));
    let config = match std::str::from_utf8(&layer_type).expect("a name") {
        "" => RopeConfig::from_hf_json(&json),
        layer_type => RopeConfig::from_hf_json_of(&json, layer_type),
    };
    config.unwrap_or_else(|error| panic!("{case}: {error}"))
}

fn inv_freq(golden: &Golden, case: &str, mode: RopeMode) -> InvFreq {
    let seq_len = golden.i64(&format!("{case}.seq_len"))[0] as usize;
    InvFreq::new(&config(golden, case), seq_len, mode).expect("a valid configuration")
}

/// Places of an `f32` between two numbers of the same sign.
fn places(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn frequencies_of_every_configuration_are_those_of_transformers() {
    let golden = golden();
    for case in CASES {
        let (got, want) =
            (inv_freq(&golden, case, RopeMode::HfF32), golden.f32(&format!("{case}.inv_freq")));
        let got: Vec<f32> = got.values().iter().map(|&value| value as f32).collect();
        assert_eq!(got.len(), want.len(), "{case}");
        // Torch's power is not the nearest float of each.
        let n_differ = got.iter().zip(&want).filter(|(got, want)| got != want).count();
        assert!(n_differ <= 5, "{case}: {n_differ} of {} differ", want.len());
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            assert!(places(got, want) <= 1, "{case}, frequency {i}: {got:e} {want:e}");
        }
    }
}

#[test]
fn exact_frequencies_are_those_of_transformers_in_f64() {
    let golden = golden();
    for case in CASES {
        let (got, want) = (
            inv_freq(&golden, case, RopeMode::Exact),
            golden.f64(&format!("{case}.exact_inv_freq")),
        );
        assert_eq!(got.values().len(), want.len(), "{case}");
        for (i, (got, &want)) in got.values().iter().zip(&want).enumerate() {
            // Two powers, each right to a few last places.
            assert!((got - want).abs() <= 1e-14 * want, "{case}, frequency {i}: {got:e} {want:e}");
        }
    }
}

#[test]
fn attention_factors_are_those_of_transformers() {
    let golden = golden();
    for case in CASES {
        let want = golden.f64(&format!("{case}.attention_factor"))[0];
        let got = config(&golden, case).attention_factor();
        assert!((got - want).abs() <= 1e-15 * want, "{case}: {got} {want}");
    }
}

/// The positions of the golden tables that a table is made for.
fn positions(golden: &Golden, case: &str) -> Vec<usize> {
    // Long tables take their time, under emulation above all: one of each scaling.
    let is_long = [
        "default_64",
        "linear",
        "dynamic_32768",
        "ntk_aware",
        "yarn_qwen",
        "llama3_8b",
        "longrope_long",
        "proportional",
    ]
    .contains(&case);
    let most = if is_long { usize::MAX } else { 8191 };
    let all = golden.i64("positions").into_iter().map(|position| position as usize);
    all.filter(|&position| position <= most).collect()
}

/// Of each position, the cosines and then the sines, made ready by `table`.
fn rows<'a>(table: &'a mut RopeTable, positions: &[usize]) -> Vec<(&'a [f32], &'a [f32])> {
    let longest = positions.iter().max().expect("a position");
    table.extend_to(longest + 1).expect("memory for the table");
    positions.iter().map(|&position| table.row(position).expect("ready")).collect()
}

/// The table is transformers' at every position, for the frequencies that `is_compared`.
fn assert_table(
    golden: &Golden,
    case: &str,
    mut table: RopeTable,
    is_compared: impl Fn(usize) -> bool,
) {
    let positions = positions(golden, case);
    let (cos, sin) = (golden.f32(&format!("{case}.cos")), golden.f32(&format!("{case}.sin")));
    let half = cos.len() / golden.shape("positions")[0];
    let want = cos.chunks(half).zip(sin.chunks(half));
    for ((got, want), position) in
        rows(&mut table, &positions).into_iter().zip(want).zip(&positions)
    {
        for i in (0..half).filter(|&i| is_compared(i)) {
            for (got, want) in [(got.0[i], want.0[i]), (got.1[i], want.1[i])] {
                assert!((got - want).abs() <= 1.2e-7, "{case} at {position}, {i}: {got} {want}");
            }
        }
    }
}

fn options(golden: &Golden, case: &str, mode: RopeMode) -> RopeOptions {
    let length = LengthRule::Pinned(golden.i64(&format!("{case}.seq_len"))[0] as usize);
    RopeOptions { mode, length }
}

#[test]
fn tables_of_the_same_frequencies_are_those_of_transformers_at_every_position() {
    let golden = golden();
    for case in CASES {
        let factor = golden.f64(&format!("{case}.attention_factor"))[0];
        let freqs = InvFreq::from_values(&golden.f32(&format!("{case}.inv_freq")), factor)
            .expect("finite frequencies");
        let head_dim = 2 * freqs.values().len();
        let table = RopeTable::from_inv_freq(freqs, head_dim).expect("as wide as the heads");
        assert_table(&golden, case, table, |_| true);
    }
}

#[test]
fn tables_of_configurations_are_those_of_transformers_where_the_frequencies_are() {
    let golden = golden();
    for case in CASES {
        let options = options(&golden, case, RopeMode::HfF32);
        let table = RopeTable::new(config(&golden, case), options).expect("valid");
        let freqs = table.inv_freq().values().to_vec();
        let want = golden.f32(&format!("{case}.inv_freq"));
        assert_table(&golden, case, table, |i| freqs[i] == f64::from(want[i]));
    }
}

#[test]
fn heads_rotated_by_the_same_table_have_the_bits_of_transformers() {
    let golden = golden();
    let x = golden.f32("apply.x");
    for (form, layout) in [
        ("half", RopeLayout::HalfSplit),
        ("interleaved", RopeLayout::Interleaved),
        ("deepseek", RopeLayout::Interleaved),
    ] {
        let tensor = |name: &str| golden.f32(&format!("apply.{form}.{name}"));
        let (cos, sin) = (tensor("cos"), tensor("sin"));
        let half = cos.len() / 5;
        let rows = cos.chunks(half).zip(sin.chunks(half));
        let table: Vec<f32> = rows.flat_map(|(cos, sin)| [cos, sin].concat()).collect();
        let mut got = x.clone();
        rope_in_place(&mut got, 64, &table, 2 * half, &[0, 1, 2, 3, 4], layout);
        if form == "deepseek" {
            // That code leaves the first elements of all pairs before the second ones.
            for head in got.chunks_mut(64) {
                let copy = head.to_vec();
                for (i, x) in head.iter_mut().enumerate() {
                    *x = copy[2 * (i % 32) + i / 32];
                }
            }
        }
        assert_eq!(got, tensor("y"), "{form}");
    }
}

#[test]
fn tables_rotate_heads_as_transformers_does() {
    let golden = golden();
    let positions: Vec<usize> =
        golden.i64("apply.positions").iter().map(|&position| position as usize).collect();
    for (form, case, layout) in [
        ("half", "default_64", RopeLayout::HalfSplit),
        ("interleaved", "partial", RopeLayout::Interleaved),
        ("deepseek", "yarn_mscale", RopeLayout::Interleaved),
    ] {
        let factor = golden.f64(&format!("{case}.attention_factor"))[0];
        let freqs = InvFreq::from_values(&golden.f32(&format!("{case}.inv_freq")), factor)
            .expect("finite frequencies");
        let mut table = RopeTable::from_inv_freq(freqs, 64).expect("fits");
        table.extend_to(4096).expect("memory for the table");
        let mut got =
            Array3::from_shape_vec((5, 3, 64), golden.f32("apply.x")).expect("5 x 3 x 64");
        table.apply_in_place(got.view_mut(), &positions, layout).expect("ready");
        let want = golden.f32(&format!("apply.{form}.y"));
        let want = Array3::from_shape_vec((5, 3, 64), want).expect("5 x 3 x 64");
        for ((row, head, i), want) in want.indexed_iter() {
            // DeepSeek's leaves the first elements of all pairs before the second ones.
            let i = if form == "deepseek" { 2 * (i % 32) + i / 32 } else { i };
            let got = got[[row, head, i]];
            assert!((got - want).abs() <= 1e-6, "{form} [{row}, {head}, {i}]: {got} {want}");
        }
    }
}

#[test]
fn exact_tables_are_the_cosines_and_sines_of_exact_angles_for_every_configuration() {
    let golden = golden();
    for case in CASES {
        let positions = positions(&golden, case);
        let factor = golden.f64(&format!("{case}.attention_factor"))[0];
        let freqs = golden.f64(&format!("{case}.exact_inv_freq"));
        let options = options(&golden, case, RopeMode::Exact);
        let mut table = RopeTable::new(config(&golden, case), options).expect("valid");
        for ((cos, sin), &position) in rows(&mut table, &positions).into_iter().zip(&positions) {
            for (i, freq) in freqs.iter().enumerate() {
                let (want_sin, want_cos) = (position as f64 * freq).sin_cos();
                for (got, want) in [(cos[i], factor * want_cos), (sin[i], factor * want_sin)] {
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 6.1e-8 * factor, "{case} at {position}, {i}: {got} {want}");
                }
            }
        }
    }
}

/// Of a case, frequencies that the specification prints, by index, and the sum of all.
type Published = (&'static str, &'static [(usize, f64)], f64);

#[test]
fn frequencies_are_those_that_are_published() {
    let cases: [Published; 15] = [
        ("default_64", &[(1, 0.749894202), (16, 0.00999999978), (31, 1.3335215e-4)], 3.99790823),
        ("default_128", &[(24, 0.00729266508), (63, 2.4551407e-6)], 5.39423395),
        ("linear", &[(0, 0.25), (16, 0.00249999994)], 0.999477057),
        ("dynamic_short", &[(1, 0.749894202)], 3.99790823),
        ("dynamic_8192", &[(1, 0.72378397), (31, 4.44507132e-5)], 3.62023886),
        ("dynamic_32768", &[(1, 0.658201516), (31, 2.33951141e-6)], 2.92569599),
        ("yarn", &[(12, 0.0273658652), (20, 0.00103382161)], 3.95395903),
        ("yarn_qwen", &[(28, 0.00184827659), (63, 3.10234441e-7)], 5.14403483),
        ("yarn_deepseek", &[(16, 0.00550000044)], 3.94893627),
        ("yarn_gpt_oss", &[(12, 0.00679495931), (16, 4.56483918e-4)], 3.18043826),
        ("yarn_truncated", &[(12, 0.00701571396)], 3.18165947),
        ("llama3_8b", &[(31, 8.5675146e-4), (36, 7.78465546e-5)], 5.38605826),
        ("llama3_1b", &[(20, 8.57025589e-6), (31, 9.41830649e-8)], 2.9682024),
        ("longrope_short", &[(31, 1.01795536e-4)], 3.88574749),
        ("longrope_long", &[(1, 0.499929428)], 2.26186805),
    ];
    let golden = golden();
    let close = |got: f64, want: f64| (got - want).abs() <= 2e-7 * want;
    for (case, published, sum) in cases {
        let freqs = inv_freq(&golden, case, RopeMode::HfF32);
        for &(i, want) in published {
            assert!(close(freqs.values()[i], want), "{case} {i}: {} {want}", freqs.values()[i]);
        }
        let got: f64 = freqs.values().iter().sum();
        assert!(close(got, sum), "{case}: {got} {sum}");
    }
    let still = inv_freq(&golden, "proportional", RopeMode::HfF32);
    assert!(close(still.values()[4], 0.177827939) && still.values()[8..].iter().all(|&f| f == 0.0));
}

#[test]
fn the_published_head_is_rotated_as_published() {
    let x: Vec<f32> = (0..8).map(|i| ((37 * i + 11) % 64) as f32 / 32.0 - 1.0).collect();
    let half = [
        0.65409261,
        0.736248434,
        -0.352031559,
        0.814183891,
        -0.061672736,
        -0.688159347,
        0.270812511,
        -0.560060024,
    ];
    let interleaved = [
        0.579122603,
        -0.587606251,
        -0.568507075,
        0.674625814,
        -0.00498987734,
        -0.875543654,
        0.282936245,
        -0.561653733,
    ];
    let mut table =
        RopeTable::new(RopeConfig::new(8, 10000.0, 16), RopeOptions::default()).expect("valid");
    table.extend_to(4).expect("memory");
    for (layout, want) in [(RopeLayout::HalfSplit, half), (RopeLayout::Interleaved, interleaved)] {
        let mut got = Array3::from_shape_vec((1, 1, 8), x.clone()).expect("8");
        table.apply_in_place(got.view_mut(), &[3], layout).expect("ready");
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-7, "{layout:?}: {got} {want}");
        }
    }
}
