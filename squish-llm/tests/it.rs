//! The parts meet in one program: a checkpoint's tensor through a codec and a kernel.

#![cfg(all(feature = "checkpoint", feature = "kernels", feature = "quant"))]

use squish_llm::{
    checkpoint::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions},
    kernels::dot,
    quant::{Fp8Quantizer, ndarray::ArrayView2},
};

#[test]
fn a_tensor_goes_from_a_checkpoint_through_a_codec_into_a_product() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let values: Vec<f32> = (0..64).map(|i| f32::from(i as u8) - 31.5).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let spec = TensorSpec::new("weight", Dtype::F32, [4, 16]);
    let mut writer = CheckpointWriter::create(folder.path(), &[spec], &WriterOptions::default())
        .expect("a new checkpoint");
    writer.write("weight", &bytes).expect("the tensor of the layout");
    writer.finish().expect("all tensors are there");

    let checkpoint = Checkpoint::open(folder.path()).expect("what was written");
    let weight = checkpoint.tensor("weight").expect("its tensor");
    let weight = weight.to_vec::<f32>().expect("floats");
    assert_eq!(weight, values);
    let decoded = Fp8Quantizer::default()
        .encode(ArrayView2::from_shape((4, 16), &weight).expect("its shape"))
        .expect("finite")
        .decode();
    let (exact, rounded) =
        (dot(&values, &values), dot(decoded.as_slice().expect("standard layout"), &values));
    assert!((rounded / exact - 1.0).abs() < 0.02, "{rounded} for {exact}");
}

#[cfg(feature = "model")]
#[test]
fn a_model_is_opened_and_foresees_the_next_token() {
    use squish_llm::{
        kernels::argmax,
        model::{LoadOptions, Model, Runner, RunnerOptions},
    };

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
    let model =
        Model::open(folder, &LoadOptions::default()).expect("the checkpoint of the repository");
    let vocab_size = model.config().vocab_size;
    let mut runner = Runner::new(model, &RunnerOptions::default()).expect("room for a sequence");
    let id = runner.create().expect("room for a sequence");
    let logits = runner.extend(id, &[0]).expect("a token of the vocabulary");
    assert_eq!(logits.len(), vocab_size);
    assert!(argmax(logits).is_some(), "all logits are NaN");
}
