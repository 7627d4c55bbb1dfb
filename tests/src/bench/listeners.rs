//! Listeners beside the rendered one that differ from it in what a bench compares, and in nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A rendered `envoy.yaml`.
pub(crate) struct Rendered {
    file: PathBuf,
    config: Value,
}

impl Rendered {
    /// Reads it from the folder of rendered files.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let file = folder.join("envoy.yaml");
        Ok(Self { config: read_yaml(&file)?, file })
    }

    /// A copy of the inference listener.
    pub(crate) fn inference(&self, name: &str, address: SocketAddr) -> Result<Listener> {
        let listeners = self.config["static_resources"]["listeners"].as_array();
        let mut listeners = listeners.context("listeners")?.iter();
        let inference = listeners.find(|listener| listener["name"] == "inference");
        let mut listener = inference.context("the inference listener")?.clone();
        listener["name"] = json!(name);
        listener["address"]["socket_address"]["port_value"] = json!(address.port());
        let mut listener = Listener(listener);
        listener.manager()["stat_prefix"] = json!(name);
        Ok(listener)
    }

    pub(crate) fn add_listener(&mut self, listener: Listener) -> Result<()> {
        let listeners = self.config["static_resources"]["listeners"].as_array_mut();
        listeners.context("listeners")?.push(listener.0);
        Ok(())
    }

    pub(crate) fn add_cluster(&mut self, cluster: Value) -> Result<()> {
        let clusters = self.config["static_resources"]["clusters"].as_array_mut();
        clusters.context("clusters")?.push(cluster);
        Ok(())
    }

    /// Writes it in place of what was rendered.
    pub(crate) fn save(self) -> Result<()> {
        // JSON is YAML.
        Ok(std::fs::write(&self.file, self.config.to_string())?)
    }
}

/// A listener with one HTTP connection manager.
pub(crate) struct Listener(Value);

impl Listener {
    fn manager(&mut self) -> &mut Value {
        &mut self.0["filter_chains"][0]["filters"][0]["typed_config"]
    }

    pub(crate) fn filters(&mut self) -> Result<&mut Vec<Value>> {
        self.manager()["http_filters"].as_array_mut().context("filters")
    }

    pub(crate) fn routes(&mut self) -> Result<&mut Vec<Value>> {
        let routes = &mut self.manager()["route_config"]["virtual_hosts"][0]["routes"];
        routes.as_array_mut().context("routes")
    }

    /// Takes all filters out but the router, and has these go before it.
    pub(crate) fn only(mut self, filters: impl IntoIterator<Item = Value>) -> Result<Self> {
        let last = self.filters()?.pop().context("a filter")?;
        *self.filters()? = filters.into_iter().chain([last]).collect();
        for route in self.routes()? {
            route.as_object_mut().context("a route")?.remove("typed_per_filter_config");
        }
        Ok(self)
    }

    /// Has every request go to this cluster.
    pub(crate) fn routed_to(mut self, cluster: &str) -> Result<Self> {
        *self.routes()? =
            vec![json!({"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}})];
        Ok(self)
    }

    /// Takes the meter out, with the routes that only it is on.
    pub(crate) fn without_meter(mut self) -> Result<Self> {
        self.filters()?.retain(|filter| filter["name"] != "meter");
        self.routes()?.retain(|route| route["match"]["runtime_fraction"].is_null());
        Ok(self)
    }

    /// Has the meter on so many of a hundred answers.
    pub(crate) fn metered(mut self, percent: u32) -> Result<Self> {
        for route in self.routes()? {
            if let Some(fraction) = route["match"].get_mut("runtime_fraction") {
                fraction["default_value"] = json!({"numerator": percent, "denominator": "HUNDRED"});
                fraction["runtime_key"] = json!(format!("bench.meter_{percent}"));
            }
        }
        Ok(self)
    }
}

pub(crate) fn read_yaml(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file)?;
    serde_saphyr::from_str(&text).with_context(|| format!("read {}", file.display()))
}
