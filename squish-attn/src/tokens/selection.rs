//! What a method says about tokens before any of them is moved: [`Selection`], [`Assignment`], [`Mixture`].

use crate::{AttnError, Result};

/// Tokens that remain, in their original order.
///
/// Their position ids are their indices: a model that goes on with fewer tokens has those of the tokens that it had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub(super) n_tokens: usize,
    pub(super) indices: Vec<u32>,
}

impl Selection {
    /// Their indices, ascending.
    #[must_use]
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Tokens that remain.
    #[must_use]
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether none remains.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Tokens that there were.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

/// Groups of tokens that become one token each. Every token is in one group, and no group is empty.
///
/// A group has a *target*, the member whose place it takes: the token that others were merged into, the center or the medoid of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    groups: Vec<u32>,
    targets: Vec<u32>,
    counts: Vec<u32>,
}

impl Assignment {
    /// The groups of tokens, `[n_tokens]`, and the target of each group, `[n_groups]`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Position`] of a token whose group, or a target that, as a token, does not exist; [`AttnError::Value`] of a target that
    /// is in another group, and of more than 2^32 tokens.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::Assignment;
    ///
    /// let assignment = Assignment::new(&[0, 1, 0], &[2, 1])?;
    /// assert_eq!(assignment.counts(), [2, 1]);
    /// assert!(Assignment::new(&[0, 0], &[0, 1]).is_err());
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn new(groups: &[u32], targets: &[u32]) -> Result<Self> {
        check_count(groups.len())?;
        let outside = |what, of: &[u32], len: usize| {
            let index = of.iter().position(|&i| i as usize >= len);
            index.map_or(Ok(()), |index| {
                Err(AttnError::Position { what, index, position: of[index] as usize, len })
            })
        };
        outside("groups", groups, targets.len())?;
        outside("targets", targets, groups.len())?;
        for (group, &target) in targets.iter().enumerate() {
            let holds = groups[target as usize] as usize == group;
            AttnError::check_value("target", f64::from(target), holds, "a member of its group")?;
        }
        let mut out = Self::default();
        out.begin(groups.len());
        out.groups.copy_from_slice(groups);
        out.targets.extend_from_slice(targets);
        out.finish();
        Ok(out)
    }

    /// The group of each token.
    #[must_use]
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// The target of each group, an index of a token.
    #[must_use]
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// Tokens of each group, at least one.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Tokens that there were.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.groups.len()
    }

    /// Tokens that there will be.
    #[must_use]
    pub fn n_groups(&self) -> usize {
        self.targets.len()
    }

    /// The targets as a selection, in the order of the tokens: of clusters, their medoids or centers.
    pub fn targets_into(&self, out: &mut Selection) {
        out.n_tokens = self.n_tokens();
        out.indices.clear();
        out.indices.extend_from_slice(&self.targets);
        out.indices.sort_unstable();
    }

    /// Tokens of group 0, and no group.
    pub(super) fn begin(&mut self, n_tokens: usize) {
        self.groups.clear();
        self.groups.resize(n_tokens, 0);
        self.targets.clear();
    }

    /// Adds a group with its target, and returns which it is.
    pub(super) fn add_group(&mut self, target: u32) -> u32 {
        let group = self.targets.len() as u32;
        self.targets.push(target);
        self.groups[target as usize] = group;
        group
    }

    pub(super) fn assign(&mut self, token: u32, group: u32) {
        self.groups[token as usize] = group;
    }

    /// Counts the tokens of groups, once all are assigned.
    pub(super) fn finish(&mut self) {
        self.counts.clear();
        self.counts.resize(self.targets.len(), 0);
        for &group in &self.groups {
            self.counts[group as usize] += 1;
        }
    }

    /// Each token on its own.
    pub(super) fn leave_all(&mut self, n_tokens: usize) {
        self.begin(n_tokens);
        for token in 0..n_tokens as u32 {
            self.add_group(token);
        }
        self.finish();
    }
}

/// New tokens as weighted sums of the old ones; a token may be in many sums, or in none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mixture {
    n_tokens: usize,
    ends: Vec<usize>,
    terms: Vec<(u32, f32)>,
}

impl Mixture {
    /// New tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no new token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Old tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The terms of new token `i`: old tokens and their weights, in the order in which they are added.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    #[must_use]
    pub fn terms(&self, i: usize) -> &[(u32, f32)] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.terms[start..self.ends[i]]
    }

    pub(super) fn begin(&mut self, n_tokens: usize) {
        self.n_tokens = n_tokens;
        self.ends.clear();
        self.terms.clear();
    }

    pub(super) fn add_term(&mut self, token: u32, weight: f32) {
        self.terms.push((token, weight));
    }

    /// Ends the new token whose terms were added.
    pub(super) fn end_token(&mut self) {
        self.ends.push(self.terms.len());
    }
}

/// `Ok` if tokens have indices.
pub(super) fn check_count(n_tokens: usize) -> Result<()> {
    let holds = u32::try_from(n_tokens).is_ok();
    AttnError::check_value("n_tokens", n_tokens as f64, holds, "less than 2^32")
}
