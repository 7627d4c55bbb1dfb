//! `routing`: profiles and their plugins. What they accept is known to the crate that has them, which
//! is also what the gateway runs.

use std::path::Path;

use scorers::spec::{MODULE, PluginSpec, ProfileSpec, RoutingSpec, SpecError};

use super::check::{filled, within};
use super::error::Refused;
use super::raw::{RawPlugin, RawProfile, RawRouting, default_scorers};
use super::{
    BUFFER_LIMIT_BYTES, MAX_MODULE_PLACES, PluginModule, Routing, address, approximate, features,
};

pub(super) fn routing(raw: RawRouting, base: &Path) -> Result<Routing, Refused> {
    let most = MAX_MODULE_PLACES as i64;
    let module_places: usize = within("routing.modulePlaces", raw.module_places, 0, most)?;
    let mut modules = Modules { base, places: module_places, all: Vec::new() };
    let mut spec = match raw.profiles {
        Some(profiles) => {
            let beside = [
                ("scorers", raw.scorers.is_some()),
                ("filters", raw.filters.is_some()),
                ("picker", raw.picker.is_some()),
            ];
            if let Some((key, _)) = beside.into_iter().find(|(_, is_given)| *is_given) {
                let expected = "nothing beside routing.profiles: it belongs to one of them";
                return Err(Refused {
                    key: format!("routing.{key}"),
                    value: "a value".into(),
                    expected: expected.into(),
                });
            }
            let profiles: Result<_, _> = profiles
                .into_iter()
                .enumerate()
                .map(|(i, profile)| modules.profile(&format!("routing.profiles[{i}]."), profile))
                .collect();
            RoutingSpec { profiles: profiles?, ..RoutingSpec::default() }
        }
        None => {
            let profile = RawProfile {
                name: String::new(),
                filters: raw.filters,
                scorers: Some(raw.scorers.unwrap_or_else(default_scorers)),
                picker: raw.picker,
            };
            let ProfileSpec { filters, scorers, picker, .. } =
                modules.profile("routing.", profile)?;
            RoutingSpec::short(filters, scorers, picker)
        }
    };
    let handler =
        raw.profile_handler.map(|handler| modules.plugin("routing.profileHandler", handler));
    spec.profile_handler = handler.transpose()?;
    let retries: u32 = within("routing.retries", raw.retries, 0, 10)?;
    let mut needs = spec.build(retries as usize + 1).map_err(refused)?.needs;
    features::add(raw.features, &mut needs)?;
    Ok(Routing {
        spec,
        needs,
        modules: modules.all,
        module_places,
        max_state_age_ms: within("routing.maxStateAgeMs", raw.max_state_age_ms, 100, 3_600_000)?,
        max_body_bytes: within(
            "routing.maxBodyBytes",
            raw.max_body_bytes,
            1,
            BUFFER_LIMIT_BYTES as i64 - 1,
        )?,
        retries,
        has_served_header: raw.served_header,
        approximate_prefix: approximate::check(raw.approximate_prefix)?,
        refuses: raw.refuse,
        is_conformance: raw.conformance,
    })
}

fn refused(error: SpecError) -> Refused {
    let SpecError { key, plugin, value, accepted } = error;
    let of = plugin.map(|plugin| format!(" of {plugin}")).unwrap_or_default();
    Refused { key: format!("routing.{key}{of}"), value, expected: accepted }
}

/// The modules met so far, each once.
struct Modules<'a> {
    base: &'a Path,
    places: usize,
    all: Vec<PluginModule>,
}

impl Modules<'_> {
    fn profile(&mut self, path: &str, raw: RawProfile) -> Result<ProfileSpec, Refused> {
        let mut list = |key: &str, raw: Option<Vec<RawPlugin>>, has_weight: bool| {
            let plugins = raw.unwrap_or_default().into_iter().enumerate();
            plugins
                .map(|(i, plugin)| {
                    let mut spec = self.plugin(&format!("{path}{key}[{i}]"), plugin)?;
                    if has_weight {
                        spec.weight.get_or_insert(1.0);
                    }
                    Ok(spec)
                })
                .collect::<Result<Vec<_>, Refused>>()
        };
        let filters = list("filters", raw.filters, false)?;
        let scorers = list("scorers", raw.scorers, true)?;
        let picker = raw.picker.map(|picker| self.plugin(&format!("{path}picker"), picker));
        Ok(ProfileSpec { name: raw.name, filters, scorers, picker: picker.transpose()? })
    }

    fn plugin(&mut self, path: &str, raw: RawPlugin) -> Result<PluginSpec, Refused> {
        let spec = PluginSpec {
            r#type: raw.kind,
            name: raw.name,
            weight: raw.weight,
            parameters: raw.parameters.clone().unwrap_or_default(),
            shadow: raw.shadow,
        };
        if spec.r#type != MODULE {
            return match raw.module {
                None => Ok(spec),
                Some(_) => Err(Refused {
                    key: format!("{path}.module"),
                    value: "a value".into(),
                    expected: format!("none, as only plugins of type {MODULE} have it"),
                }),
            };
        }
        self.module(path, &spec, raw.module, raw.parameters)?;
        // Its parameters are the module's own, not the picker's.
        Ok(PluginSpec { parameters: serde_json::Map::new(), ..spec })
    }

    fn module(
        &mut self,
        path: &str,
        spec: &PluginSpec,
        file: Option<String>,
        parameters: Option<serde_json::Map<String, serde_json::Value>>,
    ) -> Result<(), Refused> {
        let needed = |field: &str, text: Option<String>| {
            text.filter(|text| !text.is_empty()).ok_or_else(|| Refused {
                key: format!("{path}.{field}"),
                value: "nothing".into(),
                expected: format!("a value, as every plugin of type {MODULE} has one"),
            })
        };
        let name = needed("name", spec.name.clone())?;
        let known = self.all.iter().find(|module| module.name == name);
        // Named before, with all it needs.
        if known.is_some() && file.is_none() && parameters.is_none() {
            return Ok(());
        }
        let file = filled(&format!("{path}.module"), needed("module", file)?)?;
        let file = address::resolve(self.base, &file);
        let module = PluginModule { name, file, parameters: parameters.unwrap_or_default() };
        match known {
            Some(known) if *known == module => Ok(()),
            Some(known) => {
                let expected = format!(
                    "file and parameters that {} has where it was named before",
                    known.name
                );
                Err(Refused::new(format!("{path}.name"), module.name, expected))
            }
            None if self.all.len() == self.places => {
                let expected = "no more modules than routing.modulePlaces";
                Err(Refused { key: path.into(), value: MODULE.into(), expected: expected.into() })
            }
            None => {
                self.all.push(module);
                Ok(())
            }
        }
    }
}
