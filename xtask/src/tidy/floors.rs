//! Floors: a crate depends on crates of lower floors only, and those of one floor do not know each other.

use super::{
    metadata::Metadata,
    table::{self, Member},
};

/// What breaks the rule.
#[must_use]
pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let mut faults = Vec::new();
    for package in metadata.members() {
        let Some(member) = table::find(&package.name) else {
            faults.push(format!("{}: no floor; list it in xtask/src/tidy/table.rs", package.name));
            continue;
        };
        if member.floor.is_none() && package.is_published() {
            faults.push(format!("{}: has no floor, so it says `publish = false`", package.name));
        }
        let below = |other: &Member| match (member.floor, other.floor) {
            (None, _) => true,
            (Some(floor), Some(other)) => other < floor,
            (Some(_), None) => false,
        };
        let wrong = package.depends_on().filter_map(table::find).filter(|other| !below(other));
        faults.extend(wrong.map(|other| {
            let floor = |member: &Member| {
                member.floor.map_or("no floor".to_owned(), |floor| format!("floor {floor}"))
            };
            format!(
                "{} ({}) depends on {} ({})",
                member.name,
                floor(member),
                other.name,
                floor(other)
            )
        }));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::metadata::tests::{dependency, metadata, package};

    #[test]
    fn an_arrow_up_or_sideways_or_to_an_unpublished_crate_is_a_fault_unless_it_is_for_tests() {
        let good = metadata(vec![
            package(
                "squish-quant",
                vec![dependency("squish-kernels", None), dependency("squish-bench", Some("dev"))],
            ),
            package(
                "squish-kernels",
                vec![dependency("squish-quant", Some("dev")), dependency("half", None)],
            ),
        ]);
        assert!(check(&good).is_empty(), "{:?}", check(&good));

        for (name, on, fault) in [
            (
                "squish-kernels",
                "squish-quant",
                "squish-kernels (floor 0) depends on squish-quant (floor 1)",
            ),
            (
                "squish-kernels",
                "squish-checkpoint",
                "squish-kernels (floor 0) depends on squish-checkpoint (floor 0)",
            ),
            (
                "squish-model",
                "squish-bench",
                "squish-model (floor 3) depends on squish-bench (no floor)",
            ),
        ] {
            assert_eq!(check(&metadata(vec![package(name, vec![dependency(on, None)])])), [fault]);
            assert_eq!(
                check(&metadata(vec![package(name, vec![dependency(on, Some("build"))])])),
                [fault]
            );
        }
    }

    #[test]
    fn a_crate_that_the_table_does_not_know_is_a_fault() {
        assert!(
            check(&metadata(vec![package("squish-extra", vec![])]))[0]
                .starts_with("squish-extra: no floor")
        );
    }

    #[test]
    fn what_has_no_floor_is_not_published() {
        assert_eq!(
            check(&metadata(vec![package("xtask", vec![])])),
            ["xtask: has no floor, so it says `publish = false`"]
        );
    }
}
