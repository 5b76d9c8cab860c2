//! Weights from checkpoints: types, shapes, formats, what is missing and what is too much.

use std::{cell::RefCell, path::Path, sync::Arc};

use half::{bf16, f16};
use squish_checkpoint::{CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use squish_model::{
    Checkpoint, Config, Dense, DenseTensor, Error, KvOptions, KvType, LoadOptions, Model, Part,
    Projection, RandomCheckpoint, Runner, RunnerOptions, TensorSource, Wanted, WeightFormat,
};

use crate::common::{EXACT, FIXTURE, SMALL, exact_options, small};

/// Of a loader that rounds nothing and adds in one order, whatever the checkpoint has.
const F32: LoadOptions =
    LoadOptions { weights: WeightFormat::F32, head: WeightFormat::F32, ..EXACT };

/// The small model with every tensor that a model can have.
fn complete() -> RandomCheckpoint {
    let mut random = small();
    let config = &mut random.config;
    (config.qkv_bias, config.o_bias, config.mlp_bias) = (true, true, true);
    (config.qk_norm, config.post_norms) = (true, true);
    random
}

/// Numbers of [`RandomCheckpoint`] in multiples of 1/64: all three types of floats hold them.
struct Coarse<'a> {
    random: &'a RandomCheckpoint,
    /// The tensors that were asked for, with their shapes.
    asked: RefCell<Vec<(String, Vec<usize>)>>,
}

impl<'a> Coarse<'a> {
    fn new(random: &'a RandomCheckpoint) -> Self {
        Self { random, asked: RefCell::default() }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let values = self.random.tensor(name, shape).unwrap().to_f32();
        values.into_iter().map(|x| (x * 64.0).round() / 64.0).collect()
    }
}

impl TensorSource for Coarse<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        self.asked.borrow_mut().push((name.to_owned(), shape.to_vec()));
        Ok(DenseTensor::new(Dense::F32, bytes_of(&self.values(name, shape), Dtype::F32)))
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

/// Another source with a change.
struct Changed<'a, F>(&'a dyn TensorSource, F);

impl<F: Fn(&str, DenseTensor) -> DenseTensor> TensorSource for Changed<'_, F> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        Ok((self.1)(name, self.0.tensor(name, shape)?))
    }

    fn has(&self, name: &str) -> bool {
        self.0.has(name)
    }
}

/// The tensors of a model.
fn tensors(random: &RandomCheckpoint) -> Vec<(String, Vec<usize>)> {
    let source = Coarse::new(random);
    Model::load(&source, &random.config, &EXACT).unwrap();
    source.asked.into_inner()
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        other => panic!("{other} is no type of the tests"),
    }
}

/// Writes a checkpoint of coarse numbers, after `change` had its way with the list of its tensors.
fn write(
    folder: &Path,
    random: &RandomCheckpoint,
    dtype: Dtype,
    change: impl FnOnce(&mut Vec<TensorSpec>),
) -> Checkpoint {
    let tensors = tensors(random);
    let mut specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, shape)| TensorSpec::new(name, dtype, &shape[..])).collect();
    change(&mut specs);
    let mut writer = CheckpointWriter::create(folder, &specs, &WriterOptions::default()).unwrap();
    while let Some(spec) = writer.next_tensor().cloned() {
        let bytes = match spec.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
                let shape = &tensors.iter().find(|(name, _)| *name == spec.name).unwrap().1;
                bytes_of(&Coarse::new(random).values(&spec.name, shape), spec.dtype)
            }
            _ => vec![0; spec.n_bytes().unwrap()],
        };
        writer.write(&spec.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(folder).unwrap()
}

/// The bits of all logits of a short text.
fn logits(model: Model) -> Vec<u32> {
    let mut runner = Runner::new(Arc::new(model), &exact_options()).unwrap();
    let id = runner.create().unwrap();
    let part = Part::new(id, &[3, 1, 4, 1, 5, 9, 2, 6]).with_logits(Wanted::All);
    let mut output = runner.forward(&[part]).unwrap();
    output.logits().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn load(source: &dyn TensorSource, config: &Config, options: LoadOptions) -> Vec<u32> {
    logits(Model::load(source, config, &options).unwrap())
}

#[test]
fn types_that_hold_the_numbers_give_the_same_logits() {
    let random = complete();
    let want = load(&Coarse::new(&random), &random.config, F32);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = write(folder.path(), &random, dtype, |_| ());
        assert_eq!(load(&checkpoint, &random.config, F32), want, "{dtype}");
        // Packed as they are, they are added in another order.
        let stored = load(&checkpoint, &random.config, EXACT);
        for (got, want) in stored.iter().zip(&want) {
            let (got, want) = (f32::from_bits(*got), f32::from_bits(*want));
            assert!((got - want).abs() <= 1e-5, "{dtype}: {got} is not {want}");
        }
    }
}

#[test]
fn a_format_asked_for_is_that_of_a_checkpoint_stored_so() {
    let random = complete();
    for (dtype, format) in [
        (Dtype::F32, WeightFormat::F32),
        (Dtype::F16, WeightFormat::F16),
        (Dtype::BF16, WeightFormat::Bf16),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = write(folder.path(), &random, dtype, |_| ());
        let stored = load(&checkpoint, &random.config, EXACT);
        let asked = LoadOptions::of(format).exact();
        assert_eq!(load(&Coarse::new(&random), &random.config, asked), stored, "{dtype}");
    }
}

#[test]
fn a_folder_opens_as_a_model() {
    let folder = tempfile::tempdir().unwrap();
    drop(write(folder.path(), &small(), Dtype::BF16, |_| ()));
    std::fs::write(folder.path().join("config.json"), SMALL).unwrap();
    let model = Model::open(folder.path(), &F32).unwrap();
    assert_eq!(model.config(), &small().config);
    assert_eq!(logits(model), load(&Coarse::new(&small()), &small().config, F32));
}

#[test]
fn every_missing_tensor_is_named() {
    let random = complete();
    let n_tensors = tensors(&random).len();
    // Embedding, norm and head; of each of two layers 7 matrices with biases, 4 norms, and 2 of heads.
    assert_eq!(n_tensors, 3 + 2 * (2 * 7 + 4 + 2));
    for i in 0..n_tensors {
        let folder = tempfile::tempdir().unwrap();
        let mut name = String::new();
        let checkpoint =
            write(folder.path(), &random, Dtype::F32, |specs| name = specs.remove(i).name);
        let error = Model::load(&checkpoint, &random.config, &EXACT).unwrap_err();
        assert!(matches!(error, Error::Checkpoint(_)), "{error:?}");
        assert_eq!(error.to_string(), format!("no tensor `{name}` among {}", n_tensors - 1));
    }
}

#[test]
fn every_wrong_shape_is_named_with_both_shapes() {
    let random = complete();
    for i in 0..tensors(&random).len() {
        let folder = tempfile::tempdir().unwrap();
        let (mut name, mut expected, mut actual) = (String::new(), Vec::new(), Vec::new());
        let checkpoint = write(folder.path(), &random, Dtype::F32, |specs| {
            // The same number of elements, so that nothing but the shape tells.
            let spec = &mut specs[i];
            (name, expected) = (spec.name.clone(), spec.shape.clone());
            spec.shape.insert(0, 1);
            actual.clone_from(&spec.shape);
        });
        let error = Model::load(&checkpoint, &random.config, &EXACT).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`{name}` has shape {actual:?}, expected {expected:?}")
        );
    }
}

#[test]
fn numbers_that_are_no_floats_of_16_or_32_bits_are_refused() {
    let name = "model.layers.1.self_attn.o_proj.weight";
    for dtype in [Dtype::F8E4M3, Dtype::I32, Dtype::F64, Dtype::U8] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = write(folder.path(), &small(), Dtype::BF16, |specs| {
            specs.iter_mut().find(|spec| spec.name == name).unwrap().dtype = dtype;
        });
        let error = Model::load(&checkpoint, &small().config, &EXACT).unwrap_err();
        assert!(matches!(error, Error::Dtype { actual, .. } if actual == dtype), "{error:?}");
        assert_eq!(error.to_string(), format!("`{name}` is {dtype}, expected F32, F16 or BF16"));
    }
}

#[test]
fn tensors_of_another_number_of_elements_than_their_shape_are_refused() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let short = |of: &str, tensor: DenseTensor| {
        if of == name {
            DenseTensor::new(tensor.dense(), tensor.bytes()[2..].to_vec())
        } else {
            tensor
        }
    };
    let error = Model::load(&Changed(&small(), short), &small().config, &EXACT).unwrap_err();
    assert!(matches!(error, Error::Length { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("`{name}` has 559 elements, shape [28, 20] needs 560"));
}

#[test]
fn surplus_tensors_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["model.layers.2.input_layernorm.weight", "model.layers.0.rotary_emb.inv_freq"];
    let checkpoint = write(folder.path(), &small(), Dtype::F32, |specs| {
        specs.extend(names.map(|name| TensorSpec::new(name, Dtype::I64, [2])));
    });
    let want = load(&Coarse::new(&small()), &small().config, F32);
    assert_eq!(load(&checkpoint, &small().config, F32), want);
}

#[test]
fn a_tied_head_is_the_embedding_and_another_is_not() {
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let random = small();
    let mut tied = random.config.clone();
    tied.tie_word_embeddings = true;
    let source = Coarse::new(&random);
    let apart = load(&source, &random.config, F32);
    let together = load(&source, &tied, F32);
    assert_ne!(apart, together);
    let n_heads = source.asked.borrow().iter().filter(|(name, _)| name == head).count();
    assert_eq!(n_heads, 1);
    // An own head with the numbers of the embedding.
    let equal = |name: &str, tensor: DenseTensor| {
        if name == head {
            Coarse::new(&random).tensor(embedding, &[50, 20]).unwrap()
        } else {
            tensor
        }
    };
    assert_eq!(load(&Changed(&source, equal), &random.config, F32), together);
    // A tied model does without a head, or with one that is not read.
    for n_heads in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = write(folder.path(), &random, Dtype::F32, |specs| {
            specs.retain(|spec| spec.name != head || n_heads == 1);
        });
        assert_eq!(load(&checkpoint, &tied, F32), together, "{n_heads}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_formats_that_cannot_hold_them() {
    let random = wide();
    let name = "model.layers.1.mlp.down_proj.weight";
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let broken = |of: &str, tensor: DenseTensor| {
            let mut values = tensor.to_f32();
            if of == name {
                values[7] = value;
            }
            DenseTensor::new(Dense::F32, bytes_of(&values, Dtype::F32))
        };
        for format in WeightFormat::ALL {
            let options = LoadOptions { weights: format, ..LoadOptions::default() };
            let result = Model::load(&Changed(&random, broken), &random.config, &options);
            match format {
                WeightFormat::Stored
                | WeightFormat::F32
                | WeightFormat::Bf16
                | WeightFormat::F16 => {
                    assert!(result.is_ok(), "{format}: {result:?}");
                }
                _ => {
                    let message = format!("`{name}`: element 7 is {value}");
                    assert_eq!(result.unwrap_err().to_string(), message, "{format}");
                }
            }
        }
    }
}

/// A model whose inputs are whole blocks of every format.
fn wide() -> RandomCheckpoint {
    RandomCheckpoint { config: Config::llama(128, 256, 2, [4, 2, 32], 64, 64), seed: 3 }
}

#[test]
fn rows_that_do_not_fill_blocks_of_mxfp4_are_refused() {
    let name = "model.layers.0.self_attn.q_proj.weight";
    let options = LoadOptions { weights: WeightFormat::MxFp4, ..LoadOptions::default() };
    let error = Model::load(&small(), &small().config, &options).unwrap_err();
    assert!(matches!(error, Error::Pack { .. }), "{error:?}");
    let message = format!("`{name}`: rows of 20 elements are no multiple of the block of 32");
    assert_eq!(error.to_string(), message);
    // The head has a format of its own.
    let options = LoadOptions { head: WeightFormat::MxFp4, ..LoadOptions::default() };
    let error = Model::load(&small(), &small().config, &options).unwrap_err();
    assert!(error.to_string().starts_with("`lm_head.weight`: rows of 20"), "{error}");
}

#[test]
fn a_configuration_that_was_changed_is_checked_before_a_tensor_is_read() {
    struct Nothing;
    impl TensorSource for Nothing {
        fn tensor(&self, name: &str, _: &[usize]) -> Result<DenseTensor, Error> {
            panic!("`{name}` is read")
        }
        fn has(&self, name: &str) -> bool {
            panic!("`{name}` is looked for")
        }
    }
    let mut config = small().config;
    config.n_kv_heads = 4;
    let error = Model::load(&Nothing, &config, &EXACT).unwrap_err();
    assert!(matches!(error, Error::NotDivisible { .. }), "{error:?}");
    let mut config = small().config;
    config.layers[1].rope = 1;
    let error = Model::load(&Nothing, &config, &EXACT).unwrap_err();
    assert!(matches!(error, Error::ConfigValue { field: "ropes", .. }), "{error:?}");
}

/// More than any machine has.
const HUGE: usize = 1 << 50;

#[test]
fn numbers_larger_than_memory_are_refused_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(folder.path(), &small(), Dtype::F32, |_| ());
    for (change, message) in [
        (
            (|c| c.vocab_size = HUGE) as fn(&mut Config),
            "`model.embed_tokens.weight` has shape [50, 20], expected [1125899906842624, 20]",
        ),
        (
            |c| c.intermediate_size = HUGE,
            "`model.layers.0.mlp.gate_proj.weight` has shape [28, 20], expected [1125899906842624, 20]",
        ),
        (
            |c| c.n_heads = 3 * HUGE,
            "`model.layers.0.self_attn.q_proj.weight` has shape [24, 20], expected [13510798882111488, 20]",
        ),
        (
            |c| c.layers = vec![c.layers[0]; 1 << 20],
            "no tensor `model.layers.2.post_attention_layernorm.weight` among 21",
        ),
    ] {
        let mut config = small().config;
        change(&mut config);
        let error = Model::load(&checkpoint, &config, &EXACT).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    // A context costs nothing before it is filled.
    let mut config = small().config;
    let want = load(&checkpoint, &config, F32);
    config.max_position_embeddings = HUGE;
    config.ropes[0].max_position_embeddings = HUGE;
    assert_eq!(load(&checkpoint, &config, F32), want);
}

#[test]
fn random_weights_depend_on_seed_and_name_alone() {
    let random = RandomCheckpoint { config: RandomCheckpoint::llama_3_8b(1), seed: 7 };
    let other = RandomCheckpoint { config: RandomCheckpoint::llama_3_2_1b(), seed: 7 };
    let numbers = |random: &RandomCheckpoint, name: &str, shape: &[usize]| {
        random.tensor(name, shape).unwrap().to_f32()
    };
    let first = numbers(&random, "a.weight", &[16, 64]);
    assert_eq!(numbers(&other, "a.weight", &[16, 64]), first);
    assert_ne!(numbers(&random, "b.weight", &[16, 64]), first);
    let seeded = RandomCheckpoint { seed: 8, ..random.clone() };
    assert_ne!(numbers(&seeded, "a.weight", &[16, 64]), first);
    // More outputs are more of the same; so are the numbers of a thread that begins elsewhere.
    assert_eq!(numbers(&random, "a.weight", &[32, 64])[..16 * 64], first);
    // The deviation is that of the documentation.
    for (name, shape, mean, deviation) in [
        ("a.weight", &[400, 64][..], 0.0, 0.125),
        ("q_proj.bias", &[20_000], 0.0, 0.1),
        ("input_layernorm.weight", &[20_000], 1.0, 0.1),
    ] {
        let numbers = numbers(&random, name, shape);
        let n = numbers.len() as f64;
        let average = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let squares = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        assert!((average - mean).abs() < 0.03 * deviation, "{name}: {average}");
        assert!((squares.sqrt() / deviation - 1.0).abs() < 0.02, "{name}: {squares}");
    }
}

#[test]
fn formats_and_types_are_called_by_their_names() {
    for format in WeightFormat::ALL {
        assert_eq!(format.to_string().parse::<WeightFormat>().unwrap(), format);
    }
    for kv in KvType::ALL {
        assert_eq!(kv.to_string().parse::<KvType>().unwrap(), kv);
    }
    for name in ["", "F32", "fp8", "mxfp4 ", "int4, int8"] {
        let error = name.parse::<WeightFormat>().unwrap_err();
        assert!(matches!(&error, Error::Name { actual, .. } if actual == name), "{error:?}");
        // Each is named among those that there are.
        let message = error.to_string();
        assert!(
            WeightFormat::ALL.iter().all(|format| message.contains(format.name())),
            "{message}"
        );
        let message = name.parse::<KvType>().unwrap_err().to_string();
        assert!(KvType::ALL.iter().all(|kv| message.contains(kv.name())), "{message}");
    }
    let long = "x".repeat(1 << 20).parse::<KvType>().unwrap_err();
    assert!(long.to_string().len() < 1000);
}

#[test]
fn bytes_are_those_of_matrices_norms_and_biases() {
    // Rows fill blocks and lines, outputs fill panels: nothing is padded.
    let mut random = wide();
    random.config.tie_word_embeddings = false;
    (random.config.qkv_bias, random.config.qk_norm) = (true, true);
    let config = &random.config;
    let count = |[outputs, inputs]: [usize; 2]| outputs * inputs;
    let layer = Projection::OF_LAYER.map(|projection| projection.shape(config));
    let n_weights = 2 * layer.into_iter().map(count).sum::<usize>();
    let n_outputs = 2 * layer.iter().map(|shape| shape[0]).sum::<usize>();
    let n_head = count(Projection::Head.shape(config));
    // Of 2 layers: 2 norms and those of heads, the biases; the last norm.
    let vectors = 4 * (2 * (2 * 128 + 2 * 32 + config.q_dim() + 2 * config.kv_dim()) + 128);
    let embedding = 2 * n_head;
    for format in WeightFormat::ALL {
        let options = LoadOptions { weights: format, ..LoadOptions::default() };
        let model = Model::load(&random, config, &options).unwrap();
        let matrices = match format {
            WeightFormat::F32 => 4 * n_weights,
            WeightFormat::Stored | WeightFormat::Bf16 | WeightFormat::F16 => 2 * n_weights,
            WeightFormat::Fp8E4M3 | WeightFormat::Fp8E5M2 => n_weights + 4 * n_outputs,
            WeightFormat::MxFp4 => n_weights / 2 + n_weights / 32,
            WeightFormat::MxFp8E4M3
            | WeightFormat::MxFp8E5M2
            | WeightFormat::MxFp6E3M2
            | WeightFormat::MxFp6E2M3
            | WeightFormat::MxInt8 => n_weights + n_weights / 32,
            WeightFormat::NvFp4 => n_weights / 2 + n_weights / 16 + 4 * n_outputs,
            WeightFormat::Int8 => n_weights + 4 * n_weights / 128,
            WeightFormat::Int4 => n_weights / 2 + 4 * n_weights / 32,
            other => panic!("{other} is new"),
        };
        assert_eq!(model.n_bytes(), matrices + vectors + 2 * n_head, "{format}");
        assert_eq!(model.n_own_bytes(), model.n_bytes() + embedding, "{format}");
    }
    // What stands by input, too, no step reads in addition.
    let options = LoadOptions { mlp_by_input: true, ..LoadOptions::of(WeightFormat::Bf16) };
    let model = Model::load(&random, config, &options).unwrap();
    let mlp = [Projection::Gate, Projection::Up, Projection::Down];
    // Columns have whole blocks of 128 outputs.
    let of_mlp = |[outputs, inputs]: [usize; 2]| 2 * 2 * outputs.next_multiple_of(128) * inputs;
    let columns: usize = mlp.map(|projection| of_mlp(projection.shape(config))).iter().sum();
    assert_eq!(model.n_own_bytes(), model.n_bytes() + embedding + columns);
    // The embedding of a file is read where it is mapped.
    let model = Model::open(FIXTURE, &EXACT).unwrap();
    assert_eq!(model.n_own_bytes(), model.n_bytes());
}

#[test]
fn bytes_of_keys_and_values_are_those_of_numbers_and_scales() {
    // 2 heads of 32.
    let config = wide().config;
    for (kv, n_bytes) in [
        (KvType::F32, 512),
        (KvType::Bf16, 256),
        (KvType::F16, 256),
        (KvType::Int8, 128 + 16),
        (KvType::Fp8E4M3, 128 + 16),
        (KvType::Fp8E5M2, 128 + 16),
    ] {
        assert_eq!(kv.n_bytes(&config), n_bytes, "{kv}");
    }
}

/// What is said of a result that is an error.
fn said<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn errors_say_what_is_wrong_in_one_line() {
    let mut messages = Vec::new();
    let mut config = |fields: &str| {
        let json = SMALL.replace("\"hidden_size\": 20", fields);
        messages.push(said(Config::from_json(json.as_bytes())));
    };
    config("\"hidden\": 20");
    config("\"hidden_size\": 0");
    config("\"hidden_size\": 20, \"quantization_config\": {\"quant_method\": \"gptq\"}");
    config("\"hidden_size\": 20, \"rope_scaling\": {\"rope_type\": \"spiral\"}");
    config("\"hidden_size\": 1152921504606846976");

    let folder = tempfile::tempdir().unwrap();
    messages
        .push(said(Config::open(folder.path())).replace(folder.path().to_str().unwrap(), "FOLDER"));
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    messages
        .push(said(Config::open(folder.path())).replace(folder.path().to_str().unwrap(), "FOLDER"));

    let random = small();
    let checkpoint = write(folder.path(), &random, Dtype::F32, |specs| {
        specs.retain(|spec| spec.name != "model.norm.weight");
        specs[0].dtype = Dtype::F64;
    });
    let mut untouched = random.config.clone();
    untouched.n_kv_heads = 4;
    messages.push(said(Model::load(&checkpoint, &untouched, &EXACT)));
    messages.push(said(Model::load(&checkpoint, &random.config, &EXACT)));
    messages.push(said(Model::load(
        &random,
        &random.config,
        &LoadOptions::of(WeightFormat::MxFp4),
    )));
    messages.push(said("q4_0".parse::<WeightFormat>()));
    messages.push(said("q8_0".parse::<KvType>()));

    let model = Arc::new(Model::load(&random, &random.config, &EXACT).unwrap());
    let runner = |change: fn(&mut RunnerOptions)| {
        let mut options = exact_options();
        change(&mut options);
        Runner::new(Arc::clone(&model), &options)
    };
    messages.push(said(runner(|options| options.chunk = 0)));
    let mut runner =
        runner(|options| options.kv = KvOptions { n_tokens: 32, ..options.kv }).unwrap();
    let id = runner.create().unwrap();
    for part in [
        Part::new(id, &[]),
        Part::new(id, &[1, 50]),
        Part::new(id, &[1; 25]),
        Part::tree(id, &[1, 2], &[None]),
        Part::tree(id, &[1, 2], &[None, Some(1)]),
    ] {
        messages.push(said(runner.forward(&[part]).map(drop)));
    }
    let part = Part::new(id, &[1]);
    messages.push(said(runner.forward(&[part, part]).map(drop)));
    runner.free(id).unwrap();
    messages.push(said(runner.forward(&[part]).map(drop)));
    insta::assert_snapshot!(messages.join("\n"), @r#"
    no configuration: missing field `hidden_size` at line 3 column 56
    `hidden_size` is 0, expected at least 1
    `quantization_config` is {"quant_method":"gptq"}, supported: weights that are floats
    `rope_type` is spiral, supported: default, linear, dynamic, yarn, longrope, llama3, proportional
    `hidden_size` 1152921504606846976 times `vocab_size` 50 overflows
    cannot read `FOLDER/config.json`: No such file or directory (os error 2)
    `FOLDER/config.json`: no configuration: missing field `hidden_size` at line 1 column 2
    `num_attention_heads` is 6, no multiple of `num_key_value_heads`, which is 4
    `model.embed_tokens.weight` is F64, expected F32, F16 or BF16
    `model.layers.0.self_attn.q_proj.weight`: rows of 20 elements are no multiple of the block of 32
    no format of weights is called `q4_0`, expected stored, f32, bf16, f16, fp8-e4m3, fp8-e5m2, mxfp4, mxfp8-e4m3, mxfp8-e5m2, mxfp6-e3m2, mxfp6-e2m3, mxint8, nvfp4, int8 or int4
    no type of keys and values is called `q8_0`, expected f32, bf16, f16, int8, fp8-e4m3 or fp8-e5m2
    `chunk` is 0, expected at least 1
    0 tokens, expected at least 1
    token 50 at index 1 is outside the vocabulary of 50
    25 tokens exceed the model's context of 24
    1 parents for 2 tokens
    node 1 of the tree has parent 1, expected a node before it
    the sequence is named by two parts
    the sequence is not there
    "#);
}
