//! A cache of any type of numbers.

use squish_attn::{Options, Workspace};
use squish_kv::{E4M3, E5M2, PrefixKey, bf16, f16};
use squish_quant::ndarray::{ArrayView3, ArrayViewMut3};

use super::{
    CacheRelative, SinkBuffers,
    store::{GroupId, Store, StoreStep},
};
use crate::{Error, batch::Batch};

/// A [`Store`] of one of the types.
pub(crate) enum AnyStore {
    F32(Store<f32>),
    Bf16(Store<bf16>),
    F16(Store<f16>),
    Int8(Store<i8>),
    E4M3(Store<E4M3>),
    E5M2(Store<E5M2>),
}

/// A [`StoreStep`] of one of the types.
pub(crate) enum AnyStep<'a> {
    F32(StoreStep<'a, f32>),
    Bf16(StoreStep<'a, bf16>),
    F16(StoreStep<'a, f16>),
    Int8(StoreStep<'a, i8>),
    E4M3(StoreStep<'a, E4M3>),
    E5M2(StoreStep<'a, E5M2>),
}

/// The same for every type.
macro_rules! each {
    ($any:ident, $self:expr, $of:ident => $body:expr) => {
        match $self {
            $any::F32($of) => $body,
            $any::Bf16($of) => $body,
            $any::F16($of) => $body,
            $any::Int8($of) => $body,
            $any::E4M3($of) => $body,
            $any::E5M2($of) => $body,
        }
    };
}

impl AnyStore {
    pub(crate) fn create(&mut self) -> Result<GroupId, Error> {
        each!(Self, self, store => store.create())
    }

    pub(crate) fn cached_len(&self, key: &PrefixKey, tokens: &[u32]) -> usize {
        each!(Self, self, store => store.cached_len(key, tokens))
    }

    pub(crate) fn create_with_prefix(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
    ) -> Result<(GroupId, usize), Error> {
        each!(Self, self, store => store.create_with_prefix(key, tokens))
    }

    pub(crate) fn fork(&mut self, id: GroupId) -> Result<GroupId, Error> {
        each!(Self, self, store => store.fork(id))
    }

    pub(crate) fn check_truncate(&self, id: GroupId, len: usize) -> Result<(), Error> {
        each!(Self, self, store => store.check_truncate(id, len))
    }

    pub(crate) fn truncate(&mut self, id: GroupId, len: usize) -> Result<(), Error> {
        each!(Self, self, store => store.truncate(id, len))
    }

    pub(crate) fn free(&mut self, id: GroupId) -> Result<(), Error> {
        each!(Self, self, store => store.free(id))
    }

    pub(crate) fn len(&self, id: GroupId) -> Result<usize, Error> {
        each!(Self, self, store => store.len(id))
    }

    pub(crate) fn begin(
        &mut self,
        ids: impl ExactSizeIterator<Item = (GroupId, usize)>,
    ) -> Result<AnyStep<'_>, Error> {
        Ok(match self {
            Self::F32(store) => AnyStep::F32(store.begin(ids)?),
            Self::Bf16(store) => AnyStep::Bf16(store.begin(ids)?),
            Self::F16(store) => AnyStep::F16(store.begin(ids)?),
            Self::Int8(store) => AnyStep::Int8(store.begin(ids)?),
            Self::E4M3(store) => AnyStep::E4M3(store.begin(ids)?),
            Self::E5M2(store) => AnyStep::E5M2(store.begin(ids)?),
        })
    }
}

impl AnyStep<'_> {
    pub(crate) fn write(
        &mut self,
        layer: usize,
        part: usize,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<(), Error> {
        each!(Self, self, step => step.write(layer, part, keys, values))
    }

    pub(crate) fn attend(
        &self,
        layer: usize,
        batch: &Batch<'_>,
        queries: ArrayView3<'_, f32>,
        options: &Options<'_>,
        workspace: &mut Workspace,
        sinks: Option<(CacheRelative, &mut SinkBuffers)>,
        out: ArrayViewMut3<'_, f32>,
    ) -> Result<(), Error> {
        each!(Self, self, step => {
            step.attend(layer, batch, queries, options, workspace, sinks, out)
        })
    }

    pub(crate) fn record(&mut self, part: usize, tokens: &[u32]) -> Result<(), Error> {
        each!(Self, self, step => step.record(part, tokens))
    }

    pub(crate) fn accept(&mut self, part: usize, path: &[usize]) -> Result<(), Error> {
        each!(Self, self, step => step.accept(part, path))
    }

    pub(crate) fn commit(self) -> Result<(), Error> {
        each!(Self, self, step => step.commit())
    }
}
