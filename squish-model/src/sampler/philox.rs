//! A uniform number for each seed and position, by the counter-based generator Philox4x32-10.
//!
//! Ten rounds mix a counter of four words under a key of two; a round is
//!
//! ```text
//! (c0, c1, c2, c3) ← (hi(M1 · c2) ⊕ c1 ⊕ k0,  lo(M1 · c2),  hi(M0 · c0) ⊕ c3 ⊕ k1,  lo(M0 · c0))
//! (k0, k1) ← (k0 + W0, k1 + W1)
//! ```
//!
//! (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.) The key is the seed, the counter the
//! position, low words first; the number is made of the upper 53 bits of the first two words of the result, the second of
//! them the high one.

/// The uniform number of `position` under `seed`: a multiple of `2^-53`, at least 0 and below 1.
///
/// The position is that of the token to be drawn, counted from the start of the sequence, prompt included, so that a
/// sequence which is taken up again draws what it would have drawn.
///
/// # Examples
///
/// ```
/// use squish_model::sampler::uniform;
///
/// assert_eq!(uniform(7, 100), uniform(7, 100));
/// assert_ne!(uniform(7, 100), uniform(7, 101));
/// assert!((0.0..1.0).contains(&uniform(7, 100)));
/// ```
#[must_use]
pub fn uniform(seed: u64, position: usize) -> f64 {
    let position = position as u64;
    let counter = [position as u32, (position >> 32) as u32, 0, 0];
    let [low, high, ..] = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Ten rounds.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors' library, Random123, is tested with.
    #[test]
    fn the_known_answers_of_the_authors_come_out() {
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), want, "{counter:x?} {key:x?}");
        }
    }

    #[test]
    fn the_number_is_made_of_the_first_two_words() {
        assert_eq!(uniform(0, 0), 0xe169_c58d_6627_e8d5_u64 as f64 / 2_f64.powi(64));
    }
}
