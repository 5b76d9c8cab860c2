//! `squish inspect`.

use crate::common::{FIXTURE, json, stdout};

#[test]
fn parameters_and_bytes_are_those_of_the_checkpoint() {
    let report = json(&["inspect", FIXTURE]);
    assert_eq!(report["parameters"], 4_754_688);
    assert_eq!(report["file_bytes"], 2 * 4_754_688);
    assert_eq!(report["family"], "Llama");
    // 6 layers, keys and values of 2 heads, 32 wide, of 2 bytes.
    assert_eq!(report["kv_bytes_per_token"]["bf16"], 6 * 2 * 2 * 32 * 2);
    // With a scale of 4 bytes for each row of a head.
    assert_eq!(report["kv_bytes_per_token"]["int8"], 6 * 2 * 2 * (32 + 4));
    let memory = &report["memory"];
    assert_eq!(memory["tokens"], 512);
    assert_eq!(memory["kv_bytes"], 512 * 6 * 2 * 2 * 32 * 2);
}

#[test]
fn four_bits_take_a_quarter_of_sixteen() {
    let bytes = |weights| {
        let report = json(&["inspect", FIXTURE, "--weights", weights, "--head", weights]);
        report["memory"]["weight_bytes"].as_f64().unwrap()
    };
    let ratio = bytes("bf16") / bytes("mxfp4");
    assert!((ratio - 16.0 / 4.25).abs() < 0.02, "{ratio}");
}

#[test]
fn tables_name_kinds_of_tensors_and_every_tensor_if_asked() {
    let kinds = stdout(&["inspect", FIXTURE]);
    assert!(kinds.contains("model.layers.*.mlp.down_proj.weight"), "{kinds}");
    assert!(!kinds.contains("model.layers.0."), "{kinds}");
    let all = stdout(&["inspect", FIXTURE, "--tensors"]);
    assert!(all.contains("model.layers.5.mlp.down_proj.weight"), "{all}");
}
