//! The keys and values of a model: layers that see the same share a cache.
//!
//! | layers | cache | of a sequence it holds |
//! |---|---|---|
//! | without a window | blocks, or a piece for each sequence | all tokens |
//! | with a window, [`Windows::Paged`] | blocks | those of the window; blocks that left it are given back |
//! | with a window, [`Windows::Ring`] | a ring for each sequence | those of the window, and the sinks |
//!
//! Attention has the same bits over all of them, sinks aside.

use std::{fmt, num::NonZeroUsize, str::FromStr};

use squish_kv::{
    E4M3, E5M2, KvShape, PagedKvCache, Positions, Retention, Scaling, StreamingSinks, bf16, f16,
};

use crate::{Config, Error, error::clip};

mod any;
mod sinks;
mod store;

pub(crate) use any::{AnyStep, AnyStore};
pub(crate) use sinks::{CacheRelative, SinkBuffers};
pub(crate) use store::GroupId;
use store::{Rings, Store};

/// A type of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// 32 bits.
    F32,
    /// 16 bits: bfloat16.
    #[default]
    Bf16,
    /// 16 bits: half precision.
    F16,
    /// 8 bits: integers with a scale for each row of a head.
    Int8,
    /// 8 bits: FP8 E4M3 with a scale for each row of a head.
    Fp8E4M3,
    /// 8 bits: FP8 E5M2 with a scale for each row of a head.
    Fp8E5M2,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Fp8E4M3, Self::Fp8E5M2];

    /// Its name, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Fp8E4M3 => "fp8-e4m3",
            Self::Fp8E5M2 => "fp8-e5m2",
        }
    }

    /// Bytes of a token in one layer: of a key and a value of each head, and their scales.
    pub fn n_bytes(self, config: &Config) -> usize {
        let (n_numbers, n_scales) = (2 * config.kv_dim(), 2 * config.n_kv_heads);
        match self {
            Self::F32 => 4 * n_numbers,
            Self::Bf16 | Self::F16 => 2 * n_numbers,
            Self::Int8 | Self::Fp8E4M3 | Self::Fp8E5M2 => n_numbers + 4 * n_scales,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kv| kv.name() == name).ok_or_else(|| Error::Name {
            what: "type of keys and values",
            actual: clip(name),
            expected: "f32, bf16, f16, int8, fp8-e4m3 or fp8-e5m2",
        })
    }
}

/// How layers without a window are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// In blocks of so many tokens, which sequences take as they grow, and share as far as they agree.
    Paged {
        /// Tokens of a block.
        block_size: usize,
    },
    /// Each sequence in a piece of its own, the same part of all tokens.
    Contiguous,
}

/// By default in blocks of 32 tokens.
impl Default for KvLayout {
    fn default() -> Self {
        Self::Paged { block_size: 32 }
    }
}

/// How layers with a window are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Windows {
    /// As those without.
    #[default]
    Paged,
    /// In a ring for each sequence. Its steps have 64 sequences at most.
    Ring {
        /// First tokens that stay when the window has moved on, among those that the window counts. At [`Positions::Absolute`] they are ever
        /// farther away; at [`Positions::CacheRelative`] as far as they would be in a sequence of a window's length, whatever else a step
        /// computes.
        sinks: Option<StreamingSinks>,
    },
}

/// What keys and values are stored as, and for how many tokens there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvOptions {
    /// Their type.
    pub kv_type: KvType,
    /// Layers without a window.
    pub layout: KvLayout,
    /// Layers with one.
    pub windows: Windows,
    /// Tokens of all sequences together.
    pub n_tokens: usize,
    /// Sequences at once, for which steps allocate nothing.
    pub n_sequences: usize,
}

/// One sequence of 2048 tokens in bf16.
impl Default for KvOptions {
    fn default() -> Self {
        Self {
            kv_type: KvType::default(),
            layout: KvLayout::default(),
            windows: Windows::default(),
            n_tokens: 2048,
            n_sequences: 1,
        }
    }
}

/// Layers that share a cache.
pub(crate) struct Group {
    pub(crate) sight: Sight,
    pub(crate) store: AnyStore,
}

/// What a row sees of the tokens before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    /// The window that masks them; none where first tokens stay, and masks of a ring say what is seen.
    pub(crate) window: Option<usize>,
    /// If those are met at positions in the cache.
    pub(crate) sinks: Option<CacheRelative>,
}

/// The caches of a model.
pub(crate) struct Groups {
    pub(crate) groups: Vec<Group>,
    /// Of each layer its group and its number within.
    pub(crate) places: Vec<(usize, usize)>,
}

impl Groups {
    /// Caches for steps of `most_new` tokens of a sequence.
    pub(crate) fn new(
        config: &Config,
        options: &KvOptions,
        most_new: usize,
    ) -> Result<Self, Error> {
        let mut windows: Vec<(Option<usize>, usize)> = Vec::new();
        let mut places = Vec::new();
        for layer in &config.layers {
            let found = windows.iter().position(|(window, _)| *window == layer.window);
            let group = found.unwrap_or_else(|| {
                windows.push((layer.window, 0));
                windows.len() - 1
            });
            places.push((group, windows[group].1));
            windows[group].1 += 1;
        }
        if windows.len() > MOST_GROUPS {
            let (field, actual) = ("number of different windows", windows.len() as f64);
            return Err(Error::ConfigValue { field, actual, expected: "at most 8" });
        }
        let groups = windows.into_iter().map(|(window, n_layers)| {
            let shape = KvShape::new(n_layers, config.n_kv_heads, config.head_dim);
            let sinks = match options.windows {
                Windows::Ring { sinks } => sinks.filter(|sinks| sinks.n_sinks > 0).zip(window),
                Windows::Paged => None,
            };
            let sight = Sight {
                window: window.filter(|_| sinks.is_none()),
                sinks: sinks.filter(|(s, _)| s.positions == Positions::CacheRelative).map(
                    |(StreamingSinks { n_sinks, .. }, window)| CacheRelative { n_sinks, window },
                ),
            };
            let store = match options.kv_type {
                KvType::F32 => AnyStore::F32(store::<f32>(options, shape, window, most_new)?),
                KvType::Bf16 => AnyStore::Bf16(store::<bf16>(options, shape, window, most_new)?),
                KvType::F16 => AnyStore::F16(store::<f16>(options, shape, window, most_new)?),
                KvType::Int8 => AnyStore::Int8(store::<i8>(options, shape, window, most_new)?),
                KvType::Fp8E4M3 => AnyStore::E4M3(store::<E4M3>(options, shape, window, most_new)?),
                KvType::Fp8E5M2 => AnyStore::E5M2(store::<E5M2>(options, shape, window, most_new)?),
            };
            Ok::<_, Error>(Group { sight, store })
        });
        Ok(Self { groups: groups.collect::<Result<_, _>>()?, places })
    }
}

/// Different windows that layers can have; no model has more than two.
pub(crate) const MOST_GROUPS: usize = 8;

fn store<E: squish_kv::KvElement>(
    options: &KvOptions,
    shape: KvShape,
    window: Option<usize>,
    most_new: usize,
) -> Result<Store<E>, Error> {
    let KvOptions { layout, windows, n_tokens, n_sequences, .. } = *options;
    if let (Some(window), Windows::Ring { sinks }) = (window, windows) {
        // Keys are stored as they are rotated by their positions in the sequence.
        let positions = Positions::Absolute;
        let sinks = sinks.map(|sinks| StreamingSinks { positions, ..sinks });
        return Ok(Store::Rings(Rings::new(shape, window, sinks, most_new, n_sequences)?));
    }
    let (n_blocks, block_size, retention) = match (layout, window.and_then(NonZeroUsize::new)) {
        (KvLayout::Contiguous, _) => {
            (n_sequences, n_tokens.checked_div(n_sequences).unwrap_or(0), Retention::All)
        }
        (KvLayout::Paged { block_size }, None) => {
            // The last block of each sequence is not full.
            let n_blocks = n_tokens.div_ceil(block_size.max(1)).saturating_add(n_sequences);
            (n_blocks, block_size, Retention::All)
        }
        (KvLayout::Paged { block_size }, Some(window)) => {
            let most = window.get().saturating_add(most_new).min(n_tokens);
            // A window begins and ends within a block.
            let n_blocks = (most.div_ceil(block_size.max(1)) + 2).saturating_mul(n_sequences);
            (n_blocks, block_size, Retention::Window(window))
        }
    };
    let mut cache = PagedKvCache::new(shape, n_blocks, block_size, Scaling::Dynamic)?;
    cache.reserve(n_sequences, n_tokens);
    Ok(Store::Paged { cache, retention, batch: Vec::with_capacity(n_sequences) })
}
