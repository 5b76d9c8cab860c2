//! The cache of a group of layers, and a step of it, for one type of numbers.

use arrayvec::ArrayVec;
use squish_attn::{BitMask, Mask, Options, Sequence, Workspace, merge_in_place};
use squish_kv::{
    KvElement, KvShape, KvSource, KvView, PagedKvCache, PagedStep, PrefixKey, Retention, RingView,
    Scaling, SequenceId, SlidingWindowKv, SlidingWindowStep, StreamingSinks,
};
use squish_quant::ndarray::{ArrayView3, ArrayViewMut3, Axis};

use super::sinks::{CacheRelative, SinkBuffers, SinkRows, position_of};
use crate::{
    Error,
    batch::{Batch, Rows},
};

/// A sequence in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupId {
    Paged(SequenceId),
    Ring(usize),
}

/// The cache of a group of layers.
#[expect(clippy::large_enum_variant, reason = "there is one for each group")]
pub(crate) enum Store<E> {
    Paged {
        cache: PagedKvCache<E>,
        retention: Retention,
        /// Of the open step.
        batch: Vec<(SequenceId, usize)>,
    },
    Rings(Rings<E>),
}

/// A ring for each sequence.
pub(crate) struct Rings<E> {
    /// `None` where no sequence is.
    held: Vec<Option<SlidingWindowKv<E>>>,
    /// Those of sequences that ended, and those that were made in advance.
    spare: Vec<SlidingWindowKv<E>>,
    shape: KvShape,
    window: usize,
    sinks: Option<StreamingSinks>,
    most_new: usize,
}

impl<E: KvElement> Rings<E> {
    pub(super) fn new(
        shape: KvShape,
        window: usize,
        sinks: Option<StreamingSinks>,
        most_new: usize,
        n_sequences: usize,
    ) -> Result<Self, Error> {
        let (held, spare) = (Vec::with_capacity(n_sequences), Vec::with_capacity(n_sequences));
        let mut rings = Self { held, spare, shape, window, sinks, most_new };
        for _ in 0..n_sequences {
            let ring = rings.ring()?;
            rings.spare.push(ring);
        }
        Ok(rings)
    }

    fn ring(&self) -> Result<SlidingWindowKv<E>, Error> {
        let mut ring = match self.sinks {
            None => SlidingWindowKv::new(self.shape, self.window, Scaling::Dynamic)?,
            Some(sinks) => {
                SlidingWindowKv::with_sinks(self.shape, self.window, sinks, Scaling::Dynamic)?
            }
        };
        ring.reserve(self.most_new)?;
        Ok(ring)
    }

    fn get(&mut self, idx: usize) -> &mut SlidingWindowKv<E> {
        self.held[idx].as_mut().expect(HELD)
    }
}

/// The runner checks ids before it hands them on.
const HELD: &str = "the sequence is held";

impl<E: KvElement> Store<E> {
    pub(crate) fn create(&mut self) -> Result<GroupId, Error> {
        match self {
            Self::Paged { cache, retention, .. } => Ok(GroupId::Paged(cache.create(*retention)?)),
            Self::Rings(rings) => {
                let ring = match rings.spare.pop() {
                    Some(ring) => ring,
                    None => rings.ring()?,
                };
                let free = rings.held.iter().position(Option::is_none);
                let idx = free.unwrap_or_else(|| {
                    rings.held.push(None);
                    rings.held.len() - 1
                });
                rings.held[idx] = Some(ring);
                Ok(GroupId::Ring(idx))
            }
        }
    }

    /// How many tokens of a prompt are cached.
    pub(crate) fn cached_len(&self, key: &PrefixKey, tokens: &[u32]) -> usize {
        match self {
            Self::Paged { cache, retention, .. } => {
                cache.tables().cached_len(key, tokens, *retention)
            }
            Self::Rings(_) => 0,
        }
    }

    /// A sequence with what is cached of a prompt, and how many tokens that is.
    pub(crate) fn create_with_prefix(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
    ) -> Result<(GroupId, usize), Error> {
        match self {
            Self::Paged { cache, retention, .. } => {
                let (id, n_cached) = cache.create_with_prefix(key, tokens, *retention)?;
                Ok((GroupId::Paged(id), n_cached))
            }
            Self::Rings(_) => Ok((self.create()?, 0)),
        }
    }

    pub(crate) fn fork(&mut self, id: GroupId) -> Result<GroupId, Error> {
        match (self, id) {
            (Self::Paged { cache, .. }, GroupId::Paged(id)) => Ok(GroupId::Paged(cache.fork(id)?)),
            (Self::Rings(_), _) => Err(Error::NoFork),
            (Self::Paged { .. }, GroupId::Ring(_)) => unreachable!("{HELD}"),
        }
    }

    /// Whether a sequence can be cut to `len` tokens.
    pub(crate) fn check_truncate(&self, id: GroupId, len: usize) -> Result<(), Error> {
        match (self, id) {
            (Self::Paged { cache, .. }, GroupId::Paged(id)) => {
                cache.tables().check_truncate(id, len)?;
            }
            (Self::Rings(rings), GroupId::Ring(idx)) => {
                rings.held[idx].as_ref().expect(HELD).check_truncate(len)?;
            }
            _ => unreachable!("{HELD}"),
        }
        Ok(())
    }

    pub(crate) fn truncate(&mut self, id: GroupId, len: usize) -> Result<(), Error> {
        match (self, id) {
            (Self::Paged { cache, .. }, GroupId::Paged(id)) => cache.truncate(id, len)?,
            (Self::Rings(rings), GroupId::Ring(idx)) => rings.get(idx).truncate(len)?,
            _ => unreachable!("{HELD}"),
        }
        Ok(())
    }

    pub(crate) fn free(&mut self, id: GroupId) -> Result<(), Error> {
        match (self, id) {
            (Self::Paged { cache, .. }, GroupId::Paged(id)) => cache.free(id)?,
            (Self::Rings(rings), GroupId::Ring(idx)) => {
                let mut ring = rings.held[idx].take().expect(HELD);
                ring.clear();
                rings.spare.push(ring);
            }
            _ => unreachable!("{HELD}"),
        }
        Ok(())
    }

    pub(crate) fn len(&self, id: GroupId) -> Result<usize, Error> {
        match (self, id) {
            (Self::Paged { cache, .. }, GroupId::Paged(id)) => Ok(cache.len(id)?),
            (Self::Rings(rings), GroupId::Ring(idx)) => {
                Ok(rings.held[idx].as_ref().expect(HELD).len())
            }
            _ => unreachable!("{HELD}"),
        }
    }

    /// Room for new tokens: `n_new` of each sequence.
    pub(crate) fn begin(
        &mut self,
        ids: impl ExactSizeIterator<Item = (GroupId, usize)>,
    ) -> Result<StoreStep<'_, E>, Error> {
        match self {
            Self::Paged { cache, batch, .. } => {
                batch.clear();
                batch.extend(ids.map(|(id, n_new)| match id {
                    GroupId::Paged(id) => (id, n_new),
                    GroupId::Ring(_) => unreachable!("{HELD}"),
                }));
                let step = cache.begin(batch)?;
                Ok(StoreStep::Paged { step, batch })
            }
            Self::Rings(rings) => {
                let n_parts = ids.len();
                if n_parts > MOST_AT_ONCE {
                    return Err(Error::RingParts { n_parts, max: MOST_AT_ONCE });
                }
                let ids: ArrayVec<_, MOST_AT_ONCE> = ids.collect();
                let mut steps: ArrayVec<_, MOST_AT_ONCE> = ids.iter().map(|_| None).collect();
                for (idx, ring) in rings.held.iter_mut().enumerate() {
                    let part = ids.iter().position(|(id, _)| *id == GroupId::Ring(idx));
                    if let (Some(part), Some(ring)) = (part, ring) {
                        steps[part] = Some(ring.begin(ids[part].1)?);
                    }
                }
                Ok(StoreStep::Rings(steps.into_iter().map(|step| step.expect(HELD)).collect()))
            }
        }
    }
}

/// Sequences whose attention is one call: what stands on its stack.
const MOST_AT_ONCE: usize = 64;

/// A step of a group.
#[expect(
    clippy::large_enum_variant,
    reason = "it stands on the stack, and a box would be allocated in every step"
)]
pub(crate) enum StoreStep<'a, E> {
    Paged { step: PagedStep<'a, E>, batch: &'a [(SequenceId, usize)] },
    Rings(ArrayVec<SlidingWindowStep<'a, E>, MOST_AT_ONCE>),
}

impl<E: KvElement> StoreStep<'_, E> {
    /// New keys and values of a part, `[rows, heads, width]`.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        part: usize,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<(), Error> {
        match self {
            Self::Paged { step, batch } => step.write(layer, batch[part].0, keys, values)?,
            Self::Rings(steps) => steps[part].write(layer, keys, values)?,
        }
        Ok(())
    }

    /// The attention of all parts' rows over what they see in a layer.
    pub(crate) fn attend(
        &self,
        layer: usize,
        batch: &Batch<'_>,
        queries: ArrayView3<'_, f32>,
        options: &Options<'_>,
        workspace: &mut Workspace,
        sinks: Option<(CacheRelative, &mut SinkBuffers)>,
        mut out: ArrayViewMut3<'_, f32>,
    ) -> Result<(), Error> {
        let (step, ids) = match self {
            Self::Paged { step, batch } => (step, batch),
            Self::Rings(steps) => {
                let rows: ArrayVec<Rows<'_>, MOST_AT_ONCE> =
                    (0..batch.n_parts()).map(|part| batch.rows(part)).collect();
                let mut views = ArrayVec::new();
                for step in steps {
                    views.push(step.view(layer)?);
                }
                let rings = RingRows { views, rows };
                return match sinks {
                    None => rings.attend(queries, options, workspace, out),
                    Some((sinks, buffers)) => {
                        rings.attend_to_sinks(queries, options, workspace, sinks, buffers, out)
                    }
                };
            }
        };
        for first in (0..batch.n_parts()).step_by(MOST_AT_ONCE) {
            let parts = first..batch.n_parts().min(first + MOST_AT_ONCE);
            let mut views: ArrayVec<KvView<'_, E>, MOST_AT_ONCE> = ArrayVec::new();
            for (id, _) in &ids[parts.clone()] {
                views.push(step.view(layer, *id)?);
            }
            let range = batch.range(parts.clone());
            let sequences: ArrayVec<_, MOST_AT_ONCE> = views
                .iter()
                .zip(parts)
                .map(|(view, part)| in_order(view, &batch.rows(part)))
                .collect();
            let queries = queries.slice_axis(Axis(0), range.clone().into());
            let out = out.slice_axis_mut(Axis(0), range.into());
            workspace.attend_into(queries, &sequences, options, out)?;
        }
        Ok(())
    }

    /// Says which tokens are new, so that others can find them.
    pub(crate) fn record(&mut self, part: usize, tokens: &[u32]) -> Result<(), Error> {
        if let Self::Paged { step, batch } = self {
            step.record(batch[part].0, tokens)?;
        }
        Ok(())
    }

    /// Keeps of a part's new tokens those at the indices `path`.
    pub(crate) fn accept(&mut self, part: usize, path: &[usize]) -> Result<(), Error> {
        match self {
            Self::Paged { step, batch } => step.accept(batch[part].0, path)?,
            Self::Rings(steps) => steps[part].accept(path)?,
        }
        Ok(())
    }

    pub(crate) fn commit(self) -> Result<(), Error> {
        match self {
            Self::Paged { step, .. } => step.commit()?,
            Self::Rings(steps) => {
                for step in steps {
                    step.commit()?;
                }
            }
        }
        Ok(())
    }
}

/// What rows attend to in their order.
fn in_order<'a, S: KvSource>(source: &'a S, rows: &Rows<'a>) -> Sequence<'a, S> {
    Sequence { source, n_rows: rows.n, mask: rows.parents.map_or(Mask::Causal, Mask::Tree) }
}

/// Rings and the rows that attend to them.
struct RingRows<'a, E> {
    views: ArrayVec<RingView<'a, E>, MOST_AT_ONCE>,
    rows: ArrayVec<Rows<'a>, MOST_AT_ONCE>,
}

/// Of each part what its rows see, if that is not simply all.
type Masks = ArrayVec<Option<BitMask>, MOST_AT_ONCE>;

impl<'a, E: KvElement> RingRows<'a, E> {
    fn attend(
        &self,
        queries: ArrayView3<'_, f32>,
        options: &Options<'_>,
        workspace: &mut Workspace,
        out: ArrayViewMut3<'_, f32>,
    ) -> Result<(), Error> {
        // With sinks, what several rows see is no window.
        let masks;
        let sequences = if options.window.is_some() {
            self.views.iter().zip(&self.rows).map(|(view, rows)| in_order(view, rows)).collect()
        } else {
            masks = self.masks(|_| true);
            self.masked(&self.views, &masks)
        };
        workspace.attend_into(queries, &sequences, options, out)?;
        Ok(())
    }

    /// The same, where sinks are met at positions in the cache, by the queries of `buffers`.
    fn attend_to_sinks(
        &self,
        queries: ArrayView3<'_, f32>,
        options: &Options<'_>,
        workspace: &mut Workspace,
        sinks: CacheRelative,
        buffers: &mut SinkBuffers,
        mut out: ArrayViewMut3<'_, f32>,
    ) -> Result<(), Error> {
        let SinkRows { queries: of_sinks, mut attended, lse: [mut sink_lse, mut lse] } =
            buffers.rows([queries.dim().1, queries.dim().2]);
        // One row sees whole parts of its view, and needs no mask, which would be allocated.
        let parts = |which: usize| -> ArrayVec<RingView<'a, E>, MOST_AT_ONCE> {
            let whole_or_part = |(view, rows): (&RingView<'a, E>, &Rows<'a>)| {
                if rows.n == 1 { view.split_sinks()[which] } else { *view }
            };
            self.views.iter().zip(&self.rows).map(whole_or_part).collect()
        };
        let (views, masks) = (parts(0), self.masks(|position| position < sinks.n_sinks));
        let sequences = self.masked(&views, &masks);
        let (out_of_sinks, lse_of_sinks) = (attended.view_mut(), sink_lse.view_mut());
        workspace.attend_with_lse_into(
            of_sinks,
            &sequences,
            options,
            out_of_sinks,
            lse_of_sinks,
        )?;
        let (views, masks) = (parts(1), self.masks(|position| position >= sinks.n_sinks));
        let sequences = self.masked(&views, &masks);
        workspace.attend_with_lse_into(
            queries,
            &sequences,
            options,
            out.view_mut(),
            lse.view_mut(),
        )?;
        merge_in_place(out, lse, attended.view(), sink_lse.view())?;
        Ok(())
    }

    /// Masks of parts with several rows: of the tokens that a row sees those at positions that are wanted.
    fn masks(&self, is_wanted: impl Fn(usize) -> bool) -> Masks {
        let mask = |(view, rows): (&RingView<'_, E>, &Rows<'_>)| {
            (rows.n > 1).then(|| {
                BitMask::from_fn(rows.n, view.len(), |row, token| {
                    is_wanted(position_of(view, rows, token)) && sees(view, rows, row, token)
                })
            })
        };
        self.views.iter().zip(&self.rows).map(mask).collect()
    }

    /// What rows attend to by masks, and single rows wholly.
    fn masked<'s>(
        &'s self,
        views: &'s [RingView<'s, E>],
        masks: &'s Masks,
    ) -> ArrayVec<Sequence<'s, RingView<'s, E>>, MOST_AT_ONCE> {
        let with_rows = views.iter().zip(&self.rows).zip(masks);
        let sequence = |((source, rows), mask): ((_, &Rows<'_>), &'s Option<BitMask>)| {
            let mask = mask.as_ref().map_or(Mask::Full, Mask::Custom);
            Sequence { source, n_rows: rows.n, mask }
        };
        with_rows.map(sequence).collect()
    }
}

/// Whether a row sees a token of a ring with sinks: old tokens by their distance, new ones if they are ancestors, too.
fn sees<E: KvElement>(view: &RingView<'_, E>, rows: &Rows<'_>, row: usize, token: usize) -> bool {
    let Some(parents) = rows.parents else { return view.sees(row, token) };
    let (n_old, depth) = (view.len() - rows.n, rows.depths[row]);
    if token < n_old {
        return view.sees(depth, token);
    }
    let mut at = Some(row);
    while let Some(node) = at {
        if node == token - n_old {
            return view.sees(depth, n_old + rows.depths[node]);
        }
        at = parents[node].map(|parent| parent as usize);
    }
    false
}
