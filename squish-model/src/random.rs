//! Checkpoints of a shape with seeded weights: for work on speed, where no trained weights are to be had, and for tests.
//!
//! Element `i` of the tensor called `name` is, with the arithmetic of 64-bit words modulo `2^64`,
//!
//! ```text
//! z = (fnv1a(name) XOR seed) + (i + 1) · 0x9E3779B97F4A7C15
//! z = (z XOR z >> 30) · 0xBF58476D1CE4E5B9
//! z = (z XOR z >> 27) · 0x94D049BB133111EB
//! u = (z XOR z >> 31) >> 40                        24 bits
//! x = a · (u · 2⁻²⁴ − 1/2 + 2⁻²⁵)                  rounded to f32, then to bf16
//! ```
//!
//! (`SplitMix64`: G. Steele, D. Lea, C. Flood, OOPSLA 2014; FNV-1a: draft-eastlake-fnv.) These are uniform numbers with a deviation of
//! `a / √12`, which is `1 / √n_in` of a matrix, so that activations keep their size, and 0.1 of a vector. A norm that multiplies by its weight
//! has 1 added before the rounding.

use std::thread::{available_parallelism, scope};

use squish_attn::RmsVariant;
use squish_quant::Dense;

use crate::{Config, DenseTensor, Error, TensorSource};

/// Weights in `bf16` that depend on a seed, the names of tensors and their shapes.
///
/// # Examples
///
/// ```
/// use squish_model::{LoadOptions, Model, RandomCheckpoint};
///
/// let random = RandomCheckpoint { config: RandomCheckpoint::llama_3_8b(1), seed: 7 };
/// assert_eq!((random.config.hidden_size, random.config.n_layers()), (4096, 1));
///
/// let mut small = random.clone();
/// (small.config.hidden_size, small.config.intermediate_size, small.config.vocab_size) = (64, 128, 100);
/// let model = Model::load(&small, &small.config, &LoadOptions::default())?;
/// assert_eq!(model.config().n_heads, 32);
/// # Ok::<(), squish_model::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RandomCheckpoint {
    /// The shape.
    pub config: Config,
    /// What the weights depend on.
    pub seed: u64,
}

impl RandomCheckpoint {
    /// The shape of Llama-3.2-1B: 16 layers of 2048, tied.
    pub fn llama_3_2_1b() -> Config {
        let mut config = Config::llama(2048, 8192, 16, [32, 8, 64], 128_256, 131_072);
        config.ropes[0].base = 5e5;
        config.ropes[0].scaling = squish_attn::RopeScaling::Llama3(squish_attn::Llama3 {
            factor: 32.0,
            ..Default::default()
        });
        config
    }

    /// The shape of Llama-3-8B with `n_layers` of its 32 layers of 4096.
    pub fn llama_3_8b(n_layers: usize) -> Config {
        let mut config = Config::llama(4096, 14_336, n_layers, [32, 8, 128], 128_256, 8192);
        config.ropes[0].base = 5e5;
        config.tie_word_embeddings = false;
        config
    }
}

impl TensorSource for RandomCheckpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let is_matrix = shape.len() > 1;
        let deviation =
            if is_matrix { (shape[shape.len() - 1] as f64).sqrt().recip() } else { 0.1 };
        let factor = (12_f64.sqrt() * deviation) as f32;
        let is_norm = !is_matrix && name.ends_with("norm.weight");
        let offset = if is_norm && self.config.norm != RmsVariant::Gemma { 1.0 } else { 0.0 };
        let first = fnv1a(name) ^ self.seed;
        let mut bytes = vec![0; 2 * shape.iter().product::<usize>()];
        let fill = |start: usize, bytes: &mut [[u8; 2]]| {
            for (i, bytes) in bytes.iter_mut().enumerate() {
                let x = uniform(first, start + i) * factor + offset;
                *bytes = half::bf16::from_f32(x).to_le_bytes();
            }
        };
        let numbers = bytes.as_chunks_mut::<2>().0;
        let n_threads = available_parallelism().map_or(1, usize::from);
        let each = numbers.len().div_ceil(n_threads).max(LEAST_OF_THREAD);
        scope(|scope| {
            let mut pieces = numbers.chunks_mut(each).enumerate();
            let own = pieces.next();
            for (i, piece) in pieces {
                scope.spawn(move || fill(i * each, piece));
            }
            if let Some((_, piece)) = own {
                fill(0, piece);
            }
        });
        Ok(DenseTensor::new(Dense::Bf16, bytes))
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

/// Numbers that are worth starting a thread for.
const LEAST_OF_THREAD: usize = 1 << 20;

fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Number `i` of those that begin with `first`, between -1/2 and 1/2.
fn uniform(first: u64, i: usize) -> f32 {
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    let z = first.wrapping_add((i as u64).wrapping_add(1).wrapping_mul(step));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let bits = (z ^ (z >> 31)) >> 40;
    bits as f32 * 2_f32.powi(-24) - 0.5 + 2_f32.powi(-25)
}
