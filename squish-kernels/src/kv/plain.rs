//! Keys and values in plain arrays.

use super::{KvElement, KvSource, Rows, Run};

/// Keys `[heads, tokens, key width]` and values `[heads, tokens, value width]`: a source of one run.
#[derive(Clone, Copy, Debug)]
pub struct KvArrays<'a, E> {
    keys: &'a [E],
    values: &'a [E],
    /// Of keys and of values, `[heads, tokens]`.
    scales: Option<[&'a [f32]; 2]>,
    n_heads: usize,
    n_tokens: usize,
    dims: [usize; 2],
    position: usize,
}

impl<'a, E: KvElement> KvArrays<'a, E> {
    /// Rows of `dims[0]` and `dims[1]` numbers, of so many heads and tokens; `None` if there are not as many numbers.
    #[must_use]
    pub fn new(
        [keys, values]: [&'a [E]; 2],
        n_heads: usize,
        n_tokens: usize,
        dims: [usize; 2],
    ) -> Option<Self> {
        let n_rows = n_heads.checked_mul(n_tokens)?;
        let fits = |data: &[E], dim: usize| n_rows.checked_mul(dim) == Some(data.len());
        (fits(keys, dims[0]) && fits(values, dims[1])).then_some(Self {
            keys,
            values,
            scales: None,
            n_heads,
            n_tokens,
            dims,
            position: 0,
        })
    }

    /// Rows of keys and of values are multiplied by these, `[heads, tokens]`; `None` if there are not as many.
    #[must_use]
    pub fn with_scales(self, scales: [&'a [f32]; 2]) -> Option<Self> {
        let n_rows = self.n_heads * self.n_tokens;
        let fits = scales.iter().all(|scales| scales.len() == n_rows);
        fits.then_some(Self { scales: Some(scales), ..self })
    }

    /// The first token stands at this position of the text.
    #[must_use]
    pub const fn at_position(self, position: usize) -> Self {
        Self { position, ..self }
    }

    fn rows(&self, head: usize, data: &'a [E], kind: usize) -> Rows<'a, E> {
        let (n, dim) = (self.n_tokens, self.dims[kind]);
        Rows {
            data: &data[head * n * dim..(head + 1) * n * dim],
            stride: dim,
            scales: self.scales.map(|scales| &scales[kind][head * n..(head + 1) * n]),
        }
    }
}

impl<E: KvElement> KvSource for KvArrays<'_, E> {
    type Element = E;

    fn n_heads(&self) -> usize {
        self.n_heads
    }

    fn key_dim(&self) -> usize {
        self.dims[0]
    }

    fn value_dim(&self) -> usize {
        self.dims[1]
    }

    fn len(&self) -> usize {
        self.n_tokens
    }

    fn n_runs(&self) -> usize {
        usize::from(self.n_tokens > 0)
    }

    fn run(&self, _: usize) -> Run {
        Run { start: 0, len: self.n_tokens, position: self.position }
    }

    fn run_of(&self, _: usize) -> usize {
        0
    }

    fn keys(&self, head: usize, _: usize) -> Rows<'_, E> {
        self.rows(head, self.keys, 0)
    }

    fn values(&self, head: usize, _: usize) -> Rows<'_, E> {
        self.rows(head, self.values, 1)
    }
}
