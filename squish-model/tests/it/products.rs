//! Layers that multiply by packed weights.

use std::{collections::HashMap, sync::Mutex};

use half::bf16;
use squish_bench::input::Rng;
use squish_model::{Kind, Reference, Tensor, Weights};
use squish_quant::{
    Activation, PackedMatrix, Workspace,
    ndarray::{ArrayView2, ArrayViewMut2},
    packed,
};

use crate::common::MODEL;

/// The model whose layers multiply by their weights, which are bf16, packed.
fn packed_model(weights: &Weights, activation: Activation) -> Reference {
    let pack = |w: &Tensor| {
        let bytes: Vec<u8> =
            w.data().iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let (dense, shape) = (packed::Dense::Bf16, [w.shape()[0], w.shape()[1]]);
        let weights = packed::Weights::Dense { dense, shape, bytes: &bytes };
        (w.name().to_owned(), PackedMatrix::pack(weights, activation).unwrap())
    };
    let layers: HashMap<_, _> =
        weights.tensors().filter(|w| w.kind() == Kind::Linear).map(pack).collect();
    let workspace = Mutex::new(Workspace::default());
    Reference::with_products(weights.clone(), move |w, x, y| {
        let packed = &layers[w.name()];
        let [n_out, n_in] = packed.shape();
        let n_tokens = x.len() / n_in;
        let x = ArrayView2::from_shape([n_tokens, n_in], x).unwrap();
        let y = ArrayViewMut2::from_shape([n_tokens, n_out], y).unwrap();
        packed.gemm_into(&mut workspace.lock().unwrap(), x, y).unwrap();
    })
}

fn text(len: usize) -> Vec<u32> {
    let mut rng = Rng::new(7);
    (0..len).map(|_| rng.below(MODEL.config().vocab_size) as u32).collect()
}

#[test]
fn packed_products_in_f32_give_the_logits_of_the_reference() {
    let tokens = &text(48);
    let want = MODEL.logits(tokens).unwrap();
    let got = packed_model(MODEL.weights(), Activation::F32).logits(tokens).unwrap();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() < 1e-4, "logit {i}: {got} is not {want}");
    }
}

#[test]
fn packed_products_give_the_same_bits_for_a_prompt_and_for_its_tokens_one_by_one() {
    let tokens = &text(24);
    for activation in [Activation::F32, Activation::Bf16] {
        let model = packed_model(MODEL.weights(), activation);
        let all = model.logits(tokens).unwrap();
        let mut session = model.session();
        let rows = all.chunks_exact(model.config().vocab_size);
        for (i, (&token, want)) in tokens.iter().zip(rows).enumerate() {
            let got = session.step(token).unwrap();
            assert!(
                got.iter().zip(want).all(|(got, want)| got.to_bits() == want.to_bits()),
                "{activation:?}: token {i}"
            );
        }
    }
}
