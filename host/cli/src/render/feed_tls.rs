//! The gateway's side of the feed over a network: TLS 1.3 on the private listeners, for clients with a
//! certificate only.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::envoy::Source;
use super::{Output, RenderError};
use crate::config::{Config, FeedAddress, FeedTls};

const CERTIFICATE: &str = "feed-certificate";
const CA: &str = "feed-ca";

const HEADER: &str = "\
# Written by `wasm-epp render`; changes are lost at the next run.
# Envoy reads the files named here when something is renamed in their folder.
";

/// Longest handshake: who has no certificate holds a connection no longer.
const HANDSHAKE: &str = "10s";

/// Where the files that name the certificates are, which Envoy watches so that new certificates need no restart.
fn folder(config: &Config, source: &Source<'_>) -> PathBuf {
    match source {
        Source::Folder(ecds) => ecds.with_file_name("sds"),
        // Of what `render` writes, pods have only this.
        Source::Ads => {
            config.istio.as_ref().map(|istio| istio.modules_path.clone()).unwrap_or_default()
        }
    }
}

fn tls(config: &Config) -> Option<&FeedTls> {
    match &config.envoy.feed {
        FeedAddress::Https(address) => Some(&address.tls),
        FeedAddress::Unix(_) | FeedAddress::Http(_) => None,
    }
}

/// The chain of a private listener, for whom it lets in.
pub(super) fn chain(config: &Config, source: &Source<'_>, manager: Value) -> Value {
    let mut chain = json!({"filters": [{"name": "http", "typed_config": manager}]});
    if tls(config).is_some() {
        let folder = folder(config, source);
        let secret = |name: &str| {
            json!({
                "name": name,
                "sds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": {
                        "path": folder.join(format!("{name}.yaml")),
                        "watched_directory": {"path": folder},
                    },
                },
            })
        };
        chain["transport_socket_connect_timeout"] = json!(HANDSHAKE);
        chain["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": transport("DownstreamTlsContext"),
                "require_client_certificate": true,
                // Each connection shows a certificate that is good at that time.
                "disable_stateless_session_resumption": true,
                "common_tls_context": {
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "tls_certificate_sds_secret_configs": [secret(CERTIFICATE)],
                    "validation_context_sds_secret_config": secret(CA),
                },
            },
        });
    }
    chain
}

/// Writes the files that name the certificates, which need not be there yet, into a folder of the output.
pub(super) fn write(config: &Config, output: &mut Output, folder: &str) -> Result<(), RenderError> {
    let Some(tls) = tls(config) else { return Ok(()) };
    output.folder(folder)?;
    // Envoy watches the folders of these for renames, which is how Kubernetes replaces a mounted secret too.
    let mut validation = json!({"trusted_ca": {"filename": tls.ca}});
    if let Some(name) = &tls.peer_name {
        validation["match_typed_subject_alt_names"] =
            json!([{"san_type": "DNS", "matcher": {"exact": name}}]);
    }
    let certificate = json!({
        "certificate_chain": {"filename": tls.certificate},
        "private_key": {"filename": tls.key},
    });
    let secrets =
        [(CERTIFICATE, "tls_certificate", certificate), (CA, "validation_context", validation)];
    for (name, kind, value) in secrets {
        let secret = json!({"@type": transport("Secret"), "name": name, kind: value});
        let path = format!("{folder}/{name}.yaml");
        let text = super::yaml(Path::new(&path), &json!({"resources": [secret]}))?;
        output.write(&path, format!("{HEADER}{text}").as_bytes())?;
    }
    Ok(())
}

fn transport(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{name}")
}
