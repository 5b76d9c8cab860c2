//! What must hold of the reader of rotary configurations on any bytes; the fuzz target `rope` runs this same function.

use squish_attn::{AttnError, InvFreq, LengthRule, RopeConfig, RopeMode, RopeOptions, RopeTable};

/// Whether `json` is accepted, after a look at what comes out.
///
/// # Panics
///
/// If the reader panics or accepts what is no embedding, a step after it panics, or a message is too long.
pub(crate) fn walk_rope(json: &[u8]) -> bool {
    let plain = RopeConfig::from_hf_json(json);
    let named = RopeConfig::from_hf_json_of(json, "full_attention");
    let accepted = plain.is_ok() || named.is_ok();
    for result in [plain, named] {
        match result {
            Ok(config) => look(config),
            Err(error) => look_at(&error),
        }
    }
    accepted
}

fn look(config: RopeConfig) {
    assert!(config.check().is_ok(), "{config:?}");
    let r = config.rotary_dim;
    assert!(r > 0 && r.is_multiple_of(2) && r <= config.head_dim && r <= 1 << 16, "{config:?}");
    assert!(config.attention_factor() > 0.0, "{config:?}");
    for mode in [RopeMode::HfF32, RopeMode::Exact] {
        match InvFreq::new(&config, 1 << 20, mode) {
            Ok(freqs) => assert!(freqs.values().iter().all(|f| f.is_finite()), "{config:?}"),
            Err(error) => look_at(&error),
        }
    }
    let options = RopeOptions { length: LengthRule::Dynamic, ..RopeOptions::default() };
    match RopeTable::new(config, options) {
        Ok(mut table) => {
            for seq_len in [3, 5, 1] {
                if let Err(error) = table.extend_to(seq_len) {
                    look_at(&error);
                }
            }
        }
        Err(error) => look_at(&error),
    }
}

fn look_at(error: &AttnError) {
    let n_bytes = error.to_string().len();
    assert!(n_bytes < 2000, "a message of {n_bytes} bytes");
}
