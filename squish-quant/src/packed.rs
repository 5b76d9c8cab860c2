//! Products with packed weights: [`PackedMatrix`].
//!
//! A matrix `[outputs, inputs]` is packed once, from whatever tensor of this crate or dense bytes of a checkpoint, into
//! panels that a product reads from front to end ([`squish_kernels::panel`] has the layout and the definition). What its
//! inputs are rounded to, the [`Activation`], is decided then, and is a property of the matrix:
//!
//! | weights | `F32` | `Bf16` | `Q8` | default |
//! |---|---|---|---|---|
//! | f32, f16 | yes | — | — | `F32` |
//! | bf16, FP8 | yes | yes | — | `Bf16` |
//! | MXFP8, MXFP6, shared microexponents | yes | yes | — | `Bf16` |
//! | MXFP4, NVFP4, MXINT8, INT8, INT4 | yes | yes | yes | `Q8` |
//!
//! MXFP6 is packed as MXFP8 E4M3, which has all of its values. So has BF16 those of shared microexponents down to 2^-133, and they are packed
//! as that.
//!
//! The `F32` mode is the product of the decoded weights, added in order of the inputs. `Bf16` rounds inputs to BF16, `Q8`
//! to INT8 with a scale for each block of 32.
//!
//! **Row invariance.** A row of the result has the same bits whatever the number of rows, of threads, and of matrices in
//! the call: an output is one chain of multiply-adds over the inputs. So does every [`Epilogue`], which works element by
//! element.
//!
//! ```
//! use squish_quant::{Activation, MxQuantizer, PackedMatrix, Workspace, ndarray::Array2};
//!
//! let weight = Array2::from_shape_fn([96, 64], |(row, col)| ((row * 64 + col) as f32).sin());
//! let packed = PackedMatrix::pack(&MxQuantizer::default().encode(weight.view())?, Activation::Q8)?;
//! let mut workspace = Workspace::default();
//!
//! let x = Array2::from_shape_fn([3, 64], |(row, col)| ((row + col) as f32).cos());
//! let mut out = Array2::zeros([3, 96]);
//! packed.gemm_into(&mut workspace, x.view(), out.view_mut())?;
//!
//! // One row alone has the same bits.
//! let mut alone = [0.0; 96];
//! packed.gemv_into(&mut workspace, x.row(1).as_slice().expect("a row"), &mut alone)?;
//! assert_eq!(out.row(1).as_slice(), Some(&alone[..]));
//! # Ok::<(), squish_quant::Error>(())
//! ```

pub use squish_kernels::panel::{Activation, Line};
use squish_kernels::{
    memory,
    panel::{Code, PANEL, PanelLayout, PanelScale, pack_panel},
};

use crate::{
    error::{Error, Result},
    fp8::{Fp8Format, Fp8Tensor, Fp8View},
    granularity::n_elements,
    int::{IntFormat, IntTensor, IntView},
    mx::{MxFormat, MxTensor, MxView},
    nvfp4::{NvFp4Tensor, NvFp4View},
    parallel::{Rows, for_bands},
    smx::{SmxTensor, SmxView},
};

mod bytes;
mod columns;
mod product;
mod source;
mod workspace;

#[doc(hidden)]
pub use bytes::checksum;
pub use bytes::{Saved, Verify};
pub use columns::ColumnMatrix;
pub use product::{Epilogue, Gate, Product};
use source::Source;
pub use workspace::Workspace;

/// Weights `[outputs, inputs]`, packed for products. `B` owns or borrows the panels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedMatrix<B = Vec<Line>> {
    layout: PanelLayout,
    n_outputs: usize,
    /// Panel after panel; the outputs of the last one beyond `n_outputs` are zeros.
    lines: B,
}

/// Packed weights over somebody else's bytes.
pub type PackedView<'a> = PackedMatrix<&'a [Line]>;

/// Type of dense weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dense {
    /// Four bytes each.
    F32,
    /// Two bytes each.
    Bf16,
    /// Two bytes each.
    F16,
}

/// Weights `[outputs, inputs]` in any of the forms that can be packed.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// Little-endian numbers, row-major, at any alignment: as checkpoints hold them.
    Dense {
        /// Their type.
        dense: Dense,
        /// Rows and columns.
        shape: [usize; 2],
        /// The numbers.
        bytes: &'a [u8],
    },
    /// FP8.
    Fp8(Fp8View<'a>),
    /// Microscaling.
    Mx(MxView<'a>),
    /// NVFP4.
    NvFp4(NvFp4View<'a>),
    /// Shared microexponents.
    Smx(SmxView<'a>),
    /// INT8 and INT4.
    Int(IntView<'a>),
}

impl<'a, C: AsRef<[u8]>, S: AsRef<[u8]>> From<&'a NvFp4Tensor<C, S>> for Weights<'a> {
    fn from(tensor: &'a NvFp4Tensor<C, S>) -> Self {
        Self::NvFp4(tensor.view())
    }
}

impl<'a, B: AsRef<[u8]>> From<&'a SmxTensor<B>> for Weights<'a> {
    fn from(tensor: &'a SmxTensor<B>) -> Self {
        Self::Smx(tensor.view())
    }
}

impl<'a, C: AsRef<[u8]>, S: AsRef<[f32]>> From<&'a Fp8Tensor<C, S>> for Weights<'a> {
    fn from(tensor: &'a Fp8Tensor<C, S>) -> Self {
        Self::Fp8(tensor.view())
    }
}

impl<'a, C: AsRef<[u8]>, S: AsRef<[u8]>> From<&'a MxTensor<C, S>> for Weights<'a> {
    fn from(tensor: &'a MxTensor<C, S>) -> Self {
        Self::Mx(tensor.view())
    }
}

impl<'a, C, S, Z> From<&'a IntTensor<C, S, Z>> for Weights<'a>
where
    C: AsRef<[u8]>,
    S: AsRef<[f32]>,
    Z: AsRef<[i8]>,
{
    fn from(tensor: &'a IntTensor<C, S, Z>) -> Self {
        Self::Int(tensor.view())
    }
}

impl Weights<'_> {
    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense { shape, .. } => *shape,
            Self::Fp8(tensor) => tensor.shape(),
            Self::Mx(tensor) => tensor.shape(),
            Self::NvFp4(tensor) => tensor.shape(),
            Self::Smx(tensor) => tensor.shape(),
            Self::Int(tensor) => tensor.shape(),
        }
    }

    /// What inputs are rounded to where nothing else is asked for; see the [module](self).
    #[must_use]
    pub fn default_activation(&self) -> Activation {
        match self {
            Self::Dense { dense: Dense::F32 | Dense::F16, .. } => Activation::F32,
            Self::Dense { dense: Dense::Bf16, .. } | Self::Fp8(_) | Self::Smx(_) => {
                Activation::Bf16
            }
            Self::Mx(tensor) => match tensor.format() {
                MxFormat::MxFp4 | MxFormat::MxInt8 => Activation::Q8,
                _ => Activation::Bf16,
            },
            Self::NvFp4(_) | Self::Int(_) => Activation::Q8,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Dense { dense: Dense::F32, .. } => Code::F32,
            Self::Dense { dense: Dense::Bf16, .. } | Self::Smx(_) => Code::Bf16,
            Self::Dense { dense: Dense::F16, .. } => Code::F16,
            Self::Fp8(tensor) => match tensor.format() {
                Fp8Format::E4M3 => Code::E4M3,
                Fp8Format::E5M2 => Code::E5M2,
            },
            Self::Mx(tensor) => match tensor.format() {
                MxFormat::MxFp4 => Code::E2M1,
                MxFormat::MxFp8E5M2 => Code::E5M2,
                MxFormat::MxInt8 => Code::MxInt8,
                // MXFP6 has values of E4M3.
                MxFormat::MxFp8E4M3 | MxFormat::MxFp6E3M2 | MxFormat::MxFp6E2M3 => Code::E4M3,
            },
            Self::NvFp4(_) => Code::E2M1,
            Self::Int(tensor) => match tensor.format() {
                IntFormat::Int8 => Code::Int8,
                IntFormat::Int4 => Code::Int4,
            },
        }
    }
}

impl PackedMatrix {
    /// `weights`, packed for products whose inputs are rounded to `activation`: on all threads of the current rayon pool,
    /// from the bytes where they lie.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for an activation that the format does not have, [`Error::BlockAlign`] for groups of inputs
    /// that are no multiples of 32 and fewer than all, [`Error::Length`] if dense bytes are too few or too many,
    /// [`Error::TooLarge`], [`Error::Memory`].
    pub fn pack<'a>(weights: impl Into<Weights<'a>>, activation: Activation) -> Result<Self> {
        let weights = weights.into();
        let source = Source::new(weights)?;
        let [n_outputs, n_inputs] = weights.shape();
        let (scale, group) = (source.scale(), source.group());
        let layout = layout_of(weights.code(), activation, scale, [n_outputs, n_inputs], group)?;
        let n_lines = n_lines(&layout, n_outputs)?;
        let bytes = 64 * n_lines;
        let mut lines =
            memory::filled(n_lines, Line([0; 64])).map_err(|_| Error::Memory { bytes })?;
        let panels = Panels { first: 0, layout: &layout, lines: &mut lines };
        for_bands(panels, 1, bytes, &|panels: Panels<'_>| {
            let lines_each = layout.panel_bytes() / 64;
            for (i, panel) in panels.lines.chunks_exact_mut(lines_each.max(1)).enumerate() {
                let first_output = (panels.first + i) * PANEL;
                let n = PANEL.min(n_outputs - first_output);
                pack_panel(&layout, &source, first_output, n, bytemuck::cast_slice_mut(panel));
            }
            Ok(())
        })?;
        Ok(Self { layout, n_outputs, lines })
    }
}

impl<B: AsRef<[Line]>> PackedMatrix<B> {
    /// Outputs and inputs: rows and columns of the weights.
    pub fn shape(&self) -> [usize; 2] {
        [self.n_outputs, self.layout.n_inputs()]
    }

    /// What inputs are rounded to.
    pub fn activation(&self) -> Activation {
        self.layout.activation()
    }

    /// Bytes of the panels, all of which a product reads.
    pub fn n_bytes(&self) -> usize {
        size_of_val(self.lines.as_ref())
    }

    /// Bits per weight, scales and padding included; NaN for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        let [rows, cols] = self.shape();
        8.0 * self.n_bytes() as f64 / (rows * cols) as f64
    }

    /// The panels: what a product reads.
    pub fn lines(&self) -> &[Line] {
        self.lines.as_ref()
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> PackedView<'_> {
        PackedMatrix { layout: self.layout, n_outputs: self.n_outputs, lines: self.lines.as_ref() }
    }
}

impl<'a> PackedView<'a> {
    fn n_panels(&self) -> usize {
        self.n_outputs.div_ceil(PANEL)
    }

    fn panel(&self, idx: usize) -> &'a [u8] {
        let n_lines = self.layout.panel_bytes() / 64;
        bytemuck::cast_slice(&self.lines[idx * n_lines..(idx + 1) * n_lines])
    }
}

/// The layout of a matrix of `shape`, if there are products of that kind.
fn layout_of(
    code: Code,
    activation: Activation,
    scale: PanelScale,
    shape: [usize; 2],
    group: usize,
) -> Result<PanelLayout> {
    n_elements(shape)?;
    let new = |group| PanelLayout::new(code, activation, scale, shape[1], group);
    match (new(group), new(shape[1])) {
        (Some(layout), _) => Ok(layout),
        (None, Some(_)) => {
            Err(Error::BlockAlign { len: group, block: squish_kernels::panel::BLOCK })
        }
        (None, None) if new(32).is_some() => {
            Err(Error::BlockAlign { len: group, block: squish_kernels::panel::BLOCK })
        }
        (None, None) if shape[1] > isize::MAX as usize / (32 * PANEL) => {
            Err(Error::TooLarge { shape })
        }
        (None, None) => Err(Error::Unsupported {
            format: code_name(code),
            what: match activation {
                Activation::F32 => "inputs in f32",
                Activation::Bf16 => "inputs in bf16",
                Activation::Q8 => "inputs in q8",
            },
        }),
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::F32 => "f32",
        Code::Bf16 => "bf16",
        Code::F16 => "f16",
        Code::E4M3 => "e4m3",
        Code::E5M2 => "e5m2",
        Code::E2M1 => "e2m1",
        Code::Int8 => "int8",
        Code::Int4 => "int4",
        Code::MxInt8 => "mxint8",
        _ => "this format",
    }
}

/// Lines of all panels.
fn n_lines(layout: &PanelLayout, n_outputs: usize) -> Result<usize> {
    let n_bytes = n_outputs.div_ceil(PANEL).checked_mul(layout.panel_bytes());
    let n_bytes = n_bytes.filter(|&n| isize::try_from(n).is_ok());
    let shape = [n_outputs, layout.n_inputs()];
    Ok(n_bytes.ok_or(Error::TooLarge { shape })? / 64)
}

/// Panels to pack.
struct Panels<'a> {
    first: usize,
    layout: &'a PanelLayout,
    lines: &'a mut [Line],
}

impl Rows for Panels<'_> {
    fn n_rows(&self) -> usize {
        // Panels of no inputs have no bytes, and need no packing.
        self.lines.len().checked_div(self.layout.panel_bytes() / 64).unwrap_or(0)
    }

    fn split_at_row(self, n: usize) -> (Self, Self) {
        let Self { first, layout, lines } = self;
        let (lines, rest) = lines.split_at_mut(n * layout.panel_bytes() / 64);
        (Self { first, layout, lines }, Self { first: first + n, layout, lines: rest })
    }
}
