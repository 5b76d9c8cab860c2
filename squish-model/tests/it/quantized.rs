//! Quantized checkpoints that others write: compressed-tensors, DeepSeek and gpt-oss, and all that is refused.

use std::{fs, path::Path, sync::LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};
use squish_bench::Golden;
use squish_checkpoint::{Checkpoint, Dtype, Error as CheckpointError, Options, Source};
use squish_model::{
    Activation, Error, LoadOptions, Model, Part, Quantization, QuantizeOptions,
    QuantizedCheckpoint, TensorSource, Verify, Wanted, WeightFormat, quantize,
};
use squish_quant::{
    Error as QuantError, Fp8Quantizer, Granularity, MxQuantizer, Workspace, ndarray::Array2,
};
use tempfile::tempdir;

use crate::{
    common::{EXACT, FIXTURE, exact_runner, tokens},
    saved::{Tensor, write_tensors},
    walk_quantization::walk_quantization,
};

static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| Golden::load(env!("CARGO_MANIFEST_DIR"), "quantized"));

/// Largest difference of logits from those of transformers, both in f32.
const LOGITS: f32 = 2e-4;

fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&GOLDEN.u8(name)).unwrap()
}

#[test]
fn transformers_computes_the_same_from_what_we_write() {
    let (prompt, rows) = (tokens(&GOLDEN, "prompt"), GOLDEN.i64("rows"));
    for name in golden_json("formats").as_array().unwrap() {
        let name = name.as_str().unwrap();
        let folder = tempdir().unwrap();
        let to = folder.path().join("to");
        let options = QuantizeOptions::of(name.parse().unwrap());
        quantize(FIXTURE, &to, &options).unwrap();
        let mut runner = exact_runner(&Model::open(&to, &EXACT).unwrap().into());
        let id = runner.create().unwrap();
        let part = Part::new(id, &prompt).with_logits(Wanted::All);
        let mut output = runner.forward(&[part]).unwrap();
        let logits = output.logits().unwrap();
        let want = GOLDEN.f32(&format!("{name}.logits"));
        for (row, want) in rows.iter().zip(want.chunks_exact(logits.ncols())) {
            let row = logits.row(usize::try_from(*row).unwrap());
            let difference =
                row.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            assert!(difference <= LOGITS, "{name}: {difference}");
        }
    }
}

fn dtype(name: &str) -> Dtype {
    Dtype::from_name(name).unwrap()
}

fn quantization(config: &Value) -> Result<Option<Quantization>, Error> {
    Quantization::from_json(json!({"quantization_config": config}).to_string().as_bytes())
}

/// A source of `tensors`, read as `config` says.
fn source(folder: &Path, config: &Value, tensors: &[Tensor]) -> QuantizedCheckpoint {
    write_tensors(folder, tensors);
    let checkpoint = Checkpoint::open(folder).unwrap();
    QuantizedCheckpoint::new(checkpoint, quantization(config).unwrap().unwrap(), Verify::All)
}

/// Holds the values of `model.w` against `want`, as numbers and as what a product multiplies with.
fn check_values(name: &str, source: &QuantizedCheckpoint, shape: [usize; 2], want: &[f32]) {
    let got = source.tensor("model.w.weight", &shape).unwrap().to_f32();
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{name}, element {i}: {got} is not {want}");
    }
    let packed = source.packed("model.w", shape, Some(Activation::F32)).unwrap().unwrap();
    assert_eq!(packed.shape(), shape);
    // Rows of the unit matrix select columns.
    let mut out = Array2::zeros([shape[1], shape[0]]);
    let unit = Array2::eye(shape[1]);
    packed.view().gemm_into(&mut Workspace::default(), unit.view(), out.view_mut()).unwrap();
    let want = Array2::from_shape_vec(shape, want.to_vec()).unwrap();
    assert_eq!(out, want.t(), "{name}");
    assert!(source.has("model.w.weight"));
}

#[test]
fn what_compressed_tensors_writes_decodes_to_its_values() {
    let cases = golden_json("cases");
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let shape: [usize; 2] = serde_json::from_value(case["shape"].clone()).unwrap();
        let tensors: Vec<Tensor> = case["tensors"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(part, of)| {
                let shape = serde_json::from_value(of[1].clone()).unwrap();
                let bytes = GOLDEN.u8(&format!("{name}.{part}"));
                (format!("model.w.{part}"), dtype(of[0].as_str().unwrap()), shape, bytes)
            })
            .collect();
        let folder = tempdir().unwrap();
        let source = source(folder.path(), &case["config"], &tensors);
        check_values(name, &source, shape, &GOLDEN.f32(&format!("{name}.values")));
    }
    assert_eq!(cases.as_array().unwrap().len(), 21);
}

/// `[rows, cols]` of smooth numbers.
fn values([rows, cols]: [usize; 2]) -> Array2<f32> {
    Array2::from_shape_fn([rows, cols], |(row, col)| ((row * cols + col) as f32 * 0.37).sin())
}

fn f32_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn fp8_tensors(
    shape: [usize; 2],
    granularity: Granularity,
    scale_shape: &[usize],
) -> (Vec<Tensor>, Vec<f32>) {
    let quantizer = Fp8Quantizer { granularity, ..Fp8Quantizer::default() };
    let tensor = quantizer.encode(values(shape).view()).unwrap();
    let tensors = vec![
        ("model.w.weight".to_owned(), Dtype::F8E4M3, shape.to_vec(), tensor.codes().to_vec()),
        (
            "model.w.weight_scale_inv".to_owned(),
            Dtype::F32,
            scale_shape.to_vec(),
            f32_bytes(tensor.scales()),
        ),
        ("lm_head.weight".to_owned(), Dtype::F32, vec![1, 1], f32_bytes(&[7.0])),
    ];
    (tensors, tensor.decode().into_raw_vec_and_offset().0)
}

#[test]
fn deepseek_s_blocks_are_read() {
    let shape = [150, 200];
    for (config, granularity, scale_shape) in [
        (json!({"quant_method": "fp8"}), Granularity::Block2d { rows: 128, cols: 128 }, vec![2, 2]),
        (
            json!({"quant_method": "fp8", "weight_block_size": [64, 32], "activation_scheme": "dynamic", "fmt": "e4m3"}),
            Granularity::Block2d { rows: 64, cols: 32 },
            vec![3, 7],
        ),
        (json!({"quant_method": "fp8", "weight_block_size": null}), Granularity::Tensor, vec![]),
        (json!({"quant_method": "fp8", "weight_block_size": null}), Granularity::Tensor, vec![1]),
    ] {
        let (tensors, want) = fp8_tensors(shape, granularity, &scale_shape);
        let folder = tempdir().unwrap();
        let source = source(folder.path(), &config, &tensors);
        check_values(&config.to_string(), &source, shape, &want);
        // A float beside it is dense.
        assert!(source.packed("lm_head", [1, 1], None).unwrap().is_none());
        assert_eq!(source.tensor("lm_head.weight", &[1, 1]).unwrap().to_f32(), [7.0]);
    }
}

#[test]
fn powers_of_two_are_scales_of_deepseek_s_blocks_too() {
    let granularity = Granularity::Block2d { rows: 128, cols: 128 };
    let (mut tensors, _) = fp8_tensors([64, 64], granularity, &[1, 1]);
    (tensors[1].1, tensors[1].3) = (Dtype::F8E8M0, vec![120]);
    let codes = tensors[0].3.clone();
    let view = squish_quant::Fp8View::new(
        squish_quant::Fp8Format::E4M3,
        Granularity::Tensor,
        [64, 64],
        &codes,
        &[1.0 / 128.0],
    );
    let want = view.unwrap().decode().into_raw_vec_and_offset().0;
    let folder = tempdir().unwrap();
    let source = source(folder.path(), &json!({"quant_method": "fp8"}), &tensors);
    check_values("E8M0", &source, [64, 64], &want);
}

#[test]
fn gpt_oss_s_blocks_are_read() {
    let shape = [40, 96];
    let tensor = MxQuantizer::default().encode(values(shape).view()).unwrap();
    let tensors = [
        ("model.w.weight_blocks".to_owned(), Dtype::U8, vec![40, 3, 16], tensor.codes().to_vec()),
        ("model.w.weight_scales".to_owned(), Dtype::U8, vec![40, 3], tensor.scales().to_vec()),
    ];
    let folder = tempdir().unwrap();
    let config = json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]});
    let source = source(folder.path(), &config, &tensors);
    let want = tensor.decode().into_raw_vec_and_offset().0;
    check_values("gpt-oss", &source, shape, &want);
}

#[test]
fn files_that_are_read_instead_of_mapped_hold_the_same() {
    let folder = tempdir().unwrap();
    let to = folder.path().join("to");
    let layout = squish_model::SavedLayout::Squish;
    quantize(FIXTURE, &to, &QuantizeOptions::of(WeightFormat::Int4).laid_out(layout)).unwrap();
    let options = Options { source: Source::Read, ..Options::default() };
    let module = "model.layers.2.mlp.up_proj";
    let [read, mapped] = [options, Options::default()].map(|options| {
        let checkpoint = Checkpoint::open_with(&to, options).unwrap();
        let quantization = Quantization::open(&to).unwrap().unwrap();
        let source = QuantizedCheckpoint::new(checkpoint, quantization, Verify::All);
        source.packed(module, [704, 256], None).unwrap().unwrap()
    });
    assert_eq!(read.view(), mapped.view());
    assert_eq!(mapped.n_own_bytes(), 0);
}

/// A `config_groups` of one group with some fields replaced.
fn groups(format: &str, fields: Value) -> Value {
    let mut weights =
        json!({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true});
    weights.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({
        "quant_method": "compressed-tensors", "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    })
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn what_would_change_the_result_is_refused_by_field_and_value() {
    let with = |mut config: Value, field: &str, value: Value| {
        *config.pointer_mut(field).unwrap() = value;
        config
    };
    let base = || {
        let mut config = groups("pack-quantized", json!({}));
        for field in ["sparsity_config", "transform_config", "kv_cache_scheme", "ignore"] {
            config[field] = Value::Null;
        }
        config["config_groups"]["group_0"]["output_activations"] = Value::Null;
        config
    };
    assert!(quantization(&base()).unwrap().is_some());
    let formats = "`float-quantized`, `int-quantized`, `naive-quantized`, `pack-quantized` and `mxfp4-pack-quantized`";
    let methods = "`compressed-tensors`, `fp8`, `mxfp4` and `squish`";
    let prefix = "quantization_config.";
    for (config, field, actual, supported) in [
        (json!({"quant_method": "awq"}), &*format!("{prefix}quant_method"), r#""awq""#, methods),
        (json!({}), &*format!("{prefix}quant_method"), "absent", methods),
        (
            json!({"quant_method": 1, "config_groups": {}}),
            &*format!("{prefix}quant_method"),
            "1",
            methods,
        ),
        (json!({"quant_method": "squish", "version": 2}), &*format!("{prefix}version"), "2", "1"),
        (json!({"quant_method": "squish"}), &*format!("{prefix}version"), "absent", "1"),
        (groups("marlin-24", json!({})), &*format!("{prefix}format"), r#""marlin-24""#, formats),
        (
            groups("nvfp4-pack-quantized", json!({"type": "float"})),
            &*format!("{prefix}format"),
            r#""nvfp4-pack-quantized""#,
            formats,
        ),
        (groups("dense", json!({})), &*format!("{prefix}format"), r#""dense""#, formats),
        (
            groups("mixed-precision", json!({})),
            &*format!("{prefix}format"),
            r#""mixed-precision""#,
            formats,
        ),
        (
            groups("float-quantized", json!({})),
            "weights.type",
            r#""int""#,
            "the kind of numbers that the format has",
        ),
        (
            groups("pack-quantized", json!({"type": "float"})),
            "weights.type",
            r#""float""#,
            "the kind of numbers that the format has",
        ),
        (
            groups("pack-quantized", json!({"type": "posit"})),
            "weights.type",
            r#""posit""#,
            "`int` and `float`",
        ),
        (groups("pack-quantized", json!({"num_bits": 3})), "weights.num_bits", "3", "4 and 8"),
        (groups("int-quantized", json!({"num_bits": 16})), "weights.num_bits", "16", "1 to 8"),
        (
            groups("float-quantized", json!({"type": "float", "num_bits": 4})),
            "weights.num_bits",
            "4",
            "8",
        ),
        (
            groups("float-quantized", json!({"type": "float", "symmetric": false})),
            "weights.symmetric",
            "false",
            "true",
        ),
        (
            groups(
                "mxfp4-pack-quantized",
                json!({"type": "float", "num_bits": 4, "strategy": "group", "group_size": 16}),
            ),
            "weights.group_size",
            "16",
            "32",
        ),
        (
            groups("pack-quantized", json!({"strategy": "group"})),
            "weights.group_size",
            "absent",
            "at least 1",
        ),
        (
            groups("pack-quantized", json!({"strategy": "group", "group_size": 0})),
            "weights.group_size",
            "0",
            "at least 1",
        ),
        (
            groups("pack-quantized", json!({"strategy": "block", "block_structure": [2, 2]})),
            "weights.strategy",
            r#""block""#,
            "`tensor`, `channel`, `group` and, of FP8, `block`",
        ),
        (
            groups("float-quantized", json!({"type": "float", "strategy": "block"})),
            "weights.block_structure",
            "absent",
            "rows and columns",
        ),
        (
            groups(
                "float-quantized",
                json!({"type": "float", "strategy": "block", "block_structure": "0x4"}),
            ),
            "weights.block_structure",
            r#""0x4""#,
            "rows and columns",
        ),
        (groups("pack-quantized", json!({"dynamic": true})), "weights.dynamic", "true", "false"),
        (
            groups("pack-quantized", json!({"actorder": "group"})),
            "weights.actorder",
            r#""group""#,
            "null, `weight` and `static`",
        ),
        (
            groups("pack-quantized", json!({"actorder": true})),
            "weights.actorder",
            "true",
            "null, `weight` and `static`",
        ),
        (
            with(base(), "/sparsity_config", json!({"format": "sparse-24-bitmask"})),
            &*format!("{prefix}sparsity_config.format"),
            r#""sparse-24-bitmask""#,
            "`dense`",
        ),
        (
            with(base(), "/transform_config", json!({"config_groups": {"u": {}}})),
            &*format!("{prefix}transform_config"),
            r#"{"config_groups":{"u":{}}}"#,
            "none",
        ),
        (
            with(base(), "/config_groups/group_0/output_activations", json!({"num_bits": 8})),
            "output_activations",
            r#"{"num_bits":8}"#,
            "none",
        ),
        (
            with(base(), "/config_groups/group_0", json!(["Linear"])),
            &*format!("{prefix}config_groups"),
            r#"["Linear"]"#,
            "groups in full",
        ),
    ] {
        let error = quantization(&config).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{config}: {error:?}");
        assert_eq!(
            error.to_string(),
            format!("`{field}` is {actual}, supported: {supported}"),
            "{config}"
        );
    }
    // What is said about inputs and caches, and what is nothing.
    for (field, value) in [
        ("/kv_cache_scheme", json!({"num_bits": 8})),
        ("/sparsity_config", json!({})),
        ("/sparsity_config", json!({"format": "dense", "global_sparsity": 0.5})),
        ("/transform_config", json!({})),
        ("/transform_config", json!({"config_groups": {}})),
    ] {
        assert!(quantization(&with(base(), field, value.clone())).is_ok(), "{field} {value}");
    }
    let error =
        quantization(&json!({"quant_method": "fp8", "weight_block_size": [128, 0]})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`quantization_config.weight_block_size` is 0, expected at least 1"
    );
    for config in [
        json!({"quant_method": "fp8", "weight_block_size": [1]}),
        json!({"config_groups": []}),
        json!({"config_groups": {"a": {}}}),
    ] {
        assert!(matches!(quantization(&config), Err(Error::ConfigJson { .. })), "{config}");
    }
    let error = quantization(&with(base(), "/ignore", json!(["re:(?=x)"]))).unwrap_err();
    assert!(error.to_string().starts_with("`(?=x)` is no pattern of module names"), "{error}");
}

#[test]
fn older_files_say_the_same_elsewhere() {
    let int4 = groups("pack-quantized", json!({"num_bits": 4, "strategy": null, "group_size": 64}));
    let int8 =
        groups("int-quantized", json!({"strategy": null, "group_size": -1, "symmetric": null}));
    let fp8 = groups(
        "naive-quantized",
        json!({"type": "FLOAT", "strategy": "Block", "block_structure": "128x64"}),
    );
    for (config, want) in [
        (
            json!({"compression_config": int4}),
            "PackedInt { format: Int4, granularity: Block1d(64), has_zero_points: false }",
        ),
        (
            json!({"compression_config": {"quantization_config": int4}}),
            "PackedInt { format: Int4, granularity: Block1d(64), has_zero_points: false }",
        ),
        (
            json!({"quantization_config": null, "compression_config": int8}),
            "Int { granularity: Channel, has_zero_points: false }",
        ),
        (
            json!({"quantization_config": fp8, "compression_config": int4}),
            r#"Fp8 { granularity: Block2d { rows: 128, cols: 64 }, scales: "weight_scale" }"#,
        ),
    ] {
        let read = Quantization::from_json(config.to_string().as_bytes()).unwrap().unwrap();
        assert_eq!(read.describe("model.layers.0.mlp.up_proj"), want, "{config}");
    }
    for config in ["{}", r#"{"quantization_config": null}"#] {
        assert!(Quantization::from_json(config.as_bytes()).unwrap().is_none());
    }
}

#[test]
fn groups_and_what_they_ignore() {
    let int = |targets: Value, bits: u32, format: Value| json!({"targets": targets, "format": format, "weights": {"num_bits": bits, "type": "int", "strategy": "channel"}});
    let config = json!({
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head", "re:.*layers\\.7\\..*"],
        "config_groups": {
            "a": int(json!(["Linear"]), 8, json!("int-quantized")),
            "b": int(json!(["re:.*mlp.*", "model.layers.0.self_attn.q_proj"]), 4, json!("pack-quantized")),
            "c": int(json!(["re:.*k_proj"]), 8, json!("dense")),
            "d": {"targets": ["re:.*v_proj"], "weights": null, "input_activations": {"num_bits": 8}},
        },
    });
    let quantization = quantization(&config).unwrap().unwrap();
    for (module, want) in [
        ("model.layers.1.self_attn.q_proj", "Int {"),
        ("model.layers.0.self_attn.q_proj", "PackedInt {"),
        ("model.layers.0.mlp.up_proj", "PackedInt {"),
        ("model.layers.0.self_attn.k_proj", "Dense"),
        ("model.layers.0.self_attn.v_proj", "Dense"),
        ("model.layers.7.self_attn.q_proj", "Dense"),
        ("model.layers.70.self_attn.q_proj", "Int {"),
        ("lm_head", "Dense"),
        ("model.embed_tokens", "Dense"),
    ] {
        assert!(quantization.describe(module).starts_with(want), "{module}");
    }
}

#[test]
fn layers_of_different_formats_compute_together() {
    // Queries are multiplied with inputs in q8, keys and values with others.
    let folder = tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    fs::create_dir(&from).unwrap();
    crate::saved::write_model(&from, false);
    quantize(&from, &to, &QuantizeOptions::of(WeightFormat::Int4)).unwrap();
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"]["ignore"] = json!(["lm_head", "re:.*(k_proj|up_proj)"]);
    fs::write(&path, config.to_string()).unwrap();
    // The tensors of ignored layers are those of the model that was quantized.
    let mut tensors = Vec::new();
    for (folder, is_ignored) in [(&from, true), (&to, false)] {
        let checkpoint = Checkpoint::open(folder).unwrap();
        for info in &checkpoint {
            let name = info.name();
            if (name.contains("k_proj") || name.contains("up_proj")) == is_ignored {
                let bytes = checkpoint.tensor(name).unwrap().bytes().to_vec();
                tensors.push((name.to_owned(), info.dtype(), info.shape().to_vec(), bytes));
            }
        }
    }
    fs::remove_file(to.join("model.safetensors")).unwrap();
    write_tensors(&to, &tensors);
    let logits = |activation| {
        crate::saved::logits(&to, LoadOptions { activation, ..LoadOptions::default() })
    };
    let [rounded, exact] = [None, Some(Activation::F32)].map(logits);
    let of = |bits: u32| f32::from_bits(bits);
    let largest = exact.iter().flatten().fold(0_f32, |most, &x| most.max(of(x).abs()));
    for (rounded, exact) in rounded.iter().flatten().zip(exact.iter().flatten()) {
        let difference = (of(*rounded) - of(*exact)).abs();
        assert!(difference <= 0.1 * largest, "{difference} of {largest}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn tensors_that_are_missing_or_misshapen_are_named() {
    let shape = [64, 64];
    let (fp8, _) = fp8_tensors(shape, Granularity::Tensor, &[1]);
    let ct_fp8 = groups("float-quantized", json!({"type": "float"}));
    let int4 = groups("pack-quantized", json!({"num_bits": 4}));
    let zero_points = groups("pack-quantized", json!({"num_bits": 4, "symmetric": false}));
    let mxfp4 = groups(
        "mxfp4-pack-quantized",
        json!({"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32}),
    );
    let named = |part: &str, dtype, shape: &[usize]| {
        let n: usize = shape.iter().product();
        (format!("model.w.{part}"), dtype, shape.to_vec(), vec![0; n * Dtype::bits(dtype) / 8])
    };
    let shape_of = |rows: i64| {
        let bytes = [rows, 64].iter().flat_map(|n| n.to_le_bytes()).collect();
        ("model.w.weight_shape".to_owned(), Dtype::I64, vec![2], bytes)
    };
    let packed = || named("weight_packed", Dtype::I32, &[64, 8]);
    let scale = |shape: &[usize]| named("weight_scale", Dtype::BF16, shape);
    for (config, tensors, want) in [
        (
            json!({"quant_method": "fp8"}),
            vec![fp8[0].clone()],
            "no tensor `model.w.weight_scale_inv` among 1",
        ),
        (
            json!({"quant_method": "fp8"}),
            fp8.clone(),
            "`model.w.weight_scale_inv` has shape [1], expected [1, 1]",
        ),
        (
            json!({"quant_method": "fp8"}),
            vec![fp8[2].clone()],
            "no tensor `model.w.weight` among 1",
        ),
        (ct_fp8.clone(), vec![fp8[0].clone()], "no tensor `model.w.weight_scale` among 1"),
        (
            ct_fp8.clone(),
            vec![named("weight", Dtype::F8E4M3, &[64, 32])],
            "`model.w.weight` has shape [64, 32], expected [64, 64]",
        ),
        (
            ct_fp8.clone(),
            vec![named("weight", Dtype::BF16, &[64, 64])],
            "`model.w.weight` is BF16, expected F8_E4M3",
        ),
        (
            ct_fp8.clone(),
            vec![fp8[0].clone(), scale(&[64])],
            "`model.w.weight_scale` has shape [64], expected [64, 1]",
        ),
        (
            ct_fp8,
            vec![fp8[0].clone(), named("weight_scale", Dtype::I32, &[64, 1])],
            "`model.w.weight_scale` is I32, expected F32, F16 or BF16",
        ),
        (int4.clone(), vec![packed(), scale(&[64, 1])], "no tensor `model.w.weight_shape` among 2"),
        (
            int4.clone(),
            vec![packed(), scale(&[64, 1]), shape_of(63)],
            "`model.w.weight_shape` has shape [63, 64], expected [64, 64]",
        ),
        (
            int4.clone(),
            vec![packed(), scale(&[64, 1]), shape_of(-1)],
            "`model.w.weight_shape` has shape [18446744073709551615, 64], expected [64, 64]",
        ),
        (
            int4.clone(),
            vec![named("weight_packed", Dtype::I32, &[64, 7]), shape_of(64)],
            "`model.w.weight_packed` has shape [64, 7], expected [64, 8]",
        ),
        (
            int4.clone(),
            vec![packed(), scale(&[64, 2]), shape_of(64)],
            "`model.w.weight_scale` has shape [64, 2], expected [64, 1]",
        ),
        (
            int4,
            vec![packed(), scale(&[64, 1]), shape_of(64), named("weight_g_idx", Dtype::I32, &[64])],
            "`weight_g_idx` is model.w.weight_g_idx, supported: groups in the order of the columns",
        ),
        (
            zero_points.clone(),
            vec![packed(), scale(&[64, 1]), shape_of(64)],
            "no tensor `model.w.weight_zero_point` among 3",
        ),
        (
            zero_points,
            vec![
                packed(),
                scale(&[64, 1]),
                shape_of(64),
                named("weight_zero_point", Dtype::I32, &[64, 1]),
            ],
            "`model.w.weight_zero_point` has shape [64, 1], expected [8, 1]",
        ),
        (
            mxfp4.clone(),
            vec![named("weight_packed", Dtype::U8, &[64, 32]), scale(&[64, 2])],
            "`model.w.weight_scale` is BF16, expected U8",
        ),
        (
            mxfp4,
            vec![named("weight_packed", Dtype::U8, &[64, 32]), scale(&[64, 1])],
            "`model.w.weight_scale` has shape [64, 1], expected [64, 2]",
        ),
        (
            json!({"quant_method": "mxfp4"}),
            vec![named("weight_blocks", Dtype::U8, &[64, 2, 16])],
            "no tensor `model.w.weight_scales` among 1",
        ),
        (
            json!({"quant_method": "mxfp4"}),
            vec![named("weight_blocks", Dtype::U8, &[64, 32])],
            "`model.w.weight_blocks` has shape [64, 32], expected [64, 2, 16]",
        ),
    ] {
        let folder = tempdir().unwrap();
        let source = source(folder.path(), &config, &tensors);
        let error = source.tensor("model.w.weight", &shape).unwrap_err();
        assert_eq!(error.to_string(), want);
        if let Ok(None) = source.packed("model.w", shape, None) {
            assert!(matches!(error, Error::Checkpoint(CheckpointError::Missing { .. })), "{error}");
        }
    }
}

#[test]
fn weights_that_no_matrix_can_hold_are_named() {
    // A scale that is NaN, and groups that no product has.
    let (mut tensors, _) = fp8_tensors([64, 64], Granularity::Tensor, &[1]);
    tensors[1].3 = f32_bytes(&[f32::NAN]);
    let config = json!({"quant_method": "fp8", "weight_block_size": null});
    let folder = tempdir().unwrap();
    let error =
        source(folder.path(), &config, &tensors).packed("model.w", [64, 64], None).unwrap_err();
    assert!(
        matches!(&error, Error::Pack { tensor, error: QuantError::BadScale { .. } } if tensor == "model.w.weight"),
        "{error}"
    );
    let config = json!({"quant_method": "fp8", "weight_block_size": [16, 16]});
    let (tensors, want) =
        fp8_tensors([64, 64], Granularity::Block2d { rows: 16, cols: 16 }, &[4, 4]);
    let folder = tempdir().unwrap();
    let source = source(folder.path(), &config, &tensors);
    assert_eq!(source.tensor("model.w.weight", &[64, 64]).unwrap().to_f32(), want);
    let error = source.packed("model.w", [64, 64], None).unwrap_err();
    assert!(matches!(error, Error::Pack { error: QuantError::BlockAlign { .. }, .. }), "{error}");
}

/// Configurations of every method.
fn configs() -> Vec<String> {
    let cases = golden_json("cases");
    let mut all: Vec<Value> =
        cases.as_array().unwrap().iter().map(|case| case["config"].clone()).collect();
    all.push(json!({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}));
    all.push(json!({"quant_method": "mxfp4", "modules_to_not_convert": ["a"]}));
    all.push(json!({"quant_method": "squish", "version": 1}));
    all.into_iter().map(|config| json!({"quantization_config": config}).to_string()).collect()
}

#[test]
fn configurations_of_every_method_are_accepted() {
    for config in configs() {
        assert!(walk_quantization(config.as_bytes()), "{config}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_change_of_a_configuration_makes_the_reader_panic(
        which in 0usize..24, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = configs().swap_remove(which).into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        walk_quantization(&bytes);
    }

    #[test]
    fn no_pattern_makes_the_reader_panic(target in "re:[a-z.*+?(){}|\\[\\]^$\\\\0-9,]{0,24}", is_ignored in any::<bool>()) {
        let mut config = groups("pack-quantized", json!({}));
        if is_ignored {
            config["ignore"] = json!([target]);
        } else {
            config["config_groups"]["group_0"]["targets"] = json!([target]);
        }
        walk_quantization(json!({"quantization_config": config}).to_string().as_bytes());
    }
}
