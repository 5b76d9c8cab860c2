//! Products of a panel at the level of AVX2, beside plain loops that the compiler may use the same instructions for.
//!
//! The product at the best level of a machine, from memory and by many rows, has its rows in `squish-quant`.

use squish_bench::{
    Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box,
    input::{self, Rng},
};
use squish_kernels::{
    Isa, SimdLevel,
    element::{E2M1, E4M3, E8M0, Element},
    panel::{
        Activation, BLOCK, Code, InputPlan, Inputs, PANEL, PanelLayout, PanelScale, PanelSource,
        ProductScratch, pack_panel, product_into,
    },
};

const N_INPUTS: usize = 4096;

const fn row(id: &'static str, operation: &'static str, bytes: usize) -> Row {
    Row {
        id,
        module: "squish-kernels",
        operation,
        shape: "64x4096",
        work: Work::bytes(bytes as u64, 0).with_flops((2 * PANEL * N_INPUTS) as u64),
        limit: Limit::Read(Residency::L2),
        targets: &[Target::AtMostTimesProbe { probe: "loops", times: 1.0 / 1.3 }],
        note: "at AVX2; `loops` is the definition compiled for AVX2 and FMA",
        ..Row::LLM
    }
}

static MXFP4: Row =
    row("panel/mxfp4_q8_avx2", "product of a panel, MXFP4", PANEL * N_INPUTS * 17 / 32);
static FP8: Row = row("panel/fp8_bf16_avx2", "product of a panel, FP8 E4M3", PANEL * N_INPUTS);

fn main() {
    let mut suite = Suite::new();
    suite.row(&MXFP4, |row| product(row, &Weights::new(Code::E2M1)));
    suite.row(&FP8, |row| product(row, &Weights::new(Code::E4M3)));
    suite.finish();
}

/// Codes and scales, `[PANEL, N_INPUTS]`.
struct Weights {
    layout: PanelLayout,
    codes: Vec<u8>,
    scale_bits: Vec<u32>,
}

impl Weights {
    fn new(code: Code) -> Self {
        let mut rng = Rng::new(1);
        let (activation, scale, group, n_codes) = match code {
            Code::E2M1 => (Activation::Q8, PanelScale::E8M0, BLOCK, 16),
            // Finite ones alone.
            _ => (Activation::Bf16, PanelScale::F32, N_INPUTS, 0x7f),
        };
        let layout = PanelLayout::new(code, activation, scale, N_INPUTS, group).expect("a layout");
        let codes = (0..PANEL * N_INPUTS).map(|_| rng.below(n_codes) as u8).collect();
        let n_scales = PANEL * layout.n_groups();
        let scale_bits = (0..n_scales).map(|_| match scale {
            PanelScale::E8M0 => 118 + rng.below(4) as u32,
            _ => (0.01 + rng.uniform()).to_bits(),
        });
        Self { layout, codes, scale_bits: scale_bits.collect() }
    }
}

impl PanelSource for Weights {
    fn codes_into(&self, output: usize, first: usize, codes: &mut [u8]) {
        let start = output * N_INPUTS + first;
        codes.copy_from_slice(&self.codes[start..start + codes.len()]);
    }

    fn scale_bits(&self, output: usize, group: usize) -> u32 {
        self.scale_bits[output * self.layout.n_groups() + group]
    }

    fn output_scale(&self, _: usize) -> f32 {
        1.0
    }

    fn zero_point(&self, _: usize, _: usize) -> i8 {
        0
    }
}

fn product<'s>(row: Unchecked<'s>, weights: &Weights) -> Checked<'s> {
    // Where the machine lacks AVX2, the best level that there is.
    let isa = Isa::available().find(|isa| isa.level() == SimdLevel::Avx2);
    let isa = isa.unwrap_or_else(Isa::detect);
    let layout = &weights.layout;
    let mut panel = squish_bench::Aligned::<u8>::zeroed(layout.panel_bytes());
    pack_panel(layout, weights, 0, PANEL, &mut panel);
    let x = input::normal(N_INPUTS, 2);
    let plan = InputPlan::new(isa, layout, 1);
    let mut words = vec![0; plan.words_per_row()];
    let (mut scales, mut sums) = (vec![0.0; plan.blocks_per_row()], vec![0; plan.blocks_per_row()]);
    plan.prepare_tile(0, |_| &x, &mut words, &mut scales, &mut sums);
    let inputs = Inputs { plan: &plan, words: &words, scales: &scales, sums: &sums };
    let mut scratch = ProductScratch::new();
    let (mut out, mut by_loops) = ([[0.0; PANEL]], [0.0; PANEL]);
    let loops = Loops::new(weights, &x);
    row.check(|| {
        product_into(layout, &panel, &inputs, 0..1, &mut scratch, &mut out);
        loops.run(&mut by_loops);
        for (a, b) in out[0].iter().zip(by_loops) {
            assert!((a - b).abs() <= 1e-3 * (1.0 + b.abs()), "{a} is not {b}");
        }
    })
    .ours_and_probe(
        "loops",
        layout.panel_bytes() as u64,
        || product_into(layout, black_box(&panel), &inputs, 0..1, &mut scratch, &mut out),
        || black_box(&loops).run(&mut by_loops),
    )
}

/// The operands of the definition: row-major codes, and inputs already rounded.
struct Loops<'a> {
    weights: &'a Weights,
    scales: Vec<f32>,
    x: Vec<f32>,
    /// Of Q8, `[blocks]` and their codes.
    x_scales: Vec<f32>,
    x_codes: Vec<i8>,
}

impl<'a> Loops<'a> {
    fn new(weights: &'a Weights, x: &[f32]) -> Self {
        let scales = weights.scale_bits.iter().map(|&bits| match weights.layout.scale() {
            PanelScale::E8M0 => E8M0::from_bits(bits as u8).to_f32(),
            _ => f32::from_bits(bits),
        });
        let x_scales: Vec<f32> = x
            .chunks(BLOCK)
            .map(|x| x.iter().fold(0f32, |amax, x| amax.max(x.abs())) / 127.0)
            .collect();
        let codes = x.chunks(BLOCK).zip(&x_scales);
        let x_codes = codes.flat_map(|(x, scale)| {
            x.iter().map(move |x| (x * (1.0 / scale)).round_ties_even() as i8)
        });
        Self {
            weights,
            scales: scales.collect(),
            x: x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
            x_codes: x_codes.collect(),
            x_scales,
        }
    }

    fn run(&self, out: &mut [f32; PANEL]) {
        #[cfg(target_arch = "x86_64")]
        if Isa::available().any(|isa| isa.level() == SimdLevel::Avx2) {
            // SAFETY: the level of AVX2 includes FMA.
            return unsafe { self.run_avx2(out) };
        }
        self.run_plain(out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2(&self, out: &mut [f32; PANEL]) {
        self.run_plain(out);
    }

    #[inline(always)]
    fn run_plain(&self, out: &mut [f32; PANEL]) {
        let codes = self.weights.codes.chunks_exact(N_INPUTS);
        if self.weights.layout.code() == Code::E2M1 {
            let values: [i32; 16] =
                std::array::from_fn(|code| (2.0 * E2M1::from_bits(code as u8).to_f32()) as i32);
            let scales = self.scales.chunks_exact(N_INPUTS / BLOCK);
            for ((out, codes), scales) in out.iter_mut().zip(codes).zip(scales) {
                let mut sum = 0f32;
                for (block, codes) in codes.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let x = &self.x_codes[block * BLOCK..(block + 1) * BLOCK];
                    let mut dot = 0;
                    for (code, x) in codes.iter().zip(x) {
                        dot += values[usize::from(code & 15)] * i32::from(*x);
                    }
                    sum = (dot as f32).mul_add(scales[block] * (0.5 * self.x_scales[block]), sum);
                }
                *out = sum;
            }
        } else {
            let values: [f32; 256] =
                std::array::from_fn(|code| E4M3::from_bits(code as u8).to_f32());
            for ((out, codes), scale) in out.iter_mut().zip(codes).zip(&self.scales) {
                let mut sum = 0f32;
                for (code, x) in codes.iter().zip(&self.x) {
                    sum = values[usize::from(*code)].mul_add(*x, sum);
                }
                *out = sum * scale;
            }
        }
    }
}
