//! What is recorded of a model, and the scales that follow: weights that compute the same, inputs that are rounded.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use serde_json::{Value, json};
use squish_checkpoint::{Checkpoint, Dtype};
use squish_model::{
    Calibration, CalibrationMethod, CalibrationOptions, Config, Dense, DenseTensor, Error,
    GroupScales, Hooks, KvType, LoadOptions, Model, Part, Projection, QuantizeOptions,
    RandomCheckpoint, Recorder, Rounding, SavedLayout, Scaled, Site, StaticScales, TensorSource,
    Wanted, WeightFormat, WeightMethod,
    ndarray::{Array2, ArrayView2, ArrayViewMut2},
    quantize, quantize_calibrated,
};
use squish_quant::{AwqSearch, IntFormat, IntRange, Method, MseSearch, Target};
use tempfile::tempdir;

use crate::{
    common::EXACT,
    models::{
        VOCAB, assert_same, biased, bits_of, gemma, llama, load, options, qwen3, runner, text,
    },
    saved::{json as small, listing, tensors, write_tensors},
};

const SMOOTH: WeightMethod = WeightMethod::Smooth { alpha: 0.5 };

const AWQ: WeightMethod = WeightMethod::Awq(AwqSearch { n_ratios: 6 });

const INT8: Target = Target::Int(IntFormat::Int8, IntRange::Full);

/// With as many heads of keys as of queries.
fn all_heads(mut config: Config) -> Config {
    config.n_kv_heads = config.n_heads;
    config
}

fn configs() -> [Config; 5] {
    [llama(16), biased(16), all_heads(biased(16)), gemma(16), qwen3(16)]
}

fn texts() -> Vec<Vec<u32>> {
    (0..4).map(|i| text(40 + i, VOCAB, i as u64)).collect()
}

fn record(model: &Arc<Model>, options: CalibrationOptions) -> Calibration {
    let mut runner = runner(model, &crate::models::options(KvType::F32));
    Calibration::record(&mut runner, texts().iter().map(|text| &text[..]), options).unwrap()
}

/// The calibration of a model as it is.
fn calibration(source: &dyn TensorSource, config: &Config) -> Calibration {
    record(&Arc::new(Model::load(source, config, &EXACT).unwrap()), CalibrationOptions::default())
}

/// The logits of a text that was not recorded.
fn logits(model: &Arc<Model>, rounding: Option<&dyn Rounding>) -> Array2<f32> {
    let mut runner = runner(model, &options(KvType::F32));
    let id = runner.create().unwrap();
    let text = text(60, VOCAB, 99);
    let mut hooks = Hooks { rounding, ..Hooks::default() };
    let part = Part::new(id, &text).with_logits(Wanted::All);
    let mut output = runner.forward_with(&[part], &mut hooks).unwrap();
    output.logits().unwrap().to_owned()
}

/// Mean divergence of `other`'s next tokens from those of `base`, in nats.
fn kl(base: &Array2<f32>, other: &Array2<f32>) -> f64 {
    let logs = |row: ArrayView2<'_, f32>, i: usize| {
        let row: Vec<f64> = row.row(i).iter().map(|&x| f64::from(x)).collect();
        let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        row.into_iter().map(move |x| x - sum).collect::<Vec<_>>()
    };
    let of_row = |i: usize| {
        let (p, q) = (logs(base.view(), i), logs(other.view(), i));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    };
    (0..base.nrows()).map(of_row).sum::<f64>() / base.nrows() as f64
}

/// A random checkpoint whose norms make some channels much larger than others, and whose matrices undo it: in 16 bits.
struct Outliers(RandomCheckpoint);

impl Outliers {
    fn factor(channel: usize) -> f32 {
        if channel % 16 == 5 { 32.0 } else { 1.0 }
    }
}

impl TensorSource for Outliers {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let tensor = self.0.tensor(name, shape)?;
        let is_norm = name.contains("layernorm");
        let is_read = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];
        if !is_norm && !is_read.iter().any(|part| name.contains(part)) {
            return Ok(tensor);
        }
        let mut values = tensor.to_f32();
        let width = shape[shape.len() - 1];
        for (i, x) in values.iter_mut().enumerate() {
            let factor = Self::factor(i % width);
            // Powers of two, which 16 bits have exactly; the columns by less, so that outputs depend on them.
            *x *= if is_norm { factor } else { (8.0 / factor).min(1.0) };
        }
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(DenseTensor::new(Dense::F32, bytes))
    }

    fn has(&self, name: &str) -> bool {
        self.0.has(name)
    }
}

fn outliers() -> Outliers {
    Outliers(RandomCheckpoint { config: llama(16), seed: 5 })
}

// Recording.

/// Keeps all inputs.
#[derive(Default)]
struct All(HashMap<Site, Vec<Array2<f32>>>);

impl Recorder for All {
    fn record(&mut self, site: Site, x: ArrayView2<'_, f32>) {
        self.0.entry(site).or_default().push(x.to_owned());
    }
}

#[test]
fn what_is_kept_is_of_all_inputs_of_the_texts() {
    for config in [llama(16), gemma(16)] {
        let model = load(config.clone(), EXACT);
        let mut all = All::default();
        let mut runner = runner(&model, &options(KvType::F32));
        for text in texts() {
            let id = runner.create().unwrap();
            let mut hooks = Hooks { recorder: Some(&mut all), ..Hooks::default() };
            runner.forward_with(&[Part::new(id, &text)], &mut hooks).unwrap().commit().unwrap();
            runner.free(id).unwrap();
        }
        for n_rows in [16, 1000] {
            let got = record(&model, CalibrationOptions { n_rows, ..Default::default() });
            assert_eq!((got.n_texts(), got.n_tokens()), (4, 166));
            for (site, batches) in &all.0 {
                let rows: Vec<_> = batches.iter().flat_map(|batch| batch.rows()).collect();
                let abs_max = got.abs_max(*site).unwrap();
                for (channel, abs_max) in abs_max.iter().enumerate() {
                    let want = rows.iter().map(|row| row[channel].abs()).fold(0.0, f32::max);
                    assert_eq!(*abs_max, want, "{site:?}");
                }
                let sample = got.sample(*site).unwrap();
                assert_eq!(sample.nrows(), n_rows.min(166), "{site:?}");
                let mut places = Vec::new();
                for row in sample.rows() {
                    places.push(rows.iter().position(|other| *other == row).unwrap());
                }
                places.sort_unstable();
                assert!(n_rows > 166 || places.last() > Some(&100), "{places:?}");
                let largest = abs_max.iter().copied().fold(0.0, f32::max);
                let scales = StaticScales::new(&got, Method::MinMax, Target::E4M3).unwrap();
                assert_eq!(scales.scale(*site), Some(largest / 448.0), "{site:?}");
            }
            let of = |projection| got.abs_max(Site { layer: 0, projection });
            assert!(of(Projection::K).is_none() && of(Projection::Head).is_none());
        }
    }
}

#[test]
fn pieces_change_nothing_and_windows_begin_anew() {
    let model = load(llama(16), EXACT);
    let site = Site { layer: 1, projection: Projection::Down };
    let with = |chunk, window| {
        let options = squish_model::RunnerOptions { chunk, ..options(KvType::F32) };
        let options_of_record = CalibrationOptions { window, n_rows: 20 };
        let texts = texts();
        let texts = texts.iter().map(|text| &text[..]);
        let got = Calibration::record(&mut runner(&model, &options), texts, options_of_record);
        let got = got.unwrap();
        (got.abs_max(site).unwrap(), bits_of(got.sample(site).unwrap()))
    };
    let whole = with(200, None);
    assert_eq!(with(7, None), whole);
    assert_eq!(with(200, Some(1000)), whole);
    assert_ne!(with(200, Some(16)), whole);
    assert_eq!(with(200, Some(16)), with(5, Some(16)));
}

#[test]
fn what_cannot_be_recorded_or_used_is_refused() {
    let config = llama(16);
    let model = load(config.clone(), EXACT);
    let mut runner = runner(&model, &options(KvType::F32));
    let mut record = |texts: &[&[u32]], options| {
        Calibration::record(&mut runner, texts.iter().copied(), options).map(|_| ())
    };
    let defaults = CalibrationOptions::default();
    for texts in [&[][..], &[&[][..]]] {
        let error = record(texts, defaults).unwrap_err();
        assert!(matches!(error, Error::TooFewTokens { expected: 1, actual: 0 }), "{error}");
    }
    let error = record(&[&[1]], CalibrationOptions { n_rows: 0, ..defaults }).unwrap_err();
    assert!(matches!(error, Error::Zero { what: "n_rows" }), "{error}");
    let error = record(&[&[1]], CalibrationOptions { window: Some(0), ..defaults }).unwrap_err();
    assert!(matches!(error, Error::Zero { what: "window" }), "{error}");
    let error = record(&[&[1, 1000]], defaults).unwrap_err();
    assert!(matches!(error, Error::Token { token: 1000, .. }), "{error}");
    // Nothing of it is left in the runner.
    for _ in 0..8 {
        record(&[&[1, 2]], defaults).unwrap();
    }

    let calibration = crate::calibration::record(&model, defaults);
    let mut other = config.clone();
    other.intermediate_size = 128;
    let random = RandomCheckpoint { config: other, seed: 5 };
    let error =
        Scaled::new(&random, &random.config, &calibration, SMOOTH, WeightFormat::Int4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the calibration has 96 inputs of `model.layers.0.mlp.down_proj`, the model 128"
    );
    let random = RandomCheckpoint { config, seed: 5 };
    let smooth = WeightMethod::Smooth { alpha: 2.0 };
    let error =
        Scaled::new(&random, &random.config, &calibration, smooth, WeightFormat::Int4).unwrap_err();
    assert!(error.to_string().contains("q_proj") && error.to_string().contains("alpha"), "{error}");
}

// Weights.

#[test]
fn scaled_weights_compute_what_they_did() {
    for config in configs() {
        let random = RandomCheckpoint { config: config.clone(), seed: 5 };
        let calibration = calibration(&random, &config);
        let want = logits(&load(config.clone(), EXACT), None);
        for (method, format) in [(SMOOTH, WeightFormat::F32), (AWQ, WeightFormat::Int4)] {
            let scaled = Scaled::new(&random, &config, &calibration, method, format).unwrap();
            let n_groups = if config.n_heads == config.n_kv_heads { 4 } else { 3 };
            assert_eq!(scaled.groups().len(), n_groups * config.n_layers());
            let changes = |group: &GroupScales| group.scales.iter().any(|&scale| scale != 1.0);
            // AWQ leaves alone what scales do not make better.
            assert!(method == AWQ || scaled.groups().iter().all(changes), "{method:?}");
            let model = Arc::new(Model::load(&scaled, &config, &EXACT).unwrap());
            let got = logits(&model, None);
            let largest = want.iter().fold(0_f32, |most, x| most.max(x.abs()));
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 3e-5 * largest, "{method:?}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn norms_keep_their_type_and_other_tensors_stay() {
    let config = biased(16);
    let random = RandomCheckpoint { config: config.clone(), seed: 5 };
    let calibration = calibration(&random, &config);
    let scaled = Scaled::new(&random, &config, &calibration, SMOOTH, WeightFormat::F32).unwrap();
    for (name, shape, dense, is_changed) in [
        ("model.layers.1.input_layernorm.weight", &[64][..], Dense::Bf16, true),
        ("model.layers.1.mlp.up_proj.bias", &[96], Dense::F32, true),
        ("model.layers.1.mlp.gate_proj.bias", &[96], Dense::Bf16, false),
        ("model.layers.1.self_attn.v_proj.weight", &[32, 64], Dense::F32, true),
        ("model.layers.1.self_attn.v_proj.bias", &[32], Dense::Bf16, false),
        ("model.layers.1.self_attn.o_proj.weight", &[64, 64], Dense::Bf16, false),
        ("model.norm.weight", &[64], Dense::Bf16, false),
        ("lm_head.weight", &[VOCAB, 64], Dense::Bf16, false),
    ] {
        let [got, was] = [&scaled as &dyn TensorSource, &random]
            .map(|source| source.tensor(name, shape).unwrap());
        assert_eq!(got.dense(), dense, "{name}");
        assert_eq!(got.to_f32() != was.to_f32(), is_changed, "{name}");
    }
}

#[test]
fn awq_is_never_worse_on_its_sample_and_better_in_the_end_where_inputs_have_outliers() {
    let source = outliers();
    let config = &source.0.config;
    let calibration = calibration(&source, config);
    let base = logits(&Arc::new(Model::load(&source, config, &EXACT).unwrap()), None);
    for format in [WeightFormat::Int4, WeightFormat::MxFp4, WeightFormat::Fp8E4M3] {
        let search = WeightMethod::Awq(AwqSearch::default());
        let scaled = Scaled::new(&source, config, &calibration, search, format).unwrap();
        for group in scaled.groups() {
            let [unscaled, error] = group.errors.unwrap();
            assert!(error <= unscaled && error > 0.0, "{format}, {:?}", group.site);
        }
        let packed = LoadOptions { weights: format, ..EXACT };
        let [nearest, awq] = [&source as &dyn TensorSource, &scaled].map(|source| {
            kl(&base, &logits(&Arc::new(Model::load(source, config, &packed).unwrap()), None))
        });
        if format == WeightFormat::Int4 {
            assert!(awq < 0.8 * nearest, "{format}: {awq} nats, {nearest} without");
        }
    }
}

// Inputs.

#[test]
fn inputs_are_rounded_to_multiples_of_the_scale_that_saturate() {
    let model = load(llama(16), EXACT);
    let calibration = record(&model, CalibrationOptions::default());
    let site = Site { layer: 0, projection: Projection::O };
    let scales = StaticScales::new(&calibration, Method::MinMax, INT8).unwrap();
    let scale = scales.scale(site).unwrap();
    let mut x = Array2::from_shape_fn([3, 64], |(row, col)| (row * 64 + col) as f32 * scale * 0.7);
    x[[0, 3]] = -1000.0 * scale;
    let before = x.clone();
    scales.round(site, x.view_mut());
    for (x, before) in x.iter().zip(&before) {
        let want = scale * (before / scale).round_ties_even().clamp(-128.0, 127.0);
        assert_eq!(*x, want);
    }
    // Sites without a scale are left alone.
    let mut x = before.clone();
    scales.round(Site { layer: 7, ..site }, ArrayViewMut2::from(&mut x));
    assert_eq!(x, before);
}

#[test]
fn static_scales_cost_little_and_smoothing_makes_them_cheaper_where_there_are_outliers() {
    let source = outliers();
    let config = &source.0.config;
    let model = Arc::new(Model::load(&source, config, &EXACT).unwrap());
    let base = logits(&model, None);
    let kl_of = |model: &Arc<Model>, method| {
        let calibration = record(model, CalibrationOptions::default());
        let scales = StaticScales::new(&calibration, method, INT8).unwrap();
        kl(&base, &logits(model, Some(&scales)))
    };
    let methods = [Method::MinMax, Method::Percentile(99.99), Method::Mse(MseSearch::default())];
    for method in methods {
        let kl = kl_of(&model, method);
        assert!(kl > 0.0 && kl < 0.1, "{method:?}: {kl}");
    }
    let calibration = record(&model, CalibrationOptions::default());
    let smooth = Scaled::new(&source, config, &calibration, SMOOTH, WeightFormat::F32).unwrap();
    let smooth = Arc::new(Model::load(&smooth, config, &EXACT).unwrap());
    let [plain, smooth] = [&model, &smooth].map(|model| kl_of(model, Method::MinMax));
    assert!(smooth < 0.5 * plain, "{smooth} nats, {plain} without");
}

// Checkpoints.

/// A folder with a model in `base`, and what is recorded of it.
fn saved(folder: &Path, config: &Value) -> Calibration {
    let base = folder.join("base");
    fs::create_dir(&base).unwrap();
    let config = config.to_string();
    let random =
        RandomCheckpoint { config: Config::from_json(config.as_bytes()).unwrap(), seed: 3 };
    write_tensors(&base, &tensors(&random));
    fs::write(base.join("config.json"), config).unwrap();
    calibration(&random, &random.config)
}

fn logits_of(folder: &Path, options: LoadOptions) -> Vec<Vec<u32>> {
    crate::saved::logits(folder, options)
}

#[test]
fn what_is_written_computes_as_the_scaled_tensors_packed_at_loading() {
    for layout in SavedLayout::ALL {
        for format in [WeightFormat::Int4, WeightFormat::F32, WeightFormat::Stored] {
            let folder = tempdir().unwrap();
            let mut config = small(false);
            (config["mlp_bias"], config["num_key_value_heads"]) = (json!(true), json!(4));
            let calibration = saved(folder.path(), &config);
            let [from, to] = ["base", "to"].map(|name| folder.path().join(name));
            let options = QuantizeOptions::of(format).laid_out(layout);
            let method = CalibrationMethod::Weights(SMOOTH);
            let report =
                quantize_calibrated(&from, &to, &options, &calibration, method, &mut |_| {})
                    .unwrap();
            assert_eq!(report.n_tensors, listing(&to).len());

            let config = Config::open(&from).unwrap();
            let checkpoint = Checkpoint::open(&from).unwrap();
            let scaled = Scaled::new(&checkpoint, &config, &calibration, SMOOTH, format).unwrap();
            let packed = LoadOptions { weights: format, ..LoadOptions::default() };
            let want = Arc::new(Model::load(&scaled, &config, &packed).unwrap());
            let mut runner = runner(&want, &crate::common::exact_options());
            let id = runner.create().unwrap();
            let text = text(23, config.vocab_size, 1);
            let part = Part::new(id, &text).with_logits(Wanted::All);
            let want = bits_of(runner.forward(&[part]).unwrap().logits().unwrap());
            let what = format!("{format}, {layout}");
            assert_same(&what, &logits_of(&to, LoadOptions::default()), &want);
            assert_ne!(want, logits_of(&from, packed), "{what}");
        }
    }
}

#[test]
fn static_scales_are_written_as_compressed_tensors_has_them_and_weights_read_as_before() {
    let folder = tempdir().unwrap();
    let calibration = saved(folder.path(), &small(false));
    let from = folder.path().join("base");
    for (format, name, kind, target, dtype) in [
        (WeightFormat::Fp8E4M3, "float-quantized", "float", Target::E4M3, Dtype::F8E4M3),
        (WeightFormat::Int8, "int-quantized", "int", INT8, Dtype::I8),
    ] {
        let to = folder.path().join(name);
        let method = Method::Percentile(99.9);
        quantize_calibrated(
            &from,
            &to,
            &QuantizeOptions::of(format),
            &calibration,
            CalibrationMethod::Inputs(method),
            &mut |_| {},
        )
        .unwrap();
        let json: Value =
            serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
        let quantization = &json["quantization_config"];
        assert_eq!(quantization["format"], name);
        let group = &quantization["config_groups"]["group_0"];
        assert_eq!(
            group["input_activations"],
            json!({"num_bits": 8, "type": kind, "symmetric": true, "strategy": "tensor", "dynamic": false})
        );
        assert_eq!(group["weights"]["strategy"], "channel");

        let scales = StaticScales::new(&calibration, method, target).unwrap();
        let checkpoint = Checkpoint::open(&to).unwrap();
        for layer in 0..2 {
            for projection in Projection::OF_LAYER {
                let module = projection.module(layer);
                let view = checkpoint.tensor(&format!("{module}.input_scale")).unwrap();
                assert_eq!((view.dtype(), view.shape()), (Dtype::F32, &[1][..]));
                let scale = f32::from_le_bytes(view.bytes().try_into().unwrap());
                let site = Site { layer, projection: projection.sharing() };
                assert_eq!(Some(scale), scales.scale(site));
                assert_eq!(checkpoint.get(&format!("{module}.weight")).unwrap().dtype(), dtype);
            }
        }
        // Weights are those of the format; of INT8 with a scale for each output.
        let got = logits_of(&to, LoadOptions::default());
        if format == WeightFormat::Fp8E4M3 {
            let plain = folder.path().join("plain");
            quantize(&from, &plain, &QuantizeOptions::of(format)).unwrap();
            assert_same(name, &got, &logits_of(&plain, LoadOptions::default()));
        }
    }
    for options in [
        QuantizeOptions::of(WeightFormat::Int4),
        QuantizeOptions::of(WeightFormat::Int8).laid_out(SavedLayout::Squish),
    ] {
        let to = folder.path().join("refused");
        let method = CalibrationMethod::Inputs(Method::MinMax);
        let error = quantize_calibrated(&from, &to, &options, &calibration, method, &mut |_| {});
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Unsupported { field: "format", .. }), "{error}");
        assert!(!to.exists());
    }
}
