use squish_bench::{Aligned, input::Rng};
use squish_kernels::{
    Isa,
    element::{E4M3, E8M0, Element},
    panel::{
        Activation, BLOCK, COLUMN_BLOCK, Code, ColumnLayout, InputPlan, Inputs, LiveColumns,
        LivePairs, Output, PANEL, PanelLayout, PanelScale, PanelSource, ProductScratch,
        columns_into, pack_columns, pack_panel, product_into, sparse_into,
    },
};

/// Random codes, scales and zero points.
struct Weights {
    layout: PanelLayout,
    n_outputs: usize,
    codes: Vec<u8>,
    /// Of halves of blocks where these have scales.
    scale_bits: Vec<u32>,
    output_scales: Vec<f32>,
    zero_points: Vec<i8>,
}

impl Weights {
    fn new(layout: PanelLayout, n_outputs: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let n = n_outputs * layout.n_inputs();
        let codes = (0..n)
            .flat_map(|_| {
                let x = rng.normal();
                match layout.code() {
                    Code::F32 => x.to_le_bytes().to_vec(),
                    Code::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                    Code::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
                    // All codes but those that are not finite.
                    Code::E4M3 => vec![(rng.below(127) + 128 * rng.below(2)) as u8],
                    Code::E5M2 => vec![(rng.below(124) + 128 * rng.below(2)) as u8],
                    Code::Int8 | Code::MxInt8 => vec![rng.below(256) as u8],
                    _ => vec![rng.below(16) as u8],
                }
            })
            .collect();
        let n_scales = n_outputs * scales_per_output(&layout);
        let scale_bits = (0..n_scales)
            .map(|_| match layout.scale() {
                PanelScale::E8M0 => 120 + rng.below(12) as u32,
                PanelScale::E4M3 => 1 + rng.below(120) as u32,
                _ => (rng.uniform() + 0.01).to_bits(),
            })
            .collect();
        let most = if layout.code() == Code::Int4 { 8 } else { 128 };
        let zero_points = (0..n_scales).map(|_| (rng.below(2 * most) as i64 - most as i64) as i8);
        let zero_points = zero_points.collect();
        let output_scales = (0..n_outputs).map(|_| rng.uniform() + 0.01).collect();
        Self { layout, n_outputs, codes, scale_bits, output_scales, zero_points }
    }

    fn panel(&self) -> Aligned<u8> {
        // What is there already must not matter.
        let mut panel = Aligned::from_fn(self.layout.panel_bytes(), |_| 0xa5);
        pack_panel(&self.layout, self, 0, self.n_outputs, &mut panel);
        panel
    }

    /// The product by the definition.
    fn product(&self, isa: Isa, output: usize, x: &[f32]) -> f32 {
        let Self { layout, .. } = self;
        let n_scales = scales_per_output(layout);
        let groups = output * n_scales..(output + 1) * n_scales;
        let scales: Vec<f32> = self.scale_bits[groups.clone()]
            .iter()
            .map(|&bits| match layout.scale() {
                PanelScale::E8M0 => E8M0::from_bits(bits as u8).to_f32(),
                PanelScale::E4M3 => E4M3::from_bits(bits as u8).to_f32(),
                _ => f32::from_bits(bits),
            })
            .collect();
        let row = layout.n_inputs() * layout.code().n_bytes();
        Output {
            code: layout.code(),
            activation: layout.activation(),
            codes: &self.codes[output * row..(output + 1) * row],
            group: scale_group(layout),
            scales: (layout.scale() != PanelScale::Absent).then_some(&scales),
            zero_points: (layout.scale() == PanelScale::F32Zero)
                .then_some(&self.zero_points[groups]),
            output_scale: (layout.scale() == PanelScale::E4M3).then(|| self.output_scales[output]),
        }
        .product(isa, x)
    }
}

impl PanelSource for Weights {
    fn codes_into(&self, output: usize, first: usize, codes: &mut [u8]) {
        let start = (output * self.layout.n_inputs() + first) * self.layout.code().n_bytes();
        codes.copy_from_slice(&self.codes[start..start + codes.len()]);
    }

    fn scale_bits(&self, output: usize, group: usize) -> u32 {
        self.scale_bits[output * scales_per_output(&self.layout) + group]
    }

    fn output_scale(&self, output: usize) -> f32 {
        self.output_scales[output]
    }

    fn zero_point(&self, output: usize, group: usize) -> i8 {
        self.zero_points[output * self.layout.n_groups() + group]
    }
}

/// Inputs that share a scale.
fn scale_group(layout: &PanelLayout) -> usize {
    if layout.scale() == PanelScale::E4M3 { BLOCK / 2 } else { layout.group() }
}

fn scales_per_output(layout: &PanelLayout) -> usize {
    match layout.scale() {
        PanelScale::E4M3 => layout.n_inputs().div_ceil(BLOCK / 2),
        _ => layout.n_groups(),
    }
}

/// Products of `n_rows` rows, `[rows, PANEL]`.
fn products(
    isa: Isa,
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    n_rows: usize,
) -> Vec<[f32; PANEL]> {
    let plan = InputPlan::new(isa, layout, n_rows);
    let mut words = vec![0; n_rows * plan.words_per_row()];
    let mut scales = vec![0.0; n_rows * plan.blocks_per_row()];
    let mut sums = vec![0; n_rows * plan.sums_per_row()];
    let n = layout.n_inputs();
    for idx in 0..plan.n_tiles() {
        let rows = plan.tile(idx);
        let part = |per_row: usize| rows.start * per_row..rows.end * per_row;
        plan.prepare_tile(
            idx,
            |i| &x[(rows.start + i) * n..(rows.start + i + 1) * n],
            &mut words[part(plan.words_per_row())],
            &mut scales[part(plan.blocks_per_row())],
            &mut sums[part(plan.sums_per_row())],
        );
    }
    let inputs = Inputs { plan: &plan, words: &words, scales: &scales, sums: &sums };
    let mut out = vec![[f32::NAN; PANEL]; n_rows];
    let mut scratch = ProductScratch::new();
    let mut left: &mut [_] = &mut out;
    for tiles in plan.calls() {
        let n_rows = plan.tile(tiles.end - 1).end - plan.tile(tiles.start).start;
        let (sums, rest) = left.split_at_mut(n_rows);
        product_into(layout, panel, &inputs, tiles, &mut scratch, sums);
        left = rest;
    }
    out
}

/// Every layout that has kernels.
fn layouts(n_inputs: usize, group: usize) -> impl Iterator<Item = PanelLayout> {
    Code::ALL.into_iter().flat_map(move |code| {
        Activation::ALL.into_iter().flat_map(move |activation| {
            let scales = [
                PanelScale::Absent,
                PanelScale::F32,
                PanelScale::F32Zero,
                PanelScale::E8M0,
                PanelScale::E4M3,
            ];
            scales
                .into_iter()
                .filter_map(move |scale| PanelLayout::new(code, activation, scale, n_inputs, group))
        })
    })
}

fn bits(x: &[f32]) -> Vec<u32> {
    // The bits of a NaN differ between instructions.
    x.iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).collect()
}

#[test]
fn every_kernel_adds_in_the_order_of_the_definition() {
    for n_inputs in [0, 1, 31, 32, 33, 64, 96, 130, 300, 1100] {
        for (layout, group) in [32, 64, 128, 4096]
            .into_iter()
            .flat_map(|group| layouts(n_inputs, group).map(move |layout| (layout, group)))
        {
            let weights = Weights::new(layout, PANEL, n_inputs as u64);
            let panel = weights.panel();
            let x = squish_bench::input::normal(n_inputs, 7);
            for isa in Isa::variants() {
                let got = products(isa, &layout, &panel, &x, 1)[0];
                let want: Vec<f32> = (0..PANEL).map(|o| weights.product(isa, o, &x)).collect();
                assert_eq!(bits(&got), bits(&want), "{isa:?} {layout:?} {group}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_the_number_of_rows() {
    let n_inputs = 600;
    for layout in layouts(n_inputs, 128).chain(layouts(n_inputs, n_inputs)) {
        let weights = Weights::new(layout, PANEL, 3);
        let panel = weights.panel();
        let x = squish_bench::input::normal(512 * n_inputs, 5);
        for isa in Isa::variants() {
            let alone: Vec<[f32; PANEL]> =
                x.chunks(n_inputs).map(|x| products(isa, &layout, &panel, x, 1)[0]).collect();
            // Lower levels take long at all of these.
            let all = isa.level() == Isa::detect().level();
            let counts = (2..=64).chain([65, 127, 512]).filter(|n| all || n % 7 == 2 || *n < 14);
            for n_rows in counts {
                // Other rows first, so that each stands in another place of its tile.
                let from = (n_rows * 5) % (513 - n_rows);
                let x = &x[from * n_inputs..(from + n_rows) * n_inputs];
                let got = products(isa, &layout, &panel, x, n_rows);
                for (got, want) in got.iter().zip(&alone[from..]) {
                    assert_eq!(bits(got), bits(want), "{isa:?} {layout:?} {n_rows}");
                }
            }
        }
    }
}

#[test]
fn products_are_within_the_bound_of_their_mode() {
    let n_inputs = 512;
    for layout in layouts(n_inputs, 64) {
        let weights = Weights::new(layout, PANEL, 9);
        let panel = weights.panel();
        let x = squish_bench::input::normal(n_inputs, 11);
        let code = layout.code();
        for isa in Isa::variants() {
            let got = products(isa, &layout, &panel, &x, 1)[0];
            for (output, &got) in got.iter().enumerate() {
                let (mut exact, mut magnitude) = (0.0, 0.0);
                for (k, &x) in x.iter().enumerate() {
                    let at = output * n_inputs + k;
                    let group = output * scales_per_output(&layout) + k / scale_group(&layout);
                    let mut w = f64::from(code.value(&weights.codes[at * code.n_bytes()..]));
                    match layout.scale() {
                        PanelScale::Absent => {}
                        PanelScale::E8M0 => {
                            w *= f64::from(weights.scale_bits[group] as i32 - 127).exp2();
                        }
                        PanelScale::E4M3 => {
                            let scale = E4M3::from_bits(weights.scale_bits[group] as u8);
                            w *= f64::from(scale.to_f32() * weights.output_scales[output]);
                        }
                        _ => {
                            if layout.scale() == PanelScale::F32Zero {
                                w -= f64::from(weights.zero_points[group]);
                            }
                            w *= f64::from(f32::from_bits(weights.scale_bits[group]));
                        }
                    }
                    exact += w * f64::from(x);
                    magnitude += (w * f64::from(x)).abs();
                }
                // Half a unit in the last place for each sum and scaled weight; of each rounded input besides, which is half of
                // 1/127 of the largest of its block, here less than four times the others, with eight bits.
                let input = match layout.activation() {
                    Activation::F32 => 0.0,
                    Activation::Bf16 => 2f64.powi(-9),
                    Activation::Q8 => 4.0 / 254.0,
                };
                let bound = magnitude * (input + n_inputs as f64 * f64::from(f32::EPSILON));
                let error = (f64::from(got) - exact).abs();
                assert!(error <= bound, "{isa:?} {layout:?}: {got} is not {exact}, bound {bound}");
            }
        }
    }
}

#[test]
fn outputs_beyond_the_last_are_zero() {
    for layout in layouts(70, 32) {
        let weights = Weights::new(layout, 5, 1);
        let panel = weights.panel();
        let x = squish_bench::input::normal(70, 2);
        for isa in Isa::variants() {
            let got = products(isa, &layout, &panel, &x, 1)[0];
            assert!(got[5..].iter().all(|&x| x == 0.0), "{isa:?} {layout:?}: {got:?}");
        }
    }
}

#[test]
fn extreme_scales_and_codes_and_inputs_follow_the_definition() {
    let inputs = [f32::NAN, f32::INFINITY, 1e38, 1e-40, 0.0, -0.0];
    for layout in layouts(3 * BLOCK, 32) {
        let mut weights = Weights::new(layout, PANEL, 4);
        for (i, bits) in weights.scale_bits.iter_mut().enumerate() {
            let of_float = [1e-40_f32, f32::MIN_POSITIVE, 1e30, 1.0];
            *bits = match layout.scale() {
                PanelScale::E8M0 => [0, 1, 254, 255, 127, 126, 128][i % 7],
                PanelScale::E4M3 => [0, 1, 0x7e, 0x7f, 0x81, 0xff, 0x38][i % 7],
                _ => of_float[i % 4].to_bits(),
            };
        }
        if matches!(layout.code(), Code::E4M3 | Code::E5M2) {
            // One output of three has codes that are NaN or infinite.
            for (i, code) in weights.codes.iter_mut().enumerate() {
                if i / layout.n_inputs() % 3 == 0 && i % 50 == 0 {
                    *code = [0x7f, 0xff, 0x7c, 0xfd][i / 50 % 4];
                }
            }
        }
        let panel = weights.panel();
        for special in inputs {
            let mut x = squish_bench::input::normal(layout.n_inputs(), 3);
            x[40] = special;
            for isa in Isa::variants() {
                for n_rows in [1, 3] {
                    let rows: Vec<f32> = (0..n_rows).flat_map(|_| x.iter().copied()).collect();
                    let got = products(isa, &layout, &panel, &rows, n_rows);
                    let want: Vec<f32> =
                        (0..PANEL).map(|output| weights.product(isa, output, &x)).collect();
                    for got in got {
                        assert_eq!(bits(&got), bits(&want), "{isa:?} {layout:?} {special}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_sparse_product_is_the_dense_one_with_zeros() {
    for n_inputs in [1, 64, 300, 517] {
        let all = layouts(n_inputs, 128).chain(layouts(n_inputs, n_inputs));
        for layout in all.filter(LivePairs::supports) {
            let weights = Weights::new(layout, PANEL, 21);
            let panel = weights.panel();
            for keep in [0, 1, 3, 9, 10] {
                let mut rng = Rng::new(keep as u64);
                let mut x = squish_bench::input::normal(n_inputs, 5);
                for x in x.iter_mut() {
                    *x = if rng.below(10) < keep { *x } else { 0.0 };
                }
                let live = x.iter().enumerate().filter(|(_, x)| **x != 0.0);
                let (indices, values): (Vec<u32>, Vec<f32>) =
                    live.map(|(i, x)| (i as u32, *x)).unzip();
                for isa in Isa::variants() {
                    let dense = products(isa, &layout, &panel, &x, 1)[0];
                    let mut live = LivePairs::default();
                    live.prepare(isa, &layout, &indices, &values);
                    let mut sums = [f32::NAN; PANEL];
                    sparse_into(&layout, &panel, &live, &mut sums);
                    assert_eq!(bits(&sums), bits(&dense), "{isa:?} {layout:?} {keep} of 10");
                }
            }
        }
    }
}

#[test]
fn a_product_by_columns_is_the_definition_with_zeros() {
    for (n_inputs, n_outputs) in [(1, 1), (64, 128), (301, 70), (517, 300)] {
        for layout in layouts(n_inputs, n_inputs).filter(LivePairs::supports) {
            let is_scaled = layout.scale() == PanelScale::F32;
            let of_columns =
                || ColumnLayout::new(layout.code(), layout.activation(), is_scaled, n_outputs);
            let Some(columns) = of_columns().filter(|_| layout.scale() != PanelScale::E8M0) else {
                continue;
            };
            let weights = Weights::new(layout, n_outputs, 21);
            let mut bytes = Aligned::from_fn(n_inputs * columns.column_bytes(), |_| 0xa5_u8);
            // In pieces, as threads pack.
            let mut first = 0;
            for piece in bytes.chunks_mut(100 * columns.column_bytes()) {
                pack_columns(&columns, &weights, first, piece);
                first += 100;
            }
            let mut scales =
                vec![[0.0; COLUMN_BLOCK]; if is_scaled { columns.n_blocks() } else { 0 }];
            for (scale, &bits) in scales.as_flattened_mut().iter_mut().zip(&weights.scale_bits) {
                *scale = f32::from_bits(bits);
            }
            for keep in [0, 1, 5, 10] {
                let mut rng = Rng::new(keep as u64);
                let mut x = squish_bench::input::normal(n_inputs, 5);
                for x in x.iter_mut() {
                    *x = if rng.below(10) < keep { *x } else { 0.0 };
                }
                let live = x.iter().enumerate().filter(|(_, x)| **x != 0.0);
                let (indices, values): (Vec<u32>, Vec<f32>) =
                    live.map(|(i, x)| (i as u32, *x)).unzip();
                for isa in Isa::variants() {
                    let mut live = LiveColumns::default();
                    live.prepare(isa, layout.activation(), &indices, &values);
                    let mut got = vec![[f32::NAN; COLUMN_BLOCK]; columns.n_blocks()];
                    for first in 0..columns.n_blocks() {
                        let scales = scales.get(first..first + 1).unwrap_or_default();
                        let sums = &mut got[first..=first];
                        columns_into(&columns, &bytes, &live, scales, first, sums);
                    }
                    let want: Vec<f32> =
                        (0..n_outputs).map(|output| weights.product(isa, output, &x)).collect();
                    let what = format!("{isa:?} {layout:?} {n_outputs} outputs, {keep} of 10");
                    assert_eq!(bits(&got.as_flattened()[..n_outputs]), bits(&want), "{what}");
                    // All blocks at once.
                    let apart =
                        std::mem::replace(&mut got, vec![[0.5; COLUMN_BLOCK]; columns.n_blocks()]);
                    columns_into(&columns, &bytes, &live, &scales, 0, &mut got);
                    assert_eq!(bits(got.as_flattened()), bits(apart.as_flattened()), "{what}");
                }
            }
        }
    }
}

/// A weight that is infinite shows in its own output alone.
#[test]
fn outputs_of_a_column_do_not_mix() {
    for code in [Code::F32, Code::Bf16, Code::E5M2] {
        for activation in [Activation::F32, Activation::Bf16] {
            let Some(layout) = ColumnLayout::new(code, activation, code == Code::E5M2, 128) else {
                continue;
            };
            let (scale, at) =
                (if layout.is_scaled() { PanelScale::F32 } else { PanelScale::Absent }, 70);
            let panel = PanelLayout::new(code, activation, scale, 3, 3).unwrap();
            let mut weights = Weights::new(panel, 128, 3);
            let infinity: &[u8] = match code {
                Code::F32 => &f32::INFINITY.to_le_bytes(),
                Code::Bf16 => &half::bf16::INFINITY.to_le_bytes(),
                _ => &[0x7c],
            };
            weights.codes[at * 3 * code.n_bytes()..][..code.n_bytes()].copy_from_slice(infinity);
            let mut bytes = Aligned::from_fn(3 * layout.column_bytes(), |_| 0);
            pack_columns(&layout, &weights, 0, &mut bytes);
            let scales = vec![[1.0; COLUMN_BLOCK]; usize::from(layout.is_scaled())];
            for isa in Isa::variants() {
                let mut live = LiveColumns::default();
                live.prepare(isa, activation, &[0, 2], &[1.0, 1.0]);
                let mut sums = [[0.0; COLUMN_BLOCK]];
                columns_into(&layout, &bytes, &live, &scales, 0, &mut sums);
                let infinite = sums[0].iter().enumerate().filter(|(_, x)| !x.is_finite());
                assert_eq!(infinite.map(|(i, _)| i).collect::<Vec<_>>(), [at], "{isa:?} {code:?}");
            }
        }
    }
}
