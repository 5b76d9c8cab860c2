//! Writing weights into a panel.

use super::layout::{BLOCK, Code, PANEL, PanelLayout, PanelScale};

/// Weights that panels are made of, `[outputs, inputs]`.
pub trait PanelSource {
    /// Codes of an output from input `first` on, each of [`Code::n_bytes`] little-endian bytes, as many as fit. They exist.
    fn codes_into(&self, output: usize, first: usize, codes: &mut [u8]);

    /// Scale of an output and group: the bits of an `f32`, or a byte. Of [`PanelScale::E4M3`] groups are halves of blocks.
    fn scale_bits(&self, output: usize, group: usize) -> u32;

    /// Scale of an output, of [`PanelScale::E4M3`] alone.
    fn output_scale(&self, output: usize) -> f32;

    /// Zero point of an output and group.
    fn zero_point(&self, output: usize, group: usize) -> i8;
}

/// Writes the weights of `n_outputs` outputs, at most [`PANEL`], of which `first_output` is the first; the others are zeros with scale
/// zero.
///
/// # Panics
///
/// If `panel` does not have the bytes of the layout, or if `n_outputs` exceeds [`PANEL`].
pub fn pack_panel(
    layout: &PanelLayout,
    source: &impl PanelSource,
    first_output: usize,
    n_outputs: usize,
    panel: &mut [u8],
) {
    assert_eq!(panel.len(), layout.panel_bytes(), "pack_panel: bytes of the layout");
    assert!(n_outputs <= PANEL, "pack_panel: {n_outputs} outputs in a panel of {PANEL}");
    let places = Places::new(layout);
    let (prefix, groups) = panel.split_at_mut(layout.prefix_bytes());
    for (lane, bytes) in prefix.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let output = (lane < n_outputs).then_some(first_output + lane);
        *bytes = output.map_or(0.0, |output| source.output_scale(output)).to_le_bytes();
    }
    let groups = groups.chunks_mut(layout.group_bytes().max(1));
    for (group_idx, bytes) in groups.enumerate() {
        let (header, codes) = bytes.split_at_mut(layout.header_bytes());
        for lane in 0..PANEL {
            let output = (lane < n_outputs).then_some(first_output + lane);
            write_scale(layout, source, output, group_idx, lane, header);
        }
        codes.fill(0);
        for (i, block) in codes.chunks_exact_mut(layout.code_bytes(BLOCK)).enumerate() {
            let first = group_idx * layout.group() + i * BLOCK;
            for lane in 0..PANEL {
                let output = (lane < n_outputs).then_some(first_output + lane);
                places.write_block(layout, source, output, first, lane, block);
            }
        }
    }
}

fn write_scale(
    layout: &PanelLayout,
    source: &impl PanelSource,
    output: Option<usize>,
    group: usize,
    lane: usize,
    header: &mut [u8],
) {
    let bits = |output| source.scale_bits(output, group);
    match layout.scale() {
        PanelScale::Absent => {}
        PanelScale::E8M0 => header[lane] = output.map_or(0, bits) as u8,
        PanelScale::E4M3 => {
            let n_halves = layout.n_inputs().div_ceil(BLOCK / 2);
            for (half, scales) in header.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                let half = 2 * group + half;
                let output = output.filter(|_| half < n_halves);
                scales[lane] = output.map_or(0, |output| source.scale_bits(output, half)) as u8;
            }
        }
        PanelScale::F32 | PanelScale::F32Zero => {
            let bytes = output.map_or(0, bits).to_le_bytes();
            header[4 * lane..4 * lane + 4].copy_from_slice(&bytes);
        }
    }
    if layout.scale() == PanelScale::F32Zero {
        let zero_point = output.map_or(0, |output| source.zero_point(output, group));
        header[4 * PANEL + lane] = (zero_point as u8).wrapping_add(layout.code().bias());
    }
}

/// [`PanelLayout::position`] within a block, which is a sum of what an output and what an input adds.
struct Places {
    of_output: [usize; PANEL],
    of_input: [(usize, bool); BLOCK],
}

impl Places {
    fn new(layout: &PanelLayout) -> Self {
        Self {
            of_output: std::array::from_fn(|output| layout.position(output, 0).0),
            of_input: std::array::from_fn(|input| layout.position(0, input)),
        }
    }

    /// The codes of an output in a block; of no output, and past the last input, zeros.
    fn write_block(
        &self,
        layout: &PanelLayout,
        source: &impl PanelSource,
        output: Option<usize>,
        first: usize,
        lane: usize,
        block: &mut [u8],
    ) {
        let code = layout.code();
        let mut codes = [code.zero(); 4 * BLOCK];
        let n_inputs = layout.n_inputs().saturating_sub(first).min(BLOCK);
        if let Some(output) = output {
            source.codes_into(output, first, &mut codes[..n_inputs * code.n_bytes()]);
        }
        let start = self.of_output[lane];
        match code {
            Code::F32 => self.scatter::<4>(&codes, start, block),
            Code::Bf16 | Code::F16 => self.scatter::<2>(&codes, start, block),
            Code::E4M3 | Code::E5M2 | Code::Int8 | Code::MxInt8 => {
                self.scatter::<1>(&codes, start, block);
            }
            Code::E2M1 | Code::Int4 => {
                for (&code, (byte, upper)) in codes.iter().zip(self.of_input) {
                    block[start + byte] |= (code & 0xf) << (4 * u32::from(upper));
                }
            }
        }
    }

    fn scatter<const N: usize>(&self, codes: &[u8], start: usize, block: &mut [u8]) {
        for (code, (byte, _)) in codes.as_chunks::<N>().0.iter().zip(self.of_input) {
            block[start + byte..start + byte + N].copy_from_slice(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panel::Activation;

    #[test]
    fn places_are_sums_in_every_layout() {
        for (code, activation) in Code::ALL
            .into_iter()
            .flat_map(|code| Activation::ALL.map(|activation| (code, activation)))
        {
            let scales = [PanelScale::Absent, PanelScale::F32, PanelScale::E8M0, PanelScale::E4M3];
            let layouts = scales
                .into_iter()
                .filter_map(|scale| PanelLayout::new(code, activation, scale, BLOCK, BLOCK));
            for layout in layouts {
                let places = Places::new(&layout);
                for (output, input) in (0..PANEL).flat_map(|o| (0..BLOCK).map(move |i| (o, i))) {
                    let (byte, upper) = places.of_input[input];
                    let sum = (places.of_output[output] + byte, upper);
                    assert_eq!(sum, layout.position(output, input), "{layout:?}");
                }
            }
        }
    }
}
