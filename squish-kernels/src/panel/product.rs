//! The product of a panel with prepared inputs: which kernel runs on what.

use std::ops::Range;

use fearless_simd::{Level, Simd, prelude::*};

#[cfg(target_arch = "x86_64")]
use super::pairs::{self, Bf16Dot};
use super::{
    float::{self, Chain, PairCodes, with_codes},
    inputs::{Inputs, Step, Tile},
    int::{self, Baseline, BlockScales, ByteCodes, Dot, Native},
    layout::{Activation, Code, Group, Line, PANEL, PanelLayout, PanelScale},
};
use crate::{
    isa::dispatch,
    prefetch::{Ahead, Stream},
};

/// Rows of decoded weights: 32 KiB, most of which stay in the first-level cache beside the inputs of a tile.
const DECODED: usize = 128;

/// Rows of weights in pairs: 16 KiB, since their instruction is twice as fast and waits for no second-level cache.
#[cfg(target_arch = "x86_64")]
const DECODED_PAIRS: usize = 64;

/// Most rows of inputs in one call, which meet decoded weights before they are replaced. Decoding again for the next ones
/// costs 1 % of their products, and the inputs of so many rows nearly stay in the second-level cache.
pub const MOST_ROWS: usize = 120;

/// Room for what a product decodes.
#[derive(Clone, Debug)]
pub struct ProductScratch {
    /// [`DECODED`] rows of weights.
    weights: Vec<Line>,
    /// [`MOST_ROWS`] sums of a group, which are scaled at its end.
    of_group: Vec<Line>,
}

impl ProductScratch {
    /// Room that a thread can use for one product after another.
    #[must_use]
    pub fn new() -> Self {
        let rows = |n: usize| vec![Line([0; 64]); n * size_of::<[f32; PANEL]>() / 64];
        Self { weights: rows(DECODED), of_group: rows(MOST_ROWS) }
    }
}

impl Default for ProductScratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The products of all outputs of a panel with the rows of some tiles, `[rows, PANEL]`: at most [`MOST_ROWS`], as
/// [`InputPlan::calls`](super::InputPlan::calls) has them.
///
/// # Panics
///
/// If `panel` does not have the bytes of the layout or does not start on a [`Line`], `sums` does not have the rows of the
/// tiles, or if the inputs were planned for another layout.
pub fn product_into(
    layout: &PanelLayout,
    panel: &[u8],
    inputs: &Inputs<'_>,
    tiles: Range<usize>,
    scratch: &mut ProductScratch,
    sums: &mut [[f32; PANEL]],
) {
    let plan = inputs.plan;
    assert_eq!(panel.len(), layout.panel_bytes(), "product_into: bytes of the layout");
    assert_eq!(sums.len(), plan.rows(&tiles).len(), "product_into: rows");
    assert!(sums.len() <= MOST_ROWS, "product_into: {} rows", sums.len());
    let per_row = layout.padded_inputs() / plan.step().n_inputs();
    assert_eq!(plan.words_per_row(), per_row, "product_into: inputs of the layout");
    assert_eq!(plan.step(), Step::of(plan.isa(), layout.activation()), "product_into: activation");
    assert_eq!(plan.sums_per_block(), layout.parts_per_block(), "product_into: halves of blocks");
    let on_a_line = bytemuck::try_cast_slice::<u8, f32>(panel).is_ok();
    assert!(on_a_line, "product_into: panels start on a line");
    if sums.is_empty() {
        return;
    }
    sums.fill([0.0; PANEL]);
    let job = Job { layout, panel, inputs, tiles, scratch, sums: &mut *sums };
    let isa = plan.isa();
    match plan.step() {
        #[cfg(target_arch = "x86_64")]
        Step::Pair => {
            let token =
                Bf16Dot::of(isa).expect("pairs are planned where the CPU prefers the instruction");
            // SAFETY: the token shows that the CPU has the features.
            unsafe { x86::run_pairs(token, job) }
        }
        Step::Quad => match (isa.token(), Native::of(isa)) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2(token), Some(native)) => {
                // SAFETY: the tokens show that the CPU has the features.
                unsafe { x86::run_vnni(token, native, job) }
            }
            #[cfg(target_arch = "aarch64")]
            (Level::Neon(token), Some(native)) => {
                // SAFETY: as above.
                unsafe { neon::run_dotprod(token, native, job) }
            }
            (token, _) => dispatch!(token, simd => quads(simd, Baseline, job)),
        },
        _ => dispatch!(isa.token(), simd => floats(simd, job)),
    }
    if let Some(scales) = layout.output_scales(panel) {
        for (sum, scale) in sums.iter_mut().flat_map(|sums| sums.iter_mut().zip(&scales)) {
            *sum *= scale;
        }
    }
}

struct Job<'a> {
    layout: &'a PanelLayout,
    panel: &'a [u8],
    inputs: &'a Inputs<'a>,
    tiles: Range<usize>,
    scratch: &'a mut ProductScratch,
    sums: &'a mut [[f32; PANEL]],
}

/// Whether the sums of a group are scaled, and not its weights. Those times scales of halves are BF16.
fn scales_sums(layout: &PanelLayout) -> bool {
    layout.activation() == Activation::Bf16
        && !matches!(layout.scale(), PanelScale::Absent | PanelScale::E4M3)
}

/// Runs `add` on the sums of a row: those of the product, or of a group, which are then scaled and added.
#[inline(always)]
pub(super) fn for_group<S: Simd>(
    simd: S,
    layout: &PanelLayout,
    group: &Group<'_>,
    sums: &mut [f32; PANEL],
    add: impl FnOnce(&mut [f32; PANEL]),
) {
    if scales_sums(layout) {
        let mut of_group = [0.0; PANEL];
        add(&mut of_group);
        add_scaled(simd, &of_group, &group.scales(layout), sums);
    } else {
        add(sums);
    }
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
        let sum = S::f32s::from_slice(simd, &of_group[at.clone()]);
        let scale = S::f32s::from_slice(simd, &scales[at.clone()]);
        let sums = &mut sums[at];
        sum.mul_add(scale, S::f32s::from_slice(simd, sums)).store_slice(sums);
    }
}

/// Some inputs: as many as are decoded at once.
struct Part<'a> {
    group: Group<'a>,
    /// First input, within the panel.
    first: usize,
    /// First input, within the group.
    at: usize,
    /// Number of inputs.
    len: usize,
    /// Inputs of a row of decoded weights.
    per_step: usize,
    /// Whether these are the last inputs of the group.
    ends_group: bool,
}

impl<'a> Part<'a> {
    /// All inputs, in order, those of `n_rows` rows of decoded weights at once.
    fn all(
        layout: &'a PanelLayout,
        panel: &'a [u8],
        step: Step,
        n_rows: usize,
    ) -> impl Iterator<Item = Self> {
        let per_step = step.n_inputs();
        let inputs_at_once = n_rows * per_step;
        layout.groups(panel).enumerate().flat_map(move |(idx, group)| {
            let start = idx * layout.group();
            let group_len = layout.group().min(layout.padded_inputs() - start);
            (0..group_len).step_by(inputs_at_once).map(move |at| {
                let len = inputs_at_once.min(group_len - at);
                Self {
                    group,
                    first: start + at,
                    at,
                    len,
                    per_step,
                    ends_group: at + len == group_len,
                }
            })
        })
    }

    /// What is asked for meanwhile, in so many steps for each row of decoded weights: the codes that follow.
    fn ahead(&self, layout: &PanelLayout, n_steps: usize) -> Ahead<'a> {
        Ahead::of(self.codes(layout), n_steps * self.len / self.per_step)
    }

    /// The codes from its first input on.
    fn codes(&self, layout: &PanelLayout) -> &'a [u8] {
        &self.group.codes[layout.code_bytes(self.at)..layout.code_bytes(self.at + self.len)]
    }
}

/// Steps that a tile takes for each row of decoded weights on the widest vectors, which meet half of the outputs at once.
const STEPS: usize = 2;

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
fn floats<S: Simd>(simd: S, job: Job<'_>) {
    match S::f32s::LEN {
        16 => floats_of::<S, 4>(simd, job),
        8 => floats_of::<S, 8>(simd, job),
        _ => floats_of::<S, 16>(simd, job),
    }
}

/// `N` is the number of vectors of a panel.
#[inline(always)]
fn floats_of<S: Simd, const N: usize>(simd: S, job: Job<'_>) {
    match job.sums.len() {
        1 => with_codes!(
            job.layout,
            C, M => one_row::<S, C, M, N>(simd, job),
            _ => tiles::<S, N>(simd, job)
        ),
        2..=float::FEW_ROWS if S::f32s::LEN == 16 => with_codes!(
            job.layout,
            C, M => one_tile::<S, C, M, N>(simd, job),
            _ => tiles::<S, N>(simd, job)
        ),
        2..=MOST_ROWS_OF_CODES if S::f32s::LEN == 8 => with_codes!(
            job.layout,
            C, M => tiles_of_codes::<S, C, M, N>(simd, job),
            _ => tiles::<S, N>(simd, job)
        ),
        _ => tiles::<S, N>(simd, job),
    }
}

/// A single tile of few rows.
#[inline(always)]
fn one_tile<S: Simd, C: PairCodes, M: Chain, const N: usize>(simd: S, job: Job<'_>) {
    let Job { layout, panel, inputs, tiles, scratch, sums } = job;
    let of_group = bytemuck::cast_slice_mut(&mut scratch.of_group);
    let stream = Stream::of(inputs.plan.isa());
    // Whole groups: nothing is decoded that needs room.
    for part in Part::all(layout, panel, inputs.plan.step(), layout.padded_inputs()) {
        let (codes, scales) = (part.codes(layout), part.group.scales(layout));
        for_sums(
            simd,
            layout,
            &part,
            inputs,
            tiles.clone(),
            of_group,
            sums,
            #[inline(always)]
            |_, tile, sums| {
                let x = bytemuck::cast_slice(tile.words);
                with_rows!(tile.n_rows, R => {
                    let sums = sums.first_chunk_mut().expect("the rows of the tile");
                    float::few_rows_of_codes::<S, C, M, N, R>(simd, stream, codes, &scales, x, sums);
                }, 2 3 4 5 6);
            },
        );
    }
}

#[inline(always)]
fn one_row<S: Simd, C: PairCodes, M: Chain, const N: usize>(simd: S, job: Job<'_>) {
    let Job { layout, panel, .. } = job;
    let stream = Stream::of(job.inputs.plan.isa());
    for (group_idx, group) in layout.groups(panel).enumerate() {
        let scales = group.scales(layout);
        let x: &[[f32; 2]] = bytemuck::cast_slice(one_row_of(&job, group_idx).words);
        let codes = group.codes.chunks_exact(C::PAIR_BYTES);
        let pairs = codes.zip(x).map(
            #[inline(always)]
            |(pair, x)| {
                stream.lines_in_two_steps(pair);
                (pair, *x)
            },
        );
        for_group(
            simd,
            layout,
            &group,
            &mut job.sums[0],
            #[inline(always)]
            |sums| float::one_row::<S, C, M, N>(simd, pairs, &scales, sums),
        );
    }
}

/// What a group meets of a single row.
fn one_row_of<'a>(job: &Job<'a>, group_idx: usize) -> Tile<'a> {
    let (layout, first) = (job.layout, group_idx * job.layout.group());
    let len = layout.group().min(layout.padded_inputs() - first);
    job.inputs.tile(job.tiles.start, first, len)
}

/// The weights of a part, in the order of the steps and with the scales of the F32 mode.
#[inline(always)]
fn decode<S: Simd, const N: usize>(
    simd: S,
    layout: &PanelLayout,
    part: &Part<'_>,
    out: &mut [[f32; PANEL]],
) {
    let (codes, scales) = (part.codes(layout), part.group.scales(layout));
    with_codes!(
        layout,
        C, M => float::decode_into::<S, C, M, N>(simd, codes, &scales, out),
        _ => {
            float::decode_plain(layout.code(), codes, &part.group.offsets(layout), out);
            if layout.has_halves() {
                float::scale_halves(&part.group.half_scales(), out);
            }
            if layout.activation() == Activation::Bf16 {
                out.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1));
            } else if !matches!(layout.scale(), PanelScale::Absent | PanelScale::E4M3) {
                for out in out {
                    for (out, scale) in out.iter_mut().zip(&scales) {
                        *out *= scale;
                    }
                }
            }
        }
    );
}

/// Most rows of inputs that meet codes which each of their tiles decodes in registers, on vectors of 256 bits: three tiles. More of them meet
/// weights that were decoded before.
const MOST_ROWS_OF_CODES: usize = 18;

/// All tiles of few rows, each of which decodes the codes of a part, which are in the first-level cache.
#[inline(always)]
fn tiles_of_codes<S: Simd, C: PairCodes, M: Chain, const N: usize>(simd: S, job: Job<'_>) {
    let Job { layout, panel, inputs, tiles, scratch, sums } = job;
    let of_group = bytemuck::cast_slice_mut(&mut scratch.of_group);
    for part in Part::all(layout, panel, inputs.plan.step(), DECODED) {
        let (codes, scales) = (part.codes(layout), part.group.scales(layout));
        for_sums(
            simd,
            layout,
            &part,
            inputs,
            tiles.clone(),
            of_group,
            sums,
            #[inline(always)]
            |idx, tile, sums| {
                let x = bytemuck::cast_slice(tile.words);
                let ahead = ahead_of_tile(layout, inputs, &part, &tiles, idx);
                with_rows!(tile.n_rows, R => {
                    let sums = sums.first_chunk_mut().expect("the rows of the tile");
                    float::tile_of_codes::<S, C, M, N, R>(simd, codes, &scales, ahead, x, sums);
                }, 2 3 4 5 6);
            },
        );
    }
}

/// What is asked for while a tile meets a part: the first tile asks for the codes that follow, and the others for the inputs of the tile that is
/// next. Those of a call and the codes do not fit into the second-level cache together, and those of a part lie far from each other.
#[inline(always)]
fn ahead_of_tile<'a>(
    layout: &PanelLayout,
    inputs: &Inputs<'a>,
    part: &Part<'a>,
    tiles: &Range<usize>,
    idx: usize,
) -> Ahead<'a> {
    if idx == tiles.start {
        return part.ahead(layout, STEPS);
    }
    let next = if idx + 1 < tiles.end {
        inputs.tile(idx + 1, part.first, part.len)
    } else {
        let first = part.first + part.len;
        let len = part.len.min(layout.padded_inputs() - first);
        inputs.tile(tiles.start, first, len)
    };
    Ahead::itself(bytemuck::cast_slice(next.words), STEPS * part.len)
}

/// All tiles of rows, with weights that are decoded once for many of them.
#[inline(always)]
fn tiles<S: Simd, const N: usize>(simd: S, job: Job<'_>) {
    let Job { layout, panel, inputs, tiles, scratch, sums } = job;
    let ProductScratch { weights, of_group } = scratch;
    let decoded: &mut [[f32; PANEL]] = bytemuck::cast_slice_mut(weights);
    let of_group = bytemuck::cast_slice_mut(of_group);
    let in_place = layout.code() == Code::F32;
    for part in Part::all(layout, panel, inputs.plan.step(), DECODED) {
        let weights: &[[f32; PANEL]] = if in_place {
            bytemuck::cast_slice(part.codes(layout))
        } else {
            decode::<S, N>(simd, layout, &part, &mut decoded[..part.len]);
            &decoded[..part.len]
        };
        for_sums(
            simd,
            layout,
            &part,
            inputs,
            tiles.clone(),
            of_group,
            sums,
            #[inline(always)]
            |idx, tile, sums| {
                let x = bytemuck::cast_slice(tile.words);
                let ahead = ahead_of_tile(layout, inputs, &part, &tiles, idx);
                with_rows!(tile.n_rows, R => {
                    let sums = sums.first_chunk_mut::<R>().expect("the rows of the tile");
                    float::tile_into::<S, R>(simd, weights, ahead, x, sums);
                }, 1 2 3 4 5 6 7 8 9 10 11 12);
            },
        );
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
    tiles: Range<usize>,
    of_group: &mut [[f32; PANEL]],
    sums: &mut [[f32; PANEL]],
    mut multiply: impl FnMut(usize, Tile<'_>, &mut [[f32; PANEL]]),
) {
    let first_row = inputs.plan.rows(&tiles).start;
    let of_group = &mut of_group[..sums.len()];
    let scaled = scales_sums(layout);
    if scaled && part.at == 0 {
        of_group.fill([0.0; PANEL]);
    }
    for idx in tiles {
        let own = inputs.plan.tile(idx);
        let own = own.start - first_row..own.end - first_row;
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
fn quads<S: Simd>(simd: S, by: impl Dot, job: Job<'_>) {
    use int::{E4M3Scales, E8M0Scales, F32Scales, Int8, Nibbles};

    match (job.layout.code(), job.layout.scale()) {
        (Code::E2M1, PanelScale::E4M3) => {
            quads_of::<S, Nibbles<true>, E4M3Scales>(simd, by, job);
        }
        (Code::E2M1, _) => quads_of::<S, Nibbles<true>, E8M0Scales>(simd, by, job),
        (Code::Int4, PanelScale::F32Zero) => {
            quads_of::<S, Nibbles<false>, F32Scales<true>>(simd, by, job);
        }
        (Code::Int4, _) => quads_of::<S, Nibbles<false>, F32Scales<false>>(simd, by, job),
        (Code::MxInt8, _) => quads_of::<S, Int8<true>, E8M0Scales>(simd, by, job),
        (_, PanelScale::F32Zero) => quads_of::<S, Int8<false>, F32Scales<true>>(simd, by, job),
        _ => quads_of::<S, Int8<false>, F32Scales<false>>(simd, by, job),
    }
}

#[inline(always)]
fn quads_of<S: Simd, C: ByteCodes, K: BlockScales>(simd: S, by: impl Dot, job: Job<'_>) {
    match S::f32s::LEN {
        16 => quads_at::<S, C, K, 4>(simd, by, job),
        8 => quads_at::<S, C, K, 8>(simd, by, job),
        _ => quads_at::<S, C, K, 16>(simd, by, job),
    }
}

/// `N` is the number of vectors of a panel.
#[inline(always)]
fn quads_at<S: Simd, C: ByteCodes, K: BlockScales, const N: usize>(
    simd: S,
    by: impl Dot,
    job: Job<'_>,
) {
    let Job { layout, panel, inputs, tiles, sums, .. } = job;
    let x = inputs.tile(tiles.start, 0, layout.padded_inputs());
    match sums {
        [sums] => {
            let stream = Stream::of(inputs.plan.isa());
            int::one_row::<S, C, K, N>(simd, by, layout, panel, stream, x, sums);
        }
        sums => int::rows::<S, C, K, N>(simd, by, layout, panel, x, sums),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use fearless_simd::Avx2;

    use super::{
        Ahead, Code, DECODED_PAIRS, Job, Native, PANEL, Part, ProductScratch, Stream,
        float::Float8,
        for_group, for_sums, one_row_of,
        pairs::{self, Bf16Dot, with_bf16_dot},
        quads,
    };

    /// The level of AVX2, and AVX-VNNI. All features of the level are named: a function that has fewer does not inline the SIMD library's
    /// operations.
    #[target_feature(
        enable = "fxsr,avx2,bmi1,bmi2,cmpxchg16b,f16c,fma,lzcnt,movbe,popcnt,xsave,avxvnni"
    )]
    pub(super) fn run_vnni(token: Avx2, native: Native, job: Job<'_>) {
        quads(token, native, job);
    }

    with_bf16_dot! {
        /// The level of AVX-512, and its instruction for pairs of BF16.
        pub(super) fn run_pairs(token: Bf16Dot, job: Job<'_>) {
            match (job.sums.len(), job.layout.code()) {
                (1, Code::Bf16) => one_row::<pairs::Stored>(token, job),
                (1, Code::E4M3) => one_row::<Float8<4>>(token, job),
                (1, Code::E5M2) => one_row::<Float8<5>>(token, job),
                _ => pair_tiles(token, job),
            }
        }
    }

    /// Groups may be as short as a block, so that what comes before and after their pairs counts.
    #[inline(always)]
    fn one_row<P: pairs::Pairs>(token: Bf16Dot, job: Job<'_>) {
        let Job { layout, panel, .. } = job;
        let stream = Stream::of(job.inputs.plan.isa());
        for (group_idx, group) in layout.groups(panel).enumerate() {
            let x = one_row_of(&job, group_idx).words;
            let pairs = group.codes.chunks_exact(P::PAIR_BYTES).zip(x).map(
                #[inline(always)]
                |(pair, &x)| {
                    stream.lines_in_two_steps(pair);
                    (pair, x)
                },
            );
            for_group(
                token.level(),
                layout,
                &group,
                &mut job.sums[0],
                #[inline(always)]
                |sums| pairs::one_row::<P>(token, pairs, sums),
            );
        }
    }

    #[inline(always)]
    fn pair_tiles(token: Bf16Dot, job: Job<'_>) {
        let Job { layout, panel, inputs, tiles, scratch, sums } = job;
        let ProductScratch { weights, of_group } = scratch;
        let decoded: &mut [[u32; PANEL]] = bytemuck::cast_slice_mut(weights);
        let of_group = bytemuck::cast_slice_mut(of_group);
        // Of one tile codes come in, and are decoded in registers, while they are multiplied. More tiles meet what was decoded and stored, and
        // what follows comes in meanwhile.
        let is_one = tiles.len() == 1;
        for part in Part::all(layout, panel, inputs.plan.step(), DECODED_PAIRS) {
            let mut codes = part.codes(layout);
            let mut code = layout.code();
            let is_float8 = matches!(code, Code::E4M3 | Code::E5M2);
            if code != Code::Bf16 && !(is_float8 && is_one) {
                let weights = &mut decoded[..part.len / 2];
                match code {
                    Code::E4M3 => {
                        pairs::decode_into::<Float8<4>>(token.level(), codes, weights);
                    }
                    Code::E5M2 => {
                        pairs::decode_into::<Float8<5>>(token.level(), codes, weights);
                    }
                    _ => {
                        let offsets = part.group.offsets(layout);
                        let halves = layout.has_halves().then(|| part.group.half_scales());
                        pairs::decode_plain(code, codes, &offsets, halves.as_ref(), weights);
                    }
                }
                (code, codes) = (Code::Bf16, bytemuck::cast_slice(weights));
            }
            let stream = match layout.code() {
                Code::Bf16 if is_one && pairs::n_steps(sums.len()) == 1 => {
                    Stream::of(inputs.plan.isa())
                }
                own if is_one && own == code => Stream::Asked,
                _ => Stream::Unasked,
            };
            let n_steps = tiles.clone().map(|idx| pairs::n_steps(inputs.plan.tile(idx).len()));
            let mut ahead = if is_one { Ahead::NOTHING } else { part.ahead(layout, n_steps.sum()) };
            for_sums(
                token.level(),
                layout,
                &part,
                inputs,
                tiles.clone(),
                of_group,
                sums,
                #[inline(always)]
                |_, tile, sums| {
                    with_rows!(tile.n_rows, R => {
                        let sums = sums.first_chunk_mut::<R>().expect("the rows of the tile");
                        let x = tile.words;
                        match code {
                            Code::E4M3 => pairs::tile_into::<Float8<4>, R>(token, codes, stream, &mut ahead, x, sums),
                            Code::E5M2 => pairs::tile_into::<Float8<5>, R>(token, codes, stream, &mut ahead, x, sums),
                            _ => pairs::tile_into::<pairs::Stored, R>(token, codes, stream, &mut ahead, x, sums),
                        }
                    }, 1 2 3 4 5 6 7 8 9 10 11 12);
                },
            );
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use fearless_simd::Neon;

    use super::{Job, Native, quads};

    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn run_dotprod(token: Neon, native: Native, job: Job<'_>) {
        quads(token, native, job);
    }
}
