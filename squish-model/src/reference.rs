//! Logits of a Llama-type model in plain `f32`: the oracle of everything faster.
//!
//! `x` is the row of one token at position `p`, `W` a matrix `[n_out, n_in]`, `⊙` the product of elements:
//!
//! ```text
//! x = embed_tokens[token]
//! for each layer:
//!     n = rms_norm(x, input_layernorm)
//!     q, k, v = Wq n, Wk n, Wv n                      q: [n_heads, head_dim], k and v: [n_kv_heads, head_dim]
//!     q, k = rope(q, p), rope(k, p)                   each head
//!     a_h = Σ_j softmax_j(q_h · k_j / √head_dim) v_j  j = 0..=p; head h reads keys of head h / (n_heads / n_kv_heads)
//!     x = x + Wo a
//!     m = rms_norm(x, post_attention_layernorm)
//!     x = x + W_down (silu(W_gate m) ⊙ W_up m)
//! logits = W_head rms_norm(x, norm)
//!
//! rope: for each i < head_dim / 2, with half = head_dim / 2 and angle = p · theta^(−2i / head_dim)
//!     x[i], x[i + half] = x[i] cos − x[i + half] sin, x[i + half] cos + x[i] sin
//! ```
//!
//! (H. Touvron et al., arXiv 2302.13971; grouped queries: J. Ainslie et al., arXiv 2305.13245; RoPE: J. Su et al., arXiv
//! 2104.09864; pairs and the order of roundings as in transformers' `LlamaForCausalLM`.)
//!
//! The code is the formulas, for a slice of tokens at a time. A row of logits depends on the tokens up to it alone, bit
//! for bit, whether these come in one call or one by one: every product is one dot product in a fixed order.
//!
//! The products `W n` of the layers can be computed by something else, [`Reference::with_products`]: by packed weights, to
//! see what their rounding of inputs does to a model. All other steps, the head among them, stay as above.

use std::{fmt, path::Path, sync::Arc};

use squish_kernels::{RmsVariant, axpy, dot, rms_norm_into, silu_in_place, softmax_in_place};

use crate::{Checkpoint, Config, Error, Tensor, Weights, error::read, weights::Layer};

/// A model that is ready to compute.
#[derive(Clone, Debug)]
pub struct Reference {
    weights: Weights,
    rope: Rope,
    products: Products,
}

/// A text in the making: the keys and values of the tokens so far, so that the next token costs one position.
#[derive(Clone, Debug)]
pub struct Session<'m> {
    model: &'m Reference,
    caches: Vec<KvCache>,
    n_tokens: usize,
    logits: Vec<f32>,
}

impl Reference {
    /// The model in a Hugging Face folder: `config.json` and safetensors files.
    ///
    /// The files are memory-mapped while this runs, see [`Checkpoint::open`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::InFile`] with those of [`Config::from_json`]; those of [`Checkpoint::open`] and
    /// [`Weights::load`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let path = folder.as_ref().join("config.json");
        let config = Config::from_json(&read(&path)?).map_err(Error::in_file(&path))?;
        Ok(Self::new(Weights::load(&Checkpoint::open(folder)?, &config)?))
    }

    /// The model with these weights.
    pub fn new(weights: Weights) -> Self {
        Self::with_products(weights, linear_into)
    }

    /// The model with these weights, whose matrices of layers ([`Kind::Linear`](crate::Kind::Linear)) multiply by `product`.
    ///
    /// `product(w, x, y)` overwrites `y` `[n_tokens, n_out]` by `W x` of each row of `x` `[n_tokens, n_in]`, for a matrix `w`
    /// `[n_out, n_in]` known by its [`Tensor::name`]. If a row of `y` depends on nothing but its row of `x`, a row of logits
    /// does not depend on how many tokens come in one call.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn example(weights: squish_model::Weights) -> squish_model::Reference {
    /// use squish_model::Reference;
    ///
    /// // Sums in f64.
    /// Reference::with_products(weights, |w, x, y| {
    ///     let [n_out, n_in] = [w.shape()[0], w.shape()[1]];
    ///     for (x, y) in x.chunks_exact(n_in).zip(y.chunks_exact_mut(n_out)) {
    ///         for (y, row) in y.iter_mut().zip(w.data().chunks_exact(n_in)) {
    ///             *y = row.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>() as f32;
    ///         }
    ///     }
    /// })
    /// # }
    /// ```
    pub fn with_products(
        weights: Weights,
        product: impl Fn(&Tensor, &[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Self {
        let rope = Rope::new(weights.config());
        Self { weights, rope, products: Products(Arc::new(product)) }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.weights.config()
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights back, to be changed.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// Logits for all positions, `[seq_len, vocab_size]`: row `i` says what follows `tokens[..=i]`.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewTokens`] without any, [`Error::Token`], [`Error::Context`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let mut logits = Vec::new();
        self.for_each_logits(tokens, |_, row| {
            logits.extend_from_slice(row);
            Ok(())
        })?;
        Ok(logits)
    }

    /// Calls `visit` with each position and its logits `[vocab_size]`, in order. Not all rows are in memory at once.
    ///
    /// # Errors
    ///
    /// As [`logits`](Self::logits), and then nothing was visited; the first one of `visit`, which is not called again.
    pub fn for_each_logits(
        &self,
        tokens: &[u32],
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let config = self.config();
        let x = self.forward(tokens, 0, &mut self.empty_caches(), |_| {})?;
        for (block_idx, block) in x.chunks(BLOCK * config.hidden_size).enumerate() {
            let logits = self.logits_of(block);
            for (i, row) in logits.chunks_exact(config.vocab_size).enumerate() {
                visit(block_idx * BLOCK + i, row)?;
            }
        }
        Ok(())
    }

    /// The residual stream: `n_layers + 1` arrays `[seq_len, hidden_size]`, the embeddings and then the output of each
    /// layer, before the final norm.
    ///
    /// # Errors
    ///
    /// As [`logits`](Self::logits).
    pub fn hidden_states(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
        let mut states = Vec::new();
        self.forward(tokens, 0, &mut self.empty_caches(), |x| states.push(x.to_vec()))?;
        Ok(states)
    }

    /// A session without tokens.
    pub fn session(&self) -> Session<'_> {
        Session { model: self, caches: self.empty_caches(), n_tokens: 0, logits: Vec::new() }
    }

    fn empty_caches(&self) -> Vec<KvCache> {
        vec![KvCache::default(); self.weights.layers.len()]
    }

    /// The residual stream `[n_tokens, hidden_size]` after the last layer, of `tokens` that follow the `start` ones
    /// whose keys and values are in `caches`. `observe` sees it before the first layer and after each.
    fn forward(
        &self,
        tokens: &[u32],
        start: usize,
        caches: &mut [KvCache],
        mut observe: impl FnMut(&[f32]),
    ) -> Result<Vec<f32>, Error> {
        check_tokens(tokens, start, self.config())?;
        let weights = &self.weights;
        let mut x: Vec<f32> = Vec::with_capacity(tokens.len() * self.config().hidden_size);
        for &token in tokens {
            x.extend_from_slice(weights.embed_tokens.row(token as usize));
        }
        observe(&x);
        for (layer, cache) in weights.layers.iter().zip(caches) {
            let n = self.normed(&x, &layer.input_layernorm);
            add(&mut x, &self.attention(&n, start, layer, cache));
            let m = self.normed(&x, &layer.post_attention_layernorm);
            add(&mut x, &self.mlp(&m, layer));
            observe(&x);
        }
        Ok(x)
    }

    /// `rms_norm` of each row.
    fn normed(&self, x: &[f32], weight: &Tensor) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let eps = self.config().rms_norm_eps;
        rms_norm_into(x, weight.data(), eps, RmsVariant::Llama, &mut out);
        out
    }

    /// Causal attention of the rows `n` `[n_tokens, hidden_size]` at positions from `start` on, over their own keys and
    /// those before, which `cache` holds.
    fn attention(&self, n: &[f32], start: usize, layer: &Layer, cache: &mut KvCache) -> Vec<f32> {
        let config = self.config();
        let (head_dim, q_dim, kv_dim) = (config.head_dim, config.q_dim(), config.kv_dim());
        let mut q = self.products.linear(n, &layer.q_proj);
        let mut k = self.products.linear(n, &layer.k_proj);
        for (i, (q, k)) in q.chunks_exact_mut(q_dim).zip(k.chunks_exact_mut(kv_dim)).enumerate() {
            let turns = self.rope.turns(start + i);
            for head in q.chunks_exact_mut(head_dim).chain(k.chunks_exact_mut(head_dim)) {
                rotate(head, &turns);
            }
        }
        cache.k.append(&mut k);
        cache.v.append(&mut self.products.linear(n, &layer.v_proj));

        let mut a = vec![0.0; q.len()];
        let mut scores = Vec::new();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let heads_per_kv_head = config.n_heads / config.n_kv_heads;
        let heads = q.chunks_exact(head_dim).zip(a.chunks_exact_mut(head_dim));
        for (head_idx, (q, a)) in heads.enumerate() {
            let (i, h) = (head_idx / config.n_heads, head_idx % config.n_heads);
            let first = h / heads_per_kv_head * head_dim;
            let n_visible = start + i + 1;
            let keys = cache.k.chunks_exact(kv_dim).take(n_visible);
            let values = cache.v.chunks_exact(kv_dim);
            scores.clear();
            scores.extend(keys.map(|k| dot(q, &k[first..][..head_dim]) * scale));
            softmax_in_place(&mut scores);
            for (&score, v) in scores.iter().zip(values) {
                axpy(score, &v[first..][..head_dim], a);
            }
        }
        self.products.linear(&a, &layer.o_proj)
    }

    /// `W_down (silu(W_gate m) ⊙ W_up m)` of each row.
    fn mlp(&self, m: &[f32], layer: &Layer) -> Vec<f32> {
        let mut gate = self.products.linear(m, &layer.gate_proj);
        silu_in_place(&mut gate);
        for (gate, up) in gate.iter_mut().zip(self.products.linear(m, &layer.up_proj)) {
            *gate *= up;
        }
        self.products.linear(&gate, &layer.down_proj)
    }

    /// Logits `[n_tokens, vocab_size]` of rows of the residual stream after the last layer.
    fn logits_of(&self, x: &[f32]) -> Vec<f32> {
        let (n, head) = (self.normed(x, &self.weights.norm), self.weights.head());
        let mut logits = vec![0.0; n.len() / head.shape()[1] * head.shape()[0]];
        linear_into(head, &n, &mut logits);
        logits
    }
}

impl Session<'_> {
    /// Logits `[vocab_size]` for what follows `token`, once it is appended.
    ///
    /// # Errors
    ///
    /// [`Error::Token`], [`Error::Context`]; then the session is as it was.
    pub fn step(&mut self, token: u32) -> Result<&[f32], Error> {
        self.extend(&[token])
    }

    /// Logits `[vocab_size]` for what follows `tokens`, once these are appended: a prompt in one call.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewTokens`] without any, [`Error::Token`], [`Error::Context`]; then the session is as it was.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        let x = self.model.forward(tokens, self.n_tokens, &mut self.caches, |_| {})?;
        self.n_tokens += tokens.len();
        let last = &x[x.len() - self.model.config().hidden_size..];
        self.logits = self.model.logits_of(last);
        Ok(&self.logits)
    }

    /// The number of tokens so far.
    pub fn len(&self) -> usize {
        self.n_tokens
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.n_tokens == 0
    }
}

/// How the matrices of the layers multiply.
#[derive(Clone)]
struct Products(Arc<ProductFn>);

/// `y = w · x` for each row.
type ProductFn = dyn Fn(&Tensor, &[f32], &mut [f32]) + Send + Sync;

impl Products {
    /// `W x` of each row: `[n_tokens, n_in]` and `[n_out, n_in]` give `[n_tokens, n_out]`.
    fn linear(&self, x: &[f32], w: &Tensor) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / w.shape()[1] * w.shape()[0]];
        (self.0)(w, x, &mut y);
        y
    }
}

impl fmt::Debug for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Products").finish_non_exhaustive()
    }
}

/// Keys, rotated, and values of one layer, `[n_tokens, n_kv_heads * head_dim]`.
#[derive(Clone, Debug, Default)]
struct KvCache {
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Angles per position, `theta^(−2i / head_dim)` for `i` in `0..head_dim / 2`.
#[derive(Clone, Debug)]
struct Rope {
    inv_freq: Vec<f32>,
}

impl Rope {
    fn new(config: &Config) -> Self {
        let exponent = |i: usize| (2 * i) as f32 / config.head_dim as f32;
        let inv_freq = |i| 1.0 / config.rope_theta.powf(exponent(i));
        Self { inv_freq: (0..config.head_dim / 2).map(inv_freq).collect() }
    }

    /// Sine and cosine of each pair's angle at `position`.
    fn turns(&self, position: usize) -> Vec<(f32, f32)> {
        self.inv_freq.iter().map(|freq| (position as f32 * freq).sin_cos()).collect()
    }
}

/// Turns each pair `(i, i + head_dim / 2)` of `head` by its angle.
fn rotate(head: &mut [f32], turns: &[(f32, f32)]) {
    let (low, high) = head.split_at_mut(turns.len());
    for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Rows of `x` that stay in the L1 cache together with one row of a matrix, at hidden sizes of some hundred.
const BLOCK: usize = 16;

/// `y = W x` of each row: `[n_out, n_in]` and `[n_tokens, n_in]` give `[n_tokens, n_out]`.
fn linear_into(w: &Tensor, x: &[f32], y: &mut [f32]) {
    let [n_out, n_in] = *w.shape() else { unreachable!("`{}` is a matrix", w.name()) };
    // A row of `w` is read once for a block of tokens rather than for each.
    for (x, y) in x.chunks(BLOCK * n_in).zip(y.chunks_mut(BLOCK * n_out)) {
        for (o, row) in w.data().chunks_exact(n_in).enumerate() {
            for (x, y) in x.chunks_exact(n_in).zip(y.chunks_exact_mut(n_out)) {
                y[o] = dot(row, x);
            }
        }
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Whether there are tokens, all in the vocabulary, and no more than fit after `start` others.
fn check_tokens(tokens: &[u32], start: usize, config: &Config) -> Result<(), Error> {
    if tokens.is_empty() {
        return Err(Error::TooFewTokens { expected: 1, actual: 0 });
    }
    let (actual, max) = (start + tokens.len(), config.max_position_embeddings);
    if actual > max {
        return Err(Error::Context { actual, max });
    }
    check_vocabulary(tokens, config)
}

/// Whether all tokens are in the vocabulary.
pub(crate) fn check_vocabulary(tokens: &[u32], config: &Config) -> Result<(), Error> {
    let vocab_size = config.vocab_size;
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(index) => Err(Error::Token { token: tokens[index], index, vocab_size }),
        None => Ok(()),
    }
}
