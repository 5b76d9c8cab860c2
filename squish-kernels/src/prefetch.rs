//! Asking for memory before it is read.
//!
//! A hint, where the architecture has one that is stable in Rust (x86-64), and nothing elsewhere. Requests go along with the loads of a
//! kernel, a line for a line: many at once fill the queue of outstanding lines and hold up what follows.
//! Some CPUs read streams faster without: [`Stream`].

use crate::Isa;

/// How far ahead of its reads a kernel that streams weights asks for lines, in bytes: some 200 ns of a core's share of the memory's
/// bandwidth. Half of it is nearly as good, and a quarter is too near for codes of four bits, whose lines are much work.
pub(crate) const AHEAD: usize = 8192;

/// The same for lines that are in the second-level cache by then: some 25 ns, which is more than its latency.
const NEAR_AHEAD: usize = 1024;

/// Asks for the lines that lie `ahead` bytes behind those of `bytes`, whatever is there, to be brought to the first-level cache.
#[inline(always)]
pub(crate) fn lines(bytes: &[u8], ahead: usize) {
    for at in (0..bytes.len()).step_by(64) {
        line::<NEAR>(bytes, at + ahead);
    }
}

/// The same, to the second-level cache: for what comes from memory. The first one can wait for one or two dozen lines at a time, too few for
/// the memory's latency.
#[inline(always)]
pub(crate) fn far_lines(bytes: &[u8], ahead: usize) {
    for at in (0..bytes.len()).step_by(64) {
        line::<FAR>(bytes, at + ahead);
    }
}

/// Who sees to it that what is read once, and in order, is there in time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    /// The kernel asks for it.
    Asked,
    /// The CPU alone.
    Unasked,
}

impl Stream {
    /// What is best for a kernel that reads nothing else from memory.
    pub(crate) const fn of(isa: Isa) -> Self {
        if isa.reads_ahead() { Self::Unasked } else { Self::Asked }
    }

    /// Asks for the lines [`AHEAD`] of `bytes`.
    #[inline(always)]
    pub(crate) fn lines(self, bytes: &[u8]) {
        if matches!(self, Self::Asked) {
            far_lines(bytes, AHEAD);
        }
    }

    /// Asks for the lines [`AHEAD`] of `bytes` in two steps: from memory to the second-level cache, and shortly before they are read to the
    /// first. For kernels with so much work for each line that few loads wait at once.
    #[inline(always)]
    pub(crate) fn lines_in_two_steps(self, bytes: &[u8]) {
        if matches!(self, Self::Asked) {
            far_lines(bytes, AHEAD);
            lines(bytes, NEAR_AHEAD);
        }
    }
}

/// Asks for the line with the byte `at` of `bytes`, in them or not, to be brought to the second-level cache.
#[inline(always)]
pub(crate) fn far_line_at(bytes: &[u8], at: usize) {
    line::<FAR>(bytes, at);
}

/// Asks for memory that is read later, a little at each step of what is done now, so that loads and arithmetic overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    /// Several lines, or a part of one, which is asked for more than once: that costs less than to count.
    bytes_per_step: usize,
}

impl<'a> Ahead<'a> {
    /// Asks in `n_steps` steps for as many bytes as `bytes` has, those that follow it in memory.
    #[inline(always)]
    pub(crate) fn of(bytes: &'a [u8], n_steps: usize) -> Self {
        Self { at: bytes.len(), end: 2 * bytes.len(), ..Self::itself(bytes, n_steps) }
    }

    /// Asks in `n_steps` steps for `bytes`.
    #[inline(always)]
    pub(crate) fn itself(bytes: &'a [u8], n_steps: usize) -> Self {
        let per_step = bytes.len().div_ceil(n_steps.max(1));
        let bytes_per_step = if per_step > 64 { per_step.next_multiple_of(64) } else { per_step };
        Self { bytes, at: 0, end: bytes.len(), bytes_per_step }
    }

    /// Asks for nothing.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the instruction for pairs of BF16")
    )]
    pub(crate) const NOTHING: Ahead<'static> =
        Ahead { bytes: &[], at: 0, end: 0, bytes_per_step: 0 };

    #[inline(always)]
    pub(crate) fn step(&mut self) {
        if self.at >= self.end {
            return;
        }
        for at in (0..self.bytes_per_step).step_by(64) {
            line::<FAR>(self.bytes, self.at + at);
        }
        self.at += self.bytes_per_step;
    }
}

/// To the first-level cache.
const NEAR: bool = true;
/// To the second-level cache: the first has no room for what is needed later.
const FAR: bool = false;

/// Asks for the line with the byte `at` bytes from the start of `bytes`, in them or not.
#[inline(always)]
fn line<const TO: bool>(bytes: &[u8], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

        let line = bytes.as_ptr().wrapping_add(at).cast();
        // SAFETY: a prefetch reads nothing that a program can see, whatever the address; SSE is x86-64's baseline.
        unsafe {
            if TO == NEAR {
                _mm_prefetch::<_MM_HINT_T0>(line);
            } else {
                _mm_prefetch::<_MM_HINT_T1>(line);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, at);
}
