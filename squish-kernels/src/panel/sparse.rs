//! Products with inputs of which most are zeros: only the codes of the others are read.
//!
//! The result is that of [`product_into`](super::product_into) with zeros at all other inputs, bit for bit, as a multiply-add with a
//! zero input leaves a sum as it is; where a weight is NaN or infinite, or a sum a negative zero, only the dense product
//! says so. Inputs are taken in pairs, each a line or more of memory, so that the time is that of the pairs with an input
//! that is not zero.

use fearless_simd::{Simd, prelude::*};

#[cfg(target_arch = "x86_64")]
use super::pairs::{self, Bf16Dot};
use super::{
    float::{self, Chain, PairCodes, with_codes},
    inputs::{Step, bf16_bits},
    layout::{Activation, Code, Group, PANEL, PanelLayout},
    product::for_group,
};
use crate::{Isa, isa::dispatch, prefetch};

/// Inputs that are not zeros, in pairs, as kernels of a level read them.
#[derive(Clone, Debug, Default)]
pub struct LivePairs {
    /// What they were rounded for.
    prepared_for: Option<(Isa, PanelLayout)>,
    pairs: Vec<LivePair>,
}

/// Two neighbors, at least one of which is not zero.
#[derive(Clone, Copy, Debug)]
struct LivePair {
    /// Half of the index of the first.
    idx: u32,
    /// Their bits in the order of the steps, or both as BF16 in the first.
    words: [u32; 2],
}

impl LivePairs {
    /// Whether there are sparse products of `layout`.
    #[must_use]
    pub const fn supports(layout: &PanelLayout) -> bool {
        matches!(layout.code(), Code::F32 | Code::Bf16 | Code::E4M3 | Code::E5M2)
    }

    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether all inputs are zeros.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Rounds the inputs `values` at the ascending `indices` for `layout`, in the place of what was there.
    ///
    /// # Panics
    ///
    /// If there are not as many of both, or if an index does not exceed the one before, or is none of an input.
    pub fn prepare(&mut self, isa: Isa, layout: &PanelLayout, indices: &[u32], values: &[f32]) {
        assert_eq!(indices.len(), values.len(), "sparse: lengths differ");
        assert!(indices.is_sorted_by(|a, b| a < b), "sparse: indices do not ascend");
        let last = indices.last().map_or(0, |&last| last as usize + 1);
        assert!(last <= layout.n_inputs(), "sparse: {last} inputs of {}", layout.n_inputs());
        let step = Step::of(isa, layout.activation());
        self.prepared_for = Some((isa, *layout));
        self.pairs.clear();
        let mut live = indices.iter().copied().zip(values.iter().copied()).peekable();
        while let Some((index, value)) = live.next() {
            let idx = index / 2;
            let x = match live.next_if(|&(next, _)| next / 2 == idx) {
                Some((_, second)) => [value, second],
                None if index % 2 == 0 => [value, 0.0],
                None => [0.0, value],
            };
            let words = match step {
                Step::Rounded => [bf16_bits(x[1]) << 16, bf16_bits(x[0]) << 16],
                Step::Pair => [bf16_bits(x[0]) | bf16_bits(x[1]) << 16, 0],
                Step::Float | Step::Quad => x.map(f32::to_bits),
            };
            self.pairs.push(LivePair { idx, words });
        }
    }
}

/// How many pairs ahead codes are asked for: some kilobytes.
const PAIRS_AHEAD: usize = 24;

/// The products of all outputs of a panel with the inputs that are not zero.
///
/// # Panics
///
/// If `panel` does not have the bytes of the layout, if the inputs were not prepared for it, or if there are no sparse
/// products of it.
pub fn sparse_into(
    layout: &PanelLayout,
    panel: &[u8],
    inputs: &LivePairs,
    sums: &mut [f32; PANEL],
) {
    assert!(LivePairs::supports(layout), "sparse: {layout:?}");
    *sums = [0.0; PANEL];
    let (isa, of_inputs) = inputs.prepared_for.expect("sparse: no inputs were prepared");
    assert_eq!(of_inputs, *layout, "sparse: the layout of the inputs");
    let mut left = &inputs.pairs[..];
    for (idx, group) in layout.groups(panel).enumerate() {
        let first = (idx * layout.group() / 2) as u32;
        let end = first + (layout.group() / 2) as u32;
        let of_group = left.partition_point(|pair| pair.idx < end);
        let (own, rest) = left.split_at(of_group);
        left = rest;
        let job = Job { layout, group, first, pairs: own, sums };
        #[cfg(target_arch = "x86_64")]
        if layout.activation() == Activation::Bf16
            && let Some(token) = Bf16Dot::of(isa)
        {
            // SAFETY: the token shows that the CPU has the features.
            unsafe { x86::run(token, job) }
            continue;
        }
        dispatch!(isa.token(), simd => run(simd, job));
    }
}

struct Job<'a> {
    layout: &'a PanelLayout,
    group: Group<'a>,
    /// The pair with which the group begins.
    first: u32,
    pairs: &'a [LivePair],
    sums: &'a mut [f32; PANEL],
}

impl<'a> Job<'a> {
    /// The codes of each pair, with its words.
    #[inline(always)]
    fn codes(&self, pair_bytes: usize) -> impl Iterator<Item = (&'a [u8], [u32; 2])> + use<'a> {
        let (codes, pairs, first) = (self.group.codes, self.pairs, self.first);
        let at = move |pair: &LivePair| {
            let start = (pair.idx - first) as usize * pair_bytes;
            &codes[start..start + pair_bytes]
        };
        pairs.iter().enumerate().map(
            #[inline(always)]
            move |(i, pair)| {
                if let Some(later) = pairs.get(i + PAIRS_AHEAD) {
                    prefetch::far_lines(at(later), 0);
                }
                (at(pair), pair.words)
            },
        )
    }
}

#[inline(always)]
fn run<S: Simd>(simd: S, job: Job<'_>) {
    match S::f32s::LEN {
        16 => floats::<S, 4>(simd, job),
        8 => floats::<S, 8>(simd, job),
        _ => floats::<S, 16>(simd, job),
    }
}

#[inline(always)]
fn floats<S: Simd, const N: usize>(simd: S, job: Job<'_>) {
    with_codes!(
        job.layout,
        C, M => floats_of::<S, C, M, N>(simd, job),
        _ => unreachable!("a layout without sparse products was refused")
    );
}

#[inline(always)]
fn floats_of<S: Simd, C: PairCodes, M: Chain, const N: usize>(simd: S, job: Job<'_>) {
    let scales = job.group.scales(job.layout);
    let pairs = job.codes(C::PAIR_BYTES).map(
        #[inline(always)]
        |(codes, words)| (codes, words.map(f32::from_bits)),
    );
    for_group(
        simd,
        job.layout,
        &job.group,
        job.sums,
        #[inline(always)]
        |sums| float::one_row::<S, C, M, N>(simd, pairs, &scales, sums),
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{
        Code, Job,
        float::Float8,
        for_group,
        pairs::{self, Bf16Dot, with_bf16_dot},
    };

    with_bf16_dot! {
        /// The level of AVX-512, and its instruction for pairs of BF16.
        pub(super) fn run(token: Bf16Dot, job: Job<'_>) {
            match job.layout.code() {
                Code::E4M3 => run_of::<Float8<4>>(token, job),
                Code::E5M2 => run_of::<Float8<5>>(token, job),
                _ => run_of::<pairs::Stored>(token, job),
            }
        }
    }

    #[inline(always)]
    fn run_of<P: pairs::Pairs>(token: Bf16Dot, job: Job<'_>) {
        let codes = job.codes(P::PAIR_BYTES).map(
            #[inline(always)]
            |(codes, words)| (codes, words[0]),
        );
        for_group(
            token.level(),
            job.layout,
            &job.group,
            job.sums,
            #[inline(always)]
            |sums| pairs::one_row::<P>(token, codes, sums),
        );
    }
}
