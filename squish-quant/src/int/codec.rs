//! Making scales, zero points and codes, run by run, of arguments that have been checked.

use ndarray::ArrayView2;
use squish_kernels::{
    Isa,
    blocks::min_max_blocks_into,
    integer::{Blocks, encode_i4_blocks_to, encode_i8_blocks_to},
    stream::Stores,
};

use super::{IntFormat, IntQuantizer, Symmetry};
use crate::{
    band::{CastBand, EncodeBand, RUN_BLOCKS, finite_abs_max, first_non_finite, runs},
    error::Result,
    granularity::{Granularity, NonFinite},
    parallel::for_bands,
};

/// An encoding call whose arguments have been checked.
#[derive(Clone, Copy)]
pub(super) struct Codec {
    isa: Isa,
    stores: Stores,
    quantizer: IntQuantizer,
    limits: [i8; 2],
    block: usize,
    cols: usize,
    bytes: usize,
}

impl Codec {
    pub(super) fn new(quantizer: IntQuantizer, x: &ArrayView2<'_, f32>) -> Result<Self> {
        let [_, block] = quantizer.granularity.block(x.dim().into())?;
        let bytes = size_of::<f32>() * x.len() + quantizer.format.n_bytes(x.len());
        let limits = quantizer.format.limits(quantizer.range);
        Ok(Self {
            isa: Isa::detect(),
            stores: Stores::for_bytes(bytes),
            quantizer,
            limits,
            block,
            cols: x.ncols(),
            bytes,
        })
    }

    /// Codes, scales and zero points of rows. An error leaves them half written.
    pub(super) fn encode(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [f32],
        mut zero_points: Option<&mut [i8]>,
    ) -> Result<()> {
        if self.quantizer.granularity == Granularity::Tensor {
            self.tensor_scale(x, scales, zero_points.as_deref_mut())?;
            return self.cast_rows(x, scales, zero_points.as_deref(), codes);
        }
        let band = EncodeBand { zero_points, ..EncodeBand::new(x, codes, scales, [1, self.block]) };
        for_bands(band, 1, self.bytes, &|band| self.encode_band(band))
    }

    /// Codes of rows, with scales that are there.
    pub(super) fn cast_rows(
        self,
        x: ArrayView2<'_, f32>,
        scales: &[f32],
        zero_points: Option<&[i8]>,
        codes: &mut [u8],
    ) -> Result<()> {
        let n_blocks = self.cols.div_ceil(self.block);
        for_bands(
            CastBand { first_row: 0, x, codes },
            1,
            self.bytes,
            &|CastBand { first_row, x, codes }| {
                for run in runs(&x, self.block) {
                    let codes = &mut codes[self.quantizer.format.n_bytes(run.element)..];
                    if self.quantizer.granularity == Granularity::Tensor {
                        self.cast(run.x, Blocks { block: run.x.len(), scales, zero_points }, codes);
                    } else {
                        let first = first_row * n_blocks + run.block;
                        let zero_points = zero_points.map(|zero_points| &zero_points[first..]);
                        self.cast(
                            run.x,
                            Blocks { block: self.block, scales: &scales[first..], zero_points },
                            codes,
                        );
                    }
                }
                Ok(())
            },
        )
    }

    /// The one scale, and zero point, of all elements; none if there are none.
    fn tensor_scale(
        self,
        x: ArrayView2<'_, f32>,
        scales: &mut [f32],
        zero_points: Option<&mut [i8]>,
    ) -> Result<()> {
        let (mut least, mut greatest) = (0.0f32, 0.0f32);
        for run in runs(&x, self.block) {
            let (mut min, mut max) = ([0.0], [0.0]);
            self.extremes(run.element, run.x, run.x.len(), &mut min, &mut max)?;
            (least, greatest) = (least.min(min[0]), greatest.max(max[0]));
        }
        if let [scale] = scales {
            let (value, zero_point) = self.scale_of(least, greatest);
            *scale = value;
            if let Some(zero_points) = zero_points {
                zero_points.fill(zero_point);
            }
        }
        Ok(())
    }

    /// Makes scales, zero points and codes of a band.
    fn encode_band(self, band: EncodeBand<'_, f32>) -> Result<()> {
        let EncodeBand { first_row, x, codes, scales, mut zero_points, .. } = band;
        let mut mins = [0.0; RUN_BLOCKS];
        for run in runs(&x, self.block) {
            let n_blocks = run.x.len().div_ceil(self.block);
            let scales = &mut scales[run.block..][..n_blocks];
            let mut zero_points = zero_points
                .as_deref_mut()
                .map(|zero_points| &mut zero_points[run.block..][..n_blocks]);
            let mins = &mut mins[..n_blocks];
            self.extremes(first_row * self.cols + run.element, run.x, self.block, mins, scales)?;
            match &mut zero_points {
                None => scales.iter_mut().for_each(|scale| *scale = self.scale_of(0.0, *scale).0),
                Some(zero_points) => {
                    for ((scale, zero_point), min) in
                        scales.iter_mut().zip(zero_points.iter_mut()).zip(mins)
                    {
                        (*scale, *zero_point) = self.scale_of(*min, *scale);
                    }
                }
            }
            let codes = &mut codes[self.quantizer.format.n_bytes(run.element)..];
            self.cast(
                run.x,
                Blocks { block: self.block, scales, zero_points: zero_points.as_deref() },
                codes,
            );
        }
        Ok(())
    }

    /// Least and greatest finite element of each block, or an error if that is asked for. Symmetric quantizers need
    /// only the largest magnitude, in `maxs`, and `mins` is left as it is.
    fn extremes(
        self,
        first_element: usize,
        x: &[f32],
        block: usize,
        mins: &mut [f32],
        maxs: &mut [f32],
    ) -> Result<()> {
        let non_finite = self.quantizer.non_finite;
        if self.quantizer.symmetry == Symmetry::Symmetric {
            return finite_abs_max(non_finite, first_element, x, block, maxs).map(drop);
        }
        min_max_blocks_into(x, block, mins, maxs);
        if mins.iter().chain(&*maxs).all(|x| x.is_finite()) {
            return Ok(());
        }
        if non_finite == NonFinite::Error {
            return Err(first_non_finite(first_element, x));
        }
        for (x, (min, max)) in x.chunks(block).zip(mins.iter_mut().zip(maxs)) {
            let finite = x.iter().copied().filter(|x| x.is_finite());
            (*min, *max) = finite.fold((0.0f32, 0.0f32), |(min, max), x| (min.min(x), max.max(x)));
        }
        Ok(())
    }

    /// Scale and zero point of elements between `min` and `max`; a symmetric quantizer has the largest magnitude there.
    fn scale_of(self, min: f32, max: f32) -> (f32, i8) {
        let [low, high] = self.limits.map(f32::from);
        let (min, max) = (min.min(0.0), max.max(0.0));
        if min == max {
            return (1.0, 0);
        }
        if self.quantizer.symmetry == Symmetry::Symmetric {
            return ((max / ((high - low) / 2.0)).max(f32::MIN_POSITIVE), 0);
        }
        let span = max - min;
        // Halves, where the span of two floats is none.
        let scale = if span.is_finite() {
            span / (high - low)
        } else {
            (max / 2.0 - min / 2.0) / ((high - low) / 2.0)
        };
        let scale = scale.max(f32::MIN_POSITIVE);
        (scale, (low - min / scale).clamp(low, high).round_ties_even() as i8)
    }

    /// Codes of a run, into the first bytes of `codes`.
    fn cast(self, x: &[f32], blocks: Blocks<'_>, codes: &mut [u8]) {
        let codes = &mut codes[..self.quantizer.format.n_bytes(x.len())];
        match self.quantizer.format {
            IntFormat::Int8 => {
                encode_i8_blocks_to(
                    self.isa,
                    self.stores,
                    x,
                    blocks,
                    self.limits,
                    bytemuck::cast_slice_mut(codes),
                );
            }
            IntFormat::Int4 => {
                encode_i4_blocks_to(self.isa, self.stores, x, blocks, self.limits, codes);
            }
        }
    }
}
