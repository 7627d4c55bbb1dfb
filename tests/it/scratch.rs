use testbed::{Stand, StandOptions};
#[tokio::test(flavor = "multi_thread")]
async fn scratch() {
    let stand = Stand::start(StandOptions::default()).await.unwrap();
    println!("GW {} ENG {}", stand.gateway, stand.engines[0].http);
    println!("ADMIN {}", stand.envoy_admin);
    tokio::time::sleep(std::time::Duration::from_secs(40)).await;
    println!("{}", stand.envoy.as_ref().unwrap().tail());
}
