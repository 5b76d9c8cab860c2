//! What `cargo metadata` says about the members of the workspace.

use serde::Deserialize;

use crate::{
    failure::{Failure, Outcome},
    process::{capture, cargo},
};

/// Packages and which of them are members.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Metadata {
    /// All packages.
    pub(crate) packages: Vec<Package>,
    /// Ids of the members.
    pub(crate) workspace_members: Vec<String>,
}

/// One package.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// `None`: to any registry; empty: not at all.
    pub(crate) publish: Option<Vec<String>>,
    /// What it asks for.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One dependency as declared.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Dependency {
    /// The package.
    pub(crate) name: String,
    /// `None` for normal ones, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Asks cargo.
    ///
    /// # Errors
    ///
    /// If cargo fails or answers in an unknown form.
    pub(crate) fn load() -> Outcome<Self> {
        let text = capture(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::new(format!("cargo metadata: {error}")))
    }

    /// The members of the workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}

impl Package {
    /// Names of its dependencies, optional ones too, those of tests aside.
    pub(crate) fn depends_on(&self) -> impl Iterator<Item = &str> {
        self.dependencies
            .iter()
            .filter(|d| d.kind.as_deref() != Some("dev"))
            .map(|d| d.name.as_str())
    }

    /// Whether it goes to a registry.
    #[must_use]
    pub(crate) fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn dependency(name: &str, kind: Option<&str>) -> Dependency {
        Dependency { name: name.to_owned(), kind: kind.map(ToOwned::to_owned) }
    }

    pub(crate) fn package(name: &str, dependencies: Vec<Dependency>) -> Package {
        Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            publish: None,
            dependencies,
        }
    }

    pub(crate) fn metadata(packages: Vec<Package>) -> Metadata {
        Metadata {
            workspace_members: packages.iter().map(|package| package.id.clone()).collect(),
            packages,
        }
    }

    #[test]
    fn cargo_s_form_is_understood() {
        let text = r#"{"packages":[{"id":"a 1","name":"a","version":"1.0.0","publish":[],"manifest_path":"/w/a/Cargo.toml",
            "dependencies":[{"name":"b","kind":null,"optional":true},{"name":"c","kind":"dev"}],"license":"MIT"},
            {"id":"b 1","name":"b","version":"1.0.0","publish":null,"manifest_path":"/r/b/Cargo.toml","dependencies":[]}],
            "workspace_members":["a 1"],"version":1}"#;
        let metadata: Metadata = serde_json::from_str(text).unwrap();
        let members: Vec<_> = metadata.members().collect();
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].depends_on().collect::<Vec<_>>(), ["b"]);
        assert!(!members[0].is_published() && metadata.packages[1].is_published());
    }
}
