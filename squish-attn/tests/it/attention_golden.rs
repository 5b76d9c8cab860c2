//! Attention against torch and transformers, in f64, on every SIMD level.

use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{Array2, Array3};
use serde_json::{Map, Value};
use squish_attn::{
    BitMask, KvArrays, KvElement, Mask, Options, SPLIT, Sequence, Team, Workspace, ndarray,
};
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa,
    element::{E4M3, E5M2, Element, Overflow},
};

use super::attention::numbers;

/// The fields of a case of `tools/golden/attention.py`.
struct Case {
    name: String,
    fields: Map<String, Value>,
}

impl Case {
    fn of(golden: &Golden) -> Vec<Self> {
        let cases: Map<String, Value> =
            serde_json::from_slice(&golden.u8("cases")).expect("names and fields");
        let fields = |value| match value {
            Value::Object(fields) => fields,
            other => panic!("no fields: {other}"),
        };
        cases.into_iter().map(|(name, value)| Self { name, fields: fields(value) }).collect()
    }

    fn count(&self, field: &str) -> usize {
        self.fields[field].as_u64().expect("a count") as usize
    }

    fn pair(&self, field: &str) -> [usize; 2] {
        [0, 1].map(|i| self.fields[field][i].as_u64().expect("a count") as usize)
    }

    fn text(&self, field: &str) -> Option<&str> {
        Some(self.fields.get(field)?.as_str().expect("a name"))
    }

    fn number(&self, field: &str) -> Option<f32> {
        Some(self.fields.get(field)?.as_f64().expect("a number") as f32)
    }

    fn numbers(&self, field: &str) -> Option<Vec<f32>> {
        let all = self.fields.get(field)?.as_array().expect("a list").iter();
        Some(all.map(|x| x.as_f64().expect("a number") as f32).collect())
    }
}

/// Checks a case whose keys and values are stored as `E`.
fn check<E: KvElement>(golden: &Golden, case: &Case, encode: impl Fn(f32) -> E) {
    let name = &case.name;
    let ([n_heads, kv_heads], dims) = (case.pair("heads"), case.pair("dims"));
    let (n_rows, n_tokens) = (case.count("n_rows"), case.count("n_tokens"));
    let encoded = |dim: usize, seed| -> Vec<E> {
        numbers(kv_heads * n_tokens * dim, seed).into_iter().map(&encode).collect()
    };
    let (keys, values) = (encoded(dims[0], 1), encoded(dims[1], 2));
    let scales = case.number("unit").map(|unit| {
        let of = |seed| -> Vec<f32> {
            numbers(kv_heads * n_tokens, seed).iter().map(|x| (2.0 + x) / unit).collect()
        };
        [of(4), of(5)]
    });
    let mut source = KvArrays::new([&keys, &values], kv_heads, n_tokens, dims).expect("fits");
    if let Some([of_keys, of_values]) = &scales {
        source = source.with_scales([of_keys, of_values]).expect("fits");
    }
    let times = case.number("q_times").unwrap_or(1.0);
    let queries = numbers(n_rows * n_heads * dims[0], 3).iter().map(|q| q * times).collect();
    let queries = Array3::from_shape_vec((n_rows, n_heads, dims[0]), queries).expect("fits");

    let parents: Vec<Option<u32>> = case.fields.get("parents").map_or(Vec::new(), |parents| {
        let parents = parents.as_array().expect("a list").iter();
        parents.map(|parent| parent.as_u64().map(|parent| parent as u32)).collect()
    });
    let bits;
    let mask = match case.text("mask").expect("a mask") {
        "causal" => Mask::Causal,
        "full" => Mask::Full,
        "tree" => Mask::Tree(&parents),
        "custom" => {
            let visible = golden.u8(&format!("{name}.visible"));
            bits = BitMask::from_fn(n_rows, n_tokens, |row, token| {
                visible[row * n_tokens + token] == 1
            });
            Mask::Custom(&bits)
        }
        other => panic!("{name}: mask {other}"),
    };
    let (sinks, alibi) = (case.numbers("sinks"), case.numbers("alibi"));
    let options = Options {
        scale: case.number("scale"),
        softcap: case.number("softcap"),
        window: case.fields.contains_key("window").then(|| case.count("window")),
        sinks: sinks.as_deref(),
        alibi: alibi.as_deref(),
    };

    let (want, want_lse) = (golden.f64(&format!("{name}.out")), golden.f64(&format!("{name}.lse")));
    let value = |i: usize| {
        let scale = scales.as_ref().map_or(1.0, |[_, of_values]| of_values[i / dims[1]]);
        (values[i].to_f32() * scale).abs()
    };
    let largest = f64::from((0..values.len()).map(value).fold(0.0, f32::max));
    for (isa, n_threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 2)]) {
        let mut workspace =
            Workspace::new_with(isa, Arc::new(Team::new(n_threads).expect("threads")));
        let mut out = Array3::from_elem((n_rows, n_heads, dims[1]), f32::NAN);
        let mut lse = Array2::from_elem((n_rows, n_heads), f32::NAN);
        let (q, batch) = (queries.view(), [Sequence { source: &source, n_rows, mask }]);
        workspace
            .attend_with_lse_into(q, &batch, &options, out.view_mut(), lse.view_mut())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let what = format!("{name} {isa:?} {n_threads} threads");
        assert_close(out.iter(), &want, |_| largest, &what);
        assert_close(lse.iter(), &want_lse, |lse| lse.abs().max(1.0), &what);
        let mut alone = Array3::from_elem(out.dim(), f32::NAN);
        workspace
            .attend_into(q, &batch, &options, alone.view_mut())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(alone, out, "{what}: with and without logarithms");
    }
}

/// Each number is within 2e-6 of what is wanted, in parts of its size; infinities are themselves.
fn assert_close<'a>(
    got: impl ExactSizeIterator<Item = &'a f32>,
    want: &[f64],
    size: impl Fn(f64) -> f64,
    what: &str,
) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.zip(want).enumerate() {
        let got = f64::from(got);
        let is_close = (got - want).abs() <= 2e-6 * size(want);
        assert!(if want.is_finite() { is_close } else { got == want }, "{what}, {i}: {got} {want}");
    }
}

#[test]
fn attention_is_that_of_torch_and_transformers_on_every_level() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "attention");
    let cases = Case::of(&golden);
    for case in &cases {
        match case.text("dtype") {
            None => check(&golden, case, |x| x),
            Some("bf16") => check(&golden, case, bf16::from_f32),
            Some("f16") => check(&golden, case, f16::from_f32),
            Some("int8") => check(&golden, case, |x| (x * 127.0) as i8),
            Some("e4m3") => check(&golden, case, |x| E4M3::from_f32(x, Overflow::Saturate)),
            Some("e5m2") => check(&golden, case, |x| E5M2::from_f32(x, Overflow::Saturate)),
            Some(other) => panic!("{}: type {other}", case.name),
        }
    }
    // Some are over the end of a split, or the test of merging them would be none.
    assert!(cases.iter().any(|case| case.count("n_tokens") > 2 * SPLIT));
    assert!(cases.len() >= 36, "{} cases", cases.len());
}
