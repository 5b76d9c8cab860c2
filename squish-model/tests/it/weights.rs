//! Weights from checkpoints: types, shapes, what is missing and what is too much.

use std::path::Path;

use squish_checkpoint::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use squish_model::{Error, Kind, Reference, Weights};

use crate::common::{FIXTURE, MODEL, SMALL, small_config, small_weights};

/// Writes a checkpoint of the small model, after `change` had its way with the list of its tensors.
fn write(
    folder: &Path,
    dtype: Dtype,
    change: impl FnOnce(&mut Vec<(TensorSpec, Vec<f32>)>),
) -> Checkpoint {
    let weights = small_weights(7);
    let mut tensors: Vec<(TensorSpec, Vec<f32>)> = weights
        .tensors()
        .map(|t| (TensorSpec::new(t.name(), dtype, t.shape()), t.data().to_vec()))
        .collect();
    change(&mut tensors);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = CheckpointWriter::create(folder, &specs, &WriterOptions::default()).unwrap();
    while let Some(spec) = writer.next_tensor().cloned() {
        let data = &tensors.iter().find(|(other, _)| other.name == spec.name).unwrap().1;
        let bytes: Vec<u8> = match spec.dtype {
            Dtype::F32 => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => data.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => {
                data.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
            }
            _ => vec![0; spec.n_bytes().unwrap()],
        };
        writer.write(&spec.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(folder).unwrap()
}

#[test]
fn each_float_type_is_widened_exactly() {
    let exact = small_weights(7);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = tempfile::tempdir().unwrap();
        let loaded = Weights::load(&write(folder.path(), dtype, |_| ()), &small_config()).unwrap();
        assert!(loaded.surplus().is_empty());
        for (got, exact) in loaded.tensors().zip(exact.tensors()) {
            assert_eq!(
                (got.name(), got.shape(), got.kind()),
                (exact.name(), exact.shape(), exact.kind())
            );
            let rounded = |&x: &f32| match dtype {
                Dtype::F16 => half::f16::from_f32(x).to_f32(),
                Dtype::BF16 => half::bf16::from_f32(x).to_f32(),
                _ => x,
            };
            let want: Vec<f32> = exact.data().iter().map(rounded).collect();
            assert_eq!(got.data(), want, "{} as {dtype}", got.name());
        }
    }
}

#[test]
fn a_folder_opens_as_a_model() {
    let folder = tempfile::tempdir().unwrap();
    drop(write(folder.path(), Dtype::F32, |_| ()));
    std::fs::write(folder.path().join("config.json"), SMALL).unwrap();
    let model = Reference::open(folder.path()).unwrap();
    assert_eq!(model.config(), &small_config());
    let want = Reference::new(small_weights(7)).logits(&[3, 1, 4]).unwrap();
    assert_eq!(model.logits(&[3, 1, 4]).unwrap(), want);
}

#[test]
fn every_missing_tensor_is_named() {
    for i in 0..small_weights(7).tensors().count() {
        let folder = tempfile::tempdir().unwrap();
        let mut name = String::new();
        let checkpoint =
            write(folder.path(), Dtype::F32, |tensors| name = tensors.remove(i).0.name);
        let error = Weights::load(&checkpoint, &small_config()).unwrap_err();
        assert_eq!(error.to_string(), format!("no tensor `{name}` among 20"));
    }
}

#[test]
fn every_wrong_shape_is_named_with_both_shapes() {
    for i in 0..small_weights(7).tensors().count() {
        let folder = tempfile::tempdir().unwrap();
        let (mut name, mut expected, mut actual) = (String::new(), Vec::new(), Vec::new());
        let checkpoint = write(folder.path(), Dtype::F32, |tensors| {
            // The same number of elements, so that nothing but the shape tells.
            let spec = &mut tensors[i].0;
            (name, expected) = (spec.name.clone(), spec.shape.clone());
            spec.shape.insert(0, 1);
            actual.clone_from(&spec.shape);
        });
        let error = Weights::load(&checkpoint, &small_config()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`{name}` has shape {actual:?}, expected {expected:?}")
        );
    }
}

#[test]
fn a_transposed_matrix_and_a_wrong_type_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(folder.path(), Dtype::F32, |tensors| tensors[2].0.shape.reverse());
    assert_eq!(
        Weights::load(&checkpoint, &small_config()).unwrap_err().to_string(),
        "`model.layers.0.self_attn.q_proj.weight` has shape [20, 24], expected [24, 20]"
    );
    for dtype in [Dtype::F8E4M3, Dtype::I32, Dtype::F64, Dtype::U8] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = write(folder.path(), Dtype::F32, |tensors| tensors[1].0.dtype = dtype);
        let error = Weights::load(&checkpoint, &small_config()).unwrap_err();
        assert!(matches!(error, Error::Dtype { actual, .. } if actual == dtype), "{error:?}");
        let name = "model.layers.0.input_layernorm.weight";
        assert_eq!(error.to_string(), format!("`{name}` is {dtype}, expected F32, F16 or BF16"));
    }
}

#[test]
fn surplus_tensors_are_reported_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let extra =
        ["model.layers.2.input_layernorm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"];
    let checkpoint = write(folder.path(), Dtype::F32, |tensors| {
        tensors.extend(extra.map(|name| (TensorSpec::new(name, Dtype::I64, [2]), Vec::new())));
    });
    let weights = Weights::load(&checkpoint, &small_config()).unwrap();
    assert_eq!(weights.surplus(), [extra[1], extra[0]]);
    assert!(weights.tensors().eq(small_weights(7).tensors()));
}

#[test]
fn more_layers_than_a_checkpoint_has_end_at_the_first_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(folder.path(), Dtype::F32, |_| ());
    let mut config = small_config();
    config.n_layers = usize::MAX;
    let error = Weights::load(&checkpoint, &config).unwrap_err();
    assert_eq!(error.to_string(), "no tensor `model.layers.2.input_layernorm.weight` among 21");
    config.head_dim = 3;
    let error = Weights::load(&checkpoint, &config).unwrap_err();
    assert!(matches!(error, Error::ConfigValue { field: "head_dim", .. }), "{error:?}");
}

#[test]
fn elements_of_the_wrong_number_are_refused() {
    let error = Weights::from_fn(&small_config(), |name, shape| {
        let missing = usize::from(name.ends_with("layers.1.mlp.up_proj.weight"));
        Ok(vec![0.0; shape.iter().product::<usize>() - missing])
    })
    .unwrap_err();
    let message = "`model.layers.1.mlp.up_proj.weight` has 559 elements, shape [28, 20] needs 560";
    assert_eq!(error.to_string(), message);
}

#[test]
fn the_kinds_tell_the_fixture_s_tensors_apart() {
    let weights = MODEL.weights();
    let count = |kind| weights.tensors().filter(|tensor| tensor.kind() == kind).count();
    assert_eq!([Kind::Embedding, Kind::Norm, Kind::Linear, Kind::Head].map(count), [1, 13, 42, 0]);
    assert_eq!(weights.tensors().map(|tensor| tensor.data().len()).sum::<usize>(), 4_754_688);
    let linear = |name: &str| name.ends_with("_proj.weight");
    assert!(weights.tensors().all(|t| linear(t.name()) == (t.kind() == Kind::Linear)));
    let checkpoint = Checkpoint::open(FIXTURE).unwrap();
    assert_eq!((checkpoint.len(), weights.surplus().len()), (56, 0));
}

#[test]
fn changing_a_tensor_changes_the_model_and_nothing_else() {
    let untouched = small_weights(7);
    for i in 0..untouched.tensors().count() {
        let mut weights = untouched.clone();
        for x in weights.tensors_mut().nth(i).unwrap().data_mut() {
            *x *= 1.5;
        }
        let changed: Vec<usize> = (0..untouched.tensors().count())
            .filter(|&j| weights.tensors().nth(j) != untouched.tensors().nth(j))
            .collect();
        assert_eq!(changed, [i]);
        let name = weights.tensors().nth(i).unwrap().name().to_owned();
        let before = Reference::new(untouched.clone()).logits(&[9, 8, 7]).unwrap();
        assert_ne!(Reference::new(weights).logits(&[9, 8, 7]).unwrap(), before, "{name}");
    }
}
