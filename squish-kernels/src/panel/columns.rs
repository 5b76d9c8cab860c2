//! Products with weights that stand input by input: only the columns of inputs that are not zero are read.
//!
//! In panels the codes of one input are short pieces, one in each panel, and what lies between them is fetched along. Here they are one piece,
//! so that the time is that of the inputs which are not zero. The result is that of [`product_into`](super::product_into) with zeros at all
//! other inputs, as that of [`sparse_into`](super::sparse_into) is.
//!
//! A column has its outputs in blocks of [`COLUMN_BLOCK`], whose two halves stand as the two inputs of a pair in a panel do.

use fearless_simd::{Simd, prelude::*};

#[cfg(target_arch = "x86_64")]
use super::pairs::Bf16Dot;
use super::{
    float::{self, Chain, PairCodes, with_codes},
    inputs::{Step, bf16_bits},
    layout::{Activation, Code, PANEL, PanelLayout, PanelScale},
    pack::PanelSource,
    sparse::LivePairs,
};
use crate::{Isa, isa::dispatch, prefetch};

/// Outputs of a block of a column.
pub const COLUMN_BLOCK: usize = 2 * PANEL;

/// Columns whose products are added at once, while sums are in registers.
const AT_ONCE: usize = 8;

/// The order of the bytes of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnLayout {
    /// Of a panel with two inputs, which are the halves of a block.
    block: PanelLayout,
    n_outputs: usize,
}

impl ColumnLayout {
    /// The layout of columns of `n_outputs` weights, which are scaled by output or not at all. `None` if no kernel computes that.
    #[must_use]
    pub fn new(
        code: Code,
        activation: Activation,
        is_scaled: bool,
        n_outputs: usize,
    ) -> Option<Self> {
        let scale = if is_scaled { PanelScale::F32 } else { PanelScale::Absent };
        let block = PanelLayout::new(code, activation, scale, 2, 2)?;
        let n_padded = n_outputs.checked_next_multiple_of(COLUMN_BLOCK)?;
        let countable = n_padded.checked_mul(4).is_some_and(|n| isize::try_from(n).is_ok());
        (LivePairs::supports(&block) && countable).then_some(Self { block, n_outputs })
    }

    /// How a weight is stored.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.block.code()
    }

    /// What inputs are rounded to.
    #[must_use]
    pub const fn activation(&self) -> Activation {
        self.block.activation()
    }

    /// Whether there is a scale for each output.
    #[must_use]
    pub fn is_scaled(&self) -> bool {
        self.block.scale() != PanelScale::Absent
    }

    /// Outputs of the matrix.
    #[must_use]
    pub const fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// Blocks of a column.
    #[must_use]
    pub const fn n_blocks(&self) -> usize {
        self.n_outputs.div_ceil(COLUMN_BLOCK)
    }

    /// Bytes of a block, a multiple of 64.
    #[must_use]
    pub const fn block_bytes(&self) -> usize {
        self.block.code_bytes(2)
    }

    /// Bytes of a column.
    #[must_use]
    pub const fn column_bytes(&self) -> usize {
        self.n_blocks() * self.block_bytes()
    }
}

/// Writes as many columns as `columns` has bytes of, that of input `first_input` first.
///
/// # Panics
///
/// If these are no whole columns.
pub fn pack_columns(
    layout: &ColumnLayout,
    source: &impl PanelSource,
    first_input: usize,
    columns: &mut [u8],
) {
    /// Inputs of an output that are read at once.
    const MOST_INPUTS: usize = 64;

    let (n_bytes, column_bytes) = (layout.code().n_bytes(), layout.column_bytes());
    assert_eq!(columns.len() % column_bytes.max(1), 0, "pack_columns: bytes of the layout");
    columns.fill(0);
    let mut codes = [0; 4 * MOST_INPUTS];
    let pieces = columns.chunks_mut((MOST_INPUTS * column_bytes).max(1));
    for (first, columns) in (first_input..).step_by(MOST_INPUTS).zip(pieces) {
        let codes = &mut codes[..columns.len() / column_bytes * n_bytes];
        for output in 0..layout.n_outputs {
            source.codes_into(output, first, codes);
            let (block, within) = (output / COLUMN_BLOCK, output % COLUMN_BLOCK);
            let (at, _) = layout.block.position(within % PANEL, within / PANEL);
            let at = block * layout.block_bytes() + at;
            let places = columns.chunks_exact_mut(column_bytes);
            for (place, code) in places.zip(codes.chunks_exact(n_bytes)) {
                place[at..at + n_bytes].copy_from_slice(code);
            }
        }
    }
}

/// Inputs that are not zeros, as kernels of a level read them.
#[derive(Clone, Debug, Default)]
pub struct LiveColumns {
    /// What they were rounded for.
    prepared_for: Option<(Isa, Activation)>,
    /// In the order of a sum.
    columns: Vec<LiveColumn>,
}

#[derive(Clone, Copy, Debug)]
struct LiveColumn {
    input: u32,
    /// The bits of an `f32`, or of a BF16 for the instruction for pairs of them.
    x: u32,
}

impl LiveColumns {
    /// Number of inputs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether all inputs are zeros.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Rounds the inputs `values` at the ascending `indices` to `activation`, in the place of what was there.
    ///
    /// # Panics
    ///
    /// If there are not as many of both, or if an index does not exceed the one before.
    pub fn prepare(&mut self, isa: Isa, activation: Activation, indices: &[u32], values: &[f32]) {
        assert_eq!(indices.len(), values.len(), "columns: lengths differ");
        assert!(indices.is_sorted_by(|a, b| a < b), "columns: indices do not ascend");
        let step = Step::of(isa, activation);
        self.prepared_for = Some((isa, activation));
        self.columns.clear();
        self.columns.extend(indices.iter().zip(values).map(|(&input, x)| {
            let x = match step {
                Step::Rounded => bf16_bits(*x) << 16,
                Step::Pair => bf16_bits(*x),
                Step::Float | Step::Quad => x.to_bits(),
            };
            LiveColumn { input, x }
        }));
        // The chain takes the second of a pair first.
        if matches!(step, Step::Rounded | Step::Pair) {
            let mut at = 0;
            while let Some([first, second]) = self.columns.get_mut(at..at + 2) {
                let is_pair = first.input / 2 == second.input / 2;
                if is_pair {
                    std::mem::swap(first, second);
                }
                at += 1 + usize::from(is_pair);
            }
        }
    }
}

/// The products of the outputs of some blocks, from block `first_block` on as many as there are `sums`, with the inputs that are not zero.
/// `columns` are all of the matrix, `scales` those of the blocks, and empty without scales.
///
/// # Panics
///
/// If there are no such blocks or not as many scales, if an input has no column, or if the inputs were not prepared for the layout.
pub fn columns_into(
    layout: &ColumnLayout,
    columns: &[u8],
    live: &LiveColumns,
    scales: &[[f32; COLUMN_BLOCK]],
    first_block: usize,
    sums: &mut [[f32; COLUMN_BLOCK]],
) {
    let (isa, activation) = live.prepared_for.expect("columns: no inputs were prepared");
    assert_eq!(activation, layout.activation(), "columns: the activation of the inputs");
    assert!(first_block + sums.len() <= layout.n_blocks(), "columns: blocks of the layout");
    let n_scales = if layout.is_scaled() { sums.len() } else { 0 };
    assert_eq!(scales.len(), n_scales, "columns: scales");
    sums.fill([0.0; COLUMN_BLOCK]);
    let n_blocks = sums.len();
    let job = Job { layout, columns, live: &live.columns, scales, first_block, n_blocks };
    #[cfg(target_arch = "x86_64")]
    if activation == Activation::Bf16
        && let Some(token) = Bf16Dot::of(isa)
    {
        // SAFETY: the token shows that the CPU has the features.
        unsafe { x86::run(token, job, sums) }
        return;
    }
    dispatch!(isa.token(), simd => run(simd, job, sums));
}

struct Job<'a> {
    layout: &'a ColumnLayout,
    columns: &'a [u8],
    live: &'a [LiveColumn],
    scales: &'a [[f32; COLUMN_BLOCK]],
    first_block: usize,
    n_blocks: usize,
}

impl<'a> Job<'a> {
    /// The codes of a column's blocks.
    #[inline(always)]
    fn codes(&self, live: LiveColumn) -> &'a [u8] {
        let block_bytes = self.layout.block_bytes();
        let start = live.input as usize * self.layout.column_bytes();
        let start = start + self.first_block * block_bytes;
        &self.columns[start..start + self.n_blocks * block_bytes]
    }

    /// Calls `several` for as many columns at once as there are, and `one` for the last ones.
    #[inline(always)]
    fn for_columns(
        &self,
        sums: &mut [[f32; COLUMN_BLOCK]],
        several: impl Fn([Column<'a>; AT_ONCE], &mut [[f32; COLUMN_BLOCK]]),
        one: impl Fn([Column<'a>; 1], &mut [[f32; COLUMN_BLOCK]]),
    ) {
        let mut following = self.live;
        while let Some((batch, rest)) = following.split_first_chunk::<AT_ONCE>() {
            following = rest;
            let mut columns = [Column::default(); AT_ONCE];
            for (k, &live) in batch.iter().enumerate() {
                let ahead = following.get(k).map_or(&[][..], |&next| self.codes(next));
                columns[k] = Column { codes: self.codes(live), ahead, x: live.x };
            }
            several(columns, sums);
        }
        for &live in following {
            one([Column { codes: self.codes(live), ahead: &[], x: live.x }], sums);
        }
    }
}

/// A column with its input.
#[derive(Clone, Copy, Default)]
struct Column<'a> {
    codes: &'a [u8],
    /// What is read next.
    ahead: &'a [u8],
    x: u32,
}

impl<'a> Column<'a> {
    /// Some codes, while as many of what is read next are asked for.
    #[inline(always)]
    fn codes(&self, at: usize, n_bytes: usize) -> &'a [u8] {
        for line in (at..at + n_bytes).step_by(64) {
            if line < self.ahead.len() {
                prefetch::far_line_at(self.ahead, line);
            }
        }
        &self.codes[at..at + n_bytes]
    }
}

#[inline(always)]
fn run<S: Simd>(simd: S, job: Job<'_>, sums: &mut [[f32; COLUMN_BLOCK]]) {
    match S::f32s::LEN {
        16 => floats::<S, 4>(simd, job, sums),
        8 => floats::<S, 8>(simd, job, sums),
        _ => floats::<S, 16>(simd, job, sums),
    }
}

#[inline(always)]
fn floats<S: Simd, const N: usize>(simd: S, job: Job<'_>, sums: &mut [[f32; COLUMN_BLOCK]]) {
    let layout = &job.layout.block;
    with_codes!(
        layout,
        C, M => floats_of::<S, C, M, N>(simd, job, sums),
        _ => unreachable!("there is no such layout")
    );
}

#[inline(always)]
fn floats_of<S: Simd, C: PairCodes, M: Chain, const N: usize>(
    simd: S,
    job: Job<'_>,
    sums: &mut [[f32; COLUMN_BLOCK]],
) {
    job.for_columns(
        sums,
        #[inline(always)]
        |columns, sums| add::<S, C, M, N, AT_ONCE>(simd, job.scales, columns, sums),
        #[inline(always)]
        |columns, sums| add::<S, C, M, N, 1>(simd, job.scales, columns, sums),
    );
    if !M::SCALED {
        scale(simd, job.scales, sums);
    }
}

/// Multiplies sums by their scales, if there are.
#[inline(always)]
fn scale<S: Simd>(simd: S, scales: &[[f32; COLUMN_BLOCK]], sums: &mut [[f32; COLUMN_BLOCK]]) {
    let (sums, scales) = (sums.as_flattened_mut(), scales.as_flattened());
    let vectors = sums.chunks_exact_mut(S::f32s::LEN).zip(scales.chunks_exact(S::f32s::LEN));
    for (sums, scales) in vectors {
        let sum = S::f32s::from_slice(simd, sums);
        let zero = S::f32s::splat(simd, 0.0);
        sum.mul_add(S::f32s::from_slice(simd, scales), zero).store_slice(sums);
    }
}

/// Adds the products of `K` columns, one after another.
#[inline(always)]
fn add<S: Simd, C: PairCodes, M: Chain, const N: usize, const K: usize>(
    simd: S,
    scales: &[[f32; COLUMN_BLOCK]],
    columns: [Column<'_>; K],
    sums: &mut [[f32; COLUMN_BLOCK]],
) {
    let lanes = S::f32s::LEN;
    let x = columns.map(
        #[inline(always)]
        |column| S::f32s::splat(simd, f32::from_bits(column.x)),
    );
    for b in 0..sums.len() {
        let sums = &mut sums[b];
        let codes = columns.map(
            #[inline(always)]
            |column| column.codes(b * C::PAIR_BYTES, C::PAIR_BYTES),
        );
        for i in 0..N / 2 {
            let vectors = C::vectors(i, N);
            let at = |j: usize, half: usize| half * PANEL + vectors[j] * lanes;
            let mut acc = [[S::f32s::splat(simd, 0.0); 2]; 2];
            let mut by = acc;
            for (j, half) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let at = at(j, half)..at(j, half) + lanes;
                acc[j][half] = S::f32s::from_slice(simd, &sums[at.clone()]);
                if M::SCALED {
                    by[j][half] = S::f32s::from_slice(simd, &scales[b][at]);
                }
            }
            for k in 0..K {
                let weights = C::decode(simd, codes[k], i, N);
                for (j, half) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let mut weight = weights[j][half];
                    if M::SCALED {
                        weight *= by[j][half];
                    }
                    acc[j][half] = weight.mul_add(x[k], acc[j][half]);
                }
            }
            for (j, half) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                acc[j][half].store_slice(&mut sums[at(j, half)..at(j, half) + lanes]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx512, f32x16, kernel, prelude::*, u32x16};

    use super::{
        super::{
            layout::PANEL,
            pairs::{self, Bf16Dot, dot, load, store, with_bf16_dot, zero},
        },
        AT_ONCE, COLUMN_BLOCK, Code, Column, Job,
        float::Float8,
        scale,
    };

    with_bf16_dot! {
        /// The level of AVX-512, and its instruction for pairs of BF16.
        pub(super) fn run(token: Bf16Dot, job: Job<'_>, sums: &mut [[f32; COLUMN_BLOCK]]) {
            match job.layout.code() {
                Code::E4M3 => run_of::<Float8<4>>(token, job, sums),
                Code::E5M2 => run_of::<Float8<5>>(token, job, sums),
                _ => run_of::<pairs::Stored>(token, job, sums),
            }
        }
    }

    #[inline(always)]
    fn run_of<P: pairs::Pairs>(token: Bf16Dot, job: Job<'_>, sums: &mut [[f32; COLUMN_BLOCK]]) {
        job.for_columns(
            sums,
            #[inline(always)]
            |columns, sums| add::<P, AT_ONCE>(token, columns, sums),
            #[inline(always)]
            |columns, sums| add::<P, 1>(token, columns, sums),
        );
        unzip(token, sums);
        scale(token.level(), job.scales, sums);
    }

    /// The vectors of a block's sums that [`pairs::Pairs::zip`] has the weights of, by half of the codes: two of each half of the block.
    const VECTORS: [[usize; 4]; 2] = [[0, PANEL, 16, PANEL + 16], [32, PANEL + 32, 48, PANEL + 48]];

    /// Adds the products of `K` columns, one after another, two in an instruction. An odd one has zeros beside it.
    #[inline(always)]
    fn add<P: pairs::Pairs, const K: usize>(
        bf16_dot: Bf16Dot,
        columns: [Column<'_>; K],
        sums: &mut [[f32; COLUMN_BLOCK]],
    ) {
        let token = bf16_dot.level();
        let (tables, half_bytes) = (P::tables(token), P::PAIR_BYTES / 2);
        for b in 0..sums.len() {
            for half in 0..2 {
                let at = VECTORS[half];
                let mut acc = [zero(token); 4];
                for v in 0..4 {
                    acc[v] = load(token, &sums[b][at[v]..at[v] + 16]);
                }
                let start = b * P::PAIR_BYTES + half * half_bytes;
                for k in (0..K).step_by(2) {
                    let first = columns[k].codes(start, half_bytes);
                    let (second, x) = match columns.get(k + 1) {
                        Some(second) => (second.codes(start, half_bytes), second.x),
                        None => (&[0; 2 * PANEL][..half_bytes], 0),
                    };
                    let weights = P::zip(token, tables, [first, second]);
                    let x = u32x16::splat(token, columns[k].x << 16 | x).into();
                    for v in 0..4 {
                        acc[v] = dot(bf16_dot, acc[v], weights[v], x);
                    }
                }
                for v in 0..4 {
                    store(token, acc[v], &mut sums[b][at[v]..at[v] + 16]);
                }
            }
        }
    }

    /// Brings sums in the order of the outputs.
    #[inline(always)]
    fn unzip(bf16_dot: Bf16Dot, sums: &mut [[f32; COLUMN_BLOCK]]) {
        let token = bf16_dot.level();
        for sums in sums {
            for [a, b, c, d] in VECTORS {
                for [a, b] in [[a, b], [c, d]] {
                    let [low, high] = [a, b].map(
                        #[inline(always)]
                        |at| f32x16::from_slice(token, &sums[at..at + 16]),
                    );
                    let [even, odd] = unzip_lanes(token, low, high);
                    even.store_slice(&mut sums[a..a + 16]);
                    odd.store_slice(&mut sums[b..b + 16]);
                }
            }
        }
    }

    kernel!(
        /// Even lanes and odd ones, within each block.
        #[inline(always)]
        fn unzip_lanes(
            token: Avx512,
            low: f32x16<Avx512>,
            high: f32x16<Avx512>,
        ) -> [f32x16<Avx512>; 2] {
            let (low, high) = (low.into(), high.into());
            [
                _mm512_shuffle_ps::<0b10_00_10_00>(low, high).simd_into(token),
                _mm512_shuffle_ps::<0b11_01_11_01>(low, high).simd_into(token),
            ]
        }
    );
}
