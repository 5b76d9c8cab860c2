//! Packs one matrix of the checkpoint in `fixtures/` to MXFP4 and prints what that costs.

use squish_llm::{
    checkpoint::Checkpoint,
    quant::{MxQuantizer, ScaleRule, error_stats, ndarray::ArrayView2},
};

#[expect(clippy::print_stdout, reason = "what the example is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A Hugging Face folder, memory-mapped.
    let checkpoint =
        Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base"))?;
    let tensor = checkpoint.tensor("model.layers.0.mlp.down_proj.weight")?;
    let weight: Vec<f32> = tensor.to_vec::<half::bf16>()?.into_iter().map(f32::from).collect();
    let matrix = ArrayView2::from_shape((256, 704), &weight)?;

    let quantizer = MxQuantizer { rule: ScaleRule::MinMse, ..MxQuantizer::default() };
    let packed = quantizer.encode(matrix)?; // 4.25 bits per weight, the bytes of gpt-oss
    let stats = error_stats(&weight, packed.decode().as_slice().expect("standard layout"))?;
    assert!(packed.bits_per_weight() == 4.25 && stats.snr_db > 15.0);
    println!("{} bits per weight, {stats}", packed.bits_per_weight());
    Ok(())
}
