//! Quantized copies of checkpoints: what is written, what is read from it, and what is left when it fails.

use std::{fs, path::Path};

use half::bf16;
use serde_json::{Value, json};
use squish_checkpoint::{Checkpoint, Dtype, Error as CheckpointError};
use squish_model::{
    Activation, Config, Error, LoadOptions, Model, Quantization, QuantizeOptions,
    QuantizedCheckpoint, SavedLayout, ScaleType, TensorSource, Verify, WeightFormat, quantize,
    quantize_with,
};
use squish_quant::{Error as QuantError, Fp8Quantizer, ndarray::ArrayView2};
use tempfile::{TempDir, tempdir};

use crate::{
    common::FIXTURE,
    models::assert_same,
    saved::{json as small, listing, logits, tensors, write_model, write_tensors},
};

/// A folder with a small model in `base`.
fn base(is_tied: bool) -> TempDir {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("base")).unwrap();
    write_model(&folder.path().join("base"), is_tied);
    folder
}

fn weights(format: WeightFormat, activation: Option<Activation>) -> LoadOptions {
    LoadOptions { weights: format, activation, ..LoadOptions::default() }
}

fn config_json(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

const CODED: [WeightFormat; 4] =
    [WeightFormat::Fp8E4M3, WeightFormat::MxFp4, WeightFormat::Int8, WeightFormat::Int4];

#[test]
fn what_is_read_back_computes_as_what_is_packed_at_loading() {
    for is_tied in [true, false] {
        let folder = base(is_tied);
        let from = folder.path().join("base");
        for format in
            CODED.into_iter().chain([WeightFormat::F32, WeightFormat::F16, WeightFormat::Stored])
        {
            let to = folder.path().join(format.name());
            quantize(&from, &to, &QuantizeOptions::of(format)).unwrap();
            for activation in [None, Some(Activation::F32)] {
                let what = format!("{format}, {activation:?}");
                let got = logits(&to, weights(WeightFormat::Stored, activation));
                assert_same(&what, &got, &logits(&from, weights(format, activation)));
            }
        }
    }
}

#[test]
fn panels_are_read_where_they_lie_and_compute_the_same() {
    for is_tied in [true, false] {
        let folder = base(is_tied);
        let from = folder.path().join("base");
        for (format, head) in [
            (WeightFormat::Stored, WeightFormat::Stored),
            (WeightFormat::F32, WeightFormat::Int8),
            (WeightFormat::F16, WeightFormat::F16),
            (WeightFormat::Fp8E4M3, WeightFormat::Stored),
            (WeightFormat::Fp8E5M2, WeightFormat::MxFp4),
            (WeightFormat::NvFp4, WeightFormat::MxInt8),
            (WeightFormat::MxFp6E2M3, WeightFormat::MxFp8E5M2),
            (WeightFormat::MxFp4, WeightFormat::Stored),
            (WeightFormat::Int8, WeightFormat::Int4),
            (WeightFormat::Int4, WeightFormat::Fp8E4M3),
        ] {
            for activation in [None, Some(Activation::F32)] {
                let to = folder.path().join(format!("{format}-{head}-{activation:?}"));
                let options = QuantizeOptions { head, activation, ..QuantizeOptions::of(format) };
                let report = quantize(&from, &to, &options.laid_out(SavedLayout::Squish)).unwrap();
                assert_eq!(report.n_matrices, 2 * 7 + 1);

                let packed = LoadOptions { head, ..weights(format, activation) };
                let stored = LoadOptions { activation, ..LoadOptions::default() };
                let what = format!("{format}, {head}, {activation:?}");
                assert_same(&what, &logits(&to, stored), &logits(&from, packed));

                let [mapped, own] = [(&to, &stored), (&from, &packed)]
                    .map(|(folder, options)| Model::open(folder, options).unwrap());
                assert_eq!(mapped.n_bytes(), own.n_bytes(), "{what}");
                // Five norms of 128 numbers.
                assert_eq!(mapped.n_own_bytes(), 5 * 128 * 4, "{what}");
                assert_eq!(own.n_own_bytes(), own.n_bytes(), "{what}");
            }
        }
    }
}

#[test]
fn another_format_is_made_of_the_decoded_values() {
    let folder = base(false);
    let [from, to] = ["base", "int4"].map(|name| folder.path().join(name));
    quantize(&from, &to, &QuantizeOptions::of(WeightFormat::Int4)).unwrap();
    // In f32, the product of codes is that of the values.
    let exact = Some(Activation::F32);
    let stored = logits(&to, weights(WeightFormat::Stored, exact));
    assert_same("f32", &logits(&to, weights(WeightFormat::F32, exact)), &stored);
    assert_ne!(logits(&to, weights(WeightFormat::Bf16, exact)), stored);
    assert_ne!(logits(&from, weights(WeightFormat::F32, exact)), stored);
}

#[test]
fn the_tensors_are_those_of_compressed_tensors() {
    let folder = base(false);
    let from = folder.path().join("base");
    let of_q = |folder: &Path| {
        let of_q = |(name, dtype): (String, Dtype)| {
            let part = name.strip_prefix("model.layers.1.self_attn.q_proj.")?;
            Some((part.to_owned(), dtype))
        };
        listing(folder).into_iter().filter_map(of_q).collect::<Vec<_>>()
    };
    let named = |list: &[(&str, Dtype)]| {
        list.iter().map(|&(name, dtype)| (name.to_owned(), dtype)).collect::<Vec<_>>()
    };
    let int = |scales| {
        named(&[
            ("weight_packed", Dtype::I32),
            ("weight_scale", scales),
            ("weight_shape", Dtype::I64),
        ])
    };
    for (format, scales, want) in [
        (
            WeightFormat::Fp8E4M3,
            ScaleType::F32,
            named(&[("weight", Dtype::F8E4M3), ("weight_scale", Dtype::F32)]),
        ),
        (
            WeightFormat::MxFp4,
            ScaleType::F32,
            named(&[("weight_packed", Dtype::U8), ("weight_scale", Dtype::U8)]),
        ),
        (WeightFormat::Int8, ScaleType::F16, int(Dtype::F16)),
        (WeightFormat::Int4, ScaleType::Bf16, int(Dtype::BF16)),
        (WeightFormat::F16, ScaleType::F32, named(&[("weight", Dtype::F16)])),
    ] {
        let to = folder.path().join(format.name());
        let options = QuantizeOptions { scales, ..QuantizeOptions::of(format) };
        let report = quantize(&from, &to, &options).unwrap();
        assert_eq!(of_q(&to), want, "{format}");
        assert_eq!(report.n_tensors, listing(&to).len());
        assert_eq!((report.n_matrices, report.n_weights), (14, 2 * (128 * 384 + 3 * 128 * 256)));
        let all = |name: &str| listing(&to).contains(&(name.to_owned(), Dtype::BF16));
        assert!(
            all("lm_head.weight") && all("model.embed_tokens.weight") && all("model.norm.weight")
        );
    }
    let bits = |format: WeightFormat| {
        let to = folder.path().join(format!("{format}-again"));
        quantize(&from, &to, &QuantizeOptions::of(format)).unwrap().bits_per_weight()
    };
    assert_eq!((bits(WeightFormat::MxFp4), bits(WeightFormat::Stored).is_nan()), (4.25, true));
    assert!((5.0..5.1).contains(&bits(WeightFormat::Int4)));
}

#[test]
fn codes_allow_for_scales_that_are_rounded() {
    let folder = base(false);
    let from = folder.path().join("base");
    let name = "model.layers.0.mlp.up_proj.weight";
    let checkpoint = Checkpoint::open(&from).unwrap();
    let values = TensorSource::tensor(&checkpoint, name, &[256, 128]).unwrap().to_f32();
    for format in [WeightFormat::Fp8E4M3, WeightFormat::Int8, WeightFormat::Int4] {
        let to = folder.path().join(format.name());
        let options = QuantizeOptions { scales: ScaleType::Bf16, ..QuantizeOptions::of(format) };
        quantize(&from, &to, &options).unwrap();
        let quantization = Quantization::open(&to).unwrap().unwrap();
        let checkpoint = Checkpoint::open(&to).unwrap();
        let source = QuantizedCheckpoint::new(checkpoint, quantization, Verify::All);
        let got = source.tensor(name, &[256, 128]).unwrap().to_f32();
        if format == WeightFormat::Fp8E4M3 {
            let x = ArrayView2::from_shape([256, 128], &values).unwrap();
            let scales = Fp8Quantizer::default().encode(x).unwrap().scales().to_vec();
            let scales: Vec<f32> =
                scales.into_iter().map(|scale| bf16::from_f32(scale).to_f32()).collect();
            let want = Fp8Quantizer::default().encode_with_scales(x, &scales).unwrap().decode();
            assert_eq!(got, want.into_raw_vec_and_offset().0);
        }
        // Half a step of the largest scale, and what its rounding moves the outermost code.
        let step = match format {
            WeightFormat::Fp8E4M3 => 1.0 / 14.0,
            WeightFormat::Int8 => 1.0 / 127.0,
            _ => 1.0 / 7.0,
        };
        let largest = values.iter().fold(0_f32, |most, x| most.max(x.abs()));
        let error = got.iter().zip(&values).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(error <= largest * (0.51 * step + 0.004), "{format}: {error} of {largest}");
    }
}

#[test]
fn inputs_that_are_no_whole_groups_have_a_scale_for_each_output() {
    let folder = tempdir().unwrap();
    let to = folder.path().join("int8");
    quantize(FIXTURE, &to, &QuantizeOptions::of(WeightFormat::Int8)).unwrap();
    let quantization = &config_json(&to)["quantization_config"];
    let groups = &quantization["config_groups"];
    assert_eq!(groups["group_1"]["targets"], json!(["Linear"]));
    assert_eq!(groups["group_1"]["weights"]["group_size"], 128);
    // 704 inputs.
    assert_eq!(groups["group_0"]["targets"], json!([r"re:.*\.mlp\.down_proj$"]));
    assert_eq!(groups["group_0"]["weights"]["strategy"], "channel");
    assert_eq!(
        (&quantization["format"], &quantization["ignore"]),
        (&json!("pack-quantized"), &json!(["lm_head"]))
    );
    let shape = |name: &str| Checkpoint::open(&to).unwrap().get(name).unwrap().shape().to_vec();
    assert_eq!(shape("model.layers.3.mlp.down_proj.weight_scale"), [256, 1]);
    assert_eq!(shape("model.layers.3.mlp.up_proj.weight_scale"), [704, 2]);
    Model::open(&to, &LoadOptions::default()).unwrap();
}

#[test]
fn a_head_of_its_own_can_have_another_format() {
    let folder = base(false);
    let from = folder.path().join("base");
    for (format, head, form, ignored) in [
        (WeightFormat::Int4, WeightFormat::Fp8E4M3, "mixed-precision", false),
        (WeightFormat::Int4, WeightFormat::Int4, "pack-quantized", false),
        (WeightFormat::Stored, WeightFormat::Int8, "pack-quantized", false),
        (WeightFormat::MxFp4, WeightFormat::F16, "mxfp4-pack-quantized", true),
    ] {
        let to = folder.path().join(format!("{format}-{head}"));
        let options = QuantizeOptions { head, ..QuantizeOptions::of(format) };
        quantize(&from, &to, &options).unwrap();
        let quantization = &config_json(&to)["quantization_config"];
        assert_eq!(quantization["format"], form);
        assert_eq!(quantization["ignore"] == json!(["lm_head"]), ignored);
        let packed = LoadOptions { head, ..weights(format, None) };
        let what = format!("{format}, {head}");
        assert_same(&what, &logits(&to, LoadOptions::default()), &logits(&from, packed));
    }
}

#[test]
fn everything_else_is_copied_as_it_is() {
    let folder = tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir_all(from.join("additional_chat_templates")).unwrap();
    for entry in fs::read_dir(FIXTURE).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, from.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(from.join("chat_template.jinja"), "{{ x }}").unwrap();
    fs::write(from.join("additional_chat_templates/tools.jinja"), "{{ y }}").unwrap();
    fs::write(from.join("pytorch_model.bin"), "weights").unwrap();
    let to = folder.path().join("to");
    let mut seen = Vec::new();
    let report =
        quantize_with(&from, &to, &QuantizeOptions::of(WeightFormat::Int4), &mut |progress| {
            assert_eq!(
                Some(progress.n_bytes),
                seen.first().map_or(Some(progress.n_bytes), |&(_, n)| Some(n))
            );
            seen.push((progress.n_written, progress.n_bytes));
        })
        .unwrap();
    assert_eq!(seen.len(), report.n_tensors);
    assert_eq!(seen.last(), Some(&(report.n_bytes, report.n_bytes)));
    assert!(seen.is_sorted());
    for name in [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    ] {
        assert_eq!(fs::read(from.join(name)).unwrap(), fs::read(to.join(name)).unwrap(), "{name}");
    }
    assert!(!to.join("pytorch_model.bin").exists());

    let [before, after] =
        [&from, &to].map(|folder| fs::read_to_string(folder.join("config.json")).unwrap());
    assert!(after.starts_with(before.trim_end().trim_end_matches('}').trim_end()), "{after}");
    assert!(matches!(Config::from_json(after.as_bytes()), Err(Error::Unsupported { .. })));
    assert_eq!(Config::open(&to).unwrap(), Config::open(&from).unwrap());
    let dense = folder.path().join("dense");
    quantize(&from, &dense, &QuantizeOptions::of(WeightFormat::F16)).unwrap();
    assert_eq!(fs::read_to_string(dense.join("config.json")).unwrap(), before);
}

/// The error of a call, after a look that nothing is left of it.
fn refused(from: &Path, to: &Path, options: QuantizeOptions) -> Error {
    let list = || {
        let mut names: Vec<_> =
            fs::read_dir(to.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = list();
    let error = quantize(from, to, &options).unwrap_err();
    assert_eq!(list(), before, "{error}");
    error
}

#[test]
fn a_failure_leaves_nothing() {
    let folder = base(true);
    let [from, to] = ["base", "to"].map(|name| folder.path().join(name));
    let config = Config::from_json(small(true).to_string().as_bytes()).unwrap();
    let random = squish_model::RandomCheckpoint { config, seed: 3 };
    let last = "model.layers.1.self_attn.v_proj.weight";
    let mut all = tensors(&random);
    let place = all.iter().position(|(name, ..)| name == last).unwrap();

    // The last weight of the last matrix in the order of the file.
    let bytes = &mut all[place].3;
    let end = bytes.len() - 2;
    bytes[end..].copy_from_slice(&bf16::NAN.to_le_bytes());
    fs::remove_file(from.join("model.safetensors")).unwrap();
    write_tensors(&from, &all);
    for layout in SavedLayout::ALL {
        for format in CODED {
            let error = refused(&from, &to, QuantizeOptions::of(format).laid_out(layout));
            assert!(
                matches!(&error, Error::Pack { tensor, error: QuantError::NonFinite { .. } } if tensor == last),
                "{error}"
            );
        }
    }

    all.remove(place);
    fs::remove_file(from.join("model.safetensors")).unwrap();
    write_tensors(&from, &all);
    let error = refused(&from, &to, QuantizeOptions::of(WeightFormat::Int4));
    assert_eq!(error.to_string(), format!("no tensor `{last}` among {}", all.len()));
}

#[test]
fn what_cannot_be_made_is_refused_before_anything_is_written() {
    let folder = base(true);
    let [from, to] = ["base", "to"].map(|name| folder.path().join(name));
    let int4 = QuantizeOptions::of(WeightFormat::Int4);
    let message = |options: QuantizeOptions| refused(&from, &to, options).to_string();
    assert_eq!(
        message(QuantizeOptions::of(WeightFormat::Fp8E5M2)),
        "`format` is fp8-e5m2, supported: f32, bf16, f16, fp8-e4m3, mxfp4, int8 and int4, or the layout `squish`"
    );
    assert_eq!(
        message(QuantizeOptions { head: WeightFormat::Int4, ..int4 }),
        "`head` is int4, supported: `stored` of a head that is tied to the embedding, or the layout `squish`"
    );
    let options =
        QuantizeOptions { activation: Some(Activation::Q8), ..QuantizeOptions::default() };
    let error = refused(&from, &to, options.laid_out(SavedLayout::Squish));
    assert!(matches!(error, Error::Pack { error: QuantError::Unsupported { .. }, .. }), "{error}");

    fs::create_dir(&to).unwrap();
    let error = refused(&from, &to, int4);
    assert!(
        matches!(&error, Error::Checkpoint(CheckpointError::Exists { path }) if *path == to),
        "{error}"
    );
    fs::remove_dir(&to).unwrap();
    quantize(&from, &to, &int4).unwrap();
    let error = refused(&to, &folder.path().join("again"), int4);
    assert_eq!(
        error.to_string(),
        "`quantization_config` is of method `compressed-tensors`, supported: weights that are floats"
    );
}

#[test]
fn what_another_call_left_is_replaced() {
    let folder = base(true);
    let [from, to] = ["base", "to"].map(|name| folder.path().join(name));
    let partial = folder.path().join(".to.squish-partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("model.safetensors.partial"), "half").unwrap();
    quantize(&from, &to, &QuantizeOptions::of(WeightFormat::Int4)).unwrap();
    assert!(!partial.exists());
    let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
}

#[test]
fn panels_are_for_what_they_were_made_for() {
    let folder = base(false);
    let [from, to] = ["base", "to"].map(|name| folder.path().join(name));
    quantize(&from, &to, &QuantizeOptions::of(WeightFormat::Int4).laid_out(SavedLayout::Squish))
        .unwrap();
    let error = |options: &LoadOptions| Model::open(&to, options).unwrap_err().to_string();
    let q_proj = "`model.layers.0.self_attn.q_proj.weight_panels`";
    assert_eq!(
        error(&LoadOptions::default().exact()),
        format!("{q_proj} holds panels for inputs in q8, asked for inputs in f32")
    );
    assert_eq!(
        error(&weights(WeightFormat::Int8, None)),
        format!("{q_proj} holds panels for products, asked for weights as numbers")
    );

    // A byte that changes is found, unless nobody looks.
    let info = |name: &str| {
        let checkpoint = Checkpoint::open(&to).unwrap();
        let info = checkpoint.get(name).unwrap();
        (usize::try_from(info.file_offset()).unwrap(), info.n_bytes())
    };
    let path = to.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (start, n) = info("model.layers.1.mlp.up_proj.weight_panels");
    assert_eq!(start % 64, 0);
    for (at, is_header) in [(start + n - 1, false), (start + 16, true)] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        // A new file, since the old one may be mapped.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let error = Model::open(&to, &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Pack { error: QuantError::Packed { .. }, .. }), "{error}");
        let trusting = LoadOptions { verify: Verify::Header, ..LoadOptions::default() };
        assert_eq!(Model::open(&to, &trusting).is_err(), is_header);
    }
}
