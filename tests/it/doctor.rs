//! `wasm-epp doctor` against a running daemon.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use testbed::{Stand, StandOptions, wait_until, wasm_epp};

pub(crate) fn doctor(stand: &Stand) -> (Output, Value) {
    let output = Command::new(wasm_epp().unwrap())
        .args(["doctor", "--json", "--config"])
        .arg(stand.config_file())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (output, report.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_is_well_and_what_is_not() {
    let mut stand = Stand::start(StandOptions::default()).await.unwrap();
    let (output, report) = doctor(&stand);
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{output:?}");
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(4), "three engines and a gateway");

    let lost = stand.engines[1].http.to_string();
    stand.engines[1].process.take().unwrap().kill();
    let (output, report) = wait_until("the doctor sees it", Duration::from_secs(30), async || {
        let (output, report) = doctor(&stand);
        (report["ok"] == false).then_some((output, report))
    })
    .await
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let findings = report["findings"].as_array().unwrap();
    let ill: Vec<&Value> =
        findings.iter().filter(|f| f["problems"] != serde_json::json!([])).collect();
    assert_eq!(ill.len(), 1, "{report}");
    assert_eq!(ill[0]["name"], lost);

    stand.daemon.take().unwrap().kill();
    let (output, _) = doctor(&stand);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("is `wasm-epp serve` running?"), "{errors}");
}
