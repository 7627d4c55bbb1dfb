//! Further gateways of a stand: the same configuration on addresses of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{Process, port, wasm_epp};
use crate::stand::{Stand, envoy, start_envoy};

/// One of them.
pub struct Sibling {
    /// Inference listener.
    pub gateway: SocketAddr,
    /// Envoy's admin.
    pub admin: SocketAddr,
    /// Envoy's log.
    pub log: PathBuf,
    /// Envoy; `None` while stopped.
    pub envoy: Option<Process>,
    rendered: PathBuf,
    workers: u32,
}

impl Sibling {
    /// Starts its Envoy (again) and waits until it serves.
    pub async fn start(&mut self) -> Result<()> {
        let mut command = Command::new(envoy()?);
        command.arg("-c").arg(self.rendered.join("envoy.yaml"));
        command.args(["--log-level", "info", "--component-log-level", "wasm:debug"]);
        command.args(["--use-dynamic-base-id", "--concurrency", &self.workers.to_string()]);
        self.envoy = Some(start_envoy(&mut command, &self.log, self.admin).await?);
        Ok(())
    }
}

impl Stand {
    /// Starts gateway `number`, counted from 1, whose feed listener is `feed-{number}.sock`.
    pub async fn start_sibling(&self, number: usize, workers: u32) -> Result<Sibling> {
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (gateway, admin) = (loopback(port()?), loopback(port()?));
        let text = std::fs::read_to_string(self.config_file())?;
        let text = text
            .replace(&format!("listen: {}", self.gateway), &format!("listen: {gateway}"))
            .replace(&format!("  admin: {}", self.envoy_admin), &format!("  admin: {admin}"))
            .replace("  feed: unix:feed.sock", &format!("  feed: unix:feed-{number}.sock"));
        let folder = self.folder.path();
        let config = folder.join(format!("gateway-{number}.yaml"));
        let rendered = folder.join(format!("gateway-{number}"));
        std::fs::write(&config, text)?;
        let mut render = Command::new(wasm_epp()?);
        render.args(["render", "--gateway", "envoy", "--config"]).arg(&config);
        let output = render.arg("--out").arg(&rendered).output().context("run wasm-epp render")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "wasm-epp render: {errors}");
        let log = folder.join(format!("gateway-{number}.log"));
        let mut sibling = Sibling { gateway, admin, log, envoy: None, rendered, workers };
        sibling.start().await?;
        Ok(sibling)
    }
}
