//! What must hold of the reader of configurations on any bytes; the fuzz target `config` runs this same function.

use squish_model::Config;

/// Whether `json` is accepted, after a look at the numbers that come out.
///
/// # Panics
///
/// If the reader panics or accepts numbers that are those of no model, or complains at too great length.
pub(crate) fn walk_config(json: &[u8]) -> bool {
    match Config::from_json(json) {
        Ok(c) => {
            let sizes = [c.hidden_size, c.intermediate_size, c.n_layers(), c.n_heads, c.n_kv_heads];
            let others = [c.head_dim, c.vocab_size, c.max_position_embeddings];
            assert!(sizes.into_iter().chain(others).all(|n| n > 0), "{c:?}");
            assert!(c.n_layers() <= 10_000, "{} layers", c.n_layers());
            assert!(
                c.head_dim.is_multiple_of(2) && c.n_heads.is_multiple_of(c.n_kv_heads),
                "{c:?}"
            );
            assert!(c.rms_norm_eps.is_finite() && c.rms_norm_eps >= 0.0, "{c:?}");
            let scales = [Some(c.embedding_scale), Some(c.attention_scale)];
            let factors = scales.into_iter().chain([c.attention_softcap, c.logit_softcap]);
            assert!(factors.flatten().all(|x| x.is_finite() && x > 0.0), "{c:?}");
            for (rows, cols) in [
                (c.vocab_size, c.hidden_size),
                (c.intermediate_size, c.hidden_size),
                (c.q_dim(), c.hidden_size),
                (c.kv_dim(), c.hidden_size),
            ] {
                assert!(rows.checked_mul(cols).is_some_and(|n| n <= usize::MAX / 4), "{c:?}");
            }
            for layer in &c.layers {
                assert!(layer.window != Some(0) && layer.rope < c.ropes.len(), "{c:?}");
            }
            for rope in &c.ropes {
                assert!(rope.base.is_finite() && rope.base > 0.0, "{c:?}");
                assert_eq!((rope.head_dim, rope.rotary_dim), (c.head_dim, c.head_dim), "{c:?}");
            }
            assert!(c.check().is_ok(), "{c:?}");
            true
        }
        Err(error) => {
            let n_bytes = error.to_string().len();
            assert!(n_bytes < 20_000, "a message of {n_bytes} bytes");
            false
        }
    }
}
