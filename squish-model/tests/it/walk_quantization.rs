//! What must hold of the reader of `quantization_config` on any bytes; the fuzz target `quantization` runs this same function.

use squish_model::Quantization;

/// Whether `json` is accepted as a quantization, after names of modules were held against its patterns.
///
/// # Panics
///
/// If the reader panics, complains at too great length, or depends on the order of calls.
pub(crate) fn walk_quantization(json: &[u8]) -> bool {
    match Quantization::from_json(json) {
        Ok(None) => false,
        Ok(Some(quantization)) => {
            let methods = ["compressed-tensors", "fp8", "mxfp4", "squish"];
            assert!(methods.contains(&quantization.method()));
            let long = "model.".repeat(40);
            for module in
                ["model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens", "", &long]
            {
                let first = quantization.describe(module);
                assert_eq!(first, quantization.describe(module));
                assert!(first.len() < 1000, "{first}");
            }
            true
        }
        Err(error) => {
            let n_bytes = error.to_string().len();
            assert!(n_bytes < 20_000, "a message of {n_bytes} bytes");
            false
        }
    }
}
