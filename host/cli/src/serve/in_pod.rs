//! What a pod knows of its API server, for what the configuration leaves out.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use discovery::kubernetes::{EndpointsOf as Of, KubernetesConfig, PodsConfig, Server, Timing};

use crate::config::{EndpointsOf, Kubernetes};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The configuration with what the pod has.
pub(super) fn resolve(config: &Kubernetes) -> anyhow::Result<KubernetesConfig> {
    let key = &config.key;
    let own = |name: &str| -> PathBuf { Path::new(ACCOUNT).join(name) };
    let server = match &config.api_server {
        Some(url) => Server {
            url: url.trim_end_matches('/').to_owned(),
            ca_file: config.ca_file.clone(),
            token_file: config.token_file.clone(),
        },
        None => {
            let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
            let host = variable("KUBERNETES_SERVICE_HOST");
            let (Some(host), Some(port)) = (host, variable("KUBERNETES_SERVICE_PORT")) else {
                bail!(
                    "{key}.apiServer: nothing is not accepted outside a pod: expected https://HOST:PORT"
                );
            };
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            Server {
                url: format!("https://{host}:{port}"),
                ca_file: Some(config.ca_file.clone().unwrap_or_else(|| own("ca.crt"))),
                token_file: Some(config.token_file.clone().unwrap_or_else(|| own("token"))),
            }
        }
    };
    let namespace = match &config.namespace {
        Some(name) => name.clone(),
        None => {
            let file = own("namespace");
            let text = std::fs::read_to_string(&file).with_context(|| {
                format!("{key}.namespace is not there, and {} cannot be read", file.display())
            })?;
            text.trim().to_owned()
        }
    };
    let of = match &config.of {
        EndpointsOf::InferencePool(name) => Of::InferencePool(name.clone()),
        EndpointsOf::Pods(labels, ports) => {
            Of::Pods(PodsConfig { labels: labels.clone(), ports: ports.clone() })
        }
        EndpointsOf::Service(name, ports) => {
            Of::Service { name: name.clone(), ports: ports.clone() }
        }
    };
    Ok(KubernetesConfig { server, namespace, of, timing: Timing::default() })
}
