//! Configurations: what each family makes of a file, and everything that is refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use squish_model::{Config, Error, Family, Gate, LayerConfig, RmsVariant, RopeConfig, RopeScaling};

use crate::common::{FIXTURE, SMALL};
use crate::walk_config::walk_config;

/// [`SMALL`] for a family, with some fields set.
fn of(family: Family, fields: Value) -> Result<Config, Error> {
    let mut config: Value = serde_json::from_str(SMALL).unwrap();
    let object = config.as_object_mut().unwrap();
    object.insert("architectures".to_owned(), json!([family.architecture()]));
    let Value::Object(fields) = fields else { panic!("{fields} is no object") };
    object.extend(fields);
    Config::from_json(config.to_string().as_bytes())
}

/// [`SMALL`] with one field set.
fn with(field: &str, value: Value) -> Result<Config, Error> {
    of(Family::Llama, json!({ field: value }))
}

/// What has to be there, and nothing else: 30 layers, 32 heads in a stream of 128.
fn least(family: Family) -> Config {
    let json = json!({"architectures": [family.architecture()], "hidden_size": 128, "intermediate_size": 10, "vocab_size": 7,
        "num_hidden_layers": 30, "num_attention_heads": 32});
    Config::from_json(json.to_string().as_bytes()).unwrap()
}

fn windows(config: &Config) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

#[test]
fn the_fixture_s_fields_are_read() {
    let c = Config::open(FIXTURE).unwrap();
    // The defaults of this function are the fields of the file.
    assert_eq!(c, Config::llama(256, 704, 6, [8, 2, 32], 2048, 512));
    assert_eq!((c.n_layers(), c.q_dim(), c.kv_dim()), (6, 256, 64));
    assert_eq!((c.rms_norm_eps, c.ropes[0].base, c.tie_word_embeddings), (1e-5, 1e4, true));
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    for (family, n_kv_heads, head_dim, context, is_tied, gate) in [
        (Family::Llama, 32, 4, 2048, false, Gate::Silu),
        (Family::Mistral, 8, 4, 131_072, false, Gate::Silu),
        (Family::Qwen2, 32, 4, 32_768, false, Gate::Silu),
        (Family::Qwen3, 32, 128, 32_768, false, Gate::Silu),
        (Family::Gemma2, 4, 256, 8192, true, Gate::GeluTanh),
        (Family::Gemma3, 4, 256, 131_072, true, Gate::GeluTanh),
    ] {
        let c = least(family);
        assert_eq!((c.n_kv_heads, c.head_dim), (n_kv_heads, head_dim), "{family}");
        assert_eq!((c.max_position_embeddings, c.tie_word_embeddings), (context, is_tied));
        assert_eq!((c.rms_norm_eps, c.gate, c.family), (1e-6, gate, family));
        let base = if family == Family::Gemma3 { 1e6 } else { 1e4 };
        assert_eq!(c.ropes[0], RopeConfig::new(head_dim, base, context), "{family}");
        let only = &c.ropes[1..];
        match family {
            Family::Gemma3 => assert_eq!(only, [RopeConfig::new(head_dim, 1e4, context)]),
            _ => assert!(only.is_empty(), "{family}"),
        }
    }
    // 20 is no multiple of 6 heads.
    assert_eq!(
        with("head_dim", Value::Null).unwrap_err().to_string(),
        "`hidden_size` is 20, no multiple of `num_attention_heads`, which is 6"
    );
}

#[test]
fn families_differ_where_their_definitions_do() {
    for family in Family::ALL {
        let c = least(family);
        let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        let norm = if is_gemma { RmsVariant::Gemma } else { RmsVariant::Llama };
        assert_eq!((c.norm, c.post_norms), (norm, is_gemma), "{family}");
        assert_eq!(c.qk_norm, matches!(family, Family::Qwen3 | Family::Gemma3), "{family}");
        assert_eq!(c.qkv_bias, family == Family::Qwen2, "{family}");
        assert!(!c.o_bias && !c.mlp_bias, "{family}");
        let embedding_scale = if is_gemma { 128_f64.sqrt() as f32 } else { 1.0 };
        assert_eq!(c.embedding_scale, embedding_scale, "{family}");
        let scale = if is_gemma { 0.0625 } else { (c.head_dim as f64).sqrt().recip() as f32 };
        assert_eq!(c.attention_scale, scale, "{family}");
        let caps = if family == Family::Gemma2 { (Some(50.0), Some(30.0)) } else { (None, None) };
        assert_eq!((c.attention_softcap, c.logit_softcap), caps, "{family}");
    }
}

#[test]
fn a_null_among_heads_of_keys_is_as_many_as_of_queries() {
    for family in Family::ALL {
        let c = of(family, json!({"num_key_value_heads": null})).unwrap();
        assert_eq!(c.n_kv_heads, 6, "{family}");
    }
}

#[test]
fn biases_are_those_that_the_family_has() {
    let fields = json!({"attention_bias": true, "mlp_bias": true});
    for (family, qkv, o, mlp) in [
        (Family::Llama, true, true, true),
        (Family::Mistral, false, false, false),
        (Family::Qwen2, true, false, false),
        (Family::Qwen3, true, true, false),
        (Family::Gemma2, true, true, false),
        (Family::Gemma3, true, true, false),
    ] {
        let c = of(family, fields.clone()).unwrap();
        assert_eq!((c.qkv_bias, c.o_bias, c.mlp_bias), (qkv, o, mlp), "{family}");
    }
}

#[test]
fn scales_and_caps_are_gemma_s_alone() {
    let fields = json!({"query_pre_attn_scalar": 64, "attn_logit_softcapping": 7.0,
        "final_logit_softcapping": 5.0, "hidden_activation": "silu", "hidden_act": "gelu_pytorch_tanh"});
    let nulls = json!({"attn_logit_softcapping": null, "final_logit_softcapping": null});
    for family in Family::ALL {
        let c = of(family, fields.clone()).unwrap();
        let (scale, caps, gate) = match family {
            Family::Gemma2 => (0.125, (Some(7.0), Some(5.0)), Gate::Silu),
            // Its attention is never capped.
            Family::Gemma3 => (0.125, (None, Some(5.0)), Gate::Silu),
            _ => (0.5, (None, None), Gate::GeluTanh),
        };
        assert_eq!(c.attention_scale, scale, "{family}");
        assert_eq!((c.attention_softcap, c.logit_softcap), caps, "{family}");
        assert_eq!(c.gate, gate, "{family}");
        let c = of(family, nulls.clone()).unwrap();
        assert_eq!((c.attention_softcap, c.logit_softcap), (None, None), "{family}");
    }
    assert_eq!(with("hidden_act", json!("swish")).unwrap().gate, Gate::Silu);
}

#[test]
fn windows_are_those_of_the_family() {
    let six = |fields: Value| {
        let mut all = json!({"num_hidden_layers": 6});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        all
    };
    let types = ["full_attention", "sliding_attention", "attention", "sliding_attention"];
    let typed = json!({"num_hidden_layers": 4, "layer_types": types, "sliding_window": 9, "use_sliding_window": true});
    let (all, none) = ("ssssss", "......");
    for (family, fields, size, want) in [
        (Family::Llama, six(json!({"sliding_window": 9})), 9, none),
        (Family::Llama, typed.clone(), 9, "...."),
        (Family::Mistral, six(json!({})), 4096, all),
        (Family::Mistral, six(json!({"sliding_window": 9})), 9, all),
        (Family::Mistral, six(json!({"sliding_window": null})), 9, none),
        (Family::Mistral, typed.clone(), 9, "ssss"),
        (Family::Qwen2, six(json!({"sliding_window": 9, "max_window_layers": 2})), 9, none),
        (
            Family::Qwen2,
            six(json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2})),
            9,
            "..ssss",
        ),
        (Family::Qwen2, six(json!({"use_sliding_window": true})), 9, none),
        (
            Family::Qwen2,
            json!({"use_sliding_window": true, "num_hidden_layers": 29}),
            4096,
            "............................s",
        ),
        (
            Family::Qwen3,
            six(
                json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
            ),
            9,
            none,
        ),
        (Family::Qwen3, typed.clone(), 9, ".s.s"),
        (Family::Gemma2, six(json!({})), 4096, "s.s.s."),
        (Family::Gemma2, six(json!({"sliding_window": null})), 9, none),
        (Family::Gemma2, typed.clone(), 9, ".s.s"),
        (Family::Gemma3, json!({"num_hidden_layers": 8}), 4096, "sssss.ss"),
        (
            Family::Gemma3,
            six(json!({"sliding_window_pattern": 3, "sliding_window": 9})),
            9,
            "ss.ss.",
        ),
        (Family::Gemma3, six(json!({"sliding_window_pattern": 1})), 9, none),
        (Family::Gemma3, typed.clone(), 9, ".s.s"),
    ] {
        let c = of(family, fields.clone()).unwrap();
        let want: Vec<Option<usize>> = want.chars().map(|of| (of == 's').then_some(size)).collect();
        assert_eq!(windows(&c), want, "{family} {fields}");
        for layer in &c.layers {
            let rope = usize::from(family == Family::Gemma3 && layer.window.is_some());
            assert_eq!(layer.rope, rope, "{family} {fields}");
        }
    }
    // What has a window keeps its rotary embedding without one.
    let c = of(Family::Gemma3, json!({"sliding_window": null})).unwrap();
    assert_eq!(c.layers, [LayerConfig { window: None, rope: 1 }; 2]);
}

#[test]
fn the_base_of_rope_is_found_in_its_old_and_new_place() {
    let base = |fields: Value| of(Family::Llama, fields).unwrap().ropes[0].base;
    assert_eq!(base(json!({"rope_theta": 5e5})), 5e5);
    assert_eq!(base(json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})), 1e6);
    assert_eq!(base(json!({"rope_scaling": {"type": "default"}})), 1e4);
    // What stands inside goes first, and the old name before the new one.
    let inside = json!({"rope_theta": 2e4});
    assert_eq!(base(json!({"rope_parameters": inside, "rope_theta": 3e4})), 2e4);
    assert_eq!(base(json!({"rope_scaling": inside, "rope_parameters": {"rope_theta": 3e4}})), 2e4);
    assert_eq!(base(json!({"rope_scaling": {}, "rope_parameters": inside})), 2e4);
    // Names of other models' files.
    assert_eq!(base(json!({"rotary_emb_base": 3e4, "rotary_pct": 0.5, "rotary_dim": 2})), 1e4);
    assert_eq!(base(json!({"text_config": {"rope_theta": 3e4, "head_dim": 2}})), 1e4);
}

#[test]
fn scalings_of_rope_take_the_family_s_default_context() {
    let scaling = json!({"rope_type": "yarn", "factor": 4.0});
    for (family, longest) in [(Family::Llama, 2048), (Family::Qwen3, 32_768)] {
        let fields =
            json!({"rope_scaling": scaling, "max_position_embeddings": null, "head_dim": 8});
        let c = of(family, fields).unwrap();
        let RopeScaling::Yarn(yarn) = &c.ropes[0].scaling else { panic!("{:?}", c.ropes[0]) };
        assert_eq!((yarn.original_max_position_embeddings, yarn.factor), (longest, 4.0));
        assert_eq!(c.ropes[0].max_position_embeddings, longest);
    }
    let numbers = [1.0299999713897705, 1.1];
    let fields = json!({"rope_type": "longrope", "short_factor": numbers, "long_factor": numbers, "factor": 2.0});
    let c =
        of(Family::Llama, json!({"rope_scaling": fields, "original_max_position_embeddings": 12}))
            .unwrap();
    let RopeScaling::LongRope(long) = &c.ropes[0].scaling else { panic!("{:?}", c.ropes[0]) };
    assert_eq!((&long.long_factor[..], long.original_max_position_embeddings), (&numbers[..], 12));
}

#[test]
fn gemma_3_has_a_rope_for_each_kind_of_layer() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6});
    let sliding = json!({"rope_type": "default", "rope_theta": 500.0});
    let scaled = RopeScaling::Linear { factor: 8.0 };
    for (fields, full_base, full_scaling, sliding_base) in [
        (json!({}), 1e6, RopeScaling::Default, 1e4),
        (json!({"rope_theta": 3e6}), 3e6, RopeScaling::Default, 1e4),
        (json!({"rope_local_base_freq": 700.0}), 1e6, RopeScaling::Default, 700.0),
        (json!({"rope_theta": 3e6, "rope_scaling": linear}), 3e6, scaled.clone(), 1e4),
        (
            json!({"rope_parameters": {"full_attention": full, "sliding_attention": sliding}, "rope_theta": 9.0}),
            2e6,
            scaled.clone(),
            500.0,
        ),
        (
            json!({"rope_parameters": {"full_attention": linear}, "rope_local_base_freq": 700}),
            1e6,
            scaled.clone(),
            700.0,
        ),
        (
            json!({"rope_parameters": {"sliding_attention": sliding}}),
            1e6,
            RopeScaling::Default,
            500.0,
        ),
        // Read, and not applied.
        (
            json!({"rope_scaling": {"type": "linear", "factor": 8.0}}),
            1e6,
            RopeScaling::Default,
            1e4,
        ),
        // What stands beside the kinds of layers is nobody's.
        (json!({"rope_parameters": {"rope_theta": 5e5}}), 1e6, RopeScaling::Default, 1e4),
    ] {
        let c = of(Family::Gemma3, fields.clone()).unwrap();
        let [full, sliding] = &c.ropes[..] else { panic!("{fields}: {:?}", c.ropes) };
        assert_eq!((full.base, &full.scaling), (full_base, &full_scaling), "{fields}");
        assert_eq!((sliding.base, &sliding.scaling), (sliding_base, &RopeScaling::Default));
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let activations = "`silu` and `gelu_pytorch_tanh`";
    let architectures =
        "a list with `LlamaForCausalLM`, or that of Mistral, Qwen2, Qwen3, Gemma2 or Gemma3";
    let types = "`full_attention` and `sliding_attention`, one for each layer";
    for (family, field, value, actual, supported) in [
        (
            Family::Llama,
            "architectures",
            json!(["MambaForCausalLM"]),
            r#"["MambaForCausalLM"]"#,
            architectures,
        ),
        (
            Family::Llama,
            "architectures",
            json!("LlamaForCausalLM"),
            r#""LlamaForCausalLM""#,
            architectures,
        ),
        (Family::Llama, "architectures", Value::Null, "absent", architectures),
        (Family::Llama, "hidden_act", json!("gelu"), r#""gelu""#, activations),
        (Family::Gemma2, "hidden_activation", json!("relu"), r#""relu""#, activations),
        (Family::Gemma3, "hidden_activation", json!(1), "1", activations),
        (
            Family::Llama,
            "quantization_config",
            json!({"bits": 4}),
            r#"{"bits":4}"#,
            "weights that are floats",
        ),
        (Family::Gemma3, "use_bidirectional_attention", json!(true), "true", "false"),
        (Family::Gemma2, "layer_types", json!(["full_attention"]), "absent at index 1", types),
        (
            Family::Qwen3,
            "layer_types",
            json!(["full_attention", "linear_attention"]),
            "linear_attention at index 1",
            types,
        ),
        (
            Family::Gemma3,
            "layer_types",
            json!(["full_attention", "full_attention", "full_attention"]),
            "3 entries for 2 layers",
            types,
        ),
        (
            Family::Llama,
            "partial_rotary_factor",
            json!(0.5),
            "such that 2 of 4 numbers are turned",
            "heads that are turned as a whole",
        ),
    ] {
        let error = of(family, json!({ field: value })).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        let message = format!("`{field}` is {actual}, supported: {supported}");
        assert_eq!(error.to_string(), message);
    }
    let error = with("rope_scaling", json!({"rope_type": "spiral"})).unwrap_err();
    assert!(matches!(error, Error::Attention(_)), "{error:?}");
    assert!(error.to_string().contains("spiral"), "{error}");
}

#[test]
fn zeros_are_refused_by_name() {
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
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for (family, field, value, message) in [
        (
            Family::Llama,
            "num_key_value_heads",
            json!(4),
            "`num_attention_heads` is 6, no multiple of `num_key_value_heads`, which is 4",
        ),
        (
            Family::Llama,
            "num_key_value_heads",
            json!(12),
            "`num_attention_heads` is 6, no multiple of `num_key_value_heads`, which is 12",
        ),
        (
            Family::Llama,
            "rms_norm_eps",
            json!(-1e-6),
            "`rms_norm_eps` is -0.0000009999999974752427, expected finite and at least 0",
        ),
        (
            Family::Llama,
            "rms_norm_eps",
            json!(1e300),
            "`rms_norm_eps` is inf, expected finite and at least 0",
        ),
        (
            Family::Llama,
            "head_dim",
            json!(u64::MAX - 1),
            "`num_attention_heads` 6 times `head_dim` 18446744073709551614 overflows",
        ),
        (
            Family::Llama,
            "vocab_size",
            json!(1_u64 << 60),
            "`hidden_size` 20 times `vocab_size` 1152921504606846976 overflows",
        ),
        (
            Family::Llama,
            "intermediate_size",
            json!(1_u64 << 60),
            "`hidden_size` 20 times `intermediate_size` 1152921504606846976 overflows",
        ),
        (
            Family::Llama,
            "head_dim",
            json!(1_u64 << 57),
            "`hidden_size` 20 times `num_attention_heads * head_dim` 864691128455135232 overflows",
        ),
        (
            Family::Llama,
            "num_hidden_layers",
            json!(u64::MAX),
            "`num_hidden_layers` is 18446744073709552000, expected at most 10000",
        ),
        (Family::Mistral, "sliding_window", json!(0), "`sliding_window` is 0, expected at least 1"),
        (
            Family::Gemma3,
            "sliding_window_pattern",
            json!(0),
            "`sliding_window_pattern` is 0, expected at least 1",
        ),
        (
            Family::Gemma2,
            "query_pre_attn_scalar",
            json!(0),
            "`attention_scale` is inf, expected finite and above 0",
        ),
        (
            Family::Gemma2,
            "query_pre_attn_scalar",
            json!(-4),
            "`attention_scale` is NaN, expected finite and above 0",
        ),
        (
            Family::Gemma2,
            "attn_logit_softcapping",
            json!(0),
            "`attn_logit_softcapping` is 0, expected finite and above 0",
        ),
        (
            Family::Gemma3,
            "final_logit_softcapping",
            json!(-1),
            "`final_logit_softcapping` is -1, expected finite and above 0",
        ),
    ] {
        let error = of(family, json!({ field: value })).unwrap_err();
        assert_eq!(error.to_string(), message, "{field}");
    }
    for (field, value) in [
        ("head_dim", json!(5)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!("1e4")),
        ("rope_scaling", json!({"rope_type": "linear"})),
    ] {
        let error = with(field, value).unwrap_err();
        assert!(matches!(error, Error::Attention(_)), "{field}: {error:?}");
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
        (b"{\"rope_scaling\": 2}", "invalid type: integer `2`, expected a map"),
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
fn a_changed_configuration_is_checked_by_its_fields() {
    let small = || Config::from_json(SMALL.as_bytes()).unwrap();
    let changed = |change: fn(&mut Config)| {
        let mut config = small();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(small().check().is_ok());
    for (change, message) in [
        ((|c| c.vocab_size = 0) as fn(&mut Config), "`vocab_size` is 0, expected at least 1"),
        (|c| c.layers.clear(), "`num_hidden_layers` is 0, expected at least 1"),
        (
            |c| c.n_kv_heads = 4,
            "`num_attention_heads` is 6, no multiple of `num_key_value_heads`, which is 4",
        ),
        (|c| c.layers[1].rope = 1, "`ropes` is 1, expected a rotary embedding of the model"),
        (|c| c.ropes.clear(), "`ropes` is 0, expected a rotary embedding of the model"),
        (|c| c.layers[0].window = Some(0), "`sliding_window` is 0, expected at least 1"),
        (|c| c.head_dim = 8, "`ropes.head_dim` is 4, expected `head_dim` of the model"),
        (|c| c.embedding_scale = 0.0, "`embedding_scale` is 0, expected finite and above 0"),
        (|c| c.attention_scale = f32::NAN, "`attention_scale` is NaN, expected finite and above 0"),
    ] {
        assert_eq!(changed(change), message);
    }
}

#[test]
fn a_value_of_any_length_gives_a_message_that_can_be_shown() {
    assert!(walk_config(SMALL.as_bytes()));
    for field in ["architectures", "hidden_act", "rope_scaling", "hidden_size", "rope_theta"] {
        let mut config: Value = serde_json::from_str(SMALL).unwrap();
        config[field] = json!("☃".repeat(1 << 20));
        assert!(!walk_config(config.to_string().as_bytes()), "{field}");
    }
    for field in ["rope_type", "factor"] {
        let mut config: Value = serde_json::from_str(SMALL).unwrap();
        config["rope_scaling"] = json!({"rope_type": "linear", field: "☃".repeat(1 << 20)});
        assert!(!walk_config(config.to_string().as_bytes()), "{field}");
    }
    let types = vec!["☃".repeat(1 << 20); 2];
    let json = json!({"layer_types": types});
    assert!(of(Family::Gemma2, json).unwrap_err().to_string().len() < 2000);
}

#[test]
fn architectures_are_found_in_a_list_of_several_and_named_in_short() {
    let c = with("architectures", json!(["Other", "Qwen3ForCausalLM"])).unwrap();
    assert_eq!(c.family, Family::Qwen3);
    let names: Vec<String> = Family::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_changed_configuration_panics_or_gives_numbers_of_no_model(
        family in prop::sample::select(&Family::ALL[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..8_usize), 0..4)
    ) {
        let more = r#", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
            "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "use_sliding_window": true}"#;
        let json = SMALL.replace("LlamaForCausalLM", family.architecture()).replace('}', more);
        prop_assert!(walk_config(json.as_bytes()));
        let mut json = json.into_bytes();
        for (at, word) in changes {
            let words: [&[u8]; 8] =
                [b"0", b"4611686018427387904", b"-", b"1e39", b"null", b"\xff", b"{}", b"[0]"];
            let at = at.index(json.len());
            let end = (at + words[word].len() % 3).min(json.len());
            json.splice(at..end, words[word].iter().copied());
        }
        walk_config(&json);
    }

    #[test]
    fn no_value_of_a_field_panics_or_gives_numbers_of_no_model(
        family in prop::sample::select(&Family::ALL[..]),
        fields in prop::collection::vec((0..FIELDS.len(), 0..14_usize), 1..4)
    ) {
        let mut config: Value = serde_json::from_str(SMALL).unwrap();
        config["architectures"] = json!([family.architecture()]);
        for (field, value) in fields {
            let values = [json!(0), json!(1), json!(2), json!(7), json!(u64::MAX), json!(1_u64 << 40), json!(-1), json!(0.25),
                json!(1e39), json!(null), json!(true), json!("silu"), json!(["full_attention"]), json!({"rope_type": "yarn"})];
            config[FIELDS[field]] = values[value].clone();
        }
        walk_config(config.to_string().as_bytes());
    }
}

/// Fields of which the reader knows.
const FIELDS: [&str; 31] = [
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "hidden_activation",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "quantization_config",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "original_max_position_embeddings",
];
