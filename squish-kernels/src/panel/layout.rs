//! Which bytes of a panel hold what.

use crate::element::{E2M1, E4M3, E5M2, E8M0, Element};
use half::{bf16, f16};

/// Outputs of a panel: the lanes of every kernel.
pub const PANEL: usize = 64;

/// Inputs of a block. Rows of weights are padded with zeros to whole blocks.
pub const BLOCK: usize = 32;

/// Bytes of a cache line: panels start on one, and so does what is copied from them, and the rows of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

// SAFETY: an array of bytes, as long as its alignment: all bits are valid, zeros included, and there is no padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// How one weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// OFP8 E4M3.
    E4M3,
    /// OFP8 E5M2.
    E5M2,
    /// The four-bit float of MXFP4, as one byte with the code in its low half.
    E2M1,
    /// Two's complement, eight bits.
    Int8,
    /// `code + 8`, one byte with the code in its low half.
    Int4,
    /// The element of MXINT8: two's complement, eight bits, in units of 1/64.
    MxInt8,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::E4M3,
        Self::E5M2,
        Self::E2M1,
        Self::Int8,
        Self::Int4,
        Self::MxInt8,
    ];

    /// Bits of a code in a panel.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::Bf16 | Self::F16 => 16,
            Self::E4M3 | Self::E5M2 | Self::Int8 | Self::MxInt8 => 8,
            Self::E2M1 | Self::Int4 => 4,
        }
    }

    /// Bytes of a code outside of a panel, where each stands alone.
    #[must_use]
    pub const fn n_bytes(self) -> usize {
        self.bits().div_ceil(8)
    }

    /// The byte of zero, of which each code of zero is made.
    pub(crate) const fn zero(self) -> u8 {
        if let Self::Int4 = self { 8 } else { 0 }
    }

    /// What is added to an integer code, or to twice an E2M1 value, to make it unsigned.
    pub(crate) const fn bias(self) -> u8 {
        match self {
            Self::E2M1 => 12,
            Self::Int4 => 8,
            Self::Int8 | Self::MxInt8 => 128,
            _ => 0,
        }
    }

    /// The integers of Q8 products are the values in units of this.
    pub(crate) const fn unit(self) -> f32 {
        match self {
            Self::E2M1 => 0.5,
            Self::MxInt8 => 1.0 / 64.0,
            _ => 1.0,
        }
    }

    /// The value of a code of [`n_bytes`](Self::n_bytes) little-endian bytes, without its scale.
    #[doc(hidden)]
    #[must_use]
    #[inline]
    pub fn value(self, code: &[u8]) -> f32 {
        let two = || [code[0], code[1]];
        match self {
            Self::F32 => f32::from_le_bytes([code[0], code[1], code[2], code[3]]),
            Self::Bf16 => bf16::from_le_bytes(two()).to_f32(),
            Self::F16 => f16::from_le_bytes(two()).to_f32(),
            Self::E4M3 => E4M3::from_bits(code[0]).to_f32(),
            Self::E5M2 => E5M2::from_bits(code[0]).to_f32(),
            Self::E2M1 => E2M1::from_bits(code[0] & 0xf).to_f32(),
            Self::Int8 => f32::from(code[0] as i8),
            Self::MxInt8 => f32::from(code[0] as i8) / 64.0,
            Self::Int4 => f32::from((code[0] & 0xf) as i8 - 8),
        }
    }
}

/// What the inputs of a product are rounded to. Part of a layout, and never of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Not at all: the exact mode.
    F32,
    /// bfloat16.
    Bf16,
    /// Eight bits with an `f32` scale for each block of 32.
    Q8,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Q8];

    /// Lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }
}

/// Scales of the weights of a panel: one for each output and group of inputs, but for [`E4M3`](Self::E4M3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PanelScale {
    /// None.
    Absent,
    /// `f32`.
    F32,
    /// `f32`, and a zero point.
    F32Zero,
    /// One byte, a power of two.
    E8M0,
    /// One byte, an 8-bit float, for each half of a block of 32 inputs, and an `f32` for all inputs of an output: NVFP4.
    E4M3,
}

/// The order of the bytes of a panel, which is all that a kernel needs to know of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PanelLayout {
    code: Code,
    activation: Activation,
    scale: PanelScale,
    n_inputs: usize,
    group: usize,
}

impl PanelLayout {
    /// The layout of panels whose outputs have `n_inputs` weights, with a scale for each `group` of them; a group that is no
    /// multiple of [`BLOCK`] must hold all of them, and the last one of several may be shorter. `None` if no kernel
    /// computes that.
    #[must_use]
    pub fn new(
        code: Code,
        activation: Activation,
        scale: PanelScale,
        n_inputs: usize,
        group: usize,
    ) -> Option<Self> {
        let padded = n_inputs.checked_next_multiple_of(BLOCK)?;
        let of_block = group == BLOCK || padded == 0;
        let scales_fit = match code {
            Code::F32 | Code::Bf16 | Code::F16 => scale == PanelScale::Absent,
            Code::E4M3 | Code::E5M2 => {
                scale == PanelScale::F32 || (scale == PanelScale::E8M0 && of_block)
            }
            Code::E2M1 => matches!(scale, PanelScale::E8M0 | PanelScale::E4M3) && of_block,
            Code::MxInt8 => scale == PanelScale::E8M0 && of_block,
            Code::Int8 | Code::Int4 => matches!(scale, PanelScale::F32 | PanelScale::F32Zero),
        };
        let activation_fits = match activation {
            Activation::F32 => true,
            Activation::Bf16 => !matches!(code, Code::F32 | Code::F16),
            Activation::Q8 => code.bias() != 0,
        };
        let group = if scale == PanelScale::Absent || group >= n_inputs { padded } else { group };
        let group_fits = padded == 0 || (group > 0 && group.is_multiple_of(BLOCK));
        // Twice the bytes of the largest layout.
        let countable = padded.checked_mul(16 * PANEL).is_some_and(|n| isize::try_from(n).is_ok());
        (scales_fit && activation_fits && group_fits && countable).then_some(Self {
            code,
            activation,
            scale,
            n_inputs,
            group,
        })
    }

    /// How a weight is stored.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// What inputs are rounded to.
    #[must_use]
    pub const fn activation(&self) -> Activation {
        self.activation
    }

    /// What scales there are.
    #[must_use]
    pub const fn scale(&self) -> PanelScale {
        self.scale
    }

    /// Inputs of each output.
    #[must_use]
    pub const fn n_inputs(&self) -> usize {
        self.n_inputs
    }

    /// Inputs that share a scale: a multiple of [`BLOCK`], or zero without inputs.
    #[must_use]
    pub const fn group(&self) -> usize {
        self.group
    }

    /// Inputs with those that pad the last block.
    #[must_use]
    pub const fn padded_inputs(&self) -> usize {
        self.n_inputs.next_multiple_of(BLOCK)
    }

    /// Groups of an output.
    #[must_use]
    pub const fn n_groups(&self) -> usize {
        if self.group == 0 { 0 } else { self.padded_inputs().div_ceil(self.group) }
    }

    /// Whether each half of a block has a scale.
    pub(crate) const fn has_halves(&self) -> bool {
        matches!(self.scale, PanelScale::E4M3)
    }

    /// Parts of a block whose products are scaled apart.
    pub(crate) const fn parts_per_block(&self) -> usize {
        if self.has_halves() { 2 } else { 1 }
    }

    /// Bytes of the scales of whole outputs in front of all groups.
    pub(crate) const fn prefix_bytes(&self) -> usize {
        if self.has_halves() && self.group != 0 { 4 * PANEL } else { 0 }
    }

    /// Bytes of the scales in front of each group.
    pub(crate) const fn header_bytes(&self) -> usize {
        match self.scale {
            PanelScale::Absent => 0,
            PanelScale::F32 => 4 * PANEL,
            PanelScale::F32Zero => 5 * PANEL,
            PanelScale::E8M0 => PANEL,
            PanelScale::E4M3 => 2 * PANEL,
        }
    }

    /// Bytes of the codes of `n` inputs of all outputs.
    pub(crate) const fn code_bytes(&self, n: usize) -> usize {
        n * PANEL * self.code.bits() / 8
    }

    /// Bytes of a panel, a multiple of 64.
    #[must_use]
    pub const fn panel_bytes(&self) -> usize {
        let of_groups = self.n_groups() * self.header_bytes();
        self.prefix_bytes() + of_groups + self.code_bytes(self.padded_inputs())
    }

    /// Bytes from the start of one group to the next.
    pub(crate) const fn group_bytes(&self) -> usize {
        self.header_bytes() + self.code_bytes(self.group)
    }

    /// The groups of a panel, in order, as they are read.
    pub(crate) fn groups<'a>(&self, panel: &'a [u8]) -> impl Iterator<Item = Group<'a>> + use<'a> {
        assert_eq!(panel.len(), self.panel_bytes(), "panel: bytes of the layout");
        let layout = *self;
        // An empty panel has no groups, of at least one byte.
        panel[self.prefix_bytes()..].chunks(self.group_bytes().max(1)).map(move |bytes| {
            let (header, codes) = bytes.split_at(layout.header_bytes());
            Group { header, codes }
        })
    }

    /// The scales of whole outputs, if the layout has them.
    #[inline(always)]
    pub(crate) fn output_scales(&self, panel: &[u8]) -> Option<[f32; PANEL]> {
        (self.prefix_bytes() > 0).then(|| floats(panel))
    }

    /// Where in the codes of a group the code of an output and an input stands: the byte, and whether it is the upper half.
    ///
    /// | codes | activations | order, outermost first |
    /// |---|---|---|
    /// | 32 bits, F16 | F32 | input, output |
    /// | BF16 | F32, BF16 | pair of inputs, output, input |
    /// | 8-bit floats | F32, BF16 | pair of inputs, half of the outputs, [block of 16 bytes](#pairs) |
    /// | INT8, MXINT8 | F32, BF16 | input, output |
    /// | 4 bits | F32, BF16 | pair of inputs, output; the earlier input in the lower half |
    /// | INT8, MXINT8 | Q8 | four inputs, output, input |
    /// | 4 bits | Q8 | eight inputs, output, input modulo 4; the earlier four in the lower halves |
    ///
    /// # Pairs
    ///
    /// A block of 16 bytes holds four outputs of the first 16 of its half, and the same four of the second 16, two inputs
    /// each. Interleaving the halves of blocks with zeros then gives 32-bit lanes of outputs in order, each with two
    /// inputs, at every width of vectors.
    pub(crate) const fn position(&self, output: usize, input: usize) -> (usize, bool) {
        let q8 = matches!(self.activation, Activation::Q8);
        match self.code {
            Code::F32 => (4 * (input * PANEL + output), false),
            Code::F16 => (2 * (input * PANEL + output), false),
            Code::Bf16 => (2 * ((input / 2 * PANEL + output) * 2 + input % 2), false),
            Code::E4M3 | Code::E5M2 => {
                let (half, within) = (output / 32, output % 32);
                let byte = within % 16 / 4 * 16 + within / 16 * 8 + within % 4 * 2 + input % 2;
                (input / 2 * 2 * PANEL + half * PANEL + byte, false)
            }
            Code::Int8 | Code::MxInt8 if q8 => {
                ((input / 4 * PANEL + output) * 4 + input % 4, false)
            }
            Code::Int8 | Code::MxInt8 => (input * PANEL + output, false),
            Code::E2M1 | Code::Int4 if q8 => {
                ((input / 8 * PANEL + output) * 4 + input % 4, input % 8 >= 4)
            }
            Code::E2M1 | Code::Int4 => (input / 2 * PANEL + output, input % 2 == 1),
        }
    }
}

/// The bytes of a group of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'a> {
    /// The scales, and the zero points behind them; those of second halves behind those of the first.
    pub(crate) header: &'a [u8],
    /// The codes.
    pub(crate) codes: &'a [u8],
}

impl Group<'_> {
    /// The scales of the outputs; ones where there are none, and where halves have their own.
    #[inline(always)]
    pub(crate) fn scales(&self, layout: &PanelLayout) -> [f32; PANEL] {
        let mut scales = [1.0; PANEL];
        match layout.scale {
            PanelScale::Absent | PanelScale::E4M3 => {}
            PanelScale::F32 | PanelScale::F32Zero => scales = floats(self.header),
            PanelScale::E8M0 => {
                let bytes: &[u8; PANEL] = self.header.first_chunk().expect("a byte per output");
                for (scale, &byte) in scales.iter_mut().zip(bytes) {
                    *scale = E8M0::from_bits(byte).to_f32();
                }
            }
        }
        scales
    }

    /// The scales of the two halves of a block.
    #[inline(always)]
    pub(crate) fn half_scales(&self) -> [[f32; PANEL]; 2] {
        let mut out = [[0.0; PANEL]; 2];
        for (scale, &byte) in out.as_flattened_mut().iter_mut().zip(self.header) {
            *scale = E4M3::from_bits(byte).to_f32();
        }
        out
    }

    /// The zero points plus the bias of the codes; the bias alone where there are none.
    #[inline(always)]
    pub(crate) fn offsets(&self, layout: &PanelLayout) -> [u8; PANEL] {
        if layout.scale == PanelScale::F32Zero {
            *self.header.last_chunk().expect("a byte per output")
        } else {
            [layout.code.bias(); PANEL]
        }
    }
}

/// The first of `bytes` as little-endian numbers.
#[inline(always)]
fn floats(bytes: &[u8]) -> [f32; PANEL] {
    let bytes = bytes[..4 * PANEL].as_chunks::<4>().0;
    let mut out = [0.0; PANEL];
    for (out, &bytes) in out.iter_mut().zip(bytes) {
        *out = f32::from_le_bytes(bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_place_of_its_own() {
        for (code, activation) in Code::ALL
            .into_iter()
            .flat_map(|code| Activation::ALL.map(|activation| (code, activation)))
        {
            let scales = [PanelScale::Absent, PanelScale::F32, PanelScale::E8M0, PanelScale::E4M3];
            let Some(layout) = scales
                .into_iter()
                .find_map(|scale| PanelLayout::new(code, activation, scale, 64, BLOCK))
            else {
                continue;
            };
            let mut seen = vec![0u8; layout.code_bytes(64)];
            for (output, input) in (0..PANEL).flat_map(|output| (0..64).map(move |k| (output, k))) {
                let (byte, upper) = layout.position(output, input);
                let mask = match (code.bits(), upper) {
                    (4, false) => 0x0f,
                    (4, true) => 0xf0,
                    _ => 0xff,
                };
                for at in byte..byte + code.n_bytes() {
                    assert_eq!(seen[at] & mask, 0, "{layout:?}: {output} {input}");
                    seen[at] |= mask;
                }
            }
            assert!(seen.iter().all(|&byte| byte == 0xff), "{layout:?}");
        }
    }

    #[test]
    fn a_layout_without_kernels_does_not_exist() {
        let new = PanelLayout::new;
        assert!(new(Code::F32, Activation::Q8, PanelScale::Absent, 64, 64).is_none());
        assert!(new(Code::F16, Activation::Bf16, PanelScale::Absent, 64, 64).is_none());
        assert!(new(Code::F32, Activation::F32, PanelScale::F32, 64, 64).is_none());
        assert!(new(Code::E2M1, Activation::Q8, PanelScale::E8M0, 64, 16).is_none());
        assert!(new(Code::Int8, Activation::Q8, PanelScale::F32, 100, 48).is_none());
        assert!(new(Code::Int8, Activation::Q8, PanelScale::F32, 100, 0).is_none());
        assert!(new(Code::F32, Activation::F32, PanelScale::Absent, usize::MAX, 1).is_none());
        let whole = new(Code::Int8, Activation::Q8, PanelScale::F32, 100, 100).expect("one group");
        assert_eq!(
            (whole.group(), whole.n_groups(), whole.panel_bytes()),
            (128, 1, 129 * 64 + 192)
        );
        let empty = new(Code::F32, Activation::F32, PanelScale::Absent, 0, 0).expect("empty");
        assert_eq!((empty.n_groups(), empty.panel_bytes()), (0, 0));
    }
}
