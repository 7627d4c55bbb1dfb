//! What is installed in a gateway, or is to be: pure, from the texts of its files.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use scorers::spec::MODULE;

use crate::render::{Resource, place_number};

/// The filters that decide, by name: intake, the places, picker.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Installed(pub(super) BTreeMap<String, Resource>);

/// A scorer or filter of the picker's configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scorer {
    /// `module`, or the type of a built-in one.
    pub(super) kind: String,
    /// Its type, or its module's name.
    pub(super) name: String,
    /// `None` of a filter.
    pub(super) weight: Option<f64>,
    pub(super) is_shadow: bool,
    pub(super) place: Option<Place>,
}

/// Where a module stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) number: usize,
    /// Of the filter; its statistics go by it.
    pub(super) filter: String,
    /// Name of the module's file.
    pub(super) file: String,
    /// `None` when the configuration has none.
    pub(super) revision: Option<u32>,
}

impl Installed {
    /// Keeps what decides of the filters of a folder.
    pub(super) fn of(filters: BTreeMap<String, Resource>) -> Self {
        let decides =
            |name: &str| matches!(name, "intake" | "picker") || place_number(name).is_some();
        Self(filters.into_iter().filter(|(name, _)| decides(name)).collect())
    }

    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// The hash by which a worker tells its picker's configuration.
    pub(super) fn picker_hash(&self) -> Option<String> {
        let loaded = self.0.get("picker")?.loaded.as_ref()?;
        Some(format!("{:016x}", fnv1a(loaded.configuration.as_bytes())))
    }

    /// File name of the router's module.
    pub(super) fn router(&self) -> Option<String> {
        self.0.get("picker").and_then(file_name)
    }

    /// The pools that intake knows.
    pub(super) fn pools(&self) -> Value {
        self.0.get("intake").map_or(Value::Null, |intake| intake.configuration()["pools"].clone())
    }

    /// What the picker's configuration lists, in its order; what is in several profiles, once.
    pub(super) fn scorers(&self) -> Vec<Scorer> {
        let list = self.0.get("picker").map(Resource::configuration).unwrap_or_default();
        let places = self.places();
        let scorer = |value: &Value| {
            let kind = value["type"].as_str()?.to_owned();
            let is_module = kind == MODULE;
            let name = value["name"].as_str().unwrap_or(&kind).to_owned();
            Some(Scorer {
                weight: value["weight"].as_f64(),
                is_shadow: value["shadow"].as_bool().unwrap_or(false),
                place: places.get(&name).filter(|_| is_module).cloned(),
                kind,
                name,
            })
        };
        let profiles =
            list["profiles"].as_array().map_or(std::slice::from_ref(&list), Vec::as_slice);
        let plugins = profiles.iter().flat_map(|profile| {
            let of = |kind: &str| profile[kind].as_array().map_or(&[][..], Vec::as_slice);
            of("scorers").iter().chain(of("filters"))
        });
        let mut named = BTreeSet::new();
        let all = plugins.filter_map(scorer);
        all.filter(|scorer| named.insert((scorer.kind.clone(), scorer.name.clone()))).collect()
    }

    /// The places that are not empty, by name of the module.
    fn places(&self) -> BTreeMap<String, Place> {
        let place = |(filter, resource): (&String, &Resource)| {
            let configuration = resource.configuration();
            let revision = configuration["revision"].as_u64();
            let place = Place {
                number: place_number(filter)?,
                filter: filter.clone(),
                file: file_name(resource)?,
                revision: revision.and_then(|revision| revision.try_into().ok()),
            };
            Some((configuration["name"].as_str()?.to_owned(), place))
        };
        self.0.iter().filter_map(place).collect()
    }
}

fn file_name(resource: &Resource) -> Option<String> {
    let file = &resource.loaded.as_ref()?.file;
    Some(file.file_name()?.to_string_lossy().into_owned())
}

/// The filters that change from one to the other, in the order in which they must: what is to score
/// stands in its place before the picker counts on it, and leaves it only when the picker no longer
/// does. `stale` are filters whose file is not what the gateway runs.
pub(super) fn steps(from: &Installed, to: &Installed, stale: &BTreeSet<String>) -> Vec<String> {
    let changes = |(name, resource): &(&String, &Resource)| {
        stale.contains(*name) || from.0.get(*name) != Some(*resource)
    };
    let mut changed: Vec<(u8, &String)> =
        to.0.iter()
            .filter(changes)
            .map(|(name, resource)| match (name.as_str(), &resource.loaded) {
                ("intake", _) => (1, name),
                ("picker", _) => (2, name),
                (_, Some(_)) => (0, name),
                (_, None) => (3, name),
            })
            .collect();
    changed.sort();
    changed.into_iter().map(|(_, name)| name.clone()).collect()
}

/// FNV-1a 64, as the router hashes its configuration.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Loaded;

    fn resource(configuration: &str) -> Resource {
        let loaded = (!configuration.is_empty()).then(|| Loaded {
            file: format!("/m/{}.wasm", configuration.len()).into(),
            configuration: configuration.to_owned(),
        });
        Resource { text: configuration.to_owned(), version: "v".into(), loaded }
    }

    fn installed(resources: &[(&str, &str)]) -> Installed {
        let named = |(name, text): &(&str, &str)| ((*name).to_owned(), resource(text));
        Installed::of(resources.iter().map(named).collect())
    }

    #[test]
    fn a_module_comes_before_the_picker_and_goes_after_it() {
        let check = |from: &[(&str, &str)], to: &[(&str, &str)], expected: &[&str]| {
            let steps = steps(&installed(from), &installed(to), &BTreeSet::new());
            assert_eq!(steps, expected);
        };
        let with = [("intake", "{}"), ("picker", "1"), ("scorer-0", "a"), ("scorer-1", "")];
        let other = [("intake", "{ }"), ("picker", "2"), ("scorer-0", ""), ("scorer-1", "b")];
        check(&with, &with, &[]);
        check(&with, &other, &["scorer-1", "intake", "picker", "scorer-0"]);
        check(&other, &with, &["scorer-0", "intake", "picker", "scorer-1"]);
        let stale = BTreeSet::from(["picker".to_owned()]);
        assert_eq!(steps(&installed(&with), &installed(&with), &stale), ["picker"]);
    }

    #[test]
    fn scorers_are_the_pickers_with_the_places_of_the_modules() {
        let picker = r#"{"destinations":1,"scorers":[{"type":"queue","weight":2},
            {"type":"module","name":"mine","weight":0.5,"shadow":true},
            {"type":"module","name":"gone","weight":1,"shadow":false}]}"#;
        let mine = r#"{"name":"mine","parameters":{},"revision":7}"#;
        let set = installed(&[("picker", picker), ("scorer-3", mine), ("feeder", "{}")]);
        assert_eq!(set.names(), BTreeSet::from(["picker", "scorer-3"]));
        let scorers = set.scorers();
        let seen = |s: &Scorer| (s.name.clone(), s.weight, s.is_shadow, s.place.clone());
        let place = Place {
            number: 3,
            filter: "scorer-3".into(),
            file: format!("{}.wasm", mine.len()),
            revision: Some(7),
        };
        assert_eq!(
            scorers.iter().map(seen).collect::<Vec<_>>(),
            [
                ("queue".to_owned(), Some(2.0), false, None),
                ("mine".to_owned(), Some(0.5), true, Some(place)),
                ("gone".to_owned(), Some(1.0), false, None),
            ]
        );
        // In profiles, where it may be named again and be a filter.
        let picker = r#"{"destinations":1,"profiles":[
            {"name":"a","scorers":[{"type":"module","name":"mine","weight":3}]},
            {"name":"b","filters":[{"type":"module","name":"keeps"}],
             "scorers":[{"type":"module","name":"mine","weight":2},{"type":"queue","weight":1}]}]}"#;
        let scorers = installed(&[("picker", picker)]).scorers();
        let seen: Vec<_> = scorers.iter().map(|s| (s.name.as_str(), s.weight)).collect();
        assert_eq!(seen, [("mine", Some(3.0)), ("queue", Some(1.0)), ("keeps", None)]);
    }

    #[test]
    fn a_picker_is_known_by_the_hash_that_its_workers_tell() {
        // From the FNV reference's test suite (Noll).
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        let hash = installed(&[("picker", "foobar")]).picker_hash();
        assert_eq!(hash.as_deref(), Some("85944171f73967e8"));
    }
}
