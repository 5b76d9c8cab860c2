//! Products with packed weights, by format, number of rows and threads.

mod common;

use std::sync::Arc;

use half::bf16;
use squish_bench::{
    Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box, input, probe::pin,
};
use squish_kernels::{Isa, Team, probe as kernels};
use squish_quant::{
    Activation, Fp8Quantizer, Granularity, IntFormat, IntQuantizer, MxFormat, MxQuantizer,
    NvFp4Quantizer, PackedMatrix, Workspace,
    ndarray::{Array2, ArrayView2},
    packed::{Dense, Weights},
};

/// Copies of the weights in turn hold so many bytes at least, a dozen times what the last cache level holds.
const ROTATED: usize = 400 << 20;

/// A format of weights with the activation that it has by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
    Fp8,
    MxFp4,
    Int4,
    Int8,
    MxFp8,
    MxInt8,
    NvFp4,
}

impl Format {
    const ALL: [Self; 9] = [
        Self::F32,
        Self::Bf16,
        Self::Fp8,
        Self::MxFp4,
        Self::Int4,
        Self::Int8,
        Self::MxFp8,
        Self::MxInt8,
        Self::NvFp4,
    ];

    const fn id(self) -> &'static str {
        match self {
            Self::F32 => "product/f32",
            Self::Bf16 => "product/bf16",
            Self::Fp8 => "product/fp8_bf16",
            Self::MxFp4 => "product/mxfp4_q8",
            Self::Int4 => "product/int4_q8",
            Self::Int8 => "product/int8_q8",
            Self::MxFp8 => "product/mxfp8_bf16",
            Self::MxInt8 => "product/mxint8_q8",
            Self::NvFp4 => "product/nvfp4_q8",
        }
    }

    const fn operation(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16, inputs in bf16",
            Self::Fp8 => "FP8 E4M3 per channel, inputs in bf16",
            Self::MxFp4 => "MXFP4, inputs in int8",
            Self::Int4 => "INT4 groups of 32, inputs in int8",
            Self::Int8 => "INT8 per channel, inputs in int8",
            Self::MxFp8 => "MXFP8 E4M3, inputs in bf16",
            Self::MxInt8 => "MXINT8, inputs in int8",
            Self::NvFp4 => "NVFP4, inputs in int8",
        }
    }

    /// The instruction that binds a product of many rows.
    const fn peak(self) -> Limit {
        match self {
            Self::F32 => Limit::Fma,
            Self::Bf16 | Self::Fp8 | Self::MxFp8 => Limit::Bf16Dot,
            Self::MxFp4 | Self::Int4 | Self::Int8 | Self::MxInt8 | Self::NvFp4 => Limit::Int8Dot,
        }
    }

    /// Whether all numbers of rows are measured. The others have the kernels of these, with other scales.
    const fn has_sweep(self) -> bool {
        !matches!(self, Self::MxFp8 | Self::MxInt8 | Self::NvFp4)
    }

    /// The packed matrix, and the weights that it stands for.
    fn pack(self, weights: ArrayView2<'_, f32>) -> (PackedMatrix, Array2<f32>) {
        let shape = weights.dim().into();
        let pack = |weights: Weights<'_>, decoded| {
            let activation = weights.default_activation();
            (PackedMatrix::pack(weights, activation).expect("a default"), decoded)
        };
        match self {
            Self::F32 => {
                let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
                let decoded = weights.to_owned();
                pack(Weights::Dense { dense: Dense::F32, shape, bytes: &bytes }, decoded)
            }
            Self::Bf16 => {
                let rounded = weights.mapv(bf16::from_f32);
                let bytes: Vec<u8> = rounded.iter().flat_map(|x| x.to_le_bytes()).collect();
                let decoded = rounded.mapv(bf16::to_f32);
                pack(Weights::Dense { dense: Dense::Bf16, shape, bytes: &bytes }, decoded)
            }
            Self::Fp8 => {
                let tensor = Fp8Quantizer::default().encode(weights).expect("finite");
                pack((&tensor).into(), tensor.decode())
            }
            Self::MxFp4 | Self::MxFp8 | Self::MxInt8 => {
                let format = match self {
                    Self::MxFp8 => MxFormat::MxFp8E4M3,
                    Self::MxInt8 => MxFormat::MxInt8,
                    _ => MxFormat::MxFp4,
                };
                let quantizer = MxQuantizer { format, ..MxQuantizer::default() };
                let tensor = quantizer.encode(weights).expect("finite");
                pack((&tensor).into(), tensor.decode())
            }
            Self::NvFp4 => {
                let tensor = NvFp4Quantizer::default().encode(weights).expect("finite");
                pack((&tensor).into(), tensor.decode())
            }
            Self::Int4 | Self::Int8 => {
                let (format, granularity) = if self == Self::Int4 {
                    (IntFormat::Int4, Granularity::Block1d(32))
                } else {
                    (IntFormat::Int8, Granularity::Channel)
                };
                let quantizer = IntQuantizer { format, granularity, ..IntQuantizer::default() };
                let tensor = quantizer.encode(weights).expect("finite");
                pack((&tensor).into(), tensor.decode())
            }
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
struct Case {
    format: Format,
    n_rows: usize,
    n_outputs: usize,
    n_inputs: usize,
    threads: usize,
}

impl Case {
    fn row(self) -> &'static Row {
        let Self { format, n_rows, n_outputs, n_inputs, threads } = self;
        let of_threads = if threads == 1 { String::new() } else { format!("_t{threads}") };
        let shape = format!("m{n_rows}_{n_outputs}x{n_inputs}{of_threads}");
        let weights = n_outputs * n_inputs;
        // Bits per weight of the panels, scales included.
        let bytes = match format {
            Format::F32 => 4 * weights,
            Format::Bf16 => 2 * weights,
            Format::Fp8 | Format::Int8 => weights + 4 * n_outputs,
            Format::MxFp4 => weights * 17 / 32,
            Format::Int4 => weights * 5 / 8,
            Format::MxFp8 | Format::MxInt8 => weights * 33 / 32,
            Format::NvFp4 => weights * 9 / 16 + 4 * n_outputs,
        };
        let read = if self.in_cache() { Residency::L2 } else { Residency::Dram };
        let limit = if n_rows >= 64 { format.peak() } else { Limit::Read(read) };
        // They live as long as the process, which ends with the suite.
        Box::leak(Box::new(Row {
            id: format.id(),
            module: "PackedMatrix",
            operation: format.operation(),
            shape: Box::leak(shape.into_boxed_str()),
            work: Work::bytes(bytes as u64, 0).with_flops((2 * n_rows * weights) as u64),
            limit,
            threads,
            targets: Box::leak(self.targets().into_boxed_slice()),
            ..Row::PRODUCT
        }))
    }

    /// Whether the weights stay in the second-level cache.
    const fn in_cache(self) -> bool {
        self.n_outputs * self.n_inputs <= 1 << 20
    }

    fn targets(self) -> Vec<Target> {
        let Self { format, n_rows, threads, .. } = self;
        let times = |peer, times| Target::AtLeastTimesPeer { peer, times };
        let of_limit = |share| Target::AtLeastShareOfLimit { share };
        let grows = |times| Target::AtMostTimesShape { shape: "m1_4096x4096", times };
        let mut targets = match (format, n_rows) {
            (Format::MxFp4, 1) if self.in_cache() => return vec![of_limit(0.28)],
            (_, 1) => {
                let share = match format {
                    Format::F32 | Format::MxFp4 => 0.92,
                    Format::Bf16 => 0.90,
                    Format::Fp8 | Format::Int4 | Format::Int8 | Format::NvFp4 => 0.88,
                    Format::MxFp8 | Format::MxInt8 => 0.85,
                };
                vec![Target::AtLeastShareOfProbe { probe: "read", share }]
            }
            (Format::Bf16, 4) => vec![grows(1.2)],
            (Format::Bf16, 8) => vec![grows(1.6)],
            (Format::MxFp4, 4) => vec![grows(1.7)],
            (Format::MxFp4, 8) => vec![grows(2.6), times("ggml-repack", 2.0)],
            (Format::F32, 8) => vec![grows(1.8)],
            (Format::F32, 512) => vec![of_limit(0.75)],
            (Format::Bf16, 512) => vec![of_limit(0.60), times("torch", 0.75)],
            (Format::Fp8, 512) => vec![of_limit(0.60)],
            (_, 512) => vec![of_limit(0.50)],
            _ => Vec::new(),
        };
        if n_rows == 1 {
            match (format, threads) {
                (Format::MxFp4, 1) => {
                    targets.extend([times("ggml-repack", 1.8), times("ggml", 2.3)]);
                }
                (Format::MxFp4, _) => {
                    targets.extend([times("ggml-repack", 1.25), times("ggml", 1.8)]);
                }
                (Format::Fp8, _) => targets.push(times("ggml-q8_0", 1.15)),
                _ => {}
            }
        }
        if format == Format::F32 && [1, 4, 8, 16, 512].contains(&n_rows) {
            targets.push(times("torch", 1.0));
            if n_rows <= 16 && threads == 1 {
                targets.push(times("rten", 1.0));
            }
        }
        targets
    }
}

/// Inputs of the down projection of a sparse feed-forward network, and one in how many of them is not zero.
const SPARSE_INPUTS: usize = 14336;
const LIVE_EVERY: usize = 10;

/// Each input that is not zero stands alone in its pair, so that the codes of a fifth of the inputs are read.
const SPARSE: Row = Row {
    id: "product/bf16_sparse",
    module: "PackedMatrix",
    operation: "gemv_sparse: a tenth of the inputs, bf16",
    shape: "4096x14336",
    work: Work::bytes((4096 * SPARSE_INPUTS.div_ceil(LIVE_EVERY) * 4) as u64, 0),
    limit: Limit::Read(Residency::Dram),
    note: "`dense` is the product with all inputs",
    ..Row::LLM
};

fn sparse<'s>(row: Unchecked<'s>, team: &Arc<Team>) -> Checked<'s> {
    let (n_outputs, n_inputs) = (row.size(4096, 192), row.size(SPARSE_INPUTS, 128));
    let weights = input::weights(n_outputs, n_inputs, 1).to_vec();
    let weights = Array2::from_shape_vec([n_outputs, n_inputs], weights).expect("shape");
    let (packed, _) = Format::Bf16.pack(weights.view());
    let n_copies = row.size(ROTATED, 0) / packed.n_bytes() + 1;
    let copies = vec![packed; n_copies];
    let indices: Vec<u32> = (0..n_inputs as u32).step_by(LIVE_EVERY).collect();
    let values = input::normal(indices.len(), 2).to_vec();
    let mut x = vec![0.0; n_inputs];
    for (&index, &value) in indices.iter().zip(&values) {
        x[index as usize] = value;
    }
    let mut workspace = Workspace::new(Arc::clone(team));
    let (mut y, mut dense) = (vec![0.0; n_outputs], vec![0.0; n_outputs]);
    let row = row.check(|| {
        copies[0].gemv_into(&mut workspace, &x, &mut dense).expect("same shapes");
        copies[0]
            .gemv_sparse_into(&mut workspace, &indices, &values, &mut y)
            .expect("same shapes, indices ascend");
        assert_eq!(y, dense);
    });
    let mut turn = copies.iter().cycle();
    let mut next = || black_box(turn.next().expect("there is a copy"));
    row.ours(|bench| {
        bench.iter(|| {
            let (indices, values) = (black_box(&indices), black_box(&values));
            next().gemv_sparse_into(&mut workspace, indices, values, &mut y).expect("as checked");
        });
    })
    .variant("dense", |bench| {
        bench.iter(|| next().gemv_into(&mut workspace, black_box(&x), &mut y).expect("as checked"));
    })
}

/// The weights of the size at hand.
struct Bench {
    /// What all formats are made from.
    weights: Array2<f32>,
    /// Those of the latest format, for its next row.
    latest: Option<Copies>,
}

/// Copies of packed weights, which products take in turn.
struct Copies {
    format: Format,
    packed: Vec<PackedMatrix>,
    /// The weights that they stand for.
    decoded: Array2<f32>,
}

fn main() {
    let mut suite = common::suite();
    let [one, two] = [1, 2].map(|n| {
        let pinned = |idx| {
            pin(idx);
        };
        Arc::new(Team::with_hook(n, pinned).expect("threads"))
    });
    // The caller is a member of each team. It is pinned last, as threads inherit what their parent may run on.
    pin(0);
    for (n_outputs, n_inputs) in [(4096, 4096), (14336, 4096), (512, 2048)] {
        let bench = Bench { weights: Array2::zeros([0, 0]), latest: None };
        bench.run(&mut suite, [n_outputs, n_inputs], &one, &two);
    }
    suite.row(&SPARSE, |row| sparse(row, &one));
    suite.finish();
}

impl Bench {
    fn run(mut self, suite: &mut Suite, size: [usize; 2], one: &Arc<Team>, two: &Arc<Team>) {
        let [n_outputs, n_inputs] = size;
        for format in Format::ALL {
            let case = |n_rows, threads| Case { format, n_rows, n_outputs, n_inputs, threads };
            let mut cases = vec![case(1, 1)];
            if case(1, 1).in_cache() {
                if format != Format::MxFp4 {
                    continue;
                }
            } else {
                cases.push(case(1, 2));
            }
            if n_outputs == 4096 && format.has_sweep() {
                cases.extend([2, 4, 8, 16, 32, 64, 512].map(|n_rows| case(n_rows, 1)));
                cases.push(case(512, 2));
            } else if n_outputs == 4096 {
                cases.extend([8, 512].map(|n_rows| case(n_rows, 1)));
            }
            for case in cases {
                let team = if case.threads == 1 { one } else { two };
                suite.row(case.row(), |row| self.product(row, case, team));
            }
        }
    }

    /// So many copies of the packed weights that they have more than `n_bytes`.
    fn copies(&mut self, format: Format, n_bytes: usize) -> &Copies {
        if self.latest.as_ref().is_none_or(|known| known.format != format) {
            // Before the next are made: there is not always room for both.
            self.latest = None;
            let (packed, decoded) = format.pack(self.weights.view());
            let n_copies = n_bytes / packed.n_bytes() + 1;
            self.latest = Some(Copies { format, packed: vec![packed; n_copies], decoded });
        }
        self.latest.as_ref().expect("they were packed")
    }

    fn product<'s>(&mut self, row: Unchecked<'s>, case: Case, team: &Arc<Team>) -> Checked<'s> {
        let (n_outputs, n_inputs) = (row.size(case.n_outputs, 192), row.size(case.n_inputs, 128));
        let n_rows = case.n_rows;
        if self.weights.dim() != (n_outputs, n_inputs) {
            let weights = input::weights(n_outputs, n_inputs, 1).to_vec();
            self.weights = Array2::from_shape_vec([n_outputs, n_inputs], weights).expect("shape");
        }
        let x = input::normal(n_rows * n_inputs, 2).to_vec();
        let x = Array2::from_shape_vec([n_rows, n_inputs], x).expect("shape");
        let mut out = Array2::zeros([n_rows, n_outputs]);
        let mut workspace = Workspace::new(Arc::clone(team));
        let rotated = if case.in_cache() { 0 } else { row.size(ROTATED, 0) };
        let Copies { packed: copies, decoded, .. } = self.copies(case.format, rotated);
        let row = row.check(|| {
            for packed in copies.iter().take(2) {
                packed.gemm_into(&mut workspace, x.view(), out.view_mut()).expect("same shapes");
                assert_product(packed.activation(), decoded, &x, &out);
            }
        });
        let mut turn = copies.iter().cycle();
        let mut ours = || {
            let (packed, x) = (black_box(turn.next().expect("a copy")), black_box(x.view()));
            packed.gemm_into(&mut workspace, x, out.view_mut()).expect("same shapes");
        };
        if n_rows > 1 {
            return row.ours(|bench| bench.iter(&mut ours));
        }
        // Half a round behind, or it would read what ours has just left in the caches.
        let mut turn_to_read = copies.iter().cycle().skip(copies.len() / 2);
        let (isa, n_bytes) = (Isa::detect(), size_of_val(copies[0].lines()));
        row.ours_and_probe("read", n_bytes as u64, ours, || {
            let lines = turn_to_read.next().expect("a copy").lines();
            let mut parts = [(&[][..], 0); 16];
            for (part, lines) in parts.iter_mut().zip(lines.chunks(lines.len().div_ceil(16).max(1)))
            {
                part.0 = lines;
            }
            team.for_each(&mut parts, |(lines, any)| {
                *any = kernels::read_bytes(isa, black_box(bytemuck::cast_slice(lines)));
            });
            parts.iter().fold(0, |all, (_, any)| all | any)
        })
    }
}

/// Asserts a sample of results within the error of their mode.
fn assert_product(
    activation: Activation,
    weights: &Array2<f32>,
    x: &Array2<f32>,
    out: &Array2<f32>,
) {
    // Of each rounded input half a unit of eight bits, or half of 1/127 of the largest of its block, which is less than eight
    // times the others together: blocks of normal numbers are not that uneven.
    let of_input = match activation {
        Activation::F32 => 0.0,
        Activation::Bf16 => 2f64.powi(-9),
        Activation::Q8 => 0.03,
    };
    let n_inputs = x.ncols();
    for (row, output) in (0..64).map(|i| (i * 7 % x.nrows(), i * 61 % weights.nrows())) {
        let (mut exact, mut magnitude) = (0.0, 0.0);
        for (w, x) in weights.row(output).into_iter().zip(x.row(row)) {
            exact += f64::from(*w) * f64::from(*x);
            magnitude += (f64::from(*w) * f64::from(*x)).abs();
        }
        let bound = magnitude * (of_input + n_inputs as f64 * f64::from(f32::EPSILON));
        let got = f64::from(out[[row, output]]);
        assert!((got - exact).abs() <= bound, "row {row}, output {output}: {got} is not {exact}");
    }
}
