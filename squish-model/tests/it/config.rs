//! Configurations: defaults, and everything that is refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use squish_model::{Config, Error};

use crate::common::{FIXTURE, SMALL};
use crate::walk_config::walk_config;

/// [`SMALL`] with one field set, or removed by null.
fn with(field: &str, value: Value) -> Result<Config, Error> {
    let mut config: Value = serde_json::from_str(SMALL).unwrap();
    config[field] = value;
    Config::from_json(config.to_string().as_bytes())
}

#[test]
fn the_fixture_s_fields_are_read() {
    let json = std::fs::read(format!("{FIXTURE}/config.json")).unwrap();
    let c = Config::from_json(&json).unwrap();
    assert_eq!((c.hidden_size, c.intermediate_size, c.n_layers), (256, 704, 6));
    assert_eq!((c.n_heads, c.n_kv_heads, c.head_dim, c.q_dim(), c.kv_dim()), (8, 2, 32, 256, 64));
    assert_eq!((c.vocab_size, c.max_position_embeddings), (2048, 512));
    assert_eq!((c.rms_norm_eps, c.rope_theta, c.tie_word_embeddings), (1e-5, 10000.0, true));
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let c = with("head_dim", Value::Null);
    // 20 is no multiple of 6 heads.
    assert_eq!(
        c.unwrap_err().to_string(),
        "`hidden_size` is 20, no multiple of `num_attention_heads`, which is 6"
    );
    let c = Config::from_json(
        br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 4, "vocab_size": 3,
            "num_hidden_layers": 1, "num_attention_heads": 6}"#,
    )
    .unwrap();
    assert_eq!((c.n_kv_heads, c.head_dim, c.max_position_embeddings), (6, 8, 2048));
    assert_eq!((c.rms_norm_eps, c.rope_theta, c.tie_word_embeddings), (1e-6, 10000.0, false));
}

#[test]
fn the_base_of_rope_is_found_in_its_old_and_new_place() {
    assert_eq!(with("rope_theta", json!(5e5)).unwrap().rope_theta, 5e5);
    let new = json!({"rope_theta": 1e6, "rope_type": "default"});
    assert_eq!(with("rope_parameters", new).unwrap().rope_theta, 1e6);
    assert_eq!(with("rope_scaling", json!({"type": "default"})).unwrap().rope_theta, 1e4);
}

#[test]
fn two_bases_of_rope_must_agree() {
    let base = |theta: f64| json!({"rope_theta": theta});
    let with_all = |scaling: Value, parameters: Value, top: Value| {
        let mut config: Value = serde_json::from_str(SMALL).unwrap();
        config["rope_scaling"] = scaling;
        config["rope_parameters"] = parameters;
        config["rope_theta"] = top;
        Config::from_json(config.to_string().as_bytes()).map(|config| config.rope_theta)
    };
    let null = || Value::Null;
    assert_eq!(with_all(base(5e5), base(5e5), json!(500_000)).unwrap(), 5e5);
    assert_eq!(with_all(base(5e5), json!({"type": "default"}), null()).unwrap(), 5e5);
    for (scaling, parameters, top, message) in [
        (
            base(5e5),
            base(1e6),
            null(),
            "`rope_parameters.rope_theta` is 1000000, expected that of `rope_scaling`",
        ),
        (base(5e5), null(), json!(1e4), "`rope_theta` is 10000, expected that of `rope_scaling`"),
        (
            null(),
            base(5e5),
            json!(1e4),
            "`rope_theta` is 10000, expected that of `rope_parameters`",
        ),
        (
            base(5e5),
            base(5e5),
            json!(1e4),
            "`rope_theta` is 10000, expected that of `rope_scaling`",
        ),
    ] {
        let error = with_all(scaling, parameters, top).unwrap_err();
        assert!(matches!(error, Error::ConfigValue { .. }), "{error:?}");
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for (field, value, message) in [
        (
            "architectures",
            json!(["MistralForCausalLM"]),
            r#"`architectures` is ["MistralForCausalLM"], supported: a list with `LlamaForCausalLM`"#,
        ),
        (
            "architectures",
            json!("LlamaForCausalLM"),
            r#"`architectures` is "LlamaForCausalLM", supported: a list with `LlamaForCausalLM`"#,
        ),
        (
            "architectures",
            Value::Null,
            "`architectures` is absent, supported: a list with `LlamaForCausalLM`",
        ),
        ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\", supported: `silu`"),
        ("attention_bias", json!(true), "`attention_bias` is true, supported: false"),
        ("mlp_bias", json!(true), "`mlp_bias` is true, supported: false"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2}),
            r#"`rope_scaling` is {"factor":2,"type":"linear"}, supported: the default RoPE"#,
        ),
        ("rope_scaling", json!(2), "`rope_scaling` is 2, supported: the default RoPE"),
        (
            "rope_parameters",
            json!({"rope_type": "llama3"}),
            r#"`rope_parameters` is {"rope_type":"llama3"}, supported: the default RoPE"#,
        ),
        (
            "rope_parameters",
            json!({"partial_rotary_factor": 0.5}),
            r#"`rope_parameters` is {"partial_rotary_factor":0.5}, supported: the default RoPE"#,
        ),
        (
            "quantization_config",
            json!({}),
            "`quantization_config` is {}, supported: weights that are floats",
        ),
    ] {
        let error = with(field, value).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for field in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ] {
        let error = with(field, json!(0)).unwrap_err();
        assert_eq!(error.to_string(), format!("`{field}` is 0, expected at least 1"));
    }
    for (field, value, message) in [
        (
            "num_key_value_heads",
            json!(4),
            "`num_attention_heads` is 6, no multiple of `num_key_value_heads`, which is 4",
        ),
        (
            "num_key_value_heads",
            json!(12),
            "`num_attention_heads` is 6, no multiple of `num_key_value_heads`, which is 12",
        ),
        (
            "head_dim",
            json!(5),
            "`head_dim` is 5, expected an even number, because RoPE turns pairs",
        ),
        (
            "rms_norm_eps",
            json!(-1e-6),
            "`rms_norm_eps` is -0.0000009999999974752427, expected finite and at least 0",
        ),
        ("rms_norm_eps", json!(1e300), "`rms_norm_eps` is inf, expected finite and at least 0"),
        ("rope_theta", json!(0), "`rope_theta` is 0, expected finite and above 0"),
        (
            "head_dim",
            json!(u64::MAX - 1),
            "`num_attention_heads` 6 times `head_dim` 18446744073709551614 overflows",
        ),
        (
            "vocab_size",
            json!(1_u64 << 60),
            "`hidden_size` 20 times `vocab_size` 1152921504606846976 overflows",
        ),
        (
            "intermediate_size",
            json!(1_u64 << 60),
            "`hidden_size` 20 times `intermediate_size` 1152921504606846976 overflows",
        ),
        (
            "head_dim",
            json!(1_u64 << 57),
            "`hidden_size` 20 times `num_attention_heads * head_dim` 864691128455135232 overflows",
        ),
    ] {
        assert_eq!(with(field, value).unwrap_err().to_string(), message, "{field}");
    }
}

#[test]
fn what_is_no_configuration_is_refused_with_the_parser_s_reason() {
    for (json, reason) in [
        (&b""[..], "EOF"),
        (b"[]", "invalid length"),
        (b"{}", "missing field `hidden_size`"),
        (b"{\"hidden_size\": -4}", "invalid value: integer `-4`"),
        (b"{\"hidden_size\": 1.5}", "invalid type: floating point `1.5`"),
        (b"{\"hidden_size\": \"256\"}", "invalid type: string \"256\""),
        (b"\xff\xfe", "expected value"),
    ] {
        let error = Config::from_json(json).unwrap_err();
        assert!(
            matches!(&error, Error::ConfigJson { reason: found } if found.contains(reason)),
            "{reason}: {error}"
        );
    }
}

#[test]
fn a_value_of_any_length_gives_a_message_that_can_be_shown() {
    assert!(walk_config(SMALL.as_bytes()));
    for field in ["architectures", "hidden_act", "rope_scaling", "hidden_size"] {
        let mut config: Value = serde_json::from_str(SMALL).unwrap();
        config[field] = json!("☃".repeat(1 << 20));
        assert!(!walk_config(config.to_string().as_bytes()), "{field}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_changed_configuration_panics_or_gives_numbers_of_no_model(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..8_usize), 0..4)
    ) {
        let mut json = SMALL.as_bytes().to_vec();
        for (at, word) in changes {
            let words: [&[u8]; 8] =
                [b"0", b"4611686018427387904", b"-", b"1e39", b"null", b"\xff", b"{}", b"[0]"];
            let at = at.index(json.len());
            let end = (at + words[word].len() % 3).min(json.len());
            json.splice(at..end, words[word].iter().copied());
        }
        walk_config(&json);
    }
}
