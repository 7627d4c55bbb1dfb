//! The feed over a network: mutual TLS between the daemon and Envoy, with certificates that come and go. At the
//! other end also curl, another implementation of both TLS and HTTP.

pub(crate) mod pki;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testbed::{Stand, StandOptions, wait_until, wasm_epp};

use crate::support::{COMPLETIONS, Protocol, completion, prose, served, teach};
use pki::{Mounted, Pair, Pki, text};

/// A daemon connects once a second.
const SOON: Duration = Duration::from_secs(60);

const GATEWAY: &str = "gw-0.feed.test";
const DAEMON: &str = "daemon.test";

struct Net {
    stand: Stand,
    pki: Pki,
    port: u16,
    ca: Pair,
    daemon: Mounted,
    gateway: Mounted,
}

/// A port whose next one is free too, for probes.
pub(crate) fn two_ports() -> u16 {
    loop {
        let port = testbed::port().unwrap();
        if testbed::port().unwrap() == port + 1 {
            return port;
        }
    }
}

impl Net {
    /// With a daemon.
    async fn start() -> Self {
        let mut net = Self::prepare(&format!(", clientName: {DAEMON}")).await;
        net.stand.start_daemon().unwrap();
        net.stand.wait_ready().await.unwrap();
        net.stand.wait_engines_ready().await.unwrap();
        net
    }

    /// Without a daemon, and with more of `envoy.feedTls`.
    async fn prepare(more: &str) -> Self {
        let pki = Pki::new();
        let ca = pki.authority("authority");
        let mut stand = Stand::prepare(StandOptions::default()).await.unwrap();
        let folder = |name: &str| Mounted::new(stand.folder.path().join(name));
        let (daemon, gateway) = (folder("daemon-tls"), folder("gateway-tls"));
        daemon.put(&pki.issue(&ca, DAEMON), &[&ca]);
        gateway.put(&pki.issue(&ca, GATEWAY), &[&ca]);
        let port = two_ports();
        let config = text(&stand.config_file());
        assert!(config.contains("feed: unix:feed.sock"), "{config}");
        let files = |folder: &str| {
            format!("ca: {folder}/ca.crt, certificate: {folder}/tls.crt, key: {folder}/tls.key")
        };
        let listener = format!(
            "feed: https://127.0.0.1:{port}\n  feedTls: {{{}{more}}}",
            files("gateway-tls")
        );
        let config = config.replace("feed: unix:feed.sock", &listener)
            + &format!(
                "gateways: [{{name: gw-0, feed: 'https://127.0.0.1:{port}', admin: '{}'}}]\n",
                stand.envoy_admin
            )
            + &format!("feedTls: {{{}, serverName: {GATEWAY}}}\n", files("daemon-tls"));
        std::fs::write(stand.config_file(), config).unwrap();
        stand.render().unwrap();
        stand.start_envoy(&[]).await.unwrap();
        Self { stand, pki, port, ca, daemon, gateway }
    }

    /// The daemon's view of the gateway.
    async fn gateway_page(&self) -> Option<Value> {
        Some(self.stand.readyz().await.ok()?["gateways"][0].clone())
    }

    /// Waits until the daemon says why it cannot feed the gateway, and that nothing reached the feeder then.
    async fn is_not_fed(&self, why: &str) {
        let mut last = Value::Null;
        let said = wait_until("the daemon says why", SOON, async || {
            last = self.gateway_page().await?;
            let is_said = last["error"].as_str().is_some_and(|error| error.contains(why));
            (is_said && last["state"] == "disconnected").then_some(())
        })
        .await;
        assert!(said.is_ok(), "expected {why:?}: {last}");
        let before = self.batches().await;
        self.has_failed_again(3.0).await;
        assert_eq!(self.batches().await, before, "{why}");
    }

    async fn batches(&self) -> u64 {
        let name = "wasmcustom.wasm_epp_feed_batches_applied_total";
        self.stand.envoy_stat(name).await.unwrap()
    }

    /// Waits for more failed attempts.
    async fn has_failed_again(&self, times: f64) {
        let failures = async || {
            let page = testbed::get(self.stand.daemon_admin, "/metrics").await.ok()?;
            let page = String::from_utf8(page.body.to_vec()).ok()?;
            let line =
                page.lines().find(|line| line.starts_with("wasm_epp_push_failures_total"))?;
            line.rsplit(' ').next()?.parse::<f64>().ok()
        };
        let before = failures().await.unwrap();
        wait_until("more attempts", SOON, async || {
            (failures().await? >= before + times).then_some(())
        })
        .await
        .unwrap();
    }

    /// Waits until batches are applied again, by the daemon that was started first.
    async fn is_fed(&mut self) {
        self.stand.wait_ready().await.unwrap();
        let before = self.batches().await;
        wait_until("a batch is applied", SOON, async || {
            (self.batches().await > before).then_some(())
        })
        .await
        .unwrap();
    }

    /// What curl says of a request with these arguments: exit code, status and body.
    fn curl(&self, port: u16, ca: &Pair, client: Option<&Pair>, more: &[&str]) -> (i32, String) {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20"])
            .args(["--write-out", "%{http_code}", "--output", "/dev/null"])
            .args(["--connect-to", &format!("{GATEWAY}:{port}:127.0.0.1:{port}"), "--cacert"])
            .arg(&ca.certificate);
        if let Some(client) = client {
            command.arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key);
        }
        let output =
            command.args(more).arg(format!("https://{GATEWAY}:{port}/feed")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
    }

    async fn ssl_stat(&self, name: &str) -> u64 {
        let name = format!("listener.127.0.0.1_{}.ssl.{name}", self.port);
        self.stand.envoy_stat(&name).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_goes_over_mutual_tls() {
    if !pki::is_there() || !has_curl() {
        return;
    }
    let mut net = Net::start().await;
    prompts_are_routed_by_what_the_feed_said(&net, "by TLS").await;
    probes_go_by_tls_too(&net);
    curl_is_let_in_with_a_certificate_only(&net).await;
    a_daemon_without_a_good_certificate_feeds_nobody(&mut net).await;
    a_gateway_without_a_good_certificate_is_not_fed(&mut net).await;
    authorities_are_replaced_while_both_run(&mut net).await;
    prompts_are_routed_by_what_the_feed_said(&net, "after all that").await;
}

async fn prompts_are_routed_by_what_the_feed_said(net: &Net, topic: &str) {
    let body = completion(&prose(topic, 3_000));
    let holder = teach(&net.stand, &body).await;
    let answer = Protocol::H1.post(&net.stand, COMPLETIONS, &body).await;
    assert_eq!(served(&net.stand, &answer, &body), holder);
}

fn probes_go_by_tls_too(net: &Net) {
    let body = net.stand.folder.path().join("body.json");
    std::fs::write(&body, completion(&prose("a question", 1_000))).unwrap();
    let output = Command::new(wasm_epp().unwrap())
        .args(["explain", "--json", "--path", COMPLETIONS, "--config"])
        .arg(net.stand.config_file())
        .arg("--body")
        .arg(&body)
        .output()
        .unwrap();
    // The last line is for programs.
    let last = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap();
    let said: Value = serde_json::from_slice(last).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(said["ok"], true, "{said}");
}

/// Whether there is a curl, which CI has.
fn has_curl() -> bool {
    let has = Command::new("curl").arg("--version").output().is_ok();
    if !has {
        assert!(std::env::var_os("CI").is_none(), "no curl");
        eprintln!("skipped: no curl");
    }
    has
}

/// Where the configuration names no client, the authority alone decides.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_client_name_any_certificate_of_the_authority_feeds() {
    if !pki::is_there() || !has_curl() {
        return;
    }
    let net = Net::prepare("").await;
    let any = net.pki.issue(&net.ca, "any.test");
    let stranger = net.pki.authority("stranger");
    let strangers = net.pki.issue(&stranger, "any.test");
    for port in [net.port, net.port + 1] {
        for client in [None, Some(&strangers)] {
            let (code, said) = net.curl(port, &net.ca, client, &[]);
            assert!([35, 55, 56].contains(&code), "{client:?}: {code} {said}");
        }
    }
    net.shows(&net.ca, &any).await;
    let (_, said) = net.curl(net.port, &net.ca, Some(&any), &[]);
    assert_eq!(said, "405", "a feeder answers");
}

async fn curl_is_let_in_with_a_certificate_only(net: &Net) {
    let stranger = net.pki.authority("stranger");
    let daemon = net.pki.issue(&net.ca, DAEMON);
    // A feeder's answers: to a batch that is none, and to a method that it does not take.
    let post = ["--data-binary", "no batch"];
    assert_eq!(net.curl(net.port, &net.ca, Some(&daemon), &post), (0, "400".into()));
    assert_eq!(net.curl(net.port, &net.ca, Some(&daemon), &[]), (0, "405".into()));
    let refused = "wasmcustom.wasm_epp_feed_batches_refused_total";
    let before = net.stand.envoy_stat(refused).await.unwrap();
    for port in [net.port, net.port + 1] {
        for (what, client) in [
            ("no certificate", None),
            ("a stranger's", Some(net.pki.issue(&stranger, DAEMON))),
            ("an expired one", Some(net.pki.issue_expired(&net.ca, DAEMON))),
            ("another's of the same authority", Some(net.pki.issue(&net.ca, GATEWAY))),
        ] {
            let (code, said) = net.curl(port, &net.ca, client.as_ref(), &post);
            assert!([35, 55, 56].contains(&code), "{what}: {code} {said}");
            assert!(said.starts_with("000"), "{what}: {said}");
        }
        let older = [&post[..], &["--tls-max", "1.2"]].concat();
        assert_eq!(net.curl(port, &net.ca, Some(&daemon), &older).0, 35, "TLS 1.2");
        let plain = net.curl(port, &stranger, Some(&daemon), &post);
        assert_eq!(plain.0, 60, "curl holds the gateway to an authority: {plain:?}");
    }
    assert_eq!(net.stand.envoy_stat(refused).await.unwrap(), before);
    // As Envoy tells them apart.
    assert_eq!(net.ssl_stat("fail_verify_no_cert").await, 1);
    assert_eq!(net.ssl_stat("fail_verify_san").await, 1);
    assert_eq!(net.ssl_stat("fail_verify_error").await, 2);
}

async fn a_daemon_without_a_good_certificate_feeds_nobody(net: &mut Net) {
    let stranger = net.pki.authority("other");
    let good = net.pki.issue(&net.ca, DAEMON);
    let refused = "the feed listener refused feedTls.certificate: TLS alert ";
    for (pair, alert) in [
        (net.pki.issue(&stranger, DAEMON), "UnknownCA"),
        (net.pki.issue_expired(&net.ca, DAEMON), "CertificateExpired"),
        (net.pki.issue(&net.ca, GATEWAY), "CertificateUnknown"),
    ] {
        net.daemon.put(&pair, &[&net.ca]);
        net.is_not_fed(&format!("{refused}{alert}")).await;
    }
    // Files that are no certificates, or not of one another.
    let (ca, certificate, key) =
        (text(&net.ca.certificate), text(&good.certificate), text(&good.key));
    let other = text(&net.ca.key);
    for (texts, key, why) in [
        (["no PEM", &certificate, &key], "ca", "no certificate in PEM"),
        ([&ca, "no PEM", &key], "certificate", "no certificate in PEM"),
        ([&ca, &certificate, &certificate], "key", "no private key in PEM"),
        ([&ca, &certificate, &other], "key", "not the key of the certificate in "),
    ] {
        net.daemon.put_texts(texts[0], texts[1], texts[2]);
        let name =
            if key == "ca" { "ca.crt" } else { ["tls.crt", "tls.key"][usize::from(key == "key")] };
        let file = net.daemon.file(name);
        net.is_not_fed(&format!("feedTls.{key}: {}: {why}", file.display())).await;
    }
    std::fs::remove_file(net.daemon.file("tls.key")).unwrap();
    net.is_not_fed(&format!(
        "feedTls.key: read {}: No such file",
        net.daemon.file("tls.key").display()
    ))
    .await;
    net.daemon.put(&good, &[&net.ca]);
    net.is_fed().await;
}

async fn a_gateway_without_a_good_certificate_is_not_fed(net: &mut Net) {
    let stranger = net.pki.authority("impostor");
    let tls = "TLS with the feed listener: invalid peer certificate: ";
    for (pair, why) in [
        (net.pki.issue(&stranger, GATEWAY), "UnknownIssuer"),
        (net.pki.issue_expired(&net.ca, GATEWAY), "certificate expired"),
        (
            net.pki.issue(&net.ca, "gw-1.feed.test"),
            "certificate not valid for name \"gw-0.feed.test\"",
        ),
    ] {
        net.gateway.put(&pair, &[&net.ca]);
        net.is_not_fed(&format!("{tls}{why}")).await;
    }
    net.gateway.put(&net.pki.issue(&net.ca, GATEWAY), &[&net.ca]);
    net.is_fed().await;
}

/// As it is done: both trust both, then each has a certificate of the new one, then nobody trusts the old one.
/// Neither process starts anew.
async fn authorities_are_replaced_while_both_run(net: &mut Net) {
    let page = net.gateway_page().await.unwrap();
    let new = net.pki.authority("new-authority");
    let old = net.ca.clone();
    let [of_daemon, of_gateway] = [DAEMON, GATEWAY].map(|name| net.pki.issue(&old, name));
    let [next_daemon, next_gateway] = [DAEMON, GATEWAY].map(|name| net.pki.issue(&new, name));
    let probe = net.pki.issue(&old, DAEMON);
    net.daemon.put(&of_daemon, &[&old, &new]);
    net.gateway.put(&of_gateway, &[&old, &new]);
    // Envoy has read them when it takes a certificate of the new one.
    net.shows(&old, &next_daemon).await;
    net.daemon.put(&next_daemon, &[&old, &new]);
    net.gateway.put(&next_gateway, &[&old, &new]);
    net.shows(&new, &next_daemon).await;
    net.gateway.put(&next_gateway, &[&new]);
    net.daemon.put(&next_daemon, &[&new]);
    wait_until("the old authority is forgotten", SOON, async || {
        let (code, _) = net.curl(net.port, &new, Some(&probe), &[]);
        (code != 0).then_some(())
    })
    .await
    .unwrap();
    net.is_fed().await;
    let now = net.gateway_page().await.unwrap();
    assert_eq!((&now["instance"], &now["epoch"]), (&page["instance"], &page["epoch"]));
}

impl Net {
    /// Waits until the gateway has a certificate of this authority and takes that one.
    async fn shows(&self, authority: &Pair, client: &Pair) {
        wait_until("the gateway has its new files", SOON, async || {
            (self.curl(self.port, authority, Some(client), &[]).0 == 0).then_some(())
        })
        .await
        .unwrap();
    }
}
