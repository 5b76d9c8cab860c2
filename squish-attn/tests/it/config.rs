//! Configurations from JSON and what is refused.

use proptest::prelude::*;
use squish_attn::{AttnError, Llama3, RopeConfig, RopeScaling, Yarn};

use crate::walk_rope::walk_rope;

fn json(fields: &str) -> Vec<u8> {
    let model = r#""hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 8192"#;
    format!("{{{model}{}{fields}}}", if fields.is_empty() { "" } else { ", " }).into_bytes()
}

fn read(fields: &str) -> RopeConfig {
    RopeConfig::from_hf_json(&json(fields)).unwrap_or_else(|error| panic!("{fields}: {error}"))
}

fn refused(fields: &str) -> String {
    RopeConfig::from_hf_json(&json(fields)).expect_err(fields).to_string()
}

#[test]
fn a_file_without_parameters_has_the_default() {
    assert_eq!(read(""), RopeConfig::new(64, 10000.0, 8192));
    for nothing in [r#""rope_scaling": null"#, r#""rope_scaling": {}, "rope_parameters": {}"#] {
        assert_eq!(read(nothing), RopeConfig::new(64, 10000.0, 8192), "{nothing}");
    }
    let wide = read(r#""head_dim": 128, "rope_theta": 1e6"#);
    assert_eq!(wide, RopeConfig::new(128, 1e6, 8192));
    assert_eq!(read(r#""head_dim": null"#).head_dim, 64);
}

#[test]
fn the_base_is_found_in_all_its_places_and_the_inner_one_wins() {
    for fields in [
        r#""rope_theta": 5000"#,
        r#""rotary_emb_base": 5000"#,
        r#""rope_theta": 9.0, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}"#,
    ] {
        assert_eq!(read(fields).base, 5000.0, "{fields}");
    }
}

#[test]
fn the_rotated_part_is_found_in_all_its_places() {
    for fields in [
        r#""partial_rotary_factor": 0.25"#,
        r#""rotary_pct": 0.25"#,
        r#""rotary_dim": 16"#,
        r#""rope_parameters": {"partial_rotary_factor": 0.25}"#,
    ] {
        assert_eq!(read(fields).rotary_dim, 16, "{fields}");
    }
    assert_eq!(read(r#""head_dim": 192, "qk_rope_head_dim": 64"#).head_dim, 64);
}

#[test]
fn scaling_wins_over_parameters_and_the_old_key_is_as_good() {
    let fields = r#""rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "dynamic", "factor": 3.0}"#;
    assert_eq!(read(fields).scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(
        read(r#""rope_parameters": {"type": "x", "rope_type": "dynamic", "factor": 3}"#).scaling,
        RopeScaling::DynamicNtk { factor: 3.0 }
    );
}

#[test]
fn the_context_of_pretraining_is_the_outer_one_then_the_inner_one_then_the_longest() {
    let yarn = |inner: &str, outer: &str| {
        let config = read(&format!(
            r#""rope_scaling": {{"rope_type": "yarn", "factor": 2.0{inner}}}{outer}"#
        ));
        let RopeScaling::Yarn(yarn) = config.scaling else { panic!("{config:?}") };
        yarn.original_max_position_embeddings
    };
    let (inner, outer) = (
        r#", "original_max_position_embeddings": 1000"#,
        r#", "original_max_position_embeddings": 2000"#,
    );
    assert_eq!([yarn("", ""), yarn(inner, ""), yarn(inner, outer)], [8192, 1000, 2000]);
}

#[test]
fn what_is_null_or_zero_in_yarn_is_the_default() {
    let fields = r#""rope_scaling": {"rope_type": "yarn", "factor": null, "beta_fast": null, "beta_slow": 0, "mscale": 0,
        "attention_factor": null, "original_max_position_embeddings": 2048}"#;
    assert_eq!(read(fields).scaling, RopeScaling::Yarn(Yarn::new(4.0, 2048)));
}

#[test]
fn a_factor_of_hunyuan_is_static_ntk() {
    let fields = r#""rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}"#;
    assert_eq!(read(fields).scaling, RopeScaling::NtkAware { factor: 1000.0 });
}

#[test]
fn layers_of_different_types_are_told_apart_by_name() {
    let nested = r#""rope_theta": 7.0, "global_head_dim": 96, "rope_parameters": {
        "full_attention": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e6, "truncate": false},
        "sliding_attention": {"rope_type": "default"}}"#;
    let of = |layer_type: &str| RopeConfig::from_hf_json_of(&json(nested), layer_type);
    let full = of("full_attention").expect("valid");
    assert_eq!((full.head_dim, full.base), (96, 1e6));
    // As transformers: what stands within is not read.
    assert_eq!(full.scaling, RopeScaling::Yarn(Yarn::new(2.0, 8192)));
    assert_eq!(of("sliding_attention"), Ok(RopeConfig::new(64, 7.0, 8192)));
    let error = "`rope_parameters` is that of full_attention, sliding_attention, supported: one of these layer types, by its name";
    assert_eq!(of("chunked_attention").expect_err("no such layer").to_string(), error);
    assert_eq!(refused(nested), error);

    let alike = r#""rope_parameters": {"a": {"rope_theta": 3.0}, "b": {"rope_theta": 3.0}}"#;
    assert_eq!(read(alike).base, 3.0);
    let old = r#""rope_local_base_freq": 10000, "rope_theta": 1e6"#;
    assert!(refused(old).starts_with("`rope_local_base_freq` is that of full_attention"));
}

#[test]
fn the_language_model_within_a_larger_one_is_read() {
    let inner = String::from_utf8(json(r#""rope_theta": 3.0"#)).expect("text");
    let outer = format!(r#"{{"model_type": "gemma3", "rope_theta": 2.0, "text_config": {inner}}}"#);
    assert_eq!(RopeConfig::from_hf_json(outer.as_bytes()).expect("valid").base, 3.0);
}

#[test]
fn what_cannot_be_read_is_named() {
    for (fields, message) in [
        (r#""rope_theta": "x""#, r#"no configuration: `rope_theta` is "x", expected a number"#),
        (r#""head_dim": -1"#, "no configuration: `head_dim` is -1, expected a count"),
        (r#""rope_scaling": {"rope_type": "linear"}"#, "no configuration: no `factor`"),
        (r#""rope_scaling": {"rope_type": "longrope"}"#, "no configuration: no `short_factor`"),
        (
            r#""rope_scaling": {"rope_type": "spiral"}"#,
            "`rope_type` is spiral, supported: default, linear, dynamic, yarn, longrope, llama3, proportional",
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": -2.0}"#,
            "`factor` is -2, expected finite and above 0",
        ),
        (r#""head_dim": 1000000000"#, "`head_dim` is 1000000000, expected at most 65536"),
        (r#""rope_theta": 0"#, "`base` is 0, expected finite and above 0"),
        (
            r#""partial_rotary_factor": 0.49"#,
            "`rotary_dim` is 31, expected even, above 0, and at most `head_dim`",
        ),
        (
            r#""rope_scaling": {"type": "su", "short_factor": [1, 1], "long_factor": []}"#,
            "`short_factor` has 2 elements, expected 32",
        ),
    ] {
        assert_eq!(refused(fields), message);
    }
    assert!(RopeConfig::from_hf_json(b"[]").is_err());
    assert!(RopeConfig::from_hf_json(br#"{"hidden_size": 8, "num_attention_heads": 0}"#).is_err());
    let long = format!(r#""rope_scaling": {{"rope_type": "{}"}}"#, "é".repeat(1 << 16));
    assert!(refused(&long).len() < 1000);
}

#[test]
fn numbers_that_no_embedding_has_are_refused() {
    let check = |scaling| RopeConfig { scaling, ..RopeConfig::new(64, 1e4, 4096) }.check();
    let value = |result| match result {
        Err(AttnError::Value { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let yarn = Yarn::new(4.0, 4096);
    for (scaling, what) in [
        (RopeScaling::Linear { factor: f64::NAN }, "factor"),
        (RopeScaling::DynamicNtk { factor: 0.0 }, "factor"),
        (RopeScaling::Yarn(Yarn { beta_slow: 0.0, ..yarn }), "beta_slow"),
        (RopeScaling::Yarn(Yarn { attention_factor: Some(-1.0), ..yarn }), "attention_factor"),
        (RopeScaling::Yarn(Yarn::new(4.0, 1)), "original_max_position_embeddings"),
        (
            RopeScaling::Llama3(Llama3 { high_freq_factor: 1.0, ..Llama3::default() }),
            "high_freq_factor",
        ),
        (
            RopeScaling::Proportional { factor: 1.0, partial_rotary_factor: 1.5 },
            "partial_rotary_factor",
        ),
    ] {
        assert_eq!(value(check(scaling)), what);
    }
    let pair =
        RopeConfig { scaling: RopeScaling::NtkAware { factor: 2.0 }, ..RopeConfig::new(2, 1e4, 1) };
    assert_eq!(value(pair.check()), "rotary_dim");
    assert_eq!(
        value(RopeConfig { rotary_dim: 66, ..RopeConfig::new(64, 1e4, 1) }.check()),
        "rotary_dim"
    );
}

#[test]
fn deepseek_s_scale_of_the_scores_is_the_square_of_its_mscale() {
    let scaling = Yarn { mscale: Some(1.0), mscale_all_dim: Some(1.0), ..Yarn::new(40.0, 4096) };
    let config =
        RopeConfig { scaling: RopeScaling::Yarn(scaling), ..RopeConfig::new(64, 1e4, 163_840) };
    let mscale = 0.1 * 40f64.ln() + 1.0;
    assert_eq!(
        (config.attention_factor(), config.softmax_scale_multiplier()),
        (1.0, mscale * mscale)
    );
    assert_eq!(RopeConfig::new(64, 1e4, 4096).softmax_scale_multiplier(), 1.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_bytes_make_the_reader_panic(
        kind in prop::sample::select(vec!["linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "su", "mrope", "?"]),
        keys in prop::collection::vec((prop::sample::select(vec![
            "factor", "rope_theta", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "attention_factor", "mscale",
            "mscale_all_dim", "partial_rotary_factor", "alpha", "original_max_position_embeddings", "short_factor", "long_factor",
        ]), prop::sample::select(vec![
            "0", "1", "-1", "2.5", "1e308", "1e-320", "4096", "18446744073709551615", "null", "\"x\"", "[1.0, 2.0]", "[0, 1e300]", "{}",
        ])), 0..12),
        head_dim in prop::sample::select(vec!["0", "1", "2", "4", "64", "1e9", "9223372036854775807"]),
        longest in prop::sample::select(vec!["0", "1", "4096", "18446744073709551615"]),
        cut in 0..400_usize,
    ) {
        let inner: Vec<String> = keys.iter().map(|(key, value)| format!(r#""{key}": {value}"#)).collect();
        let inner = std::iter::once(format!(r#""rope_type": "{kind}""#)).chain(inner).collect::<Vec<_>>().join(", ");
        let text = format!(r#"{{"head_dim": {head_dim}, "max_position_embeddings": {longest}, "rope_scaling": {{{inner}}}}}"#);
        walk_rope(text.as_bytes());
        walk_rope(&text.as_bytes()[..cut.min(text.len())]);
    }
}
