//! The golden file and models that the modules share.

use squish_bench::golden::Golden;
use squish_eval::{BatchSink, CausalLm, EvalError, Prompt, RowSink};

pub(crate) fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "eval")
}

pub(crate) fn as_tokens(numbers: &[i64]) -> Vec<u32> {
    numbers.iter().map(|&n| u32::try_from(n).expect("a token")).collect()
}

/// `len` numbers between −1 and 1, the same for the same `seed`.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = squish_bench::input::Rng::new(seed);
    (0..len).map(|_| rng.uniform() * 2.0 - 1.0).collect()
}

/// The model of `tools/golden/eval.py`, with a memory that fades: h ← 0.97 h + 0.2 embed\[token\].
pub(crate) struct Fading {
    embed: Vec<f64>,
    head: Vec<f64>,
    width: usize,
    pub(crate) max_batch: usize,
    pub(crate) max_seq_len: usize,
    /// Tokens that it was fed.
    pub(crate) n_fed: usize,
}

impl Fading {
    pub(crate) fn new(golden: &Golden) -> Self {
        let (embed, head) = (golden.f64("embed"), golden.f64("head"));
        let width = golden.shape("embed")[1];
        Self { embed, head, width, max_batch: 1, max_seq_len: usize::MAX, n_fed: 0 }
    }
}

impl CausalLm for Fading {
    type Error = EvalError;

    fn vocab_size(&self) -> usize {
        self.embed.len() / self.width
    }

    fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn logits(&mut self, prompt: Prompt<'_>, sink: &mut RowSink<'_>) -> Result<(), EvalError> {
        self.n_fed += prompt.tokens.len();
        let mut state = vec![0.0; self.width];
        for (row, &token) in prompt.tokens.iter().enumerate() {
            let embed = &self.embed[token as usize * self.width..][..self.width];
            for (h, e) in state.iter_mut().zip(embed) {
                *h = 0.97 * *h + 0.2 * e;
            }
            if prompt.wanted.contains(&row) {
                let logit = |head: &[f64]| head.iter().zip(&state).map(|(a, b)| a * b).sum::<f64>();
                let logits: Vec<f32> =
                    self.head.chunks(self.width).map(|head| logit(head) as f32).collect();
                sink(row, &logits)?;
            }
        }
        Ok(())
    }
}

/// A model that gives rows as `order` says, whatever is wanted.
pub(crate) struct Stubborn {
    pub(crate) order: Vec<(usize, usize)>,
    pub(crate) width: usize,
}

impl CausalLm for Stubborn {
    type Error = EvalError;

    fn vocab_size(&self) -> usize {
        4
    }

    fn max_seq_len(&self) -> usize {
        8
    }

    fn max_batch(&self) -> usize {
        2
    }

    fn logits(&mut self, _: Prompt<'_>, _: &mut RowSink<'_>) -> Result<(), EvalError> {
        unreachable!("batches are asked for")
    }

    fn logits_of_batch(
        &mut self,
        _: &[Prompt<'_>],
        sink: &mut BatchSink<'_>,
    ) -> Result<(), EvalError> {
        let row = vec![0.0; self.width];
        self.order.iter().try_for_each(|&(prompt, at)| sink(prompt, at, &row))
    }
}
