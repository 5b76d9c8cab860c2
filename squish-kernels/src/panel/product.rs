//! The product of a panel with prepared inputs: which kernel runs on what.

use std::ops::Range;

use fearless_simd::{Level, Simd, prelude::*};

#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::{
    float::{self, Chain, PairCodes, Plain, Rounded, Scaled},
    inputs::{InputPlan, Inputs, MAX_TILE, Step, Tile},
    int::{self, Baseline, Blocks, ByteCodes, Dot, QUADS, Vnni},
    layout::{Activation, BLOCK, Code, Group, PANEL, PanelLayout, PanelScale},
};
use crate::isa::dispatch;

/// Rows of decoded weights: 32 KiB, which stay in the first-level cache beside the inputs of a tile.
const DECODED: usize = 128;

/// Blocks of decoded integers.
const BLOCKS: usize = DECODED / QUADS;

/// Rows of inputs that meet decoded weights before they are replaced. Decoding again for the next ones costs 1 % of their
/// products, and so many rows of one [`DECODED`] stay in the second-level cache.
const ROWS: usize = 120;

/// Room for what a product decodes.
#[derive(Debug)]
#[repr(align(64))]
pub struct ProductScratch {
    weights: [[u32; PANEL]; DECODED],
    /// Of each block of decoded integers.
    scales: [[f32; PANEL]; BLOCKS],
    /// Likewise.
    offsets: [[i32; PANEL]; BLOCKS],
    /// Sums of a group that are scaled at its end.
    of_group: [[f32; PANEL]; ROWS],
}

impl ProductScratch {
    /// Room that a thread can use for one product after another.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            weights: [[0; PANEL]; DECODED],
            scales: [[0.0; PANEL]; BLOCKS],
            offsets: [[0; PANEL]; BLOCKS],
            of_group: [[0.0; PANEL]; ROWS],
        }
    }
}

impl Default for ProductScratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The products of all outputs of a panel with all rows of `inputs`, `[rows, PANEL]`.
///
/// # Panics
///
/// If `panel` does not have the bytes of the layout, `sums` not the rows of the inputs, or if the inputs were planned for
/// another layout.
pub fn product_into(
    layout: &PanelLayout,
    panel: &[u8],
    inputs: &Inputs<'_>,
    scratch: &mut ProductScratch,
    sums: &mut [[f32; PANEL]],
) {
    let plan = inputs.plan;
    assert_eq!(panel.len(), layout.panel_bytes(), "product_into: bytes of the layout");
    assert_eq!(sums.len(), plan.n_rows(), "product_into: rows");
    let per_row = layout.padded_inputs() / plan.step().n_inputs();
    assert_eq!(plan.words_per_row(), per_row, "product_into: inputs of the layout");
    assert_eq!(plan.step(), Step::of(plan.isa(), layout.activation()), "product_into: activation");
    sums.fill([0.0; PANEL]);
    let job = Job { layout, panel, inputs, scratch, sums };
    match plan.isa().token() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) if plan.step() == Step::Pair => {
            // SAFETY: `Step::Pair` is planned where `Isa::has_bf16_dot` was found true, and the token shows the others.
            unsafe { x86::run_pairs(token, job) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) if plan.step() == Step::Quad && plan.isa().has_vnni() => {
            // SAFETY: `has_vnni` says at this level that the CPU has AVX-VNNI, and the token shows the others.
            unsafe { x86::run_vnni(token, job) }
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon(token) if plan.step() == Step::Quad && plan.isa().has_dotprod() => {
            // SAFETY: `has_dotprod` says that the CPU has the extension.
            unsafe { neon::run_dotprod(token, job) }
        }
        token => dispatch!(token, simd => run::<_, Baseline>(simd, job)),
    }
}

struct Job<'a> {
    layout: &'a PanelLayout,
    panel: &'a [u8],
    inputs: &'a Inputs<'a>,
    scratch: &'a mut ProductScratch,
    sums: &'a mut [[f32; PANEL]],
}

#[inline(always)]
fn run<S: Simd, D: Dot>(simd: S, job: Job<'_>) {
    match (S::f32s::LEN, job.inputs.plan.step()) {
        (_, Step::Quad) => quads::<S, D>(simd, job),
        (16, _) => floats::<S, 4>(simd, job),
        (8, _) => floats::<S, 8>(simd, job),
        _ => floats::<S, 16>(simd, job),
    }
}

/// Whether the sums of a group are scaled, and not its weights.
fn scales_sums(layout: &PanelLayout) -> bool {
    layout.activation() == Activation::Bf16 && layout.scale() != PanelScale::Absent
}

/// `sums = of_group · scales + sums`.
#[inline(always)]
fn add_scaled<S: Simd>(
    simd: S,
    of_group: &[f32; PANEL],
    scales: &[f32; PANEL],
    sums: &mut [f32; PANEL],
) {
    let lanes = S::f32s::LEN;
    for at in (0..PANEL).step_by(lanes).map(|i| i..i + lanes) {
        let load = |x: &[f32]| S::f32s::from_slice(simd, &x[at.clone()]);
        load(of_group).mul_add(load(scales), load(sums)).store_slice(&mut sums[at.clone()]);
    }
}

/// Tiles of [`ROWS`] rows at most.
fn tiles_at_once(plan: &InputPlan) -> impl Iterator<Item = Range<usize>> {
    let n_tiles = plan.n_tiles();
    let at_once = ROWS / MAX_TILE;
    (0..n_tiles).step_by(at_once).map(move |tile| tile..n_tiles.min(tile + at_once))
}

/// Some inputs of some rows: the innermost unit for which weights are decoded.
struct Part<'a> {
    group: Group<'a>,
    /// First input, within the panel.
    first: usize,
    /// First input, within the group.
    at: usize,
    /// Number of inputs.
    len: usize,
    /// Whether these are the last inputs of the group.
    ends_group: bool,
    /// Which tiles of rows.
    tiles: Range<usize>,
}

impl<'a> Part<'a> {
    /// All inputs of all rows, in the order of the inputs for each row.
    fn all(layout: &'a PanelLayout, panel: &'a [u8], plan: &'a InputPlan) -> impl Iterator<Item = Self> {
        let inputs_at_once = DECODED * plan.step().n_inputs();
        tiles_at_once(plan).flat_map(move |tiles| {
            layout.groups(panel).enumerate().flat_map(move |(idx, group)| {
                let start = idx * layout.group();
                let group_len = layout.group().min(layout.padded_inputs() - start);
                let tiles = tiles.clone();
                (0..group_len).step_by(inputs_at_once).map(move |at| {
                    let len = inputs_at_once.min(group_len - at);
                    let ends_group = at + len == group_len;
                    Self { group, first: start + at, at, len, ends_group, tiles: tiles.clone() }
                })
            })
        })
    }

    /// The codes from its first input on.
    fn codes(&self, layout: &PanelLayout) -> &'a [u8] {
        &self.group.codes[layout.code_bytes(self.at)..layout.code_bytes(self.at + self.len)]
    }

    /// The rows of its tiles.
    fn rows(&self, plan: &InputPlan) -> Range<usize> {
        plan.tile(self.tiles.start).start..plan.tile(self.tiles.end - 1).end
    }

    /// Whether no tile but the first of all asks for memory ahead.
    fn fetches(&self, tile: usize) -> bool {
        tile == self.tiles.start
    }
}

/// Calls `$body` with the number of rows of a tile as a constant `$rows`.
macro_rules! with_rows {
    ($n:expr, $rows:ident => $body:expr, $($count:literal)*) => {
        match $n {
            $($count => { const $rows: usize = $count; $body })*
            n => unreachable!("a tile of {n} rows"),
        }
    };
}

#[inline(always)]
fn floats<S: Simd, const N: usize>(simd: S, job: Job<'_>) {
    let rounded = job.layout.activation() == Activation::Bf16;
    match (job.layout.code(), rounded) {
        (Code::F32, _) => floats_of::<S, float::F32, Plain, N>(simd, job),
        (Code::Bf16, false) => floats_of::<S, float::Bf16, Plain, N>(simd, job),
        (Code::Bf16, true) => floats_of::<S, float::Bf16, Rounded, N>(simd, job),
        (Code::E4M3, false) => floats_of::<S, float::Float8<4>, Scaled, N>(simd, job),
        (Code::E4M3, true) => floats_of::<S, float::Float8<4>, Rounded, N>(simd, job),
        (Code::E5M2, false) => floats_of::<S, float::Float8<5>, Scaled, N>(simd, job),
        (Code::E5M2, true) => floats_of::<S, float::Float8<5>, Rounded, N>(simd, job),
        (Code::F16 | Code::E2M1 | Code::Int8 | Code::Int4, _) => {
            let layout = job.layout;
            tiles(
                simd,
                job,
                #[inline(always)]
                |part, out| decode_plain(layout, part, out),
            );
        }
    }
}

#[inline(always)]
fn floats_of<S: Simd, C: PairCodes, M: Chain, const N: usize>(simd: S, job: Job<'_>) {
    let Job { layout, panel, inputs, .. } = job;
    if inputs.plan.n_rows() > 1 {
        return tiles(
            simd,
            job,
            #[inline(always)]
            |part, out| {
                let scales = part.group.scales(layout);
                float::decode_into::<S, C, M, N>(simd, part.codes(layout), &scales, out);
            },
        );
    }
    for (group_idx, group) in layout.groups(panel).enumerate() {
        let scales = group.scales(layout);
        let x = bytemuck::cast_slice(one_row_of(inputs, layout, group_idx).words);
        if scales_sums(layout) {
            let mut of_group = [0.0; PANEL];
            float::one_row::<S, C, M, N>(simd, group.codes, &scales, x, &mut of_group);
            add_scaled(simd, &of_group, &scales, &mut job.sums[0]);
        } else {
            float::one_row::<S, C, M, N>(simd, group.codes, &scales, x, &mut job.sums[0]);
        }
    }
}

/// What a group meets of a single row.
fn one_row_of<'a>(inputs: &Inputs<'a>, layout: &PanelLayout, group_idx: usize) -> Tile<'a> {
    let first = group_idx * layout.group();
    inputs.tile(0, first, layout.group().min(layout.padded_inputs() - first))
}

/// Codes that become `f32` by plain maps, in the order of the steps and with the scales of the F32 mode.
#[inline(always)]
fn decode_plain(layout: &PanelLayout, part: &Part<'_>, out: &mut [[f32; PANEL]]) {
    float::decode_plain(layout.code(), part.codes(layout), &part.group.offsets(layout), out);
    if layout.activation() == Activation::Bf16 {
        out.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1));
    } else if layout.scale() != PanelScale::Absent {
        let scales = part.group.scales(layout);
        for out in out {
            for (out, scale) in out.iter_mut().zip(&scales) {
                *out *= scale;
            }
        }
    }
}

/// All tiles of rows, with weights that are decoded once for many of them.
#[inline(always)]
fn tiles<S: Simd>(simd: S, job: Job<'_>, decode: impl Fn(&Part<'_>, &mut [[f32; PANEL]])) {
    let Job { layout, panel, inputs, scratch, sums } = job;
    let ProductScratch { weights, of_group, .. } = scratch;
    let in_place = layout.code() == Code::F32;
    for part in Part::all(layout, panel, inputs.plan) {
        let weights: &[[f32; PANEL]] = if in_place {
            bytemuck::cast_slice(part.codes(layout))
        } else {
            let weights = bytemuck::cast_slice_mut(&mut weights[..part.len]);
            decode(&part, weights);
            weights
        };
        for_sums(simd, layout, &part, inputs, of_group, sums, #[inline(always)] |idx, tile, sums| {
            let x = bytemuck::cast_slice(tile.words);
            let fetch = in_place && part.fetches(idx);
            with_rows!(tile.n_rows, R => {
                let sums = sums.first_chunk_mut::<R>().expect("the rows of the tile");
                float::tile_into::<S, R>(simd, weights, fetch, x, sums);
            }, 1 2 3 4 5 6 7 8 9 10 11 12);
        });
    }
}

/// Runs `multiply` on the tiles of a part and their sums: those of the product, or of a group, which are scaled and added at
/// its end.
#[inline(always)]
fn for_sums<S: Simd>(
    simd: S,
    layout: &PanelLayout,
    part: &Part<'_>,
    inputs: &Inputs<'_>,
    of_group: &mut [[f32; PANEL]; ROWS],
    sums: &mut [[f32; PANEL]],
    multiply: impl Fn(usize, Tile<'_>, &mut [[f32; PANEL]]),
) {
    let rows = part.rows(inputs.plan);
    let sums = &mut sums[rows.clone()];
    let of_group = &mut of_group[..rows.len()];
    let scaled = scales_sums(layout);
    if scaled && part.at == 0 {
        of_group.fill([0.0; PANEL]);
    }
    for idx in part.tiles.clone() {
        let own = inputs.plan.tile(idx);
        let own = own.start - rows.start..own.end - rows.start;
        let tile = inputs.tile(idx, part.first, part.len);
        multiply(idx, tile, if scaled { &mut of_group[own] } else { &mut sums[own] });
    }
    if scaled && part.ends_group {
        let scales = part.group.scales(layout);
        for (sums, of_group) in sums.iter_mut().zip(of_group) {
            add_scaled(simd, of_group, &scales, sums);
        }
    }
}

#[inline(always)]
fn quads<S: Simd, D: Dot>(simd: S, job: Job<'_>) {
    match job.layout.code() {
        Code::E2M1 => quads_of::<S, D, int::Nibbles<true>>(simd, job),
        Code::Int4 => quads_of::<S, D, int::Nibbles<false>>(simd, job),
        _ => quads_of::<S, D, int::Int8>(simd, job),
    }
}

#[inline(always)]
fn quads_of<S: Simd, D: Dot, C: ByteCodes>(simd: S, job: Job<'_>) {
    let Job { layout, panel, inputs, scratch, sums } = job;
    let plan = inputs.plan;
    if plan.n_rows() == 1 {
        let x = inputs.tile(0, 0, layout.padded_inputs());
        return match S::f32s::LEN {
            16 => int::one_row::<S, D, C, 4>(simd, layout, panel, x, &mut sums[0]),
            8 => int::one_row::<S, D, C, 8>(simd, layout, panel, x, &mut sums[0]),
            _ => int::one_row::<S, D, C, 16>(simd, layout, panel, x, &mut sums[0]),
        };
    }
    let ProductScratch { weights, scales, offsets, .. } = scratch;
    let zero_points = layout.scale() == PanelScale::F32Zero;
    for tiles in tiles_at_once(plan) {
        for first in (0..layout.padded_inputs()).step_by(BLOCK * BLOCKS) {
            let n_blocks = BLOCKS.min((layout.padded_inputs() - first) / BLOCK);
            for i in 0..n_blocks {
                let block = layout.block(panel, first / BLOCK + i);
                let weights = weights[i * QUADS..].first_chunk_mut().expect("room for a block");
                int::decode_block::<S, C>(simd, block.codes, weights);
                scales[i] = block.scales(layout);
                offsets[i] = int::start_offsets(simd, C::CODE, &block.offsets(layout));
            }
            let blocks = Blocks {
                weights: weights[..n_blocks * QUADS].as_chunks().0,
                scales: &scales[..n_blocks],
                offsets: &offsets[..n_blocks],
                zero_points,
            };
            for idx in tiles.clone() {
                let x = inputs.tile(idx, first, n_blocks * BLOCK);
                let sums = &mut sums[plan.tile(idx)];
                with_rows!(x.n_rows, R => {
                    let sums = sums.first_chunk_mut::<R>().expect("the rows of the tile");
                    int::tile_into::<S, D, C, R>(simd, blocks, x, sums);
                }, 1 2 3 4 5 6);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use fearless_simd::{Avx2, Avx512};

    use super::*;

    /// The level's own features, and those of AVX-VNNI.
    #[target_feature(enable = "avx2,bmi1,bmi2,cmpxchg16b,f16c,fma,lzcnt,movbe,popcnt,avxvnni")]
    pub(super) fn run_vnni(token: Avx2, job: Job<'_>) {
        quads::<_, Vnni>(token, job);
    }

    /// The BF16 mode by the instruction for pairs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
    pub(super) fn run_pairs(token: Avx512, job: Job<'_>) {
        match job.layout.code() {
            Code::Bf16 => pairs_of::<pairs::Stored>(token, job),
            Code::E4M3 => pairs_of::<pairs::Float8<4>>(token, job),
            Code::E5M2 => pairs_of::<pairs::Float8<5>>(token, job),
            _ => pair_tiles(token, job, |part, layout, weights| {
                let offsets = part.group.offsets(layout);
                pairs::decode_plain(layout.code(), part.codes(layout), &offsets, weights);
            }),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
    fn pairs_of<P: pairs::Pairs>(token: Avx512, job: Job<'_>) {
        let Job { layout, panel, inputs, .. } = job;
        if inputs.plan.n_rows() > 1 {
            return pair_tiles(token, job, |part, layout, weights| {
                pairs::decode_into::<P>(token, part.codes(layout), weights);
            });
        }
        for (group_idx, group) in layout.groups(panel).enumerate() {
            let x = one_row_of(inputs, layout, group_idx).words;
            if scales_sums(layout) {
                let mut of_group = [0.0; PANEL];
                pairs::one_row::<P>(token, group.codes, x, &mut of_group);
                add_scaled(token, &of_group, &group.scales(layout), &mut job.sums[0]);
            } else {
                pairs::one_row::<P>(token, group.codes, x, &mut job.sums[0]);
            }
        }
    }

    /// As [`tiles`], with pairs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
    fn pair_tiles(
        token: Avx512,
        job: Job<'_>,
        decode: impl Fn(&Part<'_>, &PanelLayout, &mut [[u32; PANEL]]),
    ) {
        let Job { layout, panel, inputs, scratch, sums } = job;
        let ProductScratch { weights, of_group, .. } = scratch;
        let in_place = layout.code() == Code::Bf16;
        for part in Part::all(layout, panel, inputs.plan) {
            let weights: &[[u32; PANEL]] = if in_place {
                bytemuck::cast_slice(part.codes(layout))
            } else {
                let weights = &mut weights[..part.len / 2];
                decode(&part, layout, weights);
                weights
            };
            for_sums(token, layout, &part, inputs, of_group, sums, |idx, tile, sums| {
                let fetch = in_place && part.fetches(idx);
                with_rows!(tile.n_rows, R => {
                    let sums = sums.first_chunk_mut::<R>().expect("the rows of the tile");
                    pairs::tile_into::<R>(token, weights, fetch, tile.words, sums);
                }, 1 2 3 4 5 6 7 8 9 10 11 12);
            });
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use fearless_simd::Neon;

    use super::*;

    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn run_dotprod(token: Neon, job: Job<'_>) {
        quads::<_, Vnni>(token, job);
    }
}
