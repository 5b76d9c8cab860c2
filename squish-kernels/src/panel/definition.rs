//! The products of packed weights as written in the [module](super)'s header, one output at a time.

use half::bf16;

use super::{
    inputs::quantize_block,
    layout::{Activation, BLOCK, Code},
};
use crate::{Isa, SimdLevel};

/// The weights of one output, and how they are read.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// How a weight is stored.
    pub code: Code,
    /// What inputs are rounded to.
    pub activation: Activation,
    /// Codes of [`Code::n_bytes`] bytes each.
    pub codes: &'a [u8],
    /// Inputs of a group, 16 with a scale of the output; not used without scales.
    pub group: usize,
    /// Scale of each group, or none.
    pub scales: Option<&'a [f32]>,
    /// Zero point of each group, or none.
    pub zero_points: Option<&'a [i8]>,
    /// Scale of the output, if groups are halves of blocks.
    pub output_scale: Option<f32>,
}

impl Output<'_> {
    /// Its product with `x`, as a kernel of `isa` computes it.
    #[must_use]
    pub fn product(&self, isa: Isa, x: &[f32]) -> f32 {
        let padded = x.len().next_multiple_of(BLOCK);
        let x: Vec<f32> = (0..padded).map(|k| x.get(k).copied().unwrap_or(0.0)).collect();
        let add = Sum::of(isa, self.activation);
        let sum = match self.activation {
            Activation::F32 => {
                let weight =
                    |k| if self.scaled() { self.unit(k) * self.scale(k) } else { self.unit(k) };
                (0..padded).fold(0.0, |sum, k| add.product(weight(k), x[k], sum))
            }
            Activation::Bf16 => {
                let group = if self.scales_sums() { self.group.min(padded) } else { padded };
                let group = group.max(1);
                let mut sum = 0.0;
                for first in (0..padded).step_by(group) {
                    let mut of_group = 0.0;
                    for k in (first..padded.min(first + group)).step_by(2) {
                        for k in [k + 1, k] {
                            let x = bf16::from_f32(x[k]).to_f32();
                            let weight = if self.scales_sums() { 1.0 } else { self.scale(k) };
                            let weight = self.unit(k) * weight;
                            of_group = add.product(weight, x, of_group);
                        }
                    }
                    let scale = self.scale(first);
                    sum = if self.scales_sums() {
                        add.scaled(of_group, scale, sum)
                    } else {
                        of_group
                    };
                }
                sum
            }
            Activation::Q8 => {
                let mut sum = 0.0;
                for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let (codes, x_scale) = quantize_block(x);
                    let integer = |i: usize| {
                        (self.unit(block * BLOCK + i) / self.code.unit()) as i32
                            * i32::from(codes[i])
                    };
                    let part = if self.output_scale.is_some() { BLOCK / 2 } else { BLOCK };
                    for first in (0..BLOCK).step_by(part) {
                        let dot: i32 = (first..first + part).map(integer).sum();
                        let scale = self.scale(block * BLOCK + first);
                        let scale = scale * (x_scale * self.code.unit());
                        sum = add.scaled(dot as f32, scale, sum);
                    }
                }
                sum
            }
        };
        self.output_scale.map_or(sum, |scale| sum * scale)
    }

    /// Whether the BF16 mode scales the sums of groups. Weights times scales of halves are BF16.
    fn scales_sums(&self) -> bool {
        self.scaled() && self.output_scale.is_none()
    }

    fn scaled(&self) -> bool {
        self.scales.is_some()
    }

    /// Weight `k` without its scale; zero where the last block is padded.
    fn unit(&self, k: usize) -> f32 {
        let n = self.code.n_bytes();
        self.codes.chunks_exact(n).nth(k).map_or(0.0, |code| {
            let zero_point = self.zero_points.map_or(0, |zero_points| zero_points[k / self.group]);
            self.code.value(code) - f32::from(zero_point)
        })
    }

    fn scale(&self, k: usize) -> f32 {
        self.scales.map_or(1.0, |scales| scales[(k / self.group).min(scales.len() - 1)])
    }
}

/// How a level adds a product to a sum.
#[derive(Clone, Copy, Debug)]
struct Sum {
    /// Whether the product is not rounded first.
    fused: bool,
    /// Whether the instruction for pairs of bf16 is used, for which subnormal numbers are zeros.
    flushed: bool,
}

impl Sum {
    fn of(isa: Isa, activation: Activation) -> Self {
        Self {
            fused: !matches!(isa.level(), SimdLevel::Scalar | SimdLevel::Sse42),
            flushed: activation == Activation::Bf16 && isa.prefers_bf16_dot(),
        }
    }

    fn product(self, a: f32, b: f32, sum: f32) -> f32 {
        if self.flushed {
            return flush(flush(a).mul_add(flush(b), flush(sum)));
        }
        self.scaled(a, b, sum)
    }

    fn scaled(self, a: f32, b: f32, sum: f32) -> f32 {
        if self.fused { a.mul_add(b, sum) } else { a * b + sum }
    }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}
