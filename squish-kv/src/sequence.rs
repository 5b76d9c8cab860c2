//! Sequences by id: what each holds, and places that are used again.
//!
//! An id is a place and the place's generation. Freeing a sequence starts a new generation, so an id that was kept too long is
//! told from the sequence that has its place now. A place whose generations are used up is left empty.

use std::fmt;

use crate::{
    block::BlockId,
    error::{Error, Result},
    hash::{BlockHash, PrefixKey},
};

/// Names a sequence of one [`BlockTables`](crate::BlockTables).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    place: u32,
    generation: u32,
}

/// `place.generation`
impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.place, self.generation)
    }
}

impl fmt::Debug for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SequenceId({self})")
    }
}

/// Marks a sequence that is in no step.
pub(crate) const NO_ENTRY: u32 = u32::MAX;

/// One sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Its blocks in the order of their tokens, and in a step the new ones behind them.
    pub(crate) table: Vec<BlockId>,
    /// Committed tokens.
    pub(crate) len: u32,
    /// Slots of the blocks that hold committed tokens, less those tokens: the rest of the last block.
    pub(crate) room: u32,
    /// Whether the last block, if it has room, is known to be seen by nobody else. Only a fork can change that.
    pub(crate) owns_last: bool,
    /// Leading blocks that were given back.
    pub(crate) n_null: u32,
    /// Positions before the next one that it still reads; `u32::MAX` without a window.
    pub(crate) reach: u32,
    /// Its entry in the open step.
    pub(crate) entry: u32,
    /// What its blocks can be found by, if anything.
    pub(crate) key: Option<PrefixKey>,
    /// Leading tokens whose ids are known. Blocks that hold nothing else are indexed.
    pub(crate) n_known: u32,
    /// The hash of the last block full of known tokens, or the root of the key.
    pub(crate) chain: BlockHash,
}

impl Sequence {
    fn empty() -> Self {
        Self {
            table: Vec::new(),
            len: 0,
            room: 0,
            owns_last: false,
            n_null: 0,
            reach: u32::MAX,
            entry: NO_ENTRY,
            key: None,
            n_known: 0,
            chain: BlockHash([0; 32]),
        }
    }
}

/// All sequences.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequences {
    places: Vec<Place>,
    vacant: Vec<u32>,
    n_live: usize,
}

#[derive(Clone, Debug)]
struct Place {
    generation: u32,
    is_live: bool,
    sequence: Sequence,
}

impl Sequences {
    pub(crate) fn n_live(&self) -> usize {
        self.n_live
    }

    /// Makes room for `n` sequences with tables of `n_blocks` each.
    pub(crate) fn reserve(&mut self, n: usize, n_blocks: usize) {
        let n_more = n.saturating_sub(self.places.len());
        self.places.reserve(n_more);
        self.vacant.reserve(n.saturating_sub(self.vacant.len()));
        for place in &mut self.places {
            place.sequence.table.reserve(n_blocks.saturating_sub(place.sequence.table.len()));
        }
        let first = self.places.len() as u32;
        for _ in 0..n_more {
            let mut sequence = Sequence::empty();
            sequence.table.reserve(n_blocks);
            self.places.push(Place { generation: 0, is_live: false, sequence });
        }
        // The last is taken first: the places in ascending order, as without reservation.
        self.vacant.splice(..0, (first..self.places.len() as u32).rev());
    }

    /// A new sequence without tokens, with the memory of one that was freed if there is any.
    pub(crate) fn create(&mut self) -> Result<SequenceId> {
        let place = self.vacant.pop().unwrap_or(self.places.len() as u32);
        // One place less than 32 bits count: entries of steps are numbered likewise, and one number marks none.
        if place == NO_ENTRY {
            return Err(Error::TooManySequences { max: NO_ENTRY as usize });
        }
        if place as usize == self.places.len() {
            self.places.push(Place { generation: 0, is_live: false, sequence: Sequence::empty() });
        }
        self.n_live += 1;
        let at = &mut self.places[place as usize];
        at.is_live = true;
        Ok(SequenceId { place, generation: at.generation })
    }

    /// Ends the sequence at `place`, whose table must be empty, and keeps its memory.
    pub(crate) fn vacate(&mut self, place: usize) {
        self.n_live -= 1;
        let at = &mut self.places[place];
        at.is_live = false;
        let table = std::mem::take(&mut at.sequence.table);
        debug_assert!(table.is_empty(), "blocks of place {place} are lost");
        at.sequence = Sequence { table, ..Sequence::empty() };
        if let Some(next) = at.generation.checked_add(1) {
            at.generation = next;
            self.vacant.push(place as u32);
        }
    }

    /// The place of a live sequence.
    #[inline]
    pub(crate) fn find(&self, id: SequenceId) -> Result<usize> {
        let Some(place) = self.places.get(id.place as usize) else {
            return Err(Error::UnknownSequence { id });
        };
        if place.generation == id.generation && place.is_live {
            return Ok(id.place as usize);
        }
        // The last generation of a place does not end with the next one's start.
        let was_given_out = id.generation < place.generation || id.generation == u32::MAX;
        Err(if was_given_out { Error::StaleSequence { id } } else { Error::UnknownSequence { id } })
    }

    pub(crate) fn get(&self, id: SequenceId) -> Result<&Sequence> {
        Ok(self.at(self.find(id)?))
    }

    #[inline]
    pub(crate) fn at(&self, place: usize) -> &Sequence {
        &self.places[place].sequence
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, place: usize) -> &mut Sequence {
        &mut self.places[place].sequence
    }

    /// Two sequences at different places.
    pub(crate) fn pair_mut(&mut self, first: usize, second: usize) -> [&mut Sequence; 2] {
        let [first, second] = self
            .places
            .get_disjoint_mut([first, second])
            .expect("a new sequence has a place of its own");
        [&mut first.sequence, &mut second.sequence]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_whose_generations_are_used_up_is_left_empty() {
        let mut sequences = Sequences::default();
        let first = sequences.create().unwrap();
        sequences.places[0].generation = u32::MAX;
        let last = SequenceId { generation: u32::MAX, ..first };
        assert_eq!(sequences.find(last), Ok(0));
        assert_eq!(sequences.find(first), Err(Error::StaleSequence { id: first }));
        sequences.vacate(0);
        assert_eq!(sequences.find(last), Err(Error::StaleSequence { id: last }));
        assert_eq!(sequences.create().unwrap(), SequenceId { place: 1, generation: 0 });
    }
}
