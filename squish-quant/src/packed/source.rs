//! The tensors of this crate as what panels are packed from.

use half::bf16;
use squish_kernels::{
    bits::unpack_into,
    element::{E2M3, E3M2, E4M3, Element, Overflow},
    panel::{PanelScale, PanelSource},
};

use super::{Dense, Weights};
use crate::{
    error::{Error, Result},
    granularity::{Granularity, n_elements},
    int::IntFormat,
    mx::{MX_BLOCK, MxFormat},
    nvfp4::{GlobalScale, NVFP4_BLOCK},
    smx::SMX_BLOCK,
};

/// Weights whose bytes have been counted.
pub(super) struct Source<'a> {
    weights: Weights<'a>,
    n_inputs: usize,
    /// The E4M3 of codes of six bits.
    six_bits: [u8; 64],
}

impl<'a> Source<'a> {
    pub(super) fn new(weights: Weights<'a>) -> Result<Self> {
        let shape = weights.shape();
        if let Weights::Dense { dense, bytes, .. } = weights {
            let n_bytes = n_elements(shape)?.checked_mul(n_bytes(dense));
            let n_bytes = n_bytes.ok_or(Error::TooLarge { shape })?;
            Error::check_length("bytes", n_bytes, bytes.len())?;
        }
        let six_bits = match weights {
            Weights::Mx(tensor) => widened(tensor.format()),
            _ => [0; 64],
        };
        Ok(Self { weights, n_inputs: shape[1], six_bits })
    }

    pub(super) fn scale(&self) -> PanelScale {
        match &self.weights {
            Weights::Dense { .. } | Weights::Smx(_) => PanelScale::Absent,
            Weights::Mx(_) => PanelScale::E8M0,
            Weights::NvFp4(_) => PanelScale::E4M3,
            Weights::Int(tensor) if tensor.zero_points().is_some() => PanelScale::F32Zero,
            Weights::Fp8(_) | Weights::Int(_) => PanelScale::F32,
        }
    }

    /// Inputs that share a scale.
    pub(super) fn group(&self) -> usize {
        match &self.weights {
            Weights::Dense { .. } | Weights::Smx(_) => self.n_inputs,
            Weights::Fp8(tensor) => columns(tensor.granularity(), self.n_inputs),
            // NVFP4 has two scales in it.
            Weights::Mx(_) | Weights::NvFp4(_) => MX_BLOCK,
            Weights::Int(tensor) => columns(tensor.granularity(), self.n_inputs),
        }
    }

    /// Where the scale of an output's group is.
    fn scale_idx(&self, granularity: Granularity, output: usize, group: usize) -> usize {
        let n_groups = self.n_inputs.div_ceil(columns(granularity, self.n_inputs).max(1));
        match granularity {
            Granularity::Tensor => 0,
            Granularity::Channel => output,
            Granularity::Block1d(_) => output * n_groups + group,
            Granularity::Block2d { rows, .. } => output / rows * n_groups + group,
        }
    }
}

/// Columns that share a scale.
fn columns(granularity: Granularity, n_inputs: usize) -> usize {
    match granularity {
        Granularity::Tensor | Granularity::Channel => n_inputs,
        Granularity::Block1d(cols) | Granularity::Block2d { cols, .. } => cols,
    }
}

const fn n_bytes(dense: Dense) -> usize {
    match dense {
        Dense::F32 => 4,
        Dense::Bf16 | Dense::F16 => 2,
    }
}

impl PanelSource for Source<'_> {
    fn codes_into(&self, output: usize, first: usize, codes: &mut [u8]) {
        let start = output * self.n_inputs + first;
        match &self.weights {
            Weights::Dense { dense, bytes, .. } => {
                let start = start * n_bytes(*dense);
                codes.copy_from_slice(&bytes[start..start + codes.len()]);
            }
            Weights::Fp8(tensor) => {
                codes.copy_from_slice(&tensor.codes()[start..start + codes.len()]);
            }
            Weights::Int(tensor) if tensor.format() == IntFormat::Int8 => {
                codes.copy_from_slice(&tensor.codes()[start..start + codes.len()]);
            }
            Weights::Int(tensor) => nibbles(tensor.codes(), start, codes),
            Weights::NvFp4(tensor) => nibbles(tensor.codes(), start, codes),
            Weights::Smx(tensor) => {
                // Rows have whole blocks, and so has what is asked for.
                let mut values = [0.0; SMX_BLOCK];
                let pieces = codes.chunks_exact_mut(2 * SMX_BLOCK);
                for (idx, piece) in (start / SMX_BLOCK..).zip(pieces) {
                    tensor.decode_block(idx, &mut values);
                    for (code, &value) in piece.as_chunks_mut::<2>().0.iter_mut().zip(&values) {
                        *code = bf16::from_f32(value).to_le_bytes();
                    }
                }
            }
            Weights::Mx(tensor) => match tensor.format().code_bits() {
                4 => nibbles(tensor.codes(), start, codes),
                6 => {
                    // A whole block: rows have no others.
                    unpack_into::<6>(
                        &tensor.codes()[start / 4 * 3..][..codes.len() / 4 * 3],
                        codes,
                    );
                    for code in codes {
                        *code = self.six_bits[usize::from(*code)];
                    }
                }
                _ => codes.copy_from_slice(&tensor.codes()[start..start + codes.len()]),
            },
        }
    }

    fn scale_bits(&self, output: usize, group: usize) -> u32 {
        match &self.weights {
            Weights::Dense { .. } | Weights::Smx(_) => 0,
            Weights::Fp8(tensor) => {
                let idx = self.scale_idx(tensor.granularity(), output, group);
                tensor.scales()[idx].to_bits()
            }
            Weights::Int(tensor) => {
                let idx = self.scale_idx(tensor.granularity(), output, group);
                tensor.scales()[idx].to_bits()
            }
            Weights::Mx(tensor) => {
                u32::from(tensor.scales()[output * (self.n_inputs / MX_BLOCK) + group])
            }
            Weights::NvFp4(tensor) => {
                u32::from(tensor.scales()[output * (self.n_inputs / NVFP4_BLOCK) + group])
            }
        }
    }

    fn output_scale(&self, _: usize) -> f32 {
        match &self.weights {
            Weights::NvFp4(tensor) => match tensor.global() {
                GlobalScale::Multiply(factor) => factor,
                GlobalScale::Divide(divisor) => 1.0 / divisor,
            },
            _ => 1.0,
        }
    }

    fn zero_point(&self, output: usize, group: usize) -> i8 {
        match &self.weights {
            Weights::Int(tensor) => tensor.zero_points().map_or(0, |zero_points| {
                zero_points[self.scale_idx(tensor.granularity(), output, group)]
            }),
            Weights::Dense { .. }
            | Weights::Fp8(_)
            | Weights::Mx(_)
            | Weights::NvFp4(_)
            | Weights::Smx(_) => 0,
        }
    }
}

/// The E4M3 of each code of six bits, which has the same value.
fn widened(format: MxFormat) -> [u8; 64] {
    std::array::from_fn(|code| {
        let value = match format {
            MxFormat::MxFp6E3M2 => E3M2::from_bits(code as u8).to_f32(),
            _ => E2M3::from_bits(code as u8).to_f32(),
        };
        E4M3::from_f32(value, Overflow::Saturate).to_bits()
    })
}

/// Codes that stand two in a byte, the earlier in its lower half. The first of a row stands in one: rows have whole bytes.
fn nibbles(packed: &[u8], start: usize, codes: &mut [u8]) {
    let n = codes.len();
    for (pair, byte) in codes.chunks_mut(2).zip(&packed[start / 2..(start + n).div_ceil(2)]) {
        pair[0] = byte & 0xf;
        if let [_, second] = pair {
            *second = byte >> 4;
        }
    }
}
