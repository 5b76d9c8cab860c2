//! The forward pass. `x` is the row of one token at position `p`, `W` a matrix, `⊙` the product of elements:
//!
//! ```text
//! x = embedding_scale · embed_tokens[token]
//! for each layer:
//!     n = norm(x)
//!     q, k, v = Wq n + bq, Wk n + bk, Wv n + bv
//!     q, k = norm(q), norm(k)                             each head, if there is a norm of heads
//!     q, k = rope(q, p), rope(k, p)
//!     a = attention(q, keys and values so far, k and v)
//!     x = x + norm(Wo a + bo)                             the norms on the way out if there are
//!     n = norm(x)
//!     x = x + norm(Wdown (gate(Wgate n) ⊙ Wup n))
//! logits = cap · tanh(Whead norm(x) / cap)                the cap if there is one
//! ```
//!
//! (H. Touvron et al., arXiv 2302.13971; grouped queries: J. Ainslie et al., arXiv 2305.13245; RoPE: J. Su et al., arXiv 2104.09864; Gemma 2:
//! arXiv 2408.00118. The order of roundings is that of transformers in `f32`.)
//!
//! Every step works on rows apart from each other, and attention has the bits of a row in every company; so has a row of logits.

use squish_attn::{Options, RopeLayout, RopeTable};
use squish_kernels::{rms_norm_in_place, rms_norm_into};
use squish_quant::ndarray::{ArrayView2, ArrayView3, ArrayViewMut3};

use crate::{
    Config, Error, Hooks, Model, Projection, Site,
    batch::Batch,
    kv::{AnyStep, Sight, SinkBuffers},
    products::Products,
};

/// Rows of numbers between the steps, kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The residual stream, `[rows, hidden_size]`.
    pub(crate) x: Vec<f32>,
    /// Inputs of products.
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    sinks: SinkBuffers,
    gated: Vec<f32>,
    up: Vec<f32>,
    /// What is normed before it is added to the stream.
    out: Vec<f32>,
    /// Rows of the head: `[wanted, hidden_size]` and `[wanted, vocab_size]`.
    pub(crate) last: Vec<f32>,
    /// Of each of the former its part.
    pub(crate) last_part_of: Vec<usize>,
    pub(crate) logits: Vec<f32>,
}

impl Buffers {
    fn resize(&mut self, config: &Config, n_rows: usize) {
        let hidden = n_rows * config.hidden_size;
        let (q, kv) = (n_rows * config.q_dim(), n_rows * config.kv_dim());
        let inner = n_rows * config.intermediate_size;
        for (buffer, len) in [
            (&mut self.x, hidden),
            (&mut self.normed, hidden),
            (&mut self.out, if config.post_norms { hidden } else { 0 }),
            (&mut self.q, q),
            (&mut self.k, kv),
            (&mut self.v, kv),
            (&mut self.attended, q),
            (&mut self.gated, inner),
        ] {
            buffer.resize(len, 0.0);
        }
    }
}

/// What a pass works with.
pub(crate) struct Pass<'a, 's> {
    pub(crate) model: &'a Model,
    /// The model's, or what it was overridden with.
    pub(crate) config: &'a Config,
    pub(crate) batch: Batch<'a>,
    pub(crate) ropes: &'a [RopeTable],
    pub(crate) caches: Caches<'a, 's>,
    pub(crate) attention: &'a mut squish_attn::Workspace,
    pub(crate) products: Products<'a>,
    pub(crate) buffers: &'a mut Buffers,
}

/// Where keys and values go, and what rows see of them.
pub(crate) struct Caches<'a, 's> {
    /// Of each layer its group and its number within.
    pub(crate) places: &'a [(usize, usize)],
    /// Of each group.
    pub(crate) sights: &'a [Sight],
    pub(crate) steps: &'a mut [AnyStep<'s>],
}

impl Pass<'_, '_> {
    /// The residual stream after the last layer, into `buffers.x`, and the keys and values of all layers into their caches.
    pub(crate) fn run(&mut self, hooks: &mut Hooks<'_>) -> Result<(), Error> {
        let config = self.config;
        self.buffers.resize(config, self.batch.n_rows());
        let tokens = self.batch.parts.iter().flat_map(|part| part.tokens).copied();
        self.model.embed_into(tokens, &mut self.buffers.x);
        for layer in 0..config.n_layers() {
            self.observe(hooks, layer);
            self.attend(hooks, layer)?;
            self.mlp(hooks, layer)?;
        }
        self.observe(hooks, config.n_layers());
        Ok(())
    }

    /// `x = x + norm(Wo attention(norm(x)))`
    fn attend(&mut self, hooks: &mut Hooks<'_>, idx: usize) -> Result<(), Error> {
        let (config, layer, batch) = (self.config, &self.model.layers[idx], self.batch);
        let (head_dim, n_kv_heads) = (config.head_dim, config.n_kv_heads);
        let Buffers { x, normed, q, k, v, attended, sinks, out, .. } = &mut *self.buffers;

        norm_into(config, x, &layer.attention_norm, normed);
        self.products.inputs(hooks, Site { layer: idx, projection: Projection::Q }, normed);
        let outputs = [
            (Projection::Q, &layer.q, &mut q[..]),
            (Projection::K, &layer.k, &mut k[..]),
            (Projection::V, &layer.v, &mut v[..]),
        ];
        self.products.run(hooks, idx, normed, outputs)?;

        if let Some([q_norm, k_norm]) = &layer.qk_norms {
            rms_norm_in_place(q, q_norm, config.rms_norm_eps, config.norm);
            rms_norm_in_place(k, k_norm, config.rms_norm_eps, config.norm);
        }
        let (group, within) = self.caches.places[idx];
        let (sight, rope) = (self.caches.sights[group], &self.ropes[config.layers[idx].rope]);
        if let Some(relative) = sight.sinks {
            sinks.rotate(q, [config.n_heads, head_dim], &batch, rope, relative)?;
        }
        rope.apply_qk_in_place(
            heads_mut(q, config.n_heads, head_dim),
            heads_mut(k, n_kv_heads, head_dim),
            batch.positions,
            RopeLayout::HalfSplit,
        )?;

        let step = &mut self.caches.steps[group];
        for part in 0..batch.n_parts() {
            let (rows, kv_dim) = (batch.range(part..part + 1), config.kv_dim());
            let numbers = rows.start * kv_dim..rows.end * kv_dim;
            let k = heads(&k[numbers.clone()], n_kv_heads, head_dim);
            step.write(within, part, k, heads(&v[numbers], n_kv_heads, head_dim))?;
        }
        let options = Options {
            scale: Some(config.attention_scale),
            softcap: config.attention_softcap,
            window: sight.window,
            ..Options::default()
        };
        let q = heads(q, config.n_heads, head_dim);
        let attended_heads = heads_mut(attended, config.n_heads, head_dim);
        let sinks = sight.sinks.map(|relative| (relative, sinks));
        step.attend(within, &batch, q, &options, self.attention, sinks, attended_heads)?;

        let site = Site { layer: idx, projection: Projection::O };
        self.products.inputs(hooks, site, attended);
        match &layer.post_attention_norm {
            None => self.products.add(hooks, site, attended, &layer.o, x),
            Some(norm) => {
                self.products.run(
                    hooks,
                    idx,
                    attended,
                    [(Projection::O, &layer.o, &mut out[..])],
                )?;
                add_normed(config, out, norm, x);
                Ok(())
            }
        }
    }

    /// `x = x + norm(Wdown (gate(Wgate n) ⊙ Wup n))` with `n = norm(x)`.
    fn mlp(&mut self, hooks: &mut Hooks<'_>, idx: usize) -> Result<(), Error> {
        let (config, layer) = (self.config, &self.model.layers[idx]);
        let Buffers { x, normed, gated, up, out, .. } = &mut *self.buffers;

        norm_into(config, x, &layer.mlp_norm, normed);
        self.products.inputs(hooks, Site { layer: idx, projection: Projection::Gate }, normed);
        self.products.gated(hooks, idx, normed, layer, config.gate, gated, up)?;

        let site = Site { layer: idx, projection: Projection::Down };
        self.products.inputs(hooks, site, gated);
        match &layer.post_mlp_norm {
            None => self.products.add(hooks, site, gated, &layer.down, x),
            Some(norm) => {
                self.products.run(
                    hooks,
                    idx,
                    gated,
                    [(Projection::Down, &layer.down, &mut out[..])],
                )?;
                add_normed(config, out, norm, x);
                Ok(())
            }
        }
    }

    fn observe(&self, hooks: &mut Hooks<'_>, layer: usize) {
        if let Some(observer) = &mut hooks.observer {
            observer.observe(layer, rows(&self.buffers.x, self.config.hidden_size));
        }
    }
}

/// `norm(x)` of each row.
pub(crate) fn norm_into(config: &Config, x: &[f32], weight: &[f32], out: &mut [f32]) {
    rms_norm_into(x, weight, config.rms_norm_eps, config.norm, out);
}

/// `x = x + norm(y)` of each row; `y` becomes its norm.
fn add_normed(config: &Config, y: &mut [f32], weight: &[f32], x: &mut [f32]) {
    rms_norm_in_place(y, weight, config.rms_norm_eps, config.norm);
    x.iter_mut().zip(y).for_each(|(x, y)| *x += *y);
}

/// `[rows, width]`.
pub(crate) fn rows(x: &[f32], width: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((x.len() / width, width), x).expect(WHOLE)
}

/// `[rows, heads, width]`.
pub(crate) fn heads(x: &[f32], n_heads: usize, width: usize) -> ArrayView3<'_, f32> {
    ArrayView3::from_shape((x.len() / (n_heads * width), n_heads, width), x).expect(WHOLE)
}

pub(crate) fn heads_mut(x: &mut [f32], n_heads: usize, width: usize) -> ArrayViewMut3<'_, f32> {
    ArrayViewMut3::from_shape((x.len() / (n_heads * width), n_heads, width), x).expect(WHOLE)
}

const WHOLE: &str = "buffers hold whole rows";
