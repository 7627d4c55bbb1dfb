//! The endpoints of a discovered pool as an Envoy on this machine is told: a file of its cluster's load
//! assignment, in the folder that `render` wrote for it.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Gateway;
use crate::render;

/// Writes one pool's files.
pub(crate) struct Writer {
    pool: String,
    /// Folders of the gateways that have one here.
    folders: Vec<PathBuf>,
    written: Option<Vec<SocketAddr>>,
}

impl Writer {
    pub(crate) fn new(gateways: &[Gateway], pool: &str) -> Self {
        let folders = gateways.iter().filter_map(|gateway| gateway.resources.clone());
        Self { pool: pool.to_owned(), folders: folders.collect(), written: None }
    }

    /// Writes these endpoints if they are others than before, or if it failed then.
    pub(crate) fn write(&mut self, mut endpoints: Vec<SocketAddr>) {
        endpoints.sort_unstable();
        if self.written.as_ref() == Some(&endpoints) {
            return;
        }
        let mut is_done = true;
        for folder in &self.folders {
            if let Err(error) = render::write_assignment(folder, &self.pool, &endpoints) {
                is_done = false;
                tracing::error!(pool = self.pool, %error, "the gateway is not told of endpoints");
            }
        }
        self.written = is_done.then_some(endpoints);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::FeedAddress;

    #[test]
    fn a_gateway_with_a_folder_is_told_and_told_again_only_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = |resources| Gateway {
            name: "g".into(),
            feed: FeedAddress::Unix("/f".into()),
            admin: None,
            resources,
        };
        let gateways = [gateway(None), gateway(Some(folder.path().to_owned()))];
        let mut writer = Writer::new(&gateways, "pool");
        let file = folder.path().join("eds/pool.json");
        let read =
            || -> Value { serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap() };
        let host = |address: &str, port: u16| {
            let address = json!({"address": address, "port_value": port});
            json!({"endpoint": {"address": {"socket_address": address}}})
        };
        let sockets = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        writer.write(sockets(&["[fd00::1]:80", "10.0.0.2:8000"]));
        let two = read();
        assert_eq!(
            two["resources"],
            json!([{
                "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": "pool",
                "endpoints": [{"lb_endpoints": [host("10.0.0.2", 8000), host("fd00::1", 80)]}],
            }])
        );
        std::fs::remove_file(&file).unwrap();
        writer.write(sockets(&["10.0.0.2:8000", "[fd00::1]:80"]));
        assert!(!file.exists(), "the same in another order");
        writer.write(Vec::new());
        assert_eq!(read()["resources"][0]["endpoints"][0]["lb_endpoints"], json!([]));
        assert_ne!(read()["version_info"], two["version_info"]);
        // What cannot be written is tried again.
        std::fs::remove_dir_all(folder.path()).unwrap();
        std::fs::write(folder.path(), "").unwrap();
        writer.write(sockets(&["10.0.0.2:8000"]));
        std::fs::remove_file(folder.path()).unwrap();
        writer.write(sockets(&["10.0.0.2:8000"]));
        assert_eq!(read(), {
            let mut other = Writer::new(&gateways, "pool");
            other.write(sockets(&["10.0.0.2:8000"]));
            read()
        });
    }
}
